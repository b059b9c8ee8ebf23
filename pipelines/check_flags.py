"""The flags of `edgewise check-transcoders`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse

from pipelines.flags import add_flags


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise check-transcoders` takes."""
    parser.add_argument("transcoders", metavar="TRANSCODERS", help="directory, or name on the Hugging Face hub")
    add_flags(parser, ("model",), leave_out=("--kv-heads",))
    group = parser.add_argument_group("text")
    group.add_argument(
        "--corpus",
        nargs="+",
        metavar="FILE",
        help=".txt, .json or .jsonl (default: text like the embedded model's own)",
    )
    group.add_argument("--prompts", nargs="+", metavar="TEXT", help="texts instead of a corpus")
    group.add_argument("--tokens", type=int, default=8192, metavar="N", help="sample about N tokens (default: 8192)")
    group.add_argument("--context", type=int, default=128, metavar="N", help="tokens in a window (default: 128)")
    group = parser.add_argument_group("which dictionaries")
    group.add_argument("--layers", metavar="L,...", help="only these layers")
    group.add_argument("--variant", metavar="PART", help="part of the path where there are several, such as width_16k")
    group.add_argument("--l0", type=float, metavar="L0", help="of several, the one whose mean L0 is nearest")
    group.add_argument("--reads", metavar="SITE", help="where they read, instead of what their files say")
    group.add_argument("--writes", metavar="SITE", help="where they write, instead of what their files say")
    group = parser.add_argument_group("losses")
    group.add_argument("--no-losses", action="store_true", help="do not splice them in (two passes for each layer)")
    group.add_argument(
        "--ablate-with", choices=("mean", "zero"), default="mean", help="what a recovered loss is measured against"
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON (- for standard output, alone)")

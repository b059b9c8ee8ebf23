"""The flags of `edgewise train-transcoders`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
import os

from pipelines.flags import add_flags

EPILOG = """\
The directory is in circuit-tracer's layout, with training.json (figures on held-out documents, settings) beside. A run
that was stopped goes on with the same command. Several devices or processes: torchrun --nproc-per-node N -m
pipelines.cli train-transcoders ... (a run that is to go on under another N needs --streams from the start)."""


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise train-transcoders` takes."""
    add_flags(parser, ("model", "seed", "out"), leave_out=("--kv-heads", "--device-map"))
    add = parser.add_argument
    add("--corpus", nargs="+", default=(), metavar="FILE", help=".txt, .json (list of texts), .jsonl (text or tokens)")
    add("--window", type=int, default=256, metavar="N", help="most tokens of a piece of text (default: 256)")
    add("--held-out", type=_share, default=0.1, metavar="P", help="share of documents to measure on (default: 0.1)")
    add("--kind", choices=("per-layer", "skip", "cross-layer"), default="per-layer", help="default: per-layer")
    add("--activation", choices=("topk", "jumprelu"), default="jumprelu", help="default: jumprelu")
    add("--features", type=int, metavar="N", help="features of each layer (default: 16 times the model's width)")
    add("--k", type=int, default=15, metavar="K", help="active features of a token and layer (default: 15)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="batches (default: 500)")
    length.add_argument("--tokens", type=int, metavar="N", help="the same, in tokens")
    add("--batch-tokens", type=int, default=2048, metavar="N", help="tokens in a batch (default: 2048)")
    add("--rate", type=float, metavar="R", help="Adam's peak rate (default: 2.5 / the model's width)")
    add("--buffer", type=int, default=200_000, metavar="N", help="tokens held and shuffled (default: 200000)")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    add("--streams", type=int, default=processes, metavar="N", help="independent parts of the corpus (one a process)")
    add("--reads", choices=("mlp-in", "residual-mid", "mlp-norm"), default="mlp-in", help="default: mlp-in")
    add("--writes", choices=("mlp-out", "mlp-raw"), default="mlp-out", help="default: mlp-out")


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return share

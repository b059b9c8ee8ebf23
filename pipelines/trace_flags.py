"""The flags of `edgewise trace`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse

from pipelines.flags import add_flags

ALIGNMENTS = ("auto", "position", "end", "changed")
EPILOG = """\
targets: 'logit(" Paris")', 'logit(312)', 'logit(" Paris") - logit(" Rome")', or a feature such as f2.31@4
without PROMPT the pairs of --task (--limit N, default 20): one graph of all clean prompts, and clean less corrupt
files of token ids: {"tokens": [1, 393, 483], "targets": [577]}; nothing is put in front of them
The run directory holds graph.json (pruned), nodes.json and adjacency.npz (everything), validation.json and exports/."""


def add_trace_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise trace` takes."""
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="a text, or a JSON file of token ids; none: the task"
    )
    unused = ("--kv-heads", "--metric", "--misaligned", "--spans", "--features", "--heads")
    unused += ("--feature-steps", "--recheck", "--recheck-tolerance")
    add_flags(parser, ("model", "transcoders", "task", "seed", "out"), leave_out=unused)
    group = parser.add_argument_group("graph")
    group.add_argument(
        "--targets", nargs="+", default=(), metavar="T", help="what to explain (default: the likely next tokens)"
    )
    group.add_argument(
        "--keep",
        type=float,
        default=0.999,
        metavar="P",
        help="share of each row's absolute sum to store (default: 0.999)",
    )
    group.add_argument("--max-features", type=int, metavar="N", help="only the N most influential active features")
    group.add_argument("--bias-nodes", action="store_true", help="add every constant as a node: rows then sum exactly")
    group.add_argument(
        "--fixed-prefix",
        type=int,
        default=1,
        metavar="N",
        help="first positions without features and errors (default: 1)",
    )
    group = parser.add_argument_group("many prompts")
    group.add_argument(
        "--align", choices=ALIGNMENTS, default="auto",
        help="match positions of a task's prompts by number, distance from the end, or what the pair changes",
    )  # fmt: skip
    group.add_argument(
        "--least-frequency", type=float, default=0.25, metavar="P",
        help="share of the prompts in which an edge must be (default: 0.25)",
    )  # fmt: skip
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--node-threshold", type=float, default=0.8, metavar="P", help="share of the influence to keep (default: 0.8)"
    )
    group.add_argument(
        "--edge-threshold",
        type=float,
        default=0.98,
        metavar="P",
        help="share of the edge scores to keep (default: 0.98)",
    )
    group = parser.add_argument_group("checks and pictures")
    group.add_argument(
        "--validate",
        type=int,
        default=20,
        metavar="N",
        help="check N features by interventions; 0 = none (default: 20)",
    )
    group.add_argument(
        "--split-heads", action=argparse.BooleanOptionalAction, default=True, help="say which heads edges run through"
    )
    group.add_argument(
        "--explain-attention",
        type=int,
        default=3,
        metavar="N",
        help="say why N heads attend where they do (default: 3)",
    )
    group.add_argument(
        "--formats", default="svg,neuronpedia", metavar="F,...", help="pictures and files (default: svg,neuronpedia)"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a directory that holds another run")

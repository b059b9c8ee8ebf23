"""The flags of `edgewise progress`, and what it says when it is done. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import Checkpoint, folder_checkpoints, hub_checkpoints
from pipelines.flags import add_flags, flag_settings
from pipelines.settings import ConfigError, Settings, build, from_file

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.progress import Progress, ProgressRequest

EPILOG = """\
Such as
  edgewise progress --models run/step* --task pairs.jsonl --edges 200 --out runs/progress
  edgewise progress --model EleutherAI/pythia-160m --revisions step1,step512,step143000 --task ioi --edges 200
Steps are the numbers in the names. Every checkpoint gets an ordinary run directory in --out; the same command
resumes, and takes new checkpoints in. Runs are leaner than those of discover: the method is eap-ig, and random
circuits, rivals and hypothesis tests are made where they are asked for (docs/progress.md)."""
LEAN: Settings = {
    ("method", "name"): "eap-ig",
    ("evaluation", "random_circuits"): 0,
    ("evaluation", "rivals"): 0,
    ("evaluation", "tests"): "none",
    ("export", "formats"): ("svg",),
    ("labels", "labeler"): "none",
}
"""Defaults that differ from `edgewise discover`: there are many runs, the fixed circuit is judged at each anyway, and scores
must mean the same at every step (screen-verify decides anew at each how edges are ranked)."""


def add_progress_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise progress` takes."""
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; flags win over them")
    group = parser.add_argument_group("checkpoints")
    add = group.add_argument
    add(
        "--models",
        nargs="+",
        metavar="DIR",
        help="directories of the checkpoints, or a quoted pattern such as 'run/step*'",
    )
    add("--revisions", metavar="R,...", help="instead, with --model: revisions of a hub model")
    add(
        "--circuit",
        default="last",
        metavar="C",
        help="edges to watch at every step: last (the last step's circuit), own (each step's), a run directory or a JSON "
        "file of edges (default: last)",
    )
    sections = ("model", "task", "method", "ablation", "ablating", "selection", "evaluation", "export", "convention")
    unused = ("--revision", "--scores", "--ground-truth")
    add_flags(parser, (*sections, "batch_size", "seed", "out"), leave_out=unused)
    parser.add_argument("--overwrite", action="store_true", help="start runs of other settings in --out anew")


def progress_request(options: argparse.Namespace) -> ProgressRequest:
    """What the flags and the file ask for. Raises ConfigError."""
    from pipelines.progress import ProgressRequest

    layers: list[Settings] = [] if options.config is None else [from_file(options.config)]
    base = build(LEAN, *layers, flag_settings(options))
    return ProgressRequest(base, _checkpoints(options, base), options.circuit, options.overwrite)


def _checkpoints(options: argparse.Namespace, base: RunConfig) -> tuple[Checkpoint, ...]:
    name = base.model.name
    if base.model.revision is not None:
        raise ConfigError("model.revision: progress takes several, give them by --revisions")
    if options.models is not None and (name is not None or options.revisions is not None):
        raise ConfigError("--models names the checkpoints: leave out --model and --revisions")
    if options.models is not None:
        return folder_checkpoints(options.models)
    if name is None or options.revisions is None:
        raise ConfigError("which checkpoints? give --models DIR..., or --model NAME --revisions step1,step2,...")
    return hub_checkpoints(name, options.revisions)


def progress_summary(done: Progress) -> str:
    """The table over steps, what appeared when, and the edges that came first and last."""
    from pipelines.summary import table

    content = done.content
    circuit, steps = content["circuit"], content["steps"]
    rows = [("step", "metric", "ablated", "accuracy", "known", "faithful", "rest", "random", "loss", "circ. loss", "rest loss",
             "abl. loss", "edges", "previous", "last")]  # fmt: skip
    rows += [_row(step) for step in steps]
    untold = sum(not step["told"] for step in steps)
    return "\n".join(
        [
            f"{content['title']}: {len(steps)} checkpoints, {content['method']}, {content['metric']}, "
            f"{content['ablation']} ablation, evaluated on {steps[-1]['pairs']} pairs",
            f"circuit: {circuit['edges']:,} of {circuit['possible']:,} edges, {circuit['origin']}",
            "faithful: of the circuit alone; rest: of all other edges; random: of random circuits as large; losses likewise;",
            "edges: the step's own circuit, its Jaccard overlap with the previous step's and with the last one's",
            "",
            *table(rows),
            "",
            *(
                [
                    f"in brackets ({untold} steps): the metric hardly tells clean from ablated there, the ratio is mostly noise"
                ]
                if untold
                else []
            ),
            *_moment_lines(content),
            *_edge_lines(content["edges"]),
            *_passing_lines(content["passing"]),
            "",
            *(f"wrote {path}" for path in done.written),
        ]
    )


def _row(step: Mapping[str, Any]) -> tuple[str, ...]:
    def number(run: str, name: str) -> str:
        found = step[run] and step[run][name]
        return "-" if found is None else f"{found:z.3f}"

    def ratio(run: str) -> str:
        found = step[run] and step[run]["faithfulness"]
        text = "-" if found is None else f"{found:z.2f}"
        return text if step["told"] or found is None else f"({text})"

    overlap = [step[f"overlap_{name}"] for name in ("previous", "last")]
    return (
        f"{step['step']:,}",
        *(number(run, "metric") for run in ("full", "empty")),
        f"{step['full']['accuracy']:.2f}",
        f"{step['known']:.2f}",
        *(ratio(run) for run in ("circuit", "rest", "random")),
        *(number(run, "loss") for run in ("full", "circuit", "rest", "empty")),
        "-" if step["own"] is None else f"{step['own']['edges']:,}",
        *("-" if one is None else f"{one['jaccard']:.2f}" for one in overlap),
    )


def _moment_lines(content: Mapping[str, Any]) -> list[str]:
    """From when on the model knows the answer, the circuit suffices and the rest does not."""
    said = {
        "known": "the model prefers the right answer to the wrong one in 75 % of the pairs",
        "circuit": f"the circuit alone has a faithfulness of {content['reach']:g} or more",
        "rest": "all but the circuit has one below 0.5",
    }
    found = content["from"]
    return [
        f"{'never to stay' if found[name] is None else f'from step {found[name]:,} on'}: {text}"
        for name, text in said.items()
    ]


def _edge_lines(edges: Sequence[Mapping[str, Any]], most: int = 5) -> list[str]:
    """The edges that appear first and last: those that reach half of their final score."""
    from pipelines.summary import table

    there = [edge for edge in edges if edge["appears"] is not None]
    shown = there if len(there) <= 2 * most else [*there[:most], *there[-most:]]
    rows: list[tuple[str, ...]] = [("edge", "appears", "settles", "as share", "final score")]
    for edge in shown:
        places = (edge[name] for name in ("appears", "settles", "appears_as_share"))
        found = ("-" if place is None else f"{place:,}" for place in places)
        rows.append((edge["edge"], *found, f"{edge['scores'][-1]:+.3g}"))
    if len(rows) == 1:
        return []
    which = "" if len(shown) == len(there) else f" (the first {most} and the last {most} of {len(there):,})"
    return ["", f"edges reach half of their final score{which}:", *table(rows, left=1)]


def _passing_lines(edges: Sequence[Mapping[str, Any]], most: int = 5) -> list[str]:
    """The strongest edges of earlier circuits that the watched one lacks."""
    if not edges:
        return []
    named = ", ".join(f"{edge['edge']} (step {edge['peak']:,})" for edge in edges[:most])
    return ["", f"in circuits of other steps and not in this one, with the step of their largest share: {named}"]


def complaint(done: Progress) -> str | None:
    """One line for the checkpoints that have no results; None where all have."""
    if not done.failed:
        return None
    named = "; ".join(f"{one['checkpoint']}: {one['reason']}" for one in done.failed)
    return f"{len(done.failed)} checkpoints left out: {named}"

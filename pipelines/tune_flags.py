"""The flags of `edgewise tune`, and what it says when it is done. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.flags import add_flags, flag_settings
from pipelines.settings import Settings, build
from pipelines.tune_config import OBJECTIVES, read_tune, tune_assignments, tune_file

if TYPE_CHECKING:
    from pipelines.tune import Tuned, TuneRequest
    from pipelines.tune_front import Entry

EPILOG = """\
A [tune] table in CONFIG.toml says what is tried (docs/tuning.md):
  [tune]
  methods = ["eap", "eap-ig", "relp"]
  objectives = ["distance", "edges", "seconds"]
  [tune.options.eap-ig]
  steps = [2, 20]
With one objective (such as --objectives cmd) hopeless trials are given up on part of the pairs. The same
command goes on with a study that was stopped; several commands may work on one study."""
_LISTS = ("methods", "ablations", "objectives")


def add_tune_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise tune` takes."""
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings of the runs, with a [tune] table")
    group = parser.add_argument_group("search")
    add = group.add_argument
    add("--methods", metavar="X,...", help="methods to try (default: all but the slow ones)")
    add("--ablations", metavar="A,...", help="ablations to score under (default: the run's own, mean, zero)")
    add("--objectives", metavar="O,...", help=f"of {', '.join(OBJECTIVES)} (default: distance,edges,seconds)")
    add("--trials", type=int, metavar="N", help="trials in the study, over all workers (default: 50)")
    add("--timeout", type=float, metavar="S", help="begin no trial after so many seconds")
    add("--workers", type=int, metavar="N", help="processes that share the trials (default: 1)")
    add(
        "--storage",
        metavar="URL",
        help="Optuna's database, such as postgresql+psycopg://... (default: SQLite in --out)",
    )
    add("--study", metavar="NAME", help="the study's name there (default: from the settings)")
    sections = ("model", "task", "transcoders", "ablation", "ablating", "selection", "evaluation", "convention")
    unused = ("--edges", "--nodes", "--size", "--threshold", "--by", "--rule", "--min-stability", "--faithfulness-only",
              "--rivals", "--missed", "--tests", "--ground-truth", "--random-circuits")  # fmt: skip
    add_flags(parser, (*sections, "batch_size", "seed", "out"), leave_out=unused)


def tune_request(options: argparse.Namespace) -> TuneRequest:
    """What the flags and the file ask for. Raises ConfigError."""
    from pipelines.tune import TuneRequest

    layers: list[Settings] = []
    tables: list[tuple[str, Mapping[str, Any]]] = []
    if options.config is not None:
        settings, table = tune_file(options.config)
        layers.append(settings)
        tables.append((str(options.config), table))
    options.set, assigned = tune_assignments(options.set)
    given: dict[str, Any] = {
        name: list(filter(None, map(str.strip, value.split(",")))) if name in _LISTS else value
        for name in (*_LISTS, "trials", "timeout", "workers")
        if (value := getattr(options, name)) is not None
    }
    tables += [("--set", assigned), ("command line", given)]
    return TuneRequest(build(*layers, flag_settings(options)), read_tune(tables), options.storage, options.study)


def tune_summary(tuned: Tuned) -> str:
    """The front as a table, with the baseline and what to do next."""
    from pipelines.summary import table

    counts = ", ".join(f"{count} {state}" for state, count in tuned.counts.items() if count)
    names = [name for name in tuned.objectives if name not in ("distance", "edges", "seconds")]
    rows = [("trial", "what", *names, "edges", "faithful", "unseen", "95 %", "random", "seconds")]
    rows += [_row(tuned, entry, names) for entry in tuned.best]
    if tuned.baseline is not None:
        rows.append(_row(tuned, tuned.baseline, names))
    return "\n".join(
        [
            f"{sum(tuned.counts.values())} trials ({counts}); {len(tuned.best)} that no other one beats in "
            f"{' and '.join(tuned.objectives)}",
            "faithful: on the pairs that trials are judged on; unseen: on pairs that no trial saw; random: random circuits "
            "of that size",
            "",
            *table(rows, left=2),
            "",
            *(f"note: {text}" for text in tuned.notes),
            *([] if _any_good(tuned) else ["note: no trial beats random circuits of its size"]),
            f"to start with: trial {tuned.chosen.number}: edgewise discover {tuned.directory / 'best.toml'}",
        ]
    )


def _any_good(tuned: Tuned) -> bool:
    from pipelines.tune_front import beats_random

    return any(beats_random(entry, tuned.baseline) for entry in tuned.best)


def _row(tuned: Tuned, entry: Entry, names: list[str]) -> tuple[str, ...]:
    from pipelines.tune_front import random_distance
    from pipelines.tune_picture import describe

    found, unseen = entry.found, entry.unseen or {}
    rival = random_distance(tuned.baseline, found["edges"])
    low = f"[{unseen['low']:.2f}, {unseen['high']:.2f}]" if "low" in unseen else ""
    mark = "random" if entry.baseline else f"{entry.number}{'*' if entry.number == tuned.chosen.number else ''}"
    return (
        mark,
        describe(entry),
        *(f"{found[name]:.3f}" for name in names),
        f"{found['edges']:,.0f}",
        f"{found['faithfulness']:.3f}",
        f"{unseen['faithfulness']:.3f}" if unseen else "",
        low,
        "" if rival is None else f"{1 - rival:.3f}",
        f"{found['seconds']:.3g}",
    )

"""Runs as a submission to the MIB benchmark's circuit track: a folder per task and model with graph files in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.exporters import Exporter
from pipelines.circuit_exports import stored_view
from pipelines.settings import ConfigError
from pipelines.store import RunConflict, RunStore

if TYPE_CHECKING:
    from graphs.exporters.eap_ig import EapIgGraph

PERCENTAGES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""Of the edges: each of the circuits keeps no more."""
FILES: dict[str, Exporter[EapIgGraph]] = {
    "json": Exporter("graphs.exporters.eap_ig", "write_eap_ig", ".json", "EAP-IG's graph as JSON"),
    "pt": Exporter("discovery.eap_ig_pt", "write_eap_ig_pt", ".pt", "the same as tensors"),
}
"""Writers of the track's files, by the names that users type."""
_MODELS: Mapping[str, str] = {
    "gpt2": "gpt2",
    "gpt2-small": "gpt2",
    "Qwen2.5-0.5B": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "Llama-3.1-8B": "llama3",
}
"""The models of the track, by the last part of their hub names."""
_TASKS: Mapping[str, str] = {
    "copycolors_mcqa": "mcqa",
    "arithmetic_addition": "arithmetic-addition",
    "arithmetic_subtraction": "arithmetic-subtraction",
    "arc_easy": "arc-easy",
    "arc_challenge": "arc-challenge",
}
"""Tasks of the track whose data are called otherwise."""


def submit(runs: Sequence[str], out: Path, form: str, suffix: str, name: str | None, by: str) -> list[Path]:
    """Writes the folders of some runs below `out` and gives the files' paths.

    form: `scores`, one file with a number for every edge, or `circuits`, nine files that say which edges are in. name:
    of the folder, as <task>_<model>, for a single run; else from the run. by: ranks the edges of the circuits. Raises
    ConfigError or RunConflict naming the run where one has no scores, and where two runs would share a folder.
    """
    if name is not None and len(runs) > 1:
        raise ConfigError("--as names one folder: give one run, or leave it out")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9.-]+_[A-Za-z0-9.-]+", name):
        raise ConfigError(f"--as {name}: write it as <task>_<model>, such as ioi_gpt2")
    stores: dict[str, RunStore] = {}
    for run in runs:
        store = RunStore(run)
        store.load()
        if not (store.finished("scores") and store.finished("circuit")):
            raise RunConflict(f"{run} has no scores and circuit yet: finish the run with edgewise discover first")
        folder = name or folder_of(store.run)
        if folder in stores:
            raise ConfigError(f"{run} and {stores[folder].directory} are both {folder}: submit one of them")
        stores[folder] = store
    return [path for folder, store in stores.items() for path in _write(store, out / folder, form, suffix, by)]


def folder_of(run: Mapping[str, Any]) -> str:
    """<task>_<model>, in the track's names where it has them. Raises nothing: other names are cleaned of what is not."""
    task, model = run["task"]["name"], run["model"]["name"].rpartition("/")[2]
    names = (_TASKS.get(task, task), _MODELS.get(model, model))
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower() for text in names)


def _write(store: RunStore, folder: Path, form: str, suffix: str, by: str) -> list[Path]:
    write, target = FILES[suffix], RunStore(folder)
    graphs = _graphs(store, form, by)
    return [target.write_bytes(f"{name}{write.suffix}", write(graph)) for name, graph in graphs.items()]


def _graphs(store: RunStore, form: str, by: str) -> dict[str, EapIgGraph]:
    from graphs.exporters.eap_ig import graph_of
    from graphs.prune import drop_dead_ends, edge_count, nested_circuits

    shown = stored_view(store)
    whole = graph_of(shown)
    if form == "scores":
        return {"importances": whole}
    scores = shown.circuit.scores
    assert scores is not None
    counts = [edge_count(scores.topology, percentage / 100) for percentage in PERCENTAGES]
    circuits = nested_circuits(scores, counts, by=by)  # type: ignore[arg-type]
    found = {}
    for percentage, circuit in zip(PERCENTAGES, circuits, strict=True):
        kept = drop_dead_ends(circuit).kept
        found[f"{percentage:g}"] = dataclasses.replace(whole, kept=kept, nodes=np.asarray(kept.any(1)), scores=None)
    return found

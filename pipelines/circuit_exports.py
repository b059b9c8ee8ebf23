"""A run's circuit in other formats: what exporters are given of it, and the files that they make."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock
from pipelines.default_method import method_name
from pipelines.settings import ConfigError
from pipelines.store import (
    CIRCUIT,
    CONFIG,
    EVALUATION,
    EXPORTS,
    FEATURES,
    LABELS,
    NODE_ARRAYS,
    NODES,
    RUN,
    SCORES,
    RunConflict,
    RunStore,
)

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.view import CircuitView


def check_formats(formats: tuple[str, ...]) -> None:
    """Raises ConfigError naming an export format that does not exist."""
    from graphs.exporters import EXPORTERS

    for name in formats:
        if name not in EXPORTERS:
            raise ConfigError(f"there is no exporter {name!r} (exporters: {', '.join(EXPORTERS)})")


def view(store: RunStore, circuit: Circuit, evaluation: dict[str, Any]) -> CircuitView:
    """What exporters are given of a run."""
    from graphs.view import CircuitView
    from pipelines.label import label_texts, named_labels

    run = store.run
    own = evaluation.get("circuit", {})
    numbers = {key: own.get(key) for key in ("faithfulness", "low", "high", "completeness") if key in own}
    numbers |= {key: evaluation[key] for key in ("cmd", "cpr", "cmd_log", "auroc") if evaluation.get(key) is not None}
    method = method_name(run) if circuit.scores is None else circuit.scores.method
    title = f"{run['task']['name']} in {run['model']['name']} ({method})"
    stability = (run.get("circuit", {}).get("stability") or {}).get("resamples")
    if stability is not None:
        numbers["stability"] = stability["mean"]
    texts, width, warnings = label_texts(store), run["model"].get("d_model"), tuple(evaluation.get("warnings", ()))
    return CircuitView(circuit, title, texts, numbers, run["task"]["metric"], width, named_labels(store), warnings)


def stored_view(store: RunStore) -> CircuitView:
    """What exporters are given of a finished circuit: with the scores of all edges, and its evaluation if there is one."""
    from graphs.exporters.circuit_json import read_circuit

    circuit = read_circuit(store.path(CIRCUIT).read_bytes())
    if store.finished("scores"):
        circuit = dataclasses.replace(circuit, scores=store.read_scores(circuit.topology))
    return view(store, circuit, store.read_json(EVALUATION) if store.finished("evaluation") else {})


def export_run(store: RunStore, formats: tuple[str, ...], clock: Clock | None = None) -> list[Path]:
    """Writes the stored circuit in these formats under exports/ and gives the paths of all files of the run.

    Raises RunConflict where the run has no circuit yet, and ExporterUnavailable for a format that this machine cannot
    make (after writing the others).
    """
    from graphs.exporters import EXPORTERS
    from graphs.view import ExporterUnavailable

    check_formats(formats)
    if not store.finished("circuit"):
        raise RunConflict(f"{store.directory} has no circuit yet: finish the run with edgewise discover first")
    clock, missing, pictures = clock or Clock(), None, []
    with clock.time("exports"):
        shown = stored_view(store)
        for name in formats:
            try:
                content = EXPORTERS[name](shown)
            except ExporterUnavailable as error:
                missing = missing or error
            else:
                pictures.append(store.write_bytes(f"{EXPORTS}/circuit{EXPORTERS[name].suffix}", content))
    if missing is not None:
        raise missing
    store.finish("exports", clock.seconds["exports"])
    own = (CONFIG, RUN, *([FEATURES] if store.finished("features") else []), SCORES, CIRCUIT, EVALUATION)
    own = (*own, NODES, NODE_ARRAYS) if store.finished("nodes") else own
    own = (*own, LABELS) if store.finished("labels") else own
    return [*map(store.path, own), *pictures]

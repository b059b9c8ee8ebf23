"""The straight line: model, task, scores, circuit, evaluation, pictures; every step timed, stored and resumable."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.circuit_exports import check_formats, export_run, view
from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import RunConfig
from pipelines.default_method import with_method
from pipelines.fingerprint import edgewise_version, hash_settings, versions
from pipelines.inputs import Inputs, read_task
from pipelines.judge import judge
from pipelines.node_results import keep_nodes
from pipelines.processes import check_shares, is_first, shared_run
from pipelines.scoring import methods_of, score
from pipelines.selection import select, sure_edges
from pipelines.settings import ConfigError
from pipelines.store import (
    CIRCUIT,
    CONSTANTS,
    EVALUATION,
    FEATURES,
    UNFINISHED,
    UNFINISHED_RERUNS,
    RunStore,
)
from pipelines.stored_journal import StoredJournal
from pipelines.stored_pieces import StoredPieces
from pipelines.toml_text import to_toml

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.scores import EdgeScores

COMPUTED = ("scores", "circuit", "evaluation")
"""Steps that need the model, in their order."""


@dataclass(frozen=True)
class Outcome:
    """What a run left on disk."""

    store: RunStore
    """The run directory."""
    evaluation: dict[str, Any]
    """The content of evaluation.json."""
    reused: tuple[str, ...]
    """Steps whose results were there already."""
    written: tuple[Path, ...]
    """Files of the run."""


def discover(config: RunConfig, overwrite: bool = False) -> Outcome:
    """Runs the straight line, or what is left of it, in the configured directory.

    Raises ValueError (in one line) for settings, files and models that cannot be used; finished steps stay on disk. Of
    several processes (torchrun) the first alone names nodes, exports and writes.
    """
    check_names(config)
    clock = Clock()
    with shared_run(config, Path(config.out or default_directory(config))) as directory:
        store, reused = _run_model(config, directory, overwrite, clock)
        evaluation = store.read_json(EVALUATION)
    if not is_first():
        return Outcome(store, evaluation, reused, ())
    if wants_labels(config) and not store.finished("labels"):
        _label(config, store, clock)
    written = export_run(store, config.export.formats, clock)
    return Outcome(store, store.read_json(EVALUATION), reused, tuple(written))


def _run_model(config: RunConfig, directory: Path, overwrite: bool, clock: Clock) -> tuple[RunStore, tuple[str, ...]]:
    """The steps that need the model, and which of all steps were finished before."""
    with clock.time("task"):
        task = read_task(config)
    inputs = Inputs(config, task, clock)
    _ = inputs.metric  # refuses an unknown name before anything is written
    store = RunStore(directory)
    store.open(identity(config, inputs), to_toml(config), overwrite)
    reused = tuple(step for step in (*COMPUTED, "labels", "exports") if store.finished(step))
    if not all(store.finished(step) for step in COMPUTED):
        _compute(config, inputs, store)
    return store, reused


def wants_labels(config: RunConfig) -> bool:
    """Whether `discover` names the nodes."""
    from pipelines.label_subject import is_embedded

    chosen = config.labels
    return chosen.labeler == "rules" or (
        chosen.labeler == "auto" and (bool(chosen.corpus) or is_embedded(config.model))
    )


def _label(config: RunConfig, store: RunStore, clock: Clock) -> None:
    from pipelines.label import LabelRequest, label_store
    from pipelines.score import ScoreRequest, score_store

    label_store(store, LabelRequest(corpus=config.labels.corpus), clock)
    score_store(store, ScoreRequest(seed=config.seed), clock)


def check_names(config: RunConfig) -> None:
    """Refuses unknown methods, options, metrics and formats before anything slow happens."""
    methods_of(config)
    check_formats(config.export.formats)


def check_graph(config: RunConfig, inputs: Inputs) -> None:
    """Refuses, before anything is scored, a circuit larger than the graph and true edges that the graph lacks."""
    from graphs.compare import edge_mask
    from graphs.ground_truth import read_ground_truth

    topology, wanted, truth = inputs.model.topology, config.selection.edges, config.evaluation.ground_truth
    if wanted is not None and wanted > topology.edge_count:
        raise ConfigError(
            f"selection.edges is {wanted:,}, but the graph has {topology.edge_count:,} edges; ask for fewer"
        )
    if truth is not None:
        edge_mask(topology, read_ground_truth(Path(truth)))


def default_directory(config: RunConfig, label: str | None = None) -> Path:
    """runs/<task>-<label>-<hash of the settings>: the same settings find their run again. label: default the method."""
    source = config.task.source
    task = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).stem if Path(source).suffix else source).strip("-") or "task"
    label = label or (config.method.name if config.method.file is None else "file")
    return Path("runs") / f"{task[:40]}-{label}-{hash_settings(settings_of(config))}"


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what is computed: all but where it is written, names and pictures."""
    settings = dataclasses.asdict(config)
    del settings["out"], settings["export"], settings["labels"]
    if config.model.revision is None:
        del settings["model"]["revision"]
    if config.transcoders.name is None:
        del settings["transcoders"]
    if config.ablation not in ("noise", "optimal"):
        del settings["ablating"]
    if config.task.spans == "none":
        del settings["task"]["spans"]
    if not config.selection.reruns:
        del settings["selection"]["reruns"]
    return settings


def identity(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """What results on disk must agree with to be reused. See `RunStore.open`."""
    return {"edgewise": edgewise_version(), "config": settings_of(config), "inputs": inputs.hashes()}


def _compute(config: RunConfig, inputs: Inputs, store: RunStore) -> None:
    """The steps that need the model; those that are finished are read back."""
    take_constants(store, inputs)
    if config.transcoders.name is None and config.task.spans == "none":
        check_graph(config, inputs)
        inputs.prepare()
    else:
        take_choice(store, inputs)
        inputs.prepare()
        check_graph(config, inputs)
    check_shares(inputs)
    if inputs.train.ablation.kind == "optimal" and not store.finished("constants"):
        store.write_constants(inputs.train.ablation)
    store.note(
        inputs.clock.seconds,
        versions=versions(),
        model=inputs.describe_model(),
        task=inputs.describe_task(),
    )
    if inputs.choice is not None and not store.finished("features"):
        store.write_json(FEATURES, inputs.choice.to_json())
        store.run["features"] = inputs.describe_features()
        _finish(store, inputs, "features")
    config = with_method(config, inputs, store)
    scores = _scores(config, inputs, store)
    circuit = _circuit(config, inputs, store, scores)
    if not store.finished("evaluation"):
        with inputs.clock.time("evaluation"):
            evaluation = judge(config, inputs, scores, circuit, store.run["circuit"].get("stability"))
        store.write_json(EVALUATION, evaluation)
        _finish(store, inputs, "evaluation")


def _finish(store: RunStore, inputs: Inputs, step: str) -> None:
    store.finish(step, inputs.clock.seconds[step], peak_memory_bytes=peak_memory_bytes(), **inputs.device_memory())


def take_choice(store: RunStore, inputs: Inputs) -> None:
    """Gives the inputs the features that a run has chosen before, where it has."""
    if store.finished("features"):
        from discovery.feature_choice import FeatureChoice

        inputs.choice = FeatureChoice.from_json(store.read_json(FEATURES))


def take_constants(store: RunStore, inputs: Inputs) -> None:
    """Gives the inputs the optimal constants that a run has learned before, where it has."""
    if store.finished("constants"):
        inputs.constants = store.path(CONSTANTS).read_bytes()


def _scores(config: RunConfig, inputs: Inputs, store: RunStore) -> EdgeScores:
    if store.finished("scores"):
        return store.read_scores(inputs.model.topology)
    found, draws = score(config, inputs, store)
    scores = keep_nodes(store, found)
    store.write_draws(draws)
    store.write_scores(scores, config.task.source)
    if scores.facts:
        store.run["method"] = dict(scores.facts)
    _finish(store, inputs, "scores")
    for name in (UNFINISHED, UNFINISHED_RERUNS):
        StoredJournal(store, name).clear()
    StoredPieces(store).clear()
    return scores


def _circuit(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores) -> Circuit:
    from graphs.exporters.circuit_json import export_json, read_circuit
    from graphs.prune import drop_dead_ends

    if store.finished("circuit"):
        return dataclasses.replace(read_circuit(store.path(CIRCUIT).read_bytes()), scores=scores)
    with inputs.clock.time("circuit"):
        selected, stability = select(config, inputs, store, scores)
        circuit = drop_dead_ends(selected)
    store.write_bytes(CIRCUIT, export_json(view(store, circuit, {})))
    facts: dict[str, Any] = {"selected": selected.edge_count, "edges": circuit.edge_count}
    if stability:
        facts["stability"] = {**stability, "sure": sure_edges(circuit)}
    store.run["circuit"] = facts
    _finish(store, inputs, "circuit")
    return circuit

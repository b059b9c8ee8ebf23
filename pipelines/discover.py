"""The straight line: model, task, scores, circuit, evaluation, pictures; every step timed, stored and resumable."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import STANDARD_SIZES, RunConfig
from pipelines.fingerprint import edgewise_version, hash_settings, versions
from pipelines.inputs import Inputs, read_task
from pipelines.judge import judge
from pipelines.node_results import keep_nodes, select_stored_nodes
from pipelines.settings import ConfigError, to_toml
from pipelines.store import (
    CIRCUIT,
    CONFIG,
    CONSTANTS,
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
    from graphs.scores import EdgeScores
    from graphs.view import CircuitView

COMPUTED = ("scores", "circuit", "evaluation")
"""Steps that need the model, in their order."""
_PAIRS_TO_CHOOSE_BY = 128
"""When the size is chosen by `selection.reach`, at most this many pairs of the scoring split are run."""


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

    Raises ValueError (in one line) for settings, files and models that cannot be used; finished steps stay on disk.
    """
    check_names(config)
    clock = Clock()
    with clock.time("task"):
        task = read_task(config)
    inputs = Inputs(config, task, clock)
    _ = inputs.metric  # refuses an unknown name before anything is written
    store = RunStore(config.out or default_directory(config))
    store.open(identity(config, inputs), to_toml(config), overwrite)
    reused = tuple(step for step in (*COMPUTED, "labels", "exports") if store.finished(step))
    if not all(store.finished(step) for step in COMPUTED):
        _compute(config, inputs, store)
    if wants_labels(config) and not store.finished("labels"):
        _label(config, store, clock)
    written = export_run(store, config.export.formats, clock)
    return Outcome(store, store.read_json(EVALUATION), reused, tuple(written))


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
    from discovery.methods import method

    method(config.method.name).options(config.method.options)
    check_formats(config.export.formats)


def check_formats(formats: tuple[str, ...]) -> None:
    """Raises ConfigError naming an export format that does not exist."""
    from graphs.exporters import EXPORTERS

    for name in formats:
        if name not in EXPORTERS:
            raise ConfigError(f"there is no exporter {name!r} (exporters: {', '.join(EXPORTERS)})")


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
    if config.transcoders.name is None:
        del settings["transcoders"]
    if config.ablation not in ("noise", "optimal"):
        del settings["ablating"]
    if config.task.spans == "none":
        del settings["task"]["spans"]
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
    keep_constants(store, inputs)
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
    scores = _scores(config, inputs, store)
    circuit = _circuit(config, inputs, store, scores)
    if not store.finished("evaluation"):
        with inputs.clock.time("evaluation"):
            evaluation = judge(config, inputs, scores, circuit)
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


def keep_constants(store: RunStore, inputs: Inputs) -> None:
    """Stores optimal constants, so that nothing is learned twice."""
    from discovery.constants_file import constants_to_bytes

    ablation = inputs.train.ablation
    if ablation.kind == "optimal":
        store.write_bytes(CONSTANTS, constants_to_bytes(ablation))
        store.finish("constants", None)


def _scores(config: RunConfig, inputs: Inputs, store: RunStore) -> EdgeScores:
    from discovery.foreign_scores import read_scores
    from discovery.methods import method
    from graphs.scores import EdgeScores

    if store.finished("scores"):
        return store.read_scores(inputs.model.topology)
    line, file = method(config.method.name), config.method.file
    with inputs.clock.time("scores"):
        if file is None:
            scores = line.load().score(inputs.model, inputs.train, line.options(config.method.options))
        else:
            scores = read_scores(Path(file), inputs.model.topology)
    by_edge = isinstance(scores, EdgeScores)
    scores = keep_nodes(store, scores)
    if file is None and by_edge and line.gradients and config.transcoders.recheck:
        scores = _recheck(config, inputs, store, scores)
    store.write_scores(scores, config.task.source)
    _finish(store, inputs, "scores")
    return scores


def _recheck(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores) -> EdgeScores:
    """On a feature graph, the scores with the edges of nodes that gradients misjudge scored by real runs."""
    from discovery.feature_model import FeatureModel
    from discovery.gate_check import recheck

    model = inputs.model
    if not isinstance(model, FeatureModel):
        return scores
    with inputs.clock.time("gates"):
        scores, report = recheck(model, inputs.train, scores, config.transcoders.tolerance)
    store.note(inputs.clock.seconds, gates=report.to_json())
    return scores


def _circuit(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores) -> Circuit:
    from graphs.exporters.circuit_json import export_json, read_circuit
    from graphs.prune import drop_dead_ends

    if store.finished("circuit"):
        return dataclasses.replace(read_circuit(store.path(CIRCUIT).read_bytes()), scores=scores)
    with inputs.clock.time("circuit"):
        if config.selection.nodes is not None:
            selected = select_stored_nodes(store, scores.topology, config.selection)
        else:
            selected = select(config, inputs, scores)
        circuit = drop_dead_ends(selected)
    store.write_bytes(CIRCUIT, export_json(view(store, circuit, {})))
    store.run["circuit"] = {"selected": selected.edge_count, "edges": circuit.edge_count}
    _finish(store, inputs, "circuit")
    return circuit


def select(config: RunConfig, inputs: Inputs, scores: EdgeScores) -> Circuit:
    """The circuit that the settings cut out of the scores, dead ends included.

    Without edges, size and threshold: the smallest standard size whose faithfulness on (some of) the scoring split is
    at least `selection.reach`. The held-out pairs have no say.
    """
    from graphs.prune import SELECTIONS, edge_count, select_threshold

    chosen = config.selection
    if chosen.threshold is not None:
        if chosen.rule != "top":
            raise ConfigError(f"selection.threshold and selection.rule = {chosen.rule!r} exclude each other")
        return select_threshold(scores, chosen.threshold, chosen.by)
    if chosen.edges is not None:
        count = chosen.edges
    else:
        size = _size_that_reaches(config, inputs, scores) if chosen.size is None else chosen.size
        count = edge_count(scores.topology, size)
    return SELECTIONS[chosen.rule](scores, count, chosen.by)


def _size_that_reaches(config: RunConfig, inputs: Inputs, scores: EdgeScores) -> float:
    from discovery.evaluate import evaluate

    few = inputs.some_of_train(_PAIRS_TO_CHOOSE_BY)
    chosen = config.selection
    curve = evaluate(
        inputs.model,
        few,
        scores,
        sizes=STANDARD_SIZES,
        select=chosen.rule,
        by=chosen.by,
        bootstrap=0,
        faithfulness_only=True,
    )
    reached = [point.size for point in curve.points if point.faithfulness >= chosen.reach]
    return min(reached, default=STANDARD_SIZES[-1])


def view(store: RunStore, circuit: Circuit, evaluation: dict[str, Any]) -> CircuitView:
    """What exporters are given of a run."""
    from graphs.view import CircuitView
    from pipelines.label import label_texts, named_labels

    run = store.run
    own = evaluation.get("circuit", {})
    numbers = {key: own.get(key) for key in ("faithfulness", "low", "high", "completeness") if key in own}
    numbers |= {key: evaluation[key] for key in ("cmd", "cpr", "cmd_log", "auroc") if evaluation.get(key) is not None}
    method = run["config"]["method"]["name"] if circuit.scores is None else circuit.scores.method
    title = f"{run['task']['name']} in {run['model']['name']} ({method})"
    texts, width = label_texts(store), run["model"].get("d_model")
    return CircuitView(circuit, title, texts, numbers, run["task"]["metric"], width, named_labels(store))


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

"""Judging a stored run again: under other sizes, another ablation, another metric, against a ground truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pipelines.clock import Clock
from pipelines.discover import settings_of, take_choice, take_constants
from pipelines.fingerprint import hash_settings
from pipelines.inputs import Inputs, read_task
from pipelines.judge import judge
from pipelines.settings import Settings, build, from_file
from pipelines.store import CIRCUIT, CONFIG, EVALUATION, EVALUATIONS, SCORES, RunConflict, RunStore, first_difference


def evaluate_run(directory: str | Path, settings: Settings) -> tuple[dict[str, Any], Path]:
    """Evaluates the scores and the circuit of a run with its own settings and those given here.

    Gives the evaluation and where it was written: the run's evaluation.json when nothing was changed, else
    evaluations/<hash of the settings>.json, which also holds the settings. Raises RunConflict where the run has no
    scores yet, or its model or task is no longer the one that was scored.
    """
    from graphs.exporters.circuit_json import read_circuit

    store, inputs = open_run(directory, settings)
    own, config = build(from_file(store.path(CONFIG))), inputs.config
    take_choice(store, inputs)
    if config.ablation == "optimal":
        take_constants(store, inputs)
    inputs.prepare()
    scores = store.read_scores(inputs.model.topology)
    circuit = dataclasses.replace(read_circuit(store.path(CIRCUIT).read_bytes()), scores=scores)
    evaluation = judge(config, inputs, scores, circuit, store.run["circuit"].get("stability"))
    if settings_of(config) == settings_of(own):
        path = store.write_json(EVALUATION, evaluation)
        store.finish("evaluation", None)
    else:
        changed = settings_of(config)
        path = store.write_json(f"{EVALUATIONS}/{hash_settings(changed)}.json", {**evaluation, "settings": changed})
    return evaluation, path


def open_run(directory: str | Path, settings: Settings) -> tuple[RunStore, Inputs]:
    """A run that has a circuit, and its inputs under its own settings and those given here; not prepared yet.

    Raises RunConflict as `evaluate_run` does.
    """
    store = RunStore(directory)
    store.load()
    for step, name in (("scores", SCORES), ("circuit", CIRCUIT)):
        if not store.finished(step):
            raise RunConflict(f"{store.directory} has no {name} yet: finish the run with edgewise discover first")
    config = build(from_file(store.path(CONFIG)), settings)
    inputs = Inputs(config, read_task(config), Clock())
    _check_inputs(store, inputs)
    return store, inputs


def _check_inputs(store: RunStore, inputs: Inputs) -> None:
    stored, now = dict(store.run["inputs"]), inputs.hashes()
    for one in (stored, now):
        one.pop("ground_truth", None)
    difference = first_difference(stored, now, "inputs")
    if difference:
        raise RunConflict(f"{store.directory} was made from another {difference}")

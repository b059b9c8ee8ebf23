"""`discover` with learned masks and learned constants: the learned size, checkpoints, and what is stored and reused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import discovery.mask_training as mask_training
from discovery.component_model import ComponentModel
from pipelines.discover import discover
from pipelines.evaluate import evaluate_run
from pipelines.settings import build, resolve
from pipelines.store import CONSTANTS, SCORES, UNFINISHED, RunStore

QUICK = {
    "task": {"source": "ioi", "limit": 24},
    "labels": {"labeler": "none"},
    "export": {"formats": ["json"]},
    "evaluation": {"faithfulness_only": True, "bootstrap": 0, "rivals": 0, "random_circuits": 0, "sizes": [0.1, 1.0]},
    "selection": {"seeds": 1},
}


def config(out: Path, **more: object):
    return build(resolve({**QUICK, "out": str(out), **more}, "test"))


def test_the_circuit_has_the_learned_size_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "edge-masks", "steps": 4, "samples": 2, "start": "eap", "sparsity": 0.9}
    whole = discover(config(tmp_path / "whole", method=method))
    possible = whole.store.run["model"]["edges"]
    assert whole.store.run["circuit"]["selected"] == int(possible * (1 - 0.9))
    assert not (tmp_path / "whole" / UNFINISHED).exists()

    monkeypatch.setattr(mask_training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    steps, run = 0, ComponentModel.run

    def stopping(model, batch, keep, ablation):
        nonlocal steps
        steps += keep.requires_grad
        if steps == 3:
            raise KeyboardInterrupt
        return run(model, batch, keep, ablation)

    monkeypatch.setattr(ComponentModel, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        discover(config(tmp_path / "stopped", method=method))
    assert (tmp_path / "stopped" / UNFINISHED).exists()
    discover(config(tmp_path / "stopped", method=method))
    assert steps == 3 + 2  # two of four steps were done
    one, other = (load_file(tmp_path / name / SCORES)["values"] for name in ("whole", "stopped"))
    assert (one == other)[~(one != one)].all()
    assert not (tmp_path / "stopped" / UNFINISHED).exists()


def test_constants_are_learned_once_and_used_by_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"ablation": "optimal", "ablating": {"learning_steps": 2}}
    method = {"name": "uniform-gradients", "steps": 3, "samples": 2, "constants_rate": 0.3}
    plain = discover(config(tmp_path / "plain", **wanted))
    before = load_file(tmp_path / "plain" / CONSTANTS)
    joint = discover(config(tmp_path / "joint", method=method, **wanted))
    after = load_file(tmp_path / "joint" / CONSTANTS)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)  # learned further with the masks

    def never(*arguments: object) -> None:
        raise AssertionError("constants are learned again")

    monkeypatch.setattr("discovery.preparation.learn_constants", never)
    for outcome in (plain, joint):
        again, _ = evaluate_run(outcome.store.directory, {})
        assert again["curve"] == outcome.evaluation["curve"]
    store = RunStore(tmp_path / "joint")
    store.load()
    assert store.finished("constants")
    record = json.loads((tmp_path / "joint" / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["ablating"]["learning_steps"] == 2

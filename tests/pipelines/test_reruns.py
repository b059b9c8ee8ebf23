"""`--reruns`: the method itself on resamples of the pairs, for methods whose scores are of all pairs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from discovery.bootstrap import resampled
from discovery.methods import METHODS, eap
from discovery.stability import overlap
from discovery.statistics import resample_counts
from pipelines import scoring
from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.discover import discover
from pipelines.inputs import Inputs, read_task
from pipelines.settings import ConfigError, build, resolve
from pipelines.store import UNFINISHED_RERUNS
from pipelines.summary import discovery_summary

MASKS = {"name": "edge-masks", "steps": 3, "samples": 2, "start": "eap", "sparsity": 0.8}


def configured(model: Path, task: Path, out: Path, **settings: Any) -> RunConfig:
    quick = {"faithfulness_only": True, "bootstrap": 0, "rivals": 0, "random_circuits": 0, "sizes": [0.2, 1.0],
             "formats": ["json"], "tests": "none", "seeds": 1, "batch_size": 5}  # fmt: skip
    return build(resolve({"model": str(model), "task": str(task), "out": str(out), **quick, **settings}, "test"))


def test_a_resample_scores_as_its_weights_say(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    config = configured(model_directory, task_file, tmp_path / "run")
    inputs = Inputs(config, read_task(config), Clock())
    pieces: list[np.ndarray] = []
    eap.score(inputs.model, inputs.train, None, lambda _, scores: pieces.append(scores.numpy()))
    pairs = np.concatenate(pieces)
    for counts in resample_counts(len(pairs), 3, seed=1):
        again = resampled(inputs.train, counts)
        assert again.pair_count == len(pairs) and counts.max() > 1
        found = eap.score(inputs.model, again).values
        wanted = np.tensordot(counts / len(pairs), pairs, 1)
        possible = inputs.model.topology.possible
        np.testing.assert_allclose(found[possible], wanted[possible], rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", [MASKS, {"name": "eap"}], ids=["edge-masks", "eap"])
def test_the_draws_are_runs_of_the_method_on_resamples(
    method: dict[str, Any], model_directory: Path, task_file: Path, tmp_path: Path
) -> None:
    config = configured(model_directory, task_file, tmp_path / "run", method=method, reruns=3, limit=10)
    done = discover(config)
    draws = done.store.read_draws()["resamples"]
    inputs = Inputs(config, read_task(config), Clock())
    line, options = METHODS[method["name"]], dict(method)
    del options["name"]
    for counts, draw in zip(resample_counts(inputs.train.pair_count, 3, config.seed), draws, strict=True):
        again = resampled(inputs.train, counts)
        values = line.load().score(inputs.model, again, line.options(options)).values
        np.testing.assert_allclose(draw, values[inputs.model.topology.possible], rtol=0, atol=1e-5)
    assert len(np.unique(draws, axis=0)) == 3
    edges = done.store.run["circuit"]["selected"]
    kept = np.stack([np.isin(np.arange(draw.size), np.argsort(-np.abs(draw), kind="stable")[:edges]) for draw in draws])
    assert done.evaluation["stability"]["resamples"]["mean"] == pytest.approx(overlap(kept).mean)
    assert done.evaluation["stability"]["resamples"]["draws"] == 3


def test_a_stopped_run_goes_on_with_the_next_resample(
    model_directory: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(name: str) -> RunConfig:
        return configured(model_directory, task_file, tmp_path / name, method=MASKS, reruns=4, min_stability=0.5)

    whole = discover(settings("whole"))
    assert 0 < whole.store.run["circuit"]["edges"] <= whole.store.run["circuit"]["selected"]
    runs = 0

    def stopping(work: Any, counts: np.ndarray) -> Any:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise KeyboardInterrupt
        return resampled(work, counts)

    monkeypatch.setattr("discovery.bootstrap.resampled", stopping)
    with pytest.raises(KeyboardInterrupt):
        discover(settings("stopped"))
    assert (tmp_path / "stopped" / UNFINISHED_RERUNS).exists()
    again = discover(settings("stopped"))
    assert runs == 3 + 2
    assert not (tmp_path / "stopped" / UNFINISHED_RERUNS).exists()
    one, other = (done.store.read_draws()["resamples"] for done in (whole, again))
    np.testing.assert_array_equal(one, other)


def test_without_them_the_table_says_how_to_ask(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    done = discover(configured(model_directory, task_file, tmp_path / "run", method=MASKS))
    assert "stability" not in done.evaluation
    table = discovery_summary(done.store.run, done.evaluation, (), ())
    assert "--reruns 10 runs edge-masks on 10 resamples" in table
    with pytest.raises(ConfigError, match="--reruns 10"):
        discover(configured(model_directory, task_file, tmp_path / "other", method=MASKS, min_stability=0.9))


def test_what_looks_at_no_pairs_is_not_run_again(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    done = discover(configured(model_directory, task_file, tmp_path / "run", method="random", reruns=3))
    assert "resamples" not in done.store.read_draws()
    assert scoring.methods_of(build(resolve({"method": "random"}, "test")))[0][0].name == "random"

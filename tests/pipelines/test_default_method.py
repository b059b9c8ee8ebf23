"""The default method: chosen once, by sizes alone, said once, and kept by the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines import cost
from pipelines.config import RunConfig
from pipelines.discover import check_names, discover
from pipelines.evaluate import evaluate_run
from pipelines.settings import build, resolve
from pipelines.summary import discovery_summary
from pipelines.tune_config import TuneConfig
from pipelines.tune_space import make_space


def configured(model: Path, task: Path, out: Path, **settings: Any) -> RunConfig:
    quick = {
        "bootstrap": 0,
        "rivals": 2,
        "random_circuits": 1,
        "sizes": [0.1, 1.0],
        "formats": ["json"],
        "resamples": 5,
    }
    return build(resolve({"model": str(model), "task": str(task), "out": str(out), **quick, **settings}, "test"))


def test_a_small_model_is_verified_and_says_so_once(
    model_directory: Path, task_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(model_directory, task_file, tmp_path / "run")
    with caplog.at_level(logging.INFO, "edgewise"):
        done = discover(config)
        assert caplog.text.count("method screen-verify") == 1
        again = discover(config)
    assert caplog.text.count("method screen-verify") == 1
    run = done.store.run
    assert (run["config"]["method"]["name"], run["auto"]["method"]) == ("auto", "screen-verify")
    assert run["auto"]["operations"] < run["auto"]["limit"]
    assert 50 <= run["method"]["exact"] <= 100
    assert {"resamples", "seeds"} < set(done.evaluation["stability"])
    lines = discovery_summary(run, done.evaluation, again.reused, ()).splitlines()
    assert "screen-verify" in lines[0]
    assert "scores" in again.reused
    assert evaluate_run(tmp_path / "run", {})[0]["cmd"] == pytest.approx(done.evaluation["cmd"])


def test_a_large_one_is_screened_and_keeps_to_it(
    model_directory: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_OPERATIONS", 1e3)
    config = configured(model_directory, task_file, tmp_path / "run", device="cpu")
    store = discover(config).store
    assert store.run["auto"]["method"] == "eap-ig"
    assert store.run["auto"]["operations"] > 1e3
    monkeypatch.undo()
    store.run["finished"].clear()
    store.finish("task", None)
    again = discover(config)
    assert "scores" not in again.reused
    assert again.store.run["auto"]["method"] == "eap-ig"


def test_mibs_numbers_are_made_as_mib_does(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    config = configured(model_directory, task_file, tmp_path / "run", convention="mib", bos="never")
    assert discover(config).store.run["auto"]["method"] == "eap-ig"


def test_options_must_be_those_of_both() -> None:
    check_names(build(resolve({"method": {"steps": 3, "rule": "midpoint"}}, "test")))
    with pytest.raises(ValueError, match="'eap-ig' has no option 'confidence'"):
        check_names(build(resolve({"method": {"confidence": 0.8}}, "test")))


def test_trials_name_their_methods() -> None:
    with pytest.raises(ValueError, match="name the methods that 'auto' stands for"):
        make_space(RunConfig(), TuneConfig(methods=("auto",)))

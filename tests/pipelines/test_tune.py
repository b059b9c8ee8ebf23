"""Tuning: nothing is computed twice, no trial is lost, no trial sees the held-out pairs, and what is found can be run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from discovery.methods import METHODS, method
from pipelines import cli
from pipelines.config import RunConfig
from pipelines.settings import ConfigError, build, from_file, resolve
from pipelines.tune import TuneRequest, tune
from pipelines.tune_bench import Bench
from pipelines.tune_config import OBJECTIVES, TuneConfig, read_tune
from pipelines.tune_front import Entry, beats_random, front, recommended
from pipelines.tune_space import BASELINE, RANGES, SLOW, Choice, make_space
from pipelines.tune_study import Place, counted, open_study, work
from tests.pipelines.conftest import Edgewise

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"rivals": 0, "bootstrap": 0, "tests": "none", "random_circuits": 0}


def request(
    model: Path, task: Path, out: Path, search: dict[str, object], evaluation: dict[str, object] | None = None
) -> TuneRequest:
    settings = {
        "model": str(model),
        "task": str(task),
        "out": str(out),
        "batch_size": 4,
        "evaluation": {**QUICK, "sizes": [0.02, 0.1, 0.3, 1.0], **(evaluation or {})},
    }
    return TuneRequest(build(resolve(settings, "test")), read_tune([("test", search)]))


SEARCH: dict[str, object] = {
    "methods": ["eap", "eap-ig", "atp"],
    "ablations": ["counterfactual", "zero"],
    "options": {"eap-ig": {"steps": [2, 3], "rule": ["left"]}},
    "trials": 10,
}


@pytest.fixture(scope="module")
def tuned(model_directory: Path, task_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished study of ten trials."""
    return tune(request(model_directory, task_file, tmp_path_factory.mktemp("tune"), SEARCH))


def test_scores_are_computed_once(tuned) -> None:
    """There is one directory for each different (method, options, ablation) and each was written once."""
    wanted = {(e.run.method.name, json.dumps(e.run.method.options), e.run.ablation) for e in tuned.found}
    caches = list((tuned.directory / "cache").iterdir())
    assert len(caches) == len(wanted) < len(tuned.found)
    before = {path: (path / "scores.safetensors").stat().st_mtime_ns for path in caches}
    again = tune(_again(tuned))
    assert {path: (path / "scores.safetensors").stat().st_mtime_ns for path in caches} == before
    assert [entry.values for entry in again.found] == [entry.values for entry in tuned.found]


def _again(tuned, **changes: object) -> TuneRequest:
    base = build(from_file(tuned.directory / "best.toml"))
    layers = {**SEARCH, **changes}
    settings = {
        "model": base.model.name,
        "task": base.task.source,
        "out": str(tuned.directory),
        "batch_size": 4,
        "evaluation": {**QUICK, "sizes": [0.02, 0.1, 0.3, 1.0]},
    }
    return TuneRequest(build(resolve(settings, "test")), read_tune([("test", layers)]))


def test_every_trial_is_there_with_the_baseline_first(tuned) -> None:
    assert tuned.counts == {"complete": 10, "pruned": 0, "impossible": 0, "unfinished": 0}
    assert [entry.number for entry in tuned.found] == list(range(10))
    assert tuned.found[0].baseline and tuned.found[0].run.method.name == BASELINE
    assert [entry.run.method.name for entry in tuned.found[1:4]] == ["eap", "eap-ig", "atp"]
    assert all(entry.run.method.name != BASELINE for entry in tuned.best)


def test_a_study_of_other_settings_is_refused(tuned) -> None:
    with pytest.raises(ValueError, match=r"study\.tune\.methods"):
        tune(
            TuneRequest(_again(tuned).base, _again(tuned, methods=["eap", "atp"], options={}).tune, None, _name(tuned))
        )


def _name(tuned) -> str:
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{tuned.directory / 'study.db'}")
    return summary.study_name


def test_the_best_run_as_they_stand(tuned, tmp_path: Path) -> None:
    for entry in tuned.best:
        config = build(from_file(tuned.directory / "front" / f"{entry.number:04d}.toml"))
        assert config == entry.run
    assert (
        cli.main(["discover", str(tuned.directory / "best.toml"), "--out", str(tmp_path / "run"), "--formats", "json"])
        == 0
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    unseen = json.loads((tuned.directory / "tune.json").read_text(encoding="utf-8"))["pairs"]["unseen"]
    assert record["task"]["held_out_pairs"] == unseen


def test_no_trial_sees_the_held_out_pairs(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    from discovery.task import split
    from pipelines.inputs import read_task

    asked = request(model_directory, task_file, tmp_path, SEARCH)
    bench = Bench(asked.base, asked.tune, ("counterfactual",), tmp_path / "cache")
    train, held_out = split(read_task(asked.base), asked.base.evaluation.holdout, asked.base.seed)
    assert bench.inputs.unseen.pairs == held_out.pairs
    assert bench.inputs.task.pairs == train.pairs
    assert not {pair.clean for pair in train.pairs} & {pair.clean for pair in held_out.pairs}
    assert bench.inputs.train.pair_count + bench.inputs.held_out.pair_count == len(train.pairs)
    scored = {i for batch in bench.inputs.train.batches for i in batch.indices}
    assert bench.inputs.train.pair_count == len(scored)
    none = request(model_directory, task_file, tmp_path, SEARCH, {"holdout": 0})
    with pytest.raises(ConfigError, match="no trial sees"):
        tune(none)


def test_values_are_those_of_a_plain_evaluation(tuned) -> None:
    """A trial's numbers against scores, selection and evaluation done by hand on the same pairs."""
    from discovery.evaluate import evaluate_circuit
    from graphs.prune import drop_dead_ends, edge_count, select_top

    asked = _again(tuned)
    bench = Bench(asked.base, asked.tune, ("counterfactual", "zero"), tuned.directory / "none")
    entry = next(e for e in tuned.found if e.run.selection.size is not None and not e.baseline
                 and e.run.selection.rule == "top" and e.run.method.name != "atp")  # fmt: skip
    run, inputs = entry.run, bench.inputs
    _ = inputs.train
    inputs.scored_under(run.ablation)
    line = method(run.method.name)
    scores = line.load().score(inputs.model, inputs.train, line.options(run.method.options))
    assert run.selection.size is not None
    circuit = select_top(scores, edge_count(scores.topology, run.selection.size), run.selection.by)
    assert inputs.held_out.ablation.kind == "counterfactual"
    value = evaluate_circuit(inputs.model, inputs.held_out, drop_dead_ends(circuit), bootstrap=0).faithfulness
    assert entry.found["faithfulness"] == pytest.approx(value, abs=1e-4)
    assert entry.values[0] == pytest.approx(abs(1 - value), abs=1e-4)


def test_hopeless_trials_are_given_up_while_they_score(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    search = {"methods": ["eap", "eap-ig", "clean-corrupted"], "ablations": ["counterfactual", "zero", "mean"],
              "objectives": ["cmd"], "trials": 18}  # fmt: skip
    done = tune(request(model_directory, task_file, tmp_path, search))
    assert done.counts["complete"] + done.counts["pruned"] == 18
    assert done.counts["pruned"] > 0
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    steps = {step for trial in pruned for step in trial.intermediate_values}
    assert steps <= {25, 125, 150, 120, 140, 133} and 25 in steps
    early = [trial for trial in pruned if max(trial.intermediate_values) == 25]
    assert all("scores" not in trial.user_attrs for trial in early)
    assert done.chosen.values[0] == min(entry.values[0] for entry in done.found if not entry.baseline)
    assert (tmp_path / "pareto.svg").read_bytes().startswith(b"<svg")


def test_impossible_trials_say_why_and_count(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    search = {"methods": ["eap"], "ablations": ["counterfactual"], "trials": 3}
    asked = request(model_directory, task_file, tmp_path, search)
    import dataclasses

    flat = dataclasses.replace(asked.base, task=dataclasses.replace(asked.base.task, metric="kl"))
    done_or_not = TuneRequest(flat, asked.tune)
    with pytest.raises(ConfigError, match="no trial was completed: metric 'kl'"):
        tune(done_or_not)


def _entries(rng: np.random.Generator, count: int, objectives: tuple[str, ...]) -> list[Entry]:
    table = rng.integers(0, 5, (count, len(objectives))).astype(float)
    return [
        Entry(i, tuple(row.tolist()), {"edges": 1.0, "distance": 0.1, "seconds": 1.0}, "", False)
        for i, row in enumerate(table)
    ]


@pytest.mark.parametrize("objectives", [("distance", "edges", "seconds"), ("cpr", "edges"), ("cmd",)])
def test_the_front_is_optunas(objectives: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = _entries(rng, 25, objectives)
        study = optuna.create_study(directions=[OBJECTIVES[name].direction for name in objectives])
        study.add_trials([optuna.trial.create_trial(values=entry.values) for entry in found])
        theirs = {trial.values[0] if len(objectives) == 1 else tuple(trial.values) for trial in study.best_trials}
        ours = front(found, objectives)
        assert {entry.values[0] if len(objectives) == 1 else entry.values for entry in ours} == theirs
        assert len({entry.values for entry in ours}) == len(ours)


def test_circuits_no_better_than_random_are_not_on_the_front() -> None:
    baseline = Entry(
        0, (0.9, 5.0), {"edges": 5.0, "distance": 0.9, "seconds": 0.0}, "", True, ((0.0, 0.0), (100.0, 1.0))
    )
    good = Entry(1, (0.2, 10.0), {"edges": 10.0, "distance": 0.2, "seconds": 1.0}, "", False)
    empty = Entry(2, (1.0, 0.0), {"edges": 0.0, "distance": 1.0, "seconds": 1.0}, "", False)
    assert beats_random(good, baseline) and not beats_random(empty, baseline)
    assert front([baseline, good, empty], ("distance", "edges")) == (good,)
    assert front([baseline, empty], ("distance", "edges")) == (empty,)
    assert recommended((good,), 0.85) == good


_WORKER = """
import sys, time
from pipelines.tune_study import Place, open_study, work
url, log, seconds, target = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
study = open_study(Place(url, "s", 1), ("distance", "edges"), {"a": 1})
def run(trial, number):
    x = trial.suggest_float("x", 0, 1)
    with open(log, "a") as file:
        file.write(f"{number} {x}\\n")
    time.sleep(seconds)
    return x, 1 - x
work(study, target, run, lambda number: {}, 0)
"""


def _start(url: str, log: Path, seconds: float, target: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WORKER, url, str(log), str(seconds), str(target)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_two_workers_lose_no_trial_and_run_none_twice(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "log"
    workers = [_start(url, log, 0.02, 24) for _ in range(2)]  # both make the database
    assert [worker.wait(240) for worker in workers] == [0, 0]
    study = optuna.load_study(study_name="s", storage=url)
    lines = [line.split() for line in log.read_text().splitlines()]
    numbers = [int(number) for number, _ in lines]
    assert len(set(numbers)) == len(numbers) == len(counted(study.trials)) == 24
    assert len({x for _, x in lines}) == 24  # their samplers do not walk in step
    assert all(trial.state.name == "COMPLETE" for trial in counted(study.trials))


def test_a_killed_workers_trial_is_run_again(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "log"
    first = _start(url, log, 600, 3)
    for _ in range(1200):
        if log.exists() and log.read_text():
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    second = _start(url, log, 0, 3)
    assert second.wait(240) == 0
    study = optuna.load_study(study_name="s", storage=url)
    assert len(counted(study.trials)) == 3 and all(t.state.name == "COMPLETE" for t in counted(study.trials))
    lines = log.read_text().splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == [0, 0, 1, 2]
    assert len(set(lines)) == 3  # the lost trial was run again as it was
    assert [trial.state.name for trial in study.trials].count("FAIL") == 1


def test_equal_seeds_give_equal_trials(tmp_path: Path) -> None:
    def values(seed: int, name: str) -> list[float]:
        study = open_study(Place(f"sqlite:///{tmp_path / name}", "s"), ("distance",), {})
        work(study, 12, lambda trial, number: ((trial.suggest_float("x", 0, 1) - 0.3) ** 2,), lambda number: {}, seed)
        return [trial.params["x"] for trial in study.trials]

    assert values(0, "a") == values(0, "b") != values(1, "c")


@pytest.mark.parametrize("name", [*RANGES])
def test_ranges_are_options_of_their_methods(name: str) -> None:
    assert name in METHODS
    options = method(name)
    for key, wanted in RANGES[name].items():
        for value in wanted.values if isinstance(wanted, Choice) else (wanted.low, wanted.high):
            options.options({key: value})
        default = getattr(options.load().Options(), key)
        inside = default in wanted.values if isinstance(wanted, Choice) else wanted.low <= default <= wanted.high
        assert inside, f"the default of {key} is never tried"


def test_all_quick_methods_are_tried_without_being_named() -> None:
    space = make_space(RunConfig(), TuneConfig())
    assert set(space.methods) == set(METHODS) - set(SLOW) - {BASELINE}
    assert space.ablations[0] == "counterfactual"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"method": ["eap"]}, r"unknown key 'tune\.method'; did you mean 'methods'"),
        ({"objectives": ["speed"]}, "there is no objective 'speed'"),
        ({"objectives": []}, "needs at least one"),
        ({"sizes": [0.5, 0.1]}, "smallest, largest"),
        ({"trials": 0}, "must lie between"),
        ({"ablations": ["nought"]}, "counterfactual or zero"),
    ],
    ids=["key", "objective", "none", "sizes", "trials", "ablation"],
)
def test_a_wrong_table_is_named(table: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_tune([("file", table)])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"methods": ["eep"]}, "there is no method 'eep'"),
        ({"options": {"eap-ig": {"stepps": [1, 2]}}}, "has no option 'stepps'"),
        ({"options": {"eap-ig": {"steps": [0, 2]}}}, "steps must be 1 or more"),
        ({"options": {"eap-ig": {"steps": [5, 2]}}}, r"is \[lowest, highest\]"),
        ({"methods": ["eap"], "options": {"eap-ig": {"steps": 3}}}, "not among the methods"),
    ],
    ids=["method", "option", "value", "order", "unused"],
)
def test_a_space_that_cannot_be_is_refused(table: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_space(RunConfig(), read_tune([("file", table)]))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+nodriver://user:secret@host/db", "postgresql+nodriver"),
        ("sqlite:////no/such/folder/secret.db", "cannot be used"),
    ],
    ids=["driver", "folder"],
)
def test_a_missing_driver_is_one_line_without_the_password(
    url: str, words: str, model_directory: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", "--model", model_directory, "--task", task_file, "--out", tmp_path, "--storage", url]
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "secret" not in said and words in said


@pytest.mark.slow
def test_two_processes_of_one_command(
    edgewise: Edgewise, model_directory: Path, task_file: Path, tmp_path: Path
) -> None:
    command = ("tune", "--model", model_directory, "--task", task_file, "--methods", "eap,eap-ig", "--trials", 12,
               "--workers", 2, "--out", tmp_path / "w", "--set", "evaluation.bootstrap=0")  # fmt: skip
    done = edgewise(*command, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "w" / "tune.json").read_text(encoding="utf-8"))
    assert found["counts"] == {"complete": 12, "pruned": 0, "impossible": 0, "unfinished": 0}
    assert len({trial["number"] for trial in found["trials"]}) == 12
    assert "to start with: trial" in done.stdout

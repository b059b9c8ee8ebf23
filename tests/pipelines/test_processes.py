"""Two processes that share the pairs give the scores and files of one, and fail together in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.multiprocessing.spawn import spawn

from discovery.ablation import COUNTERFACTUAL
from discovery.bootstrap import Resamples
from discovery.component_model import ComponentModel
from discovery.distributed import OtherProcessFailed, joined_processes, require_same, smallest
from discovery.evaluate import evaluate
from discovery.methods import METHODS
from discovery.metrics import METRICS
from discovery.workload import Workload
from graphs.node_scores import NodeScores
from graphs.scores import EdgeScores
from pipelines.cli import main
from tests.discovery.residual_model import token_batch
from tests.discovery.tiny_models import tiny_model

METHODS_SHARED = {"eap-ig": {"steps": 2}, "atp": {"neurons": True}, "atp-star": {}, "exact": {}, "random": {}}
"""Those whose pairs are shared in different places of the code, and one that looks at no pairs."""
RUN = [
    "--method",
    "eap",
    "--edges",
    20,
    "--rivals",
    1,
    "--random-circuits",
    0,
    "--tests",
    "none",
    "--resamples",
    9,
    "--batch-size",
    5,
    "--formats",
    "json",
]
CALLS: dict[str, list[Any]] = {
    "whole": [*RUN, "--out", "two"],
    "again": [*RUN, "--out", "two"],
    "few": ["--method", "eap", "--batch-size", 100, "--out", "few"],
    "broken": ["--method", "eap", "--batch-size", 5, "--out", "broken"],
    "alone": ["--method", "acdc", "--out", "alone"],
}
"""Flags of the commands that two processes are given, one after the other."""


def _compute() -> dict[str, np.ndarray]:
    """Scores and their standard errors, resamples and an evaluation, from twelve pairs in three unequal batches."""
    model, found = ComponentModel(tiny_model("llama")), {}
    batches = tuple(
        token_batch(lengths, 40, seed=len(lengths), first=first)
        for first, lengths in ((0, [5, 4, 5, 3, 5]), (5, [4, 4]), (7, [5, 3, 4, 3, 5]))
    )
    workload = Workload(batches, METRICS["logit-diff"], COUNTERFACTUAL)
    for name, options in METHODS_SHARED.items():
        resamples, line = Resamples(model.topology, workload, 7, seed=0), METHODS[name]
        scores = line.load().score(model, workload, line.options(options), resamples.add)
        found[name], tables = scores.values, resamples.tables()
        if scores.stderr is not None and tables is not None:
            found |= {f"{name} stderr": scores.stderr, f"{name} resamples": tables}
        if isinstance(scores, NodeScores) and scores.neurons is not None and scores.slots is not None:
            found |= {f"{name} neurons": scores.neurons, f"{name} slots": scores.slots}
    fixed = EdgeScores(model.topology, found["exact"], "exact")
    curve = evaluate(model, workload, fixed, sizes=(0.1, 0.5), random_baseline=1, bootstrap=10)
    found["curve"] = np.array([[p.faithfulness, p.completeness, p.random, p.low] for p in curve.points], np.float64)
    found["known"] = np.array([curve.known, curve.full, curve.empty])
    return found


def _process(rank: int, ports: list[int], place: str, model: str, task: str) -> None:
    torch.set_num_threads(1)
    os.chdir(place)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(ports.pop())
    with joined_processes("cpu"):
        save_file(_compute(), f"scores{rank}")
        assert smallest(5 - rank) == 4
        with pytest.raises(OtherProcessFailed, match="do not have the same task"):
            require_same(f"of {rank}", "task")
    said = {}
    for name, flags in CALLS.items():
        os.environ["MASTER_PORT"] = str(ports.pop())
        out, err = io.StringIO(), io.StringIO()
        failure = mock.patch.object(ComponentModel, "linearize", side_effect=ValueError("a mistake\nof one process"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            if name == "broken" and rank == 1:
                stack.enter_context(failure)
            code = main([str(word) for word in ["discover", "--model", model, "--task", task, "--seed", 1, *flags]])
        said[name] = (code, out.getvalue(), err.getvalue())
    Path(f"said{rank}.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, task_file: Path) -> Path:
    """Where two processes have done everything."""
    directory = tmp_path_factory.mktemp("processes")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(1 + len(CALLS))]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        stack.enter_context(mock.patch.dict(os.environ, {"TQDM_DISABLE": "1"}))
        for one in sockets:
            one.close()
        spawn(_process, (ports, str(directory), str(model_directory), str(task_file)), nprocs=2)
    return directory


def test_two_processes_score_and_evaluate_as_one_does(place: Path) -> None:
    alone = _compute()
    assert len(alone) > 12
    for rank in range(2):
        shared = load_file(place / f"scores{rank}")
        assert shared.keys() == alone.keys()
        for name, values in alone.items():
            np.testing.assert_allclose(shared[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_command_leaves_the_files_of_one_process(
    place: Path, model_directory: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = (json.loads((place / f"said{rank}.json").read_text()) for rank in range(2))
    assert [said[name][0] for said in (first, second) for name in ("whole", "again")] == [0] * 4, (first, second)
    assert "faithfulness" in first["whole"][1]
    assert "(stored)" in first["again"][1]
    assert second["whole"][1:] == second["again"][1:] == ["", ""]
    monkeypatch.chdir(tmp_path)
    flags = map(str, [*RUN, "--model", model_directory, "--task", task_file, "--seed", 1, "--out", "one"])
    assert main(["discover", *flags]) == 0
    one, two = tmp_path / "one", place / "two"
    assert sorted(path.name for path in one.rglob("*")) == sorted(path.name for path in two.rglob("*"))
    for name in ("scores", "draws"):
        mine, theirs = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        for key, values in mine.items():
            np.testing.assert_allclose(theirs[key], values, rtol=1e-6, atol=1e-6, err_msg=key)
    mine, theirs = (json.loads((where / "evaluation.json").read_text()) for where in (one, two))
    for number in ("cmd", "cpr", "full", "empty", "known"):
        assert theirs[number] == pytest.approx(mine[number], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("few", "2 processes cannot share the 1 batch(es)"),
        ("broken", "process 1 stopped: a mistake of one process"),
        ("alone", "method 'acdc' works in one process only"),
    ],
)
def test_all_fail_in_one_line(place: Path, name: str, words: str) -> None:
    first, second = (json.loads((place / f"said{rank}.json").read_text())[name] for rank in range(2))
    assert first[0] == second[0] == 2
    assert words in first[2]
    assert first[2].count("\n") == 1
    assert first[1] == second[1] == second[2] == ""


def test_a_command_that_would_do_everything_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["export", "nowhere", "--format", "json"]) == 2
    assert capsys.readouterr().err == "edgewise: export works in one process only: start it without torchrun\n"

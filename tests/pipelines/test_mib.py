"""Circuits go to other tools and come back: EAP-IG's files, MIB's folders."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from discovery.foreign_scores import read_graph
from pipelines import cli
from pipelines.mib import PERCENTAGES, folder_of
from pipelines.settings import build
from pipelines.store import RunStore

QUICK = ("--faithfulness-only", "--rivals", "0", "--random-circuits", "0", "--bootstrap", "0", "--formats", "json")


@pytest.fixture(scope="module")
def run(model_directory: Path, task_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose graph counts key/value slots per query head."""
    out = tmp_path_factory.mktemp("runs") / "query"
    settings = ("--model", model_directory, "--task", task_file, "--kv-heads", "query", "--edges", 30, "--out", out)
    assert cli.main(["discover", *map(str, settings), "--method", "eap", *QUICK]) == 0
    return out


def scores_of(run: Path) -> np.ndarray:
    store = RunStore(run)
    store.load()
    return np.asarray(read_tensor(store))


def read_tensor(store: RunStore) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(store.path("scores.safetensors"))["values"]


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_scores_leave_and_come_back(
    suffix: str, run: Path, model_directory: Path, task_file: Path, tmp_path: Path
) -> None:
    assert cli.main(["mib", str(run), "--out", str(tmp_path), "--file", suffix, "--as", "ids_tiny"]) == 0
    file = tmp_path / "ids_tiny" / f"importances.{suffix}"
    graph = read_graph(file)
    np.testing.assert_array_equal(graph.scores, scores_of(run))
    arguments = ["discover", "--model", model_directory, "--task", task_file, "--kv-heads", "query", "--edges", 30]
    back = tmp_path / "back"
    assert cli.main([*map(str, arguments), "--scores", str(file), "--out", str(back), *QUICK]) == 0
    np.testing.assert_array_equal(scores_of(back), scores_of(run))
    first, second = (json.loads((one / "circuit.json").read_text(encoding="utf-8")) for one in (run, back))
    assert [edge["edge"] for edge in first["edges"]] == [edge["edge"] for edge in second["edges"]]
    assert (first["method"], second["method"]) == ("eap", "file")
    file.write_bytes(file.read_bytes() + b" ")
    assert cli.main([*map(str, arguments), "--scores", str(file), "--out", str(back), *QUICK]) == 2


def test_nine_circuits_keep_no_more_than_their_share(run: Path, tmp_path: Path) -> None:
    assert cli.main(["mib", str(run), "--out", str(tmp_path), "--form", "circuits", "--as", "ids_tiny"]) == 0
    files = sorted((tmp_path / "ids_tiny").iterdir(), key=lambda path: float(path.stem))
    assert [float(path.stem) for path in files] == list(PERCENTAGES)
    graphs = [read_graph(path) for path in files]
    for percentage, graph in zip(PERCENTAGES, graphs, strict=True):
        assert graph.scores is None
        assert graph.kept.sum() <= percentage / 100 * graph.topology.edge_count
    assert graphs[-1].kept.sum() > graphs[0].kept.sum()
    for smaller, larger in pairwise(graphs):
        assert not (smaller.kept & ~larger.kept).any()


def test_export_writes_the_same_file(run: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "--format", "eap-ig"]) == 0
    np.testing.assert_array_equal(read_graph(run / "exports" / "circuit.eap-ig.json").scores, scores_of(run))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--as", "ioi"], "<task>_<model>"),
        (["--as", "../x_y"], "<task>_<model>"),
    ],
    ids=["no model", "path"],
)
def test_a_wrong_name_is_refused(
    arguments: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["mib", str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_task_and_model_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["mib", str(run), str(run), "--out", str(tmp_path / "out")]) == 2
    assert "submit one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "model", "folder"),
    [
        ("ioi", "openai-community/gpt2", "ioi_gpt2"),
        ("arithmetic_addition", "meta-llama/Llama-3.1-8B", "arithmetic-addition_llama3"),
        ("my task/1", "../up", "my-task-1_up"),
    ],
)
def test_folders_have_the_tracks_names(task: str, model: str, folder: str) -> None:
    assert folder_of({"task": {"name": task}, "model": {"name": model}}) == folder


def test_the_convention_changes_defaults_and_areas(model_directory: Path, task_file: Path, tmp_path: Path) -> None:
    arguments = ["discover", "--model", model_directory, "--task", task_file, "--method", "eap", "--convention", "mib"]
    assert (
        cli.main([*map(str, arguments), "--kv-heads", "native", "--bos", "auto", "--out", str(tmp_path), *QUICK]) == 0
    )
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["config"]["model"]["kv_heads"] == "native"
    areas = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    for by, area in (("signed", "cpr"), ("absolute", "cmd")):
        assert cli.main(["evaluate", str(tmp_path), "--convention", "textbook", "--set", f"selection.by={by}"]) == 0
        newest = max((tmp_path / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert json.loads(newest.read_text(encoding="utf-8"))[area] == pytest.approx(areas[area], abs=1e-6)


def test_the_convention_asks_for_the_peers_graph() -> None:
    config = build({("convention",): "mib"})
    assert (config.model.kv_heads, config.task.bos) == ("query", "always")
    assert build({("convention",): "mib", ("task", "bos"): "never"}).task.bos == "never"
    assert build({}).model.kv_heads == "native"

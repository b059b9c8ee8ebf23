"""discover with methods that score nodes, and the bound on what was missed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.cli import main

FEW = ("--rivals", "0", "--random-circuits", "1", "--bootstrap", "0", "--tests", "none", "--formats", "json")


def discover(out: Path, model: Path, task: Path, *arguments: str) -> int:
    return main(["discover", "--model", str(model), "--task", str(task), "--out", str(out), *FEW, *arguments])


def test_a_run_of_a_node_method_keeps_nodes_neurons_and_their_circuit(
    tmp_path: Path, model_directory: Path, task_file: Path, capsys: pytest.CaptureFixture
) -> None:
    out, own = tmp_path / "run", ("--method", "atp", "--set", "method.neurons=true", "--nodes", "5")
    assert discover(out, model_directory, task_file, *own) == 0
    said = capsys.readouterr().out
    assert "nodes         " in said
    assert "24 q/k/v vectors and 120 neurons" in said
    table = json.loads((out / "nodes.json").read_text(encoding="utf-8"))
    arrays = load_file(out / "nodes.safetensors")
    assert arrays["neurons"].shape == arrays["neuron_stderr"].shape == (3, 40)
    assert len(table["nodes"]) == len(arrays["values"]) == 16
    sizes = [abs(node["score"]) for node in table["nodes"]]
    assert sizes == sorted(sizes, reverse=True)
    best = max(table["parts"], key=lambda part: abs(part["score"]))
    assert abs(best["score"]) == pytest.approx(max(np.nanmax(abs(arrays["slots"])), abs(arrays["neurons"]).max()))
    # The circuit's nodes are among the five best, besides input and logits.
    ranked = [node["name"] for node in table["nodes"] if node["name"] != "input"]
    circuit = json.loads((out / "circuit.json").read_text(encoding="utf-8"))
    sources = {edge["edge"].partition("->")[0] for edge in circuit["edges"]}
    assert sources
    assert sources <= {"input", *ranked[:5]}
    before = (out / "scores.safetensors").read_bytes()
    assert discover(out, model_directory, task_file, *own) == 0
    assert (out / "scores.safetensors").read_bytes() == before
    assert discover(out, model_directory, task_file, *own[:-1], "6", "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "eap", "--nodes", "5"), "scores no nodes|method that scores nodes"),
        (("--method", "atp", "--nodes", "500"), "the graph has 15 besides"),
        (("--method", "atp", "--nodes", "5", "--edges", "9"), "exclude each other"),
        (("--method", "atp-star", "--set", "method.neurons=true"), "level"),
        (("--method", "atp", "--set", "method.neurons=true", "--ablation", "mean", "--nodes", "5"), "neurons"),
        (("--method", "atp-star", "--edges", "30", "--missed", "3"), "at least 10"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    model_directory: Path,
    task_file: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    assert discover(tmp_path / "run", model_directory, task_file, *arguments) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in says.split("|")), error
    assert "Traceback" not in error


def test_atp_star_bounds_what_was_missed_and_others_do_where_asked(
    tmp_path: Path, model_directory: Path, task_file: Path, capsys: pytest.CaptureFixture
) -> None:
    found = {}
    for name, method, more in (("star", "atp-star", ()), ("asked", "eap", ("--missed", "40")), ("eap", "eap", ())):
        out = tmp_path / name
        assert discover(out, model_directory, task_file, "--method", method, "--edges", "20", *more) == 0
        found[name] = json.loads((out / "evaluation.json").read_text(encoding="utf-8")).get("missed")
    assert found["eap"] is None
    assert found["star"]["samples"] == 200
    assert found["asked"]["samples"] == 40
    assert found["asked"]["bound"] > 0
    assert "missed        " in capsys.readouterr().out

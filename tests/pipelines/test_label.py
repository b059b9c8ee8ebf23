"""edgewise label and edgewise score on stored runs, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphs.evidence_json import evidence_from_json, labels_from_json
from pipelines.cli import main
from pipelines.label_flags import TESTS
from pipelines.score import TESTS as SCORED
from tests.pipelines.conftest import Edgewise


@pytest.fixture
def run(edgewise: Edgewise, model_directory: Path, task_file: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    done = edgewise(
        "discover", "--model", model_directory, "--task", task_file, "--out", out, "--edges", 30, "--rivals", 0,
        "--bootstrap", 0, "--random-circuits", 0, "--sizes", "0.2", "--formats", "json,svg",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (out / "labels.json").exists()  # another model without a corpus
    return out


def test_a_run_is_named_and_scored_and_drawn_again(edgewise: Edgewise, run: Path) -> None:
    refused = edgewise("score", run)
    assert refused.returncode == 2 and "no labels yet" in refused.stderr and refused.stderr.count("\n") == 1
    done = edgewise("label", run)
    assert done.returncode == 0, done.stderr
    circuit = json.loads((run / "circuit.json").read_text())
    ends = {end for edge in circuit["edges"] for end in edge["edge"].split("->")}
    nodes = {end.partition("<")[0] for end in ends}
    labels = labels_from_json((run / "labels.json").read_bytes()).labels
    assert {str(node) for node in labels} == nodes
    evidence = {path.stem: evidence_from_json(path.read_bytes()) for path in (run / "evidence").glob("*.json")}
    assert set(evidence) == nodes
    for node, label in labels.items():
        assert set(label.cites) <= evidence[str(node)].ids
    exported = json.loads((run / "exports" / "circuit.json").read_text())
    assert exported["labels"] == {str(n): label.text for n, label in labels.items() if label.rule != "kind"}

    stamps = {path: path.stat().st_mtime_ns for path in (run / "evidence").glob("*.json")}
    done = edgewise("score", run)
    assert done.returncode == 0, done.stderr
    scored = labels_from_json((run / "labels.json").read_bytes())
    assert {node: label.text for node, label in scored.labels.items()} == {n: label.text for n, label in labels.items()}
    assert scored.facts["judge"] == "rules"
    again = edgewise("label", run)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # evidence is used again
    assert labels_from_json((run / "labels.json").read_bytes()).labels == labels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("label", "nowhere"), "is not a run directory"),
        (("label", "nowhere", "--pairs", "0"), "--pairs must be at least 1"),
        (("label", "nowhere", "--labeler", "openai"), "--llm is missing"),
        (("label", "nowhere", "--labeler", "openai", "--llm", "x", "--max-usd", "1"), "needs prices"),
        (("label", "nowhere", "--labeler", "openai", "--llm", "x", "--price", "much"), "write two numbers"),
        (("score", "nowhere", "--tests", "simulation"), "there is no such test"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_both_lists_of_tests_agree() -> None:
    assert TESTS == SCORED

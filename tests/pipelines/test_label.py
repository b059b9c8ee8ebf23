"""edgewise label and edgewise score on stored runs, from end to end."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from graphs.evidence_json import evidence_from_json, labels_from_json, labels_to_json
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


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Texts of token ids."""
    rng, path = random.Random(1), tmp_path / "text.jsonl"
    rows = [{"tokens": [rng.randint(3, 40) for _ in range(rng.randint(20, 40))]} for _ in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_traced_task_is_named_tested_told_and_drawn(
    model_directory: Path, transcoders: Path, task_file: Path, corpus: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    place = ["--model", str(model_directory), "--transcoders", str(transcoders), "--out", str(out)]
    assert main(["trace", "--task", str(task_file), "--limit", "3", *place, "--max-features", "8"]) == 0
    assert main(["label", str(out), "--corpus", str(corpus)]) == 0
    file = out / "labels.json"
    labels = labels_from_json(file.read_bytes()).labels
    both = [json.loads((out / name).read_text())["nodes"] for name in ("task_graph.json", "contrast.json")]
    names = {node["node"].partition("@")[0] for nodes in both for node in nodes}
    assert {str(node) for node in labels} == {name for name in names if name[0] in "fe"}
    assert json.loads((out / "run.json").read_text())["labels"]["nodes"] == len(labels)

    node, label = next((node, label) for node, label in labels.items() if node.kind == "feature")
    mine = replace(label, text="say 5", role="promotes", rule="", labeler="hand", predicts=("5",), abstain=False)
    file.write_bytes(labels_to_json([*({**labels, node: mine}).values()]))
    capsys.readouterr()
    assert main(["score", str(out)]) == 0
    assert "predicted tokens rise above" in capsys.readouterr().out
    scored = labels_from_json(file.read_bytes()).labels[node]
    steering = evidence_from_json((out / "evidence" / f"{node}.json").read_bytes()).steering
    assert steering is not None and "5" in [one.token for one in steering.tokens]
    assert scored.scores["output"].examples == 16
    for name in ("task_graph.svg", "contrast.svg"):
        picture = (out / "exports" / name).read_text()
        drawn = str(node) in {node["node"].partition("@")[0] for node in both[name == "contrast.svg"]}
        assert ("output 0." in picture) == ("say 5" in picture) == drawn or not drawn
    assert any("say 5" in (out / "exports" / name).read_text() for name in ("task_graph.svg", "contrast.svg"))

    new = next(str(token) for token in range(40) if str(token) not in {one.token for one in steering.tokens})
    file.write_bytes(labels_to_json([*({**labels, node: replace(mine, predicts=(new,))}).values()]))
    corpus.write_text(corpus.read_text() + '{"tokens": [5, 6, 7]}\n')
    assert main(["score", str(out)]) == 0
    assert "no output test: the corpus is gone or has changed" in capsys.readouterr().out
    assert "output" not in labels_from_json(file.read_bytes()).labels[node].scores

    assert main(["story", str(out)]) == 0
    edges = {
        f"{edge['source']}->{edge['target']}" for edge in json.loads((out / "task_graph.json").read_text())["edges"]
    }
    told = json.loads((out / "story.json").read_text())["sentences"]
    assert told and {edge["edge"] for sentence in told for edge in sentence["edges"]} <= edges
    assert main(["export", str(out), "--format", "json"]) == 0
    exported = json.loads((out / "exports" / "task_graph.json").read_text())
    assert exported["labels"] and {entry["node"] for entry in exported["named"]} == {str(node) for node in labels}
    assert main(["export", str(out), "--format", "dot"]) == 2
    assert "there is no exporter 'dot'" in capsys.readouterr().err

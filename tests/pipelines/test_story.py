"""`edgewise story`: groups that a hand may edit, sentences that cite edges, and a language model that is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graphs.attribution_json import read_graph
from labelers.grouping import groups_from_json
from pipelines.cli import main
from tests.labelers.faulty_server import Answer, completion, faulty_server
from tests.labelers.test_openai_labeler import data_of


@pytest.fixture
def traced(model_directory: Path, transcoders: Path, tmp_path: Path) -> Path:
    """A traced prompt of a tiny random model."""
    prompt = tmp_path / "prompt.json"
    prompt.write_text(json.dumps({"tokens": [5, 9, 14, 3, 22, 31, 8], "targets": [4, 30]}))
    place = ["--model", str(model_directory), "--transcoders", str(transcoders), "--out", str(tmp_path / "run")]
    assert main(["trace", str(prompt), *place, "--validate", "0", "--formats", "dot,json"]) == 0
    return tmp_path / "run"


def exported(run: Path) -> Any:
    """Groups in the exported graph."""
    return read_graph((run / "exports" / "graph.json").read_bytes()).supernodes


def test_groups_are_proposed_kept_and_drawn(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(traced) == ()
    assert main(["story", str(traced), "--threshold", "0.2"]) == 0
    shown = capsys.readouterr().out
    groups = groups_from_json((traced / "groups.json").read_bytes())
    assert groups and exported(traced) == groups and "subgraph" in (traced / "exports" / "graph.dot").read_text()
    story = json.loads((traced / "story.json").read_text())
    edges = {edge["edge"] for sentence in story["sentences"] for edge in sentence["edges"]}
    graph = read_graph((traced / "graph.json").read_bytes())
    assert edges and edges <= set(graph.edge_names) and story["sentences"][0]["text"] in shown
    assert graph.supernodes == ()  # the traced graph is what evidence was collected for

    by_hand = json.loads((traced / "groups.json").read_text())
    by_hand["groups"] = [{"label": "<b>mine</b>", "nodes": by_hand["groups"][0]["nodes"]}]
    (traced / "groups.json").write_text(json.dumps(by_hand))
    assert main(["story", str(traced)]) == 0
    assert [group.label for group in exported(traced)] == ["<b>mine</b>"]
    text = traced / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"tokens": [3 + (7 * i + j * j) % 38 for j in range(15)]}) + "\n" for i in range(24))
    )
    assert main(["label", str(traced), "--corpus", str(text)]) == 0
    assert [group.label for group in exported(traced)] == ["<b>mine</b>"]  # names change, a hand's groups do not
    (traced / "labels.json").unlink()
    assert main(["story", str(traced), "--regroup", "--threshold", "0.2"]) == 0
    assert exported(traced) == groups


def test_groups_that_do_not_fit_are_one_line(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"format": "edgewise-groups", "version": 1, "groups": [{"label": "x", "nodes": ["f9.9@1"]}]}
    (traced / "groups.json").write_text(json.dumps(content))
    assert main(["story", str(traced)]) == 2
    assert "f9.9@1 is no node of the graph" in capsys.readouterr().err
    (traced / "groups.json").write_text("{")
    assert main(["export", str(traced), "--format", "dot"]) == 2
    error = capsys.readouterr().err
    assert "groups.json" in error and error.count("\n") == 1


def test_a_language_model_tells_and_is_checked(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        data = data_of(body)
        if "members" in data:
            return completion(json.dumps({"label": "a fine group", "strangers": []}))
        edge = data["edges"][0]
        other = "lowers" if edge["effect"] == "raises" else "raises"
        right = {"text": "It begins.", "edges": [{"edge": edge["edge"], "effect": edge["effect"]}]}
        wrong = {"text": "It lies.", "edges": [{"edge": edge["edge"], "effect": other}]}
        return completion(json.dumps({"sentences": [right, wrong]}))

    with faulty_server(decide) as seen:
        asked = ["--teller", "openai", "--llm", "m", "--base-url", seen.url]
        assert main(["story", str(traced), "--threshold", "0.2", *asked]) == 0
        count = len(seen.requests)
        assert main(["story", str(traced), "--threshold", "0.2", "--regroup", *asked]) == 0
        assert len(seen.requests) == count > 1  # every reply was kept
    shown = capsys.readouterr().out
    assert "It begins." in shown and "dropped: 'It lies.'" in shown
    assert {group.label for group in exported(traced)} == {"a fine group"}
    story = json.loads((traced / "story.json").read_text())
    assert [sentence["text"] for sentence in story["sentences"]] == ["It begins."] and story["author"] == "m"


@pytest.mark.parametrize("wrong", [["--edges", "0"], ["--threshold", "2"], ["--teller", "openai"]])
def test_mistakes_are_found_before_anything_is_read(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", "nowhere", *wrong]) == 2
    error = capsys.readouterr().err
    assert (wrong[0] if wrong[0] != "--teller" else "--llm") in error


def test_where_the_language_model_fails_the_rules_tell(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with faulty_server(lambda *_: completion("once upon a time")) as seen:
        llm = ["--teller", "openai", "--llm", "m", "--base-url", seen.url]
        assert main(["story", str(traced), *llm]) == 0
    assert "told by rules, for the language model has not: no reply of the right form" in capsys.readouterr().out
    story = json.loads((traced / "story.json").read_text())
    assert story["author"] == "rules" and story["sentences"] and "no reply" in story["refused"]
    with faulty_server(lambda *_: completion("once upon a time")) as seen:
        llm = ["--teller", "openai", "--llm", "other", "--base-url", seen.url, "--regroup", "--threshold", "0.2"]
        assert main(["story", str(traced), *llm, "--max-tokens", "9000"]) == 0
        assert 0 < 120 * len(seen.requests) <= 9000  # one cap for the names of groups and the story

"""edgewise import-labels and export-labels: there and back, and what does not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from graphs.evidence_json import labels_from_json
from graphs.node import NodeId
from labelers.delphi_labels import read_delphi
from labelers.neuronpedia_labels import read_neuronpedia
from pipelines.cli import main

HOSTILE = "</script><b>cities</b> \u202e\x1b[31m of Europe and many more words"


@pytest.fixture
def traced(model_directory: Path, transcoders: Path, tmp_path: Path) -> Path:
    """A traced prompt of a tiny random model."""
    prompt = tmp_path / "prompt.json"
    prompt.write_text(json.dumps({"tokens": [5, 9, 14, 3, 22, 31, 8], "targets": [4, 30]}))
    place = ["--model", str(model_directory), "--transcoders", str(transcoders), "--out", str(tmp_path / "run")]
    assert main(["trace", str(prompt), *place, "--validate", "0", "--formats", "svg,json"]) == 0
    return tmp_path / "run"


def features(run: Path) -> list[NodeId]:
    """The features of the run, without positions."""
    nodes = json.loads((run / "graph.json").read_text())["nodes"]
    named = (NodeId.parse(node["node"]).at(None) for node in nodes)
    return list(dict.fromkeys(node for node in named if node.kind == "feature"))


def labels_of(run: Path) -> Any:
    """labels.json."""
    return labels_from_json((run / "labels.json").read_bytes())


def row(node: NodeId, description: str) -> dict[str, Any]:
    """A line of Neuronpedia's."""
    return {"modelId": "m", "layer": f"{node.layer}-mine", "index": str(node.index), "description": description}


def test_labels_of_neuronpedia_come_in_and_go_out(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = features(traced)[:3]
    stranger = NodeId("feature", 0, 999_999)
    rows = [row(first, HOSTILE), row(second, "dogs"), row(third, " "), row(stranger, "cats")]
    file = traced / "theirs.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    assert main(["import-labels", str(traced), str(file)]) == 0
    said = capsys.readouterr().out
    assert "2 features named by the file; 1 of its labels are not of this run" in said
    assert f"1 have no explanation there, such as {third}" in said and "\x1b" not in said and "\u202e" not in said
    found = labels_of(traced)
    assert set(found.labels) == {first, second} and found.labels[second].text == "dogs"
    label = found.labels[first]
    assert label.rule.startswith("neuronpedia:") and not label.scores and label.expects is None
    assert found.facts["imported"][0]["labels"] == 2 and len(found.facts["imported"][0]["sha256"]) == 64
    drawn = (traced / "exports" / "graph.svg").read_text(encoding="utf-8")
    assert "dogs" in drawn and "<script" not in drawn and "<b>" not in drawn and "\u202e" not in drawn

    assert main(["export-labels", str(traced), "--model-id", "gpt2", "--source", "tc"]) == 0
    content = (traced / "exports" / "labels.neuronpedia.jsonl").read_bytes()
    assert json.loads(content.splitlines()[0])["modelId"] == "gpt2"
    back = read_neuronpedia(content)
    assert {node: item.text for node, item in back.labels.items()} == {n: v.text for n, v in found.labels.items()}


def test_labels_of_delphi_come_in_and_go_out(traced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = features(traced)[:2]
    folder = tmp_path / "delphi"
    folder.mkdir()
    (folder / f"layers.{first.layer}.mlp_latent{first.index}.txt").write_text(json.dumps("cats that sleep"))
    (folder / f"layers.{second.layer}.mlp_latent{second.index}.txt").write_text('"No explanation found"')
    assert main(["import-labels", str(traced), str(folder), "--format", "delphi"]) == 0
    assert labels_of(traced).labels[first].text == "cats that sleep" and second not in labels_of(traced).labels
    for _ in range(2):  # what an earlier export left is replaced
        assert main(["export-labels", str(traced), "--format", "delphi", "--source", "h.{layer}.mlp"]) == 0
    assert {n: item.text for n, item in read_delphi(traced / "exports" / "labels.delphi").labels.items()} == {
        first: "cats that sleep"
    }
    capsys.readouterr()
    assert main(["score", str(traced)]) == 2  # no evidence, and no score without
    assert "no evidence yet" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line(traced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(row(NodeId("feature", 0, 999_999), "cats")))
    for arguments, words in (
        (["import-labels", traced, file], "none of its 1 labels is of a feature"),
        (["import-labels", traced, file, "--format", "delphi"], "is no folder"),
        (["import-labels", traced, tmp_path], "is no file"),
        (["import-labels", traced, file, "--source", "other"], "no source 'other'"),
        (["import-labels", tmp_path / "none", file], "is not a run directory"),
        (["export-labels", traced], "no labels of features"),
    ):
        assert main(list(map(str, arguments))) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (traced / "labels.json").exists()

"""Labels of other tools, in their own layouts written by hand, and ours read back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from graphs.json_fields import BadGraphFile
from graphs.label import Label
from graphs.node import NodeId
from labelers.delphi_labels import read_delphi, write_delphi
from labelers.foreign import Imported
from labelers.neuronpedia_labels import read_neuronpedia, write_neuronpedia


def row(layer: str, index: Any, description: str, **more: Any) -> dict[str, Any]:
    """A line of Neuronpedia's exports."""
    named = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "authorId": "x"}
    return {
        "id": "c1",
        "modelId": "gemma-2-2b",
        "layer": layer,
        "index": index,
        "description": description,
        **named,
        **more,
    }


ROWS = [
    row("6-res-jb", "204", " time-related phrases"),
    row("6-res-jb", 7, "words that follow the name of a European capital city"),
    row("6-res-jb", "7", "a second opinion"),
    row("20-gemmascope-transcoder-16k", "4691", "LaTeX"),
    row("20-gemmascope-transcoder-16k", "1", ""),
]


def feature(layer: int, index: int) -> NodeId:
    """A feature's node."""
    return NodeId("feature", layer, index)


def texts(found: Imported) -> dict[str, str]:
    """Texts by node."""
    return {str(node): label.text for node, label in found.labels.items()}


def test_all_forms_of_neuronpedias_files_say_the_same() -> None:
    lines = "\n".join(map(json.dumps, ROWS)).encode() + b"\n\n"
    wanted = {"f6.204": "time-related phrases", "f6.7": "words that follow the name of", "f20.4691": "LaTeX"}
    for content in (lines, gzip.compress(lines), json.dumps(ROWS).encode(), b"\xef\xbb\xbf" + lines):
        found = read_neuronpedia(content)
        assert texts(found) == wanted and list(found.failures) == [feature(20, 1)]
    long = found.labels[feature(6, 7)]
    assert long.description == "words that follow the name of a European capital city"
    assert (long.labeler, long.rule, long.role) == ("gpt-4o-mini", "neuronpedia:oai_token-act-pair", "detects")
    assert found.labels[feature(6, 204)].description == ""


def test_answers_of_the_api() -> None:
    answer = {
        "modelId": "m",
        "layer": "3-x",
        "index": "5",
        "explanations": [{"description": "dogs"}, {"description": "cats"}],
    }
    assert texts(read_neuronpedia(json.dumps(answer).encode())) == {"f3.5": "dogs"}
    assert texts(read_neuronpedia(json.dumps([answer | {"explanations": []}]).encode())) == {}


def test_sources_of_one_layer_are_chosen() -> None:
    content = json.dumps([row("6-a", "1", "one"), row("6-b", "1", "two")]).encode()
    with pytest.raises(BadGraphFile, match="layer 6 has several sources: choose one of '6-a', '6-b'"):
        read_neuronpedia(content)
    assert texts(read_neuronpedia(content, source="6-b")) == {"f6.1": "two"}
    with pytest.raises(BadGraphFile, match="no source '6-c'"):
        read_neuronpedia(content, source="6-c")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x1f\x8b junk", "gzip"),
        (gzip.compress(b"x" * 99, mtime=0)[:-9], "gzip"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"{nonsense", "line 1"),
        (b"[1]", "entry 0"),
        (b"[" * 100_000, "line 1"),
        (json.dumps([row("res", "1", "x")]).encode(), "'res'"),
        (json.dumps([row("6-a", "-1", "x")]).encode(), "'-1'"),
        (json.dumps([row("6-a", True, "x")]).encode(), "'True'"),
        (json.dumps([row("6-a", "1" * 30, "x")]).encode(), "index"),
        (json.dumps([{"layer": "6-a", "index": "1"}]).encode(), "'description'"),
        (json.dumps([{"layer": "6-a", "index": "1", "explanations": 3}]).encode(), "explanations"),
    ],
)
def test_bad_files_are_one_line_that_names_the_place(content: bytes, said: str) -> None:
    with pytest.raises(BadGraphFile, match=said) as error:
        read_neuronpedia(content, where="labels.jsonl")
    assert str(error.value).startswith("labels.jsonl: ") and "\n" not in str(error.value)


LABELS = {
    feature(2, 5): Label(feature(2, 5), "names of cities", "detects", "m", description="Fires on cities."),
    feature(1, 9): Label(feature(1, 9), 'hostile " \u202e </script>\x00', "promotes", "rules"),
    feature(1, 10): Label(feature(1, 10), "unclear", "unclear", "m", abstain=True),
    NodeId.parse("a0.h1"): Label(NodeId.parse("a0.h1"), "previous token", "moves", "rules"),
}


def test_what_is_written_reads_back() -> None:
    content = write_neuronpedia(LABELS, model="gpt2", source="mine")
    first = json.loads(content.split(b"\n")[0])
    assert (first["modelId"], first["layer"], first["index"], first["typeName"]) == ("gpt2", "1-mine", "9", "edgewise")
    back = read_neuronpedia(content)
    assert set(back.labels) == {feature(2, 5), feature(1, 9)}
    assert back.labels[feature(2, 5)].text == "names of cities" and back.labels[feature(1, 9)].labeler == "rules"


def test_delphis_folder(tmp_path: Path) -> None:
    for name, text in (
        ("layers.5.mlp_latent12.txt", "The token 'the' in legal texts, often before a defined term."),
        ("layers.6.mlp_latent0.txt", "Explanation could not be parsed."),
        ("layers.6.mlp_latent1.txt", ""),
        (".model.layers.7.mlp_feature3.txt", "cats"),
    ):
        (tmp_path / name).write_text(json.dumps(text))
    (tmp_path / "README.md").write_text("not an explanation")
    found = read_delphi(tmp_path)
    assert texts(found) == {"f5.12": "The token 'the' in legal texts,", "f7.3": "cats"}
    assert set(found.failures) == {feature(6, 0), feature(6, 1)}
    (tmp_path / "layers.5.attn_latent12.txt").write_text('"other"')
    with pytest.raises(BadGraphFile, match="several hookpoints"):
        read_delphi(tmp_path)
    assert texts(read_delphi(tmp_path, hookpoint="layers.5.attn")) == {"f5.12": "other"}


def test_bad_delphi_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadGraphFile, match="no file is named"):
        read_delphi(tmp_path)
    (tmp_path / "x_latent1.txt").write_text('"a"')
    with pytest.raises(BadGraphFile, match="no layer's number"):
        read_delphi(tmp_path)
    (tmp_path / "x_latent1.txt").unlink()
    for bad in ("not json", "[1]", "[" * 100_000):
        (tmp_path / "h.0.mlp_latent1.txt").write_text(bad)
        with pytest.raises(BadGraphFile, match=r"h\.0\.mlp_latent1\.txt: not a JSON text"):
            read_delphi(tmp_path)


def test_delphi_files_read_back(tmp_path: Path) -> None:
    files = write_delphi(LABELS)
    assert set(files) == {"layers.2.mlp_latent5.txt", "layers.1.mlp_latent9.txt"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = read_delphi(tmp_path)
    assert found.labels[feature(2, 5)].text == "names of cities: Fires on cities." and not found.failures
    for bad in ("layers.mlp", "a/{layer}"):
        with pytest.raises(ValueError, match="hookpoint"):
            write_delphi(LABELS, hookpoint=bad)

"""Files of a traced prompt: read back equal, readable by scipy, and one clear line for what is wrong with them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import load_npz

from graphs.adjacency import nodes_json, read_adjacency, write_adjacency
from graphs.attribution import AttributionGraph
from graphs.attribution_json import export_json, read_graph
from graphs.influence import prune
from graphs.json_fields import BadGraphFile
from graphs.pruned import PrunedGraph, Supernode, same_fields
from tests.graphs.hostile_labels import HOSTILE, hostile_label
from tests.graphs.random_attribution import random_attribution


def rich_graph(targets: str = "logits", seed: int = 0) -> PrunedGraph:
    """A pruned graph with everything that one can hold."""
    graph = prune(random_attribution(seed, targets=targets))
    features = [node for node in graph.nodes if node.kind == "feature"]
    return replace(
        graph,
        title=HOSTILE,
        tokens=(HOSTILE, *graph.tokens[1:]),
        texts={**graph.texts, 50: HOSTILE},
        labels={str(features[0]): HOSTILE, str(features[1].at(None)): "capital cities"},
        named={str(node.at(None)): hostile_label(node) for node in features[:6]},
        supernodes=(Supernode(HOSTILE, tuple(features[:2])), Supernode("rest", (features[2],))),
        pinned=(features[0], graph.nodes[-1]),
        through={0: {"a0.h1": 0.25, "direct": -1e-9}, 3: {}},
    )


@pytest.mark.parametrize("targets", ["logits", "difference", "features"])
def test_a_pruned_graph_is_read_back_equal(targets: str) -> None:
    graph = rich_graph(targets)
    content = export_json(graph)
    assert read_graph(content).same_as(graph)
    assert export_json(read_graph(content)) == content
    assert not read_graph(content).same_as(replace(graph, weights=graph.weights * np.float32(1.0000001)))
    assert not read_graph(content).same_as(replace(graph, pinned=()))


def test_a_graph_without_edges_and_scores_is_read_back_equal() -> None:
    graph = rich_graph()
    bare = replace(
        graph,
        edges=np.zeros((0, 2), dtype=np.int64),
        weights=graph.weights[:0],
        edge_scores=graph.edge_scores[:0],
        scores=None,
        whole=None,
        node_threshold=None,
        through={},
    )
    assert read_graph(export_json(bare)).same_as(bare)


def test_the_file_stands_for_itself() -> None:
    graph = rich_graph()
    data = json.loads(export_json(graph))
    assert data["format"] == "edgewise-attribution-graph"
    logit = next(entry for entry in data["nodes"] if entry["node"] == "logit7@4")
    assert (logit["text"], logit["probability"]) == (" seven", 0.5)
    assert [token["id"] for token in data["tokens"]] == list(graph.token_ids)
    assert {edge["source"] for edge in data["edges"]} <= {entry["node"] for entry in data["nodes"]}


BREAKAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda d: d.update(format="other"), "'format'"),
    "missing": (lambda d: d.pop("labels"), "'labels' is missing"),
    "node": (lambda d: d["nodes"][0].update(node="f1"), "'f1' is not a node name"),
    "twice": (lambda d: d["nodes"].append(d["nodes"][0]), "is listed twice"),
    "edge": (lambda d: d["edges"][0].update(source="f9.9@1"), "no node 'f9.9@1'"),
    "edge twice": (lambda d: d["edges"].append(d["edges"][0]), "listed twice"),
    "weight": (lambda d: d["edges"][0].update(weight="1"), "'weight' is '1', not a number"),
    "large": (lambda d: d["edges"][0].update(weight=1e300), "too large"),
    "huge": (lambda d: d["edges"][0].update(weight=10**400), "not a number"),
    "flag": (lambda d: d["nodes"][0].update(activation=True), "not a number"),
    "target": (lambda d: d["targets"][0].update(node="logit1@1"), "no node 'logit1@1'"),
    "token": (lambda d: d["tokens"][0].update(id="1"), "'id' is '1', not a whole number"),
    "texts": (lambda d: d["texts"].update(x="y"), "not a vocabulary number"),
    "list": (lambda d: d.update(nodes={}), "'nodes' is '{}', not a list"),
    "entry": (lambda d: d["edges"].append(3), "is not an object"),
    "through": (lambda d: d["edges"][0].update(through=[1]), "'through' is '[1]', not an object"),
    "scores": (lambda d: d["scores"].pop("replacement"), "'replacement' is missing"),
    "supernode": (lambda d: d["supernodes"][0].update(nodes=[7]), "'7' is not a node name"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_wrong_with_a_file_is_said_in_one_line(name: str) -> None:
    change, message = BREAKAGES[name]
    data = json.loads(export_json(rich_graph()))
    change(data)
    with pytest.raises(BadGraphFile) as caught:
        read_graph(json.dumps(data))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for text in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(BadGraphFile):
            read_graph(text)


def _files(graph: AttributionGraph, compressed: bool = False) -> tuple[bytes, io.BytesIO]:
    file = io.BytesIO()
    write_adjacency(graph, file, compressed)
    file.seek(0)
    return nodes_json(graph), file


@pytest.mark.parametrize("compressed", [False, True])
def test_the_whole_graph_is_read_back_equal(compressed: bool) -> None:
    graph = random_attribution(2)
    graph = replace(graph, texts={7: HOSTILE}, tokens=(HOSTILE, *graph.tokens[1:]))
    names, file = _files(graph, compressed)
    again = read_adjacency(names, file)
    assert same_fields(replace(again, weights=graph.weights), graph)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(again.weights, part), getattr(graph.weights, part))
    assert prune(again).same_as(prune(graph))
    assert json.loads(names) == [str(node) for node in graph.nodes]
    file.seek(0)
    loaded = load_npz(file)
    np.testing.assert_array_equal(loaded.toarray(), graph.weights.toarray())
    row, column = (int(part[0]) for part in graph.weights.nonzero())
    assert graph.nodes[row].kind in ("feature", "logit")  # [target, source]
    assert loaded[row, column] == graph.weights[row, column]


def _with(graph: AttributionGraph, **changes: Any) -> io.BytesIO:
    _, file = _files(graph)
    with np.load(file) as stored:
        arrays = {**{key: stored[key] for key in stored.files}, **changes}
    file = io.BytesIO()
    np.savez(file, **{key: value for key, value in arrays.items() if value is not None})
    file.seek(0)
    return file


def test_what_is_wrong_with_an_adjacency_is_said_in_one_line() -> None:
    graph = random_attribution(2)
    names, count = nodes_json(graph), len(graph.nodes)
    indices = graph.weights.indices.copy()
    indices[0] = count
    indptr = graph.weights.indptr.copy()
    indptr[1] = indptr[-1]
    cases = {
        "no array 'rest'": {"rest": None},
        "'indices' names a node": {"indices": indices},
        "'indptr' does not fit": {"indptr": indptr},
        "'data' is not a row of float32": {"data": graph.weights.data.astype(np.float64)},
        "not finite": {"data": graph.weights.data * np.float32(np.nan)},
        "shape": {"shape": np.array([3, 3])},
        "'data' holds": {"data": graph.weights.data[:-1]},
        "Object arrays": {"rest": np.array([{}], dtype=object)},
        "not JSON": {"about": np.zeros(3, dtype=np.uint8)},
        "'rest' holds": {"rest": graph.rest[:-1]},
        "'format' not csr": {"format": np.array(b"coo")},
    }
    for message, changes in cases.items():
        with pytest.raises(BadGraphFile, match=message) as caught:
            read_adjacency(names, _with(graph, **changes))
        assert "\n" not in str(caught.value)
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        with pytest.raises(BadGraphFile, match="not adjacency"):
            read_adjacency(names, io.BytesIO(content))
    for text in (b"{", b"{}", b'["f1"]', names.replace(b"[\n", b'[\n"t1@0","t1@0",')):
        with pytest.raises(BadGraphFile, match=r"nodes\.json"):
            read_adjacency(text, _files(graph)[1])

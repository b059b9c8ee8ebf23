"""EAP-IG's graph file: read, written, and refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.exporters.eap_ig import BadEapIgFile, EapIgGraph, export_eap_ig, read_eap_ig, write_eap_ig
from graphs.scores import EdgeScores
from graphs.topology import transformer_topology
from graphs.view import CircuitView, ExporterUnavailable


def random_graph(layers: int = 2, heads: int = 3, parallel: bool = False, width: int = 4) -> EapIgGraph:
    """All fields set, some neurons and nodes not scored."""
    rng = np.random.default_rng(layers * heads)
    topology = transformer_topology(layers, heads, parallel=parallel)
    rows = len(topology.sources)
    scores = np.where(topology.possible, rng.normal(size=topology.possible.shape), np.nan).astype(np.float32)
    kept = topology.possible & (rng.random(topology.possible.shape) < 0.4)
    neurons = rng.normal(size=(rows, width)).astype(np.float32)
    neurons[0] = np.nan
    nodes = rng.normal(size=rows).astype(np.float32)
    nodes[1] = np.nan
    return EapIgGraph(topology, width, kept, np.asarray(kept.any(1)), scores, nodes, neurons > 0, neurons)


def assert_equal(one: EapIgGraph, other: EapIgGraph) -> None:
    assert one.topology.same_as(other.topology)
    assert one.cfg == other.cfg
    for field in ("kept", "nodes", "scores", "node_scores", "neurons", "neuron_scores"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2)])
def test_what_is_written_is_read_back(shape: tuple[int, int], parallel: bool) -> None:
    graph = random_graph(*shape, parallel=parallel)
    assert_equal(read_eap_ig(write_eap_ig(graph)), graph)
    bare = EapIgGraph(graph.topology, 4, graph.kept, graph.nodes)
    assert_equal(read_eap_ig(write_eap_ig(bare)), bare)
    assert "score" not in json.loads(write_eap_ig(bare))["edges"]["input->a0.h0<q>"]


def test_a_published_file_is_written_back_byte_by_byte(shared: Path) -> None:
    content = (shared / "ground_truth/mib_ioi-eap-ig_gpt2.json").read_bytes()
    graph = read_eap_ig(content)
    assert (graph.topology.edge_count, int(graph.kept.sum()), graph.d_model) == (32_491, 756, 768)
    assert graph.scores is not None
    assert graph.scores[0, 0] == np.float32(-0.0002955848758574575)
    assert write_eap_ig(graph) == content


def test_heads_hold_the_neurons_of_their_layer_as_the_peer_writes_them() -> None:
    graph = random_graph()
    nodes = json.loads(write_eap_ig(graph))["nodes"]
    assert nodes["a1.h0"]["neurons"] == nodes["a1.h2"]["neurons"]
    assert np.shape(nodes["a1.h0"]["neurons"]) == (3, 4)
    assert np.shape(nodes["m1"]["neurons"]) == (4,)


def test_a_circuit_is_exported_with_all_scores() -> None:
    graph = random_graph()
    assert graph.scores is not None
    scores = EdgeScores(graph.topology, graph.scores, "eap")
    view = CircuitView(Circuit(graph.topology, graph.kept, scores), d_model=64)
    found = read_eap_ig(export_eap_ig(view))
    np.testing.assert_array_equal(found.scores, graph.scores)
    np.testing.assert_array_equal(found.kept, graph.kept)
    np.testing.assert_array_equal(found.nodes, graph.kept.any(1))
    assert found.cfg == {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": False, "d_model": 64}


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        (transformer_topology(2, 4, 2), "--kv-heads query"),
        (transformer_topology(2, 2, features={1: [3, 5]}), "without features"),
        (transformer_topology(2, 2, parallel=[True, False]), "heads and MLPs"),
    ],
    ids=["grouped", "features", "mixed"],
)
def test_graphs_that_the_format_lacks_are_refused(topology: Any, says: str) -> None:
    view = CircuitView(Circuit(topology, topology.possible), d_model=8)
    with pytest.raises(ExporterUnavailable, match=says):
        export_eap_ig(view)


def _with(change: Any) -> bytes:
    data = json.loads(write_eap_ig(random_graph()))
    change(data)
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("cfg"), "'cfg', 'nodes' and 'edges'"),
        (lambda data: data["cfg"].update(n_layers=True), "n_layers"),
        (lambda data: data["cfg"].update(n_layers=99_999, n_heads=99_999), "is not to be read"),
        (lambda data: data["cfg"].update(parallel_attn_mlp=1), "parallel_attn_mlp"),
        (lambda data: data["cfg"].pop("d_model"), "d_model"),
        (lambda data: data["edges"].pop("m1->logits"), "m1->logits"),
        (lambda data: data["edges"].update({"m1->m0": {"score": 1.0, "in_graph": False}}), "m1->m0"),
        (lambda data: data["edges"]["m1->logits"].pop("score"), "m1->logits has no score"),
        (lambda data: data["edges"]["m1->logits"].update(score="1"), "m1->logits: score"),
        (lambda data: data["edges"]["m1->logits"].update(in_graph=1), "m1->logits"),
        (lambda data: data["nodes"].pop("a0.h1"), "a0.h1"),
        (lambda data: data["nodes"]["m0"].update(neurons_scores=[1.0]), "m0: neurons_scores"),
        (lambda data: data["nodes"]["m0"].update(neurons_scores=["x"] * 4), "m0: neurons_scores"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_file_is_one_line_that_names_the_place(change: Any, says: str) -> None:
    with pytest.raises(BadEapIgFile, match=says) as error:
        read_eap_ig(_with(change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b"\xff"], ids=["cut", "deep", "list", "bytes"])
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadEapIgFile, match="not "):
        read_eap_ig(content)

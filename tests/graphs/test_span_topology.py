"""Graphs with spans against their definition, edge by edge."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.exporters.circuit_json import BadCircuitFile, describe_topology, export_json, read_circuit
from graphs.node import EdgeId
from graphs.prune import drop_dead_ends, full_circuit
from graphs.span_topology import Spans, span_topology, without_spans
from graphs.topology import topology_from_names, transformer_topology
from graphs.view import CircuitView

SEES = np.array(
    [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=bool
)  # `name` and `verb` see each other
SPANS = Spans(("start", "name", "verb", "end"), SEES, np.array([0, 0, 1, 1], dtype=bool))
SHAPES = {
    "sequential": transformer_topology(2, 2),
    "shared keys": transformer_topology(3, 4, 2),
    "parallel": transformer_topology(2, 2, parallel=True),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_shape
def test_edges_stay_in_their_span_or_cross_through_attention(shape: str) -> None:
    base = SHAPES[shape]
    topology = span_topology(base, SPANS)
    allowed = np.zeros_like(topology.possible)
    for row, source in enumerate(topology.sources):
        for column, slot in enumerate(topology.targets):
            here, there = (SPANS.names.index(n.position) if n.position else None for n in (source, slot.node))
            assert here is not None
            if slot.node.kind == "logits":
                fits = SPANS.read[here]
            elif slot.port in ("k", "v"):
                fits = SEES[there, here]
            else:
                fits = here == there
            plain = base.source_index[source.at(None)], base.target_index[type(slot)(slot.node.at(None), slot.port)]
            allowed[row, column] = fits and base.possible[plain]
    # What can be left out lies on no way to the logits.
    whole = Circuit(type(topology)(topology.sources, topology.targets, allowed, topology.feeds), allowed)
    assert np.array_equal(topology.possible, drop_dead_ends(whole).kept)
    assert 0 < topology.possible.sum() < allowed.sum()
    assert np.array_equal(drop_dead_ends(full_circuit(topology)).kept, topology.possible)


@every_shape
def test_every_slot_feeds_its_head_at_its_span(shape: str) -> None:
    base = SHAPES[shape]
    topology = span_topology(base, SPANS)
    for slot, fed in zip(topology.targets, topology.feeds):
        plain = base.feeds[base.target_index[type(slot)(slot.node.at(None), slot.port)]]
        assert [topology.sources[row] for row in fed] == [base.sources[row].at(slot.node.position) for row in plain]


@every_shape
def test_names_tell_the_graph(shape: str) -> None:
    topology = span_topology(SHAPES[shape], SPANS)
    assert topology_from_names(topology.source_names, topology.target_names, topology.possible).same_as(topology)
    circuit = full_circuit(topology)
    assert read_circuit(export_json(CircuitView(circuit))).topology.same_as(topology)
    for edge, _ in circuit.edges[::7]:
        assert EdgeId.parse(str(edge)) == edge


@every_shape
def test_the_spans_of_a_graph_are_found_again(shape: str) -> None:
    topology = span_topology(SHAPES[shape], SPANS)
    found = without_spans(topology)
    assert found is not None
    assert found[0].same_as(SHAPES[shape]) and found[1].names == SPANS.names
    described = describe_topology(topology)
    assert set(described) == {"layers", "heads", "kv_heads", "parallel", "spans"}
    assert without_spans(SHAPES[shape]) is None
    other = topology.possible.copy()
    other[0, 0] = False
    changed = type(topology)(topology.sources, topology.targets, other, topology.feeds)
    assert without_spans(changed) is None
    assert "sources" in describe_topology(changed)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"names": ["a", "a"], "sees": [[1, 1], [1, 1]], "read": [0, 1]}, "not different"),
        ({"names": ["a b"], "sees": [[1]], "read": [1]}, "neither a position nor a span"),
        ({"names": ["a"], "sees": [[1, 0]], "read": [1]}, "needs names"),
        ({"names": ["a"], "sees": [[2]], "read": [1]}, "needs names"),
        ({"names": [None], "sees": [[1]], "read": [1]}, "missing"),
        ({"names": ["a"]}, "sees"),
        (
            {"names": [f"s{i}" for i in range(1200)], "sees": [[1] * 1200] * 1200, "read": [1] * 1200},
            "is not to be read",
        ),
    ],
    ids=["twice", "bad name", "bad shape", "bad values", "no name", "missing", "too large"],
)
def test_bad_spans_in_a_circuit_file(spans: dict, message: str) -> None:
    circuit = full_circuit(span_topology(SHAPES["sequential"], SPANS))
    data = json.loads(export_json(CircuitView(circuit)))
    data["topology"]["spans"] = spans
    with pytest.raises(BadCircuitFile, match=message):
        read_circuit(json.dumps(data))


def test_one_span_is_the_graph_without_spans() -> None:
    base = transformer_topology(2, 4, 2)
    topology = span_topology(base, Spans(("all",), np.ones((1, 1), dtype=bool), np.ones(1, dtype=bool)))
    assert np.array_equal(topology.possible, base.possible)
    assert topology.feeds == base.feeds


def test_positions_are_numbers_in_names() -> None:
    spans = Spans((0, 1, 2), np.tril(np.ones((3, 3), dtype=bool)), np.array([0, 0, 1], dtype=bool))
    topology = span_topology(transformer_topology(1, 1), spans)
    assert topology.locate(EdgeId.parse("input@0->a0.h0@2<v>")) == (0, topology.target_names.index("a0.h0@2<v>"))
    with pytest.raises(KeyError):
        topology.locate(EdgeId.parse("input@0->a0.h0@1<v>"))  # what the head finds at 1 reaches no logits

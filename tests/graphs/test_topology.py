"""Which edges exist: the published counts, the order of reading and writing, and names that give the graph back."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.node import EdgeId, NodeId, Slot
from graphs.topology import Topology, topology_from_names, transformer_topology


@pytest.mark.parametrize(
    "layers, heads, parallel, edges",
    [
        (12, 12, False, 32_491),  # GPT-2 small
        (12, 12, True, 32_347),  # Pythia-160m
        (26, 8, False, 74_218),  # Gemma-2-2B
        (24, 14, False, 179_749),  # Qwen2.5-0.5B
        (24, 16, False, 231_877),  # GPT-2-medium
        (32, 32, False, 1_592_881),  # Llama-3.1-8B
    ],
)
def test_edge_counts_of_known_models(layers: int, heads: int, parallel: bool, edges: int) -> None:
    assert transformer_topology(layers, heads, parallel=parallel).edge_count == edges


def test_gpt2_has_157_sources_and_445_slots() -> None:
    assert transformer_topology(12, 12).possible.shape == (157, 445)


def _before(source: NodeId, slot: Slot, parallel: bool) -> bool:
    """The rule, spelled out: does the source write before the slot reads?"""
    if source.kind == "input" or slot.node.kind == "logits":
        return True
    assert source.layer is not None
    assert slot.node.layer is not None
    if source.layer != slot.node.layer:
        return source.layer < slot.node.layer
    return source.kind == "head" and slot.node.kind == "mlp" and not parallel


@pytest.mark.parametrize("parallel", [False, True])
def test_possible_is_the_order_of_reading_and_writing(parallel: bool) -> None:
    topology = transformer_topology(3, 4, 2, parallel)
    for row, source in enumerate(topology.sources):
        for column, slot in enumerate(topology.targets):
            assert topology.possible[row, column] == _before(source, slot, parallel), (source, slot)


def test_slots_feed_the_sources_computed_from_them(topology: Topology) -> None:
    fed = {slot: [topology.sources[row] for row in rows] for slot, rows in zip(topology.targets, topology.feeds)}
    for slot, nodes in fed.items():
        if slot.port in (None, "q"):
            assert nodes == ([] if slot.node.kind == "logits" else [slot.node])
    for layer in {node.layer for node in topology.sources if node.kind == "head"}:
        for port in "qkv":
            nodes = [n for slot, some in fed.items() if slot.port == port and slot.node.layer == layer for n in some]
            assert nodes == [n for n in topology.sources if n.kind == "head" and n.layer == layer]
    for row, slots in enumerate(topology.slots_of):
        assert all(row in topology.feeds[column] for column in slots)


def test_names_give_the_graph_back(topology: Topology) -> None:
    back = topology_from_names(topology.source_names, topology.target_names, topology.possible)
    assert back.same_as(topology)
    assert topology.same_as(topology)


def test_same_as_sees_differences() -> None:
    plain = transformer_topology(2, 4)
    assert not plain.same_as(transformer_topology(2, 4, parallel=True))
    assert not plain.same_as(transformer_topology(2, 4, 2))
    assert not plain.same_as(transformer_topology(3, 4))


def test_locate_is_the_inverse_of_edge(topology: Topology) -> None:
    for row, column in np.argwhere(topology.possible).tolist():
        assert topology.locate(topology.edge(row, column)) == (row, column)
    with pytest.raises(KeyError, match="m0->m0"):
        topology.locate(EdgeId.parse("m0->m0"))


@pytest.mark.parametrize(
    "sources, targets, match",
    [
        (["input", "what"], ["m0", "logits"], "what"),
        (["input", "m0", "m0"], ["m0", "logits"], "m0 is named twice"),
        (["input"], ["m0", "logits"], "m0"),
        (["input", "a0.h0", "a0.h1", "a0.h2"], ["a0.h0<k>", "a0.h1<k>", "logits"], "3 heads, 2 slots"),
        (["input", "a0.h0@3"], ["a0.h0@4<k>", "logits"], "cannot be told"),
    ],
)
def test_names_that_make_no_graph(sources: list[str], targets: list[str], match: str) -> None:
    possible = np.ones((len(sources), len(targets)), dtype=bool)
    with pytest.raises(ValueError, match=match):
        topology_from_names(sources, targets, possible)


def test_names_and_array_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        topology_from_names(["input"], ["logits"], np.ones((2, 2), dtype=bool))


def test_heads_must_share_evenly() -> None:
    with pytest.raises(ValueError, match="3 query heads"):
        transformer_topology(1, 3, 2)


def test_a_circuit_keeps_possible_edges_only(topology: Topology) -> None:
    with pytest.raises(ValueError, match="only edges"):
        Circuit(topology, np.ones_like(topology.possible))

"""Circuits of nodes: edges among the best nodes, whatever the topology."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.node_scores import NodeScores, edge_scores, select_nodes
from graphs.prune import rank_top, select_top
from graphs.topology import Topology, transformer_topology

SHAPES = {
    "plain": transformer_topology(3, 2),
    "grouped": transformer_topology(2, 4, 2),
    "parallel": transformer_topology(2, 3, parallel=True),
    "features": transformer_topology(2, 2, features={1: (3, 7)}),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def scores_of(topology: Topology, seed: int = 0) -> NodeScores:
    values = np.random.default_rng(seed).standard_normal(len(topology.sources)).astype(np.float32)
    return NodeScores(topology, values, "test")


def chosen(scores: NodeScores, count: int) -> set[int]:
    """`input` and the best other nodes, by sorting."""
    return {0, *sorted(range(1, len(scores.values)), key=lambda row: -abs(scores.values[row]))[:count]}


@every_shape
def test_a_circuit_of_nodes_holds_all_edges_among_them(shape: str) -> None:
    topology = SHAPES[shape]
    scores = scores_of(topology)
    for count in range(len(topology.sources)):
        nodes = chosen(scores, count)
        kept = select_nodes(scores, count).kept
        for row, column in np.argwhere(topology.possible):
            fed = topology.feeds[column]
            assert kept[row, column] == (row in nodes and (not fed or bool(nodes & set(fed))))


@every_shape
def test_the_best_edges_are_those_among_the_best_nodes(shape: str) -> None:
    topology = SHAPES[shape]
    scores = scores_of(topology, seed=1)
    edges = edge_scores(scores)
    assert edges.method == "test"
    for count in range(len(topology.sources)):
        whole = select_nodes(scores, count)
        assert np.array_equal(select_top(edges, whole.edge_count).kept, whole.kept)
    strengths = np.abs(edges.values.ravel()[rank_top(edges)])
    assert (np.diff(strengths) <= 0).all()


def test_the_sign_is_that_of_the_weaker_end() -> None:
    topology = transformer_topology(1, 1)
    values = edge_scores(NodeScores(topology, np.array([9.0, -2.0, 1.0], np.float32), "test")).values
    names = {str(slot): column for column, slot in enumerate(topology.targets)}
    assert values[0, names["a0.h0<q>"]] == -2  # input counts as the strongest node
    assert values[1, names["m0"]] == 1
    assert values[1, names["logits"]] == -2
    assert values[0, names["logits"]] == np.nextafter(np.float32(9), np.float32(10))


def test_bad_scores_and_counts_are_refused() -> None:
    topology = transformer_topology(1, 2)
    with pytest.raises(ValueError, match="NaN"):
        NodeScores(topology, np.full(4, np.nan, np.float32), "test")
    with pytest.raises(ValueError, match=r"3 nodes.*4"):
        NodeScores(topology, np.zeros(3, np.float32), "test")
    with pytest.raises(ValueError, match="the graph has 3 besides"):
        select_nodes(scores_of(topology), 4)


def test_the_strongest_parts_are_named() -> None:
    topology = transformer_topology(2, 1)
    slots = np.full(len(topology.targets), np.nan, np.float32)
    slots[[0, 1, 2, 4, 5, 6]] = [0.1, -3, 0.2, 0, 0, 0.5]
    neurons = np.array([[0.3, -1], [2, 0]], np.float32)
    scores = NodeScores(topology, np.zeros(5, np.float32), "test", slots=slots, neurons=neurons)
    parts = scores.strongest_parts(3)
    assert parts == [("a0.h0<k>", -3.0), ("m1.n0", 2.0), ("m0.n1", -1.0)]

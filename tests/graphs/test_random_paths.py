"""Random circuits of whole paths: no dead ends, no fewer edges than asked for, every edge possible to draw."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from graphs.node import NodeId
from graphs.prune import drop_dead_ends, full_circuit, live_places, random_circuit
from graphs.random_paths import inflated, path_through, random_path_circuit
from graphs.topology import Topology, transformer_topology


def test_circuits_have_no_dead_ends_and_enough_edges(topology: Topology) -> None:
    rng = np.random.default_rng(0)
    for edges in (0, 1, 7, topology.edge_count // 2, topology.edge_count):
        circuit = random_path_circuit(topology, edges, rng)
        assert np.array_equal(drop_dead_ends(circuit).kept, circuit.kept)
        assert edges <= circuit.edge_count <= edges + 3 * len(topology.sources)
    with pytest.raises(ValueError, match="the graph has"):
        random_path_circuit(topology, topology.edge_count + 1, rng)


def test_seeds_decide(topology: Topology) -> None:
    one, same, other = (random_path_circuit(topology, 9, np.random.default_rng(seed)).kept for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_path_is_connected_and_goes_through_its_edge(topology: Topology) -> None:
    rng = np.random.default_rng(1)
    for row, column in np.argwhere(topology.possible).tolist():
        path = path_through(topology, topology.possible, row, column, rng)
        assert (row, column) in path
        steps = sorted(path)
        assert all(topology.possible[edge] for edge in path)
        assert not topology.slots_of[steps[0][0]]
        assert not topology.feeds[max(column for _, column in path)]
        for (_, slot), (source, _) in pairwise(steps):
            assert source in topology.feeds[slot]


def test_every_edge_is_drawn_by_some_path(topology: Topology) -> None:
    rng = np.random.default_rng(2)
    seen = np.zeros_like(topology.possible)
    for _ in range(60):
        seen |= random_path_circuit(topology, topology.edge_count // 5, rng).kept
    assert np.array_equal(seen, topology.possible)


def test_inflated_circuits_have_one_path_more_and_one_of_its_edges_less(topology: Topology) -> None:
    rng = np.random.default_rng(3)
    circuit = random_path_circuit(topology, 8, rng)
    for _ in range(20):
        pair = inflated(circuit, rng)
        assert pair is not None
        larger, smaller = pair
        assert (larger.kept & circuit.kept).sum() == circuit.edge_count < larger.edge_count
        assert np.array_equal(drop_dead_ends(larger).kept, larger.kept)
        (lost,) = np.argwhere(larger.kept & ~smaller.kept)
        assert not circuit.kept[tuple(lost)]
        assert smaller.edge_count == larger.edge_count - 1
    assert inflated(full_circuit(topology), rng) is None


def test_live_places_are_where_one_more_edge_lives(topology: Topology) -> None:
    rng = np.random.default_rng(4)
    circuit = random_circuit(topology, topology.edge_count // 6, rng)
    live = live_places(circuit)
    for row, column in np.argwhere(topology.possible):
        kept = circuit.kept.copy()
        kept[row, column] = True
        grown = drop_dead_ends(type(circuit)(topology, kept))
        if live[row, column]:
            assert grown.kept[row, column]


def test_edges_that_lie_on_no_path_are_never_drawn() -> None:
    """In a graph where nobody reads one of the heads (as in graphs with spans), what that head reads is not drawn."""
    whole = transformer_topology(2, 2)
    possible = whole.possible.copy()
    possible[whole.source_index[NodeId("head", 1, 0)]] = False
    topology = replace(whole, possible=possible)
    live = live_places(full_circuit(topology))
    assert live.sum() == topology.edge_count - 3 * 4  # its q, k and v slots, each read four sources
    rng = np.random.default_rng(5)
    circuit = random_path_circuit(topology, topology.edge_count, rng)
    assert np.array_equal(circuit.kept, live)
    assert inflated(circuit, rng) is None
    pair = inflated(random_path_circuit(topology, 9, rng), rng)
    assert pair is not None
    assert not (pair[0].kept & ~live).any()

"""Graphs with features and error nodes: which edges there are, what survives files and pictures, and the errors' share."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.error_share import error_share, without_errors
from graphs.exporters import EXPORTERS
from graphs.exporters.circuit_json import export_json, read_circuit
from graphs.node import NodeId, Slot
from graphs.prune import drop_dead_ends, full_circuit, select_top
from graphs.scores import EdgeScores
from graphs.topology import Topology, topology_from_names, transformer_topology, without_heads
from graphs.view import CircuitView, percent

FEATURES = {0: (3, 11), 2: (0, 4, 25)}


def graph(parallel: bool = False, heads: bool = True) -> Topology:
    whole = transformer_topology(3, 4, 2, parallel, FEATURES)
    return whole if heads else without_heads(whole)


def scored(topology: Topology, seed: int = 0) -> EdgeScores:
    values = np.random.default_rng(seed).standard_normal(topology.possible.shape).astype(np.float32)
    return EdgeScores(topology, np.where(topology.possible, values, np.float32(np.nan)), "random")


@pytest.mark.parametrize("parallel", [False, True])
def test_features_stand_where_the_mlp_stood(parallel: bool) -> None:
    topology, plain = graph(parallel), transformer_topology(3, 4, 2, parallel)
    names = [str(node) for node in topology.sources if node.kind != "head"]
    assert names == ["input", "f0.3", "f0.11", "e0", "m1", "f2.0", "f2.4", "f2.25", "e2"]
    for node in topology.sources:
        if node.kind not in ("feature", "error"):
            continue
        # A node of a layer reads and is read by what its MLP reads and is read by, and by no other node of the layer.
        mlp, slot = NodeId("mlp", node.layer), Slot(node)
        assert topology.feeds[topology.target_index[slot]] == (topology.source_index[node],)
        for source in topology.sources:
            twin = NodeId("mlp", source.layer) if source.kind in ("feature", "error") else source
            allowed = plain.possible[plain.source_index[twin], plain.target_index[Slot(mlp)]]
            assert topology.possible[topology.source_index[source], topology.target_index[slot]] == allowed
        for target in plain.targets:
            if target in topology.target_index:
                allowed = plain.possible[plain.source_index[mlp], plain.target_index[target]]
                assert topology.possible[topology.source_index[node], topology.target_index[target]] == allowed


@pytest.mark.parametrize("parallel", [False, True])
def test_without_heads_the_other_edges_stay(parallel: bool) -> None:
    whole, rest = graph(parallel), graph(parallel, heads=False)
    kinds = ("input", "feature", "error", "mlp", "logits")
    edges = {str(whole.edge(*place)) for place in np.argwhere(whole.possible).tolist()}
    expected = {name for name in edges if not re.search(r"a\d", name)}
    assert {str(rest.edge(*place)) for place in np.argwhere(rest.possible).tolist()} == expected
    assert {node.kind for node in rest.sources} | {slot.node.kind for slot in rest.targets} == set(kinds)
    assert [tuple(rest.sources[i] for i in fed) for fed in rest.feeds] == [
        tuple(whole.sources[i] for i in whole.feeds[whole.target_index[slot]]) for slot in rest.targets
    ]


@pytest.mark.parametrize("heads", [True, False])
def test_files_give_the_same_graph_and_circuit(heads: bool) -> None:
    topology = graph(heads=heads)
    circuit = drop_dead_ends(select_top(scored(topology), 30))
    again = read_circuit(export_json(CircuitView(circuit)))
    assert again.topology.same_as(topology)
    np.testing.assert_array_equal(again.kept, circuit.kept)
    named = topology_from_names(topology.source_names, topology.target_names, topology.possible)
    assert named.same_as(topology)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("heads", [True, False])
def test_pictures_show_every_feature_and_error(heads: bool, parallel: bool) -> None:
    topology = graph(parallel, heads)
    circuit = drop_dead_ends(select_top(scored(topology), topology.edge_count // 2))
    view = CircuitView(circuit, labels={"f0.3": "<b>hostile</b>"})
    names = {str(topology.sources[row]) for row in np.flatnonzero(circuit.kept.any(1))}
    assert any(name.startswith("f") for name in names)
    picture = ElementTree.fromstring(EXPORTERS["svg"](view))
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {name for name in names if name[0] in "fe"} <= texts
    assert ("query" in texts) == heads
    assert all(f'"{name}" [' in EXPORTERS["dot"](view).decode() for name in names if name[0] in "fe")
    assert "error nodes (e)" in view.summary


def test_the_share_of_errors_is_a_plain_sum() -> None:
    topology = graph()
    circuit = select_top(scored(topology), 50)
    assert circuit.scores is not None
    total = errors = 0.0
    for row, column in np.argwhere(circuit.kept).tolist():
        edge, weight = topology.edge(row, column), abs(float(circuit.scores.values[row, column]))
        total += weight
        if edge.source.kind == "error" or edge.target.kind == "error":
            errors += weight
            assert not without_errors(circuit).kept[row, column]
        else:
            assert without_errors(circuit).kept[row, column]
    assert error_share(circuit) == pytest.approx(errors / total)
    assert 0 < errors < total


def test_the_share_of_errors_at_its_ends() -> None:
    assert error_share(full_circuit(transformer_topology(2, 2))) is None
    topology = graph()
    empty = Circuit(topology, np.zeros_like(topology.possible), scored(topology))
    assert error_share(empty) == 0
    unscored = replace(full_circuit(topology), scores=None)
    rest = int(without_errors(unscored).kept.sum())
    assert error_share(unscored) == pytest.approx(1 - rest / topology.edge_count)
    assert error_share(without_errors(unscored)) == 0


def test_shares_are_never_written_as_powers_of_ten() -> None:
    shares = (0.997, 0.99999, 1.0, 0.994, 0.5, 0.0123)
    assert [percent(share, 1) for share in shares] == ["99.7 %", "100 %", "100 %", "99 %", "50 %", "1.2 %"]

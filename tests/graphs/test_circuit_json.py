"""The circuit file: nothing is lost, and bad files are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.compare import same_circuit
from graphs.exporters.circuit_json import BadCircuitFile, describe_topology, export_json, read_circuit, read_view
from graphs.node import NodeId, Slot
from graphs.prune import full_circuit, random_circuit, select_top
from graphs.scores import EdgeScores
from graphs.topology import Topology, transformer_topology
from graphs.view import CircuitView

Scored = Callable[..., EdgeScores]


def _odd_graph() -> Topology:
    """No plain decoder: features, error and token nodes, with gaps in what is possible."""
    sources = tuple(NodeId.parse(name) for name in ("t5@0", "f0.7@1", "e0@1", "f1.3@2"))
    targets = tuple(Slot.parse(name) for name in ("f0.7@1", "f1.3@2", "logit9"))
    possible = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=bool)
    return Topology(sources, targets, possible, ((1,), (3,), ()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("with_stderr", [False, True])
def test_circuits_read_back_equal(topology: Topology, scored: Scored, dtype: str, with_stderr: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.where(topology.possible, rng.standard_t(1, topology.possible.shape) * 1e-3, np.nan).astype(dtype)
    stderr = np.abs(values) / 3 if with_stderr else None
    scores = EdgeScores(topology, values, "eap-ig", stderr)
    for edges in (0, 1, 13, topology.edge_count):
        circuit = select_top(scores, edges)
        back = read_circuit(export_json(CircuitView(circuit)))
        assert same_circuit(circuit, back) or (edges == 0 and with_stderr)  # no edge, no standard error
        assert back.scores is not None
        assert back.scores.values.dtype == dtype
        assert back.scores.partial == (edges < topology.edge_count)


def test_circuits_without_scores_and_odd_graphs_read_back(topology: Topology) -> None:
    for graph in (topology, _odd_graph()):
        for circuit in (random_circuit(graph, 3, np.random.default_rng(1)), full_circuit(graph)):
            back = read_circuit(export_json(CircuitView(circuit)))
            assert back.scores is None
            assert same_circuit(circuit, back)


def test_plain_decoders_are_described_by_their_shape(topology: Topology) -> None:
    assert set(describe_topology(topology)) == {"layers", "heads", "kv_heads", "parallel"}
    assert set(describe_topology(_odd_graph())) == {"sources", "targets", "possible", "feeds"}


def test_the_view_reads_back(scored: Scored) -> None:
    circuit = select_top(scored(transformer_topology(2, 2)), 5)
    labels = {"m0": '</script> \u202e \ud800 \x00 "q" \\ 日本', "a0.h1": ""}
    view = CircuitView(circuit, "títle \n\t\x1b", labels, {"faithfulness": 0.1 + 0.2, "low": None, "extra": 3.0}, "kl")
    back = read_view(export_json(view))
    assert (back.title, back.labels, back.metric) == (view.title, labels, "kl")
    assert back.evaluation == view.evaluation


def test_edges_are_listed_strongest_first(scored: Scored) -> None:
    data = json.loads(export_json(CircuitView(select_top(scored(transformer_topology(2, 2)), 12))))
    strengths = [abs(entry["score"]) for entry in data["edges"]]
    assert strengths == sorted(strengths, reverse=True)
    assert len(strengths) == 12


def test_numbers_that_json_cannot_hold_are_refused(scored: Scored) -> None:
    topology = transformer_topology(2, 2)
    circuit = select_top(scored(topology), 5)
    with pytest.raises(ValueError, match="infinite"):
        export_json(CircuitView(circuit, evaluation={"cmd": float("nan")}))
    scores = EdgeScores(topology, np.where(topology.possible, np.inf, np.nan).astype(np.float32), "x")
    with pytest.raises(ValueError, match="infinite"):
        export_json(CircuitView(Circuit(topology, circuit.kept, scores)))


def _change(data: dict, path: str, value: object) -> None:
    *way, last = path.split(".")
    for key in way:
        data = data[int(key)] if isinstance(data, list) else data[key]
    data[int(last) if isinstance(data, list) else last] = value


@pytest.mark.parametrize(
    "path, value, match",
    [
        ("format", "other", "'format'"),
        ("version", 99, "'version'"),
        ("edges.0.edge", "m0->m0", "m0->m0"),
        ("edges.0.edge", "nonsense", "nonsense"),
        ("edges.0.edge", 3, "circuit file: "),
        ("edges.0.score", "big", "not a number"),
        ("edges.0.score", None, "not a number"),
        ("edges.0", {}, "edge"),
        ("edges", 3, "circuit file: "),
        ("topology", {}, "sources"),
        ("topology.layers", 10**9, "is not to be read"),
        ("topology.heads", 0, "circuit file: "),
        ("topology.kv_heads", 3, "key/value heads"),
        ("topology.layers", "many", "many"),
        ("topology.parallel", [True], "circuit file: "),
        ("labels", {"m0": 3}, "labels: m0"),
        ("labels", [1], "circuit file: "),
        ("dtype", "object", "floating"),
        ("evaluation", {"cmd": "x"}, "circuit file: "),
        ("title", None, "title"),
    ],
)
def test_bad_files_are_refused_in_one_line(scored: Scored, path: str, value: object, match: str) -> None:
    data = json.loads(export_json(CircuitView(select_top(scored(transformer_topology(2, 2)), 5))))
    _change(data, path, value)
    with pytest.raises(BadCircuitFile, match=match) as caught:
        read_circuit(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "edgewise-circuit"}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadCircuitFile, match="not a circuit file"):
        read_circuit(text)


def test_duplicate_edges_are_refused(scored: Scored) -> None:
    data = json.loads(export_json(CircuitView(select_top(scored(transformer_topology(2, 2)), 5))))
    data["edges"].append(data["edges"][0])
    with pytest.raises(BadCircuitFile, match="listed twice"):
        read_circuit(json.dumps(data))


def test_odd_graph_files_with_misfitting_parts_are_refused() -> None:
    data = json.loads(export_json(CircuitView(full_circuit(_odd_graph()))))
    for path, value in (("topology.feeds", [[1]]), ("topology.feeds.0", [99]), ("topology.possible", [[[0, 1]]] * 9)):
        changed = json.loads(json.dumps(data))
        _change(changed, path, value)
        with pytest.raises(BadCircuitFile):
            read_circuit(json.dumps(changed))


def test_stderr_of_an_edge_is_kept(scored: Scored) -> None:
    topology = transformer_topology(2, 2)
    scores = replace(scored(topology), stderr=np.full(topology.possible.shape, 0.125, np.float32))
    back = read_circuit(export_json(CircuitView(select_top(scores, 4))))
    assert back.scores is not None
    assert back.scores.stderr is not None
    assert back.scores.stderr[back.kept].tolist() == [0.125] * 4


def test_the_stability_of_edges_and_warnings_are_kept(scored: Scored) -> None:
    topology = transformer_topology(2, 2)
    circuit = select_top(scored(topology), 6)
    shares = np.where(circuit.kept, np.random.default_rng(0).random(circuit.kept.shape), np.nan).astype(np.float32)
    circuit = replace(circuit, stability=shares)
    view = CircuitView(circuit, warnings=("too <few> pairs",))
    back = read_view(export_json(view))
    assert same_circuit(circuit, back.circuit)
    assert not same_circuit(circuit, replace(back.circuit, stability=None))
    assert not same_circuit(circuit, replace(circuit, stability=shares / 2))
    assert back.warnings == view.warnings
    data = json.loads(export_json(view))
    del data["edges"][2]["stability"]
    partly = read_circuit(json.dumps(data)).stability
    assert partly is not None
    assert np.isnan(partly[circuit.kept]).sum() == 1

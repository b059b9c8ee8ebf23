"""EAP-IG's graph file (hannamw/EAP-IG, `Graph.to_json`): what the MIB benchmark takes and gives; written and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from graphs.node import NodeId
from graphs.topology import Topology, transformer_topology
from graphs.view import CircuitView, ExporterUnavailable

_LARGEST = 100_000_000
"""Sources times slots: no file may make its reader allocate more."""


class BadEapIgFile(ValueError):
    """A file that is not EAP-IG's; the message names the field or the edge."""


@dataclass(frozen=True, eq=False)
class EapIgGraph:
    """What such a file holds. Arrays are in the topology's order, which is EAP-IG's own (forward and backward index)."""

    topology: Topology
    """A decoder with one k and one v slot per query head."""
    d_model: int | None
    """Width of the residual stream, which EAP-IG wants to know; None where the file does not say."""
    kept: Bool[np.ndarray, "src dst"]
    """`in_graph` of the edges."""
    nodes: Bool[np.ndarray, " src"]
    """`in_graph` of the nodes but for `logits`, which always is."""
    scores: Float[np.ndarray, "src dst"] | None = None
    """Of the edges, NaN where none is possible; None for a file that only says what is in the graph."""
    node_scores: Float[np.ndarray, " src"] | None = None
    """Of the nodes; NaN: not scored."""
    neurons: Bool[np.ndarray, "src d_model"] | None = None
    """Which dimensions of a node's output are in the graph."""
    neuron_scores: Float[np.ndarray, "src d_model"] | None = None
    """Of these dimensions; NaN: not scored."""

    @property
    def cfg(self) -> dict[str, Any]:
        """The field `cfg`: the shape, in TransformerLens' words."""
        layers, heads, parallel = shape_of(self.topology)
        width = {} if self.d_model is None else {"d_model": self.d_model}
        return {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, **width}


def shape_of(topology: Topology) -> tuple[int, int, bool]:
    """(layers, heads, whether attention and MLP are parallel) of a graph that EAP-IG can hold.

    Raises ExporterUnavailable, saying what to do, for features, positions, key/value heads that are shared, and layers
    of different kinds.
    """
    layers = sum(node.kind == "mlp" for node in topology.sources)
    heads = sum(node.kind == "head" and node.layer == 0 for node in topology.sources)
    for parallel in (False, True):
        if layers and heads and transformer_topology(layers, heads, parallel=parallel).same_as(topology):
            return layers, heads, parallel
    shared = any(len(fed) > 1 for fed in topology.feeds)
    way_out = "score it with --kv-heads query" if shared else "score heads and MLPs, without features and positions"
    raise ExporterUnavailable(f"EAP-IG's file has one k and one v slot per query head and MLPs as nodes: {way_out}")


def topology_of(cfg: object) -> tuple[Topology, int | None]:
    """The graph and the width that a file's field `cfg` describes. Raises BadEapIgFile naming the field."""
    if not isinstance(cfg, Mapping):
        raise BadEapIgFile("'cfg' is not an object")
    numbers: dict[str, int] = {}
    for key in ("n_layers", "n_heads"):
        value = cfg.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
            raise BadEapIgFile(f"cfg: {key} is {str(value)[:40]}, not a number of layers or heads")
        numbers[key] = value
    layers, heads = numbers["n_layers"], numbers["n_heads"]
    parallel, width = cfg.get("parallel_attn_mlp", False), cfg.get("d_model")
    if not isinstance(parallel, bool):
        raise BadEapIgFile("cfg: parallel_attn_mlp is neither true nor false")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise BadEapIgFile("cfg: d_model is not a width")
    if (layers * (heads + 1) + 1) * (layers * (3 * heads + 1) + 1) > _LARGEST:
        raise BadEapIgFile(f"cfg: a graph of {layers} layers with {heads} heads each is not to be read")
    return transformer_topology(layers, heads, parallel=parallel), width


def graph_of(view: CircuitView) -> EapIgGraph:
    """A run's scores and circuit. Raises ExporterUnavailable for graphs that EAP-IG does not have."""
    circuit = view.circuit
    shape_of(circuit.topology)
    if view.d_model is None:
        raise ExporterUnavailable("EAP-IG's file needs the model's width, which this run did not note: run it again")
    nodes = np.asarray(circuit.kept.any(1))
    scores = None if circuit.scores is None or circuit.scores.partial else circuit.scores.values
    return EapIgGraph(circuit.topology, view.d_model, circuit.kept, nodes, scores)


def export_eap_ig(view: CircuitView) -> bytes:
    """The exporter: all edges with their scores, and which are in the circuit."""
    return write_eap_ig(graph_of(view))


def write_eap_ig(graph: EapIgGraph) -> bytes:
    """The file as EAP-IG writes it, edges and nodes in its order."""
    topology = graph.topology
    nodes = {name: _node(graph, row) for row, name in enumerate(topology.source_names)}
    nodes["logits"] = {"in_graph": True}
    edges: dict[str, dict[str, Any]] = {}
    for name, row, column in _edges(topology):
        score = {} if graph.scores is None else {"score": graph.scores[row, column].item()}
        edges[name] = score | {"in_graph": bool(graph.kept[row, column])}
    return json.dumps({"cfg": graph.cfg, "nodes": nodes, "edges": edges}).encode("ascii")


def _edges(topology: Topology) -> Iterator[tuple[str, int, int]]:
    """Names, rows and columns in EAP-IG's order: by reading layer and kind, by source, by head, q before k before v."""
    groups: dict[tuple[int | None, str], list[int]] = {}
    for column, slot in enumerate(topology.targets):
        groups.setdefault((slot.node.layer, slot.node.kind), []).append(column)
    for columns in groups.values():
        columns.sort(key=lambda column: topology.targets[column].node.index or 0)  # stable: q, k, v stay in order
        for row in np.flatnonzero(topology.possible[:, columns[0]]).tolist():
            for column in columns:
                yield f"{topology.source_names[row]}->{topology.target_names[column]}", row, column


def _node(graph: EapIgGraph, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {"in_graph": bool(graph.nodes[row])}
    if graph.node_scores is not None:
        found["score"] = graph.node_scores[row].item()
    # EAP-IG keeps the dimensions of all heads of a layer with each of them.
    place = _layer_rows(graph.topology, row)
    if graph.neurons is not None:
        found["neurons"] = graph.neurons[place].tolist()
    if graph.neuron_scores is not None:
        found["neurons_scores"] = graph.neuron_scores[place].tolist()
    return found


def _layer_rows(topology: Topology, row: int) -> int | slice:
    node = topology.sources[row]
    if node.kind != "head":
        return row
    first = topology.source_index[NodeId("head", node.layer, 0)]
    return slice(first, first + sum(one.kind == "head" and one.layer == node.layer for one in topology.sources))


def read_eap_ig(content: str | bytes) -> EapIgGraph:
    """The graph of a JSON file, with or without scores. Raises BadEapIgFile with one line naming the field or edge."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadEapIgFile(f"not JSON ({error})") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("cfg", "nodes", "edges")):
        raise BadEapIgFile("not EAP-IG's: it needs the objects 'cfg', 'nodes' and 'edges'")
    topology, d_model = topology_of(data["cfg"])
    kept, scores = _read_edges(topology, data["edges"])
    nodes = np.zeros(len(topology.sources), dtype=bool)
    for row, name in enumerate(topology.source_names):
        nodes[row] = _flag(data["nodes"].get(name), f"node {name}")
    return EapIgGraph(
        topology,
        d_model,
        kept,
        nodes,
        scores,
        _per_node(topology, data["nodes"], "score", ()),
        _as_flags(_per_node(topology, data["nodes"], "neurons", (d_model,))),
        _per_node(topology, data["nodes"], "neurons_scores", (d_model,)),
    )


def _read_edges(
    topology: Topology, edges: Mapping[str, object]
) -> tuple[Bool[np.ndarray, "src dst"], Float[np.ndarray, "src dst"] | None]:
    kept = np.zeros(topology.possible.shape, dtype=bool)
    scores = np.full(topology.possible.shape, np.nan, dtype=np.float32)
    scored = None
    for name, row, column in _edges(topology):
        record = edges.get(name)
        kept[row, column] = _flag(record, f"edge {name}")
        score = record.get("score") if isinstance(record, dict) else None
        if scored is not None and (score is not None) != scored:
            raise BadEapIgFile(f"edge {name} has {'no' if score is None else 'a'} score, unlike those before it")
        scored = score is not None
        if scored:
            scores[row, column] = _number(score, f"edge {name}: score")
    if len(edges) != topology.edge_count:
        known = {name for name, _, _ in _edges(topology)}
        unknown = next(name for name in edges if name not in known)
        raise BadEapIgFile(f"edge {unknown[:60]!r} is none of the graph that 'cfg' describes")
    return kept, scores if scored else None


def _flag(record: object, place: str) -> bool:
    flag = record.get("in_graph") if isinstance(record, Mapping) else record
    if not isinstance(flag, bool):
        raise BadEapIgFile(f"{place} has no true or false field 'in_graph'")
    return flag


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadEapIgFile(f"{place} is not a number")
    return float(value)


def _per_node(
    topology: Topology, nodes: Mapping[str, Any], field: str, shape: Sequence[int | None]
) -> Float[np.ndarray, "src ..."] | None:
    """A field of every node, NaN where a node lacks it; None where all do."""
    if not any(isinstance(nodes.get(name), Mapping) and field in nodes[name] for name in topology.source_names):
        return None
    if None in shape:
        raise BadEapIgFile(f"'cfg' has no d_model, which the nodes' {field} need")
    found = np.full((len(topology.sources), *shape), np.nan, dtype=np.float32)  # type: ignore[arg-type]
    for row, (name, node) in enumerate(zip(topology.source_names, topology.sources, strict=True)):
        record = nodes[name]
        if not isinstance(record, Mapping) or field not in record:
            continue
        try:
            values = np.array(record[field], dtype=np.float32)
        except (ValueError, TypeError):
            raise BadEapIgFile(f"node {name}: {field} is not made of numbers") from None
        if values.ndim == len(shape) + 1 and node.kind == "head" and (node.index or 0) < len(values):
            values = values[node.index]  # EAP-IG keeps the layer's heads with each of them
        if values.shape != found[row].shape:
            raise BadEapIgFile(f"node {name}: {field} has shape {values.shape}, not {found[row].shape}")
        found[row] = values
    return found


def _as_flags(values: Float[np.ndarray, "src d_model"] | None) -> Bool[np.ndarray, "src d_model"] | None:
    return None if values is None else np.nan_to_num(values, nan=1.0) != 0

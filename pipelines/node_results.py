"""Node scores in a run directory: every number as arrays, the strongest by name, and circuits of nodes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pipelines.settings import ConfigError
from pipelines.store import NODE_ARRAYS, NODES, RunStore

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.node_scores import NodeScores
    from graphs.scores import EdgeScores
    from graphs.topology import Topology
    from pipelines.config import SelectionConfig

_ARRAYS = ("values", "stderr", "slots", "slot_stderr", "neurons", "neuron_stderr")
_LISTED = 200
"""Neurons and vectors that nodes.json names; the arrays hold all."""


def keep_nodes(store: RunStore, scores: EdgeScores | NodeScores) -> EdgeScores:
    """The scores of edges. Of node scores, which are written down, those that rank edges by their weaker end."""
    from graphs.node_scores import NodeScores, edge_scores

    if not isinstance(scores, NodeScores):
        return scores
    arrays = {name: getattr(scores, name) for name in _ARRAYS}
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items() if array is not None}
    metadata = {"sources": json.dumps(list(scores.topology.source_names)), "method": scores.method}
    store.write_bytes(NODE_ARRAYS, save_tensors(tensors, metadata))
    store.write_json(NODES, _table(scores))
    parts = [{"name": name, "score": value} for name, value in scores.strongest_parts(5)]
    store.run["nodes"] = {"top": _ranked(scores)[:5], "parts": parts, **_counts(scores)}
    store.finish("nodes", None)
    return edge_scores(scores)


def _counts(scores: NodeScores) -> dict[str, int]:
    vectors = 0 if scores.slots is None else int(np.isfinite(scores.slots).sum())
    return {
        "count": len(scores.values),
        "vectors": vectors,
        "neurons": 0 if scores.neurons is None else int(scores.neurons.size),
    }


def _ranked(scores: NodeScores) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(scores.values), kind="stable").tolist()
    errors = np.full(len(order), np.nan) if scores.stderr is None else scores.stderr
    return [
        {"name": str(scores.topology.sources[row]), "score": float(scores.values[row]), "stderr": float(errors[row])}
        for row in order
    ]


def _table(scores: NodeScores) -> dict[str, Any]:
    """The content of nodes.json."""
    parts = [{"name": name, "score": value} for name, value in scores.strongest_parts(_LISTED)]
    return {"method": scores.method, **_counts(scores), "nodes": _ranked(scores), "parts": parts}


def read_nodes(store: RunStore, topology: Topology) -> NodeScores:
    """The stored node scores of a run whose graph this is."""
    from graphs.node_scores import NodeScores

    tensors = load_tensors(store.path(NODE_ARRAYS).read_bytes())
    method = store.read_json(NODES)["method"]
    arrays: dict[str, Any] = {name: tensors[name] for name in _ARRAYS if name in tensors}
    return NodeScores(topology, method=method, **arrays)


def select_stored_nodes(store: RunStore, topology: Topology, chosen: SelectionConfig) -> Circuit:
    """The circuit of the best nodes. Raises ConfigError where the run's method has scored none, or too many are wanted."""
    from graphs.node_scores import select_nodes

    assert chosen.nodes is not None
    if not store.finished("nodes"):
        raise ConfigError(
            "selection.nodes needs a method that scores nodes (atp, or atp-star with level = nodes); "
            "give selection.edges or selection.size"
        )
    try:
        return select_nodes(read_nodes(store, topology), chosen.nodes, chosen.by)
    except ValueError as error:
        raise ConfigError(f"selection.nodes: {error}") from None

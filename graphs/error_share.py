"""How much of a feature circuit runs through error nodes, which no feature explains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from graphs.circuit import Circuit
from graphs.topology import Topology


def error_share(circuit: Circuit) -> float | None:
    """Share of the circuit's sum of |score| on edges that begin or end in an error node; of its edges where it has no scores.

    None where the graph has no error nodes, 0 for an empty circuit.
    """
    errors = _at_errors(circuit.topology)
    if not errors.any():
        return None
    weights = circuit.kept.astype(float)
    if circuit.scores is not None:
        weights = np.where(circuit.kept, np.abs(circuit.scores.values.astype(float)), 0.0)
    total = weights.sum()
    return float(weights[errors].sum() / total) if total else 0.0


def without_errors(circuit: Circuit) -> Circuit:
    """The circuit less every edge that begins or ends in an error node: what its features explain alone."""
    return replace(circuit, kept=circuit.kept & ~_at_errors(circuit.topology))


def _at_errors(topology: Topology) -> Bool[np.ndarray, "src dst"]:
    """Edges that begin or end in an error node."""
    sources = np.array([node.kind == "error" for node in topology.sources])
    targets = np.array([slot.node.kind == "error" for slot in topology.targets])
    return (sources[:, None] | targets[None, :]) & topology.possible

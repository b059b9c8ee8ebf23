"""Total effects in an attribution graph: along all paths, every active feature passing on what reaches it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from graphs.attribution import AttributionGraph


def total_effects(graph: AttributionGraph, targets: Int[np.ndarray, " target"]) -> Float[np.ndarray, "target node"]:
    """How much each target's pre-activation (or demeaned logit) grows when a node's value is doubled; minus that if ablated.

    targets: places in `graph.nodes`. Features respond linearly: their gates stay as they are, so that a change of a
    feature's pre-activation is a change of its activation. Errors and constants respond to nothing. Entries that the graph
    does not store are missing from the sum. A target has no effect on itself.
    """
    effects = graph.weights[targets].toarray().astype(np.float64)
    layers = np.array([-1 if node.kind != "feature" else int(node.layer or 0) for node in graph.nodes])
    for layer in sorted(set(layers[layers >= 0].tolist()), reverse=True):
        rows = np.flatnonzero(layers == layer)
        passed = effects[:, rows] / graph.activations[rows]
        # Features of a layer read what is written before its MLP, so their rows only reach to layers below.
        effects += passed @ graph.weights[rows]
    return effects

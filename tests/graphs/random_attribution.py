"""Random attribution graphs, shaped as the engine makes them, and circuit-tracer's formulas on dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from graphs.attribution import CONSTANTS, AttributionGraph
from graphs.node import NodeId


def random_attribution(
    seed: int = 0,
    layers: int = 4,
    width: int = 5,
    features: int = 40,
    density: float = 0.5,
    constants: bool = True,
    targets: str = "logits",
    ties: bool = False,
) -> AttributionGraph:
    """A graph with every kind of node. targets: logits, difference or features."""
    rng = np.random.default_rng(seed)
    found = {(int(rng.integers(layers)), int(rng.integers(1, width)), int(rng.integers(500))) for _ in range(features)}
    nodes = [NodeId("feature", layer, index, position) for layer, position, index in sorted(found)]
    nodes += [NodeId("error", layer, position=at) for layer in range(layers) for at in range(width)]
    token_ids = tuple(rng.integers(0, 90, width).tolist())
    nodes += [NodeId("token", index=number, position=at) for at, number in enumerate(token_ids)]
    if constants:
        nodes += [NodeId("bias", layer, position=at) for layer in range(layers) for at in range(width)]
    logits = [7, 3, 50]
    if targets == "logits":
        nodes += [NodeId("logit", index=number, position=width - 1) for number in logits]
    elif targets == "difference":
        nodes.append(NodeId("difference", index=7, minus=3, position=width - 1))
    matrix = np.zeros((len(nodes), len(nodes)), dtype=np.float32)
    for row, node in enumerate(nodes):
        if node.kind not in ("feature", "logit", "difference"):
            continue
        depth = layers if node.layer is None else node.layer
        for column, source in enumerate(nodes):
            earlier = source.kind in ("token", *CONSTANTS) or (source.layer is not None and source.layer < depth)
            if (
                earlier
                and source.kind not in ("logit", "difference")
                and int(source.position or 0) <= int(node.position or 0)
            ):
                matrix[row, column] = rng.standard_t(3) * (rng.random() < density)
    if ties:
        matrix = np.sign(matrix).astype(np.float32) * 10
    chosen = [i for i, node in enumerate(nodes) if node.kind in ("logit", "difference")] or [
        len(found) - 1,
        len(found) - 4,
    ]
    weights = [0.5, 0.3, 0.1] if targets == "logits" else [1.0] * len(chosen)
    return from_dense(matrix, nodes, chosen, weights, token_ids, rng)


def from_dense(
    matrix: np.ndarray,
    nodes: list[NodeId],
    targets: list[int],
    target_weights: list[float],
    token_ids: tuple[int, ...],
    rng: np.random.Generator,
) -> AttributionGraph:
    """A graph that stores all entries of a matrix."""
    kinds = np.array([node.kind for node in nodes])
    activations = np.where(np.isin(kinds, ("feature", "logit", "difference")), rng.random(len(nodes)) * 3, np.nan)
    facts: dict[str, Any] = {"model": "tiny", "closure": 1e-6, "settings": {"keep": 1.0, "names": ["a", None, True]}}
    return AttributionGraph(
        nodes=tuple(nodes),
        weights=csr_array(matrix),
        absolute=np.abs(matrix[:, ~np.isin(kinds, CONSTANTS)], dtype=np.float64).sum(1),
        rest=np.zeros(len(nodes)),
        activations=activations.astype(np.float32),
        targets=np.array(targets),
        target_weights=np.array(target_weights),
        token_ids=token_ids,
        tokens=tuple(f" w{number}" for number in token_ids),
        texts={7: " seven", 3: " three"},
        facts=facts,
    )


class Dense:
    """circuit-tracer's influence, scores and pruning, written down again on dense float64 matrices."""

    def __init__(self, graph: AttributionGraph) -> None:
        self.graph, self.kinds = graph, graph.kinds
        self.matrix = graph.weights.toarray().astype(np.float64)
        self.matrix[:, np.isin(self.kinds, CONSTANTS)] = 0
        self.weights = np.zeros(len(graph.nodes))
        self.weights[graph.targets] = graph.target_weights

    @staticmethod
    def normal(matrix: np.ndarray) -> np.ndarray:
        return np.abs(matrix) / np.maximum(np.abs(matrix).sum(1, keepdims=True), 1e-10)

    def influence(self, matrix: np.ndarray) -> np.ndarray:
        shares = self.normal(matrix)
        return self.weights @ (np.linalg.inv(np.eye(len(shares)) - shares) - np.eye(len(shares)))

    @staticmethod
    def threshold(scores: np.ndarray, share: float) -> float:
        down = np.sort(scores)[::-1]
        place = int(np.searchsorted(np.cumsum(down) / down.sum(), share - 1e-12))
        return float(down[min(place, len(down) - 1)]) - 1e-13

    def scores(self) -> tuple[float, float]:
        influence, shares = self.influence(self.matrix), self.normal(self.matrix)
        token, error = (influence[self.kinds == kind].sum() for kind in ("token", "error"))
        explained = 1 - shares[:, self.kinds == "error"].sum(1)
        reach = influence + self.weights
        return token / (token + error), (explained * reach).sum() / reach.sum()

    def prune(self, node_threshold: float, edge_threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kept nodes, kept edges, edge scores."""
        influence = self.influence(self.matrix)
        stays = np.isin(self.kinds, ("token", "logit", "difference"))
        stays[self.graph.targets] = True
        nodes = (influence >= self.threshold(influence, node_threshold)) | stays
        nodes &= ~np.isin(self.kinds, CONSTANTS)
        matrix = self.matrix * nodes[:, None] * nodes[None]
        scores = self.normal(matrix) * (self.influence(matrix) + self.weights)[:, None]
        edges = (scores >= self.threshold(scores.ravel(), edge_threshold)) & (scores > 0)
        while True:
            before = nodes.copy()
            nodes &= stays | edges.any(0)
            nodes &= stays | (self.kinds != "feature") | edges.any(1)
            edges &= nodes[:, None] & nodes[None]
            if (before == nodes).all():
                return nodes, edges, scores

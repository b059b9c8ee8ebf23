"""Influence on the targets of an attribution graph, the scores that follow from it, and pruning (conventions, section 6).

Everything is as circuit-tracer computes it, from sparse rows: blocks of rows are read in place, so that besides the graph
only a few numbers per node and the edges that are kept need memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.attribution import CONSTANTS, AttributionGraph
from graphs.node import EdgeId, NodeId
from graphs.pruned import GraphScores, PrunedGraph

_ENTRIES = 2_000_000  # stored entries that are looked at in one go
_SMALLEST = 1e-10  # circuit-tracer divides rows by no less
_ROUNDING = 1e-12  # equal scores stay equal however they were summed


@dataclass(frozen=True, eq=False)
class Influence:
    """What the rows of an attribution graph say of its nodes. Rows are divided by the sum of their absolute values."""

    nodes: Float[np.ndarray, " node"]
    """w A + w A^2 + ...: of each node on the targets, along all paths. Constants have none."""
    from_errors: Float[np.ndarray, " node"]
    """Share of each row that comes from error nodes; 0 for nodes without inputs."""
    stored: Float[np.ndarray, " node"]
    """Share of each row that is stored; 0 for nodes without inputs."""


class Entries(NamedTuple):
    """Stored entries of some rows: places of targets and sources, and weights."""

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


def measure(graph: AttributionGraph) -> Influence:
    """Influence of every node and where rows come from, in one pass over the stored entries, last layer first.

    Raises ValueError where a node has an input that does not lie before it.
    """
    count = len(graph.nodes)
    start, absolute = _start(graph), np.maximum(graph.absolute, _SMALLEST)
    flows, is_error = ~np.isin(graph.kinds, CONSTANTS), graph.kinds == "error"
    total, from_errors, stored = np.zeros(count), np.zeros(count), np.zeros(count)
    for rows, columns, weights in blocks(graph, flows):
        shares = np.abs(weights, dtype=np.float64) / absolute[rows]
        total += np.bincount(columns, shares * (start[rows] + total[rows]), minlength=count)
        stored += np.bincount(rows, shares, minlength=count)
        from_errors += np.bincount(rows, shares * is_error[columns], minlength=count)
    return Influence(total, from_errors, stored)


def graph_scores(graph: AttributionGraph, influence: Influence) -> GraphScores:
    """Replacement and completeness, of what `measure` gave."""
    token = float(influence.nodes[graph.kinds == "token"].sum())
    error = float(influence.nodes[graph.kinds == "error"].sum())
    reach = influence.nodes + _start(graph)
    has_inputs = influence.stored > 0
    strict = (influence.stored - influence.from_errors) * reach
    return GraphScores(
        replacement=_share(token, token + error),
        completeness=_share(float(((1 - influence.from_errors) * reach).sum()), float(reach.sum())),
        completeness_strict=_share(float(strict[has_inputs].sum()), float(reach[has_inputs].sum())),
    )


def prune(
    graph: AttributionGraph,
    node_threshold: float | int = 0.8,
    edge_threshold: float | int = 0.98,
    influence: Influence | None = None,
) -> PrunedGraph:
    """The most influential nodes that hold `node_threshold` of the influence, with tokens and targets, and of the edges
    between them the strongest that hold `edge_threshold` of the edge scores; less dead ends.

    Equal scores are kept or dropped together; a threshold of 1 keeps all that have any. influence: what `measure` gave,
    where it is known. Raises ValueError for a threshold outside of 0 to 1.
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: it is a share, from 0 to 1")
    influence = measure(graph) if influence is None else influence
    stays = np.isin(graph.kinds, ("token", "logit", "difference"))
    stays[graph.targets] = True
    kept = influence.nodes >= _cut(lambda: [influence.nodes], node_threshold)
    kept = (kept | stays) & ~np.isin(graph.kinds, CONSTANTS)
    edges, scores = _kept_edges(graph, kept, edge_threshold)
    alive = _alive(graph, kept, edges, stays)
    chosen = alive[edges.rows] & alive[edges.columns]
    return _pruned(
        graph, influence, alive, Entries(*(part[chosen] for part in edges)), scores[chosen],
        (float(node_threshold), float(edge_threshold)),
    )  # fmt: skip


def _pruned(
    graph: AttributionGraph,
    influence: Influence,
    alive: Bool[np.ndarray, " node"],
    edges: Entries,
    scores: Float[np.ndarray, " edge"],
    thresholds: tuple[float, float],
) -> PrunedGraph:
    """The result, with places counted among the nodes that are left."""
    order = np.lexsort((edges.columns, edges.rows))
    rows, columns, weights = (part[order] for part in edges)
    held = np.bincount(rows, np.abs(weights, dtype=np.float64), minlength=len(alive))
    explained = np.full(len(alive), np.nan)
    np.divide(held, graph.absolute, out=explained, where=graph.absolute > 0)
    place = np.cumsum(alive) - 1
    layers = [node.layer for node in graph.nodes if node.layer is not None]
    return PrunedGraph(
        nodes=tuple(graph.nodes[i] for i in np.flatnonzero(alive).tolist()),
        edges=np.stack([place[columns], place[rows]], axis=1).astype(np.int64),
        weights=weights.astype(np.float32),
        edge_scores=scores[order],
        activations=graph.activations[alive].astype(np.float32),
        influence=influence.nodes[alive],
        cumulative=_cumulative(influence.nodes)[alive],
        explained=explained[alive],
        targets=place[graph.targets].astype(np.int64),
        target_weights=graph.target_weights.astype(np.float64),
        token_ids=graph.token_ids,
        tokens=graph.tokens,
        layers=max(layers, default=-1) + 1,
        texts=dict(graph.texts),
        scores=graph_scores(graph, influence),
        node_threshold=thresholds[0],
        edge_threshold=thresholds[1],
        whole=(len(graph.nodes), int(graph.weights.nnz)),
        facts=dict(graph.facts),
    )


def _start(graph: AttributionGraph) -> Float[np.ndarray, " node"]:
    """w: the weight of every target, 0 elsewhere."""
    start = np.zeros(len(graph.nodes))
    np.add.at(start, graph.targets, graph.target_weights)
    return start


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _depth(node: NodeId) -> int:
    """Where a node with inputs reads the residual stream; -1 for the others."""
    if node.kind in ("logit", "difference"):
        return 1 << 30
    if node.layer is None or node.kind not in ("head", "feature"):
        return -1
    return 2 * node.layer + (node.kind == "feature")


def blocks(graph: AttributionGraph, kept: Bool[np.ndarray, " node"]) -> Iterator[Entries]:
    """The entries between kept nodes: rows of one depth at a time, the deepest first, so many as `_ENTRIES` allows."""
    depth = np.fromiter(map(_depth, graph.nodes), dtype=np.int64, count=len(graph.nodes))
    indptr = graph.weights.indptr
    if indptr[-1] and depth[np.flatnonzero(np.diff(indptr))].min() < 0:
        odd = next(i for i in np.flatnonzero(np.diff(indptr)) if depth[i] < 0)
        raise ValueError(f"{graph.nodes[odd]} has inputs: only features, heads and targets can have some")
    ends = [0, *(np.flatnonzero(np.diff(depth)) + 1).tolist(), len(depth)]
    runs = [(start, stop) for start, stop in pairwise(ends) if stop > start and depth[start] >= 0]
    for first, last in sorted(runs, key=lambda run: -int(depth[run[0]])):
        start = first
        while start < last:
            reach = int(np.searchsorted(indptr, indptr[start] + _ENTRIES, side="right")) - 1
            stop = min(max(reach, start + 1), last)
            yield _entries(graph, start, stop, depth, kept)
            start = stop


def _entries(
    graph: AttributionGraph, start: int, stop: int, depth: Int[np.ndarray, " node"], kept: Bool[np.ndarray, " node"]
) -> Entries:
    """The entries of rows start .. stop, which lie at one depth, between kept nodes."""
    indptr = graph.weights.indptr
    low, high = int(indptr[start]), int(indptr[stop])
    columns, weights = graph.weights.indices[low:high], graph.weights.data[low:high]
    rows = np.repeat(np.arange(start, stop), np.diff(indptr[start : stop + 1]))
    late = depth[columns] >= depth[start]
    if late.any():
        edge = EdgeId(graph.nodes[columns[late][0]], graph.nodes[rows[late][0]])
        raise ValueError(f"{edge}: the source does not lie before the target")
    chosen = kept[rows] & kept[columns]
    return Entries(rows[chosen], columns[chosen], weights[chosen])


def _kept_edges(
    graph: AttributionGraph, kept: Bool[np.ndarray, " node"], threshold: float | int
) -> tuple[Entries, Float[np.ndarray, " edge"]]:
    """The strongest edges between kept nodes, with their scores: share of the target's inputs times its reach."""
    count, start = len(kept), _start(graph)
    sums, total = np.zeros(count), np.zeros(count)
    for rows, columns, weights in blocks(graph, kept):
        sizes = np.abs(weights, dtype=np.float64)
        sums += np.bincount(rows, sizes, minlength=count)  # a row never spans two blocks
        shares = sizes / np.maximum(sums[rows], _SMALLEST)
        total += np.bincount(columns, shares * (start[rows] + total[rows]), minlength=count)
    factor = (start + total) / np.maximum(sums, _SMALLEST)

    def scored() -> Iterator[tuple[Entries, np.ndarray]]:
        for block in blocks(graph, kept):
            yield block, np.abs(block.weights, dtype=np.float64) * factor[block.rows]

    least = _cut(lambda: (scores for _, scores in scored()), threshold)
    found: list[Entries] = []
    found_scores: list[np.ndarray] = []
    for block, scores in scored():
        strong = scores >= least
        found.append(Entries(*(part[strong] for part in block)))
        found_scores.append(scores[strong])
    if not found:
        empty = np.zeros(0, dtype=np.int64)
        return Entries(empty, empty, np.zeros(0, dtype=np.float32)), np.zeros(0)
    return Entries(*(np.concatenate(parts) for parts in zip(*found))), np.concatenate(found_scores)


def _cut(scores: Callable[[], Iterable[Float[np.ndarray, " n"]]], share: float | int) -> float:
    """The least score that is kept: the largest ones whose sum is `share` of all, and their equals. Always positive.

    scores: gives all scores, in pieces, each time it is called. They are counted by their leading bits first, so that
    only those near the cut are ever sorted.
    """
    least = float(np.nextafter(0, 1))
    sums = np.zeros(1 << 19)
    for piece in scores():
        sums += np.bincount(_leading_bits(piece), piece, minlength=len(sums))
    down = np.cumsum(sums[::-1])
    if share >= 1 or down[-1] <= 0:
        return least
    goal = max(share * down[-1] * (1 - _ROUNDING), least)
    place = int(np.searchsorted(down, goal))
    found = len(sums) - 1 - place
    near = np.concatenate([piece[_leading_bits(piece) == found] for piece in scores()])
    near = np.sort(near)[::-1]
    above = down[place] - sums[found]
    at = min(int(np.searchsorted(above + np.cumsum(near), goal)), len(near) - 1)
    return max(float(near[at]) * (1 - _ROUNDING), least)


def _leading_bits(scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Exponent and the first bits of the fraction: 19 bits that order as positive numbers do."""
    return np.ascontiguousarray(scores, dtype=np.float64).view(np.int64) >> 44


def _alive(
    graph: AttributionGraph, kept: Bool[np.ndarray, " node"], edges: Entries, stays: Bool[np.ndarray, " node"]
) -> Bool[np.ndarray, " node"]:
    """Kept nodes without dead ends: features and errors have an edge that leaves them, features one that enters."""
    needs_inputs = np.isin(graph.kinds, ("feature", "head")) & ~stays
    alive, before = kept.copy(), -1
    while before != alive.sum():
        before = alive.sum()
        live = alive[edges.rows] & alive[edges.columns]
        leaves, enters = np.zeros_like(alive), np.zeros_like(alive)
        leaves[edges.columns[live]] = True
        enters[edges.rows[live]] = True
        alive &= stays | (leaves & (enters | ~needs_inputs))
    return alive


def _cumulative(influence: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Share of all influence that a node and those before it hold, from the most influential one down."""
    order = np.argsort(-influence, kind="stable")
    result = np.empty_like(influence)
    result[order] = np.cumsum(influence[order]) / max(influence.sum(), _SMALLEST)
    return result

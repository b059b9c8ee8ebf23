"""Scores and circuits beside others: agreement with a ground truth, overlap, correlation."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from jaxtyping import Bool, Float

from graphs.circuit import Circuit
from graphs.node import EdgeId
from graphs.prune import By
from graphs.scores import EdgeScores
from graphs.topology import Topology

Truth = Set[EdgeId] | Bool[np.ndarray, "src dst"]


def edge_mask(topology: Topology, edges: Set[EdgeId]) -> Bool[np.ndarray, "src dst"]:
    """True at the given edges. Raises ValueError naming the first edge that the graph does not have."""
    mask = np.zeros(topology.possible.shape, dtype=bool)
    for edge in sorted(edges, key=str):
        try:
            mask[topology.locate(edge)] = True
        except KeyError:
            hint = ""
            if edge.port in ("k", "v"):
                hint = " (does it count k and v slots per query head? the graph of --kv-heads query does)"
            raise ValueError(f"{edge} is not an edge of this model's graph{hint}") from None
    return mask


def edge_auroc(scores: EdgeScores, truth: Truth, by: By = "absolute") -> float:
    """The chance that a true edge scores above another one (ties count half), all possible edges being the universe.

    Raises ValueError when no edge or every edge is true (there is nothing to tell apart), or when a true edge is not
    possible.
    """
    topology = scores.topology
    mask = truth if isinstance(truth, np.ndarray) else edge_mask(topology, truth)
    if mask.shape != topology.possible.shape or (mask & ~topology.possible).any():
        raise ValueError("the true edges are not edges of the graph that was scored")
    is_true = mask[topology.possible]
    positives, negatives = int(is_true.sum()), int((~is_true).sum())
    if not positives or not negatives:
        raise ValueError(f"an AUROC needs true and other edges: {positives} of {is_true.size} edges are true")
    values = scores.values[topology.possible]
    ranks = average_ranks(np.abs(values) if by == "absolute" else values)
    return float((ranks[is_true].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Rank of each value from 1 up; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def jaccard(first: Circuit, second: Circuit) -> float:
    """Edges in both circuits over edges in either (intersection over union); 1 for two empty circuits."""
    _same_graph(first.topology, second.topology)
    union = int((first.kept | second.kept).sum())
    return int((first.kept & second.kept).sum()) / union if union else 1.0


def pearson(first: EdgeScores, second: EdgeScores) -> float:
    """Linear correlation of two methods' scores over the possible edges. Raises ValueError where one is constant."""
    return _correlation(*_paired(first, second))


def spearman(first: EdgeScores, second: EdgeScores) -> float:
    """Rank correlation of two methods' scores over the possible edges (ties share ranks)."""
    a, b = _paired(first, second)
    return _correlation(average_ranks(a), average_ranks(b))


def same_circuit(first: Circuit, second: Circuit) -> bool:
    """Whether two circuits have the same graph, the same edges and equal scores, standard errors and stability on these
    edges."""
    if not first.topology.same_as(second.topology) or not np.array_equal(first.kept, second.kept):
        return False
    sure = [np.nan if each.stability is None else each.stability[first.kept] for each in (first, second)]
    if not np.array_equal(*np.broadcast_arrays(*sure), equal_nan=True):
        return False
    a, b = first.scores, second.scores
    if a is None or b is None:
        return a is b
    if (a.method, a.stderr is None) != (b.method, b.stderr is None):
        return False
    if a.stderr is not None and b.stderr is not None and not np.array_equal(a.stderr[first.kept], b.stderr[first.kept]):
        return False
    return np.array_equal(a.values[first.kept], b.values[first.kept])


def _same_graph(first: Topology, second: Topology) -> None:
    if not first.same_as(second):
        raise ValueError("the two are of different graphs: they cannot be compared edge by edge")


def _paired(first: EdgeScores, second: EdgeScores) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
    """Both methods' scores of the possible edges that both have scored, as float64."""
    _same_graph(first.topology, second.topology)
    both = first.topology.possible & ~np.isnan(first.values) & ~np.isnan(second.values)
    return first.values[both].astype(np.float64), second.values[both].astype(np.float64)


def _correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    if not norm > 0:
        raise ValueError("one of the two has the same score everywhere: no correlation")
    return float(a @ b / norm)

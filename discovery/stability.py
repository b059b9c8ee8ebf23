"""How much a selection of edges depends on which pairs were scored, or on a method's seed. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from graphs.circuit import Circuit
from graphs.scores import EdgeScores
from graphs.topology import Topology

_EDGES = 2**16
"""Edges that are looked at in one go: tables of many draws of a large graph are never copied whole."""
Select = Callable[[np.ndarray], Circuit]
"""How a circuit is cut out of a draw's scores: of the possible edges, or of the nodes."""


@dataclass(frozen=True)
class Overlap:
    """Jaccard overlap (edges in both over edges in either) of the selections of every two draws; 1 = always the same."""

    mean: float
    """Over all pairs of draws."""
    low: float
    """2.5th percentile over pairs of draws."""
    high: float
    """97.5th percentile."""
    draws: int
    """Number of selections: resamples or seeds."""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def selections(
    tables: Float[np.ndarray, "draw place"], topology: Topology, select: Select
) -> Bool[np.ndarray, "draw edge"]:
    """Which of the possible edges (in the order of `topology.possible`'s rows) are selected from each draw's scores."""
    return np.stack([select(table).kept[topology.possible] for table in tables])


def edge_table(values: Float[np.ndarray, " edge"], topology: Topology) -> EdgeScores:
    """Scores of the possible edges, as a draw holds them."""
    table = np.full(topology.possible.shape, np.nan, dtype=np.float32)
    table[topology.possible] = values
    return EdgeScores(topology, table, "draw")


def overlap(kept: Bool[np.ndarray, "draw edge"]) -> Overlap:
    """Of every two selections; two empty ones overlap whole. Raises ValueError for fewer than two."""
    draws = len(kept)
    if draws < 2:
        raise ValueError("an overlap needs at least two draws")
    both = np.zeros((draws, draws))
    for start in range(0, kept.shape[1], _EDGES):
        some = kept[:, start : start + _EDGES].astype(np.float32)  # whole numbers below 2^24: exact
        both += some @ some.T
    sizes = kept.sum(1)
    either = sizes[:, None] + sizes[None, :] - both
    shares = np.divide(both, either, out=np.ones_like(both), where=either > 0)[np.triu_indices(draws, 1)]
    low, high = np.percentile(shares, [2.5, 97.5])
    return Overlap(float(shares.mean()), float(low), float(high), draws)


def frequency(kept: Bool[np.ndarray, "draw edge"], topology: Topology) -> Float[np.ndarray, "src dst"]:
    """The share of the draws in which each edge was selected; float32, NaN where no edge is possible."""
    shares = np.full(topology.possible.shape, np.nan, dtype=np.float32)
    shares[topology.possible] = kept.mean(0)
    return shares


def spread(tables: Float[np.ndarray, "draw edge"], topology: Topology) -> Float[np.ndarray, "src dst"]:
    """The standard deviation of each edge's score over draws: over resamples, its bootstrap standard error."""
    deviations = np.full(topology.possible.shape, np.nan, dtype=np.float32)
    found = np.empty(tables.shape[1], dtype=np.float32)
    for start in range(0, len(found), _EDGES):
        found[start : start + _EDGES] = tables[:, start : start + _EDGES].std(0, ddof=1, dtype=np.float64)
    deviations[topology.possible] = found
    return deviations

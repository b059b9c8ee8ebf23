"""Several methods' scores as one, by the mean of their ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from graphs.compare import average_ranks
from graphs.scores import EdgeScores


def mean_rank(scores: Sequence[EdgeScores]) -> EdgeScores:
    """Scores whose size is the mean, over methods, of an edge's rank by |score| (a share: 1 = the strongest of all).

    The sign is that of the sum of the methods' scores, each as a share of its largest. Raises ValueError for scores of
    different graphs, or none.
    """
    if not scores:
        raise ValueError("an ensemble needs at least one method")
    topology = scores[0].topology
    if not all(each.topology.same_as(topology) for each in scores):
        raise ValueError("the methods have scored different graphs")
    possible = topology.possible
    values = np.full(possible.shape, np.nan, dtype=np.float32)
    values[possible] = combined([each.values[possible] for each in scores])
    return EdgeScores(topology, values, "+".join(each.method for each in scores))


def combined(tables: Sequence[Float[np.ndarray, " edge"]]) -> Float[np.ndarray, " edge"]:
    """The same for plain rows of scores."""
    ranks = np.mean([average_ranks(np.abs(table)) / len(table) for table in tables], axis=0)
    signs = np.sum([table / max(float(np.abs(table).max(initial=0)), 1e-30) for table in tables], axis=0)
    return (np.where(signs < 0, -1.0, 1.0) * ranks).astype(np.float32)

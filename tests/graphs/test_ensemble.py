"""Mean ranks of several methods' scores, against the plain definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import rankdata

from graphs.ensemble import mean_rank
from graphs.prune import select_top
from graphs.scores import EdgeScores
from graphs.topology import Topology, transformer_topology

Scored = Callable[..., EdgeScores]


def test_the_mean_of_the_ranks_orders_edges(topology: Topology, scored: Scored) -> None:
    parts = [scored(topology, seed) for seed in (0, 1, 2)]
    found = mean_rank(parts)
    ranks = np.mean([rankdata(np.abs(each.values[topology.possible])) for each in parts], axis=0)
    np.testing.assert_allclose(np.abs(found.values[topology.possible]), ranks / topology.edge_count, rtol=1e-6)
    assert found.method == "test+test+test"


def test_one_method_alone_keeps_its_order_and_signs(topology: Topology, scored: Scored) -> None:
    scores = scored(topology, 3, ties=False)
    found = mean_rank([scores])
    assert np.array_equal(select_top(found, 7).kept, select_top(scores, 7).kept)
    told = topology.possible & (scores.values != 0)
    assert np.array_equal(np.sign(found.values[told]), np.sign(scores.values[told]))


def test_the_scale_of_a_method_does_not_matter(topology: Topology, scored: Scored) -> None:
    one, other = scored(topology, 4), scored(topology, 5)
    larger = EdgeScores(topology, other.values * 1000, "test")
    np.testing.assert_allclose(
        mean_rank([one, larger]).values[topology.possible], mean_rank([one, other]).values[topology.possible]
    )


def test_different_graphs_and_no_methods_are_refused(scored: Scored) -> None:
    with pytest.raises(ValueError, match="different graphs"):
        mean_rank([scored(transformer_topology(2, 2)), scored(transformer_topology(2, 3))])
    with pytest.raises(ValueError, match="at least one"):
        mean_rank([])

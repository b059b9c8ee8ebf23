"""Influence, scores and pruning of attribution graphs, against the published formulas on dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from graphs import influence as module
from graphs.attribution import AttributionGraph
from graphs.influence import graph_scores, measure, prune
from graphs.node import NodeId
from tests.graphs.random_attribution import Dense, from_dense, random_attribution


def _twelve() -> AttributionGraph:
    """The 12 x 12 graph of circuit-tracer's tests: five features, two layers, two tokens, one logit."""
    matrix = np.zeros((12, 12), dtype=np.float32)
    for row, columns in {11: (1, 3, 6, 8), 3: (0, 1, 6), 1: (9, 10), 0: (9,)}.items():
        matrix[row, list(columns)] = 10
    nodes = [NodeId("feature", layer, index, 1) for layer, index in ((0, 0), (0, 1), (0, 2), (1, 3), (1, 4))]
    nodes += [NodeId("error", layer, position=at) for layer in range(2) for at in range(2)]
    nodes += [NodeId("token", index=at, position=at) for at in range(2)] + [NodeId("logit", index=0, position=1)]
    return from_dense(matrix, nodes, [11], [1.0], (0, 1), np.random.default_rng(0))


def test_a_graph_of_twelve_nodes_as_published() -> None:
    graph = _twelve()
    expected = [1 / 12, 1 / 3, 0, 1 / 4, 0, 0, 1 / 3, 0, 1 / 4, 1 / 4, 1 / 6, 0]
    np.testing.assert_allclose(measure(graph).nodes, expected, atol=1e-12)
    pruned = prune(graph)
    scores = dict(zip(pruned.edge_names, pruned.edge_scores.tolist()))
    place = {str(node): i for i, node in enumerate(graph.nodes)}
    by_number = {tuple(place[end] for end in name.split("->")): score for name, score in scores.items()}
    assert by_number == pytest.approx(
        {**{(i, 11): 1 / 4 for i in (1, 3, 6, 8)}, (1, 3): 1 / 8, (6, 3): 1 / 8, (9, 1): 3 / 16, (10, 1): 3 / 16}
    )


@pytest.mark.parametrize("targets", ["logits", "difference", "features"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_dense_formulas(seed: int, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 37)  # several blocks, rows that are longer than a block
    graph = random_attribution(seed, targets=targets, ties=seed == 2)
    dense, seen = Dense(graph), measure(graph)
    np.testing.assert_allclose(seen.nodes, dense.influence(dense.matrix), atol=1e-12)
    scores = graph_scores(graph, seen)
    assert (scores.replacement, scores.completeness) == pytest.approx(dense.scores())
    for node_threshold, edge_threshold in ((0.8, 0.98), (0.3, 0.5), (1.0, 1.0), (0.0, 0.98), (0.95, 0.0)):
        pruned = prune(graph, node_threshold, edge_threshold, seen)
        nodes, edges, edge_scores = dense.prune(node_threshold, edge_threshold)
        assert [graph.index[node] for node in pruned.nodes] == np.flatnonzero(nodes).tolist()
        rows, columns = np.nonzero(edges)
        places = np.cumsum(nodes) - 1
        assert pruned.edges.tolist() == np.stack([places[columns], places[rows]], 1).tolist()
        np.testing.assert_array_equal(pruned.weights, dense.matrix[rows, columns].astype(np.float32))
        np.testing.assert_allclose(pruned.edge_scores, edge_scores[rows, columns], rtol=1e-9)


def test_strict_completeness_counts_nodes_with_inputs_and_what_is_stored() -> None:
    graph = random_attribution(1)
    dense, scores = Dense(graph), graph_scores(graph, measure(graph))
    shares = dense.normal(dense.matrix)
    reach = dense.influence(dense.matrix) + dense.weights
    has_inputs = shares.sum(1) > 0
    explained = 1 - shares[:, graph.kinds == "error"].sum(1)
    assert scores.completeness_strict == pytest.approx((explained * reach)[has_inputs].sum() / reach[has_inputs].sum())
    assert scores.completeness_strict < scores.completeness
    # Leaving small entries out can only lower it.
    data = np.where(np.abs(graph.weights.data) < 0.3, 0, graph.weights.data)
    stored = csr_array((data, graph.weights.indices, graph.weights.indptr), shape=graph.weights.shape)
    stored.eliminate_zeros()
    less = replace(graph, weights=stored)
    assert graph_scores(less, measure(less)).completeness_strict < scores.completeness_strict


def test_constants_neither_have_influence_nor_change_it() -> None:
    graph = random_attribution(3, constants=True)
    seen = measure(graph)
    assert (seen.nodes[graph.kinds == "bias"] == 0).all()
    weights = graph.weights.tocsc()[:, graph.kinds != "bias"].tocsr()[graph.kinds != "bias"]
    keep = graph.kinds != "bias"
    places = np.cumsum(keep) - 1
    bare = replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.kind != "bias"),
        weights=csr_array(weights),
        absolute=graph.absolute[keep],
        rest=graph.rest[keep],
        activations=graph.activations[keep],
        targets=places[graph.targets],
    )
    np.testing.assert_allclose(measure(bare).nodes, seen.nodes[keep], atol=1e-12)
    one, other = prune(graph), prune(bare)
    assert (one.nodes, one.edge_names) == (other.nodes, other.edge_names)


def test_cumulative_influence_falls_with_rank() -> None:
    pruned = prune(random_attribution(4), 1.0, 1.0)
    order = np.argsort(-pruned.influence, kind="stable")
    assert (np.diff(pruned.cumulative[order]) >= 0).all()
    assert pruned.cumulative.max() <= 1 + 1e-12
    assert pruned.influence[order[0]] / pruned.cumulative[order[0]] == pytest.approx(
        measure(random_attribution(4)).nodes.sum()
    )


def test_explained_is_the_share_of_inputs_that_kept_edges_hold() -> None:
    graph = random_attribution(5)
    everything = prune(graph, 1.0, 1.0)
    assert prune(graph, 0.5, 0.9).edges.shape < everything.edges.shape
    for pruned in (everything, prune(graph, 0.5, 0.9)):
        for place, node in enumerate(pruned.nodes):
            row = graph.absolute[graph.index[node]]
            held = np.abs(pruned.weights[pruned.edges[:, 1] == place], dtype=np.float64).sum()
            if row:
                assert pruned.explained[place] == pytest.approx(held / row)
            else:
                assert np.isnan(pruned.explained[place])


def test_an_input_that_does_not_lie_before_its_target_is_named() -> None:
    graph = random_attribution(6)
    matrix = graph.weights.toarray()
    matrix[0, 1] = matrix[1, 0] = 1.0
    with pytest.raises(ValueError, match=r"f\d+\.\d+@\d->f\d+\.\d+@\d: the source does not lie before"):
        measure(replace(graph, weights=csr_array(matrix)))
    matrix = graph.weights.toarray()
    error = int(np.flatnonzero(graph.kinds == "error")[0])
    matrix[error, 0] = 1.0
    with pytest.raises(ValueError, match=f"{graph.nodes[error]} has inputs"):
        measure(replace(graph, weights=csr_array(matrix)))


@pytest.mark.parametrize("spread", ["near", "wide", "equal"])
def test_the_cut_is_where_sorting_puts_it(spread: str) -> None:
    rng = np.random.default_rng(0)
    scores = {
        "near": 1 + 0.05 * rng.random(5000),  # all in a few of the bins that are counted
        "wide": np.exp(20 * rng.normal(size=5000)) * (rng.random(5000) > 0.1),
        "equal": rng.integers(0, 4, 5000) / 3,
    }[spread]
    down = np.sort(scores)[::-1]
    shares = np.cumsum(down) / down.sum()
    for share in (0.0, 0.1, 0.5, 0.8, 0.98, 0.9999):
        least = module._cut(lambda: np.array_split(scores, 7), share)
        expected = down[int(np.searchsorted(shares, share))]
        np.testing.assert_array_equal(scores >= least, scores >= expected * (1 - 1e-9))


def test_equal_scores_stay_together_however_they_were_summed() -> None:
    scores = np.array([0.3, 0.1 + 0.2, 0.1])
    assert scores[0] != scores[1]
    elevenths = np.array([5 / 11, 4 / 11, 2 / 11])
    assert np.cumsum(elevenths)[1] < 9 / 11 * np.cumsum(elevenths)[2]  # by rounding alone
    assert (elevenths >= module._cut(lambda: [elevenths], 9 / 11)).sum() == 2
    for order in ([0, 1, 2], [1, 0, 2]):
        assert (scores[order] >= module._cut(lambda order=order: [scores[order]], 0.3)).sum() == 2


def test_a_chain_that_leads_nowhere_is_dropped_whole() -> None:
    nodes = [NodeId("feature", layer, 0, 0) for layer in range(6)]
    nodes += [
        NodeId("error", 0, position=0),
        NodeId("token", index=1, position=0),
        NodeId("logit", index=1, position=0),
    ]
    graph = from_dense(np.zeros((9, 9), dtype=np.float32), nodes, [8], [1.0], (1,), np.random.default_rng(0))
    chain = [(0, 1), (1, 2), (2, 3), (7, 0), (6, 0)]  # ends in feature 3, which nothing reads
    fed = [(4, 5), (5, 8)]  # feature 4 has no inputs
    rows, columns = (np.array([edge[end] for edge in (*chain, *fed)]) for end in (1, 0))
    stays = np.isin(graph.kinds, ("token", "logit"))
    edges = module.Entries(rows, columns, np.ones(len(rows)))
    alive = module._alive(graph, np.ones(9, dtype=bool), edges, stays)
    assert np.flatnonzero(alive).tolist() == [7, 8]
    whole = module.Entries(np.append(rows, 8), np.append(columns, 3), np.ones(len(rows) + 1))
    alive = module._alive(graph, np.ones(9, dtype=bool), whole, stays)
    assert np.flatnonzero(alive).tolist() == [0, 1, 2, 3, 6, 7, 8]


def test_thresholds_are_shares() -> None:
    with pytest.raises(ValueError, match=r"edge_threshold is 1\.5"):
        prune(random_attribution(0), 0.8, 1.5)


def test_a_graph_without_influence_keeps_tokens_and_targets() -> None:
    graph = random_attribution(0)
    empty = replace(
        graph, weights=csr_array(graph.weights.shape, dtype=np.float32), absolute=np.zeros(len(graph.nodes))
    )
    pruned = prune(empty)
    assert {node.kind for node in pruned.nodes} == {"token", "logit"}
    assert len(pruned.edges) == 0
    assert pruned.scores is not None
    assert np.isnan(pruned.scores.replacement)

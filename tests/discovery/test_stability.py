"""How often edges are selected again: against plain loops, and on scores whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from discovery.bootstrap import Resamples
from discovery.methods import METHODS, eap, random
from discovery.stability import edge_table, frequency, overlap, selections, spread
from discovery.statistics import resample_counts
from graphs.circuit import Circuit
from graphs.compare import jaccard
from graphs.prune import select_top
from graphs.scores import EdgeScores
from graphs.topology import transformer_topology
from tests.discovery.method_conformance import split
from tests.discovery.planted import planted, true_circuit, work

MODEL = planted()
WORK = work(MODEL, pairs=24)
TOPOLOGY = transformer_topology(2, 3)
EDGES = TOPOLOGY.edge_count


def best(draw: np.ndarray) -> Circuit:
    """The ten best edges."""
    return select_top(edge_table(draw, TOPOLOGY), 10)


def tables_of(pair_scores: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Mean scores of every resample, as theory has them."""
    return (resample_counts(len(pair_scores), count, seed) @ pair_scores / len(pair_scores)).astype(np.float32)


def test_resampled_scores_are_those_of_the_drawn_pairs_however_they_are_batched() -> None:
    seen: list[torch.Tensor] = []
    resamples = Resamples(MODEL.topology, WORK, 15, seed=3)

    def both(number: int, scores: torch.Tensor) -> None:
        resamples.add(number, scores)
        seen.append(scores)

    eap.score(MODEL, WORK, on_batch=both)
    pairs = torch.cat(seen).double().numpy()[:, MODEL.topology.possible]
    expected = []
    for counts in resample_counts(len(pairs), 15, seed=3):
        expected.append(np.repeat(pairs, counts, axis=0).mean(0))
    found = resamples.tables()
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(pairs).max())

    cut = replace(WORK, batches=tuple(reversed([piece for batch in WORK.batches for piece in split(batch)])))
    again = Resamples(MODEL.topology, cut, 15, seed=3)
    eap.score(MODEL, cut, on_batch=again.add)
    np.testing.assert_allclose(np.asarray(again.tables()), found, atol=1e-5 * np.abs(pairs).max())


def test_a_method_without_scores_of_single_pairs_has_no_resamples() -> None:
    resamples = Resamples(MODEL.topology, WORK, 5, seed=0)
    random.score(MODEL, WORK, on_batch=resamples.add)
    assert resamples.tables() is None


def test_every_method_that_sees_the_model_can_be_resampled() -> None:
    """Or has a seed: otherwise its circuits would have no stability at all."""
    for name, line in METHODS.items():
        assert line.load().Options is not None, name
        options = line.load().Options()
        if not hasattr(options, "seed"):
            resamples = Resamples(MODEL.topology, WORK, 2, seed=0)
            line.load().score(MODEL, WORK, options, resamples.add)
            assert resamples.tables() is not None, name


def test_large_graphs_get_fewer_resamples() -> None:
    large = transformer_topology(24, 40)
    count = 2**28 // (4 * large.edge_count)
    assert 2 < count < 1000
    assert len(Resamples(large, WORK, 1000, seed=0)._weights) == count


def test_selections_and_their_overlap_are_the_plain_loops() -> None:
    rng = np.random.default_rng(0)
    tables = tables_of(rng.normal(size=(30, EDGES)) + 2 * rng.normal(size=EDGES), 12)
    kept = selections(tables, TOPOLOGY, best)
    circuits = []
    for table in tables:
        values = np.full(TOPOLOGY.possible.shape, np.nan, np.float32)
        values[TOPOLOGY.possible] = table
        circuits.append(select_top(EdgeScores(TOPOLOGY, values, "test"), 10))
    assert all(np.array_equal(row, circuit.kept[TOPOLOGY.possible]) for row, circuit in zip(kept, circuits))
    shares = [jaccard(one, other) for one, other in combinations(circuits, 2)]
    found = overlap(kept)
    assert found.mean == pytest.approx(np.mean(shares))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])))
    assert found.draws == 12
    often = frequency(kept, TOPOLOGY)
    expected = np.mean([circuit.kept for circuit in circuits], axis=0)
    np.testing.assert_allclose(often[TOPOLOGY.possible], expected[TOPOLOGY.possible], rtol=1e-6)
    assert np.isnan(often[~TOPOLOGY.possible]).all()


def test_examples_that_agree_always_give_the_same_edges() -> None:
    one = np.random.default_rng(0).normal(size=(1, EDGES))
    kept = selections(tables_of(np.repeat(one, 30, axis=0), 20), TOPOLOGY, best)
    assert overlap(kept).mean == overlap(kept).low == 1
    assert set(np.unique(frequency(kept, TOPOLOGY)[TOPOLOGY.possible])) == {0, 1}
    nothing = np.zeros((3, EDGES), dtype=bool)
    assert overlap(nothing).mean == 1


def test_agreement_falls_with_noise_and_rises_with_examples() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=EDGES)

    def agreement(noise: float, pairs: int) -> float:
        scores = signal + noise * rng.normal(size=(pairs, EDGES))
        return overlap(selections(tables_of(scores, 12), TOPOLOGY, best)).mean

    assert agreement(0.1, 40) > agreement(5, 40) + 0.2
    assert agreement(5, 2000) > agreement(5, 40) + 0.2


def test_true_edges_are_selected_again_and_edges_of_noise_are_not() -> None:
    rng = np.random.default_rng(1)
    true = np.zeros(EDGES, dtype=bool)
    true[rng.choice(EDGES, 6, replace=False)] = True
    scores = 3.0 * true + rng.normal(size=(50, EDGES))
    often = selections(tables_of(scores, 100), TOPOLOGY, best).mean(0)  # ten edges: four of them by chance
    assert often[true].min() == 1
    assert often[~true].max() < 0.95
    assert often.sum() == pytest.approx(10)


def test_the_spread_over_resamples_is_the_standard_error() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(60, EDGES))
    found = spread(tables_of(scores, 2000), TOPOLOGY)[TOPOLOGY.possible]
    np.testing.assert_allclose(found, scores.std(0) / np.sqrt(60), rtol=0.12)


def test_the_planted_circuit_is_found_again() -> None:
    true = true_circuit(MODEL)
    resamples = Resamples(MODEL.topology, WORK, 40, seed=0)
    eap.score(MODEL, WORK, on_batch=resamples.add)
    tables = resamples.tables()
    assert tables is not None
    kept = selections(
        tables, MODEL.topology, lambda draw: select_top(edge_table(draw, MODEL.topology), true.edge_count)
    )
    often = frequency(kept, MODEL.topology)
    assert np.nanmin(often[true.kept]) > 0.9


def test_an_overlap_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="two draws"):
        overlap(np.zeros((1, EDGES), dtype=bool))

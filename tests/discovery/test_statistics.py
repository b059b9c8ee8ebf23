"""Intervals, stability and areas, against what theory or a plain loop says."""

from __future__ import annotations

import numpy as np
import pytest

from discovery.statistics import area, faithfulness, faithfulness_interval, resample_counts
from graphs.prune import SIZES


def test_resamples_draw_as_many_examples_as_there_are() -> None:
    counts = resample_counts(7, 400, seed=0)
    assert counts.shape == (400, 7)
    assert (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.2)
    np.testing.assert_array_equal(counts, resample_counts(7, 400, seed=0))
    assert not np.array_equal(counts, resample_counts(7, 400, seed=1))


def test_faithfulness_is_linear_between_empty_and_full() -> None:
    values = np.array([2.0, 5.0, 8.0, 11.0])
    np.testing.assert_allclose(faithfulness(values, 8.0, 2.0), [0, 0.5, 1, 1.5])


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Full and empty differ by exactly 1, so that faithfulness is a mean of normal numbers: coverage near 95 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        circuit = rng.normal(0.6, 0.2, size=(1, 60))
        low, high = faithfulness_interval(circuit, np.ones(60), np.zeros(60), 400, seed=trial)
        hits += low[0] <= 0.6 <= high[0]
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_draws_the_three_metrics_of_an_example_together() -> None:
    """A circuit that is three quarters of the way on every example is so in every resample: no width at all."""
    rng = np.random.default_rng(0)
    empty, full = rng.normal(size=50), rng.normal(size=50) + 9
    circuit = empty + 0.75 * (full - empty)
    low, high = faithfulness_interval(np.stack([circuit, full, empty]), full, empty, 300, seed=1)
    np.testing.assert_allclose(low, [0.75, 1, 0], atol=1e-12)
    np.testing.assert_allclose(high, [0.75, 1, 0], atol=1e-12)


def test_interval_is_the_plain_loop_over_resamples() -> None:
    rng = np.random.default_rng(2)
    circuit, full, empty = rng.normal(size=(2, 9)) + 1, rng.normal(size=9) + 3, rng.normal(size=9)
    low, high = faithfulness_interval(circuit, full, empty, 150, seed=5, level=0.8)
    for row in range(2):
        ratios = []
        for counts in resample_counts(9, 150, seed=5):
            drawn = np.repeat(np.arange(9), counts)
            gain = (circuit[row] - empty)[drawn].sum()
            ratios.append(gain / (full - empty)[drawn].sum())
        np.testing.assert_allclose([low[row], high[row]], np.percentile(ratios, [10, 90]))


def test_interval_narrows_with_more_examples() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for pairs in (10, 1000):
        circuit = rng.normal(0.5, 0.3, size=(1, pairs))
        low, high = faithfulness_interval(circuit, np.ones(pairs), np.zeros(pairs), 300, seed=0)
        widths.append(float(high[0] - low[0]))
    assert widths[1] < widths[0] / 4


def test_interval_without_any_usable_resample_is_nan() -> None:
    low, high = faithfulness_interval(np.ones((2, 5)), np.full(5, 3.0), np.full(5, 3.0), 50, seed=0)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_interval_of_a_single_example_has_no_width() -> None:
    low, high = faithfulness_interval(np.array([[0.25]]), np.ones(1), np.zeros(1), 50, seed=0)
    assert (low[0], high[0]) == (0.25, 0.25)


def test_areas() -> None:
    assert area([1.0] * 10, SIZES) == pytest.approx(0.999)
    assert area(SIZES, SIZES) == pytest.approx((1 - 0.001**2) / 2)  # f = p: random circuits of a linear model
    assert area([1.0] * 10, SIZES, log=True) == pytest.approx(3)
    assert area(np.log10(SIZES).tolist(), SIZES, log=True) == pytest.approx(-4.5)
    assert area([0.4], [0.5]) == 0
    assert area([0.0, 2.0], [0.25, 0.75]) == pytest.approx(0.5)

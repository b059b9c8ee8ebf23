"""How sure a number is: bootstrap intervals, agreement; and areas under curves. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


def resample_counts(items: int, resamples: int, seed: int) -> Int[np.ndarray, "resample item"]:
    """How often each of `items` examples is drawn in each bootstrap resample (rows sum to `items`)."""
    return np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=resamples)


def faithfulness(
    circuit: Float[np.ndarray, "*mask"], full: float | np.floating, empty: float | np.floating
) -> Float[np.ndarray, "*mask"]:
    """(m(circuit) - m(empty)) / (m(full) - m(empty)), of means over a dataset."""
    return (circuit - empty) / (full - empty)


def faithfulness_interval(
    circuit: Float[np.ndarray, "mask pair"],
    full: Float[np.ndarray, " pair"],
    empty: Float[np.ndarray, " pair"],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Float[np.ndarray, " mask"], Float[np.ndarray, " mask"]]:
    """Bootstrap percentile interval of each circuit's faithfulness over examples: its two ends.

    The three metrics of an example are drawn together. Resamples in which full and empty do not differ say nothing
    and are left out; an end is NaN when none is left. A single example gives an interval of width zero.
    """
    weights = resample_counts(len(full), resamples, seed) / len(full)
    gap = weights @ (full - empty)
    usable = np.abs(gap) > rounding_noise(full, empty)
    if not usable.any():
        nothing = np.full(len(circuit), np.nan)
        return nothing, nothing
    ratios = ((circuit - empty) @ weights[usable].T) / gap[usable]
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios, [tail, 100 - tail], axis=1)
    return low, high


def mean_interval(
    values: Float[np.ndarray, " pair"], resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval of a mean over examples: its two ends; NaN without resamples."""
    if not resamples:
        return float("nan"), float("nan")
    means = resample_counts(len(values), resamples, seed) @ values / len(values)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def rounding_noise(full: Float[np.ndarray, " pair"], empty: Float[np.ndarray, " pair"]) -> float:
    """A difference of means of float32 metrics below this is rounding."""
    return 1e-6 * float(np.abs(np.concatenate([full, empty])).mean()) + 1e-12


def area(values: Sequence[float], sizes: Sequence[float], log: bool = False) -> float:
    """Trapezoid of `values` over `sizes`, or over log10(sizes)."""
    x = np.asarray(sizes, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    x = np.log10(x) if log else x
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with measurements."""

    count: int
    """Number of pairs."""
    signs: float
    """Share with the same sign, of those where neither is 0; NaN where there are none."""
    pearson: float
    """Correlation; NaN for fewer than two different values."""
    spearman: float
    """Correlation of ranks, equal values sharing their mean rank."""


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Sign agreement and correlations of predicted and measured values."""
    from scipy.stats import rankdata

    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    told = (x != 0) & (y != 0)
    signs = float((np.sign(x[told]) == np.sign(y[told])).mean()) if told.any() else float("nan")
    return Agreement(len(x), signs, _correlation(x, y), _correlation(rankdata(x), rankdata(y)))


def _correlation(x: Float[np.ndarray, " pair"], y: Float[np.ndarray, " pair"]) -> float:
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))

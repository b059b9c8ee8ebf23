"""The hypothesis tests of Shi et al. 2024 ("Hypothesis Testing the Circuit Hypothesis in LLMs"), on measured metrics.

Equivalence, independence and minimality ask whether a circuit is ideal: each takes that for granted, and a small
p-value speaks against the circuit. Sufficiency asks whether it is better than random circuits: a small p-value speaks
for it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Name = Literal["equivalence", "independence", "minimality", "sufficiency"]
ALPHA = 0.05
"""Chance of speaking against (or for) a circuit wrongly, over all tests together."""
EPSILON = 0.1
"""Equivalence: how far from one half the share of pairs on which the circuit beats the model may lie."""
QUANTILE = 0.9
"""Minimality and sufficiency: the quantile of the random ones that is to be beaten."""
PERMUTATIONS = 1000
"""Independence: the p-value is at least 1 / (this + 1)."""


@dataclass(frozen=True)
class Verdict:
    """What one test says."""

    name: Name
    """Which test."""
    statistic: float
    """Equivalence: share of the pairs on which the circuit beats the model, ties counting half. Independence: HSIC.
    Minimality: smallest share, over the edges, of random edges that matter less than the edge. Sufficiency: share of the
    random circuits that are worse."""
    p: float
    """The p-value; minimality's is corrected for the number of edges (Holm)."""
    adjusted: float
    """The p-value corrected for the number of tests in the report (Holm)."""
    count: int
    """Pairs, edges tested, or random circuits."""
    superfluous: tuple[str, ...] = ()
    """Minimality: edges that matter less than random ones, at a false discovery rate of ALPHA (Benjamini-Hochberg)."""
    raw_p: float | None = None
    """Independence: the p-value of the metrics themselves, not of their changes, as the paper has it."""

    @property
    def passed(self) -> bool:
        """Whether the test does not speak against the circuit (sufficiency: speaks for it)."""
        return (self.adjusted <= ALPHA) == (self.name == "sufficiency")

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `passed`; fields that the test does not have are left out."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        if self.name != "minimality":
            del fields["superfluous"]
        return {**fields, "passed": self.passed}


def corrected(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The verdicts with their p-values corrected for there being several."""
    adjusted = holm(np.array([verdict.p for verdict in verdicts]))
    return tuple(replace(verdict, adjusted=float(p)) for verdict, p in zip(verdicts, adjusted, strict=True))


def equivalence(
    circuit: Float[np.ndarray, " pair"], full: Float[np.ndarray, " pair"], noise: float = 0.0, epsilon: float = EPSILON
) -> Verdict:
    """Sign test. Null hypothesis: |P(circuit's metric > model's) - 1/2| < epsilon, the circuit does as well as the model.

    The p-value is that of the worst case, a chance of 1/2 + epsilon. noise: differences up to this are ties.
    """
    from scipy.stats import binom

    difference, pairs = circuit - full, len(full)
    share = float(np.where(np.abs(difference) <= noise, 0.5, difference > 0).mean())
    wins = np.arange(pairs + 1)
    extreme = np.abs(wins / pairs - 0.5) >= abs(share - 0.5) - 1e-12
    p = float(binom.pmf(wins[extreme], pairs, 0.5 + epsilon).sum())
    return Verdict("equivalence", share, min(p, 1.0), min(p, 1.0), pairs)


def independence(
    complement: Float[np.ndarray, " pair"],
    full: Float[np.ndarray, " pair"],
    empty: Float[np.ndarray, " pair"],
    noise: float = 0.0,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Verdict:
    """Permutation test of HSIC. Null hypothesis: what the rest of the model does tells nothing of what the model does.

    Both are taken as changes from the metric with every edge ablated (`empty`), because the ablated run itself depends
    on the pair; the paper's own test, of the metrics as they are, is `raw_p`. noise: changes up to this are none.
    """
    statistic, p = _hsic_test(_quiet(complement - empty, noise), _quiet(full - empty, noise), seed, permutations)
    _, raw = _hsic_test(complement, full, seed, permutations)
    return Verdict("independence", statistic, p, p, len(full), raw_p=raw)


def minimality(
    effects: Float[np.ndarray, " edge"],
    reference: Float[np.ndarray, " random"],
    names: Sequence[str],
    quantile: float = QUANTILE,
) -> Verdict:
    """Null hypothesis: knocking an edge out changes the metric more than it does for `quantile` of random edges.

    effects: |change of the mean metric| when each of the circuit's edges is knocked out. reference: the same for random
    edges, each of a random path that was added to the circuit. One binomial test per edge, corrected for their number.
    """
    from scipy.stats import binom

    beaten = (effects[:, None] > reference[None, :]).sum(1)
    p = binom.cdf(beaten, len(reference), quantile)
    least = float(holm(p).min(initial=1.0))
    found = benjamini_hochberg(p) <= ALPHA
    superfluous = tuple(name for name, bad in zip(names, found, strict=True) if bad)
    share = float((beaten / len(reference)).min(initial=1.0))
    return Verdict("minimality", share, least, least, len(effects), superfluous)


def sufficiency(distance: float, random: Float[np.ndarray, " random"], quantile: float = QUANTILE) -> Verdict:
    """Null hypothesis: the circuit is closer to the model than at most `quantile` of random circuits.

    distance, random: |mean metric - the model's| of the circuit and of each random circuit.
    """
    from scipy.stats import binom

    better = int((distance < random).sum())
    p = float(binom.sf(better - 1, len(random), quantile))
    return Verdict("sufficiency", better / len(random), p, p, len(random))


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p-values corrected so that the chance of any false rejection stays below the level (Holm 1979)."""
    order, count = np.argsort(p), len(p)
    steps = np.maximum.accumulate(p[order] * (count - np.arange(count)))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p-values corrected so that the expected share of false rejections stays below the level (1995)."""
    order, count = np.argsort(p), len(p)
    steps = p[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return adjusted


def _quiet(changes: Float[np.ndarray, " pair"], noise: float) -> Float[np.ndarray, " pair"]:
    return np.where(np.abs(changes) <= noise, 0.0, changes)


def _hsic_test(
    x: Float[np.ndarray, " pair"], y: Float[np.ndarray, " pair"], seed: int, permutations: int
) -> tuple[float, float]:
    """HSIC with Gaussian kernels as wide as the median distance (Gretton et al. 2007), and its permutation p-value.

    The kernels are taken apart once (`_factor`), so that a permutation costs the number of pairs, not its square.
    """
    pairs = len(x)
    if pairs < 2 or not np.ptp(x) or not np.ptp(y):
        return 0.0, 1.0
    left, right = (factor - factor.mean(0) for factor in (_factor(x), _factor(y)))
    rng = np.random.default_rng(seed)
    observed = float(np.square(left.T @ right).sum())
    drawn = np.array([np.square(left.T @ right[rng.permutation(pairs)]).sum() for _ in range(permutations)])
    p = (1 + int((drawn >= observed * (1 - 1e-9)).sum())) / (permutations + 1)
    return observed / (pairs - 1) ** 2, p


def _factor(values: Float[np.ndarray, " pair"], tolerance: float = 1e-8) -> Float[np.ndarray, "pair rank"]:
    """A tall matrix F with F F^T = the Gaussian kernel matrix, up to `tolerance` (pivoted incomplete Cholesky)."""
    width = _median_distance(values)
    left = np.ones(len(values))  # of the diagonal
    columns: list[Float[np.ndarray, " pair"]] = []
    while len(columns) < len(values) and left.max() > tolerance:
        pivot = int(left.argmax())
        column = np.exp(-np.square(values - values[pivot]) / (2 * width**2))
        for other in columns:
            column = column - other[pivot] * other
        column = column / np.sqrt(left[pivot])
        columns.append(column)
        left = np.maximum(left - np.square(column), 0)
    return np.stack(columns, axis=1)


def _median_distance(values: Float[np.ndarray, " pair"]) -> float:
    """Of different values: more than half of the pairs may share one. At most 1,000 pairs are looked at."""
    some = values[:: max(1, len(values) // 1000)]
    distances = np.abs(some[:, None] - some[None, :])
    return float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0

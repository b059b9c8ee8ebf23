"""The tests of circuits: right about planted circuits, and wrong no more often than they say where there is nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from discovery.circuit_tests import Sampling, hypothesis_question
from discovery.evaluate import ask, rivals_question
from discovery.hypothesis_tests import (
    Verdict,
    benjamini_hochberg,
    corrected,
    equivalence,
    holm,
    independence,
    minimality,
    sufficiency,
)
from graphs.circuit import Circuit
from graphs.random_paths import random_path_circuit
from tests.discovery.planted import planted, true_circuit, work

FEW = Sampling(rivals=60, random_edges=60)
MODEL = planted()
WORK = work(MODEL)
TRUE = true_circuit(MODEL)


def verdicts(circuit: Circuit, **settings: object) -> dict[str, Verdict]:
    """The tests of a circuit of the planted model, by name."""
    (found,) = ask(MODEL, WORK, [hypothesis_question(circuit, runs=FEW, **settings)])  # type: ignore[arg-type]
    return {verdict.name: verdict for verdict in found}


def test_the_true_circuit_passes_every_test() -> None:
    found = verdicts(TRUE)
    assert {name: verdict.passed for name, verdict in found.items()} == {
        "equivalence": True, "independence": True, "minimality": True, "sufficiency": True,
    }  # fmt: skip
    assert found["minimality"].superfluous == ()
    assert found["minimality"].count == TRUE.edge_count
    assert found["equivalence"].statistic == 0.5  # every pair is a tie


def test_a_random_circuit_fails_what_it_should() -> None:
    found = verdicts(random_path_circuit(MODEL.topology, TRUE.edge_count, np.random.default_rng(4)))
    assert not found["equivalence"].passed
    assert not found["independence"].passed
    assert not found["sufficiency"].passed


def test_edges_that_do_nothing_are_named() -> None:
    """The true circuit with ten edges too many: still equivalent, no longer minimal."""
    rng = np.random.default_rng(0)
    kept = TRUE.kept.copy()
    extra = rng.choice(np.flatnonzero(MODEL.topology.possible & ~kept), 10, replace=False)
    kept.flat[extra] = True
    found = verdicts(replace(TRUE, kept=kept))
    assert found["equivalence"].passed
    assert not found["minimality"].passed
    names = {str(MODEL.topology.edge(*divmod(int(place), kept.shape[1]))) for place in extra}
    assert set(found["minimality"].superfluous) == names


def test_half_of_the_circuit_leaves_something_behind() -> None:
    """Without the strongest edge, the rest of the model still does part of the task."""
    kept = TRUE.kept.copy()
    kept[0, -1] = False
    found = verdicts(replace(TRUE, kept=kept), depth="free")
    assert not found["equivalence"].passed
    assert not found["independence"].passed
    assert set(found) == {"equivalence", "independence", "sufficiency"}


def test_the_free_tests_run_nothing_that_the_comparison_does_not() -> None:
    asked = {circuit.kept.tobytes() for circuit in hypothesis_question(TRUE, "free", 3).circuits}
    compared = {circuit.kept.tobytes() for circuit in rivals_question(TRUE, 100, 3).circuits}
    assert len(asked - compared) == 1  # the complement, which every evaluation runs


def test_large_circuits_are_sampled_and_seeds_decide() -> None:
    few = Sampling(rivals=0, random_edges=5, most_edges=7)
    one, same, other = (hypothesis_question(TRUE, "all", seed, few) for seed in (1, 1, 2))
    assert len(one.circuits) == 2 + 7 + 2 * 5
    keep = [np.stack([circuit.kept for circuit in asked.circuits]) for asked in (one, same, other)]
    assert np.array_equal(keep[0], keep[1])
    assert not np.array_equal(keep[0], keep[2])


def share_rejected(p: list[float]) -> float:
    """At the level of 5 %."""
    return float((np.array(p) <= 0.05).mean())


def test_equivalence_errs_as_often_as_it_says() -> None:
    """The circuit wins on a share of exactly 1/2 + epsilon of the pairs: the edge of the null hypothesis."""
    rng = np.random.default_rng(0)
    full = np.zeros(100)
    p = [equivalence(np.where(rng.random(100) < 0.6, 1.0, -1.0), full).p for _ in range(1500)]
    assert 0.01 < share_rejected(p) <= 0.065
    assert share_rejected([equivalence(np.where(rng.random(100) < 0.9, 1.0, -1.0), full).p for _ in range(20)]) == 1
    assert equivalence(full, full).p == 1
    assert equivalence(full + 1e-9, full, noise=1e-6).p == 1
    assert equivalence(full - 1e-3, full, noise=1e-6).p < 1e-6


def test_equivalence_is_the_plain_binomial_sum() -> None:
    from math import comb

    full = np.zeros(12)
    circuit = np.where(np.arange(12) < 10, 1.0, -1.0)
    extreme = [wins for wins in range(13) if abs(wins - 6) >= 4]
    expected = sum(comb(12, wins) * 0.6**wins * 0.4 ** (12 - wins) for wins in extreme)
    assert equivalence(circuit, full).p == pytest.approx(expected)


@pytest.mark.parametrize("shared", [False, True])
def test_independence_errs_as_often_as_it_says(shared: bool) -> None:
    """Also where the ablated run itself differs between pairs: then the raw metrics depend, and their changes do not."""
    rng = np.random.default_rng(1)
    p, raw = [], []
    for seed in range(200):
        empty = 3 * rng.normal(size=40) if shared else np.zeros(40)
        complement, full = empty + rng.normal(size=40), empty + rng.exponential(size=40)
        found = independence(complement, full, empty, seed=seed, permutations=99)
        p.append(found.p)
        raw.append(found.raw_p or 0.0)
    assert 0.01 <= share_rejected(p) <= 0.1
    assert (share_rejected(raw) > 0.9) == shared


def test_independence_sees_what_correlation_does_not() -> None:
    rng = np.random.default_rng(2)
    full = rng.normal(size=80)
    assert independence(np.square(full), full, np.zeros(80)).p < 0.01
    assert independence(np.zeros(80), full, np.zeros(80)).p == 1
    assert independence(rng.normal(size=80) * 1e-9, full, np.zeros(80), noise=1e-6).p == 1


def test_hsic_is_the_plain_formula() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=25), rng.exponential(size=25)

    def kernel(values: np.ndarray) -> np.ndarray:
        distance = np.abs(values[:, None] - values[None, :])
        return np.exp(-np.square(distance / np.median(distance[distance > 0])) / 2)

    center = np.eye(25) - 1 / 25
    plain = np.trace(center @ kernel(x) @ center @ kernel(y)) / 24**2
    assert independence(y, x, np.zeros(25)).statistic == pytest.approx(plain, rel=1e-5)


def test_minimality_errs_as_often_as_it_says() -> None:
    """Every edge matters more than exactly 90 % of random ones: any of 30 is accused in at most 5 % of the trials."""
    rng = np.random.default_rng(4)
    names = [str(i) for i in range(30)]
    p = [minimality(np.full(30, 0.9), rng.random(100), names).p for _ in range(400)]
    assert share_rejected(p) <= 0.07
    p = [minimality(np.full(1, 0.9), rng.random(100), names[:1]).p for _ in range(1500)]
    assert 0.01 < share_rejected(p) <= 0.07
    found = minimality(np.array([1.0, 0.05, 1.0]), rng.random(100), names[:3])
    assert found.superfluous == ("1",)
    assert not corrected([found])[0].passed


def test_sufficiency_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    p = [sufficiency(0.1, rng.random(100)).p for _ in range(1500)]  # beats 90 %
    assert 0.01 < share_rejected(p) <= 0.07
    assert sufficiency(0.0, rng.random(100)).p < 1e-4
    assert sufficiency(0.5, rng.random(100)).p > 0.99


def test_corrections_are_the_textbooks() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])
    assert len(holm(np.array([]))) == len(benjamini_hochberg(np.array([]))) == 0


def test_verdicts_are_plain_data() -> None:
    for verdict in (*verdicts(TRUE, depth="free").values(), minimality(np.ones(1), np.zeros(40), ["m0->logits"])):
        fields = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        assert {"name", "statistic", "p", "adjusted", "count", "passed"} <= set(fields)
        assert ("superfluous" in fields) == (verdict.name == "minimality")

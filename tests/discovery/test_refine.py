"""Swapping edges by real runs: never worse, never larger, and right where the right circuit is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from discovery.measure import measure
from discovery.methods import eap
from discovery.refine import refine
from graphs.circuit import Circuit
from graphs.prune import drop_dead_ends, random_circuit, select_top
from graphs.scores import EdgeScores
from tests.discovery.planted import planted, true_circuit, work

MODEL = planted(linear=False)
WORK = work(MODEL, pairs=12)
TRUE = true_circuit(MODEL)
SCORES = eap.score(MODEL, WORK)


def faithfulness(circuit: Circuit) -> float:
    """On the pairs that are run."""
    return float(measure(MODEL, WORK, [circuit]).faithfulness()[0])


def misjudged() -> EdgeScores:
    """The scores with the weakest three true edges at zero and three useless edges far up."""
    values = SCORES.values.copy()
    rows, columns = np.nonzero(TRUE.kept)
    weakest = np.argsort(np.abs(values[rows, columns]))[:3]
    values[rows[weakest], columns[weakest]] = 0
    useless = np.flatnonzero(MODEL.topology.possible & ~TRUE.kept)[::7][:3]
    values.flat[useless] = np.nanmax(np.abs(values))
    return replace(SCORES, values=values)


def test_a_misjudged_circuit_is_put_right() -> None:
    scores = misjudged()
    start = select_top(scores, TRUE.edge_count)
    assert abs(1 - faithfulness(start)) > 1e-3
    found = refine(MODEL, WORK, start, scores, 2000)
    assert found.after == pytest.approx(1, abs=1e-3)
    assert found.circuit.edge_count <= TRUE.edge_count
    assert found.runs < 2000  # it ends by itself


@pytest.mark.parametrize("budget", [0, 40, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_never_gets_worse_or_larger_or_dearer(seed: int, budget: int) -> None:
    start = random_circuit(MODEL.topology, 25, np.random.default_rng(seed))
    found = refine(MODEL, WORK, start, SCORES, budget)
    assert found.runs <= max(budget, 1)
    assert found.before == pytest.approx(faithfulness(start), abs=1e-6)
    assert found.after == pytest.approx(faithfulness(found.circuit), abs=1e-6)
    assert abs(1 - found.after) <= abs(1 - found.before)
    assert found.circuit.edge_count <= 25
    assert np.array_equal(drop_dead_ends(found.circuit).kept, found.circuit.kept)
    if budget == 300:
        assert abs(1 - found.after) < 0.5 * abs(1 - found.before)


def test_it_ends_where_no_single_change_helps() -> None:
    """From the true circuit there is nothing to gain."""
    found = refine(MODEL, WORK, TRUE, SCORES, 5000)
    assert np.array_equal(found.circuit.kept, TRUE.kept)
    assert found.after == pytest.approx(1, abs=1e-6)
    assert found.runs < 5000

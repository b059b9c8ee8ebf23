"""The bound on the effects of nodes that a circuit leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.evaluate import ask
from discovery.missed_effects import effect_bounds, missed_question
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.prune import full_circuit
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, logit_difference, token_batch

WORK = Workload(
    (token_batch([4, 5, 3], seed=1), token_batch([2, 4], seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)


def effect_of(model: ResidualModel, row: int) -> float:
    """m(full) - m(all edges of one source dropped)."""
    keep = torch.from_numpy(model.topology.possible.copy())
    total = 0.0
    for batch in WORK.batches:
        full = logit_difference(model.run(batch, keep, WORK.ablation), batch, None)
        dropped = keep.clone()
        dropped[row] = False
        total += float((full - logit_difference(model.run(batch, dropped, WORK.ablation), batch, None)).sum())
    return total / WORK.pair_count


def test_on_a_linear_model_of_one_layer_no_node_left_out_does_more_than_the_bound() -> None:
    """Nodes of one layer do not feed each other: their effects add up, and the bound tightens to the largest one."""
    model = ResidualModel(layers=1, heads=4)
    kept = model.topology.possible.copy()
    outside = [2, 3, 4]
    kept[outside] = False
    circuit = Circuit(model.topology, kept)
    largest = max(abs(effect_of(model, row)) for row in outside)
    bounds = []
    for samples in (20, 400):
        (found,) = ask(model, WORK, [missed_question(circuit, samples, seed=3)])
        assert found.nodes == 3
        assert found.samples == samples
        assert found.bound >= 0.98 * largest
        bounds.append(found.bound)
    assert bounds[1] < bounds[0]
    assert bounds[1] < 1.5 * largest + 0.3 * abs(effect_of(model, 5))
    assert found.share == pytest.approx(found.bound / abs(_gap(model)), rel=1e-4)


def _gap(model: ResidualModel) -> float:
    nothing = torch.zeros(model.topology.possible.shape)
    full = [logit_difference(model.full_logits(batch), batch, None) for batch in WORK.batches]
    empty = [logit_difference(model.run(batch, nothing, WORK.ablation), batch, None) for batch in WORK.batches]
    return float((torch.cat(full) - torch.cat(empty)).mean())


def test_the_bound_holds_as_often_as_it_says_and_finds_the_large_effect() -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.0, 0.02, -0.05, 0.4, 0.0, 0.01])
    held, worst = 0, []
    for _ in range(300):
        members = rng.random((120, 6)) < 0.3
        bounds = effect_bounds(members @ true + 0.1 * rng.standard_normal(120), members, 0.95)
        held += bool(bounds[3] >= 0.4)
        worst.append(int(bounds.argmax()))
        assert bounds.max() < 0.7
    assert held / 300 >= 0.92
    assert set(worst) == {3}


def test_elements_that_are_always_or_never_in_a_subset_are_not_bounded() -> None:
    members = np.array([[True, False, True], [True, False, False]] * 10)
    bounds = effect_bounds(np.arange(20.0), members, 0.95)
    assert np.isinf(bounds[:2]).all()
    assert np.isfinite(bounds[2])


def test_the_whole_model_leaves_nothing_out_and_few_subsets_are_refused() -> None:
    model = ResidualModel()
    (found,) = ask(model, WORK, [missed_question(full_circuit(model.topology))])
    assert (found.nodes, found.bound) == (0, None)
    with pytest.raises(ValueError, match="at least 10"):
        missed_question(full_circuit(model.topology), 5)

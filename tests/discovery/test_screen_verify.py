"""Screening with exact verification: exact where it says so, within its bound elsewhere, and within its budget."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.evaluate import evaluate
from discovery.methods import eap_ig, exact, screen_verify
from discovery.methods.screen_verify import Order
from discovery.workload import Workload
from graphs.scores import EdgeScores
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, token_batch
from tests.discovery.tiny_models import tiny_model

WORK = Workload(
    (token_batch([6, 4, 6], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)
FAMILIES = ("gpt2", "gptj", "llama", "gemma2")


@cache
def case(family: str) -> tuple[ComponentModel, EdgeScores, EdgeScores]:
    """A model, its exact scores and its screen."""
    model = ComponentModel(tiny_model(family))
    return model, exact.score(model, WORK), eap_ig.score(model, WORK)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_exact_where_it_says_so_and_screened_elsewhere(family: str) -> None:
    model, truth, screen = case(family)
    found = screen_verify.score(model, WORK, screen_verify.Options(edges=120))
    assert found.exact is not None and found.bound is not None
    assert 20 < found.exact.sum() <= 120 and found.facts["exact"] == found.exact.sum()
    scale = np.nanmax(np.abs(truth.values))
    rest = model.topology.possible & ~found.exact
    np.testing.assert_allclose(found.values[found.exact], truth.values[found.exact], rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(found.values[rest], screen.values[rest], rtol=0, atol=1e-4 * scale)
    assert (found.bound[found.exact] == 0).all() and (found.bound[rest] > 0).all()
    assert np.isnan(found.bound[~model.topology.possible]).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_bound_holds_for_about_the_share_that_was_asked_for(family: str) -> None:
    model, truth, _ = case(family)
    for confidence in (0.6, 0.9):
        inside, count = 0, 0
        for seed in range(2):
            found = screen_verify.score(model, WORK, screen_verify.Options(edges=60, confidence=confidence, seed=seed))
            assert found.exact is not None and found.bound is not None
            rest = model.topology.possible & ~found.exact
            inside += int((np.abs(truth.values - found.values)[rest] <= found.bound[rest] * (1 + 1e-4)).sum())
            count += int(rest.sum())
        assert confidence - 0.15 <= inside / count <= confidence + 0.15


def test_with_a_budget_for_every_edge_it_is_exact_patching() -> None:
    model, truth, _ = case("llama")
    found = screen_verify.score(model, WORK, screen_verify.Options(edges=model.topology.edge_count, circuit=20))
    assert found.exact is not None
    best = np.argsort(-np.abs(np.nan_to_num(truth.values)).ravel())[:20]
    assert found.facts["uncertain"] == 0 or found.exact.sum() == model.topology.edge_count
    chosen = np.argsort(-np.abs(np.nan_to_num(found.values)).ravel())[:20]
    assert len(set(best) & set(chosen)) >= 18  # bounds hold for 90 % of the edges


def test_a_screen_that_is_right_leaves_nothing_to_decide() -> None:
    """On a linear model attribution is exact patching: residuals are rounding."""
    model = ResidualModel(layers=3, heads=4)
    work = Workload((token_batch([4, 5, 3], seed=1),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    found = screen_verify.score(model, work, screen_verify.Options(edges=100))
    assert found.exact is not None
    assert found.facts["uncertain"] <= 2 and found.facts["exact"] <= 40
    assert found.facts["largest_bound"] <= 1e-4 * np.nanmax(np.abs(found.values))


@pytest.mark.parametrize("options", [{"edges": 1, "seconds": 1.0}, {"edges": 0}, {"confidence": 1.0}, {"circuit": -1}])
def test_options_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="screen-verify"):
        screen_verify.Options(**options)


@pytest.mark.parametrize("order", ["exact", "larger", "screen"])
def test_pairs_are_told_as_edges_are_ranked(order: Order) -> None:
    """The larger of both by absolute value; the scores themselves stay exact where they say so."""
    model, truth, screen = case("llama")
    pieces: list[Tensor] = []
    found = screen_verify.score(
        model, WORK, screen_verify.Options(edges=60, order=order), lambda _, piece: pieces.append(piece)
    )
    assert found.exact is not None and found.facts["order"] == order
    possible = model.topology.possible
    patched = np.where(found.exact, truth.values, screen.values)
    larger = np.where(np.abs(patched) > np.abs(screen.values), patched, screen.values)
    wanted = {"exact": patched, "larger": larger, "screen": screen.values}[order]
    scale = np.nanmax(np.abs(truth.values))
    np.testing.assert_allclose(found.ranking[possible], wanted[possible], rtol=0, atol=1e-4 * scale)
    means = torch.cat(pieces).mean(0).numpy()
    np.testing.assert_allclose(means[possible], wanted[possible], rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(found.values[found.exact], truth.values[found.exact], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_order_is_the_one_with_the_best_circuits(family: str) -> None:
    model, _, _ = case(family)
    orders: tuple[Order, ...] = ("exact", "larger", "screen")
    tried = {order: screen_verify.score(model, WORK, screen_verify.Options(edges=60, order=order)) for order in orders}
    cmd = {
        order: evaluate(model, WORK, scores, bootstrap=0, faithfulness_only=True).cmd for order, scores in tried.items()
    }
    assert len(set(cmd.values())) > 1
    chosen = screen_verify.score(model, WORK, screen_verify.Options(edges=60))
    assert cmd[chosen.facts["order"]] == min(cmd.values())
    np.testing.assert_array_equal(chosen.ranking, tried[chosen.facts["order"]].ranking)


def test_what_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = case("llama")
    known = screen_verify.score(model, WORK, screen_verify.Options(edges=100))
    other = screen_verify.Options(edges=100, seed=1, order=known.facts["order"])
    fresh = screen_verify.score(model, WORK, other)
    measured: list[np.ndarray] = []

    def counted(model: ComponentModel, work: Workload, wanted: np.ndarray, **options: Any) -> EdgeScores:
        measured.append(wanted)
        return exact.edge_effects(model, work, wanted, **options)

    monkeypatch.setattr(screen_verify, "edge_effects", counted)
    again = screen_verify.score(model, WORK, screen_verify.Options(edges=100, seed=1), known=known)
    assert known.exact is not None and again.exact is not None and fresh.exact is not None
    assert not (np.sum(measured, axis=0)[known.exact]).any()
    assert (again.exact & known.exact).any()
    np.testing.assert_array_equal(again.exact, fresh.exact)
    scale = np.nanmax(np.abs(fresh.values))
    np.testing.assert_allclose(again.ranking, fresh.ranking, rtol=0, atol=1e-5 * scale)

"""The methods of the table: on a linear model EAP is exact patching, and every method keeps the conventions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation
from discovery.methods import METHODS, eap, eap_ig, exact, method, random
from discovery.metrics import Metric
from discovery.model import Point
from discovery.workload import Workload
from tests.discovery.method_conformance import LINEAR, QUICK, check_method, check_needs_gradient, close
from tests.discovery.residual_model import (
    FLAT,
    LOGIT_DIFFERENCE,
    STEPS,
    ResidualModel,
    logit_difference,
    token_batch,
)

RULES = ("left", "right", "midpoint", "gauss-legendre")
SHAPES = {
    "plain": {},
    "grouped": {"heads": 4, "kv_heads": 2},
    "parallel": {"parallel": True},
    "one layer, one head": {"layers": 1, "heads": 1},
}


def workload(ablation: Ablation = COUNTERFACTUAL, metric: Metric = LOGIT_DIFFERENCE) -> Workload:
    """Seven pairs in two batches of unequal sizes, prompts of unequal lengths."""
    batches = (token_batch([4, 5, 3, 5], seed=1), token_batch([2, 4, 4], seed=2, first=4))
    return Workload(batches, metric, ablation)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_conforms(name: str, shape: str) -> None:
    check_method(name, ResidualModel(**SHAPES[shape], linear=False), workload())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ablation", [COUNTERFACTUAL, ZERO], ids=lambda ablation: ablation.kind)
@pytest.mark.parametrize("name", LINEAR)
def test_on_a_linear_model_a_gradient_is_exact_patching(name: str, ablation: Ablation, shape: str) -> None:
    model = ResidualModel(**SHAPES[shape])
    truth = exact.score(model, workload(ablation))
    close(truth, METHODS[name].load().score(model, workload(ablation)), 1e-5)


def test_on_a_bent_model_a_gradient_is_not_exact_patching() -> None:
    model = ResidualModel(linear=False)
    truth, estimate = exact.score(model, workload()), eap.score(model, workload())
    assert np.nanmax(np.abs(truth.values - estimate.values)) > 0.01 * np.nanmax(np.abs(truth.values))


def test_exact_is_the_plain_loop_over_edges() -> None:
    model, work = ResidualModel(heads=4, kv_heads=2, linear=False), workload()
    scores = exact.score(model, work)
    topology = model.topology
    pairs = work.pair_count
    for row, column in np.argwhere(topology.possible)[::7]:
        drop = 0.0
        for batch in work.batches:
            keep = torch.from_numpy(topology.possible.copy())
            full = logit_difference(model.run(batch, keep, work.ablation), batch, None)
            keep[row, column] = False
            drop += float((full - logit_difference(model.run(batch, keep, work.ablation), batch, None)).sum())
        assert scores.values[row, column] == pytest.approx(drop / pairs, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_exact_does_not_depend_on_how_edges_are_batched(size: int) -> None:
    model = ResidualModel(linear=False)
    close(exact.score(model, workload()), exact.score(model, workload(), exact.Options(edges_per_run=size)), 1e-6)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_edge_groups_hold_every_edge_once_and_end_in_one_place(size: int) -> None:
    topology = ResidualModel(layers=3, heads=4, kv_heads=2).topology
    seen, restart = [], []
    for rows, columns in exact.edge_groups(topology, size):
        assert 1 <= len(rows) <= size
        places = {(topology.targets[c].node.layer, topology.targets[c].node.kind) for c in columns}
        assert len(places) == 1
        restart.append(int(columns.min()))
        seen += list(zip(rows.tolist(), columns.tolist()))
    assert restart == sorted(restart)
    assert sorted(seen) == [tuple(edge) for edge in np.argwhere(topology.possible).tolist()]


def test_a_positive_score_means_that_dropping_hurts() -> None:
    """With the unembedding reading one direction that only `input` writes, its edge to the logits must be positive."""
    model = ResidualModel(layers=1, heads=1)
    model.maps.zero_()
    batch = token_batch([3, 3, 3], seed=3)
    step = Workload((batch,), LOGIT_DIFFERENCE, ZERO)
    right, wrong = batch.step_token[:3], batch.step_token[3:]
    last = model.embedding[batch.clean[:, -1]] + model.places[2]
    model.unembedding.zero_()
    solution = torch.linalg.lstsq(last, torch.eye(3, dtype=torch.float64)).solution
    for pair in range(3):
        model.unembedding[:, right[pair]] += solution[:, pair]
        model.unembedding[:, wrong[pair]] -= solution[:, pair]
    assert float(logit_difference(model.full_logits(batch), batch, None).mean()) > 0.5
    for name in (*LINEAR, "exact"):
        values = METHODS[name].load().score(model, step).values
        assert values[0, -1] > 0.5
        np.testing.assert_allclose(values[1:, -1], 0, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_a_gradient_method_is_the_mean_of_linearize(name: str) -> None:
    model, work = ResidualModel(linear=False), workload()
    points = {
        "eap": [Point(1.0, 1.0)],
        "eap-ig": [Point(k / 5, 1 / 5) for k in range(5)],
        "clean-corrupted": [Point(0.0, 0.5), Point(1.0, 0.5)],
    }[name]
    mean = torch.cat([model.linearize(b, work.metric, points, work.ablation) for b in work.batches]).mean(0).numpy()
    possible = model.topology.possible
    values = METHODS[name].load().score(model, work).values
    np.testing.assert_allclose(values[possible], mean[possible], atol=1e-5 * np.abs(mean).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_quadrature_rules(rule: eap_ig.Rule, steps: int) -> None:
    points = eap_ig.quadrature(steps, rule)
    alphas = [point.alpha for point in points]
    assert len(points) == steps
    assert alphas == sorted(alphas)
    assert sum(point.weight for point in points) == pytest.approx(1)
    assert all(0 <= alpha <= 1 for alpha in alphas)
    assert (0.0 in alphas) == (rule == "left")
    assert (1.0 in alphas) == (rule == "right")
    degree = {"left": 0, "right": 0, "midpoint": 1, "gauss-legendre": 2 * steps - 1}[rule]
    integral = sum(point.weight * point.alpha**degree for point in points)
    assert integral == pytest.approx(1 / (degree + 1))  # polynomials up to this degree are integrated exactly


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_converge_to_the_same_limit(rule: eap_ig.Rule) -> None:
    model, work = ResidualModel(linear=False), workload()
    limit = eap_ig.score(model, work, eap_ig.Options(48, "gauss-legendre")).values
    errors = [
        np.nanmax(np.abs(eap_ig.score(model, work, eap_ig.Options(steps, rule)).values - limit)) for steps in (4, 32)
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("name", LINEAR)
def test_gradient_methods_refuse_metrics_without_a_gradient(name: str) -> None:
    check_needs_gradient(name, ResidualModel(), workload(), STEPS)


def test_eap_refuses_a_metric_that_is_flat_on_the_clean_run_and_says_what_to_use() -> None:
    model, work = ResidualModel(), workload(metric=FLAT)
    with pytest.raises(ValueError, match=r"test-flat.*eap-ig"):
        eap.score(model, work)
    assert eap_ig.score(model, work).method == "eap-ig"


def test_exact_takes_a_metric_without_a_gradient() -> None:
    values = exact.score(ResidualModel(), workload(metric=STEPS)).values
    assert np.isfinite(values[ResidualModel().topology.possible]).all()
    assert (np.round(values * 7, 4) % 1 == 0)[ResidualModel().topology.possible].all()  # sevenths: seven pairs


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_no_pairs_is_an_error_and_one_pair_has_no_standard_error(name: str) -> None:
    score, options = METHODS[name].load().score, METHODS[name].options(QUICK.get(name, {}))
    with pytest.raises(ValueError, match="no prompt pairs"):
        score(ResidualModel(), replace(workload(), batches=()), options)
    single = replace(workload(), batches=(token_batch([3]),))
    assert score(ResidualModel(), single, options).stderr is None


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_random_scores_depend_on_the_seed_alone(distribution: random.Distribution) -> None:
    model, other = ResidualModel(layers=4, heads=6, seed=0), ResidualModel(layers=4, heads=6, seed=1)
    draws = [random.score(m, workload(), random.Options(3, distribution)).values for m in (model, other)]
    np.testing.assert_array_equal(*draws)
    third = random.score(model, workload(), random.Options(4, distribution)).values
    assert not np.array_equal(draws[0], third, equal_nan=True)
    values = draws[0][model.topology.possible]
    assert (values.min() < -1.5) == (distribution == "normal")
    assert values.mean() == pytest.approx({"normal": 0, "uniform": 0.5}[distribution], abs=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_every_line_of_the_table_loads_and_documents_its_options(name: str) -> None:
    entry = METHODS[name]
    assert entry.name == name
    assert entry.summary
    assert "\n" not in entry.summary
    options = entry.load().Options
    assert is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert entry.options({}) == options()
    for field in fields(options):
        assert entry.options({field.name: getattr(options(), field.name)}) == options()


@pytest.mark.parametrize(
    "name, settings, says",
    [
        ("eap-ig", {"step": 5}, "no option 'step'.*steps"),
        ("eap", {"steps": 5}, "no option 'steps'"),
        ("eap-ig", {"steps": 0}, "steps"),
        ("eap-ig", {"steps": "five"}, "five"),
        ("eap-ig", {"rule": "simpson"}, "gauss-legendre"),
        ("exact", {"edges_per_run": 0}, "edges_per_run"),
        ("eap-ig", {"steps": True}, "whole number"),
        ("exact", {"edges_per_run": "all"}, "whole number or auto"),
        ("random", {"seed": -1}, "seed"),
        ("random", {"distribution": "cauchy"}, "uniform"),
    ],
)
def test_bad_options_are_named_in_one_line(name: str, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        METHODS[name].options(settings)
    assert "\n" not in str(error.value)


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'eap_ig'.*eap-ig"):
        method("eap_ig")


def test_the_table_imports_without_torch() -> None:
    code = "import sys, discovery.methods; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The method conformance suite and the evaluation on tiny random models of every family, in float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation
from discovery.component_model import ComponentModel
from discovery.evaluate import evaluate
from discovery.measure import measure
from discovery.methods import METHODS, exact
from discovery.model import Point
from discovery.patched_metric import full_metric
from discovery.workload import Workload
from graphs.prune import drop_dead_ends, random_circuit
from tests.discovery.method_conformance import LINEAR, check_method
from tests.discovery.residual_model import LOGIT_DIFFERENCE, logit_difference, token_batch
from tests.discovery.tiny_models import FAMILIES, GROUPED, tiny_model

WORK = Workload(
    (token_batch([6, 4, 6], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)
# In these a head's slots also change the other heads' outputs (a norm behind the attention, or over all heads' q and
# k), so that a head without kept inputs may still differ from its ablated value: dead ends are not quite dead.
COUPLED = ("gemma2", "gemma3", "olmo2")


# Many runs: on models with a tenth of the edges.
MANY_RUNS = (
    "acdc",
    "screen-verify",
    "conditional",
    "exact",
    "eap-ig-activations",
    "edge-masks",
    "uniform-gradients",
)
SMALL = replace(WORK, batches=(token_batch([4, 3, 5], 41, seed=2, first=2),))


@cache
def component_model(family: str, ungrouped: bool = False, smaller: bool = False) -> ComponentModel:
    """One model per family and worker: no test changes it."""
    return ComponentModel(tiny_model(family, smaller=smaller), kv_heads="query" if ungrouped else "native")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_conforms_on_every_family(family: str, name: str) -> None:
    smaller = name in MANY_RUNS
    check_method(name, component_model(family, smaller=smaller), SMALL if smaller else WORK, tolerance=1e-4)


@pytest.mark.parametrize("family", GROUPED)
def test_methods_conform_with_ungrouped_heads(family: str) -> None:
    for name in ("eap-ig", "exact"):
        check_method(name, component_model(family, ungrouped=True), WORK, tolerance=1e-4)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_methods_are_the_mean_of_linearize(family: str, name: str) -> None:
    model = component_model(family)
    points = {
        "eap": [Point(1.0, 1.0)],
        "eap-ig": [Point(k / 5, 1 / 5) for k in range(5)],
        "clean-corrupted": [Point(0.0, 0.5), Point(1.0, 0.5)],
    }[name]
    parts = [model.linearize(batch, WORK.metric, points, WORK.ablation) for batch in WORK.batches]
    mean = torch.cat(parts).mean(0).numpy()
    possible = model.topology.possible
    values = METHODS[name].load().score(model, WORK).values
    np.testing.assert_allclose(values[possible], mean[possible], rtol=0, atol=1e-5 * np.abs(mean).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_the_plain_loop_over_edges_one_run_each(family: str) -> None:
    model = component_model(family)
    topology = model.topology
    scores = exact.score(model, WORK)
    scale = float(np.nanmax(np.abs(scores.values)))
    for row, column in np.argwhere(topology.possible)[::19]:
        keep = torch.from_numpy(topology.possible.copy())
        keep[row, column] = False
        drop = 0.0
        for batch in WORK.batches:
            full, _ = full_metric(model, batch, WORK.metric)
            with torch.no_grad():
                dropped = logit_difference(model.run(batch, keep, WORK.ablation), batch, None)
            drop += float((full - dropped).sum())
        assert scores.values[row, column] == pytest.approx(drop / WORK.pair_count, abs=1e-4 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_does_not_depend_on_edges_per_run(family: str) -> None:
    model = component_model(family)
    base = exact.score(model, WORK).values
    for size in (5, 200):
        values = exact.score(model, WORK, exact.Options(edges_per_run=size)).values
        np.testing.assert_allclose(values, base, rtol=0, atol=1e-4 * np.nanmax(np.abs(base)))


@pytest.mark.parametrize("ablation", [COUNTERFACTUAL, ZERO], ids=lambda ablation: ablation.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_of_the_evaluation_scale(family: str, ablation: Ablation) -> None:
    model = component_model(family)
    work = Workload(WORK.batches, WORK.metric, ablation)
    scores = METHODS["random"].load().score(model, work)
    points = evaluate(model, work, scores, sizes=(0.0, 0.3, 1.0), bootstrap=0).points
    assert (points[0].faithfulness, points[0].completeness) == (0, 1)
    assert (points[-1].faithfulness, points[-1].completeness, points[-1].random) == (1, 0, 1)
    one_by_one = evaluate(model, work, scores, sizes=(0.3,), bootstrap=0, masks_per_run=1).points[0]
    assert one_by_one.faithfulness == pytest.approx(points[1].faithfulness, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith(COUPLED)])
def test_dead_ends_change_no_output_on_any_family(family: str) -> None:
    model = component_model(family)
    rng = np.random.default_rng(0)
    for edges in (10, 50, 100):
        circuits = [random_circuit(model.topology, edges, rng) for _ in range(4)]
        whole = measure(model, WORK, circuits)
        pruned = measure(model, WORK, [drop_dead_ends(circuit) for circuit in circuits])
        np.testing.assert_allclose(pruned.circuits, whole.circuits, rtol=0, atol=1e-4 * np.abs(whole.full).max())

"""Evaluation on models whose right answers are known: linear ones, where faithfulness adds up over edges."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.batch import Batch
from discovery.evaluate import (
    ask,
    circuit_question,
    compare_with_random,
    curve_question,
    evaluate,
    evaluate_circuit,
    rivals_question,
    with_train,
)
from discovery.evaluation import Curve
from discovery.measure import FlatMetric, measure
from discovery.methods import eap, exact, random
from discovery.metrics import METRICS
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.prune import SIZES, complement, drop_dead_ends, full_circuit, random_circuit, select_top
from graphs.scores import EdgeScores
from tests.discovery.method_conformance import split
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, logit_difference, token_batch

MODEL = ResidualModel(layers=3, heads=4, kv_heads=2, linear=False)
TOPOLOGY = MODEL.topology
SMALL = (0.02, 0.1, 0.5, 1.0)


def workload(seed: int = 0) -> Workload:
    """Nine pairs in two batches of unequal sizes."""
    batches = (token_batch([4, 5, 3, 5, 4], seed=seed), token_batch([2, 4, 4, 3], seed=seed + 1, first=5))
    return Workload(batches, LOGIT_DIFFERENCE, COUNTERFACTUAL)


WORK = workload()
SCORES = eap.score(MODEL, WORK)


class CountingModel(ResidualModel):
    """Counts the masks that it runs."""

    masks = 0
    calls = 0

    def run(self, batch: Batch, keep: torch.Tensor, ablation: object) -> torch.Tensor:  # type: ignore[override]
        self.calls += 1
        self.masks += len(keep)
        return super().run(batch, keep, ablation)  # type: ignore[arg-type]


def test_the_curve_is_the_plain_computation() -> None:
    curve = evaluate(MODEL, WORK, SCORES, sizes=SMALL, random_baseline=2, seed=3)

    def mean(kept: np.ndarray) -> float:
        values = [logit_difference(MODEL.run(b, torch.from_numpy(kept), WORK.ablation), b, None) for b in WORK.batches]
        return float(torch.cat(values).double().mean())

    full, empty = mean(TOPOLOGY.possible), mean(np.zeros_like(TOPOLOGY.possible))
    assert (curve.full, curve.empty) == pytest.approx((full, empty), rel=1e-5)
    assert curve.pairs == 9
    for point, size in zip(curve.points, SMALL):
        chosen = select_top(SCORES, int(size * TOPOLOGY.edge_count))
        circuit = drop_dead_ends(chosen)
        assert point.size == size
        assert point.edges == circuit.kept.sum()
        assert point.faithfulness == pytest.approx((mean(circuit.kept) - empty) / (full - empty), abs=1e-5)
        assert point.completeness == pytest.approx((mean(complement(circuit).kept) - empty) / (full - empty), abs=1e-5)
        assert point.low is not None
        assert point.high is not None
        assert point.low <= point.high


def test_full_and_empty_circuits_are_the_ends_of_the_scale() -> None:
    last = evaluate(MODEL, WORK, SCORES, sizes=(0.0, 1.0)).points
    assert (last[0].edges, last[0].faithfulness, last[0].completeness, last[0].random) == (0, 0, 1, 0)
    assert (last[1].faithfulness, last[1].completeness, last[1].random) == (1, 0, 1)
    assert last[1].edges == TOPOLOGY.edge_count
    assert (last[1].low, last[1].high) == pytest.approx((1, 1))


def test_on_a_linear_model_best_edges_into_the_logits_add_up() -> None:
    """With edges into the logits alone, nothing upstream is kept, so faithfulness is the share of `input`'s score."""
    model = ResidualModel()
    scores = exact.score(model, WORK)
    kept = np.zeros_like(model.topology.possible)
    kept[0, -1] = True
    measured = measure(model, WORK, [Circuit(model.topology, kept)])
    gain = measured.circuits.mean() - measured.empty.mean()
    assert gain == pytest.approx(scores.values[0, -1], abs=1e-5)


@pytest.mark.parametrize("edges", [3, 15, 60, 120])
def test_dead_ends_change_no_output(edges: int) -> None:
    rng = np.random.default_rng(edges)
    circuits = [random_circuit(TOPOLOGY, edges, rng) for _ in range(6)]
    kept = measure(MODEL, WORK, circuits)
    pruned = measure(MODEL, WORK, [drop_dead_ends(circuit) for circuit in circuits])
    np.testing.assert_allclose(kept.circuits, pruned.circuits, atol=1e-5)


def test_dropping_dead_ends_moves_the_count_but_not_the_faithfulness() -> None:
    scores = random.score(MODEL, WORK, random.Options(seed=1))
    with_dead, without = (
        evaluate(MODEL, WORK, scores, drop_dead=drop, faithfulness_only=True) for drop in (False, True)
    )
    for dead, live in zip(with_dead.points, without.points):
        assert dead.faithfulness == pytest.approx(live.faithfulness, abs=1e-5)
        assert live.edges <= dead.edges == int(dead.size * TOPOLOGY.edge_count)
    assert any(live.edges < dead.edges for dead, live in zip(with_dead.points, without.points))


def test_batch_sizes_and_masks_per_run_change_nothing() -> None:
    cut = replace(WORK, batches=tuple(piece for batch in WORK.batches for piece in split(batch)))
    base = evaluate(MODEL, WORK, SCORES, sizes=SMALL)
    for other in (
        evaluate(MODEL, cut, SCORES, sizes=SMALL),
        evaluate(MODEL, WORK, SCORES, sizes=SMALL, masks_per_run=1),
        evaluate(MODEL, WORK, SCORES, sizes=SMALL, masks_per_run=1000),
    ):
        for one, two in zip(base.points, other.points):
            assert (two.faithfulness, two.low, two.high, two.completeness, two.random) == pytest.approx(
                (one.faithfulness, one.low, one.high, one.completeness, one.random), abs=1e-5
            )


def test_equal_circuits_run_once_and_faithfulness_only_runs_one_circuit_per_size() -> None:
    model = CountingModel(layers=3, heads=4, kv_heads=2, linear=False)
    sizes = (0.1, 0.5, 1.0)
    curve = evaluate(model, WORK, SCORES, sizes=sizes, faithfulness_only=True)
    assert model.masks == 3 * len(WORK.batches)  # two circuits and the empty one; the full one is the untouched model
    assert model.calls == len(WORK.batches)
    assert [point.completeness for point in curve.points] == [None] * 3
    assert [point.random for point in curve.points] == [None] * 3
    model.masks = 0
    circuit = select_top(SCORES, 50)
    measure(model, WORK, [circuit] * 5 + [full_circuit(TOPOLOGY)])
    assert model.masks == 2 * len(WORK.batches)


def test_seeds_and_sizes_decide_the_random_circuits() -> None:
    def baselines(sizes: tuple[float, ...], seed: int) -> list[float | None]:
        return [point.random for point in evaluate(MODEL, WORK, SCORES, sizes=sizes, seed=seed).points]

    assert baselines((0.3, 0.6), 0) == baselines((0.3, 0.6), 0)
    assert baselines((0.3, 0.6), 0) != baselines((0.3, 0.6), 1)
    assert baselines((0.3, 0.6), 0)[1] == baselines((0.6,), 0)[0]


def test_sizes_are_taken_in_ascending_order_and_must_be_shares() -> None:
    curve = evaluate(MODEL, WORK, SCORES, sizes=(0.5, 0.1), faithfulness_only=True)
    assert curve.sizes == [0.1, 0.5]
    with pytest.raises(ValueError, match="2"):
        evaluate(MODEL, WORK, SCORES, sizes=(2.0,))


def test_areas_are_those_of_the_curve() -> None:
    curve = evaluate(MODEL, WORK, SCORES, faithfulness_only=True, bootstrap=0)
    f = np.array([point.faithfulness for point in curve.points])
    assert curve.cpr == pytest.approx(np.trapezoid(f, SIZES))
    assert curve.cmd == pytest.approx(np.trapezoid(np.abs(1 - f), SIZES))
    assert curve.cmd_log == pytest.approx(np.trapezoid(np.abs(1 - f), np.log10(SIZES)))


def test_evaluation_json_has_the_agreed_fields_and_comes_back() -> None:
    curve = evaluate(MODEL, WORK, SCORES, truth=select_top(SCORES, 40).kept)
    content = json.loads(json.dumps(curve.to_json(), allow_nan=False))
    assert list(content["curve"][0]) == [
        *("size", "edges", "faithfulness", "low", "high", "completeness", "random", "random_completeness", "train"),
    ]
    assert {"cmd", "cpr", "cmd_log"} <= set(content)
    assert Curve.from_json(content) == curve
    with pytest.raises(ValueError, match="'by'"):
        Curve.from_json({key: value for key, value in content.items() if key != "by"})
    with pytest.raises(ValueError, match="extra"):
        Curve.from_json(content | {"curve": [content["curve"][0] | {"extra": 1}]})


def test_auroc_is_one_for_the_best_edges_and_absent_without_a_truth() -> None:
    truth = select_top(SCORES, 40).kept
    assert evaluate(MODEL, WORK, SCORES, sizes=SMALL, truth=truth, faithfulness_only=True).auroc == 1
    assert evaluate(MODEL, WORK, SCORES, sizes=SMALL, faithfulness_only=True).auroc is None


def test_the_edge_that_matters_beats_random_circuits_and_random_circuits_do_not() -> None:
    """With weak heads and MLPs nearly everything goes from the input to the logits directly."""
    model = ResidualModel(layers=3, heads=4, kv_heads=2)
    model.maps *= 0.02
    circuit = select_top(exact.score(model, WORK), 3)
    assert circuit.kept[0, -1]
    comparison = compare_with_random(model, WORK, circuit, count=30)
    assert comparison.edges == 3
    assert len(comparison.random) == 30
    assert comparison.faithfulness > max(0.5, comparison.percentile(95))
    assert comparison.rank > 0.9
    assert comparison.faithfulness == pytest.approx(evaluate_circuit(model, WORK, circuit).faithfulness)
    json.dumps(comparison.to_json(), allow_nan=False)
    ranks = [
        compare_with_random(MODEL, WORK, random_circuit(TOPOLOGY, 90, np.random.default_rng(i)), count=12, seed=i).rank
        for i in range(6)
    ]
    assert min(ranks) < 0.5 < max(ranks)


def test_questions_asked_together_get_the_same_answers_and_run_equal_circuits_once() -> None:
    model = CountingModel(layers=3, heads=4, kv_heads=2, linear=False)
    circuit = drop_dead_ends(select_top(SCORES, 40))
    curve, own, rivals = ask(
        model,
        WORK,
        [
            curve_question(TOPOLOGY, SCORES, sizes=(40.5 / TOPOLOGY.edge_count, 0.5), random_baseline=1),
            circuit_question(circuit),
            rivals_question(circuit, 3),
        ],
    )
    assert model.masks == (1 + 2 * 2 + 2 * 2 + 3) * len(WORK.batches)  # empty; points, random: each with complement
    assert curve == evaluate(MODEL, WORK, SCORES, sizes=(40.5 / TOPOLOGY.edge_count, 0.5), random_baseline=1)
    assert own == evaluate_circuit(MODEL, WORK, circuit)
    assert rivals == compare_with_random(MODEL, WORK, circuit, 3)
    assert rivals.edges == circuit.edge_count


def test_the_model_knows_what_it_finds_more_likely() -> None:
    measured = measure(MODEL, WORK, [])
    expected = [
        values > 0
        for batch in WORK.batches
        for values in logit_difference(MODEL.full_logits(batch), batch, None).tolist()
    ]
    assert measured.known.tolist() == expected
    assert 0 < sum(expected) < len(expected)
    only_right = tuple(replace(batch, candidate_right=torch.ones_like(batch.candidate_right)) for batch in WORK.batches)
    known = measure(MODEL, replace(WORK, batches=only_right, metric=METRICS["kl"]), []).known
    top = [MODEL.full_logits(batch)[batch.pair_read].argmax(-1) for batch in WORK.batches]
    found = [
        bool((batch.step_token[batch.candidate_pair == pair] == best).any())
        for batch, each in zip(WORK.batches, top, strict=True)
        for pair, best in enumerate(each)
    ]
    assert known.tolist() == found
    assert any(found)


def test_circuits_are_also_measured_on_the_pairs_that_were_scored() -> None:
    other = workload(seed=9)
    circuits = curve_question(TOPOLOGY, SCORES, sizes=(0.1, 0.5), faithfulness_only=True).circuits
    held_out = evaluate(MODEL, WORK, SCORES, sizes=(0.1, 0.5), faithfulness_only=True).points
    points = with_train(MODEL, other, circuits, held_out)
    on_other = evaluate(MODEL, other, SCORES, sizes=(0.1, 0.5), faithfulness_only=True).points
    assert [point.train for point in points] == [point.faithfulness for point in on_other]
    assert [replace(point, train=None) for point in points] == list(held_out)


def test_the_curve_has_the_areas_of_its_baselines() -> None:
    curve = evaluate(MODEL, WORK, SCORES, sizes=SMALL, random_baseline=1, bootstrap=0)
    random = np.array([point.random for point in curve.points])
    assert curve.baselines["cmd_random"] == pytest.approx(np.trapezoid(np.abs(1 - random), SMALL))
    assert curve.baselines["cpr_train"] is None
    left = [point.random_completeness for point in curve.points]
    assert left[-1] == 0
    assert left[0] == pytest.approx(1, abs=0.2)


def test_one_circuit() -> None:
    circuit = select_top(SCORES, 100)
    point = evaluate_circuit(MODEL, WORK, circuit)
    assert point.size == pytest.approx(100 / TOPOLOGY.edge_count)
    assert point.edges == 100
    curve = evaluate(MODEL, WORK, SCORES, sizes=(100.5 / TOPOLOGY.edge_count,), drop_dead=False)
    assert point.faithfulness == curve.points[0].faithfulness
    assert (point.low, point.high, point.completeness) == (
        curve.points[0].low,
        curve.points[0].high,
        curve.points[0].completeness,
    )


def test_prompts_without_a_difference_are_refused_in_one_line() -> None:
    same = replace(WORK, batches=tuple(replace(batch, corrupt=batch.clean) for batch in WORK.batches))
    with pytest.raises(FlatMetric, match=r"test-logit-diff.*undefined") as error:
        evaluate(MODEL, same, SCORES)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no prompt pairs"):
        evaluate(MODEL, replace(WORK, batches=()), SCORES)
    with pytest.raises(ValueError, match="at least one"):
        compare_with_random(MODEL, WORK, select_top(SCORES, 10), count=0)


def test_other_ablations_evaluate_too() -> None:
    curve = evaluate(MODEL, replace(WORK, ablation=ZERO), SCORES, sizes=SMALL)
    assert curve.points[-1].faithfulness == 1
    assert curve.empty == pytest.approx(0, abs=1e-9)  # no bias anywhere: with every source at zero the logits are zero


def test_a_single_pair_and_a_single_size() -> None:
    curve = evaluate(MODEL, replace(WORK, batches=(token_batch([4], seed=7),)), SCORES, sizes=(0.5,))
    point = curve.points[0]
    assert point.low == pytest.approx(point.faithfulness)
    assert (curve.cmd, curve.cpr, curve.cmd_log) == (0, 0, 0)


def test_signed_and_absolute_selection_differ_where_signs_do() -> None:
    flipped = EdgeScores(TOPOLOGY, -np.abs(SCORES.values), "flipped")
    absolute = evaluate(MODEL, WORK, flipped, sizes=(0.1,), drop_dead=False, faithfulness_only=True).points[0]
    same = evaluate(MODEL, WORK, SCORES, sizes=(0.1,), drop_dead=False, faithfulness_only=True).points[0]
    signed = evaluate(MODEL, WORK, flipped, sizes=(0.1,), drop_dead=False, by="signed", faithfulness_only=True)
    assert absolute.faithfulness == same.faithfulness
    assert signed.points[0].faithfulness != absolute.faithfulness
    assert signed.by == "signed"

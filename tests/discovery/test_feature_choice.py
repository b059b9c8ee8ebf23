"""Which features are chosen, and which of them gradients misjudge, against plain loops over features and runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, Ablation, AblationKind
from discovery.component_model import ComponentModel
from discovery.evaluate import evaluate
from discovery.feature_choice import FeatureChoice, NoFeatures, choose_features
from discovery.feature_model import FeatureModel
from discovery.gate_check import recheck
from discovery.methods import eap, exact
from discovery.metrics import METRICS
from discovery.model import Point
from discovery.preparation import prepare_ablation
from discovery.transcoder import Activation, TranscoderSet
from discovery.workload import Workload
from graphs.error_share import error_share
from graphs.node import NodeId, Slot
from graphs.prune import select_top
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

BATCHES = (token_batch([6, 4, 6], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3))
CLEAN = [Point(1.0, 1.0)]
KINDS = ("relu", "jumprelu", "topk", "batchtopk")


def base_and_set(family: str, kind: str, writes: str = "mlp-raw") -> tuple[ComponentModel, TranscoderSet]:
    base = ComponentModel(tiny_model(family))
    return base, tiny_transcoders(base, kind, reads="residual-mid", writes=writes)  # type: ignore[arg-type]


def workload(kind: AblationKind = "counterfactual") -> Workload:
    return Workload(BATCHES, LOGIT_DIFFERENCE, Ablation(kind))


@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean", "mean-positional"])
@pytest.mark.parametrize(("family", "kind"), [("gpt2", kind) for kind in KINDS] + [("gptj", "relu"), ("olmo2", "relu")])
def test_an_attribution_is_the_sum_of_the_scores_of_what_a_node_writes(
    family: str, kind: str, ablation: AblationKind
) -> None:
    base, transcoders = base_and_set(family, kind)
    points = [Point(0.25, 0.5), Point(0.75, 0.5)]
    choice = choose_features(base, transcoders, workload(ablation), 1000, points)
    model = FeatureModel(base, transcoders, {transcoder.layer: range(13) for transcoder in transcoders})
    ready = prepare_ablation(model, ablation, BATCHES)
    scores = torch.cat([model.linearize(batch, LOGIT_DIFFERENCE, points, ready) for batch in BATCHES]).mean(0).sum(1)
    scale = float(scores.abs().max())
    live = 0
    for row, node in enumerate(model.topology.sources):
        if node.kind == "feature":
            found = choice.attributions.get(node, 0.0)
            live += found != 0
            assert found == pytest.approx(float(scores[row]), abs=1e-5 * scale)
    assert choice.live == live == len(choice.attributions)
    assert choice.share == pytest.approx(1)


def test_the_strongest_are_chosen_over_all_layers() -> None:
    base, transcoders = base_and_set("gpt2", "jumprelu")
    everything = choose_features(base, transcoders, workload(), 1000, CLEAN)
    few = choose_features(base, transcoders, workload(), 7, CLEAN)
    order = sorted(everything.attributions.items(), key=lambda item: -abs(item[1]))
    assert list(few.attributions) == [node for node, _ in order[:7]]
    assert len({node.layer for node in few.attributions}) > 1
    assert few.share == pytest.approx(sum(abs(v) for _, v in order[:7]) / sum(abs(v) for _, v in order))
    assert sum(map(len, few.by_layer.values())) == 7
    assert all(NodeId("feature", layer, i) in few.attributions for layer, some in few.by_layer.items() for i in some)
    assert FeatureChoice.from_json(few.to_json()) == few


def test_batch_sizes_do_not_move_the_choice() -> None:
    base, transcoders = base_and_set("gpt2", "batchtopk")
    whole = choose_features(base, transcoders, workload(), 1000, CLEAN)
    half = replace(workload(), batches=(BATCHES[0],))
    rest = replace(workload(), batches=(BATCHES[1],))
    parts = [choose_features(base, transcoders, work, 1000, CLEAN).attributions for work in (half, rest)]
    for node, value in whole.attributions.items():
        mean = (3 * parts[0].get(node, 0.0) + 2 * parts[1].get(node, 0.0)) / 5
        assert value == pytest.approx(mean, abs=1e-6)


def test_nothing_to_choose_from_is_one_line() -> None:
    base, transcoders = base_and_set("gpt2", "relu")
    same = tuple(replace(batch, corrupt=batch.clean) for batch in BATCHES)
    with pytest.raises(NoFeatures, match="no feature of the dictionaries differs"):
        choose_features(base, transcoders, replace(workload(), batches=same), 5, CLEAN)
    with pytest.raises(NoFeatures, match="accuracy"):
        choose_features(base, transcoders, replace(workload(), metric=METRICS["accuracy"]), 5, CLEAN)


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, {"features": {"m3": 1.0}, "live": 1, "share": 1.0}, {"features": {}, "live": 1, "share": 1.0},
        {"features": {"f1.2": "x"}, "live": 1, "share": 1.0}, {"features": {"f1": 0.5}, "live": 1, "share": 1.0},
        {"features": {"f1.2@3": 0.5}, "live": 1, "share": 1.0},
    ],
)  # fmt: skip
def test_a_broken_choice_is_one_line(content: object) -> None:
    with pytest.raises(NoFeatures, match="cannot be read") as error:
        FeatureChoice.from_json(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "no heads"])
def test_flagged_nodes_are_those_that_runs_contradict_and_their_edges_become_exact(heads: bool) -> None:
    base, transcoders = base_and_set("gpt2", "jumprelu")
    choice = choose_features(base, transcoders, workload(), 12, CLEAN)
    model, work = FeatureModel(base, transcoders, choice.by_layer, heads), workload()
    topology = model.topology
    scores, truth = eap.score(model, work), exact.score(model, work)
    new, report = recheck(model, work, scores, tolerance=0.5)
    largest = max(max(abs(check.exact), abs(check.gradient)) for check in report.checks)
    wanted = np.zeros_like(topology.possible)
    assert {check.side for check in report.checks} == ({"out", "in"} if heads else {"in"})
    for check in report.checks:
        row = topology.source_index[NodeId.parse(check.node)]
        edges = np.zeros_like(topology.possible)
        if check.side == "out":
            edges[row] = topology.possible[row]
        else:
            edges[:, topology.slots_of[row]] = topology.possible[:, topology.slots_of[row]]
        keep = torch.from_numpy(topology.possible & ~edges)
        effect = 0.0
        for batch in work.batches:
            for logits, sign in ((model.full_logits(batch), 1), (model.run(batch, keep, work.ablation), -1)):
                effect += sign * float(LOGIT_DIFFERENCE.compute(logits, batch, None).sum()) / work.pair_count
        assert check.exact == pytest.approx(effect, abs=1e-5 * largest)
        assert check.gradient == pytest.approx(float(scores.values[edges].sum()), abs=1e-5 * largest)
        larger = max(abs(check.exact), abs(check.gradient))
        assert check.flagged == (larger > 0.02 * largest and abs(check.gradient - check.exact) > 0.5 * larger)
        if check.flagged:
            wanted |= edges
    assert 0 < len(report.flagged) < len(report.checks)
    assert report.rescored == wanted.sum() > 0
    scale = float(np.nanmax(np.abs(truth.values)))
    np.testing.assert_allclose(new.values[wanted], truth.values[wanted], rtol=0, atol=1e-5 * scale)
    rest = topology.possible & ~wanted
    np.testing.assert_array_equal(new.values[rest], scores.values[rest])
    assert new.method == scores.method
    assert report.to_json()["rescored_edges"] == report.rescored
    assert len(report.to_json()["flagged"]) == len(report.flagged)


def test_a_gate_that_closes_between_clean_and_corrupt_is_found() -> None:
    """Features far above a threshold that corrupt prompts just miss: slopes say little of what they read, a run all."""
    base, transcoders = base_and_set("gpt2", "jumprelu")
    work = replace(workload(), batches=(token_batch([6], 41, seed=1),))
    layer, seen = transcoders.by_layer[1], []
    for batch in (
        work.batches[0],
        replace(work.batches[0], corrupt=work.batches[0].clean, clean=work.batches[0].corrupt),
    ):
        base.run(batch, torch.ones(base.topology.possible.shape), COUNTERFACTUAL)
        seen.append(layer.preactivations(base.recorded_stream("layer 1 MLP"))[0, -1])
    closing = (seen[0] > seen[1]).nonzero()[:, 0].tolist()
    assert closing
    threshold = torch.where(seen[0] > seen[1], (seen[0] + seen[1]) / 2 + 20, 1e6)
    jumping = replace(
        layer, encoder_bias=layer.encoder_bias + 20, activation=Activation("jumprelu", threshold=threshold)
    )
    model = FeatureModel(base, replace(transcoders, transcoders=(jumping,)), {1: closing})
    scores = eap.score(model, work)
    new, report = recheck(model, work, scores)
    sides = {(check.node, check.side): check for check in report.checks}
    large = [number for number in closing if abs(sides[f"f1.{number}", "in"].exact) > 0.1]
    assert large
    for number in large:
        check = sides[f"f1.{number}", "in"]
        assert check.flagged
        assert abs(check.exact) > 2 * abs(check.gradient)
        column = model.topology.target_index[Slot(NodeId("feature", 1, number))]
        assert not np.allclose(new.values[:, column], scores.values[:, column], equal_nan=True)


def test_every_point_of_a_curve_says_what_runs_through_errors() -> None:
    base, transcoders = base_and_set("gpt2", "jumprelu")
    model = FeatureModel(base, transcoders, {0: (1, 2), 1: (3,)})
    scores = eap.score(model, workload())
    curve = evaluate(model, workload(), scores, sizes=(0.1, 0.5), bootstrap=0, drop_dead=False, faithfulness_only=True)
    for point in curve.points:
        circuit = select_top(scores, int(point.size * model.topology.edge_count))
        assert point.error_share == error_share(circuit)
        assert point.error_share is not None
        assert 0 < point.error_share < 1
    assert type(curve).from_json(curve.to_json()) == curve
    plain = evaluate(base, workload(), eap.score(base, workload()), sizes=(0.5,), bootstrap=0, random_baseline=0)
    assert plain.points[0].error_share is None
    assert "error_share" not in plain.to_json()["curve"][0]

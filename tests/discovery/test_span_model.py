"""Graphs with spans on tiny random models of every family, against the graph without spans and plain hooks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation
from discovery.batch import Batch
from discovery.component_model import ComponentModel, KvHeads
from discovery.evaluate import evaluate
from discovery.loading import check_first_batch
from discovery.model import PatchableModel, Point
from discovery.span_model import SpanModel
from discovery.workload import Workload
from graphs.scores import EdgeScores
from graphs.span_topology import Spans
from tests.discovery.method_conformance import check_method
from tests.discovery.plain_span_hooks import PlainSpanHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

CLEAN = [Point(1.0, 1.0)]
# Sequential, parallel, with norms behind attention and MLP, with sliding windows, with a norm over all heads' keys.
FEW: dict[str, KvHeads] = {"gpt2": "native", "gptj": "native", "gemma2": "native", "phi3": "native", "olmo2": "query"}
few = pytest.mark.parametrize(("family", "kv_heads"), FEW.items())
NAMES = ("start", "name", "rest", "end")


@cache
def load(family: str, kv_heads: KvHeads = "native", count: int = 4) -> SpanModel:
    """One model per family and worker: no test changes it."""
    spans = Spans(NAMES[-count:], np.tril(np.ones((count, count), dtype=bool)), np.arange(count) == count - 1)
    return SpanModel(ComponentModel(tiny_model(family), kv_heads=kv_heads), spans)


@cache
def base(family: str, kv_heads: KvHeads = "native") -> ComponentModel:
    return ComponentModel(load(family, kv_heads).hf, kv_heads=kv_heads)


def with_spans(batch: Batch, model: SpanModel) -> Batch:
    """The batch with spans of 2 tokens from the end, the rest in the first span; every second row shifted by one."""
    count, (rows, width) = len(model.spans.names), batch.clean.shape
    distance = torch.arange(width).flip(0).expand(rows, width)
    distance = distance + (distance > 0) * (torch.arange(rows)[:, None] % 2)
    index = (count - 1 - (distance + 1) // 2).clamp(min=0)
    return replace(batch, spans=torch.where(batch.mask, index, -1), span_names=model.spans.names)


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def ones(model: PatchableModel) -> Tensor:
    return torch.ones(model.topology.possible.shape)


def over_spans(values: Tensor, count: int) -> Tensor:
    """Sums over the spans of source and slot: [pair span_src span_dst] -> [pair src dst]."""
    rows = values.unflatten(1, (-1, count)).sum(2)
    return torch.cat([rows[..., :-1].unflatten(2, (-1, count)).sum(3), rows[..., -1:]], 2)


def between_spans(masks: Tensor, count: int) -> Tensor:
    """The same mask for every pair of spans: [mask src dst] -> [mask span_src span_dst]."""
    rows = masks.repeat_interleave(count, 1)
    return torch.cat([rows[..., :-1].repeat_interleave(count, 2), rows[..., -1:]], 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_are_the_model_slopes_are_derivatives_and_sum_to_eap(family: str) -> None:
    model = load(family)
    batch = with_spans(tiny_batch(), model)
    keep = ones(model).requires_grad_()
    full = model.run(batch, keep, COUNTERFACTUAL)
    for logits in (full, model.run(batch, ones(model), COUNTERFACTUAL)):
        assert relative(logits, model.full_logits(batch)) < 1e-5
    swapped = replace(batch, clean=batch.corrupt, corrupt=batch.clean)
    assert relative(model.run(batch, 0 * ones(model), COUNTERFACTUAL), model.full_logits(swapped)) < 1e-5
    slope = torch.autograd.grad(LOGIT_DIFFERENCE.compute(full, batch, None).sum(), keep)[0]
    scores = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
    assert relative(scores.sum(0), slope * torch.from_numpy(model.topology.possible)) < 2e-5
    assert not scores[:, ~torch.from_numpy(model.topology.possible)].any()
    plain = base(family).linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
    assert relative(over_spans(scores, len(model.spans.names)), plain) < 1e-5


@few
def test_scores_of_several_points_sum_to_those_without_spans(family: str, kv_heads: KvHeads) -> None:
    model = load(family, kv_heads)
    batch = with_spans(tiny_batch(), model)
    points = [Point(k / 3, 1 / 3) for k in range(3)]
    scores = model.linearize(batch, LOGIT_DIFFERENCE, points, COUNTERFACTUAL)
    plain = base(family, kv_heads).linearize(batch, LOGIT_DIFFERENCE, points, COUNTERFACTUAL)
    assert relative(over_spans(scores, len(model.spans.names)), plain) < 1e-5


@pytest.mark.parametrize("family", FEW)
def test_one_edge_dropped_is_what_plain_hooks_compute(family: str) -> None:
    model = load(family)
    batch = with_spans(tiny_batch(), model)
    plain = PlainSpanHooks(model, batch)
    full = model.full_logits(batch)
    topology = model.topology
    places = np.argwhere(topology.possible)
    ports: dict[tuple[object, bool], list[tuple[int, int]]] = {}
    for row, column in places.tolist():
        slot = topology.targets[column]
        if slot.node.layer != 0:  # the input alone is read there
            crosses = slot.node.position not in (None, topology.sources[row].position)
            ports.setdefault((slot.port or slot.node.kind, crosses), []).append((row, column))
    assert {key for key, crosses in ports if crosses} == {"k", "v"}
    for edges in ports.values():
        for row, column in edges[:: max(1, len(edges) // 5)]:
            keep = torch.from_numpy(topology.possible.copy())
            keep[row, column] = False
            change = model.run(batch, keep, COUNTERFACTUAL) - full
            expected = plain.logits_without(row, column) - full
            torch.testing.assert_close(change, expected, rtol=1e-3, atol=2e-6 * float(full.abs().max()))


@few
@pytest.mark.parametrize("ablation", [COUNTERFACTUAL, ZERO], ids=lambda ablation: ablation.kind)
def test_shortcuts_change_nothing(family: str, kv_heads: KvHeads, ablation: Ablation) -> None:
    model = load(family, kv_heads)
    batch = with_spans(tiny_batch(), model)
    density = torch.tensor([0.02, 0.3, 0.9, 0.99, 0.999])
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(len(density), *ones(model).shape, generator=generator) < density[:, None, None]
    plain = model.run(batch, masks.float().requires_grad_(), ablation)
    alone = torch.stack([model.run(batch, mask, ablation) for mask in masks])
    for logits in (model.run(batch, masks, ablation), alone):
        assert relative(logits, plain) < 1e-5


@few
def test_a_mask_that_is_alike_for_all_spans_is_the_run_without_spans(family: str, kv_heads: KvHeads) -> None:
    model, without = load(family, kv_heads), base(family, kv_heads)
    batch = with_spans(tiny_batch(), model)
    masks = torch.rand(3, *ones(without).shape, generator=torch.Generator().manual_seed(1)) < 0.7
    spread = between_spans(masks, len(model.spans.names))
    assert relative(model.run(batch, spread, COUNTERFACTUAL), without.run(batch, masks, COUNTERFACTUAL)) < 1e-5


LINEAR = ("eap", "eap-ig", "relp", "clean-corrupted", "eap-ig-activations")


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, LINEAR[i % 5]) for i, family in enumerate(FAMILIES)] + [("gpt_neo", "exact"), ("olmo2", "exact")],
)
def test_methods_conform_and_evaluation_has_its_ends(family: str, name: str) -> None:
    model = load(family, count=2)
    batches = (token_batch([6, 4], 41, seed=1), token_batch([5], 41, seed=2, first=2))
    work = Workload(tuple(with_spans(batch, model) for batch in batches), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    scores = check_method(name, model, work, tolerance=1e-4)
    assert isinstance(scores, EdgeScores)
    assert check_first_batch(model, work.batches[0]) < 1e-5
    points = evaluate(model, work, scores, sizes=(0.0, 0.3, 1.0), bootstrap=0, random_baseline=0).points
    assert (points[0].faithfulness, points[0].completeness) == (0, 1)
    assert (points[-1].faithfulness, points[-1].completeness) == (1, 0)


def test_prompts_without_spans_are_refused() -> None:
    model = load("gpt2")
    with pytest.raises(ValueError, match="these prompts have none"):
        model.run(tiny_batch(), ones(model), COUNTERFACTUAL)
    batch = replace(with_spans(tiny_batch(), model), span_names=("start", "name", "other", "end"))
    with pytest.raises(ValueError, match="'other'"):
        model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
    batch = with_spans(tiny_batch(), model)
    assert batch.spans is not None
    with pytest.raises(ValueError, match="read at the span 'start'"):
        model.linearize(replace(batch, spans=0 * batch.spans), LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)

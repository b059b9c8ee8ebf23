"""Every method and every ablation on graphs with spans, against plain hooks, loops, and the graph without spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation, AblationKind
from discovery.batch import Batch
from discovery.component_model import ComponentModel, KvHeads
from discovery.embedding_noise import noisy_embeddings
from discovery.learned_constants import LearnedConstants
from discovery.methods import METHODS, acdc, exact, screen_verify
from discovery.node_effects import Fixes
from discovery.preparation import AblationSettings, prepare_ablation, source_means
from discovery.recording_hooks import attention_writer, mlp_writer
from discovery.resampling import with_donors
from discovery.span_model import SpanModel
from discovery.workload import Workload
from graphs.span_topology import Spans
from tests.discovery.method_conformance import check_method
from tests.discovery.plain_span_hooks import PlainSpanHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.test_acdc import plain_loop
from tests.discovery.test_information_flow import routes
from tests.discovery.test_span_model import (
    CLEAN,
    FEW,
    base,
    few,
    load,
    over_spans,
    relative,
    with_spans,
)
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

EDGES = {"eap", "relp", "clean-corrupted", "random"}
"""Tested on every family in test_span_model, or blind to the model."""
NAMES = [name for name in METHODS if name not in EDGES]


@cache
def smaller(family: str, kv_heads: KvHeads = "native") -> SpanModel:
    """Two layers of two heads, two spans."""
    spans = Spans(("name", "end"), np.tril(np.ones((2, 2), dtype=bool)), np.arange(2) == 1)
    return SpanModel(ComponentModel(tiny_model(family, smaller=True), kv_heads=kv_heads), spans)


@pytest.mark.parametrize(
    ("family", "name"), [(list(FAMILIES)[5 * i % len(FAMILIES)], name) for i, name in enumerate(NAMES)]
)
def test_methods_conform_on_graphs_with_spans(family: str, name: str) -> None:
    model = smaller(family)
    work = Workload((with_spans(token_batch([5, 4, 6], 41, seed=2, first=2), model),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    scores = check_method(name, model, work, tolerance=1e-4)
    assert scores.topology is model.topology


@few
@pytest.mark.parametrize("ablation", [COUNTERFACTUAL, ZERO], ids=lambda ablation: ablation.kind)
def test_nodes_at_spans_add_up(family: str, kv_heads: KvHeads, ablation: Ablation) -> None:
    """Over their edges, and over spans to the nodes of the graph without them, vectors and the QK fix included."""
    model, plain, batch = (
        load(family, kv_heads),
        base(family, kv_heads),
        with_spans(tiny_batch(), load(family, kv_heads)),
    )
    count = len(model.spans.names)
    edges = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, ablation)
    for fixes in (Fixes(), Fixes(qk_fix=True)):
        nodes = model.linearize_nodes(batch, LOGIT_DIFFERENCE, ablation, fixes, neurons=True)
        whole = plain.linearize_nodes(batch, LOGIT_DIFFERENCE, ablation, fixes, neurons=True)
        assert relative(nodes.sources, edges.sum(2)) < 1e-5
        assert relative(nodes.sources.unflatten(1, (-1, count)).sum(2), whole.sources) < 1e-5
        assert relative(nodes.slots[:, :-1].unflatten(1, (-1, count)).sum(2), whole.slots[:, :-1]) < 1e-5
        assert nodes.neurons is not None and whole.neurons is not None
        assert relative(nodes.neurons, whole.neurons) < 1e-5


@few
def test_one_span_is_the_graph_without_spans(family: str, kv_heads: KvHeads) -> None:
    model, plain = load(family, kv_heads, count=1), base(family, kv_heads)
    batch = with_spans(tiny_batch(), model)
    for fixes in (Fixes(qk_fix=True), Fixes(qk_fix=True, grad_drop=True)):
        expected = plain.linearize_fixed(batch, LOGIT_DIFFERENCE, COUNTERFACTUAL, fixes)
        assert relative(model.linearize_fixed(batch, LOGIT_DIFFERENCE, COUNTERFACTUAL, fixes), expected) < 1e-5
    torch.testing.assert_close(model.flow(batch, 0.03), plain.flow(batch, 0.03))


def test_grad_drop_detaches_one_layer_at_a_time() -> None:
    model = load("gemma2")
    batch = with_spans(tiny_batch(), model)
    expected = torch.zeros(len(batch), *model.topology.possible.shape)
    for block in model.blocks:
        modules = (attention_writer(block), mlp_writer(block))
        handles = [module.register_forward_hook(lambda _m, _a, out: out.detach() + 0 * out) for module in modules]
        try:
            scores = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
        finally:
            for handle in handles:
                handle.remove()
        outside = torch.tensor([slot.node.layer != block.index for slot in model.topology.targets])
        expected += (scores * outside).abs() / (len(model.blocks) - 1)
    assert (
        relative(model.linearize_fixed(batch, LOGIT_DIFFERENCE, COUNTERFACTUAL, Fixes(grad_drop=True)), expected) < 1e-5
    )


def mix_gradients(model: SpanModel, batch: Batch) -> list[Tensor]:
    """The metric's gradient at each layer's mix, by plain hooks."""
    seen: list[Tensor] = []

    def keep(_module: object, args: tuple) -> tuple:
        seen.append(args[0].requires_grad_())
        return (seen[-1],)

    handles = [block.output.register_forward_pre_hook(keep) for block in model.blocks]
    out = model.hf(batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False).logits
    for handle in handles:
        handle.remove()
    value = LOGIT_DIFFERENCE.compute(out[batch.read_row, batch.read_column], batch, None).sum()
    return list(torch.autograd.grad(value, seen))


@pytest.mark.parametrize("family", FEW)
def test_the_qk_fix_takes_the_mix_with_the_edge_patched(family: str) -> None:
    """The real change of the mix where one span looks, when another span's source changes in the slot, times the gradient."""
    model = load(family)
    batch = with_spans(tiny_batch(), model)
    hooks, gradients, topology = PlainSpanHooks(model, batch), mix_gradients(model, batch), model.topology
    edges = model.linearize_fixed(batch, LOGIT_DIFFERENCE, COUNTERFACTUAL, Fixes(qk_fix=True))
    plain = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, COUNTERFACTUAL)
    sharp = torch.tensor([slot.port in ("q", "k") for slot in topology.targets])
    assert relative(edges[:, :, ~sharp], plain[:, :, ~sharp]) < 1e-5
    count, scale, ports = len(model.spans.names), float(edges.abs().max()), set()
    places = [(row, column) for row, column in np.argwhere(topology.possible).tolist() if sharp[column]]
    for row, column in places[3 :: max(1, len(places) // 9)]:
        slot, (source, span) = topology.targets[column], divmod(row, count)
        assert slot.node.layer is not None
        difference = (hooks.corrupt[source] - hooks.clean[source]) * (batch.spans == span)[..., None]
        output = model.blocks[slot.node.layer].output
        change = hooks._mix_with(slot, 0 * difference, output) - hooks._mix_with(slot, difference, output)
        looking = (batch.spans == column % count)[..., None]
        expected = (change * gradients[slot.node.layer] * looking).sum((1, 2))
        torch.testing.assert_close(edges[:, row, column], expected.detach(), rtol=1e-3, atol=2e-5 * scale)
        ports.add((slot.port, slot.node.position != topology.sources[row].position))
    assert ports >= {("q", False), ("k", True)}


@pytest.mark.parametrize("family", ["gptj", "gemma2"])
def test_routes_through_positions(family: str) -> None:
    """Where positions are spans, an edge's share is that of its place, or of the places that a head looks at from there."""
    plain = ComponentModel(tiny_model(family, smaller=True))
    batch = tiny_batch(pairs=1, width=5, first_change=3, ragged=False)
    batch = replace(batch, spans=batch.positions, span_names=tuple(range(5)))
    sees = np.tril(np.ones((5, 5), dtype=bool))
    model = SpanModel(plain, Spans(tuple(range(5)), sees, np.arange(5) == 4))
    shares, looked = routes(plain, batch, 0, 0.06, whole=False)
    expected = torch.zeros(model.topology.possible.shape)
    last = len(plain.topology.targets) - 1
    for (slot, place), kept in shares.items():
        for source, share in kept.items():
            if slot == last:
                expected[source * 5 + place, -1] = share
            elif plain.topology.targets[slot].port in (None, "q"):
                expected[source * 5 + place, slot * 5 + place] = share
            else:
                for (other, query), keys in looked.items():
                    if other == slot and place in keys:
                        expected[source * 5 + place, slot * 5 + query] = share / len(keys)
    torch.testing.assert_close(model.flow(batch, 0.06)[0], expected, atol=2e-4, rtol=0)
    assert int((expected > 0).sum()) > 15


def ablated_values(
    model: SpanModel, batch: Batch, kind: AblationKind, settings: AblationSettings
) -> tuple[Ablation, Sequence[Tensor]]:
    """An ablation, and by plain hooks what each source's dropped edges carry under it."""
    ablation = prepare_ablation(model, kind, [batch], settings)
    hooks = PlainSpanHooks(model, batch)
    if kind == "resample":
        assert ablation.donors is not None
        return ablation, PlainSpanHooks(model, with_donors(batch, ablation.donors)).corrupt
    if kind == "noise":
        assert ablation.noise is not None
        with noisy_embeddings(model.hf, batch, ablation.noise):
            return ablation, PlainSpanHooks(model, batch).clean
    assert batch.spans is not None
    index = {"mean": 0 * batch.positions, "mean-positional": batch.positions, "mean-span": batch.spans}[kind]
    values = []
    for value in hooks.corrupt:
        mean = torch.zeros_like(value)
        for number in index[batch.mask].unique():
            here = (index == number) & batch.mask
            mean[here] = value[here].mean(0)
        values.append(mean)
    return ablation, values


@pytest.mark.parametrize("kind", ["mean", "mean-positional", "mean-span", "resample", "noise"])
@pytest.mark.parametrize("family", ["gptj", "gemma2"])
def test_one_edge_dropped_is_what_plain_hooks_compute_under_every_ablation(family: str, kind: AblationKind) -> None:
    model = load(family)
    batch = with_spans(tiny_batch(pairs=4), model)
    batch = replace(batch, corrupt_spans=batch.spans)
    ablation, values = ablated_values(model, batch, kind, AblationSettings(noise_scale=1.0, seed=2))
    hooks, full, topology = PlainSpanHooks(model, batch), model.full_logits(batch), model.topology
    hooks.corrupt = list(values)
    places = [place for place in np.argwhere(topology.possible).tolist() if topology.targets[place[1]].node.layer != 0]
    for row, column in places[:: max(1, len(places) // 12)]:
        keep = torch.from_numpy(topology.possible.copy())
        keep[row, column] = False
        change, expected = model.run(batch, keep, ablation) - full, hooks.logits_without(row, column) - full
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=3e-6 * float(full.abs().max()))
    plain = base(family).linearize(batch, LOGIT_DIFFERENCE, CLEAN, ablation)
    scores = model.linearize(batch, LOGIT_DIFFERENCE, CLEAN, ablation)
    assert relative(over_spans(scores, len(model.spans.names)), plain) < 1e-5


def test_optimal_constants_are_learned_and_used_on_spans() -> None:
    model = smaller("llama")
    batch = with_spans(token_batch([5, 4, 6], 41, seed=2, first=2), model)
    means = source_means(model, [batch], False)
    start = LearnedConstants(means.finish(), means.spread()).finished()
    assert start.means is not None
    mean = Ablation("mean", start.means)
    keep = torch.rand(4, *model.topology.possible.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    torch.testing.assert_close(model.run(batch, keep, start), model.run(batch, keep, mean))
    work = Workload((batch,), LOGIT_DIFFERENCE, start)
    learned = (
        METHODS["uniform-gradients"]
        .load_learning()
        .learn(model, work, METHODS["uniform-gradients"].options({"steps": 3, "samples": 2}))
    )
    assert learned.ablation.means is not None
    moved = [float((a - b).abs().max()) for a, b in zip(learned.ablation.means.tensors(), start.means.tensors())]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("family", ["olmo2"])
def test_acdc_is_the_plain_loop_and_screened_edges_are_exact_where_said(family: str) -> None:
    model = smaller(family)
    work = Workload((with_spans(token_batch([5, 4], 41, seed=2, first=2), model),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    expected, margin = plain_loop(model, work, 0.07)
    assert margin > 1e-3 and 0 < expected.sum() < model.topology.edge_count
    np.testing.assert_array_equal(acdc.score(model, work, acdc.Options(tau=0.07)).kept, expected)
    truth = exact.score(model, work).values
    found = screen_verify.score(model, work, screen_verify.Options(edges=30, steps=2))
    assert found.exact is not None and found.exact.sum() >= 20
    scale = np.nanmax(np.abs(truth))
    np.testing.assert_allclose(found.values[found.exact], truth[found.exact], rtol=0, atol=1e-4 * scale)

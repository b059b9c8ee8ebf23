"""Scores of nodes, vectors and neurons, and the fixes of AtP*, on every family, against plain hooks."""

from __future__ import annotations

import contextlib
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.batch import Batch
from discovery.component_model import ComponentModel, KvHeads
from discovery.methods import atp, atp_star, eap, exact
from discovery.mlp_parts import mlp_parts
from discovery.model import Point
from discovery.node_effects import Fixes
from discovery.recording_hooks import attention_writer, mlp_writer
from discovery.workload import Workload
from graphs.node import PORTS
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE as METRIC
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

CLEAN = [Point(1.0, 1.0)]
CASES = [(family, "native") for family in FAMILIES] + [(family, "query") for family in ("llama", "gemma2", "olmo2")]


@cache
def component_model(family: str, kv_heads: KvHeads = "native") -> ComponentModel:
    """One model per family and worker: no test changes it."""
    return ComponentModel(tiny_model(family), kv_heads=kv_heads)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def forward(model: ComponentModel, batch: Batch, tokens: Tensor) -> Tensor:
    return model.hf(
        input_ids=tokens, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
    ).logits[:, -1]


@pytest.mark.parametrize(("family", "kv_heads"), CASES)
def test_a_nodes_score_is_the_sum_of_its_edges(family: str, kv_heads: KvHeads) -> None:
    model, batch = component_model(family, kv_heads), tiny_batch()
    for ablation in (COUNTERFACTUAL, ZERO):
        edges = model.linearize(batch, METRIC, CLEAN, ablation)
        nodes = model.linearize_nodes(batch, METRIC, ablation)
        assert relative(nodes.sources, edges.sum(2)) < 1e-5, ablation.kind


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_and_vectors_by_plain_hooks(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    clean, corrupt = _tensors(model, batch, batch.clean), _tensors(model, batch, batch.corrupt)
    found = model.linearize_nodes(batch, METRIC, COUNTERFACTUAL, neurons=True)
    assert found.neurons is not None
    for block in model.blocks:
        change, slope = _change(clean, corrupt, mlp_parts(block).down)
        expected = (change * slope).sum(1)
        assert relative(found.neurons[:, block.index], expected) < 1e-4
        if block.post_mlp_norm is None:  # the last projection is linear: neurons add up to their MLP
            row = [str(node) for node in model.topology.sources].index(f"m{block.index}")
            assert relative(expected.sum(1), found.sources[:, row]) < 1e-4
        pieces = [_change(clean, corrupt, module) for module in block.projections]
        parts = zip(*(block.split([piece[which] for piece in pieces]) for which in (0, 1)), strict=True)
        first = [str(slot) for slot in model.topology.targets].index(f"a{block.index}.h0<q>")
        expected = torch.cat([(change * slope).sum((1, 3)) for change, slope in parts], 1)
        assert relative(found.slots[:, first : first + expected.shape[1]], expected) < 1e-4


def _tensors(model: ComponentModel, batch: Batch, tokens: Tensor) -> dict[object, tuple[Tensor, Tensor]]:
    """By module the tensor at it (what `down` reads, what projections give), and its gradient."""
    seen: dict[object, Tensor] = {}

    def watch(module, args, out) -> None:
        seen[module] = out

    handles = []
    for block in model.blocks:
        handles += [module.register_forward_hook(watch) for module in block.projections]
        down = mlp_parts(block).down
        handles.append(down.register_forward_hook(lambda module, args, _: seen.update({module: args[0]})))
    try:
        value = METRIC.compute(forward(model, batch, tokens), batch, None).sum()
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(value, list(seen.values()))
    return {module: (tensor.detach(), slope) for (module, tensor), slope in zip(seen.items(), gradients, strict=True)}


def _change(clean: dict, corrupt: dict, module) -> tuple[Tensor, Tensor]:
    return clean[module][0] - corrupt[module][0], clean[module][1]


def test_every_neuron_takes_two_forward_passes_and_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = ComponentModel(tiny_model("llama"), share_prefix=False), tiny_batch()
    calls = {"forward": 0, "backward": 0}
    gradient = torch.autograd.grad

    def counted(*arguments, **options):
        calls["backward"] += 1
        return gradient(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    handle = model.blocks[-1].mlp.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    scores = atp.score(model, Workload((batch,), METRIC, COUNTERFACTUAL), atp.Options(neurons=True))
    handle.remove()
    assert calls == {"forward": 2, "backward": 1}
    assert scores.neurons is not None and scores.neurons.shape == (3, 40)
    assert (
        scores.strongest_parts(3)[0][1]
        == pytest.approx(max(np.abs(scores.neurons).max(), np.nanmax(np.abs(scores.slots))), rel=1e-6)
        or scores.strongest_parts(3)[0][1] < 0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_qk_fix_is_the_heads_mix_with_one_slot_patched(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    scores = model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, Fixes(qk_fix=True)).sum(0)
    plain = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL).sum(0)
    topology, hooks = model.topology, PlainHooks(model, batch)
    sharp = torch.tensor([slot.port in ("q", "k") for slot in topology.targets])
    assert relative(scores[:, ~sharp], plain[:, ~sharp]) < 1e-5
    edges = (torch.from_numpy(topology.possible) & sharp).nonzero()
    sample = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(0))[:12]]
    scale = float(scores.abs().max())
    for source, target in sample.tolist():
        layer = topology.targets[target].node.layer
        assert layer is not None
        clean, slope = _mix(model, batch, layer)
        difference = hooks.corrupt[source] - hooks.clean[source]
        with contextlib.ExitStack() as stack:
            hooks._patch_head(stack, topology.targets[target], difference)
            patched, _ = _mix(model, batch, layer)
        expected = float(((clean - patched) * slope).sum())
        assert float(scores[source, target]) == pytest.approx(expected, abs=1e-4 * scale), topology.edge(source, target)


def _mix(model: ComponentModel, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """What a layer's output projection reads, and the metric's gradient there."""
    seen: list[Tensor] = []
    handle = model.blocks[layer].output.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        value = METRIC.compute(forward(model, batch, batch.clean), batch, None).sum()
    finally:
        handle.remove()
    (slope,) = torch.autograd.grad(value, seen)
    return seen[0].detach(), slope


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_drop_detaches_one_layer_at_a_time(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    edges = model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, Fixes(grad_drop=True))
    nodes = model.linearize_nodes(batch, METRIC, COUNTERFACTUAL, Fixes(grad_drop=True))
    layers, expected, expected_nodes = len(model.blocks), torch.zeros_like(edges), torch.zeros_like(nodes.sources)
    for block in model.blocks:
        modules = (attention_writer(block), mlp_writer(block))
        handles = [module.register_forward_hook(lambda _m, _a, out: out.detach()) for module in modules]
        try:
            scores = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
        finally:
            for handle in handles:
                handle.remove()
        expected += scores.abs() / (layers - 1)
        outside = torch.tensor([node.layer != block.index for node in model.topology.sources])
        expected_nodes += (scores.sum(2) * outside).abs() / (layers - 1)
    assert relative(edges, expected) < 1e-5
    assert relative(nodes.sources, expected_nodes) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox-parallel"])
def test_the_qk_fix_sees_through_a_saturated_softmax(family: str) -> None:
    """Queries so long that attention looks at one place: the gradient there is nothing, the effect is not."""
    hf = tiny_model(family)
    model = ComponentModel(hf)
    with torch.no_grad():
        for block in model.blocks:
            block.weight("q").mul_(5)
    work = Workload((tiny_batch(),), METRIC, COUNTERFACTUAL)
    truth = exact.score(model, work).values
    sharp = [slot.port in ("q", "k") for slot in model.topology.targets]
    wanted = model.topology.possible & np.array(sharp)
    errors = [
        np.abs(values[wanted] - truth[wanted]).mean()
        for values in (
            eap.score(model, work).values,
            atp_star.score(model, work, atp_star.Options(grad_drop=False)).values,
        )
    ]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_magnitudes_have_the_sign_of_the_plain_gradient(level) -> None:
    model, work = component_model("gpt2"), Workload((tiny_batch(),), METRIC, COUNTERFACTUAL)
    star = atp_star.score(model, work, atp_star.Options(level=level, neurons=level == "nodes"))
    plain = (eap if level == "edges" else atp).score(model, work)
    known = np.isfinite(star.values)
    assert np.array_equal(star.values[known] < 0, plain.values[known] < 0)
    assert (star.values[known] < 0).any()
    if level == "nodes":
        assert star.neurons is not None and (star.neurons < 0).any() and (star.neurons > 0).any()
        ports = np.isfinite(star.slots)
        assert [slot.port in PORTS for slot in star.topology.targets] == ports.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_layer_has_nothing_to_drop(family: str) -> None:
    hf = tiny_model(family)
    hf.get_submodule(ComponentModel(hf).arch.layers)
    layers = hf.get_submodule(ComponentModel(hf).arch.layers)
    del layers[1:]
    model, batch = ComponentModel(hf), tiny_batch()
    plain = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    assert relative(model.linearize_fixed(batch, METRIC, COUNTERFACTUAL, Fixes(grad_drop=True)), plain.abs()) < 1e-5

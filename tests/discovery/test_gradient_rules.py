"""Relevance rules and interpolated sublayers, on every family, against models rebuilt by hand and against real runs."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.methods import eap, eap_ig_activations, relp
from discovery.methods.eap_ig_activations import sublayers
from discovery.mlp_parts import mlp_parts
from discovery.model import Point
from discovery.rules import PLAIN, RELEVANCE, Rules
from discovery.workload import Workload
from tests.discovery.frozen_surrogate import FrozenSurrogate
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE as METRIC
from tests.discovery.residual_model import ResidualModel, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

CLEAN = [Point(1.0, 1.0)]
GATED = (
    "phi3",
    "llama",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-images",
    "olmo2",
)
SOME = ("gpt2", "gpt_neox-parallel", "phi3", "llama", "gemma2", "olmo2")
"""One family of each shape, for what takes long."""
# No bias anywhere that a frozen run would add to what its inputs bring.
WITHOUT_BIAS = ("phi3", "llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "olmo2")


@cache
def component_model(family: str) -> ComponentModel:
    """One model per family and worker: no test changes it."""
    return ComponentModel(tiny_model(family))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_surrogate_of_the_rules_is_the_model_itself(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    zeros = [torch.zeros(()) for _ in model.topology.targets]
    with torch.no_grad():
        assert relative(FrozenSurrogate(model, batch).run(zeros)[0], model.full_logits(batch)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_relevance_is_the_gradient_of_the_frozen_model(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    gradients = FrozenSurrogate(model, batch).slot_gradients(METRIC)
    hooks = PlainHooks(model, batch)
    change = torch.stack([clean - corrupt for clean, corrupt in zip(hooks.clean, hooks.corrupt, strict=True)])
    expected = torch.einsum("srpd,trpd->rst", change, gradients) * torch.from_numpy(model.topology.possible)
    scores = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE)
    assert relative(scores, expected) < 1e-3  # secants near 0 are slopes


@pytest.mark.parametrize("family", WITHOUT_BIAS)
def test_relevance_is_neither_made_nor_lost_in_a_node(family: str) -> None:
    """Of a model without biases each node hands on what it receives, and `input` all of the metric."""
    model, batch = component_model(family), tiny_batch()
    topology = model.topology
    scores = model.linearize(batch, METRIC, CLEAN, ZERO, RELEVANCE)
    out, into = scores.sum(2), scores.sum(1)
    scale = float(out.abs().max())
    for columns, fed in _groups(topology):
        received, given = into[:, columns].sum(1), out[:, fed].sum(1)
        assert float((received - given).abs().max()) < 1e-3 * scale, topology.targets[columns[0]]
    if family != "gemma2":  # its soft cap behind the logits is no part of the rules
        metric = METRIC.compute(model.full_logits(batch), batch, None)
        assert relative(into[:, -1], metric) < 1e-3
    assert relative(out[:, 0], into[:, -1]) < 1e-3
    plain = model.linearize(batch, METRIC, CLEAN, ZERO, PLAIN)
    assert relative(plain.sum(2)[:, 0], plain.sum(1)[:, -1]) > 0.01  # gradients alone do not add up


def _groups(topology) -> list[tuple[list[int], list[int]]]:
    """Slots and sources of each head group and each MLP."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for column, slot in enumerate(topology.targets):
        if slot.port in ("v", None) and topology.feeds[column]:
            groups.setdefault(topology.feeds[column], []).append(column)
    return [(columns, list(fed)) for fed, columns in groups.items()]


@pytest.mark.parametrize("family", SOME)
def test_each_rule_alone_changes_scores_and_none_is_eap(family: str) -> None:
    model = component_model(family)
    work = Workload((tiny_batch(),), METRIC, COUNTERFACTUAL)
    plain = eap.score(model, work).values
    none = relp.score(model, work, relp.Options(norms=False, nonlinearity=False, attention=False, gates=False)).values
    np.testing.assert_array_equal(none, plain)
    for rule in ("norms", "nonlinearity", "attention", "gates"):
        scores = model.linearize(work.batches[0], METRIC, CLEAN, COUNTERFACTUAL, Rules(**{rule: True})).mean(0).numpy()
        matters = rule != "gates" or family in GATED
        same = np.allclose(scores, np.nan_to_num(plain), rtol=0, atol=1e-4 * np.nanmax(np.abs(plain)))
        assert same != matters, rule


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_score_zero_and_a_model_is_left_as_it_was(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    before = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    scores = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL, RELEVANCE)
    ports = [slot.port for slot in model.topology.targets]
    assert not scores[:, :, [port in ("q", "k") for port in ports]].any()
    assert scores[:, :, [port == "v" for port in ports]].any()
    assert torch.equal(model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL), before)
    assert mlp_parts(model.blocks[0]).gated == (family in GATED)


def test_the_secant_rule_on_the_small_double_is_its_own_division() -> None:
    model, batch = ResidualModel(linear=False), token_batch([4, 5, 3])
    bent = model.linearize(batch, METRIC, CLEAN, ZERO, RELEVANCE)
    assert relative(bent.sum(2)[:, 0], bent.sum(1)[:, -1]) < 1e-5
    plain = model.linearize(batch, METRIC, CLEAN, ZERO)
    assert relative(plain.sum(2)[:, 0], plain.sum(1)[:, -1]) > 0.01


@pytest.mark.parametrize("family", SOME)
def test_edges_of_a_sublayer_add_up_to_the_effect_of_ablating_it(family: str) -> None:
    model, batch = component_model(family), tiny_batch()
    options = eap_ig_activations.Options(64, "gauss-legendre", "own")
    values = eap_ig_activations.score(model, Workload((batch,), METRIC, COUNTERFACTUAL), options).values
    possible = torch.from_numpy(model.topology.possible)
    full = METRIC.compute(model.full_logits(batch), batch, None).mean()
    said, real = [], []
    for rows in sublayers(model.topology).values():
        keep = possible.clone()
        keep[rows] = False
        real.append(full - METRIC.compute(model.run(batch, keep, COUNTERFACTUAL), batch, None).mean())
        said.append(np.nansum(values[rows]))
    assert relative(torch.tensor(said), torch.stack(real)) < 5e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [0.4])
def test_a_held_sublayer_is_a_run_with_its_edges_at_alpha(family: str, alpha: float) -> None:
    model, batch = component_model(family), tiny_batch()
    possible = torch.from_numpy(model.topology.possible)
    for place, rows in sublayers(model.topology).items():
        keep = torch.ones(possible.shape)
        keep[rows] = alpha
        keep.requires_grad_()
        value = METRIC.compute(model.run(batch, keep, COUNTERFACTUAL), batch, None)
        slope = torch.autograd.grad(value.sum(), keep)[0] * possible
        scores = model.linearize(batch, METRIC, [Point(alpha, 1.0, place)], COUNTERFACTUAL)
        assert float((scores.sum(0)[rows] - slope[rows]).abs().max()) < 1e-4 * float(slope.abs().max()), place


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_no_gradient_flows_back_through_a_held_sublayer(family: str) -> None:
    """MLP slots' gradients by plain hooks: the sublayer's output is replaced by a constant, as the EAP-IG library does."""
    model, batch = component_model(family), tiny_batch()
    hooks = PlainHooks(model, batch)
    change = torch.stack([clean - corrupt for clean, corrupt in zip(hooks.clean, hooks.corrupt, strict=True)])
    columns = [c for c, slot in enumerate(model.topology.targets) if slot.node.kind == "mlp"]
    for place, rows in sublayers(model.topology).items():
        if place is None:
            continue
        value = torch.stack([hooks.clean[r] - 0.7 * change[r] for r in rows]).sum(0)
        expected = _held_by_hand(model, batch, place, value) @ change.flatten(1).T  # [mlp, src], summed over pairs
        scores = model.linearize(batch, METRIC, [Point(0.3, 1.0, place)], COUNTERFACTUAL).sum(0)[:, columns].T
        expected = expected * torch.from_numpy(model.topology.possible[:, columns].T)
        assert relative(scores, expected) < 1e-4, place


def _held_by_hand(model: ComponentModel, batch: Batch, place, value: Tensor) -> Tensor:
    block = model.blocks[place.layer]
    attention = place.kind == "attention"
    norm, module = (block.post_attention_norm, block.output) if attention else (block.post_mlp_norm, block.mlp)
    bias = block.output.bias if attention and block.output.bias is not None else 0.0
    probes = [torch.zeros(*batch.clean.shape, value.shape[-1], requires_grad=True) for _ in model.blocks]
    handles = [(norm.module if norm else module).register_forward_hook(lambda *_: value + bias)]
    for other, probe in zip(model.blocks, probes, strict=True):
        assert other.mlp_norm is not None
        handles.append(
            other.mlp_norm.module.register_forward_pre_hook(lambda _m, args, probe=probe: (args[0] + probe,))
        )
    try:
        logits = model.hf(
            input_ids=batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
        ).logits[:, -1]
        total = METRIC.compute(logits, batch, None).sum()
        gradients = torch.autograd.grad(total, probes, materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(gradients).flatten(1)


@pytest.mark.parametrize("over", ["all", "own"])
@pytest.mark.parametrize("family", ["gemma2"])
def test_the_two_averages_are_means_of_single_points(family: str, over: Literal["all", "own"]) -> None:
    model, batch = component_model(family), tiny_batch()
    places = sublayers(model.topology)
    options = eap_ig_activations.Options(3, "right", over)
    values = eap_ig_activations.score(model, Workload((batch,), METRIC, COUNTERFACTUAL), options).values
    expected = torch.zeros(values.shape)
    for place, rows in places.items():
        for k in (1, 2, 3):
            one = model.linearize(batch, METRIC, [Point(k / 3, 1 / 3, place)], COUNTERFACTUAL).mean(0)
            if over == "all":
                expected += one / len(places)
            else:
                expected[rows] += one[rows]
    assert relative(torch.from_numpy(np.nan_to_num(values)), expected) < 1e-5

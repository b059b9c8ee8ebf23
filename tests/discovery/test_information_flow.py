"""Information-flow routes on every family against loops over positions, with what plain hooks saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL
from discovery.batch import Batch
from discovery.component_model import ComponentModel, KvHeads
from discovery.methods import information_flow
from discovery.workload import Workload
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE
from tests.discovery.tiny_models import FAMILIES, GROUPED, tiny_batch, tiny_model

CASES = [(family, "native") for family in FAMILIES] + [(family, "query") for family in GROUPED[:1]]


def near(whole: Tensor, part: Tensor) -> float:
    return max(0.0, float(whole.abs().sum() - (whole - part).abs().sum()))


def routes(model: ComponentModel, batch: Batch, row: int, tau: float, whole: bool = True) -> Any:
    """One prompt's scores [src dst]: a stack of (source, position) still to be explained, from the read on.

    whole: otherwise the shares of every (slot, position), and the positions that every key and value slot is looked at from
    every position.
    """
    hooks, topology = PlainHooks(model, batch), model.topology
    with torch.no_grad():
        patterns = model.hf(
            input_ids=batch.clean,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            output_attentions=True,
        ).attentions
    shares: dict[tuple[int, int], dict[int, float]] = {}  # (slot, position) -> source -> share
    looked: dict[tuple[int, int], set[int]] = {}
    todo = [(len(topology.targets) - 1, int(batch.read_column[row]))]
    while todo:
        slot, place = todo.pop()
        if (slot, place) in shares:
            continue
        node = topology.targets[slot].node
        stream = hooks.streams["final" if node.kind == "logits" else _stage(node)][row, place]
        visible = np.flatnonzero(topology.possible[:, slot]).tolist()
        found = {source: near(stream, hooks.clean[source][row, place]) for source in visible}
        total = sum(found.values())
        kept = {source: value / total for source, value in found.items() if value > 0 and value / total >= tau}
        shares[slot, place] = kept
        for source in kept:
            onward = _slots(model, hooks, patterns, source, row, place, tau)
            for column, key in onward:
                if topology.targets[column].port in ("k", "v"):
                    looked.setdefault((column, place), set()).add(key)
            todo += onward
    if not whole:
        return shares, looked
    scores = torch.zeros(topology.possible.shape)
    for slot in range(len(topology.targets)):
        places = [kept for (column, _), kept in shares.items() if column == slot]
        for kept in places:
            for source, share in kept.items():
                scores[source, slot] += share / len(places)
    return scores


def _stage(node) -> str:
    return f"mlp{node.layer}" if node.kind == "mlp" else f"attention{node.layer}"


def _slots(model, hooks, patterns, source: int, row: int, place: int, tau: float) -> list[tuple[int, int]]:
    """Where a source at a position goes on: an MLP at its own, a head at its query's and at those that it looks at."""
    topology, node = model.topology, model.topology.sources[source]
    if node.kind == "input":
        return []
    found = []
    for slot in topology.slots_of[source]:
        port = topology.targets[slot].port
        if port in (None, "q"):
            found.append((slot, place))
            continue
        block = model.blocks[node.layer]
        stream = hooks.streams[f"attention{node.layer}"][row]
        with torch.no_grad():
            read = stream if block.attention_norm is None else block.attention_norm(stream)
            weight, bias = block.weight("v"), block.bias("v")
            shared = node.index // (block.heads // block.kv_slots)
            value = read @ weight[shared].T + (0 if bias is None else bias[shared])
            norm = 1 if block.post_attention_norm is None else block.post_attention_norm.weight
            parts = patterns[node.layer][row, node.index, place, :, None] * (value @ block.output_weight()[node.index])
            parts = parts * norm
        whole = parts.sum(0)
        closeness = [near(whole, part) for part in parts]
        total = sum(closeness)
        found += [(slot, key) for key, value in enumerate(closeness) if value > 0 and value / total >= tau]
    return found


@pytest.mark.parametrize(("family", "kv_heads"), CASES)
def test_routes_are_followed_from_the_read_down(family: str, kv_heads: KvHeads) -> None:
    model, batch = ComponentModel(tiny_model(family), kv_heads=kv_heads), tiny_batch(pairs=1, width=6, first_change=3)
    scores = model.flow(batch, 0.07)
    torch.testing.assert_close(scores[0], routes(model, batch, 0, 0.07), atol=2e-4, rtol=0)
    assert 0 < int((scores > 0).sum()) < int((model.flow(batch, 0.0) > 0).sum())


def test_without_a_threshold_every_row_follows_all() -> None:
    model, batch = ComponentModel(tiny_model("gpt_neo")), tiny_batch(pairs=2, width=6, first_change=3)
    scores = model.flow(batch, 0.0)
    for row in range(len(batch)):
        torch.testing.assert_close(scores[row], routes(model, batch, row, 0.0), atol=2e-4, rtol=0)


def test_shares_of_a_slot_that_is_reached_add_up_to_one_and_corrupt_prompts_have_no_say() -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), tiny_batch()
    scores = model.flow(batch, 0.0)
    sums = scores.sum(1)
    assert torch.allclose(sums[sums > 0], torch.ones(()), atol=1e-5)
    assert torch.allclose(sums[:, -1], torch.ones(len(batch)), atol=1e-5)
    values = information_flow.score(model, Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL)).values
    np.testing.assert_allclose(values[model.topology.possible], scores.mean(0)[model.topology.possible], atol=1e-6)
    assert (values[model.topology.possible] >= 0).all()


def test_shares_of_the_logits_are_sums_of_products_over_routes() -> None:
    model, batch = ComponentModel(tiny_model("llama", smaller=True)), tiny_batch()
    topology, shares = model.topology, model.flow(batch, 0.0)
    expected = torch.zeros_like(shares)

    def follow(column: int, product: Tensor) -> None:
        for row in np.flatnonzero(topology.possible[:, column]).tolist():
            here = product * shares[:, row, column]
            expected[:, row, column] += here
            for slot in topology.slots_of[row]:
                follow(slot, here)

    follow(len(topology.targets) - 1, torch.ones(len(batch)))
    torch.testing.assert_close(information_flow.shares_of_logits(shares, topology), expected)
    work = Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    values = information_flow.score(model, work, information_flow.Options(of="logits")).values
    np.testing.assert_allclose(values[topology.possible], expected.mean(0)[topology.possible], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tau", [-0.1, 1.0])
def test_bad_thresholds_are_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=r"information-flow.*tau"):
        information_flow.Options(tau)

"""Weights in bfloat16 with attribution in float32: scores near those of the same rounded weights in float32 throughout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel, KvHeads
from discovery.metrics import METRICS
from discovery.model import Point
from tests.discovery.tiny_models import FAMILIES, GROUPED, tiny_batch, tiny_model

METRIC = METRICS["logit-diff"]
_TOLERANCE = 0.08
"""Of the scores' length; bfloat16 has 8 bits, and a forward and a backward pass of three layers round in it (largest seen:
0.048)."""


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_near_those_of_float32(family: str) -> None:
    half = tiny_model(family, dtype=torch.bfloat16)
    full, batch = copy.deepcopy(half).float(), tiny_batch()
    points = 3 if family in GROUPED else 1
    kv_heads: KvHeads = "query" if family in GROUPED else "native"
    steps = [Point(1 - k / points, 1 / points) for k in range(points)]
    scores, exact = (
        ComponentModel(model, kv_heads=kv_heads).linearize(batch, METRIC, steps, COUNTERFACTUAL)
        for model in (half, full)
    )
    assert scores.dtype == torch.float32
    assert _difference(scores, exact) < _TOLERANCE
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_what_bfloat16_recorded_is_multiplied_in_float32(family: str) -> None:
    model, batch = ComponentModel(tiny_model(family, dtype=torch.bfloat16)), tiny_batch()
    scores = model.linearize(batch, METRIC, [Point(1.0, 1.0)], COUNTERFACTUAL)
    # Products and sums in bfloat16 would leave only its 8 bits in the results.
    rounded = scores.to(torch.bfloat16).float()
    assert float((rounded == scores)[scores != 0].float().mean()) < 0.1
    masks = torch.ones(model.topology.possible.shape)
    masks[0] = 0
    logits = model.run(batch, masks, COUNTERFACTUAL)
    exact = ComponentModel(copy.deepcopy(model.hf).float()).run(batch, masks, COUNTERFACTUAL)
    assert _difference(logits.float(), exact) < _TOLERANCE

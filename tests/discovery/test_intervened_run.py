"""Intervened passes of tiny models of every family, against plain hooks and the local replacement model's arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.intervened_run import intervened_pass, untouched_pass
from discovery.intervention import Edit, prompts_of
from discovery.replacement import LocalReplacement
from graphs.node import NodeId
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, random_tokens, tiny_transcoders

FREEZES = ("none", "attention", "all")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ComponentModel:
    return ComponentModel(tiny_model(request.param))


def _logits(model: ComponentModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.hf(tokens[None]).logits[0]


@pytest.mark.parametrize("freeze", FREEZES)
def test_without_interventions_every_run_is_the_model(model: ComponentModel, freeze) -> None:
    tokens = random_tokens(model, seed=3)[0]
    everywhere = (torch.zeros(len(tokens), dtype=torch.long), torch.arange(len(tokens)))
    for kind in ("skip", "cross-layer"):
        outcome = intervened_pass(model, tiny_transcoders(model, kind), tokens, freeze=freeze, reads=everywhere)
        assert torch.allclose(outcome.logits, _logits(model, tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_doubling_is_the_edge(model: ComponentModel, kind) -> None:
    transcoders = tiny_transcoders(model, kind)
    tokens = random_tokens(model, seed=1)[0]
    replacement = LocalReplacement(model, transcoders, tokens)
    features = replacement.features
    order = features.layer.argsort(descending=True, stable=True)
    effects = replacement.direct_effects(replacement.feature_readouts(order)).t()
    untouched = untouched_pass(model, prompts_of([tokens.tolist()]))
    for source in torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:4].tolist():
        node = NodeId(
            "feature", int(features.layer[source]), int(features.index[source]), int(features.position[source])
        )
        run = intervened_pass(
            model, transcoders, tokens, [Edit.of(node, "scale", 2.0)], freeze="all", untouched=untouched
        )
        for row, target in enumerate(order.tolist()):
            h = run.preactivations(int(features.layer[target]))[0, features.position[target], features.index[target]]
            change = h - features.preactivation[target]
            assert torch.allclose(change, effects[row, source], atol=5e-4, rtol=1e-5)

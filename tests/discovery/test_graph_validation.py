"""Graphs of tiny models validate themselves; a wrong graph does not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.attribution import attribution_graph
from discovery.component_model import ComponentModel
from discovery.graph_validation import validate_graph
from discovery.intervened_run import untouched_pass
from discovery.intervention import prompts_of
from discovery.recording import session
from discovery.replacement import LocalReplacement
from discovery.statistics import agreement
from discovery.targets import likely_targets, parse_targets
from discovery.transcoder import Activation, Transcoder, TranscoderSet
from discovery.visited_forward import visiting
from graphs.attribution import AttributionGraph
from graphs.total_effect import total_effects
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import random_tokens, tiny_transcoders


def _traced(family: str, kind) -> tuple:
    model = ComponentModel(tiny_model(family))
    transcoders = tiny_transcoders(model, kind)
    replacement = LocalReplacement(model, transcoders, random_tokens(model, seed=2)[0])
    targets = likely_targets(model, replacement.frozen) + parse_targets(
        model, replacement.frozen, ["logit(5) - logit(7)"]
    )
    return model, transcoders, attribution_graph(replacement, targets, share=1.0)


def _by_paths(graph: AttributionGraph) -> np.ndarray:
    """Total effects by a dense solve: the sum over all paths of products of responses."""
    weights = graph.weights.toarray().astype(np.float64)
    is_feature = np.array([node.kind == "feature" for node in graph.nodes])
    response = np.where(is_feature, 1 / np.where(is_feature, graph.activations, 1), 0)
    return np.linalg.solve(np.eye(len(weights)) - weights * response[None, :], weights)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("gpt2", "relu"),
        ("gemma2", "jumprelu"),
        ("gpt_neox-parallel", "skip"),
        ("llama", "cross-layer"),
        ("olmo2", "topk"),
    ],
)
def test_the_frozen_model_agrees_with_every_edge(family: str, kind) -> None:
    model, transcoders, graph = _traced(family, kind)
    found = validate_graph(model, transcoders, graph, edges=40, features=5)
    assert found.exactness.edges == found.exactness.within == 40
    targets = np.arange(len(graph.nodes))
    assert np.allclose(total_effects(graph, targets), _by_paths(graph), atol=1e-6)
    effects = total_effects(graph, graph.targets)
    for effect in found.features["none"]:
        place = [str(node) for node in graph.nodes].index(effect.source)
        row = [str(graph.nodes[target]) for target in graph.targets].index(effect.target)
        wanted = effects[row, place] * (1 if effect.change == "double" else -1)
        assert effect.predicted == pytest.approx(wanted, abs=1e-6)
    stored = json.loads(json.dumps(found.to_json(), allow_nan=True))
    assert stored["agreement"]["features"]["none"]["count"] == 5 * len(graph.targets) * 2


def test_a_wrong_graph_is_found_out() -> None:
    model, transcoders, graph = _traced("llama", "relu")
    wrong = replace(graph, weights=graph.weights * np.float32(1.1))
    found = validate_graph(model, transcoders, wrong, edges=20, features=2)
    assert found.exactness.within < 5
    assert found.exactness.largest_error > 0.01


def test_agreement_of_numbers() -> None:
    same = agreement([1.0, -2.0, 3.0, 0.0], [10.0, -20.0, 30.0, 5.0])
    assert (same.count, same.signs) == (4, 1.0)
    assert agreement([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]).spearman == pytest.approx(1)
    assert agreement([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]).pearson == pytest.approx(np.corrcoef([1, 2, 3], [1, 4, 9])[0, 1])
    assert agreement([1.0, 2.0], [-1.0, -3.0]).signs == 0
    assert np.isnan(agreement([1.0], [2.0]).pearson)


def test_total_effects_are_what_a_relu_model_does() -> None:
    """Where the transcoders are the MLPs themselves, a small change runs through the real MLPs as the graph says."""
    model, transcoders = _relu_model()
    tokens = random_tokens(model, seed=2)[0]
    replacement = LocalReplacement(model, transcoders, tokens)
    targets = likely_targets(model, replacement.frozen)
    graph = attribution_graph(replacement, targets, share=1.0)
    effects = total_effects(graph, graph.targets)
    untouched = untouched_pass(model, prompts_of([tokens.tolist()]))
    sources = [place for place, node in enumerate(graph.nodes) if node.kind == "feature" and node.layer == 0][::7]
    step = 1e-3  # small enough that no gate flips
    for source in sources[:6]:
        node = graph.nodes[source]
        moved = []
        for sign in (step, -step):

            def visit(site: str, layer: int, value: Tensor, node=node, source=source, sign=sign) -> Tensor:
                if (site, layer) != ("mlp-out", 0):
                    return value
                change = torch.zeros_like(value)
                change[0, int(str(node.position))] = transcoders.by_layer[0].decoders[0][node.index]
                return value + sign * float(graph.activations[source]) * change

            with (
                session(model.hf, model.arch, untouched.blocks),
                visiting(model, untouched.blocks, visit, "all", (), untouched.seen),
                torch.no_grad(),
            ):
                logits = model.hf(tokens[None]).logits[0, -1]
            moved.append(torch.stack([logits[target.node.index] - logits.mean() for target in targets]))
        measured = ((moved[0] - moved[1]) / (2 * step)).double().numpy()
        assert np.allclose(measured, effects[:, source], atol=2e-3 * np.abs(effects).max())
    direct = np.asarray(graph.weights[graph.targets].todense())
    assert np.abs(direct - effects)[:, sources].max() > 0.05 * np.abs(effects).max(), "indirect paths must matter"


def _relu_model() -> tuple[ComponentModel, TranscoderSet]:
    """A tiny GPT-2 with ReLU, and its own MLPs as transcoders, exactly."""
    hf: Any = tiny_model("gpt2")
    for block in hf.transformer.h:
        block.mlp.act = torch.nn.ReLU()
    made = tuple(
        Transcoder(
            layer, block.mlp.c_fc.weight.T.contiguous(), block.mlp.c_fc.bias, {layer: block.mlp.c_proj.weight},
            Activation("relu"),
        )
        for layer, block in enumerate(hf.transformer.h)
    )  # fmt: skip
    biases = {layer: block.mlp.c_proj.bias for layer, block in enumerate(hf.transformer.h)}
    hf.requires_grad_(False)
    return ComponentModel(hf), TranscoderSet(made, "mlp-in", "mlp-out", biases)

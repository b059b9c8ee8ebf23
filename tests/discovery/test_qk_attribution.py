"""Attention scores as sums over pairs of sources: against the library's own patterns, on every family."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery import qk_attribution as module
from discovery.component_model import ComponentModel, KvHeads
from discovery.qk_attribution import QkAttribution, QkFails, qk_attribution, strongest_pairs
from discovery.replacement import LocalReplacement
from discovery.score_maps import ScoreMaps
from discovery.source_columns import source_nodes
from graphs.node import Port
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, random_tokens, tiny_transcoders


@cache
def _made(family: str, kv_heads: KvHeads = "native") -> LocalReplacement:
    model = ComponentModel(tiny_model(family), kv_heads=kv_heads)
    kind = KINDS[list(FAMILIES).index(family) % len(KINDS)]
    return LocalReplacement(model, tiny_transcoders(model, kind), random_tokens(model, seed=2)[0, :8])


def _softcap(replacement: LocalReplacement) -> float | None:
    return getattr(replacement.model.config.get_text_config(), "attn_logit_softcapping", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_pattern(family: str) -> None:
    replacement, cap = _made(family), _softcap(_made(family))
    for layer in range(replacement.layers):
        maps = ScoreMaps(replacement.model, replacement.frozen, layer)
        for head in range(replacement.model.blocks[layer].heads):
            for query in range(1, replacement.width):
                pattern = replacement.frozen.layers[layer].pattern[head, query]
                seen = pattern > 1e-6
                scores, best = maps.scores(head, query), int(pattern.argmax())
                scores = scores if cap is None else cap * torch.tanh(scores / cap)
                wanted = pattern[seen].log() - pattern[best].log()
                torch.testing.assert_close(scores[seen] - scores[best], wanted, rtol=1e-3, atol=1e-3)


def _all_pairs(replacement: LocalReplacement, layer: int, head: int, query: int, weights: Tensor) -> Tensor:
    maps = ScoreMaps(replacement.model, replacement.frozen, layer)
    at_query = torch.zeros(replacement.width)
    at_query[query] = 1
    left = module._side(replacement, maps, layer, head, "q", at_query)
    return maps.scale * left @ module._side(replacement, maps, layer, head, "k", weights).t()


@pytest.mark.parametrize(
    ("family", "contrast"),
    [*((family, i % 2 == 1) for i, family in enumerate(FAMILIES)), ("gemma2", True), ("llama", True), ("olmo2", False)],
)
def test_pairs_sum_to_the_score(family: str, contrast: bool) -> None:
    replacement = _made(family)
    layer, head, query, key = replacement.layers - 1, 3, 6, 4
    found = qk_attribution(replacement, layer, head, query, key, top=12, contrast=contrast)
    maps = ScoreMaps(replacement.model, replacement.frozen, layer)
    scores, pattern = maps.scores(head, query), replacement.frozen.layers[layer].pattern[head, query]
    weights = torch.nn.functional.one_hot(torch.tensor(key), replacement.width).float()
    if contrast:
        weights = (weights - pattern) / (1 - pattern[key])
    assert found.score == pytest.approx(float(weights @ scores), abs=1e-3)
    pairs = _all_pairs(replacement, layer, head, query, weights)
    size = float(pairs.abs().sum())
    assert abs(found.error) < 1e-5 * size
    assert float(pairs.sum()) == pytest.approx(found.score, abs=1e-5 * size)
    assert sum(pair.value for pair in found.pairs) + found.rest == pytest.approx(found.score, abs=1e-6 * size)
    # The strongest pairs are those of the whole matrix, and each stands at its own sources.
    nodes = source_nodes(replacement, range(replacement.columns + 1))
    for pair in found.pairs:
        at = pairs[nodes.index(pair.query_source), nodes.index(pair.key_source)]
        assert pair.value == pytest.approx(float(at), abs=1e-6 * size)
    best = pairs.abs().flatten().topk(12).values
    np.testing.assert_allclose([abs(pair.value) for pair in found.pairs], best.numpy(), atol=1e-6 * size)
    for side, sums in ((found.query_side, pairs.sum(1)), (found.key_side, pairs.sum(0))):
        for term in side:
            assert term.value == pytest.approx(float(sums[nodes.index(term.source)]), abs=1e-5 * size)
        assert [abs(term.value) for term in side] == sorted((abs(term.value) for term in side), reverse=True)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["pairs"][0]["query"] == str(
        found.pairs[0].query_source
    )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox-parallel", "phi", "llama-bias", "qwen2", "gemma2"])
def test_sources_move_queries_as_the_module_does(family: str) -> None:
    """Without norms of queries and keys nothing is frozen in them: what is added to the stream shows in the module itself."""
    replacement = _made(family)
    layer, head, position = 1, 2, 5
    maps = ScoreMaps(replacement.model, replacement.frozen, layer)
    args, kwargs = replacement.frozen.seen.calls[layer]
    hidden = args[0] if args else kwargs["hidden_states"]
    norm, scale = replacement.model.blocks[layer].attention_norm, replacement.frozen.layers[layer].attention_scale
    assert norm is not None and scale is not None
    added = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    moved = hidden.clone()
    moved[0, position] += norm.centre(added) * scale[position] * norm.weight.detach()
    with maps._watched() as (caught, _):
        maps._attend(moved)
    sides: tuple[tuple[Port, Tensor, Tensor], ...] = (
        ("q", caught[0].query[0, head], maps.queries[head]),
        ("k", caught[0].key[0, maps.key_head(head)], maps.keys[maps.key_head(head)]),
    )
    for port, after, before in sides:
        reader = maps.reader(port, head)
        predicted = reader.slopes[position] @ reader.weight @ added * scale[position]
        torch.testing.assert_close((after - before)[position], predicted, rtol=1e-4, atol=1e-4)
        assert not (after - before)[:position].any()


@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2"])
def test_query_head_slots_make_no_difference(family: str) -> None:
    found: list[QkAttribution] = [qk_attribution(_made(family, kv), 2, 1, 7, 3) for kv in ("native", "query")]
    assert found[0].score == pytest.approx(found[1].score, abs=1e-4)
    assert [p.value for p in found[0].pairs] == pytest.approx([p.value for p in found[1].pairs], abs=1e-3)


def test_a_model_is_left_as_it_was() -> None:
    for family in ("gpt_neo", "qwen3", "gpt2"):
        replacement = _made(family)
        hf = replacement.model.hf
        tokens = replacement.frozen.tokens[None]
        before = hf(tokens).logits
        qk_attribution(replacement, 1, 0, 4, 4)
        torch.testing.assert_close(hf(tokens).logits, before, rtol=0, atol=0)


def test_strongest_pairs_look_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn((300, 6), generator=generator) * torch.rand((300, 1), generator=generator) ** 3
    right = torch.randn((200, 6), generator=generator)
    right[::5] = 0
    monkeypatch.setattr(module, "_BLOCK", 1000)
    products = left @ right.t()
    for count in (1, 7, 40):
        rows, columns, values = strongest_pairs(left, right, count)
        torch.testing.assert_close(values, products[rows, columns])
        torch.testing.assert_close(values.abs(), products.abs().flatten().topk(count).values)
    assert len(strongest_pairs(left[:1], right[:1], 5)[2]) == 0


@pytest.mark.parametrize(("layer", "head", "query", "key"), [(3, 0, 1, 1), (0, 4, 1, 1), (0, 0, 3, 4), (0, 0, 8, 1)])
def test_what_does_not_exist_is_named(layer: int, head: int, query: int, key: int) -> None:
    with pytest.raises(QkFails, match="compare"):
        qk_attribution(_made("llama"), 0, 0, 0, 0, contrast=True)
    with pytest.raises(QkFails, match="no such head" if layer == 3 or head == 4 else "attends from a position"):
        qk_attribution(_made("llama"), layer, head, query, key)

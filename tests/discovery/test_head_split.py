"""Edges split by head: against forward pushes of one source through one head, on every family and kind of transcoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery import head_split
from discovery.attribution import attribution_graph
from discovery.component_model import ComponentModel
from discovery.effect_rows import EffectRows
from discovery.head_split import SplitFails, split_by_head, split_graph
from discovery.replacement import LocalReplacement
from discovery.source_columns import source_columns, source_nodes
from discovery.targets import Target, likely_targets, parse_targets
from graphs.attribution_json import export_json, read_graph
from graphs.influence import prune
from graphs.node import NodeId
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, random_tokens, tiny_transcoders

CASES = [(family, KINDS[i % len(KINDS)]) for i, family in enumerate(FAMILIES)]
CASES += [("gpt_neox-parallel", "skip"), ("gemma2", "skip"), ("gemma3", "cross-layer"), ("llama", "skip")]


def _made(family: str, kind, width: int = 7) -> tuple[LocalReplacement, tuple[Target, ...]]:
    model = ComponentModel(tiny_model(family))
    tokens = random_tokens(model, seed=2)[0, :width]
    replacement = LocalReplacement(model, tiny_transcoders(model, kind), tokens)
    texts = ["logit(5) - logit(7)"]
    return replacement, likely_targets(model, replacement.frozen, most=2) + parse_targets(
        model, replacement.frozen, texts
    )


def _push_head(replacement: LocalReplacement, layer: int, head: int, stream: Tensor) -> Tensor:
    """What a head writes for a stream [pos d_model] that it reads, in double precision, from the raw weights."""
    block, frozen = replacement.model.blocks[layer], replacement.frozen.layers[layer]
    x = stream
    if block.attention_norm is not None and frozen.attention_scale is not None:
        x = block.attention_norm.centre(x) * frozen.attention_scale.double() * block.attention_norm.weight.double()
    value = x @ block.weight("v")[head * block.kv_slots // block.heads].double().t()
    written = frozen.pattern[head].double() @ value @ block.output_weight()[head].double()
    if block.post_attention_norm is not None and frozen.post_attention_scale is not None:
        written = written * block.post_attention_norm.weight.double() * frozen.post_attention_scale.double()
    return written


def _push_skip(replacement: LocalReplacement, layer: int, stream: Tensor) -> Tensor | None:
    """What a layer's skip connection writes for a stream that its MLP reads."""
    block, frozen = replacement.model.blocks[layer], replacement.frozen.layers[layer]
    transcoder = replacement.transcoders.by_layer[layer]
    if transcoder.skip is None:
        return None
    assert replacement.transcoders.reads == "mlp-in"
    x = stream
    if block.mlp_norm is not None and frozen.mlp_scale is not None:
        x = block.mlp_norm.centre(x) * frozen.mlp_scale.double() * block.mlp_norm.weight.double()
    return x @ transcoder.skip.double().t()  # these dictionaries write behind a post-norm


def _push(replacement: LocalReplacement, stream: Tensor, depth: int, end: int, first: tuple[int, int] | None) -> Tensor:
    """A stream carried from one depth to another. first: only this head (or skip: -1) reads it; then everything does."""
    straight = torch.zeros_like(stream) if first is None else stream
    moved = stream if first is None else torch.zeros_like(stream)
    before = moved
    while depth < end:
        layer, mlp = divmod(depth, 2)
        block = replacement.model.blocks[layer]
        if not mlp:
            added = torch.zeros_like(stream)
            for head in range(block.heads):
                added += _push_head(replacement, layer, head, moved)
                if first == (layer, head):
                    added += _push_head(replacement, layer, head, straight)
            before, moved = moved, moved + added
        else:
            added = _push_skip(replacement, layer, before if block.parallel else moved)
            if added is not None:
                moved = moved + added
            if first == (layer, -1):
                through = _push_skip(replacement, layer, straight)
                if through is not None:
                    moved = moved + through
        depth += 1
    return moved


@torch.no_grad()
def _slow(replacement: LocalReplacement, column: int, vector: Tensor, position: int, depth: int) -> dict[str, float]:
    """Every part of the effect of one source on one readout."""
    entry, written = head_split.source_vectors(replacement, torch.tensor([column]))
    parts: dict[str, float] = {}
    births = [(0, entry[0])] + [(2 * layer + 2, part[1][0]) for layer, part in enumerate(written) if len(part[0])]
    place = int(head_split.source_positions(replacement, torch.tensor([column])))
    for birth, what in births:
        if birth > depth:
            continue
        stream = torch.zeros_like(replacement.frozen.embeddings).double()
        stream[place] = what.double()

        def read(stream: Tensor) -> float:
            return float(stream[position] @ vector.double())

        parts["direct"] = parts.get("direct", 0.0) + read(stream)
        for layer in range(replacement.layers):
            block = replacement.model.blocks[layer]
            for head in range(-1, block.heads):
                if 2 * layer + (head < 0) < birth:
                    continue
                name = f"m{layer}" if head < 0 else f"a{layer}.h{head}"
                effect = read(_push(replacement, stream, birth, depth, (layer, head)))
                parts[name] = parts.get(name, 0.0) + effect
    return parts


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_parts_are_what_heads_read_first(family: str, kind) -> None:
    replacement, targets = _made(family, kind, width=5)
    rows = EffectRows(replacement, targets, 1.0)
    deep = np.flatnonzero((replacement.features.layer > 0).numpy())[-1:]
    numbers = np.concatenate([deep, np.array(rows.logit_rows[-1:])])
    readouts, _ = rows.readouts(numbers)
    # A feature, an error and a token as the sources of each readout.
    columns = np.array([0, replacement.first_error + 2, replacement.first_token + 1])
    row, column = (part.ravel() for part in np.meshgrid(np.arange(len(readouts)), columns, indexing="ij"))
    found = split_by_head(replacement, readouts, row, column, share=1.0)
    assert found.error < 1e-5
    through = found.through()
    for edge in range(len(row)):
        at = int(row[edge])
        place = int(readouts.position[at])
        wanted = _slow(replacement, int(column[edge]), readouts.vectors[at], place, int(readouts.depth[at]))
        size = max(map(abs, wanted.values()))
        for name, value in wanted.items():
            assert through[edge].get(name, 0.0) == pytest.approx(value, abs=2e-5 * max(size, 0.1)), (edge, name)
        assert set(through[edge]) <= set(wanted) | {"rest"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox-parallel"])
def test_query_head_slots_make_no_difference(family: str) -> None:
    hf = tiny_model(family)
    flows = []
    for kv_heads in ("native", "query"):
        model = ComponentModel(hf, kv_heads=kv_heads)
        replacement = LocalReplacement(model, tiny_transcoders(model, "relu"), random_tokens(model, seed=2)[0])
        targets = likely_targets(model, replacement.frozen)
        rows = EffectRows(replacement, targets, 1.0)
        readouts, _ = rows.readouts(np.array(rows.logit_rows))
        columns = np.arange(replacement.sources)
        found = split_by_head(replacement, readouts, np.zeros(len(columns), dtype=int), columns)
        flows.append(found.flow)
    np.testing.assert_allclose(flows[0], flows[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("qwen3", "cross-layer"), ("olmo2", "skip"), ("phi", "topk")])
def test_a_pruned_graph_says_what_its_edges_pass_through(family: str, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    replacement, targets = _made(family, kind)
    graph = prune(attribution_graph(replacement, targets, share=1.0), 0.9, 0.95)
    whole = split_graph(replacement, targets, graph, share=1.0)
    monkeypatch.setattr(head_split, "_BATCH_BYTES", 4 * 2000)  # many batches, of few rows and edges each
    found = split_graph(replacement, targets, graph, share=0.8)
    assert found.error < 1e-5
    np.testing.assert_allclose(found.flow, whole.flow, rtol=1e-4, atol=1e-7)
    stored = replace(graph, through=found.through())
    assert read_graph(export_json(stored)).same_as(stored)
    for edge, parts in stored.through.items():
        size = sum(map(abs, whole.through()[edge].values()))
        assert sum(parts.values()) == pytest.approx(float(graph.weights[edge]), abs=1e-5 * max(size, 1.0))
        listed = [abs(value) for name, value in parts.items() if name != "rest"]
        assert listed == sorted(listed, reverse=True)
        assert sum(listed) >= 0.8 * size - 1e-6
        assert sum(listed[:-1]) < 0.8 * size + 1e-6
    heads = found.head_flow()
    unit = graph.edge_scores / np.abs(graph.weights)
    for node, flow in heads.items():
        slow = sum(unit[edge] * abs(parts[str(node)]) for edge, parts in whole.through().items() if str(node) in parts)
        assert flow == pytest.approx(slow, rel=1e-3)
    assert list(heads.values()) == sorted(heads.values(), reverse=True)


def test_what_does_not_add_up_is_refused() -> None:
    replacement, targets = _made("llama", "relu")
    graph = prune(attribution_graph(replacement, targets, share=1.0), 0.9, 0.95)
    wrong = replace(graph, weights=graph.weights * np.float32(1.5))
    with pytest.raises(SplitFails, match="not of this model and prompt"):
        split_graph(replacement, targets, wrong)
    with pytest.raises(SplitFails, match="none of the targets"):
        split_graph(replacement, targets[:1], graph)
    other, others = _made("llama", "jumprelu")
    with pytest.raises(ValueError, match=r"no active feature|not of this model"):
        split_graph(other, others, graph)


def test_a_graph_without_edges_has_nothing_to_split() -> None:
    replacement, targets = _made("llama", "relu")
    graph = prune(attribution_graph(replacement, targets, share=1.0), 0.9, 0.95)
    bare = replace(graph, edges=graph.edges[:0], weights=graph.weights[:0], edge_scores=graph.edge_scores[:0])
    found = split_graph(replacement, targets, bare)
    assert (found.through(), found.head_flow(), found.error) == ({}, {}, 0.0)


def test_columns_and_nodes_agree() -> None:
    replacement, targets = _made("gpt2", "relu")
    graph = attribution_graph(replacement, targets, bias_nodes=True)
    columns = range(replacement.columns + 1)
    assert source_nodes(replacement, columns) == graph.nodes[: len(columns)]
    some = range(replacement.sources)
    assert source_columns(replacement, [graph.nodes[i] for i in some]).tolist() == list(some)
    with pytest.raises(ValueError, match="m1 is no active feature"):
        source_columns(replacement, [NodeId.parse("m1")])

"""Connections from weights alone: against the edges of real prompts, divided by what the weights do not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from discovery import connections as module
from discovery.component_model import ComponentModel
from discovery.connections import Connection, Connections, connections
from discovery.head_split import split_by_head
from discovery.replacement import LocalReplacement
from discovery.transcoder import BadTranscoder, TranscoderSet
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from graphs.node import NodeId
from pipelines.cli import main
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, random_tokens, tiny_transcoders

EVERYTHING = 100_000


def _made(family: str, kind=None, **sites) -> tuple[ComponentModel, TranscoderSet]:
    model = ComponentModel(tiny_model(family))
    kind = KINDS[list(FAMILIES).index(family) % len(KINDS)] if kind is None else kind
    return model, tiny_transcoders(model, kind, **sites)


def _by_way(ranked) -> dict[tuple[str, str | None], Connection]:
    entries = (*ranked.up, *ranked.down)
    found = {(str(e.feature), None if e.via is None else str(e.via)): e for e in entries}
    assert len(found) == len(entries)
    return found


def _edges(replacement: LocalReplacement, layer: int) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Number of source and target of edges from features of layer 0 to some of another layer, split by head."""
    features = replacement.features
    targets = np.flatnonzero((features.layer == layer).numpy())[-2:]
    readouts = replacement.feature_readouts(torch.as_tensor(targets))
    sources = np.flatnonzero((features.layer == 0).numpy())[::3]
    row, column = (part.ravel() for part in np.meshgrid(np.arange(len(targets)), sources, indexing="ij"))
    through = split_by_head(replacement, readouts, row, column, share=1.0).through()
    for edge, parts in through.items():
        yield int(column[edge]), int(targets[row[edge]]), parts


def _node(replacement: LocalReplacement, number: int) -> NodeId:
    return NodeId("feature", int(replacement.features.layer[number]), int(replacement.features.index[number]))


@pytest.mark.parametrize(
    ("family", "reads", "writes"),
    [(family, "mlp-in", "mlp-out") for family in FAMILIES]
    + [("gemma2", "mlp-in", "mlp-raw"), ("gpt2", "residual-mid", "mlp-out"), ("gpt_neo", "mlp-norm", "mlp-out")],
)
def test_edges_of_a_prompt_are_connections_times_scales(family: str, reads, writes) -> None:
    """Up to the next MLP behind layer 1's attention, paths are direct or through one of its heads: nothing else is between."""
    model, transcoders = _made(family, reads=reads, writes=writes)
    replacement = LocalReplacement(model, transcoders, random_tokens(model, seed=2)[0, :6])
    features, layer = replacement.features, replacement.frozen.layers[1]
    target_layer = 2 if model.blocks[1].parallel else 1
    ones = torch.ones((replacement.width, 1))
    scales = {
        name: ones if scale is None or (name == "read" and reads == "residual-mid") else scale
        for name, scale in (
            ("read", replacement.frozen.layers[target_layer].mlp_scale),
            ("attention", layer.attention_scale), ("post", layer.post_attention_scale),
            ("write", replacement.frozen.layers[0].post_mlp_scale if writes == "mlp-raw" else None),
        )
    }  # fmt: skip
    found: dict[NodeId, Connections] = {}
    checked = 0
    for source, target, parts in _edges(replacement, target_layer):
        ends = _node(replacement, source), _node(replacement, target)
        for node in ends:
            found.setdefault(node, connections(model, transcoders, node, EVERYTHING))
        here, there = int(features.position[source]), int(features.position[target])
        factor = float(features.activation[source] * scales["write"][here] * scales["read"][there])
        feeds, reads_ = _by_way(found[ends[0]].feeds), _by_way(found[ends[1]].reads)
        heads = _by_way(found[ends[0]].feeds_through_heads), _by_way(found[ends[1]].reads_through_heads)
        for name, value in parts.items():
            if name == "rest":
                continue
            if name == "direct":
                seen = feeds[str(ends[1]), None].value, reads_[str(ends[0]), None].value
                wanted = factor
            else:
                seen = heads[0][str(ends[1]), name].value, heads[1][str(ends[0]), name].value
                head = int(name.partition("h")[2])
                wanted = factor * float(layer.pattern[head, there, here] * scales["attention"][here])
                wanted *= float(scales["post"][there])
            assert value == pytest.approx(seen[0] * wanted, rel=2e-3, abs=1e-5), name
            assert seen[1] == pytest.approx(seen[0], rel=2e-3, abs=1e-5)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "relu"),
        ("gpt_neox-parallel", "relu"),
        ("olmo2", "relu"),
        ("gpt2", "cross-layer"),
        ("gemma2", "cross-layer"),
        ("gpt_neox-parallel", "cross-layer"),
    ],
)
def test_both_directions_agree_in_all_layers(family: str, kind) -> None:
    model, transcoders = _made(family, kind)
    parallel = model.blocks[0].parallel
    every = {
        NodeId("feature", one.layer, index): connections(
            model, transcoders, NodeId("feature", one.layer, index), EVERYTHING
        )
        for one in transcoders
        for index in (0, 12)
    }
    size, last = transcoders.transcoders[0].features, len(model.blocks) - 1
    for node, found in every.items():
        assert node.layer is not None
        later, earlier = last - node.layer, node.layer
        assert len(_by_way(found.feeds)) == later * size
        assert len(_by_way(found.reads)) == earlier * size
        behind = sum(last - own + (not parallel) for own in range(node.layer + 1, last + 1))
        assert len(_by_way(found.feeds_through_heads)) == behind * size * model.blocks[0].heads
        for mine, theirs in (("feeds", "reads"), ("feeds_through_heads", "reads_through_heads")):
            for (name, via), entry in _by_way(getattr(found, mine)).items():
                other = every.get(NodeId.parse(name))
                if other is not None:
                    back = _by_way(getattr(other, theirs))[str(node), via]
                    assert back.value == pytest.approx(entry.value, rel=1e-3, abs=1e-5)
        values = [entry.value for entry in _by_way(found.feeds).values() if entry.feature.layer == node.layer + 1]
        if values:
            rms = np.sqrt(np.mean(np.square(values)))
            for entry in found.feeds.up:
                if entry.feature.layer == node.layer + 1:
                    assert entry.deviation == pytest.approx(entry.value / rms, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "gemma3-images", "gptj", "olmo2"])
def test_tokens_are_those_that_move_the_feature_and_the_logits(family: str) -> None:
    model, transcoders = _made(family, "relu")
    node, layer = NodeId("feature", 2, 5), 2
    found = connections(model, transcoders, node, EVERYTHING)
    block, hf = model.blocks[layer], model.hf
    with torch.no_grad():
        embedded = hf.get_input_embeddings()(torch.arange(model.config.get_text_config().vocab_size))
        norm, decoder = block.mlp_norm, transcoders.by_layer[layer].decoders[layer][5]
        # A norm's own output, its scale and bias taken out again.
        seen = embedded
        if norm is not None:
            bias = 0 if norm.bias is None else norm.bias
            seen = (norm(embedded) - bias) / norm.inverse_scale(norm.centre(embedded))
        excited = seen @ transcoders.by_layer[layer].encoder[5]
        final = model.final_norm
        pushed = final(decoder) - (0 if final.bias is None else final.bias)
        unembedding = hf.get_submodule(model.arch.unembedding).get_parameter("weight")
        logits = unembedding @ (pushed / final.inverse_scale(final.centre(decoder)))
        logits -= logits.mean()
    for ranked, wanted in ((found.excited_by, excited), (found.promotes, logits)):
        entries = (*ranked.up, *ranked.down)
        assert len(entries) == len(wanted)
        for entry in entries:
            assert entry.value == pytest.approx(float(wanted[entry.token]), rel=1e-3, abs=1e-4)
            assert entry.text == str(entry.token)
            assert entry.deviation == pytest.approx(entry.value / float(wanted.square().mean().sqrt()), rel=1e-3)


def test_few_are_the_ends_of_all_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, transcoders = _made("qwen2", "cross-layer")
    node = NodeId.parse("f1.4")
    whole = connections(model, transcoders, node, EVERYTHING)
    monkeypatch.setattr(module, "CHUNK", 24 * 3)
    few = connections(model, transcoders, NodeId.parse("f1.4@7"), 3)
    for name in ("reads", "reads_through_heads", "feeds", "feeds_through_heads"):
        for side in ("up", "down"):
            mine, all_ = getattr(getattr(few, name), side), getattr(getattr(whole, name), side)
            assert len(mine) == 3
            assert [str(e.feature) + str(e.via) for e in mine] == [str(e.feature) + str(e.via) for e in all_[:3]]
            assert [e.deviation for e in mine] == pytest.approx([e.deviation for e in all_[:3]], rel=1e-4)
            assert all(abs(a.value) >= abs(b.value) for a, b in pairwise(mine))
            assert all((e.value > 0) == (side == "up") for e in mine)
    stored = json.loads(json.dumps(few.to_json(), allow_nan=False))
    assert stored["feature"] == "f1.4"
    assert stored["feeds_through_heads"]["up"][0]["via"].startswith("a2.h")
    assert stored["promotes"]["down"][0].keys() == {"token", "text", "value", "deviation"}


def test_what_does_not_exist_is_named() -> None:
    model, transcoders = _made("llama", "relu")
    for name, said in (("f1.13", "has 13 features"), ("f3.0", "no dictionary for layer 3"), ("m1", "not a feature")):
        with pytest.raises(BadTranscoder, match=said):
            connections(model, transcoders, NodeId.parse(name))


def test_the_command_prints_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, transcoders = _made("llama", "relu")
    model.hf.save_pretrained(tmp_path / "model")
    write_circuit_tracer(transcoders, tmp_path / "transcoders")
    given = ["connections", "f1.4", "--model", str(tmp_path / "model"), "--transcoders", str(tmp_path / "transcoders")]
    assert main([*given, "--device", "cpu", "--top", "3", "--json", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    stored = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    wanted = connections(model, transcoders, NodeId.parse("f1.4"), 3).to_json()
    for name, ranked in wanted.items():
        if name == "feature":
            continue
        for side in ("up", "down"):
            assert len(ranked[side]) == 3
            for mine, other in zip(stored[name][side], ranked[side], strict=True):
                assert mine["value"] == pytest.approx(other["value"], rel=1e-4)
                assert {**mine, "value": 0, "deviation": 0} == {**other, "value": 0, "deviation": 0}
                assert mine.get("feature", f'"{mine.get("text")}"') in shown
    assert main([*given, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["feature"] == "f1.4"
    assert main([*given, "--top", "0"]) == 2
    assert "--top 0" in capsys.readouterr().err

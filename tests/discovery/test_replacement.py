"""Local replacement models: closure, exactness against an intervened forward pass, linearity, sparse rows, targets."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from discovery.attribution import attribution_graph
from discovery.closure import NotClosed, check_closure
from discovery.component_model import ComponentModel
from discovery.effect_rows import EffectRows, strongest
from discovery.intervened_run import intervened_pass, untouched_pass
from discovery.intervention import Edit, prompts_of
from discovery.replacement import LocalReplacement
from discovery.source_writes import arrange, meet
from discovery.targets import BadTarget, likely_targets, parse_targets
from discovery.transcoder import BadTranscoder, TranscoderSet
from graphs.attribution import AttributionGraph
from graphs.node import NodeId
from tests.discovery.tiny_models import FAMILIES, tiny_model
from tests.discovery.tiny_transcoders import KINDS, tiny_transcoders

TOKENS = torch.tensor([1, 5, 7, 9, 11, 13, 3, 8])
PLACES = (("mlp-in", "mlp-out"), ("mlp-norm", "mlp-raw"), ("residual-mid", "mlp-out"))
# Two kinds and places for each family; every pair of kind and place occurs twice.
PLACED = [
    (family, KINDS[(i + 3 * second) % len(KINDS)], *PLACES[(i // len(KINDS) + second) % len(PLACES)])
    for second in (0, 1)
    for i, family in enumerate(FAMILIES)
]
DOUBLED = [(family, ("topk", "skip", "cross-layer")[i % 3]) for i, family in enumerate(FAMILIES)]


@functools.cache
def component_model(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


def replacement_of(
    family: str, kind: str, reads: str = "mlp-in", writes: str = "mlp-out", **options
) -> LocalReplacement:
    model = component_model(family)
    sets = tiny_transcoders(model, kind, reads=reads, writes=writes)  # type: ignore[arg-type]
    return LocalReplacement(model, sets, TOKENS, **options)


def graph_of(replacement: LocalReplacement, **options) -> AttributionGraph:
    return attribution_graph(replacement, likely_targets(replacement.model, replacement.frozen), share=1.0, **options)


@pytest.mark.parametrize(("family", "kind", "reads", "writes"), PLACED)
def test_rows_with_constants_sum_to_what_the_model_computes(family: str, kind: str, reads: str, writes: str) -> None:
    replacement = replacement_of(family, kind, reads, writes)
    graph = graph_of(replacement, bias_nodes=True)
    features = len(replacement.features)
    assert features > 10
    sums = graph.weights.sum(axis=1)
    wanted = replacement.features.preactivation.numpy()
    np.testing.assert_allclose(sums[:features], wanted, atol=3e-5 * np.abs(wanted).max())
    logits = np.isin(graph.kinds, ("logit",))
    np.testing.assert_allclose(sums[logits], graph.activations[logits], rtol=1e-4, atol=1e-4)
    last = replacement.frozen.logits - replacement.frozen.logits.mean()
    capped = replacement.model.arch.final_softcap is not None
    for node, value in zip(np.array(graph.nodes)[logits], graph.activations[logits], strict=True):
        assert capped or value == pytest.approx(float(last[node.index]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("family", "kind"), DOUBLED)
def test_doubling_a_feature_changes_everything_by_its_edges(family: str, kind: str) -> None:
    replacement = replacement_of(family, kind, *(("mlp-norm", "mlp-raw") if kind == "topk" else ("mlp-in", "mlp-out")))
    graph, model = graph_of(replacement), replacement.model
    features = replacement.features
    chosen = torch.linspace(0, len(features) - 1, 12).round().long().unique().tolist()
    untouched = untouched_pass(model, prompts_of([TOKENS.tolist()]))
    rows = torch.arange(len(chosen))[:, None]
    edits = []
    for row, place in enumerate(chosen):
        cells = (rows == row) & (torch.arange(len(TOKENS)) == int(features.position[place]))
        edits.append(
            Edit(
                "feature",
                int(features.layer[place]),
                int(features.index[place]),
                operation="scale",
                value=2.0,
                cells=cells,
            )
        )
    prompts = prompts_of([TOKENS.tolist()] * len(chosen))
    outcome = intervened_pass(
        model, replacement.transcoders, prompts, edits, freeze="all", untouched=untouched,
        reads=(torch.arange(len(chosen)), torch.full((len(chosen),), len(TOKENS) - 1)),
    )  # fmt: skip
    weights = graph.weights.toarray()
    for layer in features.layer.unique().tolist():
        there = (features.layer == layer).nonzero().squeeze(1)
        seen = outcome.preactivations(layer)[:, features.position[there], features.index[there]]
        change = (seen - features.preactivation[there]).numpy()
        np.testing.assert_allclose(change, weights[there][:, chosen].T, atol=5e-4, rtol=1e-5)
    logits = [place for place, node in enumerate(graph.nodes) if node.kind == "logit"]
    demeaned = outcome.uncapped - outcome.uncapped.mean(-1, keepdim=True)
    seen = demeaned[:, [graph.nodes[place].index for place in logits]].numpy()
    np.testing.assert_allclose(seen - graph.activations[logits], weights[logits][:, chosen].T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gptj", "olmo2"])
def test_the_map_from_sources_to_targets_is_linear(family: str) -> None:
    replacement = replacement_of(family, "skip")
    features = replacement.features
    place = len(features) // 3
    cells = torch.zeros(3, len(TOKENS), dtype=torch.bool)
    edits = []
    for row, factor in enumerate((0.0, 1.0, 2.0)):
        own = cells.clone()
        own[row, features.position[place]] = True
        edits.append(
            Edit(
                "feature",
                int(features.layer[place]),
                int(features.index[place]),
                operation="scale",
                value=factor,
                cells=own,
            )
        )
    untouched = untouched_pass(replacement.model, prompts_of([TOKENS.tolist()]))
    outcome = intervened_pass(
        replacement.model,
        replacement.transcoders,
        prompts_of([TOKENS.tolist()] * 3),
        edits,
        freeze="all",
        untouched=untouched,
    )
    moved = 0.0
    for layer in range(replacement.layers):
        h = outcome.preactivations(layer)
        assert float((h[0] - 2 * h[1] + h[2]).abs().max()) < 1e-5 * max(1.0, float(h.abs().max()))
        moved = max(moved, float((h[0] - h[2]).abs().max()))
    assert moved > 1e-3


def test_the_fixed_prefix_has_no_features_and_no_errors() -> None:
    replacement = replacement_of("llama", "relu", fixed_prefix=2)
    assert int(replacement.features.position.min()) >= 2
    graph = graph_of(replacement, bias_nodes=True)
    early = [i for i, node in enumerate(graph.nodes) if node.kind == "error" and node.position in (0, 1)]
    assert len(early) == 2 * replacement.layers
    assert graph.weights[:, early].nnz == 0
    constants = [graph.index[NodeId("bias", 0, None, position)] for position in (0, 1)]
    assert graph.weights[:, constants].nnz > 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_the_strongest_entries_hold_their_share_and_no_fewer_do(share: float) -> None:
    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((20, 60)) ** 3).astype(np.float32)
    rows[:, ::7] = 0
    rows[3] = 0
    kept = strongest(rows, share)
    size = np.abs(rows).astype(np.float64)
    for row, mask in zip(size, kept, strict=True):
        order = np.argsort(-row)
        count = int(mask.sum())
        assert set(order[:count]) == set(np.flatnonzero(mask))
        assert row[mask].sum() >= share * row.sum() - 1e-9
        if share < 1 and count:
            assert row[order[: count - 1]].sum() < share * row.sum()
    assert not kept[rows == 0].any()


def test_stored_rows_and_rests_sum_to_whole_rows() -> None:
    replacement = replacement_of("gemma3", "relu")
    targets = likely_targets(replacement.model, replacement.frozen)
    whole, part = (attribution_graph(replacement, targets, share=share) for share in (1.0, 0.8))
    assert whole.nodes == part.nodes
    assert part.weights.nnz < 0.8 * whole.weights.nnz
    np.testing.assert_allclose(part.absolute, np.abs(whole.weights.toarray()).sum(1), rtol=1e-5)
    np.testing.assert_allclose(part.weights.sum(1) + part.rest, whole.weights.sum(1), atol=1e-5)
    np.testing.assert_allclose(whole.rest, 0, atol=1e-6)
    dense = part.weights.toarray()
    assert np.array_equal(dense[dense != 0], whole.weights.toarray()[dense != 0])
    assert part.weights.has_sorted_indices


def test_only_the_most_influential_features_become_nodes() -> None:
    replacement = replacement_of("qwen2", "relu")
    targets = likely_targets(replacement.model, replacement.frozen)
    whole = attribution_graph(replacement, targets, share=1.0)
    part = attribution_graph(replacement, targets, share=1.0, max_features=25)
    kept = [node for node in part.nodes if node.kind == "feature"]
    assert len(kept) == 25
    places = [whole.index[node] for node in part.nodes]
    assert places == sorted(places)
    np.testing.assert_allclose(part.weights.toarray(), whole.weights.toarray()[np.ix_(places, places)], atol=1e-6)
    np.testing.assert_allclose(part.absolute, whole.absolute[places], rtol=1e-6)
    np.testing.assert_allclose(part.weights.sum(1) + part.rest, whole.weights[places].sum(1), atol=1e-5)
    influence = _influence(whole)
    features = [i for i, node in enumerate(whole.nodes) if node.kind == "feature"]
    best = sorted(features, key=lambda i: -influence[i])[:25]
    assert len({whole.nodes[i] for i in best} & set(kept)) >= 20


def _influence(graph: AttributionGraph) -> np.ndarray:
    """Dense and slow: w (A + A^2 + ...)."""
    shares = np.abs(graph.weights.toarray())
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-30)
    start = np.zeros(len(graph.nodes))
    start[graph.targets] = graph.target_weights
    total, step = np.zeros(len(graph.nodes)), start
    for _ in range(20):
        step = step @ shares
        total += step
    return total


def test_batches_do_not_change_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    replacement = replacement_of("phi", "cross-layer")
    one = graph_of(replacement)
    monkeypatch.setattr("discovery.effect_rows._BATCH_ROWS", 7)
    monkeypatch.setattr("discovery.effect_rows._BATCH_BYTES", 2000)
    np.testing.assert_allclose(graph_of(replacement).weights.toarray(), one.weights.toarray(), atol=2e-6)


def test_crowded_positions_are_laid_out_without_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    width, count = 9, 50
    positions = torch.randint(0, width, (count,), generator=generator)
    positions[:30] = 4
    vectors = torch.randn(count, 5, generator=generator)
    gradient = torch.randn(3, 6, 5, generator=generator)  # the causal cone ends before position 6
    result = torch.zeros(count, 3)
    columns = torch.randperm(count, generator=generator)
    layouts = arrange(vectors, positions, columns, width)
    meet(layouts, gradient, result)
    for source in range(count):
        reached = positions[source] < 6
        wanted = gradient[:, positions[source]] @ vectors[source] if reached else torch.zeros(3)
        torch.testing.assert_close(result[columns[source]], wanted)
    assert sum(layout.padded.shape[0] * layout.padded.shape[1] for layout in layouts) <= 2 * count + width


def test_a_wrong_constant_breaks_closure() -> None:
    replacement = replacement_of("llama", "relu")
    targets = likely_targets(replacement.model, replacement.frozen)
    assert check_closure(replacement, targets) < 1e-5
    replacement.mlp_constants[0] = replacement.mlp_constants[0] + 1.0
    with pytest.raises(NotClosed, match="first at layer 1"):
        check_closure(replacement, targets)


def test_dictionaries_that_do_not_fit_are_named() -> None:
    model = component_model("llama")
    fits = tiny_transcoders(model, "relu")
    with pytest.raises(BadTranscoder, match="read mlp-out and write mlp-out"):
        LocalReplacement(model, TranscoderSet(fits.transcoders, "mlp-out", "mlp-out", fits.biases), TOKENS)
    with pytest.raises(BadTranscoder, match="width 32, the model's is 24"):
        LocalReplacement(model, tiny_transcoders(component_model("phi"), "relu"), TOKENS)


def test_layers_without_a_dictionary_are_error_nodes_alone() -> None:
    model = component_model("mistral")
    whole = tiny_transcoders(model, "relu")
    part = TranscoderSet(whole.transcoders[1:2], whole.reads, whole.writes, {1: whole.biases[1]})
    replacement = LocalReplacement(model, part, TOKENS)
    assert set(replacement.features.layer.tolist()) == {1}
    check = graph_of(replacement, bias_nodes=True)
    features = len(replacement.features)
    np.testing.assert_allclose(check.weights.sum(1)[:features], replacement.features.preactivation.numpy(), atol=1e-4)


def test_targets() -> None:
    replacement = replacement_of("gpt2", "relu")
    model, frozen = replacement.model, replacement.frozen
    probabilities = torch.softmax(frozen.logits, 0)
    likely = likely_targets(model, frozen, most=10, probability=0.5)
    assert sum(t.weight for t in likely) >= 0.5 > sum(t.weight for t in likely[:-1])
    assert likely[0].node.index == int(probabilities.argmax())
    feature = f"f{int(replacement.features.layer[0])}.{int(replacement.features.index[0])}"
    at = f"{feature}@{int(replacement.features.position[0])}"
    one, difference, own = parse_targets(model, frozen, ["logit(3)", "logit3 - logit(7)", at])
    assert one.weight == pytest.approx(float(probabilities[3]))
    assert str(difference.node) == "logit3-logit7@7"
    assert difference.value == pytest.approx(float(frozen.logits[3] - frozen.logits[7]), rel=1e-4)
    rows = EffectRows(replacement, [difference], 1.0)
    sums = rows.sums(np.array(rows.logit_rows))
    assert float(sums[0]) == pytest.approx(difference.value, rel=1e-4)
    graph = attribution_graph(replacement, [own], share=1.0)
    assert graph.targets.tolist() == [0]
    for wrong, said in (("logit(99)", "ends at 40"), ("logit(3) + logit(4)", "is no target"), ("a0.h1", "is no target"),
                        ("logit(3)-logit(3)", "both"), ('logit(" x")', "no tokenizer")):  # fmt: skip
        with pytest.raises(BadTarget, match="(?i)" + said.replace("(", r"\(")):
            parse_targets(model, frozen, [wrong])
    with pytest.raises(ValueError, match="not an active feature"):
        attribution_graph(replacement, parse_targets(model, frozen, ["f0.3@0"]), share=1.0)

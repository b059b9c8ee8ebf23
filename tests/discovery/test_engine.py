"""The engine on tiny random models of every family: patched runs and linearisation against slow, plain computations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from discovery.ablation import ABLATIONS, COUNTERFACTUAL, Ablation, AblationKind
from discovery.batch import Batch
from discovery.batches import make_batches
from discovery.component_model import ComponentModel, KvHeads
from discovery.loading import check_first_batch
from discovery.metrics import METRICS
from discovery.model import Point
from discovery.optimal_ablation import LearningSettings
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.task import PromptPair
from tests.discovery.plain_hooks import PlainHooks
from tests.discovery.residual_model import LOGIT_DIFFERENCE
from tests.discovery.tiny_models import FAMILIES, GROUPED, tiny_batch, tiny_model

METRIC = LOGIT_DIFFERENCE
CLEAN = [Point(1.0, 1.0)]
CASES = [(family, "native") for family in FAMILIES] + [(family, "query") for family in GROUPED]
every_case = pytest.mark.parametrize(("family", "kv_heads"), CASES)


def ready(model: ComponentModel, kind: AblationKind, batches: list[Batch]) -> Ablation:
    """An ablation for tests; constants that were learned for a step are as good as any."""
    return prepare_ablation(model, kind, batches, AblationSettings(learning=LearningSettings(steps=1)))


def kinds_for(family: str, kv_heads: str) -> tuple[AblationKind, ...]:
    """counterfactual, and two of the others in turn."""
    others, place = ABLATIONS[1:], CASES.index((family, kv_heads))
    return ("counterfactual", others[2 * place % 6], others[(2 * place + 1) % 6])


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def swapped(batch: Batch) -> Batch:
    return replace(batch, clean=batch.corrupt, corrupt=batch.clean)


def load(family: str, kv_heads: KvHeads = "native", dtype: torch.dtype = torch.float32, **options) -> ComponentModel:
    return ComponentModel(tiny_model(family, dtype=dtype), kv_heads=kv_heads, **options)


def random_masks(model: ComponentModel, seed: int = 0) -> Tensor:
    density = torch.tensor([0.0, 0.01, 0.05, 0.3, 0.7, 0.97, 0.999, 1.0])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(density), *model.topology.possible.shape, generator=generator) < density[:, None, None]


@every_case
def test_all_kept_is_the_model_and_none_kept_the_corrupt_run(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    ones = torch.ones(model.topology.possible.shape)
    assert relative(model.run(batch, ones, COUNTERFACTUAL), model.full_logits(batch)) < 1e-5
    assert relative(model.run(batch, 0 * ones, COUNTERFACTUAL), model.full_logits(swapped(batch))) < 1e-5
    assert check_first_batch(model, batch) < 1e-5


@every_case
def test_linearize_is_the_derivative_of_run(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    possible = torch.from_numpy(model.topology.possible)
    for kind in kinds_for(family, kv_heads):
        ablation = ready(model, kind, [batch])
        keep = torch.ones(possible.shape, requires_grad=True)
        value = METRIC.compute(model.run(batch, keep, ablation), batch, None)
        gradient = torch.autograd.grad(value.sum(), keep)[0] * possible
        scores = model.linearize(batch, METRIC, CLEAN, ablation)
        assert relative(scores.sum(0), gradient) < 1e-5, kind
        assert not scores[:, ~possible].any()


@every_case
def test_linearize_is_the_central_difference_of_run(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads, torch.float64), tiny_batch(pairs=2, width=6, ragged=False, first_change=2)
    possible = torch.from_numpy(model.topology.possible)
    edges = possible.nonzero()
    # Four points, error O(step^4); Hugging Face RMSNorms round to float32 even here, so the step must not be tiny.
    step = 0.003
    slopes = []
    for chunk in edges.split(64):
        values = []
        for offset in (-2, -1, 1, 2):
            keep = torch.ones(len(chunk), *possible.shape, dtype=torch.float64)
            keep[torch.arange(len(chunk)), chunk[:, 0], chunk[:, 1]] += offset * step
            values.append(METRIC.compute(model.run(batch, keep, COUNTERFACTUAL), batch, None).sum(-1))
        slopes.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step))
    scores = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL).sum(0)
    assert relative(torch.cat(slopes), scores[possible]) < 1e-3


@every_case
def test_masks_do_not_depend_on_shortcuts_or_company(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    masks = random_masks(model)
    for kind in kinds_for(family, kv_heads):
        ablation = ready(model, kind, [batch])
        plain = torch.stack([model._run(batch, mask.float(), ablation, every_slot=True) for mask in masks])
        assert relative(model.run(batch, masks, ablation), plain) < 1e-4, kind
        assert relative(torch.stack([model.run(batch, mask, ablation) for mask in masks]), plain) < 1e-4, kind


@every_case
def test_dropping_one_edge_is_a_plain_hook_on_one_slot(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    topology = model.topology
    possible = torch.from_numpy(topology.possible)
    if kv_heads == "query":
        # One query head's copy of a shared key or value has no counterpart in the model that a hook could replace.
        possible = possible & torch.tensor([slot.port in (None, "q") for slot in topology.targets])
    possible = possible.nonzero()
    sample = possible[torch.randperm(len(possible), generator=torch.Generator().manual_seed(1))[:24]]
    values = PlainHooks(model, batch)
    for source, target in sample.tolist():
        keep = torch.ones(topology.possible.shape)
        keep[source, target] = 0
        expected = values.logits_without(source, target)
        assert relative(model.run(batch, keep, COUNTERFACTUAL), expected) < 2e-5, topology.edge(source, target)


@pytest.mark.parametrize("family", GROUPED)
def test_ungrouped_scores_of_a_group_add_up_to_the_shared_head(family: str) -> None:
    batch = tiny_batch()
    native, query = load(family), load(family, "query")
    shared = native.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    own = query.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    summed = torch.zeros_like(shared)
    groups = native.blocks[0].heads // native.blocks[0].kv_heads
    for column, slot in enumerate(query.topology.targets):
        if slot.port in ("k", "v"):
            slot = replace(slot, node=replace(slot.node, index=slot.node.index // groups))
        summed[:, :, native.topology.target_index[slot]] += own[:, :, column]
    assert relative(summed, shared) < 1e-5


@every_case
def test_a_ragged_batch_is_its_prompts_one_by_one(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    mask = random_masks(model)[3]
    points = [Point(0.0, 0.25), Point(0.5, 0.5), Point(1.0, 0.25)]
    together = model.linearize(batch, METRIC, points, COUNTERFACTUAL)
    logits = model.run(batch, mask, COUNTERFACTUAL)
    for row in range(len(batch)):
        alone = single(batch, row)
        assert relative(model.linearize(alone, METRIC, points, COUNTERFACTUAL)[0], together[row]) < 2e-5
        assert relative(model.run(alone, mask, COUNTERFACTUAL)[0], logits[row]) < 1e-5


def single(batch: Batch, row: int) -> Batch:
    """One pair of a batch, without its padding."""
    first = int(batch.mask[row].int().argmax())
    columns = slice(first, None)
    rows = slice(row, row + 1)
    one = torch.zeros(1, dtype=torch.long)
    return Batch(
        clean=batch.clean[rows, columns], corrupt=batch.corrupt[rows, columns], mask=batch.mask[rows, columns],
        positions=batch.positions[rows, columns], row_pair=one, read_row=one,
        read_column=batch.read_column[rows] - first, pair_read=one, step_read=torch.zeros(2, dtype=torch.long),
        step_token=batch.step_token[2 * row : 2 * row + 2], step_candidate=torch.arange(2),
        candidate_pair=torch.zeros(2, dtype=torch.long), candidate_right=torch.tensor([True, False]), indices=(row,),
    )  # fmt: skip


@every_case
def test_the_shared_prefix_changes_nothing(family: str, kv_heads: KvHeads) -> None:
    batch = tiny_batch(width=12, first_change=8)
    cut, whole = load(family, kv_heads), load(family, kv_heads, share_prefix=False)
    points = [Point(0.0, 0.25), Point(0.4, 0.5), Point(1.0, 0.25)]
    expected = whole.linearize(batch, METRIC, points, COUNTERFACTUAL)
    assert relative(cut.linearize(batch, METRIC, points, COUNTERFACTUAL), expected) < 1e-5
    assert cut._state is not None and cut._state.start == 8
    masks = random_masks(cut)
    assert relative(cut.run(batch, masks, COUNTERFACTUAL), whole.run(batch, masks, COUNTERFACTUAL)) < 1e-5


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt_neo", "gptj", "gemma2")])
def test_sdpa_and_eager_agree(family: str) -> None:
    batch = tiny_batch()
    eager, sdpa = load(family), ComponentModel(tiny_model(family, attention="sdpa"))
    masks = random_masks(eager)
    assert relative(sdpa.run(batch, masks, COUNTERFACTUAL), eager.run(batch, masks, COUNTERFACTUAL)) < 1e-5
    scores = [m.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL) for m in (sdpa, eager)]
    assert relative(*scores) < 1e-5


def fingerprint(model: ComponentModel) -> list[tuple]:
    """Everything that a call might leave behind."""
    return [
        (name, module.training, sorted(module.__dict__), module.__dict__.get("forward"),
         getattr(module, "num_key_value_groups", None), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.hf.named_modules()
    ] + [(name, p.requires_grad, p.grad) for name, p in model.hf.named_parameters()] + [(model.config.to_dict(),)]  # fmt: skip


@every_case
def test_every_call_leaves_the_model_as_it_was(family: str, kv_heads: KvHeads) -> None:
    model, batch = load(family, kv_heads), tiny_batch()
    model.hf.train()
    next(model.hf.parameters()).requires_grad_(False)
    before = fingerprint(model)
    keep = torch.rand(model.topology.possible.shape, requires_grad=True)

    def broken(*_args) -> Tensor:
        raise RuntimeError("a metric that fails")

    model.full_logits(batch)
    model.linearize(batch, METRIC, [Point(0.0, 0.5), Point(1.0, 0.5)], COUNTERFACTUAL)
    model.run(batch, keep, COUNTERFACTUAL).sum().backward()
    assert fingerprint(model) == before
    with pytest.raises(RuntimeError, match="a metric that fails"):
        model.linearize(batch, replace(METRIC, compute=broken), CLEAN, COUNTERFACTUAL)
    model.blocks[-1].mlp.register_forward_hook(broken)
    before = fingerprint(model)
    model.forget()
    with pytest.raises(RuntimeError, match="a metric that fails"):
        model.run(batch, keep, COUNTERFACTUAL)
    assert fingerprint(model) == before


def test_points_and_batches_add_up() -> None:
    model = load("llama")
    batch = tiny_batch(pairs=4, ragged=False)
    left = [model.linearize(batch, METRIC, [Point(a, 1.0)], COUNTERFACTUAL) for a in (0.0, 0.3, 1.0)]
    together = model.linearize(batch, METRIC, [Point(1.0, 0.5), Point(0.0, 0.3), Point(0.3, 0.2)], COUNTERFACTUAL)
    assert relative(together, 0.3 * left[0] + 0.2 * left[1] + 0.5 * left[2]) < 1e-5


@every_case
def test_points_that_share_a_pass_are_points_alone(
    family: str, kv_heads: KvHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = load(family, kv_heads), tiny_batch(width=12, first_change=8)
    points = [Point(0.0, 0.1), Point(0.2, 0.2), Point(0.4, 0.3), Point(0.7, 0.2), Point(1.0, 0.2)]
    together = model.linearize(batch, METRIC, points, COUNTERFACTUAL)
    monkeypatch.setattr("discovery.gradient_passes._TOKENS_PER_PASS", 1)
    assert relative(model.linearize(batch, METRIC, points, COUNTERFACTUAL), together) < 1e-5


@pytest.mark.parametrize("kind", ABLATIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_points_lie_between_the_ablated_and_the_clean_input(family: str, kind: AblationKind) -> None:
    model, batch = load(family), tiny_batch()
    ablation = ready(model, kind, [batch])
    possible = torch.from_numpy(model.topology.possible)
    for alpha in (0.0, 0.4):
        # Every edge out of the input carries the interpolation; the rest of the run follows from it.
        keep = torch.ones(possible.shape)
        keep[0] = alpha
        keep.requires_grad_()
        value = METRIC.compute(model.run(batch, keep, ablation), batch, None)
        slope = torch.autograd.grad(value.sum(), keep)[0] * possible
        scores = model.linearize(batch, METRIC, [Point(alpha, 1.0)], ablation)
        assert relative(scores.sum(0)[0], slope[0]) < 1e-4, alpha


def test_long_prompts_are_contracted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = load("gpt2"), tiny_batch(width=12, first_change=1)
    whole = model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    monkeypatch.setattr("discovery.memory.CHUNK_BYTES", 30_000)
    assert relative(model.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL), whole) < 1e-5


def test_half_precision_storage_scores_in_float32() -> None:
    batch = tiny_batch()
    full, half = load("llama"), load("llama", dtype=torch.bfloat16)
    scores = half.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)
    assert scores.dtype == torch.float32
    assert relative(scores, full.linearize(batch, METRIC, CLEAN, COUNTERFACTUAL)) < 0.2
    check_first_batch(half, batch)


@pytest.mark.parametrize(("family", "kv_heads"), [("gpt2", "native"), ("llama", "query"), ("gemma2", "native")])
@pytest.mark.parametrize("metric", ["logit-diff", "prob-diff", "log-prob", "kl"])
def test_answers_of_several_tokens_and_every_metric(family: str, kv_heads: KvHeads, metric: str) -> None:
    pairs = [
        PromptPair((3, 4, 5, 6), (3, 4, 9, 6), ((7, 8), (11,)), ((12, 13, 14),)),
        PromptPair((3, 4, 5, 6, 7, 8), (3, 9, 5, 6, 7, 8), ((7, 8),), ((7, 9), (10,))),
    ]
    (batch,) = make_batches(pairs, None, batch_size=2)
    assert batch.clean.shape[0] > len(batch)
    model, used = load(family, kv_heads), METRICS[metric]
    possible = torch.from_numpy(model.topology.possible)
    # KL is flat on the clean run: look halfway, where the input alone is between clean and corrupt.
    keep = torch.ones(possible.shape)
    keep[0] = 0.5
    reference = model.full_logits(batch)
    value = used.compute(model.run(batch, keep, COUNTERFACTUAL), batch, reference)
    assert value.shape == (2,)
    scores = model.linearize(batch, used, [Point(0.5, 1.0)], COUNTERFACTUAL)
    assert scores.shape == (2, *possible.shape)
    keep.requires_grad_()
    slope = torch.autograd.grad(used.compute(model.run(batch, keep, COUNTERFACTUAL), batch, reference).sum(), keep)[0]
    # The input's own edges see the same point in both, and the same difference: clean less corrupt embedding.
    assert relative(scores.sum(0)[0], slope[0] * possible[0]) < 1e-4

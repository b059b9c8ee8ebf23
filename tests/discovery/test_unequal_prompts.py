"""Corrupt prompts of other lengths: aligned span by span, or only averaged, on tiny models of every family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from discovery.ablation import COUNTERFACTUAL, ZERO, AblationKind
from discovery.batch import Batch
from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.loading import check_first_batch
from discovery.model import Point
from discovery.optimal_ablation import LearningSettings
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.span_model import SpanModel
from discovery.span_places import spans_of
from discovery.task import PromptPair, Span
from discovery.tokenisation import tokenise
from tests.discovery.residual_model import LOGIT_DIFFERENCE
from tests.discovery.tiny_models import FAMILIES, tiny_model

FEW = ("gpt2", "gptj", "gemma2", "olmo2")
IDS: dict[str, tuple] = {"answers": ((9,),), "wrong_answers": ((11,),)}


def _pair(clean: tuple[int, ...], corrupt: tuple[int, ...], *places: tuple[int, int, int, int]) -> PromptPair:
    spans = [Span(f"s{i}", (a, b), (c, d), "tokens") for i, (a, b, c, d) in enumerate(places)]
    return PromptPair(clean, corrupt, **IDS, spans=tuple(spans))


PAIRS = (
    _pair((5, 6, 7, 8, 12, 13), (5, 20, 8, 12, 13), (1, 3, 1, 2)),
    _pair((5, 6, 12, 13), (5, 30, 31, 32, 12, 13), (1, 2, 1, 4)),
    _pair((5, 6, 17, 12), (5, 33, 17, 12), (1, 2, 1, 2)),  # as long: its batch is aligned token by token
    _pair((5, 6, 17, 12, 14), (5, 6, 33, 12, 14), (1, 2, 2, 3)),  # as long, but the span is elsewhere
)


@cache
def base(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


def batches(alignment: str = "spans") -> tuple[Batch, ...]:
    return make_batches(PAIRS, None, batch_size=4, spans="task", alignment=alignment)  # type: ignore[arg-type]


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def corrupt_logits(model: ComponentModel, batch: Batch) -> Tensor:
    """The untouched model's logits at the last tokens of the corrupt prompts, one prompt at a time."""
    mask, _ = batch.corrupt_places
    with torch.no_grad():
        rows = [model.hf(tokens[real][None]).logits[0, -1] for tokens, real in zip(batch.corrupt, mask)]
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_kept_is_the_corrupt_prompt_and_everything_the_clean_one(family: str) -> None:
    parts = batches()
    assert [part.alignment is None for part in sorted(parts, key=len)] == [True, False]
    model = SpanModel(base(family), spans_of(parts))
    ones = torch.ones(model.topology.possible.shape)
    for batch in parts:
        assert relative(model.run(batch, ones, COUNTERFACTUAL), model.full_logits(batch)) < 1e-5
        assert relative(model.run(batch, 0 * ones, COUNTERFACTUAL), corrupt_logits(model, batch)) < 1e-5
        keep = ones.clone().requires_grad_()
        full = model.run(batch, keep, COUNTERFACTUAL)
        slope = torch.autograd.grad(LOGIT_DIFFERENCE.compute(full, batch, None).sum(), keep)[0]
        scores = model.linearize(batch, LOGIT_DIFFERENCE, [Point(1.0, 1.0)], COUNTERFACTUAL)
        assert relative(scores.sum(0), slope * torch.from_numpy(model.topology.possible)) < 2e-5


@pytest.mark.parametrize("family", FEW)
def test_shortcuts_and_batch_sizes_change_nothing(family: str) -> None:
    parts = batches()
    model = SpanModel(base(family), spans_of(parts))
    batch = next(part for part in parts if part.alignment is not None)
    density = torch.tensor([0.02, 0.5, 0.95, 0.999])
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, *model.topology.possible.shape, generator=generator) < density[:, None, None]
    plain = model.run(batch, masks.float().requires_grad_(), COUNTERFACTUAL)
    assert relative(model.run(batch, masks, COUNTERFACTUAL), plain) < 1e-5
    points = [Point(k / 2, 1 / 2) for k in range(2)]  # alpha 0 is no run on the corrupt prompts here
    whole = {
        index: scores
        for part in parts
        for index, scores in zip(part.indices, model.linearize(part, LOGIT_DIFFERENCE, points, COUNTERFACTUAL))
    }
    for single in make_batches(PAIRS, None, batch_size=1, spans="task", alignment="spans"):
        alone = model.linearize(single, LOGIT_DIFFERENCE, points, COUNTERFACTUAL)[0]
        assert relative(alone, whole[single.indices[0]]) < 1e-5


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("kind", ["zero", "mean", "mean-positional", "optimal", "resample"])
def test_other_ablations_do_not_ask_for_alignment(family: str, kind: AblationKind) -> None:
    model = base(family)
    parts = batches("none")
    assert any(part.corrupt_mask is not None and part.alignment is None for part in parts)
    ablation = prepare_ablation(model, kind, parts, AblationSettings(learning=LearningSettings(steps=1)))
    ones = torch.ones(model.topology.possible.shape)
    for batch in parts:
        assert relative(model.run(batch, ones, ablation), model.full_logits(batch)) < 1e-5
        assert torch.isfinite(model.run(batch, 0 * ones, ablation)).all()
        assert check_first_batch(model, batch) < 1e-5
        with_spans = SpanModel(model, spans_of(parts))
        every = torch.ones(with_spans.topology.possible.shape)
        assert relative(with_spans.run(batch, every, ablation), model.full_logits(batch)) < 1e-5


def test_means_are_over_the_corrupt_prompts_own_tokens() -> None:
    model = base("gpt2")
    means = prepare_ablation(model, "mean", batches("none")).means
    assert means is not None
    with torch.no_grad():
        streams = [
            model.hf(torch.tensor([pair.corrupt]), output_hidden_states=True).hidden_states[0][0] for pair in PAIRS
        ]
    np.testing.assert_allclose(means.input[0], torch.cat(streams).mean(0), rtol=1e-4, atol=1e-5)


def test_means_of_spans_are_over_the_spans_own_tokens() -> None:
    model = base("gpt2")
    parts = make_batches(PAIRS, None, batch_size=2, spans="task", alignment="spans")
    ablation = prepare_ablation(model, "mean-span", parts)
    assert ablation.means is not None
    entries: dict[int | str, list[Tensor]] = {}
    for pair, tokens in zip(PAIRS, tokenise(PAIRS, None, spans="task")):
        with torch.no_grad():
            stream = model.hf(torch.tensor([pair.corrupt]), output_hidden_states=True).hidden_states[0][0]
        assert tokens.corrupt_spans is not None
        for name, value in zip(tokens.corrupt_spans, stream, strict=True):
            entries.setdefault(name, []).append(value)
    assert set(entries) == set(ablation.span_names) == {"start", "s0", "after_s0", "end"}
    for name, row in zip(ablation.span_names, ablation.means.input, strict=True):
        torch.testing.assert_close(row, torch.stack(entries[name]).mean(0), rtol=1e-4, atol=1e-5)
    with_spans = SpanModel(model, spans_of(parts))
    for each in (model, with_spans):
        ones = torch.ones(each.topology.possible.shape)
        for batch in parts:
            assert relative(each.run(batch, ones, ablation), model.full_logits(batch)) < 1e-5
            keep = ones.clone().requires_grad_()
            metric = LOGIT_DIFFERENCE.compute(each.run(batch, keep, ablation), batch, None).sum()
            slope = torch.autograd.grad(metric, keep)[0] * torch.from_numpy(each.topology.possible)
            scores = each.linearize(batch, LOGIT_DIFFERENCE, [Point(1.0, 1.0)], ablation)
            assert relative(scores.sum(0), slope) < 2e-5


def test_prompts_that_nothing_aligns_are_refused() -> None:
    model = base("gpt2")
    batch = next(part for part in batches("none") if part.corrupt_mask is not None)
    ones = torch.ones(model.topology.possible.shape)
    with pytest.raises(ValueError, match="needs clean and corrupt prompts of equal length, or spans"):
        model.run(batch, ones, COUNTERFACTUAL)
    assert model.run(replace(batch, corrupt_mask=None, corrupt=batch.clean), ones, ZERO).isfinite().all()

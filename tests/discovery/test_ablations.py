"""Ablated values of every kind against plain runs: donors' prompts, noise on embeddings, learned constants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from discovery.ablation import Ablation, AblationKind, SourceMeans
from discovery.batch import Batch
from discovery.batch_pieces import pieces, take
from discovery.component_model import ComponentModel
from discovery.constants_file import BadConstants, constants_from_bytes, constants_to_bytes
from discovery.embedding_noise import NothingToNoise, measure_noise, noise_values, noised_places
from discovery.evaluate import evaluate
from discovery.feature_model import FeatureModel
from discovery.learned_constants import LearnedConstants
from discovery.methods import METHODS
from discovery.metrics import METRICS
from discovery.optimal_ablation import LearningSettings, learn_constants, one_source_dropped
from discovery.preparation import AblationSettings, prepare_ablation, source_means
from discovery.resampling import collect_donors, with_donors
from discovery.workload import Workload
from tests.discovery.residual_model import LOGIT_DIFFERENCE, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

FEW_STEPS = AblationSettings(learning=LearningSettings(steps=2))


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def nothing(model: ComponentModel) -> Tensor:
    return torch.zeros(model.topology.possible.shape)


def plain_logits(model: ComponentModel, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
    """The model's own last logits on the clean prompts, with something added to the embedding module's output."""
    module = model.hf.get_input_embeddings()

    def add(_module: object, _args: tuple, out: Tensor) -> Tensor:
        return out if embeddings is None else out + embeddings

    handle = module.register_forward_hook(add)
    with torch.no_grad():
        logits = model.hf(
            input_ids=batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
        ).logits[:, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_resampled_runs_are_runs_on_the_donors(family: str, share_prefix: bool) -> None:
    model, batch = ComponentModel(tiny_model(family), share_prefix=share_prefix), tiny_batch(pairs=5)
    others = tiny_batch(seed=3, pairs=6)
    begun = replace(others, clean=torch.where(torch.arange(9) < 5, batch.clean[:1], others.clean) * others.mask)
    ablation = prepare_ablation(model, "resample", [batch, begun])
    assert ablation.donors is not None
    swapped = with_donors(batch, ablation.donors)
    expected = plain_logits(model, replace(swapped, clean=swapped.corrupt))
    assert relative(model.run(batch, nothing(model), ablation), expected) < 1e-5
    assert relative(model.run(batch, 1 - nothing(model), ablation), plain_logits(model, batch)) < 1e-5


def test_donors_are_other_prompts_of_the_task_and_the_same_in_any_batch() -> None:
    batch = token_batch([4, 4, 4, 6, 6, 3], seed=1)
    donors = collect_donors([batch], seed=2)
    whole = with_donors(batch, donors)
    prompts = {row: tuple(batch.clean[row, batch.mask[row]].tolist()) for row in range(6)}
    for row in range(5):
        donor = tuple(whole.corrupt[row, batch.mask[row]].tolist())
        assert donor in prompts.values()
        assert donor != prompts[row]
        assert not whole.corrupt[row, ~batch.mask[row]].any()
    assert torch.equal(whole.corrupt[5], batch.corrupt[5])  # no other prompt is as long
    for part in pieces(batch, 2):
        again = with_donors(part, donors)
        for row, index in enumerate(part.indices):
            own = whole.corrupt[index, batch.mask[index]]
            assert torch.equal(again.corrupt[row, part.mask[row]], own)
    draws = {tuple(with_donors(batch, replace(donors, seed=seed)).corrupt[0].tolist()) for seed in range(20)}
    assert len(draws) == 2  # both other prompts of its length, in time


@pytest.mark.parametrize("family", FAMILIES)
def test_noised_runs_are_runs_with_noise_on_embeddings(family: str) -> None:
    model, batch = ComponentModel(tiny_model(family)), tiny_batch()
    ablation = prepare_ablation(model, "noise", [batch], AblationSettings(noise_scale=2.0))
    assert ablation.noise is not None
    every = model.hf.get_input_embeddings()(torch.arange(41)).detach()
    assert ablation.noise.deviation == pytest.approx(2 * float(every.std(correction=0)), rel=1e-5)
    added = noise_values(batch, ablation.noise, every.shape[1])
    assert torch.equal(added.any(-1), (batch.clean != batch.corrupt) & batch.mask)
    assert relative(model.run(batch, nothing(model), ablation), plain_logits(model, batch, added)) < 1e-5
    assert relative(model.run(batch, 1 - nothing(model), ablation), plain_logits(model, batch)) < 1e-5


def test_noise_is_on_named_tokens_of_the_asked_size_and_the_same_in_any_batch() -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), token_batch([40, 40, 30], seed=1)
    noise = measure_noise(model.hf, 3.0, tokens=(4, 7), seed=1)
    places = noised_places(batch, noise)
    assert torch.equal(places, ((batch.clean == 4) | (batch.clean == 7)) & batch.mask)
    values = noise_values(batch, noise, 500)
    assert float(values[places].std()) == pytest.approx(noise.deviation, rel=0.05)
    assert torch.equal(noise_values(take(batch, torch.tensor([2])), noise, 500)[0], values[2, 10:])
    assert not torch.equal(noise_values(batch, replace(noise, seed=2), 500), values)
    with pytest.raises(NothingToNoise, match=r"pair 1 .*other tokens"):
        noised_places(batch, replace(noise, tokens=(39,)))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gptj", "llama"])
def test_gradients_of_constants_are_central_differences(family: str) -> None:
    model = ComponentModel(tiny_model(family, dtype=torch.float64))
    batch = tiny_batch(pairs=2, width=6, ragged=False, first_change=2)
    constants, keep = start(model, [batch]), one_source_dropped(model).double()

    def loss(ablation: Ablation) -> Tensor:
        logits = model.run(batch, keep, ablation)
        return METRICS["kl"].compute(logits, batch, model.full_logits(batch)).sum()

    found = torch.autograd.grad(loss(constants.current()), constants.offsets)
    generator = torch.Generator().manual_seed(0)
    for offset, gradient in zip(constants.offsets, found, strict=True):
        way = torch.randn(offset.shape, generator=generator, dtype=offset.dtype)
        values = []
        for step in (-2, -1, 1, 2):
            with torch.no_grad():
                offset += step * 0.003 * way
                values.append(float(loss(constants.finished())))
                offset -= step * 0.003 * way
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * 0.003)
        assert slope == pytest.approx(float((gradient * way).sum()), rel=0.02, abs=1e-4)


def start(model: ComponentModel, batches: list[Batch]) -> LearnedConstants:
    means = source_means(model, batches, positional=False)
    return LearnedConstants(means.finish(), means.spread())


def test_spread_is_the_standard_deviation_over_tokens() -> None:
    model, batches = ComponentModel(tiny_model("gpt2")), [tiny_batch(), tiny_batch(seed=1, width=7)]
    found = source_means(model, batches, positional=False).spread().input[0]
    seen = []
    handle = model.blocks[0].layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for batch in batches:
        plain_logits(model, replace(batch, clean=batch.corrupt))
    handle.remove()
    tokens = torch.cat([values[batch.mask] for values, batch in zip(seen, batches, strict=True)])
    assert torch.allclose(found, tokens.std(0, correction=0), atol=1e-4)


@pytest.mark.parametrize("features", [False, True], ids=["heads and MLPs", "features"])
def test_learned_constants_hurt_less_than_means_and_zeros(features: bool) -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), tiny_batch(pairs=4)
    if features:
        model = FeatureModel(model, tiny_transcoders(model, "relu"), {1: (0, 2), 2: (5,)})
    keep = one_source_dropped(model)

    def loss(ablation: Ablation) -> Tensor:
        with torch.no_grad():
            logits = model.run(batch, keep, ablation)
            return -METRICS["kl"].compute(logits, batch, model.full_logits(batch)).mean(-1)

    settings = AblationSettings(learning=LearningSettings(steps=25))
    optimal, again = (prepare_ablation(model, "optimal", [batch], settings) for _ in range(2))
    assert optimal.means is not None and again.means is not None
    assert all(torch.equal(a, b) for a, b in zip(optimal.means.tensors(), again.means.tensors(), strict=True))
    assert not optimal.learning
    for other in ("mean", "zero"):
        rival = loss(prepare_ablation(model, other, [batch]))
        assert float(loss(optimal).mean()) < 0.9 * float(rival.mean())
        assert float((loss(optimal) <= rival + 1e-4).float().mean()) > 0.8  # nearly every source's own loss


def test_the_first_step_is_the_rate_in_units_of_the_spread() -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), tiny_batch(pairs=4)
    constants = start(model, [batch])
    first = constants.finished()
    learned = learn_constants(model, [batch], constants, LearningSettings(steps=1, rate=0.1, pairs=4))
    assert first.means is not None and learned.means is not None
    for before, after, scale in zip(first.means.tensors(), learned.means.tensors(), constants.scales, strict=True):
        moved = ((after - before) / scale).abs()
        assert float(moved.max()) <= 0.1 + 1e-5  # Adam's first step is the rate, in units of the spread
        assert float(moved.max()) > 0.09


def test_constants_come_back_from_their_file_and_not_for_another_graph() -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), tiny_batch()
    graph = FeatureModel(model, tiny_transcoders(model, "relu"), {1: (0, 2)})
    optimal = prepare_ablation(graph, "optimal", [batch], FEW_STEPS)
    content = constants_to_bytes(optimal)
    again = constants_from_bytes(content, graph)
    assert again.kind == "optimal"
    keep = torch.rand(graph.topology.possible.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph.run(batch, keep, again), graph.run(batch, keep, optimal))
    for other in (model, ComponentModel(tiny_model("llama"))):
        with pytest.raises(BadConstants, match="another model or graph"):
            constants_from_bytes(content, other)
    with pytest.raises(BadConstants, match="cannot be read"):
        constants_from_bytes(content[:50], graph)


@pytest.mark.parametrize("kind", ["resample", "noise", "optimal"])
def test_scores_and_evaluations_work_and_do_not_depend_on_batches(kind: AblationKind) -> None:
    model, batches = ComponentModel(tiny_model("llama")), (tiny_batch(pairs=4), tiny_batch(seed=5, pairs=2))
    work = Workload(batches, LOGIT_DIFFERENCE, prepare_ablation(model, kind, batches, FEW_STEPS))
    cut = replace(work, batches=tuple(part for batch in batches for part in pieces(batch, 1)))
    for name in ("eap-ig", "clean-corrupted"):
        scores, again = (METHODS[name].load().score(model, each) for each in (work, cut))
        torch.testing.assert_close(
            torch.tensor(scores.values), torch.tensor(again.values), rtol=0, atol=1e-4, equal_nan=True
        )
    curve, second = (evaluate(model, each, scores, sizes=(0.0, 0.3, 1.0), bootstrap=0) for each in (work, cut))
    assert (curve.points[0].faithfulness, curve.points[-1].faithfulness) == (0, 1)
    assert second.points[1].faithfulness == pytest.approx(curve.points[1].faithfulness, abs=1e-3)


def test_pieces_of_a_batch_are_the_batch() -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), token_batch([4, 9, 3, 6], 41, seed=2)
    values = METRICS["logit-diff"].compute(model.full_logits(batch), batch, None)
    for size in (1, 2, 3, 9):
        parts = pieces(batch, size)
        assert [len(part) for part in parts] == [min(size, 4 - at) for at in range(0, 4, size)]
        assert sum((part.indices for part in parts), ()) == batch.indices
        assert all(bool(part.mask[:, 0].any()) for part in parts)
        own = torch.cat([METRICS["logit-diff"].compute(model.full_logits(part), part, None) for part in parts])
        assert torch.allclose(own, values, atol=1e-4)


def test_learning_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="steps"):
        LearningSettings(steps=0)
    with pytest.raises(ValueError, match="pairs"):
        LearningSettings(pairs=0)
    with pytest.raises(ValueError, match="rate"):
        LearningSettings(rate=0.0)
    assert not Ablation("mean", SourceMeans(torch.zeros(1, 2), (), ())).learning

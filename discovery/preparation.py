"""Making an ablation ready to use: means, donors, noise and learned constants, from a task's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from discovery.ablation import COUNTERFACTUAL, ZERO, Ablation, AblationKind
from discovery.baseline import RunningMeans
from discovery.batch import Batch
from discovery.batch_state import corrupt_sequences
from discovery.component_model import ComponentModel
from discovery.embedding_noise import measure_noise
from discovery.learned_constants import LearnedConstants
from discovery.optimal_ablation import LearningSettings, learn_constants
from discovery.recording import record_pass, session
from discovery.resampling import collect_donors
from discovery.span_places import renumbered, spans_of


@dataclass(frozen=True)
class AblationSettings:
    """What an ablation depends on besides its kind and the prompts."""

    seed: int = 0
    """Of the donors' draw, the noise, and learning."""
    noise_scale: float = 3.0
    """Noise, in standard deviations of the embeddings."""
    noise_tokens: tuple[int, ...] = ()
    """Ids of the tokens that get it; none: those at positions where clean and corrupt prompts differ."""
    learning: LearningSettings = field(default_factory=LearningSettings)
    """Of optimal constants (its seed is `seed`)."""


def prepare_ablation(
    model: ComponentModel, kind: AblationKind, batches: Sequence[Batch], settings: AblationSettings | None = None
) -> Ablation:
    """An ablation ready to use. Means are over the batches' corrupt prompts (real tokens only), donors the clean ones.

    Raises ValueError where prompts are needed and there are none.
    """
    settings = settings or AblationSettings()
    if kind == "counterfactual":
        return COUNTERFACTUAL
    if kind == "zero":
        return ZERO
    if kind == "noise":
        return Ablation(kind, noise=measure_noise(model.hf, settings.noise_scale, settings.noise_tokens, settings.seed))
    if not batches:
        raise ValueError(
            f"ablation {kind!r} needs prompts to take {'donors from' if kind == 'resample' else 'means over'}"
        )
    if kind == "resample":
        return Ablation(kind, donors=collect_donors(batches, settings.seed))
    if kind == "mean-span":
        names = spans_of(batches).names
        return Ablation(kind, source_means(model, batches, True, names).finish(len(names)), span_names=names)
    means = source_means(model, batches, kind == "mean-positional")
    if kind == "optimal":
        constants = LearnedConstants(means.finish(), means.spread())
        return learn_constants(model, batches, constants, replace(settings.learning, seed=settings.seed))
    return Ablation(kind, means.finish())


def source_means(
    model: ComponentModel, batches: Sequence[Batch], positional: bool, spans: Sequence[int | str] = ()
) -> RunningMeans:
    """Means of every source over the batches' corrupt prompts. spans: one row for each of these, not for each position.

    Raises ValueError where spans of corrupt prompts are wanted and not known.
    """
    means = RunningMeans(model.blocks, positional, model.dtype, model.features)
    with session(model.hf, model.arch, model.blocks), torch.no_grad():
        for batch in tqdm(batches, desc="means", unit="batch", leave=False, delay=1):
            moved = batch.to(model.device)
            sequences = corrupt_sequences(moved)
            seen = record_pass(model.hf, model.arch, model.blocks, sequences)
            real, index = sequences.mask, sequences.positions
            if spans:
                index = _corrupt_spans(moved, spans)
                real = real & (index >= 0)
            means.add(seen, real, index)
    return means


def _corrupt_spans(batch: Batch, names: Sequence[int | str]) -> Int[Tensor, "row pos"]:
    if batch.corrupt_spans is None:
        raise ValueError("ablation 'mean-span' needs the spans of the corrupt prompts, too")
    return renumbered(batch.corrupt_spans, batch.span_names, names)

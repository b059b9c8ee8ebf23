"""Optimal ablation (Li and Janson 2024): for every source the constant whose use in its place hurts least."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.batch_pieces import pieces
from discovery.learned_constants import LearnedConstants
from discovery.metrics import METRICS, Metric
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run


@dataclass(frozen=True)
class LearningSettings:
    """How constants are learned."""

    steps: int = 150
    """Steps of Adam; in each, every source is dropped on its own on some pairs."""
    rate: float = 0.1
    """Rate at the start, in units of each source's spread; falls to zero along a line."""
    pairs: int = 4
    """Pairs of one step."""
    seed: int = 0
    """Of the order of the pairs."""

    def __post_init__(self) -> None:
        for name in ("steps", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"ablation 'optimal': {name} must be 1 or more, not {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"ablation 'optimal': rate must be above 0, not {self.rate}")


def learn_constants(
    model: PatchableModel,
    batches: Sequence[Batch],
    constants: LearnedConstants,
    settings: LearningSettings | None = None,
    metric: Metric = METRICS["kl"],
) -> Ablation:
    """Constants that keep the metric highest (KL: closest to the full model) when all edges of one source are dropped.

    Each source has its own loss: it alone is dropped, on every pair, and the rest of the model reacts.
    """
    settings = settings or LearningSettings()
    few = [piece for batch in batches for piece in pieces(batch, settings.pairs)]
    keep = one_source_dropped(model)
    adam = torch.optim.Adam(constants.offsets, lr=settings.rate)
    rng, order = random.Random(f"constants:{settings.seed}"), []
    with tqdm(total=settings.steps, desc="optimal constants", unit="step", delay=1, leave=False) as bar:
        for step in range(settings.steps):
            order = order or rng.sample(few, len(few))
            adam.param_groups[0]["lr"] = settings.rate * (1 - step / settings.steps)
            adam.zero_grad(set_to_none=False)
            loss = _backward(model, order.pop(), constants, keep, metric)
            adam.step()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
    return constants.finished()


def one_source_dropped(model: PatchableModel) -> Float[Tensor, "mask src dst"]:
    """For each source the mask that drops all of its edges and keeps every other edge."""
    possible = torch.from_numpy(model.topology.possible).float()
    masks = possible.repeat(len(possible), 1, 1)
    masks[torch.arange(len(possible)), torch.arange(len(possible))] = 0
    return masks


def _backward(
    model: PatchableModel,
    batch: Batch,
    constants: LearnedConstants,
    keep: Float[Tensor, "mask src dst"],
    metric: Metric,
) -> float:
    """Adds every source's gradient; gives the mean loss over sources and pairs."""
    full = model.full_logits(batch)
    reference = full if metric.needs_reference else None
    size = max(1, auto_masks_per_run(batch, full, 3 * len(model.topology.sources)))
    total = 0.0
    for masks in keep.split(size):
        logits = model.run(batch, masks, constants.current())
        loss = -metric.compute(logits, batch.to(logits.device), reference).mean(-1).sum()
        loss.backward()
        total += float(loss.detach())
    return total / len(keep)

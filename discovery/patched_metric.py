"""The metric of patched runs, many masks at a time: what exact patching and evaluation are made of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.memory import free_memory
from discovery.metrics import Metric
from discovery.model import PatchableModel
from discovery.resumed_model import ResumedModel

# Vectors of the residual stream's width that one run may hold. On a CPU they are 0.2 GB at d_model 768, and more at once
# is slower (GPT-2 small's shape and smaller: caches); accelerators take more, because small runs leave them idle.
_VECTORS_PER_RUN = 2**16
_VECTORS_PER_RUN_ON_ACCELERATOR = 2**22
_BYTES_PER_VECTOR = 4 * 8192  # of a wide model: what this makes of free memory is never too much
_LOGITS_PER_RUN = 2**26  # 256 MiB in float32


def full_metric(
    model: PatchableModel, batch: Batch, metric: Metric
) -> tuple[Float[Tensor, " pair"], Float[Tensor, "read vocab"]]:
    """The untouched model's metric on the clean prompts, per pair (float64, on the CPU), and its logits."""
    with torch.no_grad():
        logits = model.full_logits(batch)
        values = metric.compute(logits, batch.to(logits.device), logits if metric.needs_reference else None)
    return values.cpu().double(), logits


def patched_metric(
    model: PatchableModel,
    batch: Batch,
    metric: Metric,
    keep: Bool[np.ndarray, "mask src dst"],
    ablation: Ablation,
    full: Float[Tensor, "read vocab"],
    masks_per_run: int,
) -> Float[Tensor, "mask pair"]:
    """The metric under each mask, per pair (float64, on the CPU); `full`: the untouched model's logits."""
    reference = full if metric.needs_reference else None

    def measure(chunk: Bool[np.ndarray, "some src dst"]) -> Float[Tensor, "some pair"]:
        with torch.no_grad():
            logits = model.run(batch, torch.from_numpy(chunk), ablation)
            return metric.compute(logits, batch.to(logits.device), reference).cpu().double()

    pieces = [torch.empty((0, len(batch)), dtype=torch.float64)]
    for chunk in _chunks(keep, masks_per_run):
        if isinstance(model, ResumedModel):
            pieces.append(model.measured(batch, metric, chunk, ablation, partial(measure, chunk)))
        else:
            pieces.append(measure(chunk))
    return torch.cat(pieces)


def _chunks(keep: Bool[np.ndarray, "mask src dst"], size: int) -> Iterator[Bool[np.ndarray, "some src dst"]]:
    for start in range(0, len(keep), size):
        yield np.ascontiguousarray(keep[start : start + size])


def auto_masks_per_run(batch: Batch, full: Float[Tensor, "read vocab"], vectors_per_token: int) -> int:
    """How many masks to give to one `run` of this batch: as many as an estimate of memory allows, from 1 to 256.

    full: the untouched model's logits. vectors_per_token: vectors that one mask's run holds at each token.
    """
    vectors = batch.clean.numel() * vectors_per_token
    budget = _VECTORS_PER_RUN
    if full.device.type != "cpu":
        free = free_memory(full.device)
        room = _VECTORS_PER_RUN_ON_ACCELERATOR if free is None else free // (2 * _BYTES_PER_VECTOR)
        budget = min(room, _VECTORS_PER_RUN_ON_ACCELERATOR)
    return max(1, min(budget // max(vectors, 1), _LOGITS_PER_RUN // max(full.numel(), 1), 256))

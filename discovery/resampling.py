"""Resample ablation: dropped edges carry what their source is on another prompt of the task (Chan et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from discovery.ablation import Donors
from discovery.batch import Batch


def collect_donors(batches: Iterable[Batch], seed: int = 0) -> Donors:
    """The different clean prompts (with their answers' tokens, where rows have them) of some batches, by length."""
    found: dict[int, dict[tuple[int, ...], None]] = {}
    for batch in batches:
        for tokens, mask in zip(batch.clean.cpu(), batch.mask.cpu(), strict=True):
            prompt = tuple(tokens[mask].tolist())
            found.setdefault(len(prompt), {})[prompt] = None
    return Donors({length: torch.tensor(list(prompts)) for length, prompts in sorted(found.items())}, seed)


def with_donors(batch: Batch, donors: Donors) -> Batch:
    """The batch with another prompt of as many tokens in the place of each corrupt one.

    A prompt's donor depends on its own tokens and the seed alone, so that it is the same in any batch. A prompt whose
    length no other prompt has keeps its corrupt one.
    """
    corrupt = batch.corrupt.clone()
    for row, mask in enumerate(batch.mask):
        own = batch.clean[row, mask].cpu()
        others = donors.by_length.get(len(own))
        if others is not None:
            others = others[(others != own).any(1)]
        if others is not None and len(others):
            draw = np.random.default_rng([donors.seed, *own.tolist()]).integers(len(others))
            corrupt[row, mask] = others[int(draw)].to(corrupt.device)
    return replace(batch, corrupt=corrupt, corrupt_mask=None, alignment=None)

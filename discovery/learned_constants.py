"""Constants for every source that are being learned, starting from means."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from discovery.ablation import Ablation, SourceMeans


class LearnedConstants:
    """One constant per source: its mean, plus an offset in units of how far the source's values spread.

    All sources are then learned at one rate, however large their values are.
    """

    def __init__(self, start: SourceMeans, spread: SourceMeans) -> None:
        """start: means over all positions. spread: root mean square distance of the values from them, per coordinate."""
        self._start = start
        of_vectors = [_one_each(tensor) for tensor in (spread.input, *spread.heads, *spread.mlps)]
        self.scales = [_nonzero(size) for size in (*of_vectors, *spread.features.values())]
        self.offsets = [torch.zeros_like(tensor).requires_grad_() for tensor in start.tensors()]

    def current(self) -> Ablation:
        """The ablation with the constants as they are now, differentiable; each backward pass needs one of its own."""
        return Ablation("optimal", self._means(self.offsets))

    def finished(self) -> Ablation:
        """The ablation with the constants as they are now, to be used."""
        return Ablation("optimal", self._means([offset.detach() for offset in self.offsets]))

    def _means(self, offsets: Iterable[Tensor]) -> SourceMeans:
        moved = [
            tensor + scale * offset
            for tensor, scale, offset in zip(self._start.tensors(), self.scales, offsets, strict=True)
        ]
        return like_means(self._start, moved)


def like_means(pattern: SourceMeans, tensors: Iterable[Tensor]) -> SourceMeans:
    """Tensors in the order of `SourceMeans.tensors` as constants for the sources of `pattern`."""
    rest = iter(tensors)
    return SourceMeans(
        next(rest),
        tuple(next(rest) for _ in pattern.heads),
        tuple(next(rest) for _ in pattern.mlps),
        {layer: next(rest) for layer in pattern.features},
    )


def _one_each(spread: Tensor) -> Tensor:
    """One number for a source that is a vector."""
    return spread.square().mean(-1, keepdim=True).sqrt()


def _nonzero(size: Tensor) -> Tensor:
    """1 where a source does not vary."""
    return torch.where(size > 0, size, torch.ones_like(size))

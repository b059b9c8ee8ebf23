"""For every node of a group some windows of a corpus, those with the largest keys, kept while the corpus streams past."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EMPTY = -1
"""Key of a place that holds no window; all others are 0 or more."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """What a group of nodes did in some windows of the corpus, each cut into chunks of equal width, padding at its end."""

    activations: Float[Tensor, "row pos node"]
    """0 where a node is inactive, and at padding."""
    width: int
    """Tokens of a chunk; pos is a multiple of it."""
    windows: Int[Tensor, " row"]
    """Number of each row's window in the corpus."""
    lengths: Int[Tensor, " row"]
    """Tokens of each row that are no padding."""
    before: int
    """Tokens that are kept in front of a peak."""

    def peaks(self) -> Float[Tensor, "node chunk"]:
        """Largest absolute activation in each chunk, rows one after the other."""
        # Two reductions without indices are several times as fast as one that also tells where.
        cut = self.activations.unflatten(1, (-1, self.width))
        return torch.maximum(cut.amax(2), -cut.amin(2)).flatten(0, 1).t().contiguous()

    def around_peaks(
        self, nodes: Int[Tensor, " item"], chunks: Int[Tensor, " item"]
    ) -> tuple[Int[Tensor, " item"], Int[Tensor, " item"], Float[Tensor, "item width"]]:
        """Rows, first positions, and activations of the windows around the peaks of some (node, chunk)."""
        per_row = self.activations.shape[1] // self.width
        rows, offsets = chunks // per_row, chunks % per_row * self.width
        steps = torch.arange(self.width, device=nodes.device)
        own = self.activations[rows[:, None], offsets[:, None] + steps, nodes[:, None]]
        peaks = offsets + own.abs().argmax(1)
        last = (self.lengths[rows] - self.width).clamp(min=0)
        starts = torch.minimum((peaks - self.before).clamp(min=0), last)
        return rows, starts, self.activations[rows[:, None], starts[:, None] + steps, nodes[:, None]]


@dataclass(eq=False)
class KeptWindows:
    """The windows; places without one have the key EMPTY."""

    keys: Int[Tensor, "node kept"]
    """int64; larger ones displace smaller ones. No two windows of a node share one, so that order plays no part."""
    windows: Int[Tensor, "node kept"]
    """Number of the window in the corpus."""
    starts: Int[Tensor, "node kept"]
    """First position that is shown, counted from the window's first free one."""
    values: Float[Tensor, "node kept width"]
    """Activations from there on."""

    @staticmethod
    def empty(nodes: int, kept: int, width: int, device: torch.device | str) -> KeptWindows:
        """No windows yet."""
        keys = torch.full((nodes, kept), EMPTY, dtype=torch.int64, device=device)
        zeros = torch.zeros_like(keys)
        return KeptWindows(keys, zeros, zeros.clone(), torch.zeros((nodes, kept, width), device=device))

    def offer(self, keys: Int[Tensor, "node chunk"], chunks: Chunks) -> None:
        """Take those chunks whose keys are among the largest so far; EMPTY is never taken."""
        count = self.keys.shape[1]
        better = (keys > self.keys.amin(1, keepdim=True)).any(1).nonzero().flatten()
        if not len(better):
            return
        both = torch.cat([self.keys[better], keys[better]], 1)
        chosen_keys, chosen = both.topk(count, 1)
        nodes, slots = ((chosen >= count) & (chosen_keys != EMPTY)).nonzero(as_tuple=True)
        rows, starts, values = chunks.around_peaks(better[nodes], chosen[nodes, slots] - count)
        old = chosen.clamp(max=count - 1)
        for tensor, fresh in ((self.windows, chunks.windows[rows]), (self.starts, starts), (self.values, values)):
            mine = tensor[better]
            index = old if tensor.ndim == 2 else old[..., None].expand(-1, -1, tensor.shape[2])
            mine = mine.gather(1, index)
            mine[nodes, slots] = fresh.to(tensor.dtype)
            tensor[better] = mine
        self.keys[better] = chosen_keys

    def merge(self, other: KeptWindows) -> None:
        """Take another process's windows of the same nodes."""
        keys, chosen = torch.cat([self.keys, other.keys], 1).topk(self.keys.shape[1], 1)
        for name in ("windows", "starts", "values"):
            both = torch.cat([getattr(self, name), getattr(other, name)], 1)
            index = chosen if both.ndim == 2 else chosen[..., None].expand(-1, -1, both.shape[2])
            setattr(self, name, both.gather(1, index))
        self.keys = keys

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def peak_keys(peaks: Float[Tensor, "node chunk"], hashes: Int[Tensor, " chunk"]) -> Int[Tensor, "node chunk"]:
    """Keys that order by peak, ties by the chunk's hash; EMPTY where the peak is 0."""
    bits = peaks.float().contiguous().view(torch.int32).long()  # of numbers from 0 on, bits order as numbers do
    return torch.where(peaks > 0, (bits << 31) | (hashes >> 31), EMPTY)


def draw_keys(
    active: Bool[Tensor, "node chunk"], hashes: Int[Tensor, " chunk"], offsets: Int[Tensor, " node"]
) -> Int[Tensor, "node chunk"]:
    """Keys that draw uniformly among a node's active chunks, each node another draw; EMPTY where it is inactive."""
    return torch.where(active, (hashes + offsets[:, None]) & _MASK, EMPTY)


_MASK = (1 << 62) - 1


def hashed(numbers: Int[Tensor, "*any"], seed: int) -> Int[Tensor, "*any"]:
    """62 pseudorandom bits of each number (the splitmix64 generator), the same on every machine."""
    mixed = numbers.long() + _wrapped(0x9E3779B97F4A7C15 * (seed + 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * _wrapped(factor)
    return (mixed ^ (mixed >> 31 & (1 << 33) - 1)) & _MASK


def _wrapped(number: int) -> int:
    """As a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)

"""What many sources write at one place of a prompt, laid out so that a batch of gradients meets all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Writes:
    """Up to a fixed number of sources at each of some positions."""

    places: Int[Tensor, " place"]
    """Positions, ascending."""
    everywhere: bool
    """Whether these are all positions of the prompt."""
    padded: Float[Tensor, "place slot d_model"]
    """Vectors; empty slots are zero."""
    flat: Int[Tensor, " source"]
    """Where each source stands among place * slot, ascending."""
    columns: Int[Tensor, " source"]
    """Column of each source."""
    ends: Int[Tensor, " place"]
    """Number of sources up to and with each place."""


def arrange(
    vectors: Float[Tensor, "source d_model"],
    positions: Int[Tensor, " source"],
    columns: Int[Tensor, " source"],
    width: int,
) -> list[Writes]:
    """Lay out sources of one place. Crowded positions overflow into further layouts, so that at most half is padding.

    width: number of positions of the prompt.
    """
    layouts: list[Writes] = []
    order = positions.argsort(stable=True)
    vectors, positions, columns = vectors[order], positions[order], columns[order]
    while len(positions):
        counts = torch.bincount(positions, minlength=width)
        places = counts.nonzero().squeeze(1)
        slots = -(-len(positions) // len(places))
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(positions), device=positions.device) - starts[positions]
        fits = rank < slots
        place = torch.searchsorted(places, positions[fits])
        flat = place * slots + rank[fits]
        padded = vectors.new_zeros((len(places) * slots, vectors.shape[1]))
        padded[flat] = vectors[fits]
        ends = torch.bincount(place, minlength=len(places)).cumsum(0)
        whole = len(places) == width
        layouts.append(Writes(places, whole, padded.unflatten(0, (-1, slots)), flat, columns[fits], ends))
        vectors, positions, columns = vectors[~fits], positions[~fits], columns[~fits]
    return layouts


def meet(
    layouts: Sequence[Writes], gradient: Float[Tensor, "row pos d_model"], result: Float[Tensor, "column all_rows"]
) -> None:
    """Add to the first rows of `result` what the sources' vectors contribute along the gradients at their positions."""
    rows, width, _ = gradient.shape
    for layout in layouts:
        reached = int(torch.searchsorted(layout.places, width)) if not layout.everywhere else width
        if not reached:
            continue
        there = gradient if layout.everywhere else gradient[:, layout.places[:reached]]
        met = torch.bmm(layout.padded[:reached], there.permute(1, 2, 0)).flatten(0, 1)
        end = int(layout.ends[reached - 1])
        result[:, :rows].index_add_(0, layout.columns[:end], met[layout.flat[:end]])


def pick(
    layouts: Sequence[Writes], chosen: Bool[Tensor, " column"]
) -> tuple[Int[Tensor, " source"], Float[Tensor, "source d_model"]]:
    """Columns and vectors of those sources whose columns are chosen."""
    columns, vectors = [], []
    for layout in layouts:
        wanted = chosen[layout.columns]
        columns.append(layout.columns[wanted])
        vectors.append(layout.padded.flatten(0, 1)[layout.flat[wanted]])
    return torch.cat(columns), torch.cat(vectors)

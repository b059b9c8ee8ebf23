"""Where the spans of a batch are: the columns of each, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from discovery.batch import Batch
from graphs.span_topology import Spans


@dataclass(frozen=True, eq=False)
class SpanPlaces:
    """The spans of the columns that a pass handles."""

    spans: Spans
    """What the numbers stand for."""
    index: Int[Tensor, "row pos"]
    """Number of every column's span; -1 at padding."""

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Spans with a token in some row, ascending."""
        found = torch.unique(self.index).tolist()
        return tuple(span for span in found if span >= 0)

    @cached_property
    def flat(self) -> dict[int, Int[Tensor, " place"]]:
        """Of each span that is present: its places among rows times columns. Padding counts to the first of them."""
        flat = self.index.flatten()
        flat = torch.where(flat < 0, self.present[0], flat)
        return {span: (flat == span).nonzero()[:, 0] for span in self.present}

    def at(self, span: int) -> Bool[Tensor, "row pos"]:
        """True at a span's tokens."""
        return self.index == span

    def columns(self, span: int) -> tuple[Int[Tensor, "row some"], Bool[Tensor, "row some"]]:
        """A span's columns in every row, filled up to the longest row; and which of them are the span's."""
        here = self.at(span)
        longest = int(here.sum(1).max())
        order = (~here).to(torch.int8).sort(dim=1, stable=True).indices[:, :longest]
        return order, here.gather(1, order)


def spans_of(batches: Sequence[Batch]) -> Spans:
    """The spans of all batches, by their mean distance from the prompts' end. Raises ValueError for prompts without spans."""
    distances: dict[int | str, list[float]] = {}
    for batch in batches:
        if batch.spans is None:
            raise ValueError("these prompts have no spans")
        from_end = torch.arange(batch.spans.shape[1] - 1, -1, -1).expand_as(batch.spans)
        for number, name in enumerate(batch.span_names):
            found = from_end[batch.spans == number].tolist()
            if found:  # some spans stand in corrupt prompts alone
                distances.setdefault(name, []).extend(found)
    means = {name: sum(values) / len(values) for name, values in distances.items()}
    names = tuple(sorted(means, key=lambda name: (-means[name], str(name))))
    sees, read = np.zeros((len(names), len(names)), dtype=bool), np.zeros(len(names), dtype=bool)
    for batch in batches:
        index = numbered(batch, names)
        for row in index:
            first, last = _ends(row, len(names))
            sees |= (last[:, None] >= first[None, :]).numpy()
        read[index[batch.read_row, batch.read_column].numpy()] = True
    return Spans(names, sees, read)


def _ends(row: Int[Tensor, " pos"], count: int) -> tuple[Int[Tensor, " span"], Int[Tensor, " span"]]:
    """First and last column of every span in a row; of a span that is not there, such as make it see and be seen by none."""
    width = len(row)
    first, last = torch.full((count,), width), torch.full((count,), -1)
    columns = torch.arange(width)[row >= 0]
    first.scatter_reduce_(0, row[row >= 0], columns, "amin")
    last.scatter_reduce_(0, row[row >= 0], columns, "amax")
    return first, last


def numbered(batch: Batch, names: Sequence[int | str]) -> Int[Tensor, "row pos"]:
    """The place among `names` of every token's span, -1 at padding. Raises ValueError where a batch has other spans."""
    if batch.spans is None:
        raise ValueError("the graph has spans but these prompts have none")
    found = renumbered(batch.spans, batch.span_names, names)
    unknown = (found < 0) & (batch.spans >= 0)
    if bool(unknown.any()):
        name = batch.span_names[int(batch.spans[unknown][0])]
        raise ValueError(f"these prompts have a span {name!r}, which the graph does not have")
    return found


def renumbered(
    spans: Int[Tensor, "row pos"], old: Sequence[int | str], names: Sequence[int | str]
) -> Int[Tensor, "row pos"]:
    """Places among `old` as places among `names`; -1 for what is not there."""
    place = {name: number for number, name in enumerate(names)}
    return torch.tensor([*(place.get(name, -1) for name in old), -1], device=spans.device)[spans]

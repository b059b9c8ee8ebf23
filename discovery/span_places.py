"""Where the spans of a batch are: the columns of each, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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

"""A batch with clean and corrupt prompts exchanged: what is run on one side can be run on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from discovery.batch import Batch, positions_of
from discovery.span_alignment import align_rows
from discovery.span_tokens import Names


def turn_round(batch: Batch) -> Batch:
    """The batch the other way round, with the answers as they are; read at the same distance from the prompts' ends.

    Prompts that were aligned by their spans are so again. Spans of clean prompts are unknown where those of the corrupt
    ones were.
    """
    other_side: dict[str, Any] = {
        "clean": batch.corrupt,
        "corrupt": batch.clean,
        "spans": batch.corrupt_spans,
        "corrupt_spans": batch.spans,
    }
    if batch.corrupt_mask is not None:
        width, corrupt_width = batch.clean.shape[1], batch.corrupt.shape[1]
        other_side |= {
            "mask": batch.corrupt_mask,
            "positions": positions_of(batch.corrupt_mask),
            "read_column": batch.read_column + corrupt_width - width,
            "corrupt_mask": batch.mask,
            "alignment": None if batch.alignment is None else _alignment(batch).to(batch.alignment),
        }
    return replace(batch, **other_side)


def _alignment(batch: Batch) -> Float[Tensor, "row corrupt_pos pos"]:
    """What of the clean prompts stands for each token of the corrupt ones."""
    assert batch.spans is not None and batch.corrupt_spans is not None
    own, other = (_names(spans, batch.span_names) for spans in (batch.corrupt_spans, batch.spans))
    return align_rows(own, other, batch.corrupt.shape[1], batch.clean.shape[1])


def _names(spans: Int[Tensor, "row pos"], names: Names) -> Sequence[Names]:
    """Row by row the span of every real token."""
    return [tuple(names[number] for number in row if number >= 0) for row in spans.tolist()]

"""Tokenised prompt pairs, padded on the left, with the places where logits are read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Some pairs of a task as tensors.

    A *row* is one sequence. A pair whose answers are single tokens is one row (the prompt); an answer of several tokens
    needs a row that holds the prompt and all of the answer's tokens but the last. A row serves every answer that begins
    alike, so a pair has no row of the prompt alone where it has a longer one. A *read* is a (row, column) whose logits
    are wanted. A *candidate* is one right or wrong answer; its tokens are its *steps*, each read at one place.
    """

    clean: Int[Tensor, "row pos"]
    """Token ids, padded on the left."""
    corrupt: Int[Tensor, "row corrupt_pos"]
    """Token ids of the counterfactual, aligned with `clean` unless there is a `corrupt_mask`."""
    mask: Bool[Tensor, "row pos"]
    """True at real tokens."""
    positions: Int[Tensor, "row pos"]
    """Position ids: 0 at the first real token (and at padding)."""
    row_pair: Int[Tensor, " row"]
    """The pair (0..pair-1) that each row belongs to."""
    read_row: Int[Tensor, " read"]
    """Row of each read."""
    read_column: Int[Tensor, " read"]
    """Column (0..pos-1) of each read: the logits there predict the next token."""
    pair_read: Int[Tensor, " pair"]
    """For each pair the read at its prompt's last token (KL and top-1 look there)."""
    step_read: Int[Tensor, " step"]
    """Read of each answer token."""
    step_token: Int[Tensor, " step"]
    """Vocabulary id of each answer token."""
    step_candidate: Int[Tensor, " step"]
    """Candidate of each answer token."""
    candidate_pair: Int[Tensor, " candidate"]
    """Pair of each candidate."""
    candidate_right: Bool[Tensor, " candidate"]
    """True for right answers, False for wrong ones."""
    indices: tuple[int, ...]
    """The pairs' row numbers in their task."""
    spans: Int[Tensor, "row pos"] | None = None
    """Number of the span of each token, -1 at padding; None where prompts have no spans. See `graphs.span_topology`."""
    span_names: tuple[int | str, ...] = ()
    """What the numbers of the spans stand for."""
    corrupt_spans: Int[Tensor, "row corrupt_pos"] | None = None
    """Number of the span of each token of `corrupt`; None where that is not known."""
    corrupt_mask: Bool[Tensor, "row corrupt_pos"] | None = None
    """True at real tokens of `corrupt`, where its columns are not those of `clean`; None where they are."""
    alignment: Float[Tensor, "row pos corrupt_pos"] | None = None
    """Where they are not: the share of each token of `corrupt` in what stands for a token of `clean`. None: nothing does."""

    def __len__(self) -> int:
        """Number of pairs (the examples that means are taken over)."""
        return len(self.indices)

    @property
    def corrupt_places(self) -> tuple[Bool[Tensor, "row corrupt_pos"], Int[Tensor, "row corrupt_pos"]]:
        """Real tokens and position ids of `corrupt`."""
        if self.corrupt_mask is None:
            return self.mask, self.positions
        return self.corrupt_mask, positions_of(self.corrupt_mask)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device (itself when it is there already); copied once, however often it is asked for."""
        if self.clean.device == torch.device(device):
            return self
        copies = _copies.setdefault(self, {})
        if torch.device(device) not in copies:
            named = {f.name: getattr(self, f.name) for f in fields(self)}
            moved: dict[str, Any] = {name: part.to(device) for name, part in named.items() if isinstance(part, Tensor)}
            copies[torch.device(device)] = replace(self, **moved)
        return copies[torch.device(device)]


_copies: WeakKeyDictionary[Batch, dict[torch.device, Batch]] = WeakKeyDictionary()


def positions_of(mask: Bool[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Position ids of left-padded rows: 0 at the first real token (and at padding)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)

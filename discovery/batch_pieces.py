"""Some pairs of a batch as a batch of their own."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from discovery.batch import Batch


def pieces(batch: Batch, pairs: int) -> tuple[Batch, ...]:
    """The batch in pieces of at most `pairs` pairs (itself where it has no more)."""
    if len(batch) <= pairs:
        return (batch,)
    return tuple(take(batch, part) for part in torch.arange(len(batch)).split(pairs))


def take(batch: Batch, pairs: Int[Tensor, " some"]) -> Batch:
    """Some pairs (ascending numbers), without the columns that are padding in all of them."""
    device = batch.clean.device
    new_pair = torch.full((len(batch),), -1, device=device)
    new_pair[pairs.to(device)] = torch.arange(len(pairs), device=device)

    def kept(owner: Int[Tensor, " item"]) -> tuple[Int[Tensor, " kept"], Int[Tensor, " item"]]:
        """Places of the items that stay, and the new number of each item."""
        stays = owner >= 0
        return stays.nonzero().flatten(), stays.long().cumsum(0) - 1

    rows, new_row = kept(new_pair[batch.row_pair])
    reads, new_read = kept(new_pair[batch.row_pair[batch.read_row]])
    candidates, new_candidate = kept(new_pair[batch.candidate_pair])
    steps, _ = kept(new_pair[batch.candidate_pair[batch.step_candidate]])
    first = int(batch.mask[rows].any(0).long().argmax())
    return Batch(
        clean=batch.clean[rows, first:],
        corrupt=batch.corrupt[rows, first:],
        mask=batch.mask[rows, first:],
        positions=batch.positions[rows, first:],
        row_pair=new_pair[batch.row_pair[rows]],
        read_row=new_row[batch.read_row[reads]],
        read_column=batch.read_column[reads] - first,
        pair_read=new_read[batch.pair_read[pairs.to(device)]],
        step_read=new_read[batch.step_read[steps]],
        step_token=batch.step_token[steps],
        step_candidate=new_candidate[batch.step_candidate[steps]],
        candidate_pair=new_pair[batch.candidate_pair[candidates]],
        candidate_right=batch.candidate_right[candidates],
        indices=tuple(batch.indices[pair] for pair in pairs.tolist()),
    )

"""Whether a head raises, or lowers, the tokens that it attends to: its OV circuit read through the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.blocks import Block, find_blocks
from discovery.component_model import ComponentModel
from discovery.contraction import head_writers
from discovery.projections import readout, unembedding
from discovery.recording import Activations, Sequences, record_pass, session
from graphs.evidence import TokenEffect
from graphs.node import NodeId

RANK = 5
"""A token counts as copied where it is among so many that are raised most, as in Wang et al. 2023."""
_TOKENS = 512  # that are tried
_SHOWN = 10


@dataclass(frozen=True)
class HeadCopying:
    """One head's OV circuit on single tokens."""

    raised: float
    """Share of tokens that are among the `RANK` that it raises most when it attends to them alone."""
    lowered: float
    """Share that are among those that it lowers most."""
    strongest: tuple[TokenEffect, ...]
    """Tokens whose own logits it raises most when it attends to themselves."""


def first_token(model: ComponentModel) -> int | None:
    """The BOS token; None where the tokenizer has none."""
    known = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return known if isinstance(known, int) else None


def copying(
    model: ComponentModel,
    heads: Sequence[NodeId],
    tokens: Int[Tensor, " token"],
    texts: Callable[[int], str],
    seed: int = 0,
) -> dict[NodeId, HeadCopying]:
    """Each head's values of single tokens, less their mean, through the unembedding of the same tokens.

    A token's value is taken from the model's run on that token alone (behind the BOS token, where there is one), so that it
    holds what the layers below make of it. tokens: those that may be drawn; `_TOKENS` of them are.
    """
    drawn = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:_TOKENS]]
    start = first_token(model)
    rows = drawn[:, None] if start is None else torch.stack([torch.full_like(drawn, start), drawn], 1)
    blocks = find_blocks(model.hf, model.arch, False)
    seen = _run(model, blocks, rows, torch.ones_like(rows, dtype=torch.bool))
    assert seen.final_in is not None
    scale = model.final_norm.inverse_scale(model.final_norm.centre(seen.final_in[:, -1].to(model.dtype))).mean()
    reads = readout(model, drawn)
    found: dict[NodeId, HeadCopying] = {}
    for head in heads:
        values = _values(model, blocks, seen, head)[:, -1]
        written = (values - values.mean(0)) @ head_writers(blocks[head.layer or 0], model.dtype)[head.index or 0]
        logits = scale * written @ reads.to(written).t()
        own = logits.diagonal()
        shown = own.topk(min(_SHOWN, len(own)))
        found[head] = HeadCopying(
            raised=float(_among_first(logits, own).float().mean()),
            lowered=float(_among_first(-logits, -own).float().mean()),
            strongest=tuple(
                TokenEffect(texts(int(drawn[place])), value)
                for value, place in zip(shown.values.tolist(), shown.indices.tolist())
            ),
        )
    return found


def copied_on_task(
    model: ComponentModel, heads: Sequence[NodeId], batches: Sequence[Batch], pairs: int
) -> dict[NodeId, dict[str, float]]:
    """Name mover and copy suppression scores of every head on the task's clean prompts; empty where none mentions an answer.

    name_mover: mean over pairs of the attention from the last token to mentions of right answers (their first tokens), as
    far as what the head would bring from there has that token among the `RANK` that it raises most. copy_suppression: to
    mentions of right or wrong answers, as far as it is among those that it lowers most. answer_attention, wrong_attention:
    attention to the mentions of right, and of wrong answers, whatever it brings.
    """
    names = ("name_mover", "copy_suppression", "answer_attention", "wrong_attention")
    totals: dict[NodeId, dict[str, float]] = {head: dict.fromkeys(names, 0.0) for head in heads}
    count = 0
    for batch in batches:
        if count >= pairs:
            break
        moved = batch.to(model.device)
        some = _mentions(moved)
        if len(some.column):
            _add_batch(model, moved, totals, some)
            count += len(moved)
    return {head: {name: value / count for name, value in one.items()} if count else {} for head, one in totals.items()}


def _among_first(logits: Float[Tensor, "row token"], own: Float[Tensor, " row"]) -> Bool[Tensor, " row"]:
    """Whether a token's own logit is raised, and is among the `RANK` largest; what a head leaves alone is neither."""
    return (own > 0) & ((logits >= own[:, None]).sum(1) <= RANK)


class _Mentions(NamedTuple):
    """Places of a batch's prompts that hold the first token of one of their answers."""

    row: Int[Tensor, " mention"]
    column: Int[Tensor, " mention"]
    last: Int[Tensor, " mention"]
    """Column of the prompt's last token."""
    token: Int[Tensor, " mention"]
    right: Bool[Tensor, " mention"]


def _mentions(batch: Batch) -> _Mentions:
    first = batch.step_read == batch.pair_read[batch.candidate_pair[batch.step_candidate]]
    candidates, tokens = batch.step_candidate[first], batch.step_token[first]
    pair, right = batch.candidate_pair[candidates], batch.candidate_right[candidates]
    # Several answers of a pair may begin with the same token; a right one counts.
    known = torch.stack([pair, tokens, ~right], 1).unique(dim=0)
    again = torch.zeros(len(known), dtype=torch.bool, device=known.device)
    again[1:] = (known[1:, :2] == known[:-1, :2]).all(1)
    pair, tokens, wrong = known[~again].unbind(1)
    rows, last = (place[batch.pair_read][pair] for place in (batch.read_row, batch.read_column))
    columns = torch.arange(batch.clean.shape[1], device=rows.device)
    found = (batch.clean[rows] == tokens[:, None]) & batch.mask[rows] & (columns <= last[:, None])
    answer, column = found.nonzero(as_tuple=True)
    return _Mentions(rows[answer], column, last[answer], tokens[answer], wrong[answer] == 0)


def _add_batch(model: ComponentModel, batch: Batch, totals: dict[NodeId, dict[str, float]], places: _Mentions) -> None:
    blocks = find_blocks(model.hf, model.arch, False)
    seen = _run(model, blocks, batch.clean, batch.mask, patterns=True)
    reads = readout(model, torch.arange(len(unembedding(model))))
    for head, sums in totals.items():
        layer, index = head.layer or 0, head.index or 0
        attention = seen.patterns[layer][places.row, index, places.last, places.column].to(model.dtype)
        values = _values(model, blocks, seen, head)
        mean = values[batch.mask].mean(0)
        written = (values[places.row, places.column] - mean) @ head_writers(blocks[layer], model.dtype)[index]
        logits = written @ reads.to(written).t()
        own = logits.gather(1, places.token[:, None])[:, 0]
        raised, lowered = _among_first(logits, own), _among_first(-logits, -own)
        sums["name_mover"] += float((attention * raised * places.right).sum())
        sums["copy_suppression"] += float((attention * lowered).sum())
        sums["answer_attention"] += float((attention * places.right).sum())
        sums["wrong_attention"] += float((attention * ~places.right).sum())


def _values(
    model: ComponentModel, blocks: Sequence[Block], seen: Activations, head: NodeId
) -> Float[Tensor, "row pos d_head"]:
    """What the head would bring from each position."""
    block = blocks[head.layer or 0]
    values = block.split(seen.raw[block.index]).v
    return values[:, :, (head.index or 0) * block.kv_heads // block.heads].to(model.dtype)


def _run(
    model: ComponentModel,
    blocks: Sequence[Block],
    tokens: Int[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    patterns: bool = False,
) -> Activations:
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    own = Sequences(tokens.to(model.device), mask.to(model.device), positions.to(model.device), None)
    with session(model.hf, model.arch, blocks), torch.no_grad():
        return record_pass(model.hf, model.arch, blocks, own, patterns=patterns)

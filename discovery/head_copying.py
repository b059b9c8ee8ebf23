"""Whether a head raises, or lowers, the tokens that it attends to: its OV circuit read through the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.blocks import Block, find_blocks
from discovery.component_model import ComponentModel
from discovery.contraction import head_writers
from discovery.projections import readout
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
            raised=float(((logits > own[:, None]).sum(1) < RANK).float().mean()),
            lowered=float(((logits < own[:, None]).sum(1) < RANK).float().mean()),
            strongest=tuple(
                TokenEffect(texts(int(drawn[place])), value)
                for value, place in zip(shown.values.tolist(), shown.indices.tolist())
            ),
        )
    return found


def copied_on_task(
    model: ComponentModel, heads: Sequence[NodeId], batches: Sequence[Batch], pairs: int
) -> dict[NodeId, dict[str, float]]:
    """Name mover, copy suppression and answer attention of every head on the task's clean prompts; empty where no prompt
    mentions its right answer.

    name_mover: mean over pairs of the attention from the last token to earlier mentions of the right answer's first token, as
    far as what the head would bring from there has that token among the `RANK` that it raises most; copy_suppression: ...
    lowers most. answer_attention: that attention whatever it brings.
    """
    totals = {head: {"name_mover": 0.0, "copy_suppression": 0.0, "answer_attention": 0.0} for head in heads}
    count = 0
    for batch in batches:
        if count >= pairs:
            break
        moved = batch.to(model.device)
        rows, last, mentions, answers = _mentions(moved)
        some = mentions.any(1).nonzero().flatten()[: pairs - count]
        if len(some):
            _add_batch(model, moved, totals, rows[some], last[some], mentions[some], answers[some])
            count += len(some)
    return {head: {name: value / count for name, value in one.items()} if count else {} for head, one in totals.items()}


def _mentions(batch: Batch) -> tuple[Tensor, Tensor, Bool[Tensor, "pair pos"], Int[Tensor, " pair"]]:
    """Row and last column of every pair's prompt, where it mentions its right answer, and that answer's first token."""
    rows, last = (place[batch.pair_read] for place in (batch.read_row, batch.read_column))
    first = batch.step_read == batch.pair_read[batch.candidate_pair[batch.step_candidate]]
    first &= batch.candidate_right[batch.step_candidate]
    answers = torch.full_like(rows, -1)
    answers[batch.candidate_pair[batch.step_candidate[first]]] = batch.step_token[first]
    columns = torch.arange(batch.clean.shape[1], device=rows.device)
    mentions = (batch.clean[rows] == answers[:, None]) & batch.mask[rows] & (columns <= last[:, None])
    return rows, last, mentions, answers


def _add_batch(
    model: ComponentModel,
    batch: Batch,
    totals: dict[NodeId, dict[str, float]],
    rows: Int[Tensor, " pair"],
    last: Int[Tensor, " pair"],
    mentions: Bool[Tensor, "pair pos"],
    answers: Int[Tensor, " pair"],
) -> None:
    blocks = find_blocks(model.hf, model.arch, False)
    seen = _run(model, blocks, batch.clean[rows], batch.mask[rows], patterns=True)
    vocabulary = torch.arange(model.hf.get_submodule(model.arch.unembedding).weight.shape[0])  # type: ignore[union-attr]
    reads = readout(model, vocabulary)
    pair, column = mentions.nonzero(as_tuple=True)
    for head, sums in totals.items():
        layer, index = head.layer or 0, head.index or 0
        attention = seen.patterns[layer][pair, index, last[pair], column].to(model.dtype)
        values = _values(model, blocks, seen, head)
        real = batch.mask[rows]
        mean = values[real].mean(0)
        written = (values[pair, column] - mean) @ head_writers(blocks[layer], model.dtype)[index]
        logits = written @ reads.to(written).t()
        own = logits.gather(1, answers[pair, None])
        raised, lowered = ((compared.sum(1) < RANK) for compared in (logits > own, logits < own))
        sums["name_mover"] += float((attention * raised).sum())
        sums["copy_suppression"] += float((attention * lowered).sum())
        sums["answer_attention"] += float(attention.sum())


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

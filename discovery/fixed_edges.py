"""AtP* for edges (Kramar et al. 2024 score nodes): exact attention patterns behind queries and keys, and GradDrop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.batch_state import sum_rows
from discovery.contraction import SlotGradients, contract
from discovery.node_effects import Fixes
from discovery.node_gradients import NodePass
from discovery.saturation import writes_of

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel


def fixed_edges(model: ComponentModel, batch: Batch, run: NodePass, fixes: Fixes) -> Float[Tensor, "pair src dst"]:
    """What `ComponentModel.linearize_fixed` gives, over all edges that a run computes."""
    layers = len(model.blocks)
    drops: Sequence[int | None] = range(layers) if fixes.grad_drop and layers > 1 else [None]
    total, mixes = torch.zeros(()), []
    for run.switch.dropped in drops:
        gradients = SlotGradients(model.blocks, model.dtype, model.features)
        mixes.append(gradients.add(run.seen, run.value, also=run.seen.mix))
        rows = contract(model.blocks, run.differences, gradients, model.features)
        total = total + magnitude(sum_rows(rows, batch), fixes, layers)
    run.switch.dropped = None
    if fixes.qk_fix:
        _sharpen(model, batch, run, mixes, fixes, total)
    return total


def magnitude(scores: Tensor, fixes: Fixes, layers: int) -> Tensor:
    """One gradient's share: of its absolute values under GradDrop."""
    return scores.abs() / max(1, layers - 1) if fixes.grad_drop else scores


def _sharpen(
    model: ComponentModel,
    batch: Batch,
    run: NodePass,
    mixes: Sequence[Sequence[Tensor]],
    fixes: Fixes,
    scores: Float[Tensor, "pair src dst"],
) -> None:
    """Puts into `scores` what edges into queries and keys do by the QK fix. mixes: by pass and layer, gradients at mixes."""
    saturation, column = run.saturation(), 0
    known = [run.differences.entry.unsqueeze(0)]
    for block in model.blocks:
        at_mix = torch.stack([mix[block.index] for mix in mixes]).unflatten(-1, (block.heads, block.d_head))
        for effects in saturation.edge_effects(block, known, at_mix).values():
            pairs = [magnitude(sum_rows(rows, batch), fixes, len(model.blocks)) for rows in effects]
            found = torch.stack(pairs).sum(0).to(scores.device)
            scores[:, : found.shape[1], column : column + found.shape[2]] = found
            column += found.shape[2]
        column += block.kv_slots  # values
        known += writes_of(block, run.differences, model.features)
        layer = model.features.get(block.index)
        column += 1 if layer is None else len(layer.chosen) + 1

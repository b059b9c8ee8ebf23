"""EAP-IG's `input` node, which is the token embedding alone: what an ablation leaves of learned position embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.ablation import Ablation, SourceMeans
from discovery.batch import Batch
from discovery.component_model import ComponentModel

SWITCHED = ("zero", "mean")
"""Ablations that differ: all others keep each position's embedding anyway, or learn what stands in its place."""


def keep_positions(model: ComponentModel, ablation: Ablation, batches: Sequence[Batch]) -> Ablation:
    """The same ablation of token embeddings alone, each position's embedding kept (conventions, section 1).

    batches: those that the means were taken over. Nothing changes in models without learned position embeddings.
    """
    if model.arch.position_embedding is None or ablation.kind not in SWITCHED:
        return ablation
    longest = model.config.get_text_config().max_position_embeddings
    with torch.no_grad():
        module = model.hf.get_submodule(model.arch.position_embedding)
        table = module(torch.arange(longest, device=model.device)).to(model.dtype)
    if ablation.means is None:
        return replace(ablation, means=_zeros(model, table))
    positions = torch.cat([batch.positions[batch.mask] for batch in batches])
    share = torch.bincount(positions, minlength=longest).to(table) / len(positions)
    means = ablation.means
    rest = {index: values.expand(longest, -1) for index, values in means.features.items()}
    return replace(
        ablation,
        means=SourceMeans(
            input=means.input - share @ table + table,
            heads=tuple(values.expand(longest, -1, -1) for values in means.heads),
            mlps=tuple(values.expand(longest, -1) for values in means.mlps),
            features=rest,
        ),
    )


def _zeros(model: ComponentModel, table: Float[Tensor, "pos d_model"]) -> SourceMeans:
    def zeros(*shape: int) -> Tensor:
        return table.new_zeros(()).expand(len(table), *shape)

    return SourceMeans(
        input=table,
        heads=tuple(zeros(block.heads, block.d_head) for block in model.blocks),
        mlps=tuple(zeros(table.shape[1]) for _ in model.blocks),
        features={index: zeros(len(layer.chosen)) for index, layer in model.features.items()},
    )

"""Source differences times slot gradients, contracted layer by layer.

Gradients are taken at the projection outputs (narrow) and at the MLPs' inputs, and carried to the residual stream where
they are contracted (see `discovery.narrow_gradients`): wide ones are made for one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.blocks import Block, Norm
from discovery.feature_gradients import FeatureGradients
from discovery.feature_layer import NO_FEATURES, FeatureLayers
from discovery.memory import chunk_columns
from discovery.narrow_gradients import NarrowGradients, expand, narrow_gradients, over_points, through_norm
from discovery.recording import Activations
from graphs.node import PORTS, Port


class SlotGradients:
    """Gradients at every slot of the residual stream, kept narrow, summed over integration points."""

    def __init__(
        self,
        blocks: Sequence[Block],
        dtype: torch.dtype,
        features: FeatureLayers = NO_FEATURES,
        frozen_norms: bool = False,
    ) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self._frozen_norms = frozen_norms
        self.heads: list[NarrowGradients] = []
        self.mlps: list[Float[Tensor, "row pos d_model"]] = []
        self.features = FeatureGradients(features, dtype, frozen_norms)
        self.final: Float[Tensor, "row pos d_model"] | None = None

    def add(self, seen: Activations, metric: Tensor, points: int = 1, also: Sequence[Tensor] = ()) -> list[Tensor]:
        """Take the gradients of `metric` in a recorded pass: a weighted sum over pairs, and over points.

        points: how many points' rows stand one after the other in the pass. also: further tensors of the pass whose
        gradients are wanted and given back; the graph is kept then, for other gradients.
        """
        layers = len(self._blocks)
        raw = [tensor for tensors in seen.raw for tensor in tensors]
        assert seen.final_in is not None
        wanted = [*raw, *seen.mlp_normed, seen.final_in]
        gradients = torch.autograd.grad(
            metric,
            [*wanted, *self.features.written(seen), *also],
            materialize_grads=True,
            retain_graph=bool(also) or self.features.reads_outputs,
        )
        gradients = [gradient.to(self._dtype) for gradient in gradients]
        final = over_points(gradients[len(wanted) - 1], points)
        self.final = final if self.final is None else self.final.to(final.device) + final
        per_layer = len(raw) // layers
        for layer, block in enumerate(self._blocks):
            self._add_heads(block, seen, gradients[layer * per_layer : (layer + 1) * per_layer], points)
            self._add_mlp(block, seen, gradients[len(raw) + layer], points)
        first = len(gradients) - len(also)
        self.features.add(seen, gradients[len(wanted) : first], points)
        return gradients[first:]

    def _add_heads(self, block: Block, seen: Activations, gradients: Sequence[Tensor], points: int) -> None:
        outputs = block.split([tensor.detach().to(self._dtype) for tensor in seen.raw[block.index]])
        norm, slots = block.attention_norm, block.split(gradients)
        linear: list[Tensor] = []
        if norm is not None:
            constants = head_constants(block, self._dtype)
            linear = [output - constant for output, constant in zip(outputs, constants, strict=True)]
        stream = seen.attention_in[block.index].detach().to(self._dtype)
        new = narrow_gradients(norm, stream, linear, slots, points, self._frozen_norms)
        if len(self.heads) <= block.index:
            self.heads.append(new)
        else:
            self.heads[block.index].add(new)

    def _add_mlp(self, block: Block, seen: Activations, gradient: Tensor, points: int) -> None:
        stream, normed = (kept[block.index].detach().to(self._dtype) for kept in (seen.mlp_in, seen.mlp_normed))
        wide = over_points(through_norm(block.mlp_norm, stream, normed, gradient, self._frozen_norms), points)
        if len(self.mlps) <= block.index:
            self.mlps.append(wide)
        else:
            self.mlps[block.index] = self.mlps[block.index] + wide


def head_constants(block: Block, dtype: torch.dtype) -> list[Float[Tensor, "_ d_head"]]:
    """Per port what a block's slots put out at a normed input of zero, plus the norm's own constant."""
    norm = block.attention_norm
    assert norm is not None
    return [_constant(block, port, norm, dtype) for port in PORTS]


def _constant(block: Block, port: Port, norm: Norm, dtype: torch.dtype) -> Tensor:
    """What a slot puts out at a normed input of zero, plus the norm's own constant: [slot d_head]."""
    bias = block.bias(port)
    slots = block.heads if port == "q" else block.kv_slots
    constant = norm.weight.new_zeros((slots, block.d_head), dtype=dtype) if bias is None else bias.to(dtype)
    return constant if norm.bias is None else constant + block.weight(port).to(dtype) @ norm.bias.to(dtype)


@dataclass(frozen=True, eq=False)
class SourceDifferences:
    """Clean less ablated value of every source, heads as mixes before their output weights."""

    entry: Float[Tensor, "row pos d_model"]
    """Of `input`."""
    heads: Sequence[Float[Tensor, "row pos head d_head"]]
    """Per layer, scaled by the post-norm where there is one."""
    mlps: Sequence[Float[Tensor, "row pos d_model"]]
    """Per layer, of the whole MLP."""
    features: Mapping[int, Float[Tensor, "row pos feature"]] = field(default_factory=dict)
    """Per layer with features, before their writers (see `FeatureLayer.write`)."""


def head_writers(block: Block, dtype: torch.dtype) -> Float[Tensor, "head d_head d_model"]:
    """What turns a head's (scaled) mix into what it adds to the residual stream."""
    weight = block.output_weight().to(dtype)
    return weight if block.post_attention_norm is None else weight * block.post_attention_norm.weight.to(dtype)


def contract(
    blocks: Sequence[Block],
    differences: SourceDifferences,
    gradients: SlotGradients,
    features: FeatureLayers = NO_FEATURES,
) -> Float[Tensor, "row src dst"]:
    """Sum over positions and d_model of source difference times slot gradient, for every row, source and slot."""
    rows, width, _ = differences.entry.shape
    nodes = sum(len(layer.chosen) for layer in features.values()) + len(blocks)
    sources = 1 + sum(block.heads for block in blocks) + nodes
    targets = 1 + sum(block.heads + 2 * block.kv_slots for block in blocks) + nodes
    # Source differences are wide (sources x tokens x d_model): columns are taken in chunks.
    step = chunk_columns(width, sources * differences.entry[:, :1].nbytes, differences.entry.device)
    scores = differences.entry.new_zeros((rows, sources, targets))
    for first in range(0, width, step):
        columns = slice(first, min(first + step, width))
        _contract_columns(blocks, differences, gradients, features, columns, scores)
    return scores


def _contract_columns(
    blocks: Sequence[Block],
    differences: SourceDifferences,
    gradients: SlotGradients,
    features: FeatureLayers,
    columns: slice,
    scores: Float[Tensor, "row src dst"],
) -> None:
    entry = differences.entry[:, columns]
    rows, width, d_model = entry.shape
    wide = entry.new_empty((scores.shape[1], rows, width, d_model))
    wide[0] = entry
    seen, column = 1, 0

    def score(slots: Float[Tensor, "slot row pos d_model"], visible: int) -> None:
        nonlocal column
        slots = slots.to(wide.device)
        product = torch.bmm(wide[:visible].flatten(2).transpose(0, 1), slots.flatten(2).permute(1, 2, 0))
        scores[:, :visible, column : column + slots.shape[0]] += product
        column += slots.shape[0]

    for block in blocks:
        before = seen
        score(expand(head_readers(block), gradients.heads[block.index], columns, block.attention_norm), before)
        difference = differences.heads[block.index][:, columns]
        writers = head_writers(block, wide.dtype)
        flat = difference.permute(2, 0, 1, 3).flatten(1, 2).to(writers.device)
        wide[seen : seen + block.heads].flatten(1, 2).copy_(torch.bmm(flat, writers))
        seen += block.heads
        # The MLP's gradient and difference less those of its features are its error node's.
        slot, rest = gradients.mlps[block.index][:, columns], differences.mlps[block.index][:, columns]
        visible = before if block.parallel else seen
        if block.index in features:
            slots = gradients.features.expand(block.index, columns)
            score(slots, visible)
            slot = slot - slots.sum(0)
            written = features[block.index].write(differences.features[block.index][:, columns])
            wide[seen : seen + len(written)] = written
            rest = rest - written.sum(0)
            seen += len(written)
        score(slot[None], visible)
        wide[seen] = rest
        seen += 1
    assert gradients.final is not None
    score(gradients.final[None, :, columns], seen)


def head_readers(block: Block) -> list[Float[Tensor, "_ d_head d_model"]]:
    """Per port what carries a gradient at the projection's output to the norm's (see `expand`): views of the weights."""
    return [block.native_weight(port) for port in PORTS]

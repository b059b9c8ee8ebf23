"""Slot gradients of a graph with spans, and their contraction with source differences, span by span.

What a head's keys and values are worth differs with the span that looks at them. One gradient at the heads' mixes tells what
each position's output is worth; it goes through each layer's attention alone, once for each span's part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.blocks import Block
from discovery.contraction import SourceDifferences, head_constants, head_readers, head_writers
from discovery.memory import chunk_columns
from discovery.narrow_gradients import NarrowGradients, expand, narrow_gradients, over_points, through_norm
from discovery.recording import Activations
from discovery.span_places import SpanPlaces


@dataclass(eq=False)
class SpanGradients:
    """Gradients at every slot, for k and v slots apart for every span that looks; summed over integration points."""

    blocks: Sequence[Block]
    """The model's blocks."""
    dtype: torch.dtype
    """Type of all that is computed here."""
    places: SpanPlaces
    """The batch's spans."""
    frozen_norms: bool = False
    """Whether norms' scales count as constant."""
    heads: list[dict[int, NarrowGradients]] = field(default_factory=list)
    """Per layer, by span of the reading head: its q, k and v slots at all columns."""
    mlps: list[Float[Tensor, "row pos d_model"]] = field(default_factory=list)
    """Per layer: MLP slots."""
    final: Float[Tensor, "row pos d_model"] | None = None
    """The `logits` slot."""

    def add(self, seen: Activations, metric: Tensor, points: int = 1) -> None:
        """Takes the gradients of `metric` in a recorded pass. See `discovery.contraction.SlotGradients.add`."""
        layers = len(self.blocks)
        assert seen.final_in is not None
        wanted = [*seen.mix, *seen.mlp_normed, seen.final_in]
        gradients = torch.autograd.grad(metric, wanted, materialize_grads=True, retain_graph=True)
        final = over_points(gradients[-1].to(self.dtype), points)
        self.final = final if self.final is None else self.final + final
        for block in self.blocks:
            self._add_heads(block, seen, gradients[block.index], points)
            self._add_mlp(block, seen, gradients[layers + block.index].to(self.dtype), points)

    def _add_heads(self, block: Block, seen: Activations, gradient: Float[Tensor, "all pos mix"], points: int) -> None:
        raw, mix = seen.raw[block.index], seen.mix[block.index]
        stream = seen.attention_in[block.index].detach().to(self.dtype)
        linear: list[Tensor] = []
        if block.attention_norm is not None:
            outputs = block.split([tensor.detach().to(self.dtype) for tensor in raw])
            constants = head_constants(block, self.dtype)
            linear = [output - constant for output, constant in zip(outputs, constants, strict=True)]
        if len(self.heads) <= block.index:
            self.heads.append({})
        for span in self.places.present:
            part = self.places.at(span).repeat(points, 1).unsqueeze(-1).to(gradient.device) * gradient
            slots = torch.autograd.grad(mix, raw, part, materialize_grads=True, retain_graph=True)
            split = block.split([slot.to(self.dtype) for slot in slots])
            new = narrow_gradients(block.attention_norm, stream, linear, split, points, self.frozen_norms)
            if span in self.heads[block.index]:
                self.heads[block.index][span].add(new)
            else:
                self.heads[block.index][span] = new

    def _add_mlp(
        self, block: Block, seen: Activations, gradient: Float[Tensor, "all pos d_model"], points: int
    ) -> None:
        stream, normed = (kept[block.index].detach().to(self.dtype) for kept in (seen.mlp_in, seen.mlp_normed))
        wide = over_points(through_norm(block.mlp_norm, stream, normed, gradient, self.frozen_norms), points)
        if len(self.mlps) <= block.index:
            self.mlps.append(wide)
        else:
            self.mlps[block.index] = self.mlps[block.index] + wide


@dataclass(frozen=True, eq=False)
class _Columns:
    """Some columns of every row, all of one span."""

    index: Int[Tensor, "row some"]
    real: Bool[Tensor, "row some"]

    def pick(self, values: Float[Tensor, "row pos *rest"]) -> Float[Tensor, "row some *rest"]:
        """The values there."""
        rows = torch.arange(values.shape[0], device=values.device)[:, None]
        return values[rows, self.index.to(values.device)]

    def pick_real(self, values: Float[Tensor, "row pos *rest"]) -> Float[Tensor, "row some *rest"]:
        """The same, zero where a row has no such column."""
        picked = self.pick(values)
        real = self.real.to(values.device).view(*self.real.shape, *[1] * (picked.ndim - 2))
        return picked * real

    def gradients(self, gradients: NarrowGradients, ports: slice) -> NarrowGradients:
        """Those of some ports there."""
        sizes = [narrow.shape[2] for narrow in gradients.narrow]
        first = sum(sizes[: ports.start or 0])
        stop = first + sum(sizes[ports])
        return NarrowGradients(
            [self.pick(narrow) for narrow in gradients.narrow[ports]],
            [(self.pick(centred), self.pick(factor[..., first:stop])) for centred, factor in gradients.corrections],
        )


class SpanContraction:
    """Sums over positions and d_model of source difference times slot gradient, for every pair of spans."""

    def __init__(self, differences: SourceDifferences, gradients: SpanGradients) -> None:
        self._differences = differences
        self._gradients = gradients
        self._blocks, self._places = gradients.blocks, gradients.places
        self._spans = self._places.spans
        count, first = len(self._spans.names), self._blocks[0]
        self._sources = 1 + len(self._blocks) * (first.heads + 1)
        slots = len(self._blocks) * (first.heads + 2 * first.kv_slots + 1)
        rows = differences.entry.shape[0]
        self._scores = differences.entry.new_zeros((rows, self._sources, count, slots, count))
        self._logits = differences.entry.new_zeros((rows, self._sources, count))

    def scores(self) -> Float[Tensor, "row span_src span_dst"]:
        """The scores of all edges, in the order of `graphs.span_topology.span_topology`."""
        for span in self._places.present:
            index, real = self._places.columns(span)
            entry = self._differences.entry
            step = chunk_columns(index.shape[1], self._sources * entry[:, :1].nbytes, entry.device)
            for first in range(0, index.shape[1], step):
                self._contract(span, _Columns(index[:, first : first + step], real[:, first : first + step]))
        wide = torch.cat([self._scores.flatten(3), self._logits.unsqueeze(-1)], -1)
        return wide.flatten(1, 2)

    def _contract(self, span: int, columns: _Columns) -> None:
        gradients, differences = self._gradients, self._differences
        entry = columns.pick_real(differences.entry)
        wide = entry.new_empty((self._sources, *entry.shape))
        wide[0] = entry
        seen, slot = 1, 0
        for block in self._blocks:
            before = seen
            slot = self._attend(block, span, columns, wide[:before], slot)
            mix = columns.pick_real(differences.heads[block.index]).permute(2, 0, 1, 3).flatten(1, 2)
            writers = head_writers(block, wide.dtype)
            wide[seen : seen + block.heads].flatten(1, 2).copy_(torch.bmm(mix.to(writers.device), writers))
            seen += block.heads
            visible = before if block.parallel else seen
            mlp = columns.pick(gradients.mlps[block.index])
            self._scores[:, :visible, span, slot, span] += self._product(wide[:visible], mlp[None])[..., 0]
            wide[seen] = columns.pick_real(differences.mlps[block.index])
            seen, slot = seen + 1, slot + 1
        assert gradients.final is not None
        if self._spans.read[span]:
            self._logits[:, :, span] += self._product(wide, columns.pick(gradients.final)[None])[..., 0]

    def _attend(self, block: Block, span: int, columns: _Columns, wide: Tensor, slot: int) -> int:
        """Adds what heads read at a span; gives the number of the first slot behind them."""
        readers, stop = head_readers(block), slot + block.heads + 2 * block.kv_slots
        for looking, gradients in self._gradients.heads[block.index].items():
            if not self._spans.sees[looking, span]:
                continue
            ports = slice(0 if looking == span else 1, 3)  # queries are made of the head's own span alone
            slots = expand(readers[ports], columns.gradients(gradients, ports), slice(None), block.attention_norm)
            first = stop - slots.shape[0]
            self._scores[:, : len(wide), span, first:stop, looking] += self._product(wide, slots)
        return stop

    @staticmethod
    def _product(
        wide: Float[Tensor, "src row some d_model"], slots: Float[Tensor, "slot row some d_model"]
    ) -> Float[Tensor, "row src slot"]:
        slots = slots.to(wide.device)
        return torch.bmm(wide.flatten(2).transpose(0, 1), slots.flatten(2).permute(1, 2, 0))

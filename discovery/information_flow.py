"""Information-flow routes (Ferrando and Voita 2024): how much of what a slot reads each source wrote, followed down.

The importance of a vector c in a sum z is max(0, |z| - |z - c|) in the L1 norm, over the sum of these numbers of all parts:
how much nearer to z it brings one. Neither corrupt prompts nor a metric are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.activations import Activations, Sequences
from discovery.baseline import scaled_mix
from discovery.batch import Batch
from discovery.blocks import Block
from discovery.contraction import head_writers
from graphs.node import PORTS

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel

Importance = Float[Tensor, "src row pos"]


class InformationFlow:
    """One batch's clean run as a graph of shares, and the routes through it. Made inside a session, without gradients."""

    def __init__(
        self,
        model: ComponentModel,
        batch: Batch,
        tau: float,
        spans: Int[Tensor, "row pos"] | None = None,
        count: int = 1,
    ) -> None:
        """tau: shares below it are no part of a route. spans: number of each token's span, of `count`; none: all are one."""
        self._model, self._tau = model, tau
        self._batch = batch.to(model.device)
        index = torch.zeros(batch.clean.shape, dtype=torch.long) if spans is None else spans.cpu()
        self._spans: Float[Tensor, "span row pos"] = torch.stack([index == span for span in range(count)]).to(
            model.dtype
        )
        sequences = Sequences(self._batch.clean, self._batch.mask, self._batch.positions, None)
        self._seen: Activations = model.record(sequences, patterns=True)
        self._sources = self._written()

    def _written(self) -> list[Float[Tensor, "row pos d_model"]]:
        """What every source adds to the residual stream."""
        seen, dtype, model = self._seen, self._model.dtype, self._model
        assert seen.entry is not None
        found = [seen.entry.to(dtype)]
        for block in model.blocks:
            total = None if block.post_attention_norm is None else seen.attention_sum[block.index].to(dtype)
            mix = scaled_mix(block, seen.mix[block.index].to(dtype), total)
            found += torch.einsum("rphe,hed->hrpd", mix, head_writers(block, dtype)).unbind()
            whole = seen.mlp_out[block.index].to(dtype)
            if block.index in model.features:
                layer = model.features[block.index]
                parts = layer.write(layer.recorded(model.blocks, seen)).unbind()
                found += parts
                whole = whole - torch.stack(parts).sum(0) if parts else whole
            found.append(whole)
        return found

    def _importance(self, stream: Float[Tensor, "row pos d_model"], visible: int) -> Importance:
        """Shares of the first sources in what is read; those below tau are 0."""
        stream = stream.to(self._model.dtype)
        parts = torch.stack([proximity(stream, source.to(stream.device)) for source in self._sources[:visible]])
        return routed(parts, 0, self._tau)

    def scores(self) -> Float[Tensor, "row src span dst"]:
        """For every edge its importance, a mean over the positions at which a route from the reads reaches its slot.

        Sources and slots stand once per span, in the order of `graphs.span_topology`, the logits once. Keys and values that a
        head looks at from one span are means of their own.
        """
        model, topology = self._model, self._model.graph_without_spans
        (rows, width), count = self._batch.clean.shape, len(self._spans)
        scores = torch.zeros(rows, len(topology.sources), count, len(topology.targets), count, dtype=model.dtype)
        active = torch.zeros(len(topology.sources), rows, width, dtype=torch.bool)

        def follow(column: int, importance: Importance, reached: Bool[Tensor, "looking row pos"]) -> None:
            importance, seen = importance.cpu(), reached.to(importance.dtype)
            active[: len(importance)] |= (importance > 0) & reached.any(0)
            seen = seen / seen.sum(2, keepdim=True).clamp(min=1)
            shares = torch.einsum("nrp,trp,srp->rnst", importance, seen, self._spans)
            scores[:, : len(importance), :, column, : len(seen)] = shares

        read = torch.zeros(rows, width, dtype=torch.bool)
        read[self._batch.read_row.cpu(), self._batch.read_column.cpu()] = True
        assert self._seen.final_in is not None
        column, source = len(topology.targets) - 1, len(topology.sources)
        follow(column, self._importance(self._seen.final_in, source), read.unsqueeze(0))
        for block in reversed(model.blocks):
            nodes = 1 + len(model.features[block.index].chosen) if block.index in model.features else 1
            source, column = source - nodes, column - nodes
            before = source - block.heads
            shares = self._importance(self._seen.mlp_in[block.index], before if block.parallel else source)
            for node in range(nodes):
                follow(column + node, shares, self._own(active[source + node]))
            source = before
            shares = self._importance(self._seen.attention_in[block.index], source)
            reached = self._reached_slots(block, active[source : source + block.heads])
            column -= sum(len(slots) for slots in reached.values())
            for place, slot in enumerate(slot for port in PORTS for slot in reached[port]):
                follow(column + place, shares, slot)
        wide = scores.flatten(3)[..., : 1 - count or None]
        return wide

    def _own(self, active: Bool[Tensor, "*some row pos"]) -> Bool[Tensor, "*some span row pos"]:
        """The same for every span at its tokens."""
        return active.unsqueeze(-3) & self._spans.bool()

    def _reached_slots(
        self, block: Block, active: Bool[Tensor, "head row pos"]
    ) -> Mapping[str, Bool[Tensor, "slot span row pos"]]:
        """Where a layer's slots are on a route, for every span that looks: queries where their head is, keys and values where
        it looks from there."""
        looked = self._own(torch.zeros_like(active))
        index = self._spans.argmax(0)
        values = block.split(self._seen.raw[block.index])[2].to(self._model.dtype)  # [row pos kv_slot d_head]
        pattern = self._seen.patterns[block.index].to(self._model.dtype)
        writers = head_writers(block, self._model.dtype)
        group = block.heads // block.kv_slots
        for head in range(block.heads):
            written = values[:, :, head // group] @ writers[head]  # [row key d_model]
            for row, query in active[head].nonzero().tolist():
                weights = pattern[row, head, query]
                parts = weights.unsqueeze(-1) * written[row]
                whole = parts.sum(0)
                shares = routed(proximity(whole, parts), 0, self._tau)
                looked[head, index[row, query], row] |= (shares > 0).cpu()
        shared = looked.unflatten(0, (block.kv_slots, group)).any(1)
        return {"q": self._own(active), "k": shared, "v": shared}


def proximity(whole: Float[Tensor, "*place d_model"], part: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some"]:
    """max(0, |whole| - |whole - part|), L1."""
    return (whole.abs().sum(-1) - (whole - part).abs().sum(-1)).clamp(min=0)


def routed(parts: Tensor, dim: int, tau: float) -> Tensor:
    """Shares of the parts in their sum; 0 where it is 0, and below tau."""
    total = parts.sum(dim, keepdim=True)
    shares = torch.where(total > 0, parts / total.where(total > 0, 1), 0)
    return shares.where(shares >= tau, 0)


def mean_over_rows(rows: Float[Tensor, "row src span dst"], batch: Batch) -> Float[Tensor, "pair span_src dst"]:
    """Shares of a pair with several rows (an answer of several tokens): their mean."""
    rows = rows.flatten(1, 2)
    pairs = rows.new_zeros((len(batch), *rows.shape[1:])).index_add_(0, batch.row_pair.cpu(), rows)
    return pairs / torch.bincount(batch.row_pair.cpu(), minlength=len(batch)).view(-1, 1, 1)

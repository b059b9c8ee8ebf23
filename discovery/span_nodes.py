"""Node scores and the fixes of AtP* on graphs with spans: every sum over positions is taken span by span.

A query, key or value slot at a span stands for what the head reads there when it looks from that span: gradients at the head's
mix are taken at one span's positions at a time, and go through the layer's attention alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.batch_state import BatchState, sum_rows
from discovery.fixed_edges import magnitude
from discovery.metrics import Metric
from discovery.node_effects import Fixes
from discovery.node_gradients import NodePass
from discovery.saturation import Sharp, writes_of
from discovery.span_gradients import SpanContraction, SpanGradients
from discovery.span_places import SpanPlaces

if TYPE_CHECKING:
    from discovery.span_model import SpanModel

_SHARP: tuple[Sharp, ...] = ("q", "k")


class SpanNodePass(NodePass):
    """A `NodePass` whose effects are those of nodes at spans."""

    def __init__(
        self,
        model: SpanModel,
        state: BatchState,
        metric: Metric,
        reference: Tensor | None,
        neurons: bool,
        places: SpanPlaces,
    ) -> None:
        super().__init__(model, state, metric, reference, neurons)
        index = places.index[:, -self.differences.entry.shape[1] :]
        self.spans: Float[Tensor, "row pos span"] = torch.stack(
            [index == span for span in range(len(places.spans.names))], -1
        ).to(self.differences.entry.dtype)
        """1 at a span's tokens."""

    def effects(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(clean - ablated) . gradient: [row span_src], [row span_dst], [row layer neuron] (over all positions)."""
        seen, blocks = self.seen, self._model.blocks
        assert seen.entry is not None
        found = self.gradients([seen.entry, *seen.mlp_out, *seen.attention_out, *seen.hidden])
        entry, mlps, attention = found[0], found[1 : 1 + len(blocks)], found[1 + len(blocks) : 1 + 2 * len(blocks)]
        sources, slots = [self._by_span((self.differences.entry * entry).sum(-1, keepdim=True))], []
        for block, at_mix in zip(blocks, self.at_mixes(), strict=True):
            slots += [*self._slot_effects(block.index, at_mix), torch.zeros_like(sources[0])]
            own = self._head_changes(block, attention[block.index])
            change = self.differences.mlps[block.index]
            mlp = (change * mlps[block.index].to(change.device)).sum(-1, keepdim=True)
            sources += [self._by_span(own), self._by_span(mlp)]
        hidden = None
        if self._neurons:
            at_neurons = zip(self._neurons, found[1 + 2 * len(blocks) :], strict=True)
            hidden = torch.stack([(change * gradient).sum(1) for change, gradient in at_neurons], 1)
        logits = entry.new_zeros(len(entry), 1)
        return _flat(sources), torch.cat([_flat(slots), logits], 1), hidden

    def _by_span(self, values: Float[Tensor, "row pos node"]) -> Float[Tensor, "row node span"]:
        return torch.einsum("rpn,rps->rns", values, self.spans.to(values))

    def _slot_effects(self, layer: int, at_mix: Tensor) -> list[Float[Tensor, "row slot span"]]:
        """By port, of every slot for each span that looks."""
        block, seen = self._model.blocks[layer], self.seen
        found: list[list[Tensor]] = [[], [], []]
        for looking in self.looking(at_mix):
            part = looking.flatten(2).to(seen.mix[layer].dtype)
            raw = torch.autograd.grad(seen.mix[layer], seen.raw[layer], part, materialize_grads=True, retain_graph=True)
            split = block.split([gradient.to(self._model.dtype) for gradient in raw])
            for effects, change, gradient in zip(found, self._slots[layer], split, strict=True):
                effects.append((change * gradient).sum((1, 3)))
        return [torch.stack(effects, -1) for effects in found]

    def looking(self, at_mix: Float[Tensor, "row pos head d_head"]) -> Float[Tensor, "span row pos head d_head"]:
        """A layer's gradients at its mixes, for every span at its positions alone."""
        return at_mix * self.spans.permute(2, 0, 1)[..., None, None].to(at_mix)

    def sharpen(self, slots: Float[Tensor, "row span_dst"]) -> Float[Tensor, "row span_dst"]:
        """The slots' effects with those of query and key vectors by the QK fix."""
        saturation, count = self.saturation(), self.spans.shape[-1]
        by_slot, column = slots[:, :-1].clone().unflatten(1, (-1, count)), 0
        for block, at_mix in zip(self._model.blocks, self.at_mixes(), strict=True):
            clean = block.split([raw.detach().to(self._model.dtype) for raw in self.seen.raw[block.index]])
            looking = self.looking(at_mix)
            for port, here, change in zip(("q", "k"), clean, self._slots[block.index], strict=False):
                found = saturation.slot_effects(block, port, (here - change).unsqueeze(0), looking)
                stop = column + here.shape[2]
                by_slot[:, column:stop] = found[:, :, 0].permute(1, 2, 0).to(by_slot)
                column = stop
            column += block.kv_slots + 1
        return torch.cat([by_slot.flatten(1), slots[:, -1:]], 1)


def fixed_span_edges(
    model: SpanModel, batch: Batch, run: SpanNodePass, places: SpanPlaces, fixes: Fixes
) -> Float[Tensor, "pair span_src span_dst"]:
    """What `SpanModel.linearize_fixed` gives."""
    layers = len(model.blocks)
    drops: Sequence[int | None] = range(layers) if fixes.grad_drop and layers > 1 else [None]
    total, mixes = torch.zeros(()), []
    for run.switch.dropped in drops:
        gradients = SpanGradients(model.blocks, model.dtype, places)
        gradients.add(run.seen, run.value)
        mixes.append(run.at_mixes())
        rows = SpanContraction(run.differences, gradients).scores()
        total = total + magnitude(sum_rows(rows, batch), fixes, layers)
    run.switch.dropped = None
    if fixes.qk_fix:
        _sharpen(model, batch, run, mixes, fixes, total)
    return total * torch.from_numpy(model.topology.possible).to(total)


def _sharpen(
    model: SpanModel,
    batch: Batch,
    run: SpanNodePass,
    mixes: Sequence[Sequence[Tensor]],
    fixes: Fixes,
    scores: Float[Tensor, "pair span_src span_dst"],
) -> None:
    """Puts into `scores` what edges into queries and keys do by the QK fix. mixes: by pass and layer, gradients at mixes."""
    saturation, column, count = run.saturation(), 0, run.spans.shape[-1]
    by_span = run.spans.permute(2, 0, 1).unsqueeze(-1)
    known = [run.differences.entry.unsqueeze(0)]
    for block in model.blocks:
        at_mix = torch.cat([run.looking(mix[block.index]) for mix in mixes])  # passes, each for every span that looks
        # Every source at every span alone, in the order of the graph's sources.
        some = [(written.unsqueeze(1) * by_span.to(written)).flatten(0, 1) for written in known]
        for effects in saturation.edge_effects(block, some, at_mix).values():
            passes = effects.unflatten(0, (len(mixes), count))  # [pass span_looking row span_src slot]
            pairs = [
                magnitude(sum_rows(rows.movedim(0, -1).flatten(2), batch), fixes, len(model.blocks)) for rows in passes
            ]
            found = torch.stack(pairs).sum(0).to(scores.device)
            scores[:, : found.shape[1], column : column + found.shape[2]] = found
            column += found.shape[2]
        column += (block.kv_slots + 1) * count  # values and the MLP
        known += writes_of(block, run.differences, {})


def _flat(parts: Sequence[Float[Tensor, "row _ span"]]) -> Float[Tensor, "row some"]:
    return torch.cat([part.to(parts[0]) for part in parts], 1).flatten(1)

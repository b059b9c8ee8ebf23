"""A run under masks over the edges of a graph with spans.

What a slot reads at a column is mixed with the weights of the column's span. A head's k and v slots read, at every column,
something else for each span that looks there: attention is called once for every such span, of which only the span's own
columns are taken; masks that keep all that a span's heads read share one call.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.block_run import Recorded
from discovery.blocks import Block
from discovery.patch_plan import Plan, kept_and_dropped, own_inputs, settle, sort_slots
from discovery.patched_run import Observer, PatchedRun
from discovery.source_mixture import Reads, SourceMixture
from discovery.span_places import SpanPlaces
from graphs.node import Port
from graphs.topology import Topology


class SpanMixture(SourceMixture):
    """Mixtures whose weights depend on the span of the column, and for k and v slots on the span that looks there."""

    def __init__(
        self,
        keep: Float[Tensor, "mask span_src span_dst"],
        plan: Plan,
        like: Float[Tensor, "row pos d_model"],
        places: SpanPlaces,
        base: Topology,
    ) -> None:
        super().__init__(keep, plan, like)
        self._places = places
        self._count = len(places.spans.names)
        sources, self._logits = len(base.sources), len(base.targets) - 1
        self._by_source = keep.unflatten(1, (sources, self._count))
        self._ports = [slot.port for slot in base.targets]
        self.reader: int | None = None
        """The span whose view of keys and values is mixed; None: of spans that keep everything."""

    def with_masks(self, masks: Int[Tensor, " some"]) -> SpanMixture:
        """The same for some masks alone; nothing is to be added to it."""
        twin = copy.copy(self)
        chosen = masks.to(self._keep.device)
        twin._masks, twin._keep, twin._by_source = len(masks), self._keep[chosen], self._by_source[chosen]
        if self._buffer is not None:
            twin._buffer = self._buffer[chosen]
        return twin

    def _keep_of(self, span: int, slots: list[int]) -> Float[Tensor, "mask src slot"]:
        """Masks of some slots at a column of a span."""
        if slots == [self._logits]:
            return self._by_source[:, :, span, -1:]
        if self._ports[slots[0]] is None:
            return self._by_source[:, :, span, [slot * self._count + span for slot in slots]]
        if self.reader is None:
            return torch.ones_like(self._by_source[:, :, span, : len(slots)])
        return self._by_source[:, :, span, [slot * self._count + self.reader for slot in slots]]

    def _products(
        self,
        slots: list[int],
        subtract: Bool[Tensor, " slot"],
        known: Float[Tensor, "known value"],
        fresh: Float[Tensor, "mask fresh value"] | None,
        streaming: bool,
        reads: Reads | None,
    ) -> Float[Tensor, "mask slot value"]:
        groups = self._places.flat
        if reads is not None:
            of_read = self._places.index[reads]
            groups = {int(span): (of_read == span).nonzero()[:, 0] for span in of_read.unique()}
        total = sum(map(len, groups.values()))
        known = known.unflatten(1, (total, -1))
        fresh = None if fresh is None else fresh.unflatten(2, (total, -1))
        parts, order = [], []
        for span, group in groups.items():
            own = group.to(known.device)
            some = None if fresh is None else fresh[:, :, own].flatten(2)
            weight = self._weights(self._keep_of(span, slots), slots, subtract)
            part = self._product(weight, subtract, known[:, own].flatten(1), some, streaming)
            parts.append(part.unflatten(2, (len(own), -1)))
            order.append(own)
        back = torch.cat(order).argsort()
        return torch.cat(parts, 2)[:, :, back].flatten(2)


class SpanRun(PatchedRun):
    """A `PatchedRun` whose masks are over the edges between spans."""

    def __init__(
        self,
        blocks: Sequence[Block],
        base: Topology,
        recorded: Recorded,
        keep: Float[Tensor, "mask span_src span_dst"],
        places: SpanPlaces,
        topology: Topology,
        *,
        every_slot: bool = False,
        observe: Observer | None = None,
    ) -> None:
        """base: the graph without spans; topology: the graph with spans that `keep` masks."""
        self._places = places
        self._spanned = topology
        self._base = base
        self._touched: Bool[Tensor, "mask dst span"]
        super().__init__(blocks, base, recorded, keep, every_slot=every_slot, observe=observe)

    def _make_plan(self, keep: Tensor, every_slot: bool) -> Plan:
        """A slot is planned for all spans together; sources are settled span by span."""
        possible = torch.from_numpy(self._spanned.possible)
        kept, dropped = kept_and_dropped(possible, keep)
        if every_slot:
            shape = (len(keep), len(self._base.targets), len(self._places.spans.names))
            self._touched = torch.ones(shape, dtype=torch.bool)
            return own_inputs(torch.from_numpy(self._base.possible))
        silent, active = settle(self._spanned, kept, self._baseline.still, self._coupled)
        changed = ((keep.detach().to("cpu") != 1) & possible).any(1)
        self._touched = torch.stack([self._by_slot(mask) for mask in changed])
        silent = self._by_slot(silent).all(1)
        pieces = (kept, dropped, kept & active[:, None], dropped & active[:, None])
        kept, dropped, kept_active, dropped_active = (self._folded(piece) for piece in pieces)
        return sort_slots(kept, dropped, silent, kept_active, dropped_active)

    def _by_slot(self, values: Bool[Tensor, " span_dst"]) -> Bool[Tensor, "dst span"]:
        """Values of columns by slot and span; those of `logits` stand for every span."""
        count = len(self._places.spans.names)
        last = values[-1:].expand(count)
        return torch.cat([values[:-1], last]).unflatten(0, (-1, count))

    def _folded(self, edges: Bool[Tensor, "span_src span_dst"]) -> Bool[Tensor, "src dst"]:
        """True where an edge between some spans is."""
        count = len(self._places.spans.names)
        rows = edges.unflatten(0, (-1, count)).any(1)
        columns = rows[:, :-1].unflatten(1, (-1, count)).any(2)
        return torch.cat([columns, rows[:, -1:]], 1)

    def _make_mixture(self, keep: Tensor, like: Tensor) -> SourceMixture:
        return SpanMixture(keep, self._plan, like, self._places, self._base)

    def _mix(self, block: Block, ports: dict[Port, range], stream: Tensor | None) -> Tensor:
        slots = [slot for port in ports.values() for slot in port]
        present = list(self._places.present)
        touched = self._touched[:, slots].any(1)[:, present]
        mix = None
        if not bool(touched.all()):
            self._set_reader(None)
            mix = super()._mix(block, ports, stream)
        for span, changed in zip(present, touched.unbind(1), strict=True):
            if not bool(changed.any()):
                continue
            if mix is None or bool(changed.all()):
                self._set_reader(span)
                part = super()._mix(block, ports, stream)
            else:  # the other masks keep all that this span's heads read
                part = self._with_masks(changed.nonzero()[:, 0], span)._own_mix(block, ports, stream, changed)
            mix = part if mix is None else self._put(mix, part, span, changed)
        assert mix is not None
        return mix

    def _with_masks(self, masks: Int[Tensor, " some"], span: int) -> SpanRun:
        """The run as it is now, of some masks alone."""
        twin = copy.copy(self)
        assert isinstance(self._mixture, SpanMixture)
        twin._masks, twin._mixture = len(masks), self._mixture.with_masks(masks)
        twin._set_reader(span)
        return twin

    def _own_mix(
        self, block: Block, ports: dict[Port, range], stream: Tensor | None, masks: Bool[Tensor, " mask"]
    ) -> Tensor:
        """The mixes of a run of some of the masks that a stream belongs to."""
        if stream is not None:
            stream = stream.unflatten(0, (-1, self._rows))[masks.to(stream.device)].flatten(0, 1)
        return super()._mix(block, ports, stream)

    def _put(
        self,
        mix: Float[Tensor, "rows pos mix"],
        part: Float[Tensor, "some pos mix"],
        span: int,
        masks: Bool[Tensor, " mask"],
    ) -> Float[Tensor, "rows pos mix"]:
        """The mixes with those of some masks at a span's columns put in."""
        here = self._places.at(span).unsqueeze(-1).to(mix.device)
        by_mask, new = mix.unflatten(0, (self._masks, self._rows)), part.unflatten(0, (-1, self._rows))
        if bool(masks.all()):
            return torch.where(here, new, by_mask).flatten(0, 1)
        by_mask, chosen = by_mask.clone(), masks.to(mix.device)
        by_mask[chosen] = torch.where(here, new, by_mask[chosen])
        return by_mask.flatten(0, 1)

    def _set_reader(self, span: int | None) -> None:
        assert isinstance(self._mixture, SpanMixture)
        self._mixture.reader = span

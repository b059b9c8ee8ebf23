"""A run under masks over the edges of a graph with spans.

What a slot reads at a column is mixed with the weights of the column's span. A head's k and v slots read, at every column,
something else for each span that looks there: attention is called once for every such span, of which only the span's own
columns are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
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
        self._touched: Bool[Tensor, "dst span"]
        super().__init__(blocks, base, recorded, keep, every_slot=every_slot, observe=observe)

    def _make_plan(self, keep: Tensor, every_slot: bool) -> Plan:
        """A slot is planned for all spans together; sources are settled span by span."""
        possible = torch.from_numpy(self._spanned.possible)
        kept, dropped = kept_and_dropped(possible, keep)
        if every_slot:
            self._touched = torch.ones(len(self._base.targets), len(self._places.spans.names), dtype=torch.bool)
            return own_inputs(torch.from_numpy(self._base.possible))
        silent, active = settle(self._spanned, kept, self._baseline.still, self._coupled)
        self._touched = self._by_slot(dropped.any(0))
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
        touched = self._touched[slots].any(0).tolist()
        own = [span for span in self._places.present if touched[span]]
        self._set_reader(None)
        mix = None
        if len(own) < len(self._places.present):
            mix = super()._mix(block, ports, stream)
        for span in own:
            self._set_reader(span)
            part = super()._mix(block, ports, stream)
            here = self._places.at(span).repeat(self._masks, 1).unsqueeze(-1).to(part.device)
            mix = part if mix is None else torch.where(here, part, mix)
        assert mix is not None
        return mix

    def _set_reader(self, span: int | None) -> None:
        assert isinstance(self._mixture, SpanMixture)
        self._mixture.reader = span

"""Runs of circuits that shrink step by step: what the last circuit's run gave is kept, and only what changes is computed.

A slot's input is its input in the known run, less the sources dropped now, plus what other sources changed by. A node that
nothing dropped can reach is not run; one that matters only where logits are read is run there alone. What several masks
have in common is run once: where nothing has changed before a layer, each of its heads runs for the masks that differ there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.baseline import scaled_mix
from discovery.block_run import BlockRun
from discovery.blocks import Block, Projected
from discovery.changed_sources import ChangedSources
from discovery.pruning_plan import plan_pruning
from discovery.pruning_state import PruningState
from graphs.node import PORTS, Port


class PruningRun(BlockRun):
    """Runs under several masks that all keep fewer edges than the state's circuit."""

    def __init__(
        self,
        state: PruningState,
        masks: Bool[np.ndarray, "mask src dst"],
        flow: Bool[np.ndarray, "mask src dst"] | None = None,
    ) -> None:
        """flow: the edges along which changes go on (default: those that the masks keep). Where that is not all of them the
        run is no circuit's, and the state must not accept it.
        """
        super().__init__(state.blocks, state.topology, state.recorded, len(masks))
        self._state = state
        self._kept = masks
        flow = masks if flow is None else flow
        self._plan = plan_pruning(state.topology, state.kept, masks, flow, state.changed_by)
        self._sources = ChangedSources(state, masks, flow, self._plan)
        self._projected: dict[int, dict[Port, list[_Part]]] = {}
        self._rows_of: dict[int, Int[np.ndarray, "mask group"]] = {}
        """By layer, where the rows of a mask stand in its attention, for every group of heads that share keys."""

    @property
    def reaches_logits(self) -> bool:
        """Whether anything that the logits read may differ from the state's run."""
        return bool(self._plan.slots[-1])

    def final_stream(self) -> Float[Tensor, "mask read d_model"]:
        """What the `logits` slot reads, at the reads."""
        for block in self._blocks:
            self._attention(block)
            self._feed_forward(block)
        column = len(self._topology.targets) - 1
        every = np.arange(self._masks)[:, None]
        return self._sources.inputs([column], self._baseline.final_in, True, every)[0]

    def accept(self, place: int) -> None:
        """Makes the run of one mask the state's."""
        state = self._state
        state.kept = self._kept[place].copy()
        self._sources.accept(place)
        for layer, ports in self._projected.items():
            slots = list(state.projected[layer])
            shared = self._blocks[layer].heads // self._rows_of[layer].shape[1]
            for port, parts in ports.items():
                which = PORTS.index(port)
                for part in parts:
                    groups = [slot // shared if port == "q" else slot for slot in part.local]
                    rows = self._rows_of[layer][place, groups]
                    own = part.projected[rows, ..., list(range(len(groups))), :].movedim(0, -2)
                    slots[which] = self._put(slots[which][None], [_Part(part.at_reads, part.local, own[None])])[0]
            state.projected[layer] = Projected(*slots)

    def _attention(self, block: Block) -> None:
        first = self._first_source(block)
        heads = [head for head in range(block.heads) if self._plan.sources[first + head]]
        if not heads:
            return
        chosen, of = self._attention_variants(block)
        mix = self._call_attention(block, self._project(block, chosen), len(chosen))
        total = None if block.post_attention_norm is None else self._attention_write(block, mix)[1]
        scaled = scaled_mix(block, mix.to(self._dtype), None if total is None else total.to(self._dtype))
        difference = scaled.unflatten(0, (len(chosen), self._rows)) - self._baseline.heads[block.index]
        reads = [head for head in heads if not self._plan.everywhere[first + head]]
        shared = block.heads // chosen.shape[1]
        for at_reads, some in ((False, [head for head in heads if head not in reads]), (True, reads)):
            if some:
                own = difference.movedim(3, 1)
                own = self._state.at_reads(own) if at_reads else own
                mixed = own.movedim(1, -2)  # [variant *place head d_head]
                place = mixed.shape[1:-2]
                written = self.write_heads(block, mixed.reshape(1, -1, *mixed.shape[-2:]), some)
                for head, value in zip(some, written.unflatten(1, (len(chosen), *place)), strict=True):
                    self._sources.add(first + head, value, of[:, head // shared], at_reads)

    def _attention_variants(
        self, block: Block
    ) -> tuple[Int[np.ndarray, "variant group"], Int[np.ndarray, "mask group"]]:
        """The masks that a layer's attention is called for, for each group of heads that share keys, and every mask's place.

        Groups do not see each other: as long as nothing before them has changed, each gets the masks that differ there.
        """
        ports = self._ports(block)
        shared = block.heads // len(ports["k"])
        groups = [
            [*ports["q"][g * shared : (g + 1) * shared], ports["k"][g], ports["v"][g]] for g in range(len(ports["k"]))
        ]
        changed = [[column for column in group if self._plan.slots[column]] for group in groups]
        every = [column for group in changed for column in group]
        if block.coupled or self._sources.changed(every):
            masks, of = self._sources.distinct(every)
            found = [(masks, of)] * len(groups)
        else:
            found = [self._sources.distinct(group) for group in changed]
        most = max(len(masks) for masks, _ in found)
        chosen = [np.pad(masks, (0, most - len(masks)), mode="edge") for masks, _ in found]
        rows_of = np.stack([of for _, of in found], 1)
        self._rows_of[block.index] = rows_of
        return np.stack(chosen, 1), rows_of

    def _project(self, block: Block, chosen: Int[np.ndarray, "variant group"]) -> Projected:
        """The block's slots: those of the state's run, but for the ones that change."""
        base, norm = self._baseline.attention_in[block.index], block.attention_norm
        ports, shared = self._ports(block), block.heads // chosen.shape[1]
        found: dict[Port, list[_Part]] = {port: [] for port in ports}
        for at_reads in (False, True):
            columns = [column for slots in ports.values() for column in slots if self._plan.reads(column, at_reads)]
            if not columns:
                continue
            groups = [
                (c - ports["q"].start) // shared if c in ports["q"] else (c - ports["k"].start) % chosen.shape[1]
                for c in columns
            ]
            inputs = self._sources.inputs(columns, base, at_reads, chosen[:, groups])
            own = inputs if norm is None else norm(inputs)
            start = 0
            for port, slots in ports.items():
                local = [column - slots.start for column in columns if column in slots]
                if local:
                    part = self._project_own(block, port, own[start : start + len(local)], local)
                    found[port].append(_Part(at_reads, local, part))
                    start += len(local)
        self._projected[block.index] = {port: parts for port, parts in found.items() if parts}
        return Projected(
            *(self._put(self._known(block, port, len(chosen)), parts).flatten(0, 1) for port, parts in found.items())
        )

    def _known(self, block: Block, port: Port, count: int) -> Float[Tensor, "variant row pos slot d_head"]:
        known = self._state.projected[block.index][PORTS.index(port)]
        return known.expand(count, *known.shape)

    def _put(
        self, known: Float[Tensor, "variant row pos slot d_head"], parts: list[_Part]
    ) -> Float[Tensor, "variant row pos slot d_head"]:
        """Slots with the new ones put in, at all positions or at the reads."""
        out = known.clone() if parts else known
        for part in parts:
            projected = part.projected.to(out.dtype)
            if not part.at_reads:
                out[:, :, :, part.local] = projected
                continue
            for place, slot in enumerate(part.local):
                out[:, *self._state.there, slot] = projected[..., place, :]
        return out

    def _feed_forward(self, block: Block) -> None:
        source = self._first_source(block) + block.heads
        if not self._plan.sources[source]:
            return
        at_reads = not self._plan.everywhere[source]
        column = self._mlp_columns(block).start
        chosen, of = self._sources.distinct([column])
        base = self._baseline.mlp_in[block.index]
        inputs = self._sources.inputs([column], base, at_reads, chosen[:, None])[0]
        ablated = self._baseline.mlps[block.index]
        if at_reads:
            self._sources.add(source, self._mlp(block, inputs) - self._state.at_reads(ablated), of, True)
        else:
            # One mask after the other: its activations stay in the processor's cache.
            self._sources.add(source, torch.stack([self._mlp(block, rows) - ablated for rows in inputs]), of, False)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some slots of one port as their projections put them out."""

    at_reads: bool
    """Where: at the reads alone, or at all positions."""
    local: list[int]
    """Which slots of the port."""
    projected: Float[Tensor, "variant *place slot d_head"]
    """Their values."""

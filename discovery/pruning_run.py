"""Runs of circuits that shrink step by step: what the last circuit's run gave is kept, and only what changes is computed.

A slot's input is its input in the known run, less the sources dropped now, plus what other sources changed by. A node that
nothing dropped can reach is not run; one that matters only where logits are read is run there alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.baseline import scaled_mix
from discovery.block_run import BlockRun, Recorded
from discovery.blocks import Block, Projected
from discovery.pruning_plan import changed_by, plan_pruning
from graphs.node import PORTS, Port
from graphs.topology import Topology


class PruningState:
    """One batch's run of a circuit, at first of the whole model. Memory: what every source writes, once."""

    def __init__(self, blocks: Sequence[Block], topology: Topology, recorded: Recorded) -> None:
        self.blocks = blocks
        self.topology = topology
        self.recorded = recorded
        self.kept: Bool[np.ndarray, "src dst"] = topology.possible.copy()
        self.changed_by = changed_by(topology, any(block.coupled for block in blocks))
        baseline, differences = recorded.baseline, recorded.differences
        self.values: Float[Tensor, "src row pos d_model"] = baseline.entry.new_empty(
            (len(topology.sources), *baseline.entry.shape)
        )
        """Every source's value less its ablated value."""
        self.values[0] = differences.entry
        row = 1
        for block in blocks:
            written = BlockRun.write_heads(block, differences.heads[block.index], list(range(block.heads)))
            self.values[row : row + block.heads] = written.unflatten(1, tuple(baseline.entry.shape[:2]))
            row += block.heads
            self.values[row] = differences.mlps[block.index]
            row += 1
        self.projected: dict[int, Projected] = {
            block.index: block.split([raw.detach() for raw in recorded.clean.raw[block.index]]) for block in blocks
        }
        """By layer what the slots put out."""


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
        self._flow = masks if flow is None else flow
        self._plan = plan_pruning(state.topology, state.kept, masks, self._flow, state.changed_by)
        plan, values = self._plan, state.values
        self._wide: list[int] = []
        """Sources computed in this run at all positions, in order; then those computed at the reads alone."""
        self._narrow: list[int] = []
        wide, narrow = int((plan.sources & plan.everywhere).sum()), int((plan.sources & ~plan.everywhere).sum())
        self._wide_values = values.new_empty((len(masks), wide, *values.shape[1:]))
        reads = len(self._recorded.read_rows)
        self._narrow_values = values.new_empty((len(masks), narrow, reads, self._d_model))
        self._projected: dict[int, dict[Port, list[tuple[bool, list[int], Tensor]]]] = {}

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
        return self._inputs([column], self._baseline.final_in, at_reads=True).squeeze(1)

    def accept(self, place: int) -> None:
        """Makes the run of one mask the state's."""
        state, recorded = self._state, self._recorded
        state.kept = self._kept[place].copy()
        for index, source in enumerate(self._wide):
            state.values[source] += self._wide_values[place, index]
        for index, source in enumerate(self._narrow):
            there = (recorded.read_rows, recorded.read_columns)
            state.values[source][there] += self._narrow_values[place, index]
        for layer, ports in self._projected.items():
            slots = list(state.projected[layer])
            for port, parts in ports.items():
                which = PORTS.index(port)
                mine = [(at_reads, local, projected[place : place + 1]) for at_reads, local, projected in parts]
                slots[which] = self._put(slots[which][None], mine)
            state.projected[layer] = Projected(*slots)

    def _add(self, source: int, value: Float[Tensor, "mask *place d_model"], at_reads: bool) -> None:
        """Takes in a source's value less its ablated value; kept as the change against the state's run."""
        known = self._state.values[source]
        value = value.to(known.device)
        if at_reads:
            self._narrow_values[:, len(self._narrow)] = value - self._at_reads(known)
            self._narrow.append(source)
        else:
            self._wide_values[:, len(self._wide)] = value - known
            self._wide.append(source)

    def _inputs(
        self, columns: list[int], base: Float[Tensor, "row pos d_model"], at_reads: bool
    ) -> Float[Tensor, "mask slot *place d_model"]:
        """What some slots of one stage read; base: the ablated stream there."""
        values, shown = self._state.values, base.to(self._state.values.device)
        fresh = self._wide_values[:, : len(self._wide)]
        sources = list(self._wide)
        if at_reads:
            values, shown, fresh = self._at_reads(values), self._at_reads(shown), self._at_reads(fresh)
            fresh = torch.cat([fresh, self._narrow_values[:, : len(self._narrow)]], 1)
            sources += self._narrow
        shape = shown.shape
        known = self._weights(self._state.kept[:, columns].T)
        inputs = torch.addmm(shown.reshape(1, -1), known, values.flatten(1)).expand(self._masks, -1, -1)
        lost = self._state.kept[:, columns] & ~self._kept[:, :, columns]  # [mask src slot]
        rows = np.flatnonzero(lost.any((0, 2)))
        if len(rows):
            weights = self._weights(lost[:, rows].transpose(0, 2, 1).reshape(-1, len(rows)))
            part = values.flatten(1)[int(rows[0]) : int(rows[-1]) + 1] if _contiguous(rows) else values.flatten(1)[rows]
            inputs = inputs - (weights @ part).unflatten(0, (self._masks, len(columns)))
        if sources:
            weights = self._weights(self._flow[:, sources][:, :, columns].transpose(0, 2, 1))
            inputs = torch.baddbmm(inputs, weights, fresh.flatten(2))
        return inputs.unflatten(2, shape)

    def _weights(self, kept: Bool[np.ndarray, "*any"]) -> Float[Tensor, "*any"]:
        values = self._state.values
        return torch.from_numpy(np.ascontiguousarray(kept)).to(device=values.device, dtype=values.dtype)

    def _attention(self, block: Block) -> None:
        first = self._first_source(block)
        heads = [head for head in range(block.heads) if self._plan.sources[first + head]]
        if not heads:
            return
        mix = self._call_attention(block, self._project(block))
        total = None if block.post_attention_norm is None else self._attention_write(block, mix)[1]
        scaled = scaled_mix(block, mix.to(self._dtype), None if total is None else total.to(self._dtype))
        difference = scaled.unflatten(0, (self._masks, self._rows)) - self._baseline.heads[block.index]
        reads = [head for head in heads if not self._plan.everywhere[first + head]]
        for at_reads, some in ((False, [head for head in heads if head not in reads]), (True, reads)):
            if some:
                own = difference.movedim(3, 1)
                own = self._at_reads(own) if at_reads else own
                mixed = own.movedim(1, -2)  # [mask *place head d_head]
                place = mixed.shape[1:-2]
                written = self.write_heads(block, mixed.reshape(1, -1, *mixed.shape[-2:]), some)
                for head, value in zip(some, written.unflatten(1, (self._masks, *place)), strict=True):
                    self._add(first + head, value, at_reads)

    def _project(self, block: Block) -> Projected:
        """The block's slots: those of the state's run, but for the ones that change."""
        base, norm = self._baseline.attention_in[block.index], block.attention_norm
        ports = self._ports(block)
        found: dict[Port, list[tuple[bool, list[int], Tensor]]] = {port: [] for port in ports}
        for at_reads in (False, True):
            columns = [column for slots in ports.values() for column in slots if self._plan.reads(column, at_reads)]
            if not columns:
                continue
            inputs = self._inputs(columns, base, at_reads)
            own = inputs if norm is None else norm(inputs)
            for port, slots in ports.items():
                local = [column - slots.start for column in columns if column in slots]
                if local:
                    part = own[:, [column in slots for column in columns]]
                    found[port].append((at_reads, local, self._project_own(block, port, part, local)))
        self._projected[block.index] = {port: parts for port, parts in found.items() if parts}
        return Projected(*(self._put(self._known(block, port), parts) for port, parts in found.items()))

    def _known(self, block: Block, port: Port) -> Float[Tensor, "mask row pos slot d_head"]:
        known = self._state.projected[block.index][PORTS.index(port)]
        return known.expand(self._masks, *known.shape)

    def _put(
        self, known: Float[Tensor, "mask row pos slot d_head"], parts: list[tuple[bool, list[int], Tensor]]
    ) -> Float[Tensor, "rows pos slot d_head"]:
        """Slots with the new ones put in, at all positions or at the reads."""
        out = known.clone() if parts else known
        for at_reads, local, projected in parts:
            if not at_reads:
                out[:, :, :, local] = projected.to(out.dtype)
                continue
            rows, columns = self._recorded.read_rows, self._recorded.read_columns
            for place, slot in enumerate(local):
                out[:, rows, columns, slot] = projected[..., place, :].to(out.dtype)
        return out.flatten(0, 1)

    def _feed_forward(self, block: Block) -> None:
        source = self._first_source(block) + block.heads
        if not self._plan.sources[source]:
            return
        at_reads = not self._plan.everywhere[source]
        column = self._mlp_columns(block).start
        inputs = self._inputs([column], self._baseline.mlp_in[block.index], at_reads).squeeze(1)
        ablated = self._baseline.mlps[block.index]
        if at_reads:
            self._add(source, self._mlp(block, inputs) - self._at_reads(ablated), True)
        else:
            # One mask after the other: its activations stay in the processor's cache.
            self._add(source, torch.stack([self._mlp(block, rows) - ablated for rows in inputs]), False)


def _contiguous(rows: Int[np.ndarray, " row"]) -> bool:
    return int(rows[-1]) - int(rows[0]) == len(rows) - 1

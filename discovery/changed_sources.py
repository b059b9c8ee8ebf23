"""What sources write in runs under several masks, as changes against a known run; and what slots read of it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from discovery.pruning_plan import PruningPlan
from discovery.pruning_state import PruningState


class ChangedSources:
    """Sources computed so far. Memory: what they write, once for every mask."""

    def __init__(
        self,
        state: PruningState,
        masks: Bool[np.ndarray, "mask src dst"],
        flow: Bool[np.ndarray, "mask src dst"],
        plan: PruningPlan,
    ) -> None:
        """state: the known run. plan: which sources will be added. For the others see `PruningRun`."""
        self._state, self._known, values = state, state.kept, state.values
        self._masks, self._flow = masks, flow
        self._count = len(masks)
        self._wide: list[int] = []
        """Sources computed at all positions, in order; then those computed at the reads alone."""
        self._narrow: list[int] = []
        wide, narrow = int((plan.sources & plan.everywhere).sum()), int((plan.sources & ~plan.everywhere).sum())
        self._wide_values = values.new_empty((len(masks), wide, *values.shape[1:]))
        self._narrow_values = values.new_empty((len(masks), narrow, len(state.recorded.read_rows), values.shape[-1]))
        self._variants: dict[int, Int[np.ndarray, " mask"]] = {}
        """By source, masks under which it writes the same have the same number."""

    def accept(self, place: int) -> None:
        """Makes what the sources write under one mask the known run's."""
        for index, source in enumerate(self._wide):
            self._state.values[source] += self._wide_values[place, index]
        for index, source in enumerate(self._narrow):
            self._state.values[source][self._state.there] += self._narrow_values[place, index]

    def distinct(self, columns: list[int]) -> tuple[Int[np.ndarray, " variant"], Int[np.ndarray, " mask"]]:
        """Masks under which some slots read different things, and which of these stands for every mask."""
        marks = [self._masks[:, :, columns].reshape(self._count, -1)]
        for source in self.changed(columns):
            flow = self._flow[:, source][:, columns]
            marks += [flow, np.where(flow.any(1), self._variants[source], -1)[:, None]]
        seen: dict[bytes, int] = {}
        rows = zip(*(np.ascontiguousarray(mark) for mark in marks))
        of = [seen.setdefault(b"".join(part.tobytes() for part in row), len(seen)) for row in rows]
        return np.unique(of, return_index=True)[1], np.array(of)

    def changed(self, columns: list[int]) -> list[int]:
        """Sources computed in this run that some of the slots read."""
        return [s for s in (*self._wide, *self._narrow) if self._flow[:, s][:, columns].any()]

    def add(
        self,
        source: int,
        value: Float[Tensor, "variant *place d_model"],
        variants: Int[np.ndarray, " mask"],
        at_reads: bool,
    ) -> None:
        """Takes in a source's value less its ablated value; kept as the change against the state's run."""
        known = self._state.values[source]
        value = value.to(known.device)
        if len(value) != self._count or (variants != np.arange(self._count)).any():
            value = value.index_select(0, torch.from_numpy(variants).to(value.device))
        self._variants[source] = variants
        if at_reads:
            torch.sub(value, self._state.at_reads(known), out=self._narrow_values[:, len(self._narrow)])
            self._narrow.append(source)
        else:
            torch.sub(value, known, out=self._wide_values[:, len(self._wide)])
            self._wide.append(source)

    def inputs(
        self,
        columns: list[int],
        base: Float[Tensor, "row pos d_model"],
        at_reads: bool,
        chosen: Int[np.ndarray, "variant slot"],
    ) -> Float[Tensor, "slot variant *place d_model"]:
        """What some slots of one stage read under some masks; base: the ablated stream there.

        chosen: for each slot its masks. Where the slots read sources computed in this run these must be the same for all.
        """
        values, shown = self._state.values, base.to(self._state.values.device)
        if at_reads:
            values, shown = self._state.at_reads(values), self._state.at_reads(shown)
        flat, shape = values.flatten(1), shown.shape
        kept = self._masks[chosen.T, :, np.array(columns)[:, None]]  # [slot variant src]
        lost = self._known[:, columns].T[:, None] & ~kept
        rows, gone = np.flatnonzero(kept.any((0, 1))), np.flatnonzero(lost.any((0, 1)))
        shown = shown.reshape(1, -1)
        if len(gone) + len(columns) < len(rows):  # cheaper from what the slots read in the known run
            whole = torch.addmm(shown, self._weights(self._known[:, columns].T), flat)
            own = np.broadcast_to(np.eye(len(columns))[:, None], (len(columns), len(chosen), len(columns)))
            weights = np.concatenate([own, -lost[:, :, gone].astype(float)], 2)
            inputs = self._weights(weights.reshape(chosen.size, -1)) @ torch.cat([whole, _rows(flat, gone)])
        else:
            inputs = torch.addmm(
                shown, self._weights(kept[:, :, rows].reshape(chosen.size, len(rows))), _rows(flat, rows)
            )
        inputs = inputs.unflatten(0, (len(columns), len(chosen)))
        sources = self.changed(columns)
        if sources:
            self._add_changes(inputs, sources, columns, at_reads, chosen[:, 0])
        return inputs.unflatten(2, shape)

    def _add_changes(
        self,
        inputs: Float[Tensor, "slot variant place_d_model"],
        sources: list[int],
        columns: list[int],
        at_reads: bool,
        masks: Int[np.ndarray, " variant"],
    ) -> None:
        """Adds to inputs what sources computed in this run changed by."""
        every = len(masks) == self._count
        some = slice(None) if every else torch.from_numpy(masks).to(inputs.device)
        for known, values, narrow in (
            (self._wide, self._wide_values, False),
            (self._narrow, self._narrow_values, True),
        ):
            places = [place for place, source in enumerate(known) if source in sources]
            if not places:
                continue
            fresh = values[some, places[0] : places[-1] + 1]
            if at_reads and not narrow:
                fresh = self._state.at_reads(fresh)
            flow = self._flow[masks][:, known[places[0] : places[-1] + 1]][:, :, columns]
            inputs.transpose(0, 1).baddbmm_(self._weights(flow.transpose(0, 2, 1)), fresh.flatten(2))

    def _weights(self, kept: Shaped[np.ndarray, "*any"]) -> Float[Tensor, "*any"]:
        values = self._state.values
        return torch.from_numpy(np.ascontiguousarray(kept)).to(device=values.device, dtype=values.dtype)


def _rows(
    values: Float[Tensor, "src place_d_model"], rows: Int[np.ndarray, " row"]
) -> Float[Tensor, "row place_d_model"]:
    """Some rows; a view where they stand together."""
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return values[int(rows[0]) : int(rows[-1]) + 1]
    return values[rows]

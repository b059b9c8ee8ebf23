"""One run in which every edge carries its source's value on another prompt of the batch: what causal scrubbing is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.patch_plan import Plan
from discovery.patched_run import PatchedRun
from discovery.pruning_state import PruningState
from discovery.source_mixture import Reads, SourceMixture


@dataclass(frozen=True, eq=False)
class Pool:
    """For every row of a batch, the rows that may be drawn in its place."""

    rows: Int[np.ndarray, "row choice"]
    """Row numbers; behind `counts[row]` of them nothing is looked at."""
    counts: Int[np.ndarray, " row"]
    """How many there are, at least one."""

    def draw(self, rng: np.random.Generator, *lead: int) -> Int[np.ndarray, "*lead row"]:
        """One row for each row, as often as `lead` says, every choice as likely."""
        chosen = (rng.random((*lead, len(self.counts))) * self.counts).astype(np.int64)
        return self.rows[np.arange(len(self.counts)), chosen]


def make_pool(allowed: Bool[np.ndarray, "row other"]) -> Pool:
    """The pool of the rows allowed for each; a row for which none is allowed stands for itself."""
    allowed = allowed | (np.eye(len(allowed), dtype=bool) & ~np.any(allowed, axis=1, keepdims=True))
    return Pool(np.argsort(~allowed, axis=1, kind="stable"), allowed.sum(1))


def of_equal_length(batch: Batch) -> Bool[np.ndarray, "row other"]:
    """Which prompts have as many tokens as each, itself among them."""
    lengths = batch.mask.sum(1).cpu()
    return (lengths[:, None] == lengths[None, :]).numpy()


def other_prompts(batch: Batch) -> Bool[np.ndarray, "row other"]:
    """Which prompts have as many tokens as each and are not the same."""
    tokens = batch.clean.cpu()
    return of_equal_length(batch) & (tokens[:, None] != tokens[None, :]).any(2).numpy()


@dataclass(frozen=True, eq=False)
class Drawn:
    """The prompts that one slot's inputs are computed on, by row of the batch."""

    kept: Int[np.ndarray, "src sample row"]
    """For each kept source."""
    dropped: Int[np.ndarray, "sample row"]
    """For all dropped sources together."""


Draw = Callable[[int], Drawn]
"""What is drawn for a slot, by its column."""


class ScrubbedRun(PatchedRun):
    """A run of one circuit with several draws side by side."""

    def __init__(self, state: PruningState, kept: Bool[np.ndarray, "src dst"], samples: int, draw: Draw) -> None:
        """state: the untouched model's run under a zero ablation, so that sources' values are whole."""
        possible = torch.from_numpy(state.topology.possible)
        edges = torch.from_numpy(kept)
        self._circuit = (edges & possible, ~edges & possible, state.values, draw)
        masks = edges.to(state.values.dtype).expand(samples, *kept.shape)
        super().__init__(state.blocks, state.topology, state.recorded, masks, every_slot=True)

    def _make_mixture(self, keep: Tensor, like: Tensor) -> SourceMixture:
        return _ScrubbedMixture(keep, self._plan, like, *self._circuit)


class _ScrubbedMixture(SourceMixture):
    """Slots read the sum of their sources' values, each on the row that was drawn for it."""

    def __init__(
        self,
        keep: Tensor,
        plan: Plan,
        like: Tensor,
        edges: Bool[Tensor, "src dst"],
        others: Bool[Tensor, "src dst"],
        untouched: Float[Tensor, "src row pos d_model"],
        draw: Draw,
    ) -> None:
        """edges: the circuit's. others: those that carry `untouched` values. The rest as in `SourceMixture`."""
        super().__init__(keep, plan, like)
        self._edges, self._others, self._untouched, self._draw = edges, others, untouched, draw
        self._values: dict[int, Float[Tensor, "sample row pos d_model"]] = {}

    def set_known(self, values: dict[int, Tensor]) -> None:
        """Values before the run's first stage: the same in every sample."""
        shape = (self._masks, *self._untouched.shape[1:])
        self._values = {source: value.reshape(shape[1:]).expand(shape) for source, value in values.items()}

    def add_fresh(self, sources: Sequence[int], values: Float[Tensor, "source sample value"]) -> None:
        """Values computed in this run."""
        unfolded = values.unflatten(2, self._untouched.shape[1:])
        self._values |= dict(zip(sources, unfolded, strict=True))

    def inputs(
        self,
        slots: list[int],
        base: Float[Tensor, "row pos d_model"],
        stream: Tensor | None,
        reads: Reads | None = None,
    ) -> Float[Tensor, "sample slot *place d_model"]:
        """See `SourceMixture.inputs`."""
        mixed = torch.stack([self._input(slot, base) for slot in slots], 1)
        return mixed if reads is None else mixed[:, :, reads[0], reads[1]]

    def _input(self, slot: int, base: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "sample row pos d_model"]:
        """The constants of the model, the dropped sources on the row drawn for all, each kept one on its own."""
        drawn = self._draw(slot)
        rest = self._untouched[self._others[:, slot].to(self._untouched.device)].sum(0).to(base.device)
        total = base + rest[torch.from_numpy(drawn.dropped).to(base.device)]
        samples = torch.arange(self._masks, device=base.device)[:, None]
        for source, rows in zip(self._edges[:, slot].nonzero().flatten().tolist(), drawn.kept, strict=True):
            total += self._values[source].to(base.device)[samples, torch.from_numpy(rows).to(base.device)]
        return total

"""A model whose finished pieces of work are written down: a method that was stopped and begins again is given them.

Methods know nothing of it. They ask for the same things in the same order: what was finished before is read, what was not is
computed, and the scores are those of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.metrics import Metric
from discovery.model import PatchableModel, Point
from discovery.node_effects import NO_FIXES, Fixes, NodeEffects
from discovery.rules import PLAIN, Rules
from graphs.topology import Topology


@runtime_checkable
class Pieces(Protocol):
    """A place for finished pieces of work, by the name of what was asked for."""

    def get(self, name: bytes) -> bytes | None:
        """What was put there under this name, by this run or one before it; None where nothing was, or it is damaged."""
        ...

    def put(self, name: bytes, content: bytes) -> None:
        """Adds a piece."""
        ...


class ResumedModel:
    """A `PatchableModel` that asks `pieces` first. What is not part of the protocol is the model's own."""

    def __init__(self, model: PatchableModel, pieces: Pieces) -> None:
        self._model, self._pieces = model, pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def topology(self) -> Topology:
        """See `PatchableModel.topology`."""
        return self._model.topology

    def linearize(
        self, batch: Batch, metric: Metric, points: Sequence[Point], ablation: Ablation, rules: Rules = PLAIN
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize`."""
        name = _name("linearize", batch, metric.name, ablation.kind, tuple(points), rules)
        return self._edges(name, lambda: self._model.linearize(batch, metric, points, ablation, rules))

    def linearize_fixed(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize_fixed`."""
        name = _name("fixed", batch, metric.name, ablation.kind, fixes)
        return self._edges(name, lambda: self._model.linearize_fixed(batch, metric, ablation, fixes))

    def linearize_nodes(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes = NO_FIXES, neurons: bool = False
    ) -> NodeEffects:
        """See `PatchableModel.linearize_nodes`."""

        def compute() -> dict[str, Tensor]:
            found = self._model.linearize_nodes(batch, metric, ablation, fixes, neurons)
            named = {"sources": found.sources, "slots": found.slots, "neurons": found.neurons}
            return {key: value for key, value in named.items() if value is not None}

        tensors = self._once(_name("nodes", batch, metric.name, ablation.kind, fixes, neurons), compute)
        return NodeEffects(tensors["sources"], tensors["slots"], tensors.get("neurons"))

    def flow(self, batch: Batch, tau: float) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.flow`."""
        return self._edges(_name("flow", batch, tau), lambda: self._model.flow(batch, tau))

    def run(
        self,
        batch: Batch,
        keep: Bool[Tensor, "*mask src dst"] | Float[Tensor, "*mask src dst"],
        ablation: Ablation,
    ) -> Float[Tensor, "*mask read vocab"]:
        """See `PatchableModel.run`. Not written down: logits are large (see `measured`)."""
        return self._model.run(batch, keep, ablation)

    def full_logits(self, batch: Batch) -> Float[Tensor, "read vocab"]:
        """See `PatchableModel.full_logits`. Not written down."""
        return self._model.full_logits(batch)

    def measured(
        self,
        batch: Batch,
        metric: Metric,
        keep: Bool[np.ndarray, "mask src dst"],
        ablation: Ablation,
        compute: Callable[[], Float[Tensor, "mask pair"]],
    ) -> Float[Tensor, "mask pair"]:
        """The metric of runs under some masks, which `compute` finds out where it is not known."""
        name = _name("run", batch, metric.name, ablation.kind, np.packbits(keep).tobytes())
        return self._once(name, lambda: {"values": compute()})["values"]

    def _edges(self, name: bytes, compute: Callable[[], Tensor]) -> Float[Tensor, "pair src dst"]:
        """Scores, of which those of the possible edges are kept."""
        possible = torch.from_numpy(self.topology.possible)
        values = self._once(name, lambda: {"values": compute()[:, possible]})["values"]
        scores = values.new_zeros(len(values), *possible.shape)
        scores[:, possible] = values
        return scores

    def _once(self, name: bytes, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        content = self._pieces.get(name)
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays}
        found, file = compute(), io.BytesIO()
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in found.items()}
        np.savez(file, **arrays)
        self._pieces.put(name, file.getvalue())
        return found


def _name(what: str, batch: Batch, *settings: Any) -> bytes:
    """A name for one thing that is asked of one batch. settings: dataclasses of plain values, and plain values."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (what, batch.indices, tuple(batch.clean.shape), *settings):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    for tokens in (batch.clean, batch.corrupt):
        digest.update(tokens.cpu().numpy().tobytes())
    return digest.digest()

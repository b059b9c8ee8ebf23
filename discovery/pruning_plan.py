"""What a run under a smaller circuit must compute again, and at which positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which slots and sources differ from a circuit's known run, for several smaller circuits at once."""

    slots: Bool[np.ndarray, " dst"]
    """Slots that may read something else and whose node matters."""
    narrow: Bool[np.ndarray, " dst"]
    """Slots that matter only where logits are read."""
    sources: Bool[np.ndarray, " src"]
    """Sources that may write something else and that matter."""
    everywhere: Bool[np.ndarray, " src"]
    """Sources that matter at all positions; the others matter where logits are read, or not at all."""

    def reads(self, column: int, at_reads: bool) -> bool:
        """Whether a slot must be read again where logits are read alone, or (not `at_reads`) at all positions."""
        return bool(self.slots[column]) and bool(self.narrow[column]) == at_reads


def plan_pruning(
    topology: Topology,
    known: Bool[np.ndarray, "src dst"],
    masks: Bool[np.ndarray, "mask src dst"],
    flow: Bool[np.ndarray, "mask src dst"],
    stages: tuple[tuple[int, ...], ...],
) -> PruningPlan:
    """One sweep forward for what changes, one back for what matters.

    known: the circuit whose run is known; the masks keep fewer edges. flow: the edges along which
    changes go on. stages: for each slot the sources that it changes, see `changed_by`.
    """
    kept = np.any(flow, axis=0)
    dropped = np.any(known & ~np.all(masks, axis=0), axis=0)
    count = len(topology.sources)
    changed = np.zeros(count, dtype=bool)
    slots = np.zeros(len(topology.targets), dtype=bool)
    for column, fed in enumerate(stages):
        slots[column] = dropped[column] or bool(np.any(changed & kept[:, column]))
        if slots[column]:
            changed[list(fed)] = True
    matters, everywhere = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    narrow = np.zeros_like(slots)
    for column in reversed(range(len(stages))):
        fed = list(stages[column])
        if fed and not matters[fed].any():
            slots[column] = False
            continue
        # Keys and values are read from every position; all else works position by position.
        narrow[column] = topology.targets[column].port not in ("k", "v") and not (fed and everywhere[fed].any())
        matters |= kept[:, column]
        if not narrow[column]:
            everywhere |= kept[:, column]
    return PruningPlan(slots, narrow, changed & matters, everywhere)


def changed_by(topology: Topology, coupled: bool) -> tuple[tuple[int, ...], ...]:
    """For each slot the sources that it changes: those that it feeds, or where nodes are coupled all of its stage's.

    coupled: one node's slots change what the other nodes of its attention, or of its layer's features, write.
    """
    if not coupled:
        return topology.feeds
    stages: dict[tuple[int | None, bool], tuple[int, ...]] = {}
    for row, node in enumerate(topology.sources):
        key = (node.layer, node.kind == "head")
        stages[key] = (*stages.get(key, ()), row)
    slots = (slot.node for slot in topology.targets)
    return tuple(
        stages.get((node.layer, node.kind == "head"), ()) if fed else () for node, fed in zip(slots, topology.feeds)
    )

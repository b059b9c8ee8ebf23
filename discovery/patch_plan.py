"""Which slots of a patched run need an input of their own, and which sources that input needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class Plan:
    """Which slots need what, for all masks of a run. Arrays over the topology's targets and sources, on the CPU."""

    shared: Bool[Tensor, " dst"]
    """Slots that keep every edge in every mask: they read the running stream."""
    silent: Bool[Tensor, " dst"]
    """Slots that repeat the ablated run."""
    subtract: Bool[Tensor, " dst"]
    """Mixed slots made from the stream less the dropped sources."""
    used: Bool[Tensor, "src dst"]
    """Sources whose difference a mixed slot needs; never one that cannot differ from its ablated value."""
    first: int
    """First target whose stage must be run; earlier stages equal the clean run's."""


def plan_run(
    topology: Topology, keep: Float[Tensor, "mask src dst"], still: bool, every_slot: bool, coupled: bool
) -> Plan:
    """Sort slots and sources by what they need.

    still: see `Baseline.still`. every_slot: give every slot its own input (gradients, self-checks). coupled: one head's slots
    change the other heads' outputs too (a norm behind the attention, or a q/k norm that spans heads), and one feature's the
    other features' (a norm behind the MLP).
    """
    possible = torch.from_numpy(topology.possible)
    if every_slot:
        return own_inputs(possible)
    kept, dropped = kept_and_dropped(possible, keep)
    silent, active = settle(topology, kept, still, coupled)
    return sort_slots(kept, dropped, silent, kept & active[:, None], dropped & active[:, None])


def own_inputs(possible: Bool[Tensor, "src dst"]) -> Plan:
    """The plan in which every slot reads a mixture of all its sources."""
    none = torch.zeros(possible.shape[1], dtype=torch.bool)
    return Plan(none, none.clone(), none.clone(), possible, 0)


def kept_and_dropped(
    possible: Bool[Tensor, "src dst"], keep: Float[Tensor, "mask src dst"]
) -> tuple[Bool[Tensor, "src dst"], Bool[Tensor, "src dst"]]:
    """Edges that some mask keeps (in part), and edges that some mask drops (in part)."""
    mask = keep.detach().to("cpu")
    return (mask != 0).any(0) & possible, (mask != 1).any(0) & possible


def settle(
    topology: Topology, kept: Bool[Tensor, "src dst"], still: bool, coupled: bool
) -> tuple[Bool[Tensor, " dst"], Bool[Tensor, " src"]]:
    """Slots that repeat the ablated run, and sources that can differ from their ablated value."""
    sources, targets = kept.shape
    silent = torch.zeros(targets, dtype=torch.bool)
    active = torch.ones(sources, dtype=torch.bool)
    if still:
        # Targets stand in the order of reading: one sweep settles which sources can differ at all, each at its last slot.
        settled: dict[int, list[tuple[int, list[int]]]] = {}
        for source, slots in _fed_by(topology, coupled).items():
            settled.setdefault(slots[-1], []).append((source, slots))
        for target in range(targets):
            silent[target] = not bool((kept[:, target] & active).any())
            for source, slots in settled.get(target, ()):
                active[source] = not bool(silent[slots].all())
    return silent, active


def sort_slots(
    kept: Bool[Tensor, "src dst"],
    dropped: Bool[Tensor, "src dst"],
    silent: Bool[Tensor, " dst"],
    kept_active: Bool[Tensor, "src dst"],
    dropped_active: Bool[Tensor, "src dst"],
) -> Plan:
    """The plan. The last two: of the edges kept and dropped those whose source can differ."""
    shared = ~dropped.any(0) & ~silent
    mixed = ~shared & ~silent
    subtract = mixed & (dropped_active.sum(0) < kept_active.sum(0))
    used = torch.where(subtract, dropped_active, kept_active) & mixed
    changed = (~shared).nonzero()
    return Plan(shared, silent, subtract, used, int(changed[0]) if len(changed) else kept.shape[1] - 1)


def _fed_by(topology: Topology, coupled: bool) -> dict[int, list[int]]:
    """The slots that each source depends on, in order."""
    fed: dict[int, list[int]] = {}
    by_stage: dict[tuple[int | None, bool], list[int]] = {}
    for target, sources in enumerate(topology.feeds):
        node = topology.targets[target].node
        by_stage.setdefault((node.layer, node.kind == "head"), []).append(target)
        for source in sources:
            fed.setdefault(source, []).append(target)
    if coupled:
        for source in fed:
            node = topology.sources[source]
            fed[source] = by_stage[node.layer, node.kind == "head"]
    return fed

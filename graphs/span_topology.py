"""Graphs with positions: every node once per span of the prompts, edges within a span, and across spans through attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from graphs.circuit import Circuit
from graphs.node import NodeId, Port, Slot
from graphs.prune import drop_dead_ends
from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans that prompts are divided into, and how they stand to each other."""

    names: tuple[int | str, ...]
    """Names (or positions, where each is a span), in the order of the prompts."""
    sees: Bool[np.ndarray, "span seen"]
    """True where, in some prompt, a token of the first span can attend to one of the second."""
    read: Bool[np.ndarray, " span"]
    """True for the spans at whose tokens logits are read."""

    def same_as(self, other: Spans) -> bool:
        """Whether both are the same."""
        return (
            self.names == other.names
            and np.array_equal(self.sees, other.sees)
            and np.array_equal(self.read, other.read)
        )


def span_topology(base: Topology, spans: Spans) -> Topology:
    """`base` with every node once per span, and one `logits`; only edges that lie on a way from an input to the logits.

    Source i at span s is row i * spans + s, slot j at span t column j * spans + t; `logits` is the last column. What stays at
    its position stays in its span: q slots and MLPs read the sources of their own span, `logits` those of the spans where
    logits are read. A k or v slot of a head at span t reads the sources of every span that t sees: `m0@name->a3.h1@end<v>`
    is what the head at `end` finds, as values, in what m0 wrote at `name`. Raises ValueError where base has no `logits`.
    """
    if base.targets[-1] != Slot(NodeId("logits")):
        raise ValueError("a graph with spans needs `logits` as its last slot")
    count = len(spans.names)
    own, seen = np.eye(count, dtype=bool), spans.sees.T
    reach: dict[Port | None, np.ndarray] = {None: own, "q": own, "k": seen, "v": seen}
    relation = np.stack([reach[slot.port] for slot in base.targets], axis=1)  # [span of source, slot, span of slot]
    possible = base.possible[:, None, :, None] & relation[None]
    possible[:, :, -1, 0] = base.possible[:, -1, None] & spans.read
    wide = possible.reshape(len(base.sources) * count, len(base.targets) * count)[:, : 1 - count or None]
    topology = Topology(
        tuple(node.at(name) for node in base.sources for name in spans.names),
        (*(_at(slot, name) for slot in base.targets[:-1] for name in spans.names), base.targets[-1]),
        wide,
        (*(tuple(row * count + s for row in fed) for fed in base.feeds[:-1] for s in range(count)), ()),
    )
    alive = drop_dead_ends(Circuit(topology, topology.possible)).kept
    return Topology(topology.sources, topology.targets, alive, topology.feeds)


def without_spans(topology: Topology) -> tuple[Topology, Spans] | None:
    """The graph and the spans that `span_topology` makes this graph of; None where it makes none."""
    names = tuple(node.position for node in topology.sources if node.kind == "input" and node.position is not None)
    count, last = len(names), topology.targets[-1]
    if not count or last != Slot(NodeId("logits")):
        return None
    if len(topology.sources) % count or (len(topology.targets) - 1) % count:
        return None
    sources = tuple(node.at(None) for node in topology.sources[::count])
    slots = tuple(Slot(slot.node.at(None), slot.port) for slot in topology.targets[:-1:count])
    rows = topology.possible.reshape(len(sources), count, -1)
    between = rows[:, :, :-1].reshape(len(sources), count, len(slots), count)
    read = rows[:, :, -1]
    possible = np.concatenate([between.any(axis=(1, 3)), read.any(axis=1, keepdims=True)], axis=1)
    feeds = (*(tuple(row // count for row in fed) for fed in topology.feeds[:-1:count]), ())
    keys = [number for number, slot in enumerate(slots) if slot.port == "k"]
    base = Topology(sources, (*slots, last), possible, feeds)
    spans = Spans(names, np.asarray(between[:, :, keys].any(axis=(0, 2))).T, np.asarray(read.any(axis=0)))
    return (base, spans) if span_topology(base, spans).same_as(topology) else None


def _at(slot: Slot, name: int | str) -> Slot:
    return Slot(slot.node.at(name), slot.port)

"""Which edges a model's computation graph can have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from graphs.node import EdgeId, NodeId, Slot


@dataclass(frozen=True, eq=False)
class Topology:
    """Sources that write to the residual stream, slots that read from it, and the edges that the order of reading
    allows."""

    sources: tuple[NodeId, ...]
    """Writers, in the order in which they write."""
    targets: tuple[Slot, ...]
    """Slots, in the order in which they read; the last is `logits`."""
    possible: Bool[np.ndarray, "src dst"]
    """True where the source writes before the slot reads."""
    feeds: tuple[tuple[int, ...], ...]
    """For each target the indices of the sources computed from it (several for a shared key/value head; none for
    logits)."""

    @cached_property
    def source_index(self) -> dict[NodeId, int]:
        """Row of each source."""
        return {node: row for row, node in enumerate(self.sources)}

    @cached_property
    def target_index(self) -> dict[Slot, int]:
        """Column of each slot."""
        return {slot: column for column, slot in enumerate(self.targets)}

    @cached_property
    def edge_count(self) -> int:
        """Number of possible edges."""
        return int(self.possible.sum())

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        return tuple(map(str, self.sources))

    @cached_property
    def target_names(self) -> tuple[str, ...]:
        """Names of the slots, in order."""
        return tuple(map(str, self.targets))

    @cached_property
    def slots_of(self) -> tuple[tuple[int, ...], ...]:
        """For each source the indices of the targets that it is computed from (the reverse of `feeds`)."""
        slots: list[list[int]] = [[] for _ in self.sources]
        for column, fed in enumerate(self.feeds):
            for row in fed:
                slots[row].append(column)
        return tuple(map(tuple, slots))

    def same_as(self, other: Topology) -> bool:
        """Whether both describe the same graph, with nodes in the same order."""
        return self is other or (
            (self.sources, self.targets, self.feeds) == (other.sources, other.targets, other.feeds)
            and np.array_equal(self.possible, other.possible)
        )

    def edge(self, source: int, target: int) -> EdgeId:
        """The edge at a row and a column."""
        slot = self.targets[target]
        return EdgeId(self.sources[source], slot.node, slot.port)

    def locate(self, edge: EdgeId) -> tuple[int, int]:
        """Row and column of an edge. Raises KeyError naming the edge when it is not possible here."""
        row, column = self.source_index.get(edge.source), self.target_index.get(edge.slot)
        if row is None or column is None or not self.possible[row, column]:
            raise KeyError(f"{edge} is not an edge of this model")
        return row, column


def transformer_topology(
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    parallel: Sequence[bool] | bool = False,
    features: Mapping[int, Sequence[int]] | None = None,
) -> Topology:
    """The component graph of a decoder: `input`, every head and every MLP write; every q/k/v slot, MLP and `logits`
    read.

    kv_heads: k and v slots per layer (default: one per query head, as the MIB benchmark counts).
    parallel: whether a block's MLP reads what its attention reads (GPT-J, GPT-NeoX, Phi), for all layers or each.
    features: numbers of the features that stand, with an error node for the rest, in the place of a layer's MLP.
    Raises ValueError when the query heads cannot be shared out evenly.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads: not a multiple")
    flags = [parallel] * layers if isinstance(parallel, bool) else list(parallel)
    sources: list[NodeId] = [NodeId("input")]
    targets: list[Slot] = []
    visible: list[int] = []  # how many sources, in order, each target sees
    feeds: list[tuple[int, ...]] = []
    for layer in range(layers):
        before = len(sources)
        for port, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            for index in range(count):
                targets.append(Slot(NodeId("head", layer, index), port))  # type: ignore[arg-type]
                visible.append(before)
                width = heads // count
                feeds.append(tuple(before + index * width + i for i in range(width)))
        sources += [NodeId("head", layer, index) for index in range(heads)]
        seen, writers = before if flags[layer] else len(sources), [NodeId("mlp", layer)]
        if features is not None and layer in features:
            writers = [*(NodeId("feature", layer, index) for index in features[layer]), NodeId("error", layer)]
        for node in writers:
            targets.append(Slot(node))
            visible.append(seen)
            feeds.append((len(sources),))
            sources.append(node)
    targets.append(Slot(NodeId("logits")))
    visible.append(len(sources))
    feeds.append(())
    possible = np.arange(len(sources))[:, None] < np.array(visible)[None, :]
    return Topology(tuple(sources), tuple(targets), possible, tuple(feeds))


def without_heads(topology: Topology) -> Topology:
    """The graph without its attention heads, which then are part of how the other nodes are wired."""
    rows = [row for row, node in enumerate(topology.sources) if node.kind != "head"]
    columns = [column for column, slot in enumerate(topology.targets) if slot.node.kind != "head"]
    place = {row: new for new, row in enumerate(rows)}
    return Topology(
        tuple(topology.sources[row] for row in rows),
        tuple(topology.targets[column] for column in columns),
        topology.possible[np.ix_(rows, columns)],
        tuple(tuple(place[row] for row in topology.feeds[column]) for column in columns),
    )


def topology_from_names(
    sources: Sequence[str], targets: Sequence[str], possible: Bool[np.ndarray, "src dst"]
) -> Topology:
    """A graph from what a score file holds: the names of sources and targets, and which edges are possible.

    Which sources each slot feeds follows from the names: the q slots of a layer belong to the heads of the same
    number and span; its k and v slots, where there are fewer of them than heads, to equal groups of heads (key/value
    head g: heads g*H/G and on). Raises ValueError for a bad name, a name that appears twice, a slot that feeds no source, or
    a shape that does not fit.
    """
    nodes = tuple(NodeId.parse(name) for name in sources)
    slots = tuple(Slot.parse(name) for name in targets)
    if possible.shape != (len(nodes), len(slots)):
        raise ValueError(f"{len(nodes)} sources and {len(slots)} targets do not fit an array of shape {possible.shape}")
    for names in (sources, targets):
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for i, name in enumerate(names) if name in names[:i])} is named twice")
    rows = {node: row for row, node in enumerate(nodes)}
    heads = Counter((node.layer, node.position) for node in nodes if node.kind == "head")
    kv_heads = Counter((slot.node.layer, slot.node.position, slot.port) for slot in slots)
    feeds = tuple(
        _fed_by(
            slot,
            rows,
            heads[slot.node.layer, slot.node.position],
            kv_heads[slot.node.layer, slot.node.position, slot.port],
        )
        for slot in slots
    )
    return Topology(nodes, slots, possible, feeds)


def _fed_by(slot: Slot, rows: dict[NodeId, int], heads: int, kv_heads: int) -> tuple[int, ...]:
    """Rows of the sources that are computed from a slot, given the heads of its layer (and span) and its port's slots."""
    node = slot.node
    if node.kind in ("logits", "logit"):
        return ()
    if slot.port is None:
        fed = [node]
    elif node.index is None or not heads or not kv_heads or heads % kv_heads:
        raise ValueError(
            f"which heads the slot {slot} belongs to cannot be told from names: {heads} heads, {kv_heads} slots"
        )
    else:
        width = heads // kv_heads
        fed = [NodeId("head", node.layer, node.index * width + i, node.position) for i in range(width)]
    missing = [str(source) for source in fed if source not in rows]
    if missing:
        raise ValueError(f"the slot {slot} belongs to {missing[0]}, which is not among the sources")
    return tuple(rows[source] for source in fed)

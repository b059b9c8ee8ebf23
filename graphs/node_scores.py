"""Node scores: one signed number for every node, and for parts of nodes; circuits of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from graphs.circuit import Circuit
from graphs.node import NodeId
from graphs.scores import EdgeScores
from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class NodeScores:
    """What a method says of every node. Positive: ablating what the node writes hurts the metric."""

    topology: Topology
    """The graph whose nodes were scored."""
    values: Float[np.ndarray, " src"]
    """float32, of every source; unit: the metric's, mean over examples."""
    method: str
    """The method's name, as users type it."""
    stderr: Float[np.ndarray, " src"] | None = None
    """Standard error of `values` over examples, where the method gives one."""
    slots: Float[np.ndarray, " dst"] | None = None
    """float32, of the query, key and value vectors of heads; NaN at slots of other nodes."""
    slot_stderr: Float[np.ndarray, " dst"] | None = None
    """Their standard error."""
    neurons: Float[np.ndarray, "layer neuron"] | None = None
    """float32, of every MLP's neurons (the entries of what its last projection reads), where they were asked for."""
    neuron_stderr: Float[np.ndarray, "layer neuron"] | None = None
    """Their standard error."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the method found, as JSON holds it (see `EdgeScores.facts`)."""

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.topology.sources),):
            raise ValueError(f"scores of {self.values.shape[0]} nodes, but the graph has {len(self.topology.sources)}")
        if np.isnan(self.values).any():
            raise ValueError(f"method {self.method} gave scores that are not numbers (NaN)")

    def strongest_parts(self, count: int) -> list[tuple[str, float]]:
        """The `count` neurons and q, k or v vectors with the largest |score|, such as ("m3.n517", 0.8)."""
        return sorted(self._parts(count), key=lambda part: -abs(part[1]))[:count]

    def _parts(self, count: int) -> Iterator[tuple[str, float]]:
        if self.slots is not None:
            places = np.flatnonzero(~np.isnan(self.slots))
            yield from ((str(self.topology.targets[place]), float(self.slots[place])) for place in places)
        if self.neurons is not None:
            flat = self.neurons.ravel()
            for place in np.argsort(-np.abs(flat), kind="stable")[:count].tolist():
                layer, neuron = divmod(place, self.neurons.shape[1])
                yield f"{NodeId('mlp', layer)}.n{neuron}", float(flat[place])


def edge_scores(nodes: NodeScores) -> EdgeScores:
    """An edge is worth what the weaker of its two ends is worth, so that the best edges are those among the best nodes.

    `input` and `logits` are in every circuit of nodes: an edge from or to them is worth what its other end is worth, and
    the edge between the two a little more than the strongest node. A shared key or value slot counts as the strongest of its
    group. The sign is that of the weaker end.
    """
    topology = nodes.topology
    weight = np.abs(nodes.values)
    top = float(np.nextafter(weight.max(initial=np.float32(0)), np.float32("inf")))  # before all other edges
    roots = [row for row, slots in enumerate(topology.slots_of) if not slots]
    source, sign = weight.copy(), np.where(nodes.values < 0, -1.0, 1.0)
    source[roots], sign[roots] = top, 1.0
    best = [max(fed, key=lambda row: weight[row], default=None) for fed in topology.feeds]
    target = np.array([top if row is None else weight[row] for row in best])
    target_sign = np.array([1.0 if row is None else sign[row] for row in best])
    weaker = source[:, None] < target[None, :]
    values = np.minimum(source[:, None], target[None, :]) * np.where(weaker, sign[:, None], target_sign[None, :])
    table = np.where(topology.possible, values, np.nan).astype(np.float32)
    return EdgeScores(topology, table, nodes.method, facts=nodes.facts)


def select_nodes(nodes: NodeScores, count: int, by: Literal["absolute", "signed"] = "absolute") -> Circuit:
    """All edges among `input`, `logits` and the `count` best other nodes. Raises ValueError when the graph has fewer."""
    topology = nodes.topology
    free = [row for row, slots in enumerate(topology.slots_of) if slots]
    if not 0 <= count <= len(free):
        raise ValueError(f"a circuit of {count} nodes: the graph has {len(free)} besides input and logits")
    strength = np.abs(nodes.values) if by == "absolute" else nodes.values
    kept = np.ones(len(topology.sources), dtype=bool)
    kept[free] = False
    kept[sorted(free, key=lambda row: -strength[row])[:count]] = True
    return Circuit(topology, induced(topology, kept), edge_scores(nodes))


def induced(topology: Topology, kept: Bool[np.ndarray, " src"]) -> Bool[np.ndarray, "src dst"]:
    """The edges among some nodes: from a kept source into the logits, or into a slot that feeds a kept node."""
    targets = np.array([not fed or bool(kept[list(fed)].any()) for fed in topology.feeds])
    return topology.possible & kept[:, None] & targets[None, :]

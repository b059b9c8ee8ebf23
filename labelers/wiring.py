"""Edges of any circuit, for those who speak of them: who feeds whom, and with which sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graphs.circuit import Circuit
from graphs.node import EdgeId, NodeId
from graphs.pruned import PrunedGraph
from graphs.task_graph import TaskGraph

Effect = Literal["raises", "lowers", "helps", "hurts", "none"]
EFFECTS: tuple[Effect, ...] = ("raises", "lowers", "helps", "hurts")
"""What an edge does: raises or lowers its target, or, where it is scored by a task's metric, helps or hurts that."""


@dataclass(frozen=True)
class Wire:
    """One edge and how strong it is."""

    edge: EdgeId
    """Its ends, as the graph names them."""
    weight: float
    """Signed: what the source contributes to the target, or the edge's score."""
    scored: bool = False
    """Whether the weight is a score: positive where the edge helps the task's metric."""

    @property
    def effect(self) -> Effect:
        """What it does, by its sign; `none` where the weight is 0 or no number."""
        up, down = ("helps", "hurts") if self.scored else ("raises", "lowers")
        return up if self.weight > 0 else down if self.weight < 0 else "none"


def wires_of_graph(graph: PrunedGraph | TaskGraph) -> tuple[Wire, ...]:
    """The edges of one prompt's graph, strongest first; of many prompts' graph with their mean weights (of two sides: the first
    one's)."""
    nodes, weights = graph.nodes, (graph.weights if isinstance(graph, PrunedGraph) else graph.weights[0]).tolist()
    found = [
        Wire(EdgeId(nodes[source], nodes[target]), weights[i])
        for i, (source, target) in enumerate(graph.edges.tolist())
    ]
    return strongest(found)


def wires_of_circuit(circuit: Circuit) -> tuple[Wire, ...]:
    """The edges of a circuit with their scores, strongest first; an edge without a score has weight 0."""
    return strongest([Wire(edge, float(score or 0.0), scored=True) for edge, score in circuit.edges])


def strongest(wires: Sequence[Wire], count: int | None = None) -> tuple[Wire, ...]:
    """The `count` wires of largest absolute weight, largest first, ties as they stand."""
    return tuple(sorted(wires, key=lambda wire: -abs(wire.weight))[:count])


def ends(wires: Sequence[Wire]) -> tuple[NodeId, ...]:
    """Every node that a wire begins or ends at, in order of first mention."""
    return tuple(dict.fromkeys(node for wire in wires for node in (wire.edge.source, wire.edge.target)))

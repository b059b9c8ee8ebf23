"""The strongest edges at each node of a circuit or traced graph, and the share of the flow that runs through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphs.circuit import Circuit
from graphs.evidence import Neighbour
from graphs.node import NodeId
from graphs.pruned import PrunedGraph
from graphs.task_graph import TaskGraph


@dataclass(frozen=True)
class Neighbourhood:
    """What a graph says of one node, all positions together."""

    inputs: tuple[Neighbour, ...] = ()
    """Strongest edges into it, strongest first."""
    outputs: tuple[Neighbour, ...] = ()
    """Strongest edges out of it."""
    flow_share: float = 0.0
    """Share of the sum of |weight| over all edges, on edges that begin in the node."""


def neighbourhoods(
    graph: Circuit | PrunedGraph | TaskGraph, count: int = 8, labels: Mapping[NodeId, str] | None = None
) -> dict[NodeId, Neighbourhood]:
    """For every node of the graph, without positions.

    Edges of different positions or ports between the same two nodes are summed. Under native grouped-query attention a key or
    value edge belongs to every head that shares it. Circuits without scores give every edge the weight 1. labels: what nodes
    are called, by node without a position.
    """
    weights: dict[tuple[NodeId, NodeId], float] = defaultdict(float)
    flow: dict[NodeId, float] = defaultdict(float)
    total = 0.0
    for source, targets, weight in _edges(graph):
        flow[source.at(None)] += abs(weight)
        total += abs(weight)
        for target in targets:
            weights[source.at(None), target.at(None)] += weight
    inputs: dict[NodeId, list[Neighbour]] = defaultdict(list)
    outputs: dict[NodeId, list[Neighbour]] = defaultdict(list)
    called = labels or {}
    for (source, target), weight in weights.items():
        outputs[source].append(Neighbour(target, weight, called.get(target, "")))
        inputs[target].append(Neighbour(source, weight, called.get(source, "")))
    nodes = dict.fromkeys([*inputs, *outputs, *(node.at(None) for node in _nodes(graph))])
    return {
        node: Neighbourhood(
            _strongest(inputs.get(node, ()), count),
            _strongest(outputs.get(node, ()), count),
            flow.get(node, 0.0) / total if total else 0.0,
        )
        for node in nodes
    }


def _strongest(found: Iterable[Neighbour], count: int) -> tuple[Neighbour, ...]:
    return tuple(sorted(found, key=lambda one: (-abs(one.weight), str(one.node)))[:count])


def _nodes(graph: Circuit | PrunedGraph | TaskGraph) -> tuple[NodeId, ...]:
    return () if isinstance(graph, Circuit) else graph.nodes


def _edges(graph: Circuit | PrunedGraph | TaskGraph) -> Iterator[tuple[NodeId, list[NodeId], float]]:
    """Source, the nodes that the edge ends in, and weight."""
    if not isinstance(graph, Circuit):
        weights = graph.weights if isinstance(graph, PrunedGraph) else graph.effect
        for (source, target), weight in zip(graph.edges.tolist(), weights.tolist()):
            yield graph.nodes[source], [graph.nodes[target]], weight
        return
    topology = graph.topology
    rows, columns = np.nonzero(graph.kept)
    for row, column in zip(rows.tolist(), columns.tolist()):
        fed = [topology.sources[place] for place in topology.feeds[column]] or [topology.targets[column].node]
        weight = 1.0 if graph.scores is None else float(graph.scores.values[row, column])
        yield topology.sources[row], fed, weight

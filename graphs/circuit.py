"""A circuit: the edges of a graph that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.node import EdgeId
from graphs.scores import EdgeScores
from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class Circuit:
    """The kept edges of a topology, and the scores by which they were chosen."""

    topology: Topology
    """The graph that the circuit is part of."""
    kept: Bool[np.ndarray, "src dst"]
    """True for the circuit's edges; never True where no edge is possible."""
    scores: EdgeScores | None = None
    """Scores of all edges, where the circuit was chosen by scores."""
    stability: Float[np.ndarray, "src dst"] | None = None
    """How often each edge is selected when the pairs are drawn anew (or the seed is): a share, NaN where not known."""

    def __post_init__(self) -> None:
        if self.kept.shape != self.topology.possible.shape or (self.kept & ~self.topology.possible).any():
            raise ValueError("a circuit may keep only edges that its graph can have")

    @property
    def edge_count(self) -> int:
        """Number of kept edges."""
        return int(self.kept.sum())

    @property
    def edges(self) -> list[tuple[EdgeId, float | None]]:
        """Kept edges with their scores, strongest first, ties in graph order."""
        rows, columns = self.places
        values = [None] * len(rows) if self.scores is None else self.scores.values[rows, columns].tolist()
        found = zip(rows.tolist(), columns.tolist(), values)
        return [(self.topology.edge(row, column), value) for row, column, value in found]

    @property
    def places(self) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
        """Rows and columns of the kept edges, in the order of `edges`."""
        rows, columns = np.nonzero(self.kept)
        if self.scores is None:
            return rows, columns
        order = np.argsort(-np.abs(self.scores.values[rows, columns]), kind="stable")
        return rows[order], columns[order]

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes by name (attributes kind, layer, index, position), one edge per kept edge (key and attribute: port;
        score).

        Under native grouped-query attention a k or v edge ends in every query head that shares the key/value head.
        """
        graph = nx.MultiDiGraph()
        for edge, score in self.edges:
            slot = self.topology.target_index[edge.slot]
            fed = [self.topology.sources[i] for i in self.topology.feeds[slot]] or [edge.target]
            for target in fed:
                for node in (edge.source, target):
                    graph.add_node(
                        str(node), kind=node.kind, layer=node.layer, index=node.index, position=node.position
                    )
                graph.add_edge(
                    str(edge.source), str(target), key=edge.port or "", port=edge.port, score=score, edge=str(edge)
                )
        return graph

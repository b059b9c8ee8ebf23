"""Random circuits made of whole paths from a source with input to the logits: rivals that carry something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from graphs.circuit import Circuit
from graphs.prune import full_circuit, live_places
from graphs.topology import Topology


def path_through(
    topology: Topology, live: Bool[np.ndarray, "src dst"], row: int, column: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """The edges (row, column) of a random path through one edge, from a source without slots to a slot without sources.

    live: the edges that lie on such paths; the given one is among them. Each step is uniform: up to one of the sources
    that the slot feeds and on to one of the slots that read it, down to one of the slots that the source is computed
    from and back to one of the sources that it reads.
    """
    path = [(row, column)]
    while topology.feeds[column]:
        source = int(rng.choice([fed for fed in topology.feeds[column] if live[fed].any()]))
        column = int(rng.choice(np.flatnonzero(live[source])))
        path.append((source, column))
    while topology.slots_of[row]:
        slot = int(rng.choice([each for each in topology.slots_of[row] if live[:, each].any()]))
        row = int(rng.choice(np.flatnonzero(live[:, slot])))
        path.append((row, slot))
    return path


def random_path_circuit(topology: Topology, edges: int, rng: np.random.Generator) -> Circuit:
    """Random paths, each through an edge drawn from those that are not kept yet, until there are `edges` edges.

    As the random circuits of Shi et al. 2024. The last path is kept whole, so that there may be a few edges more: a
    circuit is compared with rivals that are no smaller; and fewer where the graph has not so many edges on paths. Raises
    ValueError for more edges than the graph has.
    """
    if not 0 <= edges <= topology.edge_count:
        raise ValueError(f"a circuit of {edges} edges: the graph has {topology.edge_count}")
    kept = np.zeros_like(topology.possible)
    live = live_places(full_circuit(topology))
    for place in rng.permutation(np.flatnonzero(live)).tolist():
        if np.count_nonzero(kept) >= edges:
            break
        row, column = divmod(place, kept.shape[1])
        if not kept[row, column]:
            rows, columns = zip(*path_through(topology, live, row, column, rng))
            kept[rows, columns] = True
    return Circuit(topology, kept)


def inflated(circuit: Circuit, rng: np.random.Generator) -> tuple[Circuit, Circuit] | None:
    """The circuit with a random path through an edge that it lacks, and that without one of the added edges.

    None where the circuit has every edge that lies on a path.
    """
    topology = circuit.topology
    live = live_places(full_circuit(topology))
    outside = np.flatnonzero(live & ~circuit.kept)
    if not len(outside):
        return None
    path = path_through(topology, live, *divmod(int(rng.choice(outside)), circuit.kept.shape[1]), rng)
    fresh = [edge for edge in path if not circuit.kept[edge]]
    rows, columns = zip(*path)
    kept = circuit.kept.copy()
    kept[rows, columns] = True
    larger = replace(circuit, kept=kept)
    return larger, without(larger, fresh[int(rng.integers(len(fresh)))])


def without(circuit: Circuit, edge: tuple[int, int]) -> Circuit:
    """The circuit less the edge at a row and a column."""
    kept = circuit.kept.copy()
    kept[edge] = False
    return replace(circuit, kept=kept)

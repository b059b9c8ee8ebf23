"""From scores to circuits: which edges to keep, and which of the kept ones can do nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.circuit import Circuit
from graphs.scores import EdgeScores
from graphs.topology import Topology

By = Literal["absolute", "signed"]
SIZES: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The ten standard sizes of a curve, as shares of the possible edges (the MIB benchmark's)."""


def edge_count(topology: Topology, size: float | int) -> int:
    """Number of edges of a circuit that holds a share `size` (0..1) of the possible edges, before dead ends are
    dropped."""
    if not 0 <= size <= 1:
        raise ValueError(f"a size is a share of the possible edges, from 0 to 1: got {size}")
    return int(size * topology.edge_count)


def rank_top(scores: EdgeScores, by: By = "absolute", limit: int | None = None) -> Int[np.ndarray, " rank"]:
    """Edges from the best to the worst, as flat indices into [src, dst]; ties in graph order; at most `limit` of
    them."""
    strength = _strength(scores, by).ravel()
    order = np.argsort(-strength, kind="stable")  # impossible edges are -inf, so they come last
    return order[: min(scores.topology.edge_count, order.size if limit is None else limit)]


def rank_greedy(scores: EdgeScores, by: By = "absolute", limit: int | None = None) -> Int[np.ndarray, " rank"]:
    """Edges in the order in which a circuit grows from the logits, as flat indices; at most `limit` of them.

    Each step takes the best edge whose target reads for a node that is already in the circuit; its source then joins,
    with all slots that feed it. Ties in graph order. Costs O(E log E), not one scan of all edges per step.
    """
    topology, strength = scores.topology, _strength(scores, by)
    width = len(topology.targets)
    columns: dict[int, tuple[Int[np.ndarray, " src"], Float[np.ndarray, " src"]]] = {}
    heap: list[tuple[float, int, int, int]] = []  # (-strength, flat index, column, place in the column's own order)

    def offer(column: int, place: int) -> None:
        rows, values = columns[column]
        if place < len(rows):
            heapq.heappush(heap, (-float(values[place]), int(rows[place]) * width + column, column, place))

    def open_slot(column: int) -> None:
        if column not in columns:
            rows = np.flatnonzero(topology.possible[:, column])
            rows = rows[np.argsort(-strength[rows, column], kind="stable")]
            columns[column] = (rows, strength[rows, column])
            offer(column, 0)

    for column, fed in enumerate(topology.feeds):
        if not fed:
            open_slot(column)
    ranked: list[int] = []
    while heap and (limit is None or len(ranked) < limit):
        _, flat, column, place = heapq.heappop(heap)
        ranked.append(flat)
        offer(column, place + 1)
        for slot in topology.slots_of[flat // width]:
            open_slot(slot)
    return np.array(ranked, dtype=np.int64)


def select_top(scores: EdgeScores, edges: int, by: By = "absolute") -> Circuit:
    """The `edges` best edges. Raises ValueError when the graph has fewer."""
    return _keep(scores, rank_top(scores, by, _checked(scores.topology, edges)))


def select_greedy(scores: EdgeScores, edges: int, by: By = "absolute") -> Circuit:
    """The circuit of `edges` edges grown from the logits (fewer where the logits reach no more). See `rank_greedy`."""
    return _keep(scores, rank_greedy(scores, by, _checked(scores.topology, edges)))


def select_threshold(scores: EdgeScores, threshold: float | int, by: By = "absolute") -> Circuit:
    """All edges whose score (or its absolute value) is at least `threshold`."""
    if np.isnan(threshold):
        raise ValueError("the threshold is not a number")
    return Circuit(scores.topology, _strength(scores, by) >= threshold, scores)


Selection = Callable[[EdgeScores, int, By], Circuit]
SELECTIONS: dict[str, Selection] = {"top": select_top, "greedy": select_greedy}
"""Selections by number of edges, by the names that users type: (scores, edges, by) -> Circuit."""
RANKINGS: dict[str, Callable[[EdgeScores, By, int | None], np.ndarray]] = {"top": rank_top, "greedy": rank_greedy}
"""The order behind each selection: a circuit of n edges is the first n, so that one ranking serves a whole curve."""


def nested_circuits(
    scores: EdgeScores, counts: Sequence[int], selection: str = "top", by: By = "absolute"
) -> tuple[Circuit, ...]:
    """One circuit per number of edges, as the selection of that name gives them, from a single ranking."""
    if selection not in RANKINGS:
        raise ValueError(f"unknown selection {selection!r}: one of {', '.join(RANKINGS)}")
    limit = max((_checked(scores.topology, count) for count in counts), default=0)
    ranked = RANKINGS[selection](scores, by, limit)
    return tuple(_keep(scores, ranked[:count]) for count in counts)


def random_circuit(topology: Topology, edges: int, rng: np.random.Generator) -> Circuit:
    """`edges` different possible edges, drawn uniformly."""
    candidates = np.flatnonzero(topology.possible)
    kept = np.zeros(topology.possible.size, dtype=bool)
    kept[rng.choice(candidates, size=_checked(topology, edges), replace=False)] = True
    return Circuit(topology, kept.reshape(topology.possible.shape))


def full_circuit(topology: Topology) -> Circuit:
    """Every possible edge."""
    return Circuit(topology, topology.possible.copy())


def complement(circuit: Circuit) -> Circuit:
    """The possible edges that the circuit leaves out."""
    return replace(circuit, kept=circuit.topology.possible & ~circuit.kept)


def drop_dead_ends(circuit: Circuit) -> Circuit:
    """The edges that lie on a path, through kept edges, from a source with input to the logits.

    A *source with input* is one that is computed from no slot of the graph (`input`; token and error nodes of feature
    graphs): its value comes from the prompt. A path goes on from a slot to every source that the slot feeds: a head
    lives when any one of its q, k and v slots is reached, and a shared key/value slot reaches every head of its group.
    It ends in a slot that feeds no source (`logits`).

    Under counterfactual ablation the dropped edges carry nothing: either their source only sees the corrupt run, so
    that it gives the ablated value anyway, or nobody who matters reads their target. Under zero and mean ablation a
    source whose inputs are all ablated may still differ from its own ablated value, so that the evaluation may move a
    little.
    """
    return replace(circuit, kept=circuit.kept & live_places(circuit))


def live_places(circuit: Circuit) -> Bool[np.ndarray, "src dst"]:
    """Possible edges that lie, or would lie if they alone were added, on a path through kept edges from a source with
    input to the logits."""
    topology = circuit.topology
    roots = [row for row, slots in enumerate(topology.slots_of) if not slots]
    ends = [column for column, fed in enumerate(topology.feeds) if not fed]
    alive = _reached(circuit.kept, roots, topology.feeds)
    useful = _reached(np.ascontiguousarray(circuit.kept.T), ends, topology.slots_of)
    return topology.possible & alive[:, None] & useful[None, :]


def _reached(
    kept: Bool[np.ndarray, "here there"], start: Sequence[int], onward: Sequence[Sequence[int]]
) -> Bool[np.ndarray, " here"]:
    """Which rows are reached from `start`, by steps row -> kept column -> the rows that go on from that column."""
    here, there = np.zeros(kept.shape[0], dtype=bool), np.zeros(kept.shape[1], dtype=bool)
    here[list(start)] = True
    frontier = list(start)
    while frontier:
        fresh = kept[frontier].any(axis=0) & ~there
        there |= fresh
        frontier = sorted({row for column in np.flatnonzero(fresh).tolist() for row in onward[column] if not here[row]})
        here[frontier] = True
    return here


def _strength(scores: EdgeScores, by: By) -> Float[np.ndarray, "src dst"]:
    """What edges are ordered by; -inf where no edge is possible."""
    if scores.partial:
        raise ValueError("these scores hold only one circuit's edges: select from the scores of all edges")
    if by not in ("absolute", "signed"):
        raise ValueError(f"edges are selected by 'absolute' or 'signed' score, not by {by!r}")
    values = np.abs(scores.ranking) if by == "absolute" else scores.ranking
    return np.where(scores.topology.possible, values, np.float32("-inf"))


def _checked(topology: Topology, edges: int) -> int:
    """`edges`, if the graph has so many."""
    if not 0 <= edges <= topology.edge_count:
        raise ValueError(f"a circuit of {edges} edges: the graph has {topology.edge_count}")
    return edges


def _keep(scores: EdgeScores, flat: Int[np.ndarray, " rank"]) -> Circuit:
    """The circuit of some edges, given by flat indices."""
    kept = np.zeros(scores.topology.possible.size, dtype=bool)
    kept[flat] = True
    return Circuit(scores.topology, kept.reshape(scores.topology.possible.shape), scores)

"""How edges come and go over training: when each appears, and how circuits of different steps overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graphs.circuit import Circuit
from graphs.compare import jaccard
from graphs.node import EdgeId
from graphs.scores import EdgeScores

HALF = 0.5
"""An edge has appeared where its score is at least this share of its final one."""


@dataclass(frozen=True, eq=False)
class EdgeCourse:
    """One edge's scores over training."""

    edge: EdgeId
    """The edge."""
    scores: Float[np.ndarray, " step"]
    """Its score at each step; the last one is called final."""
    appears: int | None
    """Place of the first step whose score is at least half the final one, with its sign; None where the final one is 0."""
    settles: int | None
    """Place of the step from which that holds at every later one."""
    appears_as_share: int | None
    """Place of the first step whose score is at least half the final one, both as shares of the metric's gap at their
    steps: logits that grow later do not delay it."""


def edge_courses(
    scores: Sequence[EdgeScores], circuit: Circuit, gaps: Float[np.ndarray, " step"]
) -> tuple[EdgeCourse, ...]:
    """The courses of a circuit's edges, those that appear first in front, of these the ones that settle first, then by final
    |score|. scores: of all edges, by step, on the circuit's graph. gaps: by step, what the metric has between all edges and
    none; NaN where it tells nothing."""
    rows, columns = circuit.places
    values = np.stack([each.values[rows, columns] for each in scores]).astype(np.float64)
    courses = []
    for place, (row, column) in enumerate(zip(rows.tolist(), columns.tolist())):
        own = values[:, place]
        shares = np.divide(own, gaps, out=np.zeros_like(own), where=~np.isnan(gaps))
        courses.append(EdgeCourse(circuit.topology.edge(row, column), own, *appearance(own), appearance(shares)[0]))
    last = len(scores)

    def order(course: EdgeCourse) -> tuple[int, int, float]:
        first, stays = (last if place is None else place for place in (course.appears, course.settles))
        return first, stays, -abs(float(course.scores[-1]))

    return tuple(sorted(courses, key=order))


def appearance(scores: Float[np.ndarray, " step"]) -> tuple[int | None, int | None]:
    """Places of the first score that is at least HALF the final one (with its sign), and of the one from which all are."""
    if not scores[-1]:
        return None, None
    there = scores / scores[-1] >= HALF
    absent = np.flatnonzero(~there)
    return int(np.argmax(there)), int(absent[-1]) + 1 if len(absent) else 0


def passing_edges(
    scores: Sequence[EdgeScores],
    own: Sequence[Circuit | None],
    circuit: Circuit,
    gaps: Float[np.ndarray, " step"],
    most: int,
) -> tuple[tuple[EdgeCourse, int], ...]:
    """Edges that were in some step's own circuit and are not in `circuit`, with the place of the step where their share of
    the metric's gap was largest: those with the largest share first, `most` at most. Steps without a gap (NaN) do not count.
    """
    told = [place for place in range(len(own)) if own[place] is not None and not np.isnan(gaps[place])]
    seen = np.zeros_like(circuit.kept)
    for place in told:
        one = own[place]
        assert one is not None
        seen |= one.kept
    gone = Circuit(circuit.topology, seen & ~circuit.kept)
    found = []
    for course in edge_courses(scores, gone, gaps) if gone.edge_count else ():
        shares = np.abs(course.scores[told] / gaps[told])
        found.append((float(shares.max()), course, told[int(shares.argmax())]))
    found.sort(key=lambda one: -one[0])
    return tuple((course, place) for _, course, place in found[:most])


def lasting(holds: Sequence[bool]) -> int | None:
    """The place from which something holds at every later step too; None where it does not hold at the last one."""
    if not holds or not holds[-1]:
        return None
    return next((len(holds) - i for i, one in enumerate(reversed(holds)) if not one), 0)


def overlaps(circuits: Sequence[Circuit | None], other: Sequence[Circuit | None]) -> list[tuple[float, float] | None]:
    """Jaccard overlap of every circuit with the one beside it, and what two random circuits of their sizes would have on
    average (about); None where there is none."""
    found: list[tuple[float, float] | None] = []
    for one, two in zip(circuits, other, strict=True):
        if one is None or two is None:
            found.append(None)
            continue
        shared = one.edge_count * two.edge_count / one.topology.edge_count
        union = one.edge_count + two.edge_count - shared
        found.append((jaccard(one, two), shared / union if union else 1.0))
    return found

"""Sequential pruning in batches: candidates are measured as if earlier ones were decided as expected.

A batch's results count up to and including the first candidate that is decided otherwise; the rest was measured under a
circuit that never was, and is measured again. What it showed is the best guess for the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float

from discovery.pruning import Judge
from graphs.topology import Topology

Edge = tuple[int, int]
"""Row and column."""
_FIRST_BATCH = 8


@dataclass(frozen=True)
class Decision:
    """What became of one candidate edge."""

    row: int
    """Row of its source."""
    column: int
    """Column of its slot."""
    kept: bool
    """Whether the edge stays."""
    drop: Float[np.ndarray, " pair"] | None
    """By how much the metric fell without it, every pair; None for an edge to a slot that nobody read: 0."""


@dataclass
class Work:
    """What a pruning cost."""

    calls: int = 0
    """Measurements of several masks side by side."""
    masks: int = 0
    """Masks measured."""


def prune_in_order(
    judge: Judge,
    topology: Topology,
    order: Sequence[Edge],
    keeps: Callable[[Float[np.ndarray, " pair"]], bool],
    expected: Bool[np.ndarray, "src dst"],
    reach: tuple[tuple[int, ...], ...] | None,
    decided: Callable[[Decision], None],
    kept: Bool[np.ndarray, "src dst"] | None = None,
) -> Work:
    """Takes every candidate out in turn, and puts it back where `keeps` says so of what the metric lost.

    order: candidates, later stages first. expected: True where an edge will likely be kept; changed in place. reach: see
    `discovery.pruning.reach_of`. decided: called with every decision, in order. kept: the circuit to begin with, when decisions
    before `order` have been taken; changed in place.
    """
    work, size = Work(), _FIRST_BATCH
    if kept is None:
        kept = topology.possible.copy()
    elif not np.array_equal(kept, topology.possible):
        judge.measure(kept[None])
        judge.accept(0)
    for _, candidates in groupby(order, key=lambda edge: _stage(topology, edge)):
        waiting = list(candidates)  # to slots of one stage: nothing that one of them reads depends on the others
        unread = _unread(waiting, kept, reach)
        for row, column in waiting:
            if column in unread:
                kept[row, column] = False
        while waiting:
            batch = _first(waiting, unread, min(size, judge.most))
            done, tried = _decide(judge, kept, batch, unread, keeps, expected, decided)
            if tried:
                work.calls, work.masks = work.calls + 1, work.masks + tried
                size = 2 * size if done == len(batch) else max(_FIRST_BATCH, 2 * done)
            waiting = waiting[done:]
    return work


def _stage(topology: Topology, edge: Edge) -> tuple[int | None, str]:
    """What is run side by side: a layer's attention, an MLP, a layer's features, the logits."""
    node = topology.targets[edge[1]].node
    return node.layer, node.kind


def _unread(
    candidates: Sequence[Edge], kept: Bool[np.ndarray, "src dst"], reach: tuple[tuple[int, ...], ...] | None
) -> set[int]:
    """Slots whose nodes nobody reads any more."""
    if reach is None:
        return set()
    columns = {column for _, column in candidates}
    return {column for column in columns if reach[column] and not kept[list(reach[column])].any()}


def _first(waiting: Sequence[Edge], unread: set[int], most: int) -> Sequence[Edge]:
    """The next candidates, `most` of them to slots that are read."""
    tried = 0
    for place, (_, column) in enumerate(waiting):
        if column not in unread:
            if tried == most:
                return waiting[:place]
            tried += 1
    return waiting


def _decide(
    judge: Judge,
    kept: Bool[np.ndarray, "src dst"],
    batch: Sequence[Edge],
    unread: set[int],
    keeps: Callable[[Float[np.ndarray, " pair"]], bool],
    expected: Bool[np.ndarray, "src dst"],
    decided: Callable[[Decision], None],
) -> tuple[int, int]:
    """Measures one batch of candidates; gives how many of them are decided, at least one, and how many were measured.

    Changes `kept`.
    """
    tried = [edge for edge in batch if edge[1] not in unread]
    masks = np.repeat(kept[None], len(tried), axis=0)
    for place, (row, column) in enumerate(tried):
        masks[place:, row, column] = False
        if expected[row, column]:
            masks[place + 1 :, row, column] = True
    measured = judge.measure(masks) if tried else None
    before, last, done, place = judge.current, None, None, 0
    for number, (row, column) in enumerate(batch):
        if column in unread:
            if done is None:
                decided(Decision(row, column, False, None))
            continue
        assert measured is not None
        drop = before - measured[place]
        keep = keeps(drop)
        if done is None:
            decided(Decision(row, column, keep, drop))
            if not keep:
                kept[row, column], last = False, place
            if keep != expected[row, column]:
                done = number + 1
        if not expected[row, column]:
            before = measured[place]
        expected[row, column] = keep
        place += 1
    if last is not None:
        judge.accept(last)
    return len(batch) if done is None else done, len(tried)

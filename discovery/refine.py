"""The best circuit of a size, looked for by real runs: edges are swapped while that brings it closer to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from discovery.measure import measure
from discovery.model import PatchableModel
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.prune import By, drop_dead_ends, live_places
from graphs.scores import EdgeScores

WINDOW = 16
"""Edges that are tried at once, for dropping and for adding each."""
_LEAST = 1e-4
"""Smallest gain of faithfulness that counts."""

Edge = tuple[int, int]
"""Row and column."""


@dataclass(frozen=True)
class Refined:
    """A circuit that was improved by runs."""

    circuit: Circuit
    """Without dead ends, and with no more edges than were selected at first."""
    before: float
    """Faithfulness of the circuit that was selected at first, on the pairs that were run."""
    after: float
    """Faithfulness of this one."""
    runs: int
    """Circuits that were run."""


def refine(
    model: PatchableModel, workload: Workload, circuit: Circuit, scores: EdgeScores, budget: int, by: By = "absolute"
) -> Refined:
    """Improves a circuit edge by edge until no single try helps any more, or `budget` circuits have been run.

    The goal is a faithfulness of 1 on these pairs. Every round tries to drop each of some weak edges and to add each of
    some strong ones that would lie on a path, then the best of these together, fewer and fewer, in the place of each
    other, or in addition while the circuit is smaller than the one given (whose dead ends go first). What helps most is
    kept; where nothing helps, the next weakest and strongest edges are tried.
    """
    search = _Search(model, workload, scores, by, budget, most=circuit.edge_count)
    current = drop_dead_ends(replace(circuit, scores=scores))
    (before,) = search.run([current])
    value, window = before, 0
    with tqdm(total=budget, desc="refine", unit="run", delay=1, leave=False) as bar:
        while True:
            found = search.better(current, value, window)
            bar.update(search.runs - bar.n)
            if found is not None:
                (current, value), window = found, 0
            elif search.exhausted(current, window + 1):
                return Refined(current, before, value, search.runs)
            else:
                window += 1


class _Search:
    """The runs of one search, counted."""

    def __init__(
        self, model: PatchableModel, workload: Workload, scores: EdgeScores, by: By, budget: int, most: int
    ) -> None:
        self.model, self.workload, self.budget, self.most = model, workload, budget, most
        self.strength = np.abs(scores.ranking) if by == "absolute" else scores.ranking
        self.runs = 0

    def run(self, circuits: Sequence[Circuit]) -> list[float]:
        """Their faithfulness."""
        self.runs += len(circuits)
        return measure(self.model, self.workload, circuits).faithfulness().tolist()

    def better(self, current: Circuit, value: float, window: int) -> tuple[Circuit, float] | None:
        """A circuit closer to the model, from the given window of candidates; None where there is none, or no budget."""
        room = self.most - current.edge_count
        added, dropped = self._candidates(current, window)
        if not added or self.runs + len(added) + len(dropped) > self.budget:
            return None
        singles = [_changed(current, [edge], []) for edge in added] + [
            _changed(current, [], [edge]) for edge in dropped
        ]
        values = self.run(singles)
        gains = [abs(1 - each) for each in values]
        best_added = [edge for _, edge in sorted(zip(gains[: len(added)], added))]
        best_dropped = [edge for _, edge in sorted(zip(gains[len(added) :], dropped))]
        tries = [_changed(current, more, less) for more, less in _together(best_added, best_dropped, room)]
        tries = tries[: max(0, self.budget - self.runs)]
        values = [*values, *(self.run(tries) if tries else [])]
        fitting = [
            (abs(1 - each), place)
            for place, (each, one) in enumerate(zip(values, [*singles, *tries], strict=True))
            if one.edge_count <= self.most
        ]
        distance, place = min(fitting, default=(np.inf, 0))
        if distance > abs(1 - value) - _LEAST:
            return None
        return drop_dead_ends([*singles, *tries][place]), values[place]

    def exhausted(self, current: Circuit, window: int) -> bool:
        """Whether a window holds nothing to try, or nothing can be run."""
        added, dropped = self._candidates(current, window)
        return not added or self.runs + len(added) + len(dropped) > self.budget

    def _candidates(self, current: Circuit, window: int) -> tuple[list[Edge], list[Edge]]:
        """The strongest edges that could be added and the weakest that could be dropped."""
        start, stop = window * WINDOW, (window + 1) * WINDOW
        outside = np.argwhere(live_places(current) & ~current.kept)
        inside = np.argwhere(current.kept)
        outside = outside[np.argsort(-self.strength[tuple(outside.T)], kind="stable")][start:stop]
        inside = inside[np.argsort(self.strength[tuple(inside.T)], kind="stable")]
        weak = inside[start % max(len(inside), 1) :][:WINDOW].tolist()
        return [(row, column) for row, column in outside.tolist()], [(row, column) for row, column in weak]


def _together(added: list[Edge], dropped: list[Edge], room: int) -> list[tuple[list[Edge], list[Edge]]]:
    """The best 1, 2, 4, ... changes made at once: additions while there is room, and swaps."""

    def powers(limit: int) -> list[int]:
        return [2**i for i in range(limit.bit_length())]

    grown = [(added[:count], []) for count in powers(min(len(added), room))[1:]]
    return [*grown, *((added[:count], dropped[:count]) for count in powers(min(len(added), len(dropped))))]


def _changed(circuit: Circuit, added: list[Edge], dropped: list[Edge]) -> Circuit:
    kept = circuit.kept.copy()
    for edge in added:
        kept[edge] = True
    for edge in dropped:
        kept[edge] = False
    return replace(circuit, kept=kept)

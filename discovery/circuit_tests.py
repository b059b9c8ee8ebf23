"""Which runs the hypothesis tests of a circuit need, and the tests on their metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from discovery.evaluate import Question, random_rivals
from discovery.hypothesis_tests import (
    Verdict,
    corrected,
    equivalence,
    independence,
    minimality,
    sufficiency,
)
from discovery.measure import Measured
from discovery.statistics import rounding_noise
from graphs.circuit import Circuit
from graphs.prune import complement
from graphs.random_paths import inflated, without

Depth = Literal["free", "all"]
"""free: the tests that need no run besides those of the evaluation (equivalence, independence, sufficiency). all: also
minimality (a run for every edge of the circuit and two for every random edge)."""


@dataclass(frozen=True)
class Sampling:
    """How many runs the tests may take."""

    rivals: int = 100
    """Random circuits; with 0 sufficiency is not tested."""
    random_edges: int = 100
    """Random edges that the circuit's edges are compared with (minimality)."""
    most_edges: int = 200
    """Edges of the circuit that are knocked out at most; of a larger circuit, so many drawn at random."""


def hypothesis_question(
    circuit: Circuit, depth: Depth = "all", seed: int = 0, runs: Sampling | None = None
) -> Question[tuple[Verdict, ...]]:
    """The tests of a circuit. Rivals are those of `rivals_question` for equal numbers and seeds, so they run once."""
    runs = runs or Sampling()
    rng = np.random.default_rng([seed, 1])
    rivals = random_rivals(circuit, runs.rivals, seed)
    groups: dict[str, list[Circuit]] = {"own": [circuit, complement(circuit)], "rivals": rivals}
    places: list[tuple[int, int]] = []
    if depth == "all":
        places = [(int(row), int(column)) for row, column in np.argwhere(circuit.kept)]
        if len(places) > runs.most_edges:
            chosen = rng.choice(len(places), runs.most_edges, replace=False)
            places = [places[i] for i in sorted(chosen.tolist())]
        drawn = [pair for pair in (inflated(circuit, rng) for _ in range(runs.random_edges)) if pair is not None]
        groups["knocked out"] = [without(circuit, place) for place in places]
        groups["inflated"] = [larger for larger, _ in drawn]
        groups["deflated"] = [smaller for _, smaller in drawn]
    names = [str(circuit.topology.edge(*place)) for place in places]

    def read(measured: Measured) -> tuple[Verdict, ...]:
        return corrected(_verdicts(_parts(measured, groups), names, seed))

    return Question(tuple(one for group in groups.values() for one in group), read)


def _parts(measured: Measured, groups: dict[str, list[Circuit]]) -> dict[str, Measured]:
    """The metrics of each group of circuits."""
    parts, start = {}, 0
    for name, group in groups.items():
        parts[name] = measured.part(start, len(group))
        start += len(group)
    return parts


def _verdicts(parts: dict[str, Measured], names: list[str], seed: int) -> list[Verdict]:
    own = parts["own"]
    noise = rounding_noise(own.full, own.empty)
    goal, means = own.full.mean(), {name: part.circuits.mean(1) for name, part in parts.items()}
    mine = means["own"][0]
    verdicts = [
        equivalence(own.circuits[0], own.full, noise),
        independence(own.circuits[1], own.full, own.empty, noise, seed),
    ]
    if len(means.get("inflated", ())) and names:
        effects = np.abs(means["knocked out"] - mine)
        verdicts.append(minimality(effects, np.abs(means["inflated"] - means["deflated"]), names))
    if len(means["rivals"]):
        distances = np.abs(means["rivals"] - goal)
        verdicts.append(sufficiency(abs(float(mine - goal)), distances))
    return verdicts

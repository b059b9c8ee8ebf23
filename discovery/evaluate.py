"""How well circuits stand for the whole model: faithfulness, completeness, random circuits beside them, intervals.

What is asked of a model is a `Question`: circuits to run, and what their metrics say. Several questions are put to the
model together, in one pass over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from discovery.evaluation import Curve, Evaluation, RandomComparison
from discovery.measure import Measured, measure
from discovery.model import PatchableModel
from discovery.statistics import faithfulness_interval
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.compare import Truth, edge_auroc
from graphs.error_share import error_share
from graphs.prune import (
    SIZES,
    By,
    complement,
    drop_dead_ends,
    edge_count,
    nested_circuits,
    random_circuit,
)
from graphs.random_paths import random_path_circuit
from graphs.scores import EdgeScores
from graphs.topology import Topology

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """Circuits to run, and what is to be read from their metrics."""

    circuits: tuple[Circuit, ...]
    """What is run."""
    read: Callable[[Measured], Answer]
    """Given the metrics of these circuits alone, in this order."""


def ask(
    model: PatchableModel,
    workload: Workload,
    questions: Sequence[Question[Any]],
    masks_per_run: int | Literal["auto"] = "auto",
) -> tuple[Any, ...]:
    """The answers, from one `measure` of all circuits. Raises FlatMetric when faithfulness is 0/0."""
    everything = [circuit for question in questions for circuit in question.circuits]
    measured, start, answers = measure(model, workload, everything, masks_per_run), 0, []
    for question in questions:
        answers.append(question.read(measured.part(start, len(question.circuits))))
        start += len(question.circuits)
    return tuple(answers)


def curve_question(
    topology: Topology,
    scores: EdgeScores,
    *,
    sizes: Sequence[float] = SIZES,
    select: str = "top",
    by: By = "absolute",
    drop_dead: bool = True,
    random_baseline: int = 3,
    bootstrap: int = 1000,
    seed: int = 0,
    faithfulness_only: bool = False,
    truth: Truth | None = None,
) -> Question[Curve]:
    """The circuits that `scores` give at `sizes` (shares of the possible edges, before dead ends are dropped).

    select: the name of a selection (`graphs.prune.SELECTIONS`). random_baseline: random circuits per size, 0 for none.
    bootstrap: resamples for the faithfulness interval, 0 for none. faithfulness_only: neither complements nor random
    circuits are run. truth: the true edges, for the AUROC of the scores.
    """
    sizes = sorted(sizes)
    counts = [edge_count(topology, size) for size in sizes]
    circuits = nested_circuits(scores, counts, select, by)
    if drop_dead:
        circuits = tuple(drop_dead_ends(circuit) for circuit in circuits)
    baselines = [] if faithfulness_only else _random_circuits(topology, counts, random_baseline, drop_dead, seed)
    auroc = None if truth is None else edge_auroc(scores, truth, by)

    def read(measured: Measured) -> Curve:
        points = _points(measured, circuits, sizes, not faithfulness_only, bootstrap, seed)
        full, empty, known = (float(values.mean()) for values in (measured.full, measured.empty, measured.known))
        return Curve(points, by, full, empty, len(measured.full), known, auroc)

    extra = [] if faithfulness_only else [*circuits, *baselines]
    return Question((*circuits, *map(complement, extra), *baselines), read)


def circuit_question(
    circuit: Circuit, *, completeness: bool = True, bootstrap: int = 1000, seed: int = 0
) -> Question[Evaluation]:
    """One circuit's evaluation; its size is its share of the possible edges."""
    size = int(circuit.kept.sum()) / circuit.topology.edge_count
    return Question(
        (circuit, *([complement(circuit)] if completeness else [])),
        lambda measured: _points(measured, (circuit,), [size], completeness, bootstrap, seed)[0],
    )


def rivals_question(circuit: Circuit, count: int = 100, seed: int = 0) -> Question[RandomComparison]:
    """The circuit's faithfulness beside that of `count` random circuits of whole paths, with no fewer edges."""
    if count < 1:
        raise ValueError(f"a comparison needs at least one random circuit, not {count}")

    def read(measured: Measured) -> RandomComparison:
        own, *others = measured.faithfulness().tolist()
        return RandomComparison(circuit.edge_count, own, tuple(others))

    return Question((circuit, *random_rivals(circuit, count, seed)), read)


def random_rivals(circuit: Circuit, count: int, seed: int) -> list[Circuit]:
    """Random circuits of whole paths with no fewer edges than the circuit; equal arguments give equal circuits."""
    rng = np.random.default_rng([seed, circuit.edge_count])
    return [random_path_circuit(circuit.topology, circuit.edge_count, rng) for _ in range(count)]


def evaluate(
    model: PatchableModel,
    workload: Workload,
    scores: EdgeScores,
    *,
    masks_per_run: int | Literal["auto"] = "auto",
    **settings: Any,
) -> Curve:
    """The answer to `curve_question`, whose settings it takes. Raises FlatMetric when faithfulness is 0/0."""
    return ask(model, workload, [curve_question(model.topology, scores, **settings)], masks_per_run)[0]


def evaluate_circuit(model: PatchableModel, workload: Workload, circuit: Circuit, **settings: Any) -> Evaluation:
    """The answer to `circuit_question`, whose settings it takes. Raises FlatMetric when it is undefined."""
    return ask(model, workload, [circuit_question(circuit, **settings)])[0]


def compare_with_random(
    model: PatchableModel,
    workload: Workload,
    circuit: Circuit,
    count: int = 100,
    seed: int = 0,
    masks_per_run: int | Literal["auto"] = "auto",
) -> RandomComparison:
    """The answer to `rivals_question`. Raises FlatMetric."""
    return ask(model, workload, [rivals_question(circuit, count, seed)], masks_per_run)[0]


def with_train(
    model: PatchableModel, workload: Workload, scored: Sequence[Circuit], points: Sequence[Evaluation]
) -> tuple[Evaluation, ...]:
    """The evaluations of these circuits with their faithfulness on the pairs of `workload`, which were scored on."""
    values = measure(model, workload, scored).faithfulness()
    return tuple(replace(point, train=float(value)) for point, value in zip(points, values, strict=True))


def _random_circuits(topology: Topology, counts: Sequence[int], each: int, drop_dead: bool, seed: int) -> list[Circuit]:
    """`each` circuits of every count, by count; every count has its own stream, so sizes do not move each other."""
    circuits = []
    for count in counts:
        rng = np.random.default_rng([seed, count])
        drawn = [random_circuit(topology, count, rng) for _ in range(each)]
        circuits += [drop_dead_ends(circuit) for circuit in drawn] if drop_dead else drawn
    return circuits


def _points(
    measured: Measured,
    circuits: Sequence[Circuit],
    sizes: Sequence[float],
    has_complements: bool,
    bootstrap: int,
    seed: int,
) -> tuple[Evaluation, ...]:
    """Evaluations from metrics in the order: circuits, their complements and those of the random circuits (where run),
    random circuits by size."""
    count = len(circuits)
    values = measured.faithfulness()
    completeness = values[count : 2 * count] if has_complements else None
    random, left = None, None
    if len(values) > 2 * count:
        left, random = (part.reshape(count, -1).mean(1) for part in np.split(values[2 * count :], 2))
    low, high = None, None
    if bootstrap:
        low, high = faithfulness_interval(measured.circuits[:count], measured.full, measured.empty, bootstrap, seed)
    return tuple(
        Evaluation(
            size=float(size),
            edges=int(circuit.kept.sum()),
            faithfulness=float(values[i]),
            low=_number(low, i),
            high=_number(high, i),
            completeness=_number(completeness, i),
            random=_number(random, i),
            random_completeness=_number(left, i),
            error_share=error_share(circuit),
        )
        for i, (size, circuit) in enumerate(zip(sizes, circuits))
    )


def _number(values: Float[np.ndarray, " circuit"] | None, place: int) -> float | None:
    """One of the values as a plain number; None where there is none."""
    return None if values is None or np.isnan(values[place]) else float(values[place])

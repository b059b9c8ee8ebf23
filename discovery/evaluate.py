"""How well circuits stand for the whole model: faithfulness, completeness, random circuits beside them, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from discovery.evaluation import Curve, Evaluation, RandomComparison
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.statistics import faithfulness, faithfulness_interval, rounding_noise
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
from graphs.scores import EdgeScores
from graphs.topology import Topology


class FlatMetric(ValueError):
    """The metric does not tell the full model from the fully ablated one, so that faithfulness is 0/0."""


def evaluate(
    model: PatchableModel,
    workload: Workload,
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
    masks_per_run: int | Literal["auto"] = "auto",
) -> Curve:
    """Evaluate the circuits that `scores` give at `sizes` (shares of the possible edges, before dead ends are dropped).

    select: the name of a selection (`graphs.prune.SELECTIONS`). random_baseline: random circuits per size, 0 for none.
    bootstrap: resamples for the faithfulness interval, 0 for none. faithfulness_only: neither complements nor random
    circuits are run. truth: the true edges, for the AUROC of the scores. Raises FlatMetric when faithfulness is 0/0.
    """
    sizes = sorted(sizes)
    counts = [edge_count(model.topology, size) for size in sizes]
    circuits = nested_circuits(scores, counts, select, by)
    if drop_dead:
        circuits = tuple(drop_dead_ends(circuit) for circuit in circuits)
    baselines = [] if faithfulness_only else _random_circuits(model.topology, counts, random_baseline, drop_dead, seed)
    measured = measure(
        model,
        workload,
        [*circuits, *([] if faithfulness_only else map(complement, circuits)), *baselines],
        masks_per_run,
    )
    points = _points(measured, circuits, sizes, not faithfulness_only, bootstrap, seed)
    return Curve(
        points,
        by=by,
        full=float(measured.full.mean()),
        empty=float(measured.empty.mean()),
        pairs=workload.pair_count,
        auroc=None if truth is None else edge_auroc(scores, truth, by),
    )


def evaluate_circuit(
    model: PatchableModel,
    workload: Workload,
    circuit: Circuit,
    *,
    completeness: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """One circuit's evaluation; its size is its share of the possible edges. Raises FlatMetric when it is undefined."""
    size = int(circuit.kept.sum()) / model.topology.edge_count
    circuits = [circuit, *([complement(circuit)] if completeness else [])]
    measured = measure(model, workload, circuits)
    return _points(measured, (circuit,), [size], completeness, bootstrap, seed)[0]


def compare_with_random(
    model: PatchableModel,
    workload: Workload,
    circuit: Circuit,
    count: int = 100,
    seed: int = 0,
    masks_per_run: int | Literal["auto"] = "auto",
) -> RandomComparison:
    """The circuit's faithfulness beside that of `count` random circuits with as many kept edges. Raises FlatMetric."""
    if count < 1:
        raise ValueError(f"a comparison needs at least one random circuit, not {count}")
    edges = int(circuit.kept.sum())
    # Where ablated values are a run, dead ends change nothing, and without them many random circuits are empty: no run.
    drop_dead = workload.ablation.still
    rivals = _random_circuits(model.topology, [edges], count, drop_dead, seed)
    values = measure(model, workload, [circuit, *rivals], masks_per_run).faithfulness()
    return RandomComparison(edges, float(values[0]), tuple(float(value) for value in values[1:]))


@dataclass(frozen=True, eq=False)
class Measured:
    """The metric of every pair, for some circuits."""

    full: Float[np.ndarray, " pair"]
    """The untouched model's."""
    empty: Float[np.ndarray, " pair"]
    """With every edge ablated."""
    circuits: Float[np.ndarray, "circuit pair"]
    """Each circuit's."""

    def faithfulness(self) -> Float[np.ndarray, " circuit"]:
        """Of the means over pairs."""
        return faithfulness(self.circuits.mean(1), self.full.mean(), self.empty.mean())


def measure(
    model: PatchableModel,
    workload: Workload,
    circuits: Sequence[Circuit],
    masks_per_run: int | Literal["auto"] = "auto",
) -> Measured:
    """Runs every circuit on every pair; equal circuits, the full and the empty one are run once.

    Batches are the outer loop, so that what the model records of a batch is recorded once. Raises FlatMetric when the
    mean metric of the full and of the empty circuit are the same.
    """
    if not workload.pair_count:
        raise ValueError("there are no prompt pairs to evaluate on")
    masks, places = _distinct(model.topology, circuits)
    full_pieces, pieces = [], []
    with tqdm(total=len(masks) * len(workload.batches), desc="evaluate", unit="run", delay=1, leave=False) as bar:
        for batch in workload.batches:
            full, logits = full_metric(model, batch, workload.metric)
            size = masks_per_run
            if size == "auto":  # a run may hold what every source writes
                size = auto_masks_per_run(batch, logits, len(model.topology.sources) + 1)
            patched = patched_metric(model, batch, workload.metric, masks[1:], workload.ablation, logits, size)
            full_pieces.append(full)
            pieces.append(torch.cat([full[None], patched]))
            bar.update(len(masks))
    values = torch.cat(pieces, dim=1).numpy()
    measured = Measured(torch.cat(full_pieces).numpy(), values[1], values[places])
    _check_gap(measured, workload)
    return measured


def _distinct(topology: Topology, circuits: Sequence[Circuit]) -> tuple[np.ndarray, list[int]]:
    """Different masks [mask src dst] (the first keeps all, the second nothing), and each circuit's place among them.

    From the second on they grow: a run does best on masks that leave the same slots alone.
    """
    masks = {mask.tobytes(): mask for mask in (np.zeros_like(topology.possible), *(each.kept for each in circuits))}
    masks.pop(topology.possible.tobytes(), None)
    order = [topology.possible, *sorted(masks.values(), key=np.count_nonzero)]
    place = {mask.tobytes(): i for i, mask in enumerate(order)}
    return np.stack(order), [place[circuit.kept.tobytes()] for circuit in circuits]


def _check_gap(measured: Measured, workload: Workload) -> None:
    full, empty = measured.full.mean(), measured.empty.mean()
    if not abs(full - empty) > rounding_noise(measured.full, measured.empty):
        raise FlatMetric(
            f"metric {workload.metric.name!r} is {full:.6g} with all edges and {empty:.6g} with none "
            f"({workload.ablation.kind} ablation, {len(measured.full)} pairs), so faithfulness is undefined: "
            "use prompts whose corruption changes the answer, or another metric"
        )


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
    """Evaluations from metrics in the order: circuits, their complements (where run), random circuits by size."""
    count = len(circuits)
    values = measured.faithfulness()
    completeness = values[count : 2 * count] if has_complements else None
    rest = values[2 * count :] if has_complements else values[count:]
    random = rest.reshape(count, -1).mean(1) if len(rest) else None
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
            error_share=error_share(circuit),
        )
        for i, (size, circuit) in enumerate(zip(sizes, circuits))
    )


def _number(values: Float[np.ndarray, " circuit"] | None, place: int) -> float | None:
    """One of the values as a plain number; None where there is none."""
    return None if values is None or np.isnan(values[place]) else float(values[place])

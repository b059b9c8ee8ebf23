"""The metric of many circuits on every pair, in one pass over the batches: what every evaluation is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.distributed import own_batches, summed
from discovery.metrics import accuracy, log_prob
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.statistics import faithfulness, rounding_noise
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.topology import Topology


class FlatMetric(ValueError):
    """The metric does not tell the full model from the fully ablated one, so that faithfulness is 0/0."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The metric of every pair, for some circuits."""

    full: Float[np.ndarray, " pair"]
    """The untouched model's."""
    empty: Float[np.ndarray, " pair"]
    """With every edge ablated."""
    circuits: Float[np.ndarray, "circuit pair"]
    """Each circuit's."""
    known: Bool[np.ndarray, " pair"]
    """Whether the untouched model knows the answer: the right answers are more likely together than the wrong ones, or
    the most likely of all tokens where a pair has no wrong answers."""

    def faithfulness(self) -> Float[np.ndarray, " circuit"]:
        """Of the means over pairs."""
        return faithfulness(self.circuits.mean(1), self.full.mean(), self.empty.mean())

    def part(self, start: int, count: int) -> Measured:
        """The same for `count` of the circuits."""
        return replace(self, circuits=self.circuits[start : start + count])


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
    starts = np.cumsum([0, *map(len, workload.batches)]).tolist()
    rows = torch.zeros(len(masks) + 1, workload.pair_count, dtype=torch.float64)
    own = own_batches(workload)
    with tqdm(total=len(masks) * len(own), desc="evaluate", unit="run", delay=1, leave=False) as bar:
        for number, batch in own:
            full, logits = full_metric(model, batch, workload.metric)
            size = masks_per_run
            if size == "auto":  # a run may hold what every source writes
                size = auto_masks_per_run(batch, logits, len(model.topology.sources) + 1)
            patched = patched_metric(model, batch, workload.metric, masks[1:], workload.ablation, logits, size)
            columns = slice(starts[number], starts[number + 1])
            rows[:, columns] = torch.cat([full[None], patched, answers_known(logits, batch)[None].to(full)])
            bar.update(len(masks))
    *values, known = summed(rows).numpy()  # pairs of other processes' batches are 0 here
    values = np.stack(values)
    measured = Measured(values[0], values[1], values[places], known > 0)
    _check_gap(measured, workload)
    return measured


def answers_known(logits: Float[Tensor, "read vocab"], batch: Batch) -> Bool[Tensor, " pair"]:
    """See `Measured.known`."""
    batch = batch.to(logits.device)
    wrong = torch.zeros(len(batch), dtype=torch.bool, device=logits.device)
    wrong[batch.candidate_pair[~batch.candidate_right]] = True
    others = replace(batch, candidate_right=~batch.candidate_right)
    likelier = log_prob(logits, batch) > log_prob(logits, others)
    return torch.where(wrong, likelier, accuracy(logits, batch) > 0).cpu()


def _distinct(topology: Topology, circuits: Sequence[Circuit]) -> tuple[Bool[np.ndarray, "mask src dst"], list[int]]:
    """Different masks (the first keeps all, the second nothing), and each circuit's place among them.

    From the second on they grow: a run does best on masks that leave the same slots alone.
    """
    names = [_name(circuit.kept) for circuit in circuits]
    masks = dict(zip(names, (circuit.kept for circuit in circuits), strict=True))
    empty, whole = np.zeros_like(topology.possible), _name(topology.possible)
    masks[_name(empty)] = empty
    masks.pop(whole, None)
    order = sorted(masks, key=lambda name: np.count_nonzero(masks[name]))
    place = {name: i for i, name in enumerate([whole, *order])}
    return np.stack([topology.possible, *(masks[name] for name in order)]), [place[name] for name in names]


def _name(kept: Bool[np.ndarray, "src dst"]) -> bytes:
    """A short name by which equal masks are found."""
    return hashlib.blake2b(kept.tobytes(), digest_size=16).digest()


def _check_gap(measured: Measured, workload: Workload) -> None:
    full, empty = measured.full.mean(), measured.empty.mean()
    if not abs(full - empty) > rounding_noise(measured.full, measured.empty):
        raise FlatMetric(
            f"metric {workload.metric.name!r} is {full:.6g} with all edges and {empty:.6g} with none "
            f"({workload.ablation.kind} ablation, {len(measured.full)} pairs), so faithfulness is undefined: "
            "use prompts whose corruption changes the answer, or another metric"
        )

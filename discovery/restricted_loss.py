"""What a few circuits do, by three measures at once: metric, loss and accuracy from the same runs.

The loss with a circuit alone and the loss with all else are the general form of the restricted and the excluded loss of
Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.measure import answers_known
from discovery.metrics import Metric, accuracy, log_prob
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run
from discovery.workload import Workload
from graphs.circuit import Circuit

MEASURES = ("metric", "loss", "accuracy")
"""What is measured: the workload's metric, the cross-entropy of the answer in nats (minus the logarithm of the right answers'
summed probability), and whether the most likely continuation is a right answer."""


@dataclass(frozen=True, eq=False)
class Measures:
    """Numbers of every pair, by what was run: the untouched model, no edges, then the circuits."""

    values: Float[np.ndarray, "measure run pair"]
    """By MEASURES."""
    known: Bool[np.ndarray, " pair"]
    """As `discovery.measure.Measured.known`."""

    def of(self, name: str) -> Float[np.ndarray, "run pair"]:
        """The values of one measure."""
        return self.values[MEASURES.index(name)]


def measure_all(model: PatchableModel, workload: Workload, circuits: Sequence[Circuit]) -> Measures:
    """Runs the untouched model, the model with every edge ablated, and the circuits on every pair."""
    nothing = np.zeros_like(model.topology.possible)
    keep = np.stack([nothing, *(circuit.kept for circuit in circuits)])
    found, known = [], []
    with tqdm(workload.batches, desc="losses", unit="batch", delay=1, leave=False) as bar, torch.no_grad():
        for batch in bar:
            full = model.full_logits(batch)
            known.append(answers_known(full, batch))
            here, rows = batch.to(full.device), []
            reference = full if workload.metric.needs_reference else None
            rows.append(_numbers(full[None], here, workload.metric, reference))
            size = auto_masks_per_run(batch, full, len(model.topology.sources) + 1)
            for start in range(0, len(keep), size):
                masks = torch.from_numpy(keep[start : start + size].copy())
                logits = model.run(batch, masks, workload.ablation)
                rows.append(_numbers(logits, here, workload.metric, reference))
            found.append(torch.cat(rows, dim=1))
    return Measures(torch.cat(found, dim=2).numpy(), torch.cat(known).numpy())


def _numbers(
    logits: Float[Tensor, "mask read vocab"],
    batch: Batch,
    metric: Metric,
    reference: Float[Tensor, "read vocab"] | None,
) -> Float[Tensor, "measure mask pair"]:
    """By MEASURES, float64 on the CPU."""
    found = (metric.compute(logits, batch, reference), -log_prob(logits, batch), accuracy(logits, batch))
    return torch.stack([values.cpu().double() for values in found])

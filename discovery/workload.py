"""What a method works on: tokenised pairs, a metric and an ablation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.metrics import Metric


@dataclass(frozen=True)
class Workload:
    """The data side of one scoring or evaluation."""

    batches: tuple[Batch, ...]
    """Tokenised pairs; means are over pairs, whatever the batch sizes."""
    metric: Metric
    """What is measured, per pair."""
    ablation: Ablation
    """What dropped edges carry."""

    library_batch: int | None = None
    """Weigh pairs in gradient scores as the EAP-IG library does with batches of so many, in the task's order: each pair's
    by one over its batch's size. None: all pairs alike."""

    @property
    def pair_count(self) -> int:
        """Number of pairs in all batches."""
        return sum(len(batch) for batch in self.batches)

    def weights(self, batch: Batch) -> Float[Tensor, " pair"] | None:
        """What the scores of a batch's pairs are multiplied with; None: nothing."""
        size = self.library_batch
        if size is None:
            return None
        last = self.pair_count % size or size
        short = torch.tensor(batch.indices) >= self.pair_count - last
        return torch.where(short, 1 / last, 1 / size)

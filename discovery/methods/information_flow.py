"""Information-flow routes (Ferrando and Voita 2024): shares of what each slot reads, on the clean run alone."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, mean_scores
from discovery.workload import Workload
from graphs.scores import EdgeScores


@dataclass(frozen=True)
class Options:
    """Which edges count."""

    tau: float = 0.0
    """Shares below this are no part of a route: their edges score 0 and nothing behind them is followed. The paper draws
    routes at 0.04."""

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise ValueError(f"method 'information-flow': tau must lie between 0 and 1, not {self.tau}")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """The share of what a slot reads that the source wrote, by L1 proximity; mean over reached positions and over pairs.

    Routes start at the reads of the logits and are followed down through shares of at least tau; a slot that none of them
    reaches has edges of score 0. Neither the corrupt prompts nor the metric have a say: scores are never negative.
    """
    options = options or Options()

    def score_batch(batch: Batch) -> Float[Tensor, "pair src dst"]:
        return model.flow(batch, options.tau)

    return mean_scores(model, workload, score_batch, "information-flow", on_batch)

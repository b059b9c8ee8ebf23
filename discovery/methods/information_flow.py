"""Information-flow routes (Ferrando and Voita 2024): shares of what each slot reads, on the clean run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, mean_scores
from discovery.workload import Workload
from graphs.scores import EdgeScores
from graphs.topology import Topology


@dataclass(frozen=True)
class Options:
    """Which edges count."""

    tau: float = 0.0
    """Shares below this are no part of a route: their edges score 0 and nothing behind them is followed. The paper draws
    routes at 0.04."""
    of: Literal["slot", "logits"] = "slot"
    """slot: an edge's share of what its slot reads (the paper's). logits: that times what of the logits' input comes through
    the slot, along all routes."""

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
        shares = model.flow(batch, options.tau)
        return shares if options.of == "slot" else shares_of_logits(shares, model.topology)

    return mean_scores(model, workload, score_batch, "information-flow", on_batch)


def shares_of_logits(shares: Float[Tensor, "pair src dst"], topology: Topology) -> Float[Tensor, "pair src dst"]:
    """Shares of slots as shares of the logits: sums over all routes of products of shares.

    What comes through a head counts in full for each of its queries, keys and values, so that the shares of `input` may add
    up to more than 1.
    """
    found = torch.zeros_like(shares)
    for column in reversed(range(len(topology.targets))):
        fed = list(topology.feeds[column])
        through = found[:, fed].sum((1, 2)) if fed else shares.new_ones(len(shares))
        found[:, :, column] = shares[:, :, column] * through[:, None]
    return found

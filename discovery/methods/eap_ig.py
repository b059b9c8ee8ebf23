"""EAP with integrated gradients over the inputs (Hanna et al. 2024): gradients averaged from corrupt to clean."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.model import PatchableModel
from discovery.quadrature import Rule, quadrature
from discovery.scoring import OnBatch, linear_scores
from discovery.workload import Workload
from graphs.scores import EdgeScores


@dataclass(frozen=True)
class Options:
    """Where on the line the gradients are taken."""

    steps: int = 5
    """Number of gradients (m); the cost grows with it."""
    rule: Rule = "left"
    """left: alpha = k/m, k = 0..m-1 (the EAP-IG library's edges); right: k = 1..m; midpoint; gauss-legendre."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"method 'eap-ig': steps must be 1 or more, not {self.steps}")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """(clean source - ablated source) . mean gradient on the line, summed over positions, mean over pairs.

    Raises ValueError for metrics without a gradient.
    """
    options = options or Options()
    return linear_scores(model, workload, quadrature(options.steps, options.rule), "eap-ig", on_batch)

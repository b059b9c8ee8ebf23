"""EAP with integrated gradients over activations: what each sublayer writes is interpolated, one sublayer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.model import PatchableModel, Point, Sublayer
from discovery.quadrature import Rule, quadrature
from discovery.scoring import OnBatch, mean_scores, require_gradient
from discovery.workload import Workload
from graphs.node import NodeId
from graphs.scores import EdgeScores
from graphs.topology import Topology


@dataclass(frozen=True)
class Options:
    """Where the gradients are taken. The cost is steps times (2 * layers + 1) gradients."""

    steps: int = 5
    """Number of gradients (m) for each sublayer."""
    rule: Rule = "right"
    """right: alpha = k/m, k = 1..m (the EAP-IG library's); left: k = 0..m-1; midpoint; gauss-legendre."""
    over: Literal["all", "own"] = "all"
    """all: an edge's gradient is averaged over the runs of all sublayers (the EAP-IG library's). own: over the runs in which
    its own source's sublayer is interpolated (Marks et al. 2024): a sublayer's edges then add up to the effect of
    ablating it."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"method 'eap-ig-activations': steps must be 1 or more, not {self.steps}")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """(clean source - ablated source) . mean gradient at the slot over the interpolated runs; mean over pairs.

    In each run `input`, all heads of one attention or one MLP write a value between ablated and clean, all before it is
    clean and all after it follows; no gradient flows back through what is interpolated. Raises ValueError for metrics
    without a gradient.
    """
    options = options or Options()
    require_gradient(workload.metric, "eap-ig-activations")
    places = sublayers(model.topology)
    line = quadrature(options.steps, options.rule)

    def score_batch(batch: Batch) -> Float[Tensor, "pair src dst"]:
        def linearize(points: Sequence[Point]) -> Tensor:
            return model.linearize(batch, workload.metric, points, workload.ablation)

        if options.over == "all":
            share = 1 / len(places)
            return linearize([replace(p, weight=p.weight * share, at=place) for place in places for p in line])
        scores = torch.zeros(len(batch), *model.topology.possible.shape)
        for place, rows in places.items():
            scores[:, rows] = linearize([replace(point, at=place) for point in line])[:, rows]
        return scores

    return mean_scores(model, workload, score_batch, "eap-ig-activations", on_batch)


def sublayers(topology: Topology) -> dict[Sublayer | None, list[int]]:
    """Rows of the sources of every sublayer that has any; None is the input's."""
    found: dict[Sublayer | None, list[int]] = {}
    for row, node in enumerate(topology.sources):
        found.setdefault(_sublayer(node), []).append(row)
    return found


def _sublayer(node: NodeId) -> Sublayer | None:
    if node.layer is None:
        return None
    return Sublayer("attention" if node.kind == "head" else "mlp", node.layer)

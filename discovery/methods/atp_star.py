"""AtP* (Kramar et al. 2024): attribution patching without its two worst blind spots, for edges or for nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from discovery.batch import Batch
from discovery.methods import atp, eap
from discovery.model import PatchableModel
from discovery.node_effects import Fixes
from discovery.node_scoring import mean_node_scores
from discovery.scoring import OnBatch, mean_scores, require_gradient, require_slope
from discovery.workload import Workload
from graphs.node_scores import NodeScores
from graphs.scores import EdgeScores


@dataclass(frozen=True)
class Options:
    """Which fixes, and what is scored."""

    qk_fix: bool = True
    """Compute attention patterns with the patched query or key, and take the gradient behind the softmax."""
    grad_drop: bool = True
    """One gradient for each layer, without what flows back through it: sums of absolute values, which do not cancel. Scores
    are magnitudes then, drawn with the sign of the plain gradient; select by absolute score."""
    level: Literal["edges", "nodes"] = "edges"
    """Score edges, or nodes with their query, key and value vectors (to which the QK fix applies)."""
    neurons: bool = False
    """Score every neuron of every MLP too; with level = nodes."""

    def __post_init__(self) -> None:
        if self.neurons and self.level != "nodes":
            raise ValueError("method 'atp-star': neurons need level = 'nodes'")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores | NodeScores:
    """(clean - ablated) . gradient with the fixes; mean over pairs. on_batch gives magnitudes under GradDrop.

    Raises ValueError for metrics without a gradient, or whose gradient on the clean run is zero (KL).
    """
    options = options or Options()
    require_gradient(workload.metric, "atp-star")
    require_slope(workload.metric, "atp-star")
    fixes = Fixes(options.qk_fix, options.grad_drop)
    if options.level == "nodes":
        return _nodes(model, workload, options, fixes, on_batch)

    def score_batch(batch: Batch) -> Float[Tensor, "pair src dst"]:
        return model.linearize_fixed(batch, workload.metric, workload.ablation, fixes)

    scores = mean_scores(model, workload, score_batch, "atp-star", on_batch)
    if not options.grad_drop:
        return scores
    return replace(scores, values=_signed(scores.values, eap.score(model, workload).values))


def _nodes(
    model: PatchableModel, workload: Workload, options: Options, fixes: Fixes, on_batch: OnBatch | None
) -> NodeScores:
    scores = mean_node_scores(model, workload, "atp-star", options.neurons, fixes, on_batch)
    if not options.grad_drop:
        return scores
    plain = atp.score(model, workload, atp.Options(options.neurons))
    assert scores.slots is not None and plain.slots is not None
    neurons = scores.neurons
    if neurons is not None and plain.neurons is not None:
        neurons = _signed(neurons, plain.neurons)
    return replace(
        scores,
        values=_signed(scores.values, plain.values),
        slots=_signed(scores.slots, plain.slots),
        neurons=neurons,
    )


def _signed(magnitude: Float[np.ndarray, " *any"], plain: Float[np.ndarray, " *any"]) -> Float[np.ndarray, " *any"]:
    return np.where(plain < 0, -magnitude, magnitude)

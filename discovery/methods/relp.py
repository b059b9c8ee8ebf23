"""RelP: attribution patching with layer-wise relevance rules in the place of gradients (Rezaei Jafari et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.methods.eap import CLEAN
from discovery.model import PatchableModel
from discovery.rules import Rules
from discovery.scoring import OnBatch, linear_scores, require_slope
from discovery.workload import Workload
from graphs.scores import EdgeScores


@dataclass(frozen=True)
class Options:
    """Which rules hold; with none of them the scores are those of `eap`."""

    norms: bool = True
    """Denominators of norms count as constants."""
    nonlinearity: bool = True
    """The activation function of an MLP counts as the secant f(x)/x."""
    attention: bool = True
    """Attention patterns count as constants, so that edges into queries and keys score 0."""
    gates: bool = True
    """Half rule: each factor of a gated MLP's product gets half of the gradient."""


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """(clean source - ablated source) . relevance coefficient at the slot on the clean run; mean over pairs.

    Raises ValueError for metrics without a gradient, or whose gradient on the clean run is zero (KL).
    """
    options = options or Options()
    rules = Rules(options.norms, options.nonlinearity, options.attention, options.gates)
    require_slope(workload.metric, "relp")
    return linear_scores(model, workload, CLEAN, "relp", on_batch, rules)

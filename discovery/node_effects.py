"""Scores of nodes and of their parts, one row per pair."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Fixes:
    """What AtP* (Kramar et al. 2024) mends in plain attribution patching."""

    qk_fix: bool = False
    """Edges into queries and keys (and query and key vectors): the attention pattern is computed with the patched query or
    key, and the gradient taken behind the softmax, which may be saturated on the clean run."""
    grad_drop: bool = False
    """As many gradients as there are layers, each without what flows back through one layer; absolute values per pair, their
    sum over (layers - 1). Effects that cancel each other are seen so. Scores are unsigned."""


NO_FIXES = Fixes()


@dataclass(frozen=True, eq=False)
class NodeEffects:
    """(clean - ablated) . gradient, summed over positions, on the CPU in float32."""

    sources: Float[Tensor, "pair src"]
    """Of what every source of the graph writes."""
    slots: Float[Tensor, "pair dst"]
    """Of the q, k and v vectors; 0 at other slots."""
    neurons: Float[Tensor, "pair layer neuron"] | None = None
    """Of every MLP's neurons, where they were asked for."""

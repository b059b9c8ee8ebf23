"""How gradients are taken: plainly, or by layer-wise relevance rules that freeze parts of the computation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Rules of RelP (Rezaei Jafari et al. 2025), each on its own switch. The model's values stay what they are."""

    norms: bool = False
    """Denominators of norms count as constants."""
    nonlinearity: bool = False
    """The activation function of an MLP counts as the secant f(x)/x, a constant."""
    attention: bool = False
    """Attention patterns count as constants: nothing flows through queries and keys, whose edges score 0."""
    gates: bool = False
    """Half rule: each factor of a gated MLP's product gets half of the gradient."""


PLAIN = Rules()
RELEVANCE = Rules(norms=True, nonlinearity=True, attention=True, gates=True)

"""How large the effect of a node outside a circuit may be: the diagnostic of AtP* (Kramar et al. 2024, subset sampling).

Random subsets of the nodes that the circuit leaves out are ablated together in real runs. A node's effect is the mean over
subsets with it less the mean over those without it; a Welch test for each node bounds it, and the largest bound bounds all
of them at once (the null hypothesis "some effect is at least theta" is rejected when that of every node is). Effects of
nodes are thus meant on average over what else is ablated, not alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from discovery.evaluate import Measured, Question
from graphs.circuit import Circuit

_SHARE = 0.1
"""Share of the nodes in a subset: few, so that they meet each other seldom."""


@dataclass(frozen=True)
class MissedEffects:
    """What is known of the nodes that a circuit leaves out."""

    nodes: int
    """Nodes that the circuit leaves out."""
    samples: int
    """Subsets of them that were ablated."""
    confidence: float
    """Of the bound."""
    bound: float | None
    """No node outside has an effect on the mean metric of this size or more; None where there are none."""
    share: float | None
    """The same as a share of the whole model's effect, m(full) - m(empty)."""
    node: str | None
    """The node with the largest bound."""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def missed_question(
    circuit: Circuit, samples: int = 200, seed: int = 0, confidence: float = 0.95
) -> Question[MissedEffects]:
    """Asks for a bound on the effects of the nodes of which the circuit keeps no edge.

    Raises ValueError for fewer than 10 subsets.
    """
    if samples < 10:
        raise ValueError(f"a bound on missed effects needs at least 10 subsets, not {samples}")
    topology = circuit.topology
    computed = np.array([bool(slots) for slots in topology.slots_of])  # `input` is no candidate
    outside = np.flatnonzero(computed & ~circuit.kept.any(1))
    rng = np.random.default_rng(seed)
    members = rng.random((samples if len(outside) else 0, len(outside))) < max(_SHARE, 2 / max(1, len(outside)))
    circuits = []
    for chosen in members:
        kept = topology.possible.copy()
        kept[outside[chosen]] = False
        circuits.append(Circuit(topology, kept))

    def read(measured: Measured) -> MissedEffects:
        if not len(outside):
            return MissedEffects(0, 0, confidence, None, None, None)
        effects = measured.full.mean() - measured.circuits.mean(1)
        bounds = effect_bounds(effects, members, confidence)
        worst = int(bounds.argmax())
        gap = abs(float(measured.full.mean() - measured.empty.mean()))
        bound = float(bounds[worst])
        share = bound / gap if gap else None
        return MissedEffects(len(outside), samples, confidence, bound, share, str(topology.sources[outside[worst]]))

    return Question(tuple(circuits), read)


def effect_bounds(
    effects: Float[np.ndarray, " sample"], members: Bool[np.ndarray, "sample element"], confidence: float
) -> Float[np.ndarray, " element"]:
    """By element, the smallest effect that a one-sided Welch test rejects at this confidence; inf where it cannot tell.

    effects: of subsets. members: which elements each subset holds.
    """
    from scipy.stats import t

    inside = members.astype(np.float64)
    effects = effects - effects.mean()  # squares of what is left lose no digits
    counts = np.stack([inside.sum(0), len(effects) - inside.sum(0)])
    told = (counts >= 2).all(0)
    counts = np.maximum(counts, 2)
    means = np.stack([effects @ inside, effects @ (1 - inside)]) / counts
    squares = np.stack([effects**2 @ inside, effects**2 @ (1 - inside)]) / counts - means**2
    errors = np.maximum(squares, 0) * counts / (counts - 1) / counts  # squared standard errors of the two means
    total = errors.sum(0)
    freedom = total**2 / np.maximum((errors**2 / (counts - 1)).sum(0), 1e-300)
    bounds = np.abs(means[0] - means[1]) + t.ppf(confidence, np.maximum(freedom, 1)) * np.sqrt(total)
    return np.where(told, bounds, np.inf)

"""The graph of many prompts: nodes and edges aligned over prompts, with how often and how strongly they occur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from graphs.label import Label
from graphs.node import EdgeId, NodeId
from graphs.pruned import same_fields

_NORMAL = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """What the pruned graphs of several prompts have in common; or, with two sides, how those of pairs of prompts differ.

    Tokens at one place are one node (`input@city`), whatever they are. A node or edge that a prompt's graph does not have
    counts as 0 there.
    """

    nodes: tuple[NodeId, ...]
    """Aligned nodes: positions are span names, or numbers where no spans were named."""
    edges: Int[np.ndarray, "edge 2"]
    """Places in `nodes` of source and target, by target, then by source."""
    sides: tuple[str, ...]
    """Names of the sets of prompts: one (`prompts`) or two (`clean`, `corrupt`)."""
    prompts: int
    """Number of prompts of each side: with two sides, of pairs."""
    node_counts: Int[np.ndarray, "side node"]
    """In how many prompts' graphs a node is."""
    edge_counts: Int[np.ndarray, "side edge"]
    """In how many an edge is."""
    influence: Float[np.ndarray, "side node"]
    """Mean influence over prompts."""
    shares: Float[np.ndarray, "side edge"]
    """Mean edge score over prompts, with the sign of the weight: share of the influence on the outputs."""
    weights: Float[np.ndarray, "side edge"]
    """Mean weight over prompts."""
    effect: Float[np.ndarray, " edge"]
    """Mean weight; with two sides, that of the first less that of the second."""
    stderr: Float[np.ndarray, " edge"]
    """Standard error of the effect over prompts, with two sides over pairs; NaN for a single prompt."""
    agreement: Float[np.ndarray, " edge"]
    """Share of the prompts with an effect other than 0 in which it has the effect's sign; NaN where there are none."""
    places: tuple[int | str, ...]
    """Positions or spans, in the order of the prompts."""
    layers: int
    """Number of layers of the model."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What inputs and outputs were in the prompts, by node name; hostile."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Texts by node name, for one place or all; hostile."""
    named: Mapping[str, Label] = field(default_factory=dict)
    """Labels with all that is known of them (role, scores, causal test), by node name without a position; hostile. `labels`
    decides what is shown where it has the node."""
    title: str = ""
    """One line; hostile."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Means over prompts of the graphs' scores, `{side}.{score}`; null where they have none."""

    @property
    def is_contrast(self) -> bool:
        """Whether two sides are compared."""
        return len(self.sides) == 2

    @property
    def edge_names(self) -> list[str]:
        """`source->target` of every edge."""
        return [str(EdgeId(self.nodes[source], self.nodes[target])) for source, target in self.edges.tolist()]

    def label(self, node: NodeId) -> str:
        """What a node is called: its label, else what it was in the prompts, else nothing."""
        named = self.labels.get(str(node)) or self.labels.get(str(node.at(None)))
        if not named and str(node.at(None)) in self.named:
            return self.named[str(node.at(None))].text
        return named or self.texts.get(str(node), "")

    def same_as(self, other: TaskGraph) -> bool:
        """Whether two graphs are equal in everything."""
        return same_fields(self, other)


def wilson(counts: Int[np.ndarray, "*n"], prompts: int) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Lower and upper end of the 95 % confidence interval of a frequency (Wilson 1927)."""
    if prompts < 1:
        raise ValueError("a frequency needs at least one prompt")
    share, square = counts / prompts, _NORMAL**2 / prompts
    middle = share + square / 2
    half = np.sqrt(square * share * (1 - share) + square**2 / 4)
    return np.maximum((middle - half) / (1 + square), 0.0), np.minimum((middle + half) / (1 + square), 1.0)

"""The attribution graph of one prompt: features, errors, tokens and targets, with every direct effect between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from graphs.node import NodeId

CONSTANTS = ("bias", "positional", "own")
"""Kinds of nodes that are constants of the local replacement model. They complete a row's sum; no influence flows to them."""


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Direct effects in a local replacement model (conventions, section 6): attention patterns and norm denominators frozen.

    Nodes stand in this order: features by layer, position and number; errors by layer and position; tokens by position;
    constants, where they were asked for; targets that are no features. Positions count the prompt's tokens from 0, the
    prepended one included.
    """

    nodes: tuple[NodeId, ...]
    """Every node of the unpruned graph, each at its position."""
    weights: csr_array
    """[target, source], both in the order of `nodes`, float32: what the source contributes to the target's pre-activation
    (or demeaned logit). Rows of errors, tokens and constants are empty. Columns ascend within a row."""
    absolute: Float[np.ndarray, " target"]
    """float64 sum of the absolute values of a row's effects from features, errors and tokens, before small ones were left
    out of `weights`."""
    rest: Float[np.ndarray, " target"]
    """float64 sum of the effects that were left out of a row of `weights`: with it a row still sums to what it did."""
    activations: Float[np.ndarray, " node"]
    """float32: a feature's activation, a target's pre-activation or demeaned logit; NaN for all others."""
    targets: Int[np.ndarray, " chosen"]
    """Places in `nodes` of what is explained: logits, differences of logits, or features."""
    target_weights: Float[np.ndarray, " chosen"]
    """How much each of them counts: a logit's probability, 1 for a chosen difference or feature."""
    token_ids: tuple[int, ...]
    """The prompt."""
    tokens: tuple[str, ...]
    """The prompt's tokens as text; hostile."""
    texts: Mapping[int, str] = field(default_factory=dict)
    """Vocabulary number -> text of the logits among the nodes; hostile."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, as JSON holds it: model, transcoders, share of each row that is stored, closure, validation."""

    def __post_init__(self) -> None:
        count = len(self.nodes)
        if self.weights.shape != (count, count) or any(
            len(values) != count for values in (self.absolute, self.rest, self.activations)
        ):
            raise ValueError(f"an attribution graph of {count} nodes has weights of shape {self.weights.shape}")
        if len(self.targets) != len(self.target_weights) or not len(self.targets):
            raise ValueError("an attribution graph needs at least one target, and a weight for each")

    @cached_property
    def index(self) -> dict[NodeId, int]:
        """Place of each node."""
        return {node: place for place, node in enumerate(self.nodes)}

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of each node."""
        return np.array([node.kind for node in self.nodes])

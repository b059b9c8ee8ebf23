"""Edge scores: one signed number per possible edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """What a method says of every edge. Positive: corrupting the edge hurts the metric."""

    topology: Topology
    """The graph that was scored."""
    values: Float[np.ndarray, "src dst"]
    """float32, NaN where no edge is possible; unit: the metric's, mean over examples."""
    method: str
    """The method's name, as users type it."""
    stderr: Float[np.ndarray, "src dst"] | None = None
    """Standard error of `values` over examples, where the method gives one."""

    partial: bool = False
    """True where only some edges have a score and the others are NaN: a circuit read from a file has its own edges'
    alone."""
    kept: Bool[np.ndarray, "src dst"] | None = None
    """The circuit that the method itself decides on, where it decides; chosen when no size is asked for."""
    exact: Bool[np.ndarray, "src dst"] | None = None
    """Where only some edges were really patched: True at those."""
    bound: Float[np.ndarray, "src dst"] | None = None
    """How far the values may be from exact patching's, where the method says so (0 at exact ones)."""
    rank_by: Float[np.ndarray, "src dst"] | None = None
    """What edges are selected by, where that is not `values`; float32, NaN where no edge is possible."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the method found, as JSON holds it: by short names, for run.json and summaries."""

    def __post_init__(self) -> None:
        if self.values.shape != self.topology.possible.shape:
            raise ValueError(f"scores have shape {self.values.shape}, the graph {self.topology.possible.shape}")
        if not self.partial and np.isnan(self.values[self.topology.possible]).any():
            raise ValueError(f"method {self.method} gave scores that are not numbers (NaN)")

    @property
    def ranking(self) -> Float[np.ndarray, "src dst"]:
        """What edges are selected by, signed: `rank_by` where there is one, else `values`."""
        return self.values if self.rank_by is None else self.rank_by

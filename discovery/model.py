"""The hinge: what every method needs of a model, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.metrics import Metric
from discovery.node_effects import NO_FIXES, Fixes, NodeEffects
from discovery.rules import PLAIN, Rules
from graphs.topology import Topology


@dataclass(frozen=True)
class Sublayer:
    """What one half of a block writes: all heads of its attention together, or its MLP."""

    kind: Literal["attention", "mlp"]
    """Which half."""
    layer: int
    """Block, counted from 0."""


@dataclass(frozen=True)
class Point:
    """A place on the line from an ablated value (alpha 0) to the clean one (alpha 1) where gradients are taken."""

    alpha: float
    """0 = ablated, 1 = clean."""
    weight: float
    """The gradient's share in the sum."""
    at: Sublayer | None = None
    """What is interpolated, everything after it following: `input` (None), or what a sublayer writes in the run on the clean
    prompt, which is a constant then, so that no gradient flows back through the sublayer."""


@runtime_checkable
class PatchableModel(Protocol):
    """A model seen as a graph whose edges can be scored and patched. Component and feature models both are."""

    @property
    def topology(self) -> Topology:
        """The graph."""
        ...

    def linearize(
        self, batch: Batch, metric: Metric, points: Sequence[Point], ablation: Ablation, rules: Rules = PLAIN
    ) -> Float[Tensor, "pair src dst"]:
        """For every pair and edge: (clean source - ablated source) . weighted mean gradient of the pair's metric at the slot.

        rules: what gradients count as constant. Zero where no edge is possible. float32, on the CPU. The mean over pairs
        at one point with alpha 1 is the EAP score.
        """
        ...

    def linearize_fixed(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes
    ) -> Float[Tensor, "pair src dst"]:
        """Like `linearize` on the clean run alone, with the fixes of AtP*."""
        ...

    def linearize_nodes(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes = NO_FIXES, neurons: bool = False
    ) -> NodeEffects:
        """For every pair: (clean - ablated) . gradient on the clean run of every source and every q, k and v vector.

        neurons: of every MLP's neurons too. Two forward passes and one backward pass without fixes.
        """
        ...

    def flow(self, batch: Batch, tau: float) -> Float[Tensor, "pair src dst"]:
        """Shares of what slots read on the clean prompts, along routes from the reads (`discovery.information_flow`)."""
        ...

    def run(
        self,
        batch: Batch,
        keep: Bool[Tensor, "*mask src dst"] | Float[Tensor, "*mask src dst"],
        ablation: Ablation,
    ) -> Float[Tensor, "*mask read vocab"]:
        """Logits at the batch's reads when slot inputs are ablated + sum over sources of keep * (this run's - ablated).

        keep: boolean or real (1 keeps, 0 drops); impossible edges are ignored; differentiable in a floating `keep`.
        """
        ...

    def full_logits(self, batch: Batch) -> Float[Tensor, "read vocab"]:
        """Logits of the untouched model on the clean prompts at the batch's reads (no gradients)."""
        ...

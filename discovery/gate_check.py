"""Features whose gradient misjudges them: a gate that opens or closes is a jump, and gradients do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from discovery.feature_model import FeatureModel
from discovery.methods.exact import edge_effects
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.scoring import OnBatch
from discovery.workload import Workload
from graphs.node import Kind
from graphs.scores import EdgeScores

Side = Literal["out", "in"]
_SMALL = 0.02
"""Effects below this share of the largest one are too small to matter."""


@dataclass(frozen=True)
class NodeCheck:
    """One side of one node: all edges that leave it, or all edges that it reads."""

    node: str
    """Its name."""
    side: Side
    """out: its value is ablated for every reader. in: all that it reads is ablated."""
    gradient: float
    """What the scores say: the sum over the edges of this side."""
    exact: float
    """m(full) - m(all edges of this side dropped), from runs of the model."""
    edges: int
    """Edges of this side."""
    flagged: bool
    """Whether the two differ in sign, or by more than the tolerance."""


@dataclass(frozen=True)
class GateReport:
    """What was checked, and what was re-scored."""

    checks: tuple[NodeCheck, ...]
    """Every side of every node that was looked at."""
    tolerance: float
    """A side is flagged when |gradient - exact| is more than this share of the larger of the two."""
    rescored: int
    """Edges whose scores are exact now."""

    @property
    def flagged(self) -> tuple[NodeCheck, ...]:
        """The sides where gradient and run disagree."""
        return tuple(check for check in self.checks if check.flagged)

    def to_json(self) -> dict[str, Any]:
        """What run.json says of it."""
        flagged = [{key: value for key, value in asdict(one).items() if key != "flagged"} for one in self.flagged]
        return {
            "checked": len(self.checks),
            "tolerance": self.tolerance,
            "rescored_edges": self.rescored,
            "flagged": flagged,
        }


def recheck(
    model: FeatureModel,
    workload: Workload,
    scores: EdgeScores,
    tolerance: float = 0.5,
    kinds: Sequence[Kind] = ("feature", "error"),
    on_batch: OnBatch | None = None,
) -> tuple[EdgeScores, GateReport]:
    """Scores from gradients, with the edges of misjudged nodes scored anew by exact patching.

    Each node is ablated once for all its readers and once for all that it reads, in real runs; a side whose effect
    differs from the sum of its edges' scores in sign, or by more than `tolerance` of the larger of the two, is flagged.
    Sides whose effects are under 2 % of the largest are left alone. Without heads in the graph only what nodes read is
    looked at: the effect of a node's value also flows through attention, where no edge holds its score. on_batch: given
    the pairs' own exact scores, where any edge is scored anew.
    """
    sides = [side for side in _sides(model, kinds) if model.heads or side[1] == "in"]
    gradient = np.array([float(scores.values[edges].sum(dtype=np.float64)) for _, _, edges in sides])
    exact = _ablated(model, workload, [edges for _, _, edges in sides])
    larger = np.maximum(np.abs(gradient), np.abs(exact))
    matters = larger > _SMALL * larger.max(initial=0.0)
    flags = matters & (np.abs(gradient - exact) > tolerance * larger)
    wanted = np.zeros_like(model.topology.possible)
    checks = []
    for (name, side, edges), said, found, flag in zip(sides, gradient, exact, flags, strict=True):
        checks.append(NodeCheck(name, side, float(said), float(found), int(edges.sum()), bool(flag)))
        if flag:
            wanted |= edges
    report = GateReport(tuple(checks), tolerance, int(wanted.sum()))
    return (_rescore(model, workload, scores, wanted, on_batch) if wanted.any() else scores), report


def _sides(model: FeatureModel, kinds: Sequence[Kind]) -> list[tuple[str, Side, Bool[np.ndarray, "src dst"]]]:
    """Node, side and the side's edges."""
    topology, found = model.topology, []
    for row, node in enumerate(topology.sources):
        if node.kind not in kinds:
            continue
        for side in ("out", "in"):
            edges = np.zeros_like(topology.possible)
            if side == "out":
                edges[row] = topology.possible[row]
            else:
                columns = list(topology.slots_of[row])
                edges[:, columns] = topology.possible[:, columns]
            found.append((str(node), side, edges))
    return found


def _ablated(
    model: FeatureModel, workload: Workload, dropped: Sequence[Bool[np.ndarray, "src dst"]]
) -> Float[np.ndarray, " side"]:
    """m(full) - m(these edges dropped), mean over pairs."""
    keep = (
        model.topology.possible & ~np.stack([*dropped])
        if dropped
        else np.zeros((0, *model.topology.possible.shape), bool)
    )
    effects = torch.zeros(len(keep), dtype=torch.float64)
    for batch in workload.batches:
        full, logits = full_metric(model, batch, workload.metric)
        size = auto_masks_per_run(batch, logits, len(model.topology.sources) + 1)
        values = patched_metric(model, batch, workload.metric, keep, workload.ablation, logits, size)
        effects += (full - values).sum(1) / workload.pair_count
    return effects.numpy()


def _rescore(
    model: FeatureModel,
    workload: Workload,
    scores: EdgeScores,
    wanted: Bool[np.ndarray, "src dst"],
    on_batch: OnBatch | None,
) -> EdgeScores:
    exact = edge_effects(model, workload, wanted, on_batch=on_batch)
    stderr = scores.stderr
    if stderr is not None and exact.stderr is not None:
        stderr = np.where(wanted, exact.stderr, stderr)
    return replace(scores, values=np.where(wanted, exact.values, scores.values), stderr=stderr)

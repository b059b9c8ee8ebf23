"""Edge Pruning (Bhaskar et al. 2024): hard-concrete masks over edges and nodes, learned down to a target sparsity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.hard_concrete import HardConcreteMasks
from discovery.joint_constants import constants_to_learn
from discovery.journal import Journal
from discovery.mask_start import Start, ranks_at_start
from discovery.mask_training import LearnedMasks, LearningOptions, TrainingPlan, train_masks
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, as_table
from discovery.workload import Workload
from graphs.prune import edge_count, select_top
from graphs.scores import EdgeScores

_NAME = "edge-masks"
_DRAWS = 16  # masks by which the sparsity at the start is measured


@dataclass(frozen=True)
class Options(LearningOptions):
    """What is learned, for how long, and to which size."""

    sparsity: float = 0.95
    """Share of the edges to be dropped in the end."""
    node_sparsity: float | None = None
    """Share of the nodes to be closed in the end; none: no constraint but the edges'."""
    multiplier_rate: float = 2.0
    """Learning rate of the multipliers that enforce the sparsity."""
    warmup: float = 0.8
    """Share of the steps in which the target sparsity rises, along a line, from that of the masks at the start."""
    start: Start = "eap-ig"
    """Method whose |scores| order the masks at the start; none: all alike."""
    log_alpha: float = 1.0
    """Mean log alpha of the edges at the start."""

    def __post_init__(self) -> None:
        self.check(_NAME, positive=("multiplier_rate",), shares=("sparsity", "node_sparsity", "warmup"))


class EdgePruning:
    """Masks, and two Lagrangians l1 * (s - target) + l2 * (s - target)^2 whose multipliers rise where s misses the target."""

    def __init__(self, masks: HardConcreteMasks, options: Options) -> None:
        self.hard_concrete = masks
        self._options = options
        self._targets = [target for target in (options.sparsity, options.node_sparsity) if target is not None]
        self._multipliers = torch.zeros(len(self._targets), 2, device=masks.edges.device, requires_grad=True)
        self._progress = 0.0
        with torch.no_grad():
            self._seen = self._first = self._sparsities(
                *masks.draw(_DRAWS, torch.Generator().manual_seed(options.seed))
            )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Masks are to lower the loss, multipliers to raise it."""
        masks = self.hard_concrete
        return [
            {"params": [masks.edges, masks.nodes], "lr": self._options.rate},
            {"params": [self._multipliers], "lr": self._options.multiplier_rate, "maximize": True},
        ]

    def begin(self, progress: float) -> float:
        """Moves the targets on; the rate rises over the first fifteenth of the steps and falls over the last 30 %."""
        self._progress = progress
        return min(1.0, 15 * progress + 1 / self._options.steps, (1.0 - progress) / 0.3)

    def masks(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "mask src dst"], Float[Tensor, ""]]:
        """Drawn masks, and the Lagrangians of their sparsities."""
        keep, nodes = self.hard_concrete.draw(count, generator)
        seen = self._sparsities(keep, nodes)
        self._seen = seen.detach()
        risen = min(1.0, self._progress / self._options.warmup) if self._options.warmup else 1.0
        away = seen - torch.lerp(self._first, torch.tensor(self._targets, device=seen.device), risen)
        return keep, (self._multipliers[:, 0] * away + self._multipliers[:, 1] * away.square()).sum()

    def _sparsities(
        self, keep: Float[Tensor, "mask src dst"], nodes: Float[Tensor, "mask node"]
    ) -> Float[Tensor, " target"]:
        """Of the edges, and of the nodes where they have a target."""
        edges = 1 - keep.sum() / (len(keep) * self.hard_concrete.edges.numel())
        return torch.stack([edges, 1 - nodes.mean()][: len(self._targets)])

    def shown(self) -> dict[str, str]:
        """Sparsity of edges, and of nodes where that has a target."""
        names = ("sparsity", "nodes")
        return {name: f"{value:.3f}" for name, value in zip(names, self._seen.tolist(), strict=False)}


def learn(
    model: PatchableModel, workload: Workload, options: Options | None = None, journal: Journal | None = None
) -> LearnedMasks:
    """Learns the masks; the circuit has as many of the most probable edges as the target sparsity leaves.

    With the ablation `optimal` its constants are learned together with the masks. journal: from which a run that was stopped
    goes on.
    """
    options = options or Options()
    plan = TrainingPlan(_NAME, options.steps, options.pairs, options.samples, options.loss, options.seed)
    masks = start_masks(model, workload, options)
    learner = EdgePruning(masks, options)
    constants = constants_to_learn(model, workload)
    train_masks(model, workload, learner, plan, constants, options.constants_rate, journal)
    topology = model.topology
    scores = EdgeScores(topology, as_table(masks.probabilities().cpu().numpy(), topology), _NAME)
    circuit = select_top(scores, edge_count(topology, 1 - options.sparsity))
    scores = replace(scores, kept=circuit.kept)
    return LearnedMasks(scores, workload.ablation if constants is None else constants.finished())


def start_masks(model: PatchableModel, workload: Workload, options: Options) -> HardConcreteMasks:
    """The masks before the first step: edges by rank of the scores of `options.start`, nodes as open as the best edge."""
    ranks = ranks_at_start(model, workload, options.start, _NAME)
    edges = options.log_alpha + options.spread * ranks
    return HardConcreteMasks(model.topology, edges, float(edges.max()), getattr(model, "device", None))


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """For every edge the probability that its mask and those of its nodes are open (0 to 1). on_batch is not called."""
    return learn(model, workload, options).scores

"""Uniform gradient sampling (Li and Janson 2024): how likely each edge is kept, from gradients at uniform coefficients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.joint_constants import constants_to_learn
from discovery.journal import Journal
from discovery.mask_start import Start, ranks_at_start
from discovery.mask_training import LearnedMasks, LearningOptions, TrainingPlan, train_masks
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, as_table
from discovery.workload import Workload
from graphs.prune import select_threshold
from graphs.scores import EdgeScores
from graphs.topology import Topology

_NAME = "uniform-gradients"


@dataclass(frozen=True)
class Options(LearningOptions):
    """What an edge costs, and how long is sampled."""

    penalty: float = 1e-3
    """Cost of a kept edge, in units of the loss (nats with kl): the smaller, the larger the circuit."""
    clip: float = 5.0
    """Largest norm of a step's gradient."""
    start: Start = "none"
    """Method whose |scores| order the probabilities at the start; none: all alike, as in the paper."""
    log_odds: float = 1.0
    """Mean log odds of keeping an edge at the start."""
    spread: float = 2.0
    """How far the best edge starts above the mean, and the worst below, by rank."""

    def __post_init__(self) -> None:
        self.check(_NAME, positive=("clip",))
        if self.penalty < 0:
            raise ValueError(f"method '{_NAME}': penalty must be 0 or more, not {self.penalty}")


def coefficients(log_odds: Float[Tensor, "*any"], uniform: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Coefficients of edges that are kept with probability p = sigmoid(log_odds): with probability p (1 - p) uniform
    between 0 and 1, else 1 or 0, with mean p.

    Their gradient by p is 1 / (p (1 - p)) where they are uniform, else 0. So the gradient of a loss by p is the mean of its
    slope over the whole line from 0 to 1: what keeping the edge changes, given the others' draws.
    """
    probability = torch.sigmoid(log_odds)
    window = (probability * (1 - probability)).detach()
    return ((probability - uniform) / window + 0.5).clamp(0, 1)


class UniformSampling:
    """Log odds of every possible edge."""

    def __init__(
        self, topology: Topology, start: Float[Tensor, "src dst"], options: Options, device: Any = None
    ) -> None:
        """start: log odds at the start."""
        self._topology = topology
        self._options = options
        possible = torch.from_numpy(topology.possible)
        self._rows, self._columns = (places.to(device) for places in possible.nonzero(as_tuple=True))
        self.log_odds = start[possible].to(device=device, dtype=torch.float32).clone().requires_grad_()
        self.log_odds.register_hook(self._clip)

    def _clip(self, gradient: Tensor) -> Tensor:
        return gradient * (self._options.clip / gradient.norm().clamp(min=self._options.clip))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """One group."""
        return [{"params": [self.log_odds], "lr": self._options.rate}]

    def begin(self, progress: float) -> float:
        """The rate is held for two thirds of the steps."""
        return min(1.0, 3 * (1 - progress))

    def masks(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "mask src dst"], Float[Tensor, ""]]:
        """Drawn coefficients, and the cost of the edges that are expected to be kept."""
        uniform = torch.rand((count, len(self.log_odds)), generator=generator).to(self.log_odds.device)
        keep = self._spread(coefficients(self.log_odds.expand(count, -1), uniform))
        return keep, self._options.penalty * torch.sigmoid(self.log_odds).sum()

    def shown(self) -> dict[str, str]:
        """How many edges are expected to be kept."""
        return {"edges": f"{float(torch.sigmoid(self.log_odds.detach()).sum()):.0f}"}

    def probabilities(self) -> Float[Tensor, "src dst"]:
        """How likely each edge is kept; 0 where none is possible."""
        with torch.no_grad():
            return self._spread(torch.sigmoid(self.log_odds)[None])[0]

    def _spread(self, edges: Float[Tensor, "mask edge"]) -> Float[Tensor, "mask src dst"]:
        whole = edges.new_zeros(len(edges), *self._topology.possible.shape)
        return whole.index_put((torch.arange(len(edges))[:, None], self._rows, self._columns), edges)


def learn(
    model: PatchableModel, workload: Workload, options: Options | None = None, journal: Journal | None = None
) -> LearnedMasks:
    """Learns the probabilities; the circuit has the edges that are kept more likely than not.

    With the ablation `optimal` its constants are learned together with them. journal: from which a run that was stopped goes
    on.
    """
    options = options or Options()
    plan = TrainingPlan(_NAME, options.steps, options.pairs, options.samples, options.loss, options.seed)
    ranks = ranks_at_start(model, workload, options.start, _NAME)
    start = options.log_odds + options.spread * ranks
    learner = UniformSampling(model.topology, start, options, getattr(model, "device", None))
    constants = constants_to_learn(model, workload)
    train_masks(model, workload, learner, plan, constants, options.constants_rate, journal)
    topology = model.topology
    scores = EdgeScores(topology, as_table(learner.probabilities().cpu().numpy(), topology), _NAME)
    scores = replace(scores, kept=select_threshold(scores, 0.5).kept)
    return LearnedMasks(scores, workload.ablation if constants is None else constants.finished())


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """For every edge how likely it is kept (0 to 1). on_batch is not called."""
    return learn(model, workload, options).scores

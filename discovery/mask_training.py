"""Learning masks by gradient descent through runs of the model: steps over pairs, checkpoints, a progress bar."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.batch_pieces import pieces
from discovery.journal import Journal
from discovery.learned_constants import LearnedConstants
from discovery.mask_checkpoint import from_checkpoint, to_checkpoint
from discovery.metrics import METRICS
from discovery.model import PatchableModel
from discovery.scoring import require_gradient
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.scores import EdgeScores

Loss = Literal["kl", "metric"]
"""kl: from the full model's next-token distribution, in nats; metric: distance of the task's metric from the full model's."""
_SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass(frozen=True)
class LearningOptions:
    """What every method that learns masks can be told."""

    steps: int = 300
    """Steps of Adam."""
    pairs: int = 4
    """Pairs of one step. Many masks on few pairs learn faster than one mask on many."""
    samples: int = 8
    """Masks drawn in one step; each is run on all of its pairs."""
    rate: float = 0.1
    """Learning rate of masks; falls to zero along a line towards the end."""
    spread: float = 3.0
    """How far the best edge starts above the mean, and the worst below, by rank."""
    loss: Loss = "kl"
    """kl: divergence from the full model; metric: distance of the task's metric from the full model's."""
    constants_rate: float = 0.05
    """With the ablation `optimal`: learning rate of its constants, in units of each source's spread."""
    seed: int = 0
    """Of the masks and of the order of the pairs."""

    def check(self, method: str, positive: Sequence[str] = (), shares: Sequence[str] = ()) -> None:
        """Raises ValueError naming an option that is out of range. positive, shares: further options, of the method's own."""
        for name in ("steps", "pairs", "samples", "rate", "spread", "seed", *positive, *shares):
            value, least = getattr(self, name), 1 if name in ("steps", "pairs", "samples") else 0
            if value is None:
                continue
            if name in shares and not 0 <= value < 1:
                raise ValueError(f"method '{method}': {name} must be at least 0 and below 1, not {value}")
            if name in ("rate", *positive) and not value > 0:
                raise ValueError(f"method '{method}': {name} must be above 0, not {value}")
            if value < least:
                raise ValueError(f"method '{method}': {name} must be {least} or more, not {value}")


@dataclass(frozen=True, eq=False)
class LearnedMasks:
    """What learning gives."""

    scores: EdgeScores
    """For every edge the probability that it is open; `kept` are those of the learned circuit."""
    ablation: Ablation
    """What dropped edges carry: the workload's ablation, or the constants that were learned with the masks."""

    @property
    def circuit(self) -> Circuit:
        """The edges that are kept."""
        assert self.scores.kept is not None
        return Circuit(self.scores.topology, self.scores.kept, self.scores)


@runtime_checkable
class Learner(Protocol):
    """Parameters of masks, how masks are drawn, and what sparsity costs."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Groups of Adam: `params`, `lr`, and `maximize` for multipliers."""
        ...

    def masks(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "mask src dst"], Tensor]:
        """Drawn masks, and what their sparsity costs now."""
        ...

    def begin(self, progress: float) -> float:
        """Called before each step with the share of steps that are done; gives the factor of the learning rates."""
        ...

    def shown(self) -> dict[str, str]:
        """What the progress bar shows besides the loss."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """How long and on what masks are learned."""

    method: str
    """The method's name, for messages and the progress bar."""
    steps: int
    """Steps of Adam."""
    pairs: int
    """Pairs of one step."""
    samples: int
    """Masks drawn in one step; all are run on all of its pairs."""
    loss: Loss
    """What is to stay small."""
    seed: int
    """Of the order of the pairs and of the masks."""


def train_masks(
    model: PatchableModel,
    workload: Workload,
    learner: Learner,
    plan: TrainingPlan,
    constants: LearnedConstants | None = None,
    constants_rate: float = 0.0,
    journal: Journal | None = None,
) -> None:
    """Changes the learner's parameters (and the constants) in `plan.steps` steps; goes on from what the journal holds.

    Every step has a seed of its own, so that a run that was stopped and one that was not end alike.
    """
    check_loss(workload, plan)
    groups = list(learner.groups)
    if constants is not None:
        groups.append({"params": constants.offsets, "lr": constants_rate})
    adam = torch.optim.Adam(groups)
    rates = [group["lr"] for group in adam.param_groups]
    content = None if journal is None else journal.read()
    done = 0 if content is None else from_checkpoint(content, adam, plan)
    saved = time.monotonic()
    order = _pairs_in_order(workload, plan, done)
    with tqdm(total=plan.steps, initial=done, desc=plan.method, unit="step", delay=1, leave=False) as bar:
        for step in range(done, plan.steps):
            factor = learner.begin(step / plan.steps)
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = _step(model, next(order), workload, learner, plan, constants, adam, step)
            bar.set_postfix({"loss": f"{loss:.4g}", **learner.shown()}, refresh=False)
            bar.update()
            if journal is not None and time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                journal.write(to_checkpoint(adam, plan, step + 1))
                saved = time.monotonic()


def check_loss(workload: Workload, plan: TrainingPlan) -> None:
    """Raises ValueError where there are no pairs, or the metric that is to be the loss has no gradient."""
    if not workload.pair_count:
        raise ValueError("there are no prompt pairs to score")
    if plan.loss == "metric":
        require_gradient(workload.metric, plan.method)


def _pairs_in_order(workload: Workload, plan: TrainingPlan, done: int) -> Iterator[Batch]:
    """Pieces of batches, every one once in each round, from step `done` on."""
    few = [piece for batch in workload.batches for piece in pieces(batch, plan.pairs)]
    first_round, skipped = divmod(done, len(few))
    number = first_round
    while True:
        order = random.Random(f"{plan.method}:{plan.seed}:{number}").sample(few, len(few))
        yield from order[skipped:]
        number, skipped = number + 1, 0


def _step(
    model: PatchableModel,
    batch: Batch,
    workload: Workload,
    learner: Learner,
    plan: TrainingPlan,
    constants: LearnedConstants | None,
    adam: torch.optim.Adam,
    step: int,
) -> float:
    """One step; gives the loss without the penalty."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    masks, penalty = learner.masks(plan.samples, generator)
    ablation = workload.ablation if constants is None else constants.current()
    logits = model.run(batch, masks, ablation)
    loss = _loss(logits, model.full_logits(batch), batch.to(logits.device), workload, plan)
    adam.zero_grad()
    (loss + penalty.to(loss.device)).backward()
    adam.step()
    return float(loss.detach())


def _loss(logits: Tensor, full: Tensor, batch: Batch, workload: Workload, plan: TrainingPlan) -> Float[Tensor, ""]:
    if plan.loss == "kl":
        return -METRICS["kl"].compute(logits, batch, full).mean()
    metric = workload.metric
    reference = full if metric.needs_reference else None
    return (metric.compute(logits, batch, reference) - metric.compute(full, batch, reference)).abs().mean()

"""Metrics over the answers of a batch: bigger is better, one number per pair.

All take the logits at the batch's reads, under any number of masks, and compute in float32 (float64 for such logits).
An answer of several tokens counts by the sum of its tokens' log-probabilities.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.batch import Batch
from discovery.task import BadTask


@dataclass(frozen=True)
class Metric:
    """A metric and what it needs."""

    name: str
    """As users type it."""
    compute: Callable[[Tensor, Batch, Tensor | None], Tensor]
    """(logits [*mask read vocab], batch, reference logits [read vocab] or None) -> [*mask pair]; bigger = better."""
    differentiable: bool = True
    """False for accuracy."""
    needs_reference: bool = False
    """True when `compute` needs the full model's logits (KL)."""
    flat_when_clean: bool = False
    """True when the gradient is zero at the clean point, so that one-point attribution says nothing (KL)."""
    summary: str = ""
    """One line for users."""


def logit_diff(
    logits: Float[Tensor, "*mask read vocab"], batch: Batch, reference: Tensor | None = None
) -> Float[Tensor, "*mask pair"]:
    """Mean logit of the right answers less that of the wrong ones; raises BadTask for a pair without either.

    Answers of several tokens count by their log-probability, and so do then all answers of the batch: for a pair whose
    answers are single tokens that is the same difference.
    """
    right = batch.candidate_right
    counts = [_per_pair(side.float(), batch) for side in (right, ~right)]
    _check_both_sides(batch, counts)
    if len(batch.step_token) == len(
        batch.candidate_pair
    ):  # single tokens only: no need to look at the whole vocabulary
        scores = _wide(logits[..., batch.step_read, batch.step_token])
        scores = torch.zeros_like(scores).index_copy(-1, batch.step_candidate, scores)
    else:
        scores = log_probabilities(logits, batch)
    share = torch.where(right, 1 / counts[0][batch.candidate_pair], -1 / counts[1][batch.candidate_pair])
    return _per_pair(scores * share.to(scores.dtype), batch)


_checked: weakref.WeakSet[Batch] = weakref.WeakSet()


def _check_both_sides(batch: Batch, counts: list[Float[Tensor, " pair"]]) -> None:
    """Once for a batch, since it means waiting for the device."""
    if batch not in _checked:
        if bool((torch.minimum(*counts) == 0).any()):
            raise BadTask(
                "metric logit-diff compares right with wrong answers, and a pair has none of one; use log-prob"
            )
        _checked.add(batch)


def prob_diff(
    logits: Float[Tensor, "*mask read vocab"], batch: Batch, reference: Tensor | None = None
) -> Float[Tensor, "*mask pair"]:
    """Summed probability of the right answers less that of the wrong ones (Hanna et al. 2023, for greater-than)."""
    probabilities = log_probabilities(logits, batch).exp()
    return _per_pair(torch.where(batch.candidate_right, probabilities, -probabilities), batch)


def log_prob(
    logits: Float[Tensor, "*mask read vocab"], batch: Batch, reference: Tensor | None = None
) -> Float[Tensor, "*mask pair"]:
    """Logarithm of the summed probability of the right answers."""
    scores, right, pair = log_probabilities(logits, batch), batch.candidate_right, batch.candidate_pair
    lowest = torch.finfo(scores.dtype).min
    known = torch.where(right, scores.detach().clamp(min=lowest), lowest)
    largest = known.new_full((*scores.shape[:-1], len(batch)), lowest)
    largest = largest.scatter_reduce(-1, pair.expand(scores.shape), known, "amax")
    # The inner choice keeps a wrong answer that is far likelier out of the exponential, where it would overflow.
    relative = torch.where(right, torch.where(right, scores - largest[..., pair], 0).exp(), 0)
    summed = torch.zeros_like(largest).index_add(-1, pair, relative)
    return summed.log() + largest


def negative_kl(
    logits: Float[Tensor, "*mask read vocab"], batch: Batch, reference: Float[Tensor, "read vocab"] | None = None
) -> Float[Tensor, "*mask pair"]:
    """Minus the Kullback-Leibler divergence of this run's next-token distribution from the full model's, in nats.

    Looks at each prompt's last token; `reference`: the full model's logits. At most 0, and 0 where the two agree.
    """
    if reference is None:
        raise ValueError("metric kl needs the full model's logits as reference")
    full = _wide(reference.to(logits.device)[batch.pair_read]).log_softmax(-1)
    here = _wide(logits[..., batch.pair_read, :]).log_softmax(-1)
    possible = full.exp() > 0
    # Tokens that the full model rules out (logit -inf) add nothing, whatever this run thinks of them.
    difference = torch.where(possible, full, 0) - torch.where(possible, here, 0)
    return -(full.exp() * difference).sum(-1)


def accuracy(
    logits: Float[Tensor, "*mask read vocab"], batch: Batch, reference: Tensor | None = None
) -> Float[Tensor, "*mask pair"]:
    """1 where the most likely continuation, over the whole vocabulary and token by token, is a right answer; else 0."""
    hits = (logits.argmax(-1)[..., batch.step_read] == batch.step_token).float()
    per_candidate = _per_candidate(hits, batch)
    lengths = _per_candidate(torch.ones_like(batch.step_token, dtype=torch.float32), batch)
    found = (per_candidate == lengths) & batch.candidate_right
    return (_per_pair(found.float(), batch) > 0).float()


def log_probabilities(logits: Float[Tensor, "*mask read vocab"], batch: Batch) -> Float[Tensor, "*mask candidate"]:
    """Log-probability of each candidate: the sum over its tokens, each read where it is due."""
    logits = _wide(logits)
    chosen = logits[..., batch.step_read, batch.step_token]
    return _per_candidate(chosen - logits.logsumexp(-1)[..., batch.step_read], batch)


def _wide(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _per_candidate(steps: Float[Tensor, "*mask step"], batch: Batch) -> Float[Tensor, "*mask candidate"]:
    zeros = steps.new_zeros((*steps.shape[:-1], len(batch.candidate_pair)))
    return zeros.index_add(-1, batch.step_candidate, steps)


def _per_pair(
    candidates: Float[Tensor, "*mask candidate"] | Bool[Tensor, "*mask candidate"], batch: Batch
) -> Float[Tensor, "*mask pair"]:
    zeros = candidates.new_zeros((*candidates.shape[:-1], len(batch)))
    return zeros.index_add(-1, batch.candidate_pair, candidates)


METRICS: dict[str, Metric] = {
    "logit-diff": Metric(
        "logit-diff", logit_diff, summary="mean logit of the right answers less that of the wrong ones"
    ),
    "prob-diff": Metric("prob-diff", prob_diff, summary="probability of the right answers less that of the wrong ones"),
    "log-prob": Metric("log-prob", log_prob, summary="logarithm of the right answers' summed probability"),
    "kl": Metric(
        "kl",
        negative_kl,
        needs_reference=True,
        flat_when_clean=True,
        summary="minus the KL divergence from the full model's next-token distribution",
    ),
    "accuracy": Metric(
        "accuracy", accuracy, differentiable=False, summary="1 where the most likely token is a right answer, else 0"
    ),
}
"""Every metric by the name that users type."""

"""Which rule describes best where a node fires, and what it may promise: learned from the windows that explain, alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from labelers.predicate import Predicate, merged
from labelers.rule_examples import Examples
from labelers.rule_search import search

_FOLDS = 3
"""Parts of the explaining documents, each of which tests what the others teach."""
_PRIOR = 4.0
"""Windows of each kind that every promise starts with, at chance."""
MAIN = 0.5
"""Share of what a rule explains from which its first branch is what the node does; below, it does several things."""


@dataclass(frozen=True)
class Choice:
    """A rule and what it promises."""

    predicate: Predicate
    """The rule."""
    value: float
    """Balanced accuracy that it may hope for on other documents."""
    main: float
    """Share of the windows that it explains which its first branch explains."""


def choose(examples: Examples) -> Choice | None:
    """The rule that is worth most; None where no word holds in enough windows."""
    found = search(examples)
    if not found:
        return None
    predicate = Predicate(merged([branch for branch, _ in found]))
    fires = ~examples.silent
    first = examples.text.any_in_window(predicate.branches[0].where(examples.text) & fires)
    every = examples.text.any_in_window(np.logical_or.reduce([mask for _, mask in found]) & fires)
    main = float(examples.weight[first].sum() / max(examples.weight[every].sum(), 1e-9))
    return Choice(predicate, promise(examples), main)


def promise(examples: Examples) -> float:
    """Balanced accuracy over the explaining windows where each is judged by what is learned from other documents.

    Few windows promise little: a few imagined ones of each kind are judged by chance.
    """
    fold = _folds(examples)
    holds = np.zeros(len(fold), dtype=bool)
    for number in range(_FOLDS):
        mine = fold == number
        if not mine.any() or not examples.positive[~mine].any():
            continue
        found = search(examples.some(~mine))
        if found:
            predicate = Predicate(tuple(branch for branch, _ in found))
            holds[mine] = predicate.holds_in([examples.text.windows[place] for place in np.flatnonzero(mine)])
    count = min(examples.positive.sum(), (~examples.positive).sum())
    return float((count * examples.accuracy(holds) + _PRIOR * 0.5) / (count + _PRIOR))


def _folds(examples: Examples) -> Int[np.ndarray, " window"]:
    """A part for each window; windows of one document share theirs."""
    _, first, document = np.unique(examples.documents, return_index=True, return_inverse=True)
    turn = np.empty_like(first)
    turn[np.argsort(first)] = np.arange(len(first)) % _FOLDS
    return turn[document]

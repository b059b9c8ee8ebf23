"""Which branches describe best where a node fires: one is added after the other, each for windows that none before explains.

A greedy cover as in RIPPER (Cohen 1995), over windows: a branch is worth the windows with a firing that it adds, less the
silent ones. Each branch is one rule, or two that hold at the same token, found by a beam search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from labelers.predicate import Atom, Branch
from labelers.rule_examples import Examples
from labelers.rules.rule import LEAST_SUPPORT
from labelers.rules.table import RULES

MOST = 12
"""Branches at most, before those that say the same are merged."""
_BEAM = 6
"""Atoms that a second one is looked for, by each measure."""
_LEAST_GAIN, _PRICE_OF_AN_ATOM = 0.025, 0.002
"""What a branch must add to recall less false alarms, and what its second atom costs."""
_ALARMS = 1.5
"""How much worse a false alarm is than a miss while branches are sought: none of them can be taken back by a later one."""
_SILENT_TOKENS = 0.5
"""Weight of silent tokens in windows that fire elsewhere: what the rate of false alarms at them makes of a whole window."""
_WORTH_KEEPING = 0.004
"""What a branch must still add to the balanced accuracy when all others are there."""
_Masks = Bool[np.ndarray, "single token"]


def search(examples: Examples) -> list[tuple[Branch, Bool[np.ndarray, " token"]]]:
    """The branches and where they hold, those that explain most windows first; none where nothing is worth it."""
    if not examples.positive.any():
        return []
    space = _Space(examples, *elementary(examples))
    covered = np.zeros(len(examples.positive), dtype=bool)
    found: list[tuple[int, ...]] = []
    while len(found) < MOST and len(space.names):
        best = space.best(covered)
        if best is None or best.gain < _LEAST_GAIN:
            break
        found.append(best.atoms)
        covered |= examples.text.any_in_window(space.where(best.atoms) & space.counts)
    masks = [space.where(atoms) for atoms in found]
    kept = _worth_keeping(examples, masks)
    weights = {place: space.recall(masks[place]) for place in kept}
    order = sorted(kept, key=lambda place: -weights[place])
    return [(space.branch(found[place]), masks[place]) for place in order]


def elementary(examples: Examples) -> tuple[list[tuple[str, str]], _Masks]:
    """Every rule with every single word that holds in enough windows where the node is active; of equal masks the first."""
    names: dict[bytes, tuple[str, str]] = {}
    masks: list[np.ndarray] = []
    active = ~examples.silent
    for rule, line in RULES.items():
        for word in line.words(examples.text, examples.fires):
            mask = line.where(examples.text, (word,))
            key = mask.tobytes()
            if key not in names and np.count_nonzero(examples.text.any_in_window(mask & active)) >= LEAST_SUPPORT:
                names[key] = (rule, word)
                masks.append(mask)
    return list(names.values()), np.array(masks, dtype=bool).reshape(len(masks), len(examples.values))


@dataclass(frozen=True, eq=False)
class _Partial:
    """Atoms that hold together, and what they are worth."""

    atoms: tuple[int, ...]
    """Sorted."""
    counted: Int[np.ndarray, " place"]
    """Tokens of uncovered windows where they hold."""
    silent: Int[np.ndarray, " quiet"]
    """Silent tokens of windows that fire, where they hold."""
    gain: float = 0.0
    """What the branch would add."""
    sound: float = 0.0
    """Its recall times the square of its precision: what a further atom may make good."""


@dataclass(frozen=True, eq=False)
class _Space:
    """Everything that a branch may be made of."""

    examples: Examples
    names: Sequence[tuple[str, str]]
    masks: _Masks

    @cached_property
    def counts(self) -> Bool[np.ndarray, " token"]:
        """Tokens that say whether a window is explained: active ones, and all of windows without a firing."""
        return ~self.examples.silent | ~self.examples.positive[self.examples.window]

    @cached_property
    def _price(self) -> float:
        examples = self.examples
        return _ALARMS * _SILENT_TOKENS * len(examples.values) / len(examples.positive) / max(1, examples.silent.sum())

    def where(self, atoms: tuple[int, ...]) -> Bool[np.ndarray, " token"]:
        """At which tokens all of them hold."""
        return np.logical_and.reduce(self.masks[list(atoms)])

    def branch(self, atoms: tuple[int, ...]) -> Branch:
        """What they say."""
        return Branch(tuple(Atom(self.names[atom][0], (self.names[atom][1],)) for atom in atoms))

    def recall(self, mask: Bool[np.ndarray, " token"]) -> float:
        """Share of the windows with a firing that a mask explains."""
        hit = self.examples.text.any_in_window(mask & self.counts)
        return float(self.examples.weight[hit & self.examples.positive].sum())

    def best(self, covered: Bool[np.ndarray, " window"]) -> _Partial | None:
        """The branch that adds most to what is covered."""
        live = self.counts & ~covered[self.examples.window]
        quiet = self.examples.silent & self.examples.positive[self.examples.window]
        singles = list(self._extended(_Partial((), np.flatnonzero(live), np.flatnonzero(quiet)), 0.0))
        by_gain = sorted(singles, key=lambda one: -one.gain)[:_BEAM]
        by_sound = sorted(singles, key=lambda one: -one.sound)[:_BEAM]
        beam = {one.atoms: one for one in (*by_gain, *by_sound)}.values()
        pairs = [pair for one in beam for pair in self._extended(one, _PRICE_OF_AN_ATOM)]
        return max((*by_gain[:1], *pairs), key=lambda one: (one.gain, -len(one.atoms)), default=None)

    def _extended(self, partial: _Partial, price: float) -> Iterator[_Partial]:
        """The most promising branches with one more atom, by gain and by soundness."""
        examples = self.examples
        if not len(partial.counted):
            return
        windows, starts = np.unique(examples.window[partial.counted], return_index=True)
        hits = np.logical_or.reduceat(self.masks[:, partial.counted], starts, axis=1).astype(np.float64)
        fire, weight = examples.positive[windows], examples.weight[windows]
        recall, alarms = hits @ (weight * fire), hits @ (weight * ~fire)
        gain = recall - _ALARMS * alarms - self._price * self.masks[:, partial.silent].sum(1) - price
        gain = gain.round(9)  # sums of another order, on another machine, must not decide between equals
        gain[hits @ fire < LEAST_SUPPORT] = -np.inf
        sound = np.where(np.isfinite(gain), recall * (recall / np.maximum(recall + alarms, 1e-9)) ** 2, 0.0).round(9)
        for atom in dict.fromkeys((*_largest(gain), *_largest(sound))):
            if atom not in partial.atoms and np.isfinite(gain[atom]):
                mask = self.masks[atom]
                counted, silent = partial.counted[mask[partial.counted]], partial.silent[mask[partial.silent]]
                atoms = tuple(sorted((*partial.atoms, atom)))
                yield _Partial(atoms, counted, silent, float(gain[atom]), float(sound[atom]))


def _largest(values: Float[np.ndarray, " single"]) -> list[int]:
    return np.argsort(-values, kind="stable")[:_BEAM].tolist()


def _worth_keeping(examples: Examples, masks: Sequence[Bool[np.ndarray, " token"]]) -> list[int]:
    """Which branches the others do not make superfluous: the least useful goes first."""
    windows = [examples.text.any_in_window(mask) for mask in masks]
    kept = list(range(len(masks)))

    def accuracy(without: int | None) -> float:
        held = [windows[place] for place in kept if place != without]
        return examples.accuracy(np.logical_or.reduce(held))

    while len(kept) > 1:
        least = max(kept, key=accuracy)
        if accuracy(least) < accuracy(None) - _WORTH_KEEPING:
            break
        kept.remove(least)
    return kept

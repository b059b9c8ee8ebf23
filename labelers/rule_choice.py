"""Which rule describes best where a node fires: learned from the windows that explain it, never from those that score it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from graphs.evidence import Context
from labelers.predicate import Atom, Predicate
from labelers.rules.rule import Mask
from labelers.rules.table import RULES
from labelers.text import Text

FIRES = 0.25
"""A token counts as firing from this share of its window's peak on."""
_BEAM = 8
"""Atoms that a second one is looked for."""
_PRICE_OF_A_WORD, _PRICE_OF_AN_ATOM = 0.01, 0.05
"""What a rule must gain in balanced accuracy to deserve another word, or another atom."""
_LEAST_SUPPORT = 2
"""Windows in which a word of a rule must hold: what was seen once is not a rule."""

POSITIVE = ("top", "spread")
_WEIGHT = {"top": 0.5, "spread": 1.0}


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows in which a node fires and windows in which it does not."""

    text: Text
    """The windows."""
    fires: Mask
    """Tokens at which it fires."""
    silent: Mask
    """Tokens at which it does not; between the two are weak activations, which count as neither."""
    positive: Bool[np.ndarray, " window"]
    """Windows in which it fires."""
    weight: Float[np.ndarray, " fired"]
    """How much each of the positive windows counts; sums to 1."""

    @staticmethod
    def of(contexts: Sequence[Context]) -> Examples:
        """The examples that some windows give."""
        fires, silent = [], []
        for context in contexts:
            values = np.abs(np.array(context.activations, dtype=np.float64))
            peak = values.max(initial=0.0) if context.kind in POSITIVE else np.inf
            fires.append((values >= FIRES * peak) & (peak > 0))
            silent.append(values == 0 if context.kind in POSITIVE else np.ones(len(values), dtype=bool))
        positive = np.array([context.kind in POSITIVE for context in contexts], dtype=bool)
        text = Text(tuple(context.tokens for context in contexts))
        weight = np.array([_WEIGHT.get(context.kind, 0.0) for context in contexts])[positive]
        return Examples(text, np.concatenate(fires), np.concatenate(silent), positive, weight / weight.sum())

    @cached_property
    def length(self) -> float:
        """Mean tokens of a window."""
        return len(self.text.tokens) / len(self.text.windows)

    def recalled(self, masks: Bool[np.ndarray, "*mask token"]) -> Bool[np.ndarray, "*mask window"]:
        """In which positive windows a mask holds where the node fires."""
        return self.text.any_in_window(masks & self.fires)[..., self.positive]

    def value(self, masks: Bool[np.ndarray, "*mask token"]) -> Float[np.ndarray, "*mask"]:
        """Balanced accuracy that a rule with these masks may hope for on other windows.

        Windows without a firing are few. The share of them in which the rule holds is therefore averaged with what its
        rate at all silent tokens makes of a whole window, and both start from one imagined false alarm.
        """
        recall = self.recalled(masks) @ self.weight
        negative = self.text.any_in_window(masks)[..., ~self.positive]
        alarms = (negative.sum(-1) + 0.5) / (negative.shape[-1] + 1)
        rate = ((masks & self.silent).sum(-1) + 0.5) / (self.silent.sum() + 1)
        expected = 1 - (1 - rate) ** self.length
        return (recall + 1 - (alarms + expected) / 2) / 2


@dataclass(frozen=True, eq=False)
class Choice:
    """A rule and what it promises."""

    predicate: Predicate
    """The rule."""
    value: float
    """Balanced accuracy that it may hope for, from the explaining windows."""
    price: float
    """What its length costs."""

    @property
    def worth(self) -> float:
        """What rules are compared by."""
        return self.value - self.price


def choose(examples: Examples) -> Choice | None:
    """The rule that is worth most; None where no word holds in enough windows."""
    singles = _elementary(examples)
    if not singles:
        return None
    masks = np.stack([mask for _, mask in singles])
    names = [name for name, _ in singles]
    everywhere = np.ones(len(examples.text.tokens), dtype=bool)
    found = list(_unions(examples, names, masks, everywhere, ()))
    for first in _promising(examples, found):
        held = first.predicate.where(examples.text)
        found += _unions(examples, names, masks, held, first.predicate.atoms)
    return max(found, key=lambda choice: choice.worth, default=None)


def _elementary(examples: Examples) -> list[tuple[tuple[str, str], Mask]]:
    """Every rule with every single word that holds in enough windows at a token where the node fires."""
    result = []
    for rule, line in RULES.items():
        for word in line.words(examples.text, examples.fires):
            mask = line.where(examples.text, (word,))
            if examples.recalled(mask).sum() >= _LEAST_SUPPORT:
                result.append(((rule, word), mask))
    return result


def _promising(examples: Examples, found: Sequence[Choice]) -> list[Choice]:
    """What a second atom may improve: the worthiest, and those that miss least whatever their false alarms."""

    def recall(choice: Choice) -> float:
        return float(examples.recalled(choice.predicate.where(examples.text)).mean())

    by_worth = sorted(found, key=lambda choice: -choice.worth)
    by_recall = sorted(found, key=lambda choice: (-min(recall(choice), 0.9), -choice.worth))
    return list(dict.fromkeys((*by_worth[:_BEAM], *by_recall[:_BEAM])))


def _unions(
    examples: Examples,
    names: Sequence[tuple[str, str]],
    masks: Bool[np.ndarray, "single token"],
    held: Mask,
    atoms: tuple[Atom, ...],
) -> Iterator[Choice]:
    """For each rule the sets of words that grow from the best one, a word at a time, within `held`."""
    inside = masks & held
    for rule, line in RULES.items():
        mine = np.array([place for place, name in enumerate(names) if name[0] == rule], dtype=np.int64)
        if any(atom.rule == rule for atom in atoms) or not len(mine):
            continue
        chosen: list[int] = []
        union, best = np.zeros_like(held), -np.inf
        while len(chosen) < line.most:
            values = examples.value(union | inside[mine])
            place = int(values.argmax())
            if values[place] <= best + _PRICE_OF_A_WORD:
                break
            best = float(values[place])
            chosen.append(int(mine[place]))
            union = union | inside[mine[place]]
            words = tuple(names[number][1] for number in chosen)
            price = _PRICE_OF_A_WORD * (len(words) - 1) + _PRICE_OF_AN_ATOM * len(atoms)
            yield Choice(Predicate((*atoms, Atom(rule, words))), best, price)

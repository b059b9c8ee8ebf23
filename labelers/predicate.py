"""What a rule label claims, as something that can be checked on text: written in `Label.rule`, read back from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphs.label import LONGEST
from labelers.rules.rule import Mask
from labelers.rules.table import RULES
from labelers.text import Text

_AND, _OR = " & ", " | "


class BadPredicate(ValueError):
    """A text that is not a predicate."""


@dataclass(frozen=True)
class Atom:
    """One rule with its words: it holds at a token if it does for any of them."""

    rule: str
    """Name of a rule."""
    words: tuple[str, ...]
    """What it is about; hostile."""

    def __str__(self) -> str:
        return f"{self.rule}:{json.dumps(list(self.words))}"

    def where(self, text: Text) -> Mask:
        """At which tokens it holds."""
        return RULES[self.rule].where(text, self.words)

    @property
    def text(self) -> str:
        """A name of at most four words."""
        return RULES[self.rule].say(self.words)


@dataclass(frozen=True)
class Branch:
    """Atoms that must all hold at one token."""

    atoms: tuple[Atom, ...]
    """At least one."""

    def __str__(self) -> str:
        return _AND.join(map(str, self.atoms))

    def where(self, text: Text) -> Mask:
        """At which tokens it holds."""
        return np.logical_and.reduce([atom.where(text) for atom in self.atoms])

    @property
    def text(self) -> str:
        """A name of a few words."""
        return " ".join(atom.text for atom in sorted(self.atoms, key=lambda atom: RULES[atom.rule].order))


@dataclass(frozen=True)
class Predicate:
    """Branches of which one must hold at a token. `Predicate.parse(str(predicate)) == predicate`."""

    branches: tuple[Branch, ...]
    """At least one, the most important first."""

    def __str__(self) -> str:
        return _OR.join(map(str, self.branches))

    @staticmethod
    def parse(text: str) -> Predicate:
        """The predicate that a label's rule says. Raises BadPredicate for any other text."""
        branches: list[tuple[Atom, ...]] = []
        atoms, rest = (), text
        while True:
            atom, rest = _atom(rest, text)
            atoms = (*atoms, atom)
            if rest.startswith(_AND):
                rest = rest.removeprefix(_AND)
                continue
            branches.append(atoms)
            if not rest:
                return Predicate(tuple(map(Branch, branches)))
            if not rest.startswith(_OR):
                raise _bad(text)
            atoms, rest = (), rest.removeprefix(_OR)

    def where(self, text: Text) -> Mask:
        """At which tokens it holds."""
        return np.logical_or.reduce([branch.where(text) for branch in self.branches])

    def holds_in(self, windows: Sequence[tuple[str, ...]]) -> np.ndarray:
        """In which windows it holds somewhere."""
        text = Text(tuple(windows))
        return text.any_in_window(self.where(text))

    @property
    def text(self) -> str:
        """A name of at most `LONGEST` words: the first branch, and what else fits; `…` stands for the others."""
        words, shown = self.branches[0].text.split(), 1
        for branch in self.branches[1:]:
            more = ["or", *branch.text.split()]
            last = shown + 1 == len(self.branches)
            if len(words) + len(more) > LONGEST - (not last):
                break
            words, shown = words + more, shown + 1
        return " ".join([*words, *(["…"] if shown < len(self.branches) else [])][:LONGEST])


def merged(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Fewer branches that say the same: two that differ in the words of one atom become one with both words."""
    found: list[Branch] = []
    for branch in branches:
        one = next((place for place, other in enumerate(found) if _joined(other, branch)), None)
        if one is None:
            found.append(branch)
        else:
            found[one] = _joined(found[one], branch) or branch
    return tuple(found) if len(found) == len(branches) else merged(found)


def _joined(one: Branch, other: Branch) -> Branch | None:
    if [atom.rule for atom in one.atoms] != [atom.rule for atom in other.atoms]:
        return None
    differ = [place for place, (mine, theirs) in enumerate(zip(one.atoms, other.atoms)) if mine != theirs]
    if len(differ) > 1:
        return None
    atoms = list(one.atoms)
    for place in differ:
        words = (*atoms[place].words, *other.atoms[place].words)
        atoms[place] = Atom(atoms[place].rule, tuple(dict.fromkeys(words)))
    return Branch(tuple(atoms))


def _atom(text: str, whole: str) -> tuple[Atom, str]:
    """The atom that a text begins with, and what stands behind it."""
    name, _, rest = text.partition(":")
    try:
        words, end = json.JSONDecoder().raw_decode(rest)
    except (ValueError, RecursionError):
        raise _bad(whole) from None
    if name not in RULES or not isinstance(words, list) or not words:
        raise _bad(whole)
    if not all(isinstance(word, str) for word in words):
        raise _bad(whole)
    return Atom(name, tuple(words)), rest[end:]


def _bad(text: str) -> BadPredicate:
    return BadPredicate(f"{text[:60]!r} is not a rule that can be checked on text")

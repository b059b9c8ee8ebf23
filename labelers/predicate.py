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

_AND = " & "


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
class Predicate:
    """Atoms that must all hold at one token. `Predicate.parse(str(predicate)) == predicate`."""

    atoms: tuple[Atom, ...]
    """At least one."""

    def __str__(self) -> str:
        return _AND.join(map(str, self.atoms))

    @staticmethod
    def parse(text: str) -> Predicate:
        """The predicate that a label's rule says. Raises BadPredicate for any other text."""
        atoms, rest = [], text
        while rest or not atoms:
            name, _, rest = rest.partition(":")
            try:
                words, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                raise _bad(text) from None
            if name not in RULES or not isinstance(words, list) or not words:
                raise _bad(text)
            if not all(isinstance(word, str) for word in words):
                raise _bad(text)
            atoms.append(Atom(name, tuple(words)))
            rest = rest[end:]
            if rest and (not rest.startswith(_AND) or rest == _AND):
                raise _bad(text)
            rest = rest.removeprefix(_AND)
        return Predicate(tuple(atoms))

    def where(self, text: Text) -> Mask:
        """At which tokens it holds."""
        return np.logical_and.reduce([atom.where(text) for atom in self.atoms])

    def holds_in(self, windows: Sequence[tuple[str, ...]]) -> np.ndarray:
        """In which windows it holds somewhere."""
        text = Text(tuple(windows))
        return text.any_in_window(self.where(text))

    @property
    def text(self) -> str:
        """A name of at most `LONGEST` words."""
        ordered = sorted(self.atoms, key=lambda atom: RULES[atom.rule].order)
        return " ".join(" ".join(atom.text for atom in ordered).split()[:LONGEST])


def _bad(text: str) -> BadPredicate:
    return BadPredicate(f"{text[:60]!r} is not a rule that can be checked on text")

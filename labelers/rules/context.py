"""A word that stands shortly before it, or anywhere before it in the window."""

from __future__ import annotations

from labelers.rules.rule import Mask, Rule, quoted, seen_before
from labelers.text import Text


def _within(reach: int, say: str) -> Rule:
    def where(text: Text, words: tuple[str, ...]) -> Mask:
        return text.recently(text.is_one_of(words), reach)

    def words(text: Text, at: Mask) -> list[str]:
        return seen_before(text, at, reach)

    return Rule(where, words, lambda chosen: f"{say} {quoted(chosen)}", order=2)


SOON = _within(5, "soon after")
LATER = _within(32, "somewhere after")

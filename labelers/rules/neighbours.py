"""The tokens next to it: the one before, the one before that, and the one that follows."""

from __future__ import annotations

from labelers.rules.rule import Mask, Rule, quoted, seen
from labelers.text import Text


def _at(offset: int, say: str) -> Rule:
    def where(text: Text, words: tuple[str, ...]) -> Mask:
        return text.shifted(text.is_one_of(words), offset)

    def words(text: Text, at: Mask) -> list[str]:
        return seen(text, text.shifted(at, -offset))

    return Rule(where, words, lambda chosen: f"{say} {quoted(chosen)}", order=1)


BEFORE = _at(-1, "after")
TWO_BEFORE = _at(-2, "two after")
NEXT = _at(1, "before")

"""Templates filled in so that each slot's place is known: the spans of built-in tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from discovery.task import PromptPair, Range, Span


@dataclass(frozen=True)
class Filled:
    """A text, and where in it the slots are."""

    text: str
    """The filled template."""
    slots: Mapping[str, Range]
    """Slot -> first and last character (not included); of a slot that stands twice the second one is `NAME2`."""


def fill(template: str, **values: object) -> Filled:
    """`template.format(**values)`, with the places of the slots."""
    text, slots, seen = "", {}, Counter()
    for literal, name, form, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            written = format(values[name], form or "")
            seen[name] += 1
            slots[name if seen[name] == 1 else f"{name}{seen[name]}"] = (len(text), len(text) + len(written))
            text += written
    return Filled(text, slots)


def spanned_pair(
    clean: Filled,
    corrupt: Filled,
    answers: tuple[str, ...],
    wrong_answers: tuple[str, ...],
    spans: Mapping[str, str] | None = None,
) -> PromptPair:
    """The pair of two filled templates. spans: slot -> name of its span; None: every slot under its own name."""
    named = {slot: slot for slot in clean.slots} if spans is None else spans
    marked = tuple(Span(name, clean.slots[slot], corrupt.slots[slot]) for slot, name in named.items())
    return PromptPair(clean.text, corrupt.text, answers, wrong_answers, marked)

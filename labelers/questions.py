"""What a judge of labels is asked: windows of held-out text, never activations, and what counts as an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from graphs.label import Label

Test = Literal["detection", "fuzzing", "intruder"]
"""detection: does the node fire somewhere in the window? fuzzing: are the marked tokens those where it fires?
intruder: one window is not like the others; which?"""


@dataclass(frozen=True)
class Window:
    """A piece of text and nothing else: a judge cannot see what it must guess."""

    tokens: tuple[str, ...]
    """Texts of the tokens; hostile."""
    marked: frozenset[int] = frozenset()
    """Places of the marked tokens; empty in detection and intruder questions."""


@dataclass(frozen=True)
class Question:
    """One test of one label."""

    label: Label
    """The label that is tested: its text, description and rule; hostile."""
    test: Test
    """What is asked."""
    windows: tuple[Window, ...]
    """What it is asked about."""


@runtime_checkable
class Judge(Protocol):
    """Whoever answers: a language model, or a rule's own predicate."""

    def answer(self, questions: Sequence[Question]) -> Sequence[Sequence[float | None]]:
        """For each question a number for each of its windows, from 0 (no) to 1 (yes); None where a reply could not be read.

        intruder: the numbers of a question say how likely each window is the intruder, and sum to 1 (or are all None).
        """
        ...

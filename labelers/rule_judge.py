"""The judge that needs no language model: a rule label's own predicate, applied to the text that it is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labelers.predicate import BadPredicate, Predicate
from labelers.questions import Question
from labelers.text import Text


class RuleJudge:
    """Answers for labels whose rule can be checked on text; cannot tell (None) for all others."""

    def answer(self, questions: Sequence[Question]) -> list[list[float | None]]:
        """See `labelers.questions.Judge`."""
        return [_answer(question) for question in questions]


def _answer(question: Question) -> list[float | None]:
    try:
        predicate = Predicate.parse(question.label.rule)
    except BadPredicate:
        return [None] * len(question.windows)
    text = Text(tuple(window.tokens for window in question.windows))
    holds = predicate.where(text)
    if question.test == "fuzzing":
        marked = np.zeros_like(holds)
        for start, window in zip(text.starts, question.windows):
            marked[[start + place for place in window.marked]] = True
        return text.any_in_window(holds & marked).astype(float).tolist()
    found = text.any_in_window(holds).astype(float)
    if question.test == "intruder":
        odd = 1 - found if not found.all() else np.ones_like(found)
        return (odd / odd.sum()).tolist()
    return found.tolist()

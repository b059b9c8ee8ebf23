"""A task: prompt pairs and the metric that says how well a model does on them. Knows nothing of tokens or torch."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

DEFAULT_METRIC = "logit-diff"
_log = logging.getLogger(__name__)

Prompt = TypeVar("Prompt", str, tuple[int, ...])
Answer = TypeVar("Answer", str, tuple[int, ...])


class BadTask(ValueError):
    """A task, file, row or field that cannot be used: one line that names it and says what to do."""


Range = tuple[int, int]
"""Start and stop, from 0, the stop not included."""
GAPS = ("bos", "start", "end", "answer_tokens")
"""Spans that need no entry: tokens put in front, tokens before the first span, the last token, and an answer's tokens."""
_SPAN_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Span:
    """A named part of both prompts of a pair. Raises BadTask for a bad name or range."""

    name: str
    """Letters, digits and _, as after the @ of a node."""
    clean: Range
    """Its place in the clean prompt."""
    corrupt: Range | None = None
    """Its place in the corrupt prompt; None: the same tokens as in the clean prompt, which must be equally long."""
    unit: Literal["characters", "tokens"] = "characters"
    """What places count. Tokens are those of the prompt alone, without BOS or chat template."""

    def __post_init__(self) -> None:
        if not _SPAN_NAME.fullmatch(self.name):
            raise BadTask(f"{self.name!r} is no name for a span: use letters, digits and _, and begin with a letter")
        if self.name in GAPS or self.name.startswith("after_"):
            raise BadTask(f"the span name {self.name!r} is taken ({', '.join(GAPS)}, after_...): use another")
        for place in (self.clean, self.corrupt):
            if place is not None and not 0 <= place[0] < place[1]:
                raise BadTask(f"span {self.name!r}: {list(place)} is no range: give [start, stop] with start < stop")


@dataclass(frozen=True)
class PromptPair(Generic[Prompt, Answer]):
    """A prompt and its counterfactual, as text or as token ids, and what should and should not follow the prompt.

    Text prompts may have answers as token ids (EAP-IG's files); prompts of token ids have answers of token ids.
    Raises BadTask for empty prompts or answers, for text mixed with ids, and where a right answer is a wrong one too.
    """

    clean: Prompt
    """The prompt."""
    corrupt: Prompt
    """The counterfactual prompt, as a rule as many tokens long."""
    answers: tuple[Answer, ...]
    """Right continuations of `clean`: texts, or the token ids of each."""
    wrong_answers: tuple[Answer, ...]
    """Continuations that the metric counts against the model (what `corrupt` asks for, as a rule). May be empty for
    metrics that look at right answers only."""
    spans: tuple[Span, ...] = ()
    """Named parts that do not overlap, for graphs with spans."""

    def __post_init__(self) -> None:
        as_text = isinstance(self.clean, str)
        if isinstance(self.corrupt, str) != as_text:
            raise BadTask("clean and corrupt must both be text or both token ids")
        if not self.clean or not self.corrupt:
            raise BadTask(f"{'corrupt' if self.clean else 'clean'} is empty: give a prompt")
        if not self.answers:
            raise BadTask("answers is empty: give at least one right answer")
        kinds = {isinstance(answer, str) for answer in (*self.answers, *self.wrong_answers)}
        if len(kinds) > 1:
            raise BadTask("answers and wrong_answers mix text and token ids: use one of the two")
        if kinds == {True} and not as_text:
            raise BadTask("the prompts are token ids but the answers are text: give the answers as token ids too")
        if not all((*self.answers, *self.wrong_answers)):
            raise BadTask("an answer is empty: leave it out or give its text")
        both = set(self.answers) & set(self.wrong_answers)
        if both:
            raise BadTask(f"{min(both)!r} is among both answers and wrong_answers: it can only be one of them")
        self._check_spans()

    def _check_spans(self) -> None:
        names = [span.name for span in self.spans]
        for name in names:
            if names.count(name) > 1:
                raise BadTask(f"two spans are called {name!r}: give each a name of its own")
        for side, prompt in (("clean", self.clean), ("corrupt", self.corrupt)):
            placed = [(span, place) for span in self.spans if (place := getattr(span, side)) is not None]
            for span, place in placed:
                if place[1] > len(prompt) and (span.unit == "characters") == isinstance(prompt, str):
                    raise BadTask(f"span {span.name!r}: {list(place)} lies outside the {side} prompt")
            ordered = sorted(placed, key=lambda one: one[1])
            for (one, first), (other, second) in pairwise(ordered):
                if one.unit == other.unit and second[0] < first[1]:
                    raise BadTask(f"spans {one.name!r} and {other.name!r} overlap in the {side} prompt")


@dataclass(frozen=True)
class Task:
    """Prompt pairs and what is measured on them."""

    name: str
    """Short name, for titles."""
    pairs: tuple[PromptPair, ...]
    """The pairs, in their source's order."""
    metric: str = DEFAULT_METRIC
    """Name of the metric (a key of `discovery.metrics.METRICS`) that fits the task."""
    rows: tuple[int, ...] = ()
    """Number of each pair's data row in its source, from 1; empty: the pairs are numbered as they stand."""
    held_out: tuple[PromptPair, ...] = ()
    """Pairs whose combinations (of names, of facts) the source keeps out of `pairs`; `split` takes them where there are
    any."""
    corrupt_answers: Callable[[PromptPair], tuple[Any, ...]] | None = None
    """Right continuations of a pair's corrupt prompt; None: its wrong answers."""

    def row(self, index: int) -> int:
        """The source's row number (from 1) of `pairs[index]`."""
        return self.rows[index] if self.rows else index + 1

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


def split(task: Task, holdout: float, seed: int = 0) -> tuple[Task, Task]:
    """(train, held-out): a `holdout` share (0 <= share < 1) of the pairs is kept for evaluation. Same seed, same split.

    With 0 both are the whole task. Where the task brings held-out pairs of its own (built-in generators do), the
    held-out part is drawn from those; else the pairs are shuffled and divided. Both keep their source's order, and
    neither is empty. Raises BadTask where the share is out of range or one pair would have to be divided.
    """
    if not 0 <= holdout < 1:
        raise BadTask(f"holdout must be at least 0 and less than 1, not {holdout}")
    if holdout == 0:
        return task, task
    total = len(task.pairs)
    if total < 2:
        raise BadTask(f"task {task.name} has {total} pair, too few to hold some out: use --holdout 0 or more pairs")
    count = min(max(round(holdout * total), 1), total - 1)
    order = list(range(total))
    random.Random(f"split:{seed}").shuffle(order)
    train = _subset(task, order[count:])
    if not task.held_out:
        return train, _subset(task, order[:count])
    if len(task.held_out) < count:
        _log.warning("task %s has only %d held-out pairs (%d wanted)", task.name, len(task.held_out), count)
    own = list(range(len(task.held_out)))
    random.Random(f"held-out:{seed}").shuffle(own)
    chosen = tuple(task.held_out[i] for i in sorted(own[:count]))
    return train, replace(task, pairs=chosen, rows=(), held_out=())


def _subset(task: Task, indices: list[int]) -> Task:
    kept = sorted(indices)
    pairs, rows = tuple(task.pairs[i] for i in kept), tuple(task.row(i) for i in kept)
    return replace(task, pairs=pairs, rows=rows, held_out=())

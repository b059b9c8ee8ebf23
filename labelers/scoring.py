"""Is a name any good? Held-out windows are put before a judge who sees the label and the text, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from graphs.evidence import Context, Evidence
from graphs.label import Label, Score
from graphs.node import NodeId
from labelers.causal_test import judged
from labelers.draws import draw
from labelers.output_test import output_score
from labelers.questions import Judge, Question, Test, Window
from labelers.rule_examples import FIRES, POSITIVE

LabelTest = Test | Literal["output"]
"""What a judge is asked, or `output`: what steering the node did to the tokens that the label predicts."""
TESTS: tuple[LabelTest, ...] = ("detection", "fuzzing", "intruder", "output")
_INTRUDED = 5
"""Windows of an intruder question; chance is one in this many."""


class LeakedDocuments(ValueError):
    """Evidence whose scoring windows come from documents that also explain."""


@dataclass(frozen=True)
class ScoreSettings:
    """How labels are tested."""

    tests: tuple[LabelTest, ...] = TESTS
    """Which tests."""
    baseline: bool = True
    """Whether every question is asked again with another node's label: what any label at all would get. Twice the cost."""
    resamples: int = 1000
    """Bootstrap resamples of a score's windows."""
    seed: int = 0
    """Of marks, intruders, shuffled labels and resamples."""


@dataclass(frozen=True)
class _Asked:
    """A question and what is true."""

    question: Question
    truth: tuple[bool, ...]
    """detection: fires; fuzzing: rightly marked; intruder: is the intruder."""


def score_labels(
    labels: Mapping[NodeId, Label],
    evidence: Mapping[NodeId, Evidence],
    judge: Judge,
    settings: ScoreSettings | None = None,
) -> dict[NodeId, Label]:
    """The labels with their scores, and with their causal tests done. Labels that abstain are tested causally alone.

    A score's value is a balanced accuracy (intruder: the share of intruders found, chance 1/5), with a 95 % bootstrap
    interval over windows, and the same with another node's label as `baseline`. Windows that the judge could not tell are
    in `unparsed`. No score where nothing could be told. Raises LeakedDocuments naming the node whose explaining and scoring
    windows share a document.
    """
    settings = settings or ScoreSettings()
    for item in evidence.values():
        check_disjoint(item)
    tested = [node for node, label in labels.items() if node in evidence and not label.abstain]
    asked = [(node, item) for node in tested for item in _questions(labels[node], evidence[node], settings)]
    answers = judge.answer([item.question for _, item in asked])
    swapped = _swapped(labels, tested, settings.seed) if settings.baseline else {}
    again = [(node, item) for node, item in asked if node in swapped]
    shuffled = judge.answer([replace(item.question, label=swapped[node]) for node, item in again]) if again else []
    baseline = _by_test(again, shuffled)
    result = dict(labels)
    for (node, test), pairs in _by_test(asked, answers).items():
        score = _score(test, pairs, baseline.get((node, test)), settings, str(node))
        if score is not None:
            result[node] = replace(result[node], scores={**result[node].scores, test: score})
    if "output" in settings.tests:
        for node in tested:
            score = output_score(labels[node], evidence[node], settings.resamples, settings.seed)
            if score is not None:
                result[node] = replace(result[node], scores={**result[node].scores, "output": score})
    return {node: judged(label, evidence[node]) if node in evidence else label for node, label in result.items()}


def check_disjoint(evidence: Evidence) -> None:
    """Raises LeakedDocuments where a document both explains and scores."""
    explain = {item.document for item in (*evidence.of("explain"), *evidence.examples)}
    shared = explain & {context.document for context in evidence.of("score")}
    if shared:
        raise LeakedDocuments(
            f"{evidence.node}: document {min(shared)} both explains and scores: collect evidence anew"
        )


def _swapped(labels: Mapping[NodeId, Label], tested: Sequence[NodeId], seed: int) -> dict[NodeId, Label]:
    """Another node's label for each node: a random circle through all, so that none keeps its own."""
    if len(tested) < 2:
        return {}
    order = [tested[place] for place in draw(seed, "shuffle").permutation(len(tested))]
    return {node: labels[other] for node, other in zip(order, (*order[1:], order[0]))}


def _questions(label: Label, evidence: Evidence, settings: ScoreSettings) -> list[_Asked]:
    contexts = [context for context in evidence.of("score") if context.tokens]
    rng = draw(settings.seed, "questions", str(label.node))
    contexts = [contexts[place] for place in rng.permutation(len(contexts))]
    positive = [context for context in contexts if context.kind in POSITIVE]
    negative = [context for context in contexts if context.kind not in POSITIVE]
    if not positive or not negative:
        return []
    asked: list[_Asked] = []
    if "detection" in settings.tests:
        windows = tuple(Window(context.tokens) for context in contexts)
        truth = tuple(context.kind in POSITIVE for context in contexts)
        asked.append(_Asked(Question(label, "detection", windows), truth))
    if "fuzzing" in settings.tests:
        asked += _fuzzing(label, positive, rng)
    if "intruder" in settings.tests:
        asked += _intruders(label, positive, negative, rng)
    return asked


def _fuzzing(label: Label, positive: Sequence[Context], rng: np.random.Generator) -> list[_Asked]:
    """Every window rightly marked and wrongly marked, in two questions, so that no question shows a window twice."""
    marks = []
    for context in positive:
        values = np.abs(np.array(context.activations))
        right = np.flatnonzero(values >= FIRES * values.max())
        silent = np.flatnonzero(values == 0)
        wrong = rng.choice(silent, min(len(right), len(silent)), replace=False)
        if len(wrong):
            marks.append((context.tokens, frozenset(right.tolist()), frozenset(wrong.tolist())))
    asked = []
    for turn in (0, 1) if len(marks) > 1 else ():
        truth = tuple((place + turn) % 2 == 0 for place in range(len(marks)))
        windows = tuple(Window(tokens, right if true else wrong) for (tokens, right, wrong), true in zip(marks, truth))
        asked.append(_Asked(Question(label, "fuzzing", windows), truth))
    return asked


def _intruders(
    label: Label, positive: Sequence[Context], negative: Sequence[Context], rng: np.random.Generator
) -> list[_Asked]:
    """One question for every negative window, among positive ones drawn anew, at a random place."""
    asked = []
    for intruder in negative if len(positive) >= _INTRUDED - 1 else ():
        others = [positive[place] for place in rng.choice(len(positive), _INTRUDED - 1, replace=False)]
        place = int(rng.integers(_INTRUDED))
        windows = [Window(context.tokens) for context in others]
        windows.insert(place, Window(intruder.tokens))
        truth = tuple(number == place for number in range(_INTRUDED))
        asked.append(_Asked(Question(label, "intruder", tuple(windows)), truth))
    return asked


_Pairs = list[tuple[bool, float | None]]


def _by_test(
    asked: Sequence[tuple[NodeId, _Asked]], answers: Sequence[Sequence[float | None]]
) -> dict[tuple[NodeId, Test], _Pairs]:
    """What was true and what was answered, by node and test. An intruder question counts once: the weight on the intruder."""
    result: dict[tuple[NodeId, Test], _Pairs] = {}
    for (node, item), answer in zip(asked, answers, strict=True):
        pairs = list(zip(item.truth, answer, strict=True))
        if item.question.test == "intruder":
            pairs = [pair for pair in pairs if pair[0]]
        result.setdefault((node, item.question.test), []).extend(pairs)
    return result


def _score(test: Test, pairs: _Pairs, shuffled: _Pairs | None, settings: ScoreSettings, name: str) -> Score | None:
    value = _value(test, pairs)
    if value is None:
        return None
    baseline = None if shuffled is None else _value(test, shuffled)
    low, high = _interval(test, pairs, settings, name)
    told = sum(answer is not None for _, answer in pairs)
    rounded = [None if number is None else round(number, 4) for number in (low, high, baseline)]
    return Score(round(value, 4), *rounded, examples=told, unparsed=len(pairs) - told)


def _groups(test: Test, pairs: _Pairs) -> list[Float[np.ndarray, " window"]]:
    """How right the answers are, by what is true: balanced accuracy is the mean of the groups' means."""
    hit = [
        (truth, answer if test == "intruder" else float((answer >= 0.5) == truth))
        for truth, answer in pairs
        if answer is not None
    ]
    kinds = (True,) if test == "intruder" else (True, False)
    return [np.array([value for truth, value in hit if truth == kind]) for kind in kinds]


def _value(test: Test, pairs: _Pairs) -> float | None:
    groups = _groups(test, pairs)
    return float(np.mean([group.mean() for group in groups])) if all(map(len, groups)) else None


def _interval(test: Test, pairs: _Pairs, settings: ScoreSettings, name: str) -> tuple[float | None, float | None]:
    """95 % interval over resamples of the windows, drawn within each group."""
    if settings.resamples < 1:
        return None, None
    rng = draw(settings.seed, "bootstrap", test, name)
    means = [
        group[rng.integers(len(group), size=(settings.resamples, len(group)))].mean(1) for group in _groups(test, pairs)
    ]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)

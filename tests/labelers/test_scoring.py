"""Scores of labels: a perfect judge gets 1, a blind one chance, and nothing but held-out text reaches either."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from graphs.evidence import Context, ContextKind, Evidence
from graphs.label import Label
from graphs.node import NodeId
from labelers.questions import Question
from labelers.rule_judge import RuleJudge
from labelers.scoring import LeakedDocuments, ScoreSettings, score_labels

KINDS: tuple[ContextKind, ...] = ("spread", "negative")


def token_feature(number: int) -> tuple[Label, Evidence]:
    """A feature that fires at ` x<number>`, and the label that says so."""
    rng, contexts = random.Random(number), []
    for place in range(40):
        kind, split = KINDS[place % 2], "score" if place < 20 else "explain"
        tokens = [f" w{rng.randrange(30)}" for _ in range(12)]
        activations = [0.0] * 12
        if kind == "spread":
            at = rng.randrange(12)
            tokens[at], activations[at] = f" x{number}", 2.0
        contexts.append(Context(f"c{place}", kind, split, place, 0, tuple(tokens), tuple(activations)))
    node = NodeId("feature", 0, number)
    return Label(node, f"x{number}", "detects", "rules", rule=f'token:[" x{number}"]'), Evidence(
        node, "m", tuple(contexts)
    )


LABELS = {label.node: label for label, _ in map(token_feature, range(6))}
EVIDENCE = {evidence.node: evidence for _, evidence in map(token_feature, range(6))}


class Watching:
    """Keeps what it was asked; answers as told."""

    def __init__(self, answer: float | None) -> None:
        self.told = answer
        self.asked: list[Question] = []

    def answer(self, questions: Sequence[Question]) -> list[list[float | None]]:
        self.asked += questions
        return [[self.told] * len(question.windows) for question in questions]


def test_right_labels_are_right_and_shuffled_ones_are_chance() -> None:
    for label in score_labels(LABELS, EVIDENCE, RuleJudge()).values():
        detection, fuzzing, intruder = (label.scores[test] for test in ("detection", "fuzzing", "intruder"))
        assert detection.value == fuzzing.value == intruder.value == 1
        assert (detection.low, detection.high, detection.examples, detection.unparsed) == (1, 1, 20, 0)
        assert detection.baseline == fuzzing.baseline == 0.5
        assert intruder.baseline == pytest.approx(0.2)


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_a_judge_who_always_says_the_same_gets_chance(told: float) -> None:
    settings = ScoreSettings(tests=("detection", "fuzzing"))
    for label in score_labels(LABELS, EVIDENCE, Watching(told), settings).values():
        assert {score.value for score in label.scores.values()} == {0.5}


def test_what_cannot_be_told_is_no_score() -> None:
    assert all(not label.scores for label in score_labels(LABELS, EVIDENCE, Watching(None)).values())


def test_unparsed_answers_are_counted_apart() -> None:
    class HalfDeaf(RuleJudge):
        def answer(self, questions: Sequence[Question]) -> list[list[float | None]]:
            return [[None, None, *answers[2:]] for answers in super().answer(questions)]

    settings = ScoreSettings(tests=("detection",))
    for label in score_labels(LABELS, EVIDENCE, HalfDeaf(), settings).values():
        score = label.scores["detection"]
        assert (score.value, score.examples, score.unparsed) == (1, 18, 2)


def test_judges_see_held_out_text_and_each_window_once_a_question() -> None:
    judge = Watching(1.0)
    score_labels(LABELS, EVIDENCE, judge, ScoreSettings(baseline=False))
    for question in judge.asked:
        held_out = {context.tokens: context for context in EVIDENCE[question.label.node].of("score")}
        windows = [window.tokens for window in question.windows]
        assert set(windows) <= set(held_out) and len(set(windows)) == len(windows)
        assert bool(question.test == "fuzzing") == all(window.marked for window in question.windows)
        kinds = [held_out[window].kind for window in windows]
        assert kinds.count("negative") == {"detection": 10, "fuzzing": 0, "intruder": 1}[question.test]
    held_out = {context.tokens: context for evidence in EVIDENCE.values() for context in evidence.of("score")}
    orders = [[held_out[window.tokens].kind for window in q.windows] for q in judge.asked if q.test == "intruder"]
    assert len({kinds.index("negative") for kinds in orders}) > 1


def test_marks_are_right_in_one_question_and_wrong_in_the_other() -> None:
    judge = Watching(1.0)
    score_labels(LABELS, EVIDENCE, judge, ScoreSettings(tests=("fuzzing",), baseline=False))
    for node, evidence in EVIDENCE.items():
        context = {item.tokens: item for item in evidence.of("score")}
        right: dict[tuple[str, ...], list[bool]] = {}
        for question in judge.asked:
            for window in question.windows if question.label.node == node else ():
                active = {place for place, value in enumerate(context[window.tokens].activations) if value}
                assert window.marked == active or not window.marked & active
                right.setdefault(window.tokens, []).append(window.marked == active)
        assert len(right) == 10 and all(sorted(both) == [False, True] for both in right.values())


def test_a_document_that_explains_and_scores_is_refused() -> None:
    node, evidence = next(iter(EVIDENCE.items()))
    leaked = replace(evidence.contexts[0], document=evidence.contexts[-1].document)
    with pytest.raises(LeakedDocuments, match=f"{node}: document"):
        score_labels(
            LABELS, {**EVIDENCE, node: replace(evidence, contexts=(leaked, *evidence.contexts[1:]))}, RuleJudge()
        )


def test_labels_that_abstain_are_not_asked_about() -> None:
    judge = Watching(1.0)
    silent = {node: replace(label, abstain=True) for node, label in LABELS.items()}
    assert score_labels(silent, EVIDENCE, judge) == silent
    assert not judge.asked


def test_the_interval_is_the_bootstraps() -> None:
    """For a judge that is right in 7 of 10 and 9 of 10 windows: the quantiles of sums of binomials."""

    class Wrong(RuleJudge):
        def answer(self, questions: Sequence[Question]) -> list[list[float | None]]:
            result = []
            for answers in super().answer(questions):
                fires = [n for n, a in enumerate(answers) if a]
                silent = [n for n, a in enumerate(answers) if not a]
                flipped = {*fires[:3], *silent[:1]}
                result.append([1 - a if n in flipped and a is not None else a for n, a in enumerate(answers)])
            return result

    scored = score_labels(
        LABELS, EVIDENCE, Wrong(), ScoreSettings(tests=("detection",), baseline=False, resamples=4000)
    )
    rng = np.random.default_rng(0)
    drawn = (rng.binomial(10, 0.7, 100_000) + rng.binomial(10, 0.9, 100_000)) / 20
    low, high = np.quantile(drawn, [0.025, 0.975])
    for label in scored.values():
        score = label.scores["detection"]
        assert score.value == pytest.approx(0.8)
        assert score.low == pytest.approx(low, abs=0.051) and score.high == pytest.approx(high, abs=0.051)
    assert score_labels(LABELS, EVIDENCE, Wrong()) == score_labels(LABELS, EVIDENCE, Wrong())


def test_labels_at_random_get_chance_and_most_intervals_hold_it() -> None:
    labels, evidence = {}, {}
    for number in range(40):
        rng, node = random.Random(number), NodeId("feature", 1, number)
        contexts = []
        for place in range(40):
            tokens = tuple(f" w{rng.randrange(30)}" for _ in range(12))
            fires = tuple(float(at == place % 12) if place % 2 else 0.0 for at in range(12))
            contexts.append(Context(f"c{place}", KINDS[1 - place % 2], "score", place, 0, tokens, fires))
        words = ", ".join(f'" w{word}"' for word in rng.sample(range(30), 2))
        labels[node] = Label(node, "words", "detects", "rules", rule=f"token:[{words}]")
        evidence[node] = Evidence(node, "m", tuple(contexts))
    for test, chance in (("detection", 0.5), ("fuzzing", 0.5), ("intruder", 0.2)):
        settings = ScoreSettings(tests=(test,), resamples=300)  # type: ignore[arg-type]
        scores = [label.scores[test] for label in score_labels(labels, evidence, RuleJudge(), settings).values()]
        assert np.mean([score.value for score in scores]) == pytest.approx(chance, abs=0.04)
        assert np.mean([score.baseline for score in scores]) == pytest.approx(chance, abs=0.04)
        held = [score.low - 1e-9 <= chance <= score.high + 1e-9 for score in scores]  # type: ignore[operator]
        assert np.mean(held) >= 0.75 and min(score.low for score in scores) < chance  # type: ignore[type-var,operator]

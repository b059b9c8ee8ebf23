"""The output test: labels that predict what steering raises get 1, labels at random chance, and nothing counts as zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphs.evidence import Evidence, SteeredToken, Steering
from graphs.label import Label, Role
from graphs.node import NodeId
from labelers.output_test import output_score, predicted, tokens_to_steer
from labelers.rule_judge import RuleJudge
from labelers.scoring import ScoreSettings, score_labels

VOCABULARY = [f" w{number}" for number in range(50)]


def label_of(number: int, tokens: tuple[str, ...], role: Role = "promotes") -> Label:
    return Label(NodeId("feature", 0, number), "say something", role, "rules", rule="next", predicts=tokens)


def evidence_of(label: Label, changes: np.ndarray, tokens: tuple[str, ...]) -> Evidence:
    """Steering with these changes of the logits [prompt vocab], told for some tokens."""
    told = []
    for token in tokens:
        if token in VOCABULARY:
            own = changes[:, VOCABULARY.index(token)]
            above = (changes < own[:, None]).sum(1) / (len(VOCABULARY) - 1)
            told.append(SteeredToken(token, float(own.mean()), tuple(above.tolist())))
    return Evidence(label.node, "m", steering=Steering(2.0, 1.0, len(changes), (), (), tuple(told)))


def scored(labels: list[Label], changes: list[np.ndarray]) -> dict[NodeId, Label]:
    named = {label.node: label for label in labels}
    wanted = tokens_to_steer(named, seed=0)
    evidence = {
        label.node: evidence_of(label, change, wanted.get(label.node, ())) for label, change in zip(labels, changes)
    }
    return score_labels(named, evidence, RuleJudge(), ScoreSettings(tests=("output",)))


@pytest.mark.parametrize("role", ["promotes", "suppresses"])
def test_right_predictions_get_one_and_other_labels_tokens_chance(role: Role) -> None:
    rng, labels, changes = np.random.default_rng(0), [], []
    for number in range(12):
        own = (VOCABULARY[2 * number], VOCABULARY[2 * number + 1])
        change = rng.normal(size=(8, 50))
        change[:, [2 * number, 2 * number + 1]] += 20 if role == "promotes" else -20
        labels.append(label_of(number, own, role))
        changes.append(change)
    found = [label.scores["output"] for label in scored(labels, changes).values()]
    assert all(score.value > 0.98 and score.low is not None and score.low > 0.97 for score in found)
    assert np.mean([score.baseline for score in found]) == pytest.approx(0.5, abs=0.03)
    assert all((score.examples, score.unparsed) == (16, 0) for score in found)


def test_labels_at_random_get_chance_and_their_intervals_hold_it() -> None:
    rng, labels, changes = np.random.default_rng(1), [], []
    for number in range(60):
        labels.append(label_of(number, tuple(rng.choice(VOCABULARY, 3, replace=False).tolist())))
        changes.append(rng.normal(size=(1, 50)) + 0.3 * rng.normal(size=(8, 50)))  # prompts are alike, as they are
    found = [label.scores["output"] for label in scored(labels, changes).values()]
    assert np.mean([score.value for score in found]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([score.baseline for score in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([score.low <= 0.5 <= score.high for score in found if score.low and score.high]) > 0.6


def test_tokens_that_the_model_does_not_have_are_counted_apart() -> None:
    label = label_of(0, (" w3", "no such token"))
    changes = np.zeros((4, 50))
    changes[:, 3] = 1
    score = scored([label], [changes])[label.node].scores["output"]
    assert (score.value, score.examples, score.unparsed, score.baseline) == (1.0, 4, 1, None)
    nothing = label_of(0, ("no such token",))
    assert "output" not in scored([nothing], [changes])[nothing.node].scores
    assert output_score(label, Evidence(label.node, "m"), 100, 0) is None


@pytest.mark.parametrize(
    ("label", "tokens"),
    [
        (Label(NodeId("mlp", 0), "say she", "promotes", "gpt"), ("she",)),
        (Label(NodeId("mlp", 0), 'promotes "Paris","Rome",…', "promotes", "gpt"), ("Paris", "Rome")),
        (Label(NodeId("mlp", 0), "lowers words for animals", "suppresses", "gpt"), ("animals",)),
        (Label(NodeId("mlp", 0), "fires at she", "detects", "gpt"), ()),
        (Label(NodeId("head", 0, 1), "copy suppression head", "suppresses", "rules", rule="head:copy"), ()),
        (Label(NodeId("mlp", 0), "say she", "promotes", "gpt", abstain=True), ()),
        (Label(NodeId("mlp", 0), "say she", "promotes", "gpt", predicts=(" her",)), (" her",)),
    ],
    ids=["words", "quoted", "suppressed", "detects", "rule", "abstains", "told"],
)
def test_what_a_label_predicts(label: Label, tokens: tuple[str, ...]) -> None:
    assert predicted(label) == tokens


def test_only_labels_that_predict_are_steered_and_compared_with_the_others_tokens() -> None:
    one, two = label_of(0, (" a", " b")), label_of(1, (" b", " c"))
    other = replace(label_of(2, ()), role="detects", text='" d" or "e"', rule="token")
    wanted = tokens_to_steer({label.node: label for label in (one, two, other)}, seed=0)
    assert wanted[one.node][:2] == (" a", " b") and set(wanted[one.node][2:]) == {" c", " d", "e"}
    assert other.node not in wanted

"""Evidence and labels on disk: equal when read back, and every wrong field named."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from graphs.evidence import (
    AttentionPair,
    CausalEffect,
    Context,
    Evidence,
    Example,
    HeadEvidence,
    Neighbour,
    TokenEffect,
)
from graphs.evidence_json import evidence_from_json, evidence_to_json, labels_from_json, labels_to_json
from graphs.label import Expectation, Label, Score
from graphs.node import NodeId

NODE = NodeId.parse("a1.h2")
HOSTILE = '</script>"\n\x00\u2028\ud800<|im_end|>'
FULL = Evidence(
    NODE,
    "model",
    contexts=(Context("c0", "top", "explain", 3, 17, ("a", HOSTILE), (0.0, -0.1), HOSTILE, 0.25),),
    examples=(Example(4, ("b", HOSTILE), (1,), (0.25,)), Example(4, ("b",), hard=True)),
    density=0.01,
    windows=4,
    documents={"explain": 5, "score": 6},
    promotes=(TokenEffect(HOSTILE, 1.5),),
    causal=(CausalEffect("ablate", "ioi", "logit-diff", 3.0, 1.0, 0.1, 64),),
    inputs=(Neighbour(NodeId.parse("f0.3"), -2.0, "name"),),
    head=HeadEvidence({"induction": 0.5}, 1.0, 0.2, (AttentionPair("p0", ("x", "y"), "x", 1, 0.9),), qk=("it",)),
    flow_share=0.5,
)
LABEL = Label(
    NODE,
    "moves names",
    "moves",
    "rules",
    cites=("p0",),
    confidence=0.5,
    abstain=True,
    expects=Expectation("ablate", "down", 0.4, True),
    scores={"detection": Score(0.9, 0.8, 1.0, 0.5, 20, 1)},
)


def test_evidence_reads_back_equal() -> None:
    assert evidence_from_json(evidence_to_json(FULL)) == FULL
    bare = Evidence(NODE, "model")
    assert evidence_from_json(evidence_to_json(bare)) == bare


def test_every_field_is_written() -> None:
    """A field that is added to Evidence or Label is written without a change here."""
    for kind, made, data in (
        (Evidence, FULL, json.loads(evidence_to_json(FULL))),
        (Label, LABEL, json.loads(labels_to_json([LABEL]))["labels"][0]),
    ):
        for field in dataclasses.fields(kind):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            assert (field.name in data) == (getattr(made, field.name) != default)


def test_labels_read_back_equal_in_their_order() -> None:
    other = dataclasses.replace(LABEL, node=NodeId.parse("f1.7"), text=HOSTILE.replace("\n", ""))
    read = labels_from_json(labels_to_json([LABEL, other], {"failures": {"m0": "no reply"}}))
    assert list(read.labels.values()) == [LABEL, other]
    assert read.facts == {"failures": {"m0": "no reply"}}
    assert labels_from_json(labels_to_json([])).labels == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "'version'"),
        ({"node": "nowhere"}, "'node': 'nowhere' is not a node name"),
        ({"node": None}, "'node'"),
        ({"surprise": 1}, "'surprise'"),
        ({"density": "high"}, "'density' is 'high', not a finite number"),
        ({"density": 1e999}, "'density'"),
        ({"density": 10**400}, "'density'"),
        ({"windows": True}, "'windows' is 'True', not a whole number"),
        ({"contexts": {}}, "'contexts' is '{}', not a list"),
        ({"contexts": [{"id": "c"}]}, r"'contexts'\[0\]: 'kind' is missing"),
        ({"documents": {"train": 3}}, "'documents'"),
        ({"head": []}, "'head'"),
        ({"promotes": [{"token": 3, "value": 1}]}, "'token' is '3', not a text"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    data = json.loads(evidence_to_json(FULL)) | change
    with pytest.raises(ValueError, match=words) as caught:
        evidence_from_json(json.dumps(data), "a1.h2.json")
    assert str(caught.value).startswith("a1.h2.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": "edgewise-labels", "version": 1}'])
def test_files_of_something_else_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^l\.json: "):
        labels_from_json(text, "l.json")


def test_labels_that_cannot_be_are_refused() -> None:
    data = json.loads(labels_to_json([LABEL]))
    data["labels"][0]["text"] = "one two three four five six seven"
    with pytest.raises(ValueError, match="more than 6 words"):
        labels_from_json(json.dumps(data))
    data["labels"] = [json.loads(labels_to_json([LABEL]))["labels"][0]] * 2
    with pytest.raises(ValueError, match="listed twice"):
        labels_from_json(json.dumps(data))


def test_infinite_numbers_are_not_written() -> None:
    with pytest.raises(ValueError, match="'density' is inf"):
        evidence_to_json(dataclasses.replace(FULL, density=float("inf")))

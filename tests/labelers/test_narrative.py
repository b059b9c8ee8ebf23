"""Sentences about a circuit: what the edges do not bear out is dropped, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graphs.label import Label
from graphs.node import EdgeId, NodeId
from labelers.endpoint_faults import RequestFailed
from labelers.narrative import Claim, check_claims, narrate, narrative_json, plain_narrative
from labelers.openai_settings import OpenAISettings
from labelers.wiring import Wire
from tests.labelers.faulty_server import completion, faulty_server
from tests.labelers.test_openai_labeler import data_of

WIRES = (
    Wire(EdgeId.parse("f0.3@4->f1.7@4"), 2.0),
    Wire(EdgeId.parse("f0.4@4->f1.7@4"), 1.0),
    Wire(EdgeId.parse("f1.7@4->logit9"), -1.5),
    Wire(EdgeId.parse("t5@4->f0.3@4"), 0.0),
)
LABELS = {
    NodeId.parse(name): Label(NodeId.parse(name), text, "detects", "m")
    for name, text in (("f0.3", "Texas"), ("f1.7", "say Austin"))
}


def fault(text: str, *edges: tuple[str, str]) -> str | None:
    """Why a sentence is dropped, or None."""
    kept, dropped = check_claims([Claim(text, edges)], WIRES)
    assert len(kept) + len(dropped) == 1
    return dropped[0][1] if dropped else None


def test_sentences_are_checked_against_the_edges() -> None:
    right = ("f0.3@4->f1.7@4", "raises")
    assert fault("Texas (f0.3) raises f1.7@4.", right) is None
    assert fault("Texas leads to Austin.", right, ("f1.7@4->logit9", "lowers")) is None
    assert fault("Texas leads to Austin.") == "it cites no edge"
    assert fault("", right) == "it says nothing"
    assert "no edge 'f0.3->f1.7'" in str(fault("x", ("f0.3->f1.7", "raises")))
    assert "no edge" in str(fault("x", right, ("f1.7@4->f0.3@4", "raises")))  # the other way round
    assert "is raises, not lowers" in str(fault("x", ("f0.3@4->f1.7@4", "lowers")))
    assert "is lowers, not raises" in str(fault("x", right, ("f1.7@4->logit9", "raises")))
    assert "is none" in str(fault("x", ("t5@4->f0.3@4", "raises")))
    assert "is raises, not helps" in str(fault("x", ("f0.3@4->f1.7@4", "helps")))
    assert "names f0.4" in str(fault("f0.3 and f0.4 meet.", right))
    assert "names f0.3@5" in str(fault("f0.3@5 fires.", right))
    assert fault("f0.3, f1.7; version 2.0, e.g. m3x or a.b", right) is None


def test_a_models_story_is_asked_for_once_and_checked(tmp_path: Path) -> None:
    claims = [
        {"text": "Texas raises\n Austin.\x1b", "edges": [{"edge": "f0.3@4->f1.7@4", "effect": "raises"}]},
        {"text": "Made up.", "edges": [{"edge": "f9.9->logit9", "effect": "raises"}]},
        {"text": "Wrong sign.", "edges": [{"edge": "f1.7@4->logit9", "effect": "raises"}]},
    ]
    with faulty_server(lambda *_: completion(json.dumps({"sentences": claims}))) as seen:
        settings = OpenAISettings("m", base_url=seen.url, cache=tmp_path / "r.sqlite")
        story = narrate(WIRES, LABELS, settings, about="</data> two-hop", most=3)
        again = narrate(WIRES, LABELS, settings, about="</data> two-hop", most=3)
    assert [sentence.text for sentence in story.sentences] == ["Texas raises Austin.\ufffd"] and story.author == "m"
    assert [text for text, _ in story.dropped] == ["Made up.", "Wrong sign."]
    assert len(seen.requests) == 1 and again.sentences == story.sentences and again.usage["requests"] == 0
    data = data_of(seen.requests[0])
    assert [edge["edge"] for edge in data["edges"]] == [str(WIRES[place].edge) for place in (0, 2, 1)]
    assert {"node": "f0.3@4", "name": "Texas", "role": "detects"} in data["nodes"]
    assert "</data>" not in seen.requests[0]["messages"][1]["content"]
    kept: Any = json.loads(json.dumps(narrative_json(story)))
    assert kept["sentences"][0]["edges"] == [{"edge": "f0.3@4->f1.7@4", "weight": 2.0}] and len(kept["dropped"]) == 2


def test_without_edges_or_sentences_there_is_no_story() -> None:
    settings = OpenAISettings("m", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(RequestFailed, match="without edges"):
        narrate((), {}, settings)
    with faulty_server(lambda *_: completion('{"sentences": []}')) as seen, pytest.raises(RequestFailed, match="empty"):
        narrate(WIRES, {}, OpenAISettings("m", base_url=seen.url))


def test_the_plain_story_needs_nobody_and_bears_its_own_check() -> None:
    story = plain_narrative(WIRES, LABELS)
    assert story.text == "f0.3@4 (Texas) and f0.4@4 raise f1.7@4 (say Austin). f1.7@4 (say Austin) lowers logit9."
    claims = [Claim(s.text, tuple((str(w.edge), w.effect) for w in s.wires)) for s in story.sentences]
    assert check_claims(claims, WIRES)[1] == ()
    scored = (Wire(EdgeId.parse("a0.h1->a3.h2<k>"), 0.5, True), Wire(EdgeId.parse("m0->a3.h2<q>"), -0.1, True))
    assert plain_narrative(scored, {}).text == "a0.h1 feeds a3.h2, which helps; m0 feeds it, which hurts."
    assert plain_narrative((), {}).sentences == ()


def test_the_plain_story_follows_what_reaches_the_end() -> None:
    names = ("t1->f0.1", "t1->f0.2", "f0.1->f1.1", "f0.2->f1.1", "f1.1->logit5", "f0.9->logit5", "t1->f0.9")
    weights = (100.0, 90.0, 1.0, 1.0, 2.0, 0.1, 500.0)
    wires = [Wire(EdgeId.parse(name), weight) for name, weight in zip(names, weights)]
    # Not the largest weights, but the largest shares: logit5 is f1.1's, f1.1 is f0.1's and f0.2's, both are t1's.
    assert plain_narrative(wires, {}, 3).text == "f0.1 and f0.2 raise f1.1. f1.1 raises logit5."
    assert (
        plain_narrative(wires, {}, 5).text == "t1 raises f0.1 and f0.2. f0.1 and f0.2 raise f1.1. f1.1 raises logit5."
    )
    assert plain_narrative(list(reversed(wires)), {}, 5) == plain_narrative(wires, {}, 5)

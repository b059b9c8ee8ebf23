"""What reaches a language model: hostile text as JSON data alone, with nothing in it that a chat format takes for its own."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from unicodedata import category

import pytest

from graphs.escape import dot_string, xml_text
from graphs.evidence import AttentionPair, Context, Evidence, HeadEvidence, Neighbour, TokenEffect
from graphs.node import NodeId
from labelers.openai_labeler import label_nodes, node_question, read_label
from labelers.openai_settings import OpenAISettings
from labelers.prompt import TASKS, View, citable, data_block, has_side, shown
from labelers.reply import BadReply, json_objects
from tests.labelers.faulty_server import completion, faulty_server
from tests.labelers.hostile_texts import HOSTILE_TEXTS
from tests.labelers.test_openai_labeler import GOOD, Rules, data_of, feature, head

NODE = NodeId.parse("f0.3")


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=list(HOSTILE_TEXTS))
def test_the_block_reads_back_and_holds_no_special_signs(text: str) -> None:
    data = {"texts": [text, {"key " + text: text}], "number": 1.5, "none": None}
    block = data_block(data)
    assert json.loads(block) == data
    inside = "".join(re.findall(r'"(?:[^"\\]|\\.)*"', block))
    assert not set(inside) & set("<>[]|`＜＞［］｜")
    assert not [sign for sign in block if category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    block.encode("utf-8")


def test_any_text_reads_back() -> None:
    rng = random.Random(0)
    for _ in range(300):
        data = ["".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(8))]
        # A pair of lone surrogates is the sign that it spells, to JSON as to UTF-16.
        wanted = data[0].encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        assert json.loads(data_block({"x": data[0]})) == {"x": wanted}


def poisoned(text: str) -> Evidence:
    """Evidence with hostile text wherever text can be."""
    window = Context("c0", "top", "explain", 0, 0, (text, text, text), (0.0, 1.0, 0.0), text)
    contrast = Context("c1", "negative", "explain", 1, 0, (text,), (0.0,))
    pair = AttentionPair("p0", (text,), text, 0, 0.5)
    return Evidence(
        NODE,
        text,
        contexts=(window, contrast),
        promotes=(TokenEffect(text, 1.0),),
        suppresses=(TokenEffect(text, -1.0),),
        logit_attribution=(TokenEffect(text, 1.0),),
        inputs=(Neighbour(NodeId.parse("m0"), 1.0, text),),
        outputs=(Neighbour(NodeId.parse("m1"), 1.0, text),),
        head=HeadEvidence({"induction": 0.1}, 0.1, 0.1, (pair,), (TokenEffect(text, 1.0),), (text,)),
    )


def test_hostile_text_stands_in_the_data_block_only_and_changes_nothing_else() -> None:
    nodes = [NodeId("feature", 0, number) for number in range(len(HOSTILE_TEXTS))]

    def run(texts: Iterable[str]) -> tuple[dict[str, Any], Any]:
        with faulty_server(lambda *_: completion(json.dumps(GOOD))) as seen:
            settings = OpenAISettings("m", base_url=seen.url, passes="one")
            evidence = {node: replace(poisoned(text), node=node) for node, text in zip(nodes, texts)}
            names = dict.fromkeys([NodeId.parse("m0")], HOSTILE_TEXTS["chatml"])
            found = label_nodes(evidence, settings, fallback=Rules(), names=names, progress=False)
        return {data_of(body)["node"]: body for body in seen.requests}, found

    requests, found = run(HOSTILE_TEXTS.values())
    calm, same = run(["calm"] * len(nodes))
    assert set(requests) == set(calm) == {str(node) for node in nodes} and not found.failures
    for node, body in requests.items():
        ours, theirs = (item["messages"][1]["content"].partition("\n") for item in (body, calm[node]))
        assert ours[0] == theirs[0] == TASKS["single"] and ours[2].startswith('{"node"')
        body["messages"][1]["content"] = calm[node]["messages"][1]["content"] = ""
        assert body == calm[node]  # nothing but the block differs
    assert found.labels == same.labels and {label.text for label in found.labels.values()} == {"names of cities"}


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=list(HOSTILE_TEXTS))
def test_a_reply_that_repeats_hostile_text_is_refused_or_one_harmless_line(text: str) -> None:
    reply: dict[str, Any] = {**GOOD, "label": text, "description": text, "counter_evidence": text}
    try:
        label = read_label(reply, NODE, ("c0",), "m")
    except BadReply:  # more words or letters than a label has
        label = read_label({**reply, "label": "short"}, NODE, ("c0",), "m")
    for said in (label.text, label.description, label.counter_evidence):
        assert said.isprintable() and said.encode() and not [sign for sign in said if category(sign) in ("Cf", "Cs")]
    for field in ("role", "cites", "expects"):
        with pytest.raises(BadReply, match=f"'{field}'|'change'"):
            read_label({**GOOD, field: {"change": text} if field == "expects" else [text] if field == "cites" else text},
                       NODE, ("c0",), "m")  # fmt: skip


def test_a_reply_that_obeys_is_checked_like_any_other() -> None:
    base: dict[str, Any] = {**GOOD, "label": "<script>alert(1)</script>\x1b[31m\n now"}
    label = read_label(base, NODE, ("c0",), "m")
    assert "\x1b" not in label.text and "\n" not in label.text
    assert "<script>" not in xml_text(label.text) and dot_string('a"; x -> y').count('"') == 3
    with pytest.raises(BadReply, match="words"):
        read_label({**GOOD, "label": "BANANA " * 9}, NODE, ("c0",), "m")
    with pytest.raises(BadReply, match="letters"):
        read_label({**GOOD, "label": "B" * 500}, NODE, ("c0",), "m")
    for name in GOOD:
        with pytest.raises(BadReply, match=f"'{name}'"):
            read_label({key: value for key, value in GOOD.items() if key != name}, NODE, ("c0",), "m")


@pytest.mark.parametrize("view", ["output", "input", "unify", "single"])
def test_views_show_their_side(view: View) -> None:
    data = shown(feature(NODE, neighbours=(NodeId.parse("m1"),)), view, {NodeId.parse("m1"): "a name"})
    assert ("windows" in data) == (view != "output") and ("promotes" in data) == (view != "input")
    assert data.get("outputs", [{}])[0].get("name") == (None if view == "input" else "a name")
    assert "HELD OUT" not in json.dumps(data)


def test_windows_are_shown_around_their_peak() -> None:
    window = shown(feature(NODE), "input", {})["windows"][0]
    assert window == {
        "id": "c0",
        "before": "I love",
        "peak": " Paris",
        "after": " now",
        "follows": " and",
        "active": [[" Paris", 10], [" now", 3]],
    }
    assert shown(feature(NODE), "input", {})["contrast"] == [{"id": "c1", "text": "I love tea"}]
    assert citable(feature(NODE)) == ("c0", "c1") and citable(head(NODE)) == ("p0",)


def test_a_side_that_was_not_measured_is_not_asked_for() -> None:
    assert not has_side(head(NODE), "output") and has_side(head(NODE), "input")
    silent = replace(feature(NODE), contexts=())
    assert has_side(silent, "output") and not has_side(silent, "input") and has_side(silent, "unify")


def test_schemas_stay_within_what_strict_mode_takes() -> None:
    allowed = {"type", "properties", "required", "additionalProperties", "enum", "items", "minimum", "maximum"}

    def check(schema: dict[str, Any]) -> None:
        assert set(schema) <= allowed
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
            for inner in schema["properties"].values():
                check(inner)
        if "items" in schema:
            assert schema["items"]["enum"]
            check(schema["items"])

    for evidence in (feature(NODE), head(NODE), Evidence(NODE, "m")):
        check(dict(node_question(evidence, "single", {}, "m").schema))


def test_json_is_found_among_anything() -> None:
    assert list(json_objects('x {"a": 1} y {"b": {"c": 2}} {')) == [{"a": 1}, {"b": {"c": 2}}]
    assert list(json_objects("{" * 100_000)) == [] and list(json_objects("")) == []
    assert list(json_objects('{"a": "line\nbreak"}')) == [{"a": "line\nbreak"}]
    assert data_of({"messages": [{"content": 'Task\n{"a": 1}'}]}) == {"a": 1}

"""The language model's labeler against a real client and a real server whose every reply the test decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphs.evidence import AttentionPair, CausalEffect, Context, Evidence, HeadEvidence, Neighbour, TokenEffect
from graphs.label import Label
from graphs.node import NodeId
from labelers.endpoint_faults import EndpointUnusable
from labelers.labeler import Labelling
from labelers.openai_labeler import forecast, label_nodes
from labelers.openai_settings import OpenAISettings, Prices
from labelers.prompt import SYSTEM, TASKS
from tests.labelers.faulty_server import Answer, Seen, completion, failure, faulty_server

F1, F2, HEAD, ERROR = (NodeId.parse(name) for name in ("f0.3", "f2.7", "a1.h0", "e1"))
GOOD = {
    "label": "names of cities",
    "role": "detects",
    "description": "Fires on cities.",
    "cites": ["c0"],
    "counter_evidence": "",
    "confidence": 0.8,
    "abstain": False,
    "expects": {"change": "ablate", "direction": "down"},
}


class Rules:
    """Names every node by its own name, so that a test sees whose label is kept."""

    name = "rules"

    def label(self, evidence: Evidence) -> Label:
        return Label(evidence.node, f"rules {evidence.node}", "unclear", "rules")


def feature(node: NodeId, *, peak: str = " Paris", neighbours: tuple[NodeId, ...] = ()) -> Evidence:
    """Evidence of a feature: one window to explain, one contrast, one to score, output tokens and a causal effect."""
    shown = Context("c0", "top", "explain", 0, 5, ("I love", peak, " now"), (0.0, 3.0, 1.0), " and")
    contrast = Context("c1", "hard-negative", "explain", 1, 0, ("I love", " tea"), (0.0, 0.0))
    scored = Context("s0", "top", "score", 9, 0, ("HELD OUT", peak), (0.0, 2.0))
    effect = CausalEffect("ablate", "ioi", "logit-diff", 3.25, 1.125, 0.1, 40)
    return Evidence(
        node,
        "model",
        contexts=(shown, contrast, scored),
        promotes=(TokenEffect(" France", 1.5),),
        causal=(effect,),
        outputs=tuple(Neighbour(other, 2.0) for other in neighbours),
    )


def head(node: NodeId) -> Evidence:
    """Evidence of a head."""
    pair = AttentionPair("p0", ("When", " Mary"), "When", 1, 0.9)
    return Evidence(node, "model", head=HeadEvidence({"previous_token": 0.91}, 0.4, 0.2, (pair,)))


def everything() -> dict[NodeId, Evidence]:
    """Two features, a head and an error node."""
    return {
        F1: feature(F1, neighbours=(F2,)),
        F2: feature(F2),
        HEAD: head(HEAD),
        ERROR: Evidence(ERROR, "model", flow_share=0.2),
    }


def reply_for(body: dict[str, Any], **changed: Any) -> Answer:
    """A right reply to whatever was asked: cites what the data holds."""
    data = data_of(body)
    ids = [window["id"] for window in data.get("windows", [])] + [
        p["id"] for p in data.get("head", {}).get("places", [])
    ]
    return completion(json.dumps(GOOD | {"cites": ids[:1]} | changed))


def data_of(body: dict[str, Any]) -> dict[str, Any]:
    """The data block of a request."""
    text = body["messages"][-1]["content"]
    return json.loads(text[text.index("{") :])


def run(
    decide: Callable[[dict[str, Any], int], Answer], evidence: dict[NodeId, Evidence] | None = None, **settings: Any
) -> tuple[Labelling, Seen]:
    """Labels with a server that answers so."""
    with faulty_server(decide) as seen:
        return again(seen, evidence, **settings), seen


def again(seen: Seen, evidence: dict[NodeId, Evidence] | None = None, **settings: Any) -> Labelling:
    """Labels with a server that runs."""
    chosen = OpenAISettings("m", **{"base_url": seen.url, "retries": 2, "timeout": 10.0, **settings})
    return label_nodes(everything() if evidence is None else evidence, chosen, fallback=Rules(), progress=False)


def test_every_node_but_errors_is_named_in_three_passes() -> None:
    found, seen = run(lambda body, _: reply_for(body))
    assert {node: found.labels[node].text for node in everything()} == {
        F1: "names of cities",
        F2: "names of cities",
        HEAD: "names of cities",
        ERROR: "rules e1",
    }
    assert not found.failures
    label = found.labels[F1]
    assert (label.labeler, label.cites, label.confidence, label.role) == ("m", ("c0",), 0.8, "detects")
    assert label.expects is not None and (label.expects.change, label.expects.direction) == ("ablate", "down")
    asked = [(data_of(body)["node"], body["messages"][1]["content"].split("\n")[0]) for body in seen.requests]
    passes = {view: [node for node, task in asked if task == TASKS[view]] for view in TASKS}
    # Output side late to early, input side early to late (a head before the features of its layer), then everything.
    assert passes["output"] == ["f2.7", "f0.3"]
    assert passes["input"] == ["f0.3", "a1.h0", "f2.7"]
    assert sorted(passes["unify"]) == ["a1.h0", "f0.3", "f2.7"]
    assert found.usage["requests"] == 8 and found.usage["tokens_in"] == 800 and "usd" not in found.usage


def test_neighbours_bear_the_names_of_earlier_stages_and_drafts_come_last() -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        return reply_for(body, label=f"draft of {data_of(body)['node']}")

    _, seen = run(decide)
    data = {
        (data_of(body)["node"], body["messages"][1]["content"].split("\n")[0]): data_of(body) for body in seen.requests
    }
    assert data["f0.3", TASKS["output"]]["outputs"][0]["name"] == "draft of f2.7"
    assert [draft["side"] for draft in data["f0.3", TASKS["unify"]]["drafts"]] == ["output", "input"]


def test_one_pass() -> None:
    found, seen = run(lambda body, _: reply_for(body), passes="one")
    assert len(seen.requests) == 3 and found.labels[HEAD].cites == ("p0",)


def test_scoring_windows_and_measured_effects_are_never_shown() -> None:
    _, seen = run(lambda body, _: reply_for(body))
    sent = json.dumps(seen.requests)
    assert "HELD OUT" not in sent and "3.25" not in sent and "1.125" not in sent
    assert "I love" in sent and data_of(seen.requests[0])["task"] == {"name": "ioi", "metric": "logit-diff"}


def test_requests_ask_for_the_strict_schema_after_a_static_message() -> None:
    _, seen = run(lambda body, _: reply_for(body))
    for body in seen.requests:
        assert body["messages"][0] == {"role": "system", "content": SYSTEM}
        form = body["response_format"]["json_schema"]
        assert form["strict"] is True
        assert form["schema"]["additionalProperties"] is False
        assert set(form["schema"]["required"]) == set(form["schema"]["properties"]) == set(GOOD)
        assert (body["temperature"], body["seed"], body["model"]) == (0.0, 0, "m")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cites": ["c99"]}, "c99"),
        ({"cites": ["s0"]}, "s0"),
        ({"role": "king"}, "king"),
        ({"label": "one two three four five six seven"}, "7 words"),
        ({"label": ""}, "empty"),
        ({"confidence": 7}, "confidence"),
        ({"confidence": True}, "confidence"),
        ({"abstain": "no"}, "abstain"),
        ({"expects": None}, "expects"),
        ({"cites": "c0"}, "cites"),
        ({"description": None}, "description"),
    ],
)
def test_what_the_schema_does_not_allow_is_repaired_or_reported(wrong: dict[str, Any], said: str) -> None:
    bad = completion(json.dumps(GOOD | wrong))
    found, seen = run(lambda *_: bad, {F1: feature(F1)}, passes="one")
    assert found.labels[F1].text == "rules f0.3" and said in found.failures[F1]
    formats = [body.get("response_format", {}).get("type", "text") for body in seen.requests]
    assert formats == ["json_schema", "json_object", "text", "json_schema"]
    assert said in data_of(seen.requests[-1])["problem"]


def test_repaired_replies_count() -> None:
    fine = completion(json.dumps(GOOD))
    found, seen = run(lambda _, n: fine if n == 3 else completion("sorry"), {F1: feature(F1)}, passes="one")
    assert not found.failures and found.labels[F1].text == "names of cities" and len(seen.requests) == 4
    repair = data_of(seen.requests[-1])
    assert repair["reply"] == "sorry" and repair["data"]["node"] == "f0.3"


@pytest.mark.parametrize(
    "text",
    [
        "```json\n%s\n```",
        '<think>{not this} or {"label": 1}</think> Here you are: %s Good luck!',
        "%s\n%s",
    ],
)
def test_replies_of_servers_that_ignore_the_format_are_read(text: str) -> None:
    content = text.replace("%s", json.dumps(GOOD))
    found, seen = run(lambda *_: completion(content), {F1: feature(F1)}, passes="one")
    assert found.labels[F1].text == "names of cities" and len(seen.requests) == 1


def test_servers_that_refuse_the_format_are_asked_once() -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        form = body.get("response_format", {}).get("type")
        return failure(400, f"response_format {form} is not supported") if form else reply_for(body)

    found, seen = run(decide, concurrency=1)
    assert not found.failures
    assert [body.get("response_format", {}).get("type") for body in seen.requests] == ["json_schema", "json_object"] + [
        None
    ] * 8


def test_parameters_that_a_server_does_not_know_are_left_out() -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        if "max_tokens" in body:
            return failure(400, "Unsupported parameter: use 'max_completion_tokens'", param="max_tokens")
        for name in ("temperature", "seed"):
            if name in body:
                return failure(400, f"{name} is not supported with this model", param=name)
        if body["messages"][0]["role"] == "system":
            return failure(400, "System role not supported")
        return reply_for(body)

    found, seen = run(decide, concurrency=1)
    assert not found.failures
    last = seen.requests[-1]
    assert "max_completion_tokens" in last and not {"max_tokens", "temperature", "seed"} & set(last)
    assert len(seen.requests) == 4 + 8 and last["messages"][0]["content"].startswith(SYSTEM)


def test_refusals_and_filters_keep_the_rules_name() -> None:
    for answer, said in (
        (completion(None, refusal="I cannot\ndo that"), "I cannot do that"),
        (completion("", finish="content_filter"), "filter"),
    ):
        found, seen = run(lambda *_, answer=answer: answer, {F1: feature(F1)}, passes="one")
        assert found.labels[F1].text == "rules f0.3" and said in found.failures[F1] and len(seen.requests) == 1


def test_a_reply_that_was_cut_off_gets_more_room() -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        return reply_for(body) if body["max_tokens"] > 600 else completion('{"label": "na', finish="length")

    found, seen = run(decide, {F1: feature(F1)}, passes="one")
    assert not found.failures and [body["max_tokens"] for body in seen.requests] == [600, 1200]


def test_one_failed_node_does_not_touch_the_others() -> None:
    def decide(body: dict[str, Any], _: int) -> Answer:
        return completion("no") if '"node":"f2.7","model"' in body["messages"][-1]["content"] else reply_for(body)

    found, _ = run(decide)
    assert set(found.failures) == {F2}
    assert [found.labels[node].labeler for node in (F1, F2, HEAD, ERROR)] == ["m", "rules", "m", "rules"]


def test_abstaining_is_no_failure() -> None:
    found, _ = run(lambda body, _: reply_for(body, abstain=True, label="", cites=[]), {F1: feature(F1)}, passes="one")
    assert found.labels[F1].abstain and (found.labels[F1].text, found.labels[F1].role) == ("unclear", "unclear")


def test_a_forecast_sends_nothing_and_is_near() -> None:
    settings = OpenAISettings("m", base_url="http://127.0.0.1:1/v1", prices=Prices(2.0, 8.0))
    expected = forecast(everything(), settings)
    assert (expected.nodes, expected.requests) == (3, 8)
    assert expected.usd == pytest.approx((2 * expected.prompt_tokens + 8 * expected.reply_tokens) / 1e6)
    _, seen = run(lambda body, _: reply_for(body))
    letters = sum(len(message["content"]) for body in seen.requests for message in body["messages"])
    assert letters / 5 < expected.prompt_tokens < letters / 2


def test_an_endpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    settings = OpenAISettings("m", base_url="http://127.0.0.1:1/v1", retries=1)
    with pytest.raises(
        EndpointUnusable, match=r"^http://127.0.0.1:1/v1 cannot be reached after 2 attempts .*running\?$"
    ):
        label_nodes(everything(), settings, fallback=Rules(), progress=False)

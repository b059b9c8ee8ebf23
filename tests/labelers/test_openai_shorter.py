"""Prompts that a model's context cannot hold: asked again with less evidence, and that is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphs.evidence import AttentionPair, Context, Evidence, HeadEvidence, Neighbour, TokenEffect
from graphs.node import EdgeId, NodeId
from graphs.pruned import Supernode
from labelers.group_names import name_groups
from labelers.judge import LLMJudge
from labelers.narrative import narrate
from labelers.openai_labeler import label_nodes
from labelers.openai_settings import OpenAISettings
from labelers.prompt import citable, data_block, shown
from labelers.questions import Question, Test, Window
from labelers.shorter import shorter_and_shorter
from labelers.wiring import Wire
from tests.labelers.faulty_server import Answer, completion, failure, faulty_server
from tests.labelers.test_openai_judge import LABEL, by_the_text
from tests.labelers.test_openai_labeler import Rules, data_of, reply_for

NODE = NodeId.parse("f1.3")
REFUSALS = {
    "openai": failure(400, "This model's maximum context length is 900 tokens.", code="context_length_exceeded"),
    "vllm": failure(
        400, "'max_tokens' or 'max_completion_tokens' is too large: 600. This model's maximum context length is 900 tokens"
    ),
    "llama.cpp": failure(400, "the request exceeds the available context size (900 tokens), try increasing it"),
    "tgi": failure(422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 900"),
    "groq": failure(413, "Request too large for model on tokens per minute"),
    "gemini": failure(400, "The input token count (4000) exceeds the maximum number of tokens allowed (900)."),
}  # fmt: skip


def long_evidence(node: NodeId = NODE) -> Evidence:
    """A feature with many long windows and many neighbours."""

    def window(number: int, kind: Any, split: Any = "explain") -> Context:
        tokens = tuple(f" w{number}.{place}" for place in range(64))
        peak = 0.0 if kind == "negative" else 1.0 + number
        return Context(f"{split}{number}", kind, split, number, 7, tokens, (*[0.0] * 40, peak, *[0.0] * 23))

    kinds = ["top"] * 4 + ["spread"] * 8 + ["negative"] * 6
    return Evidence(
        node,
        "model",
        contexts=(*(window(n, kind) for n, kind in enumerate(kinds)), window(50, "top", "score")),
        promotes=tuple(TokenEffect(f" up{n}", 9.0 - n) for n in range(10)),
        outputs=tuple(Neighbour(NodeId.parse(f"f2.{n}"), 9.0 - n) for n in range(10)),
    )


def letters(evidence: Evidence) -> int:
    """Letters of what is shown."""
    return len(data_block(shown(evidence, "single", {})))


def room_for(most: int, refusal: Answer, reply: Callable[[dict[str, Any]], Answer]) -> Any:
    """A server whose model can hold data of so many letters."""

    def decide(body: dict[str, Any], _: int) -> Answer:
        return refusal if len(body["messages"][-1]["content"]) > most else reply(body)

    return decide


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
def test_a_node_is_named_from_as_much_evidence_as_fits(refusal: Answer, tmp_path: Path) -> None:
    evidence = long_evidence()
    with faulty_server(room_for(3000, refusal, reply_for)) as seen:
        settings = OpenAISettings("m", base_url=seen.url, passes="one", retries=0, cache=tmp_path / "r.sqlite")
        found = label_nodes({NODE: evidence}, settings, fallback=Rules(), progress=False)
        refused, last = seen.requests[:-1], data_of(seen.requests[-1])
        rerun = label_nodes({NODE: evidence}, settings, fallback=Rules(), progress=False)
    assert not found.failures and found.labels[NODE].text == "names of cities"
    windows = last["windows"] + last["contrast"]
    assert (
        found.shortened == {NODE: f"shown {len(windows)} of 18 windows and places, shortened"}
        and 3 <= len(windows) < 18
    )
    schema = seen.requests[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["cites"]["items"]["enum"] == [window["id"] for window in windows]
    assert set(found.labels[NODE].cites) <= {window["id"] for window in windows} <= set(citable(evidence))
    sizes = [len(body["messages"][-1]["content"]) for body in seen.requests]
    assert sizes == sorted(sizes, reverse=True) and min(sizes[:-1]) > 3000 >= sizes[-1]
    assert all(
        "max_tokens" in body and "temperature" in body for body in refused
    )  # the server complains of nothing else
    assert rerun.labels == found.labels and rerun.shortened == found.shortened and rerun.usage["requests"] == 0
    assert len(seen.requests) == len(refused) + 1  # refusals are not asked for again either


def test_where_nothing_fits_the_rules_name_stays_and_a_rerun_asks_again(tmp_path: Path) -> None:
    with faulty_server(room_for(10, REFUSALS["openai"], reply_for)) as seen:
        settings = OpenAISettings("m", base_url=seen.url, passes="one", retries=0, cache=tmp_path / "r.sqlite")
        for times in (1, 2):
            found = label_nodes({NODE: long_evidence()}, settings, fallback=Rules(), progress=False)
            assert found.labels[NODE].labeler == "rules" and not found.shortened
            assert "context of the endpoint's model cannot hold" in found.failures[NODE]
            assert len(seen.requests) == times * len(list(shorter_and_shorter(long_evidence())))


def test_each_step_is_a_part_of_the_last_one() -> None:
    pairs = tuple(AttentionPair(f"p{n}", (" a",) * 9, f" k{n}", n, 0.5) for n in range(12))
    head = HeadEvidence({"induction": 0.5}, 1.0, 0.1, pairs)
    for evidence in (long_evidence(), Evidence(NODE, "m", head=head)):
        steps = list(shorter_and_shorter(evidence))
        assert steps[0] is evidence and len(steps) > 3
        for more, less in itertools.pairwise(steps):
            assert less.ids <= more.ids and letters(less) < letters(more)
            assert less.of("score") == evidence.of("score")
            before = {context.id: context for context in more.contexts}
            for context in less.contexts:
                whole = before[context.id]
                offset = context.start - whole.start
                assert context.tokens == whole.tokens[offset : offset + len(context.tokens)]
                assert max(context.activations) == max(whole.activations)  # the peak stays
            assert less.promotes == more.promotes[: len(less.promotes)]
        kinds = [context.kind for context in steps[-1].of("explain")]
        assert len(kinds) == len(set(kinds)) == len({c.kind for c in evidence.of("explain")})


@pytest.mark.parametrize("test", ["detection", "intruder"])
def test_a_judge_is_asked_in_halves(test: Test, tmp_path: Path) -> None:
    windows = tuple(Window((" Paris" if n % 3 else " tea",) * 20) for n in range(9))
    with faulty_server(room_for(1100, REFUSALS["llama.cpp"], lambda body: by_the_text(body, 0))) as seen:
        settings = OpenAISettings("m", base_url=seen.url, retries=0, cache=tmp_path / "r.sqlite")
        first = LLMJudge(settings, progress=False).answer([Question(LABEL, test, windows)])
        sent = len(seen.requests)
        second = LLMJudge(settings, progress=False).answer([Question(LABEL, test, windows)])
    if test == "intruder":  # which of nine windows cannot be asked in parts
        assert first == second == [[None] * 9]
    else:
        assert first == second == [[float(n % 3 > 0) for n in range(9)]]
        assert 2 < sent == len(seen.requests)


def test_stories_and_groups_see_fewer_edges() -> None:
    wires = tuple(Wire(EdgeId.parse(f"f0.{n}@2->f1.{n}@2"), 50.0 - n) for n in range(40))
    group = Supernode("first", tuple(NodeId.parse(f"f0.{n}@2") for n in range(20)))

    def tell(body: dict[str, Any]) -> Answer:
        edge = data_of(body)["edges"][0]
        cited = [{"edge": edge["edge"], "effect": edge["effect"]}]
        return completion(json.dumps({"sentences": [{"text": "It begins.", "edges": cited}]}))

    with faulty_server(room_for(1500, REFUSALS["vllm"], tell)) as seen:
        story = narrate(wires, {}, OpenAISettings("m", base_url=seen.url, retries=0))
    assert [sentence.wires for sentence in story.sentences] == [(wires[0],)] and len(seen.requests) > 1
    with faulty_server(
        room_for(600, REFUSALS["vllm"], lambda _: completion('{"label": "Texas", "strangers": []}'))
    ) as seen:
        found = name_groups([group], wires, {}, OpenAISettings("m", base_url=seen.url, retries=0))
    assert not found.failures and found.groups[0].label == "Texas" and len(seen.requests) > 1

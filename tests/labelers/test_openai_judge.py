"""A language model's answers about labels: read as numbers, or counted as unreadable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graphs.label import Label
from graphs.node import NodeId
from labelers.budget import BudgetSpent
from labelers.judge import SYSTEM, LLMJudge, parts
from labelers.openai_settings import OpenAISettings
from labelers.questions import Judge, Question, Test, Window
from tests.labelers.faulty_server import Answer, completion, faulty_server
from tests.labelers.test_openai_labeler import data_of

LABEL = Label(NodeId.parse("f0.1"), "cities", "detects", "m", rule="token: Paris")
WINDOWS = (Window((" Paris", " is"), frozenset({0})), Window((" tea", " is"), frozenset({1})), Window((" Rome",)))


def question(test: Test) -> Question:
    """A question of three windows."""
    return Question(LABEL, test, WINDOWS)


def judged(answer: Any, *questions: Question, **settings: Any) -> tuple[list[list[float | None]], LLMJudge, Any]:
    """What the judge says with a server that answers so."""
    with faulty_server(answer) as seen:
        judge = LLMJudge(OpenAISettings("m", base_url=seen.url, retries=0, **settings), progress=False)
        assert isinstance(judge, Judge)
        return judge.answer(questions), judge, seen


def by_the_text(body: dict[str, Any], _: int) -> Answer:
    """A judge that knows cities."""
    windows = data_of(body)["windows"]
    is_city = {w["id"]: any(city in json.dumps(w["parts"]) for city in ("Paris", "Rome")) for w in windows}
    if "intruder" in body["response_format"]["json_schema"]["schema"]["properties"]:
        return completion(json.dumps({"intruder": next(name for name, city in is_city.items() if not city)}))
    return completion(json.dumps({name: "yes" if city else "no" for name, city in is_city.items()}))


def test_answers_are_numbers_by_window() -> None:
    found, judge, seen = judged(by_the_text, question("detection"), question("fuzzing"), question("intruder"))
    assert found == [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert judge.usage["requests"] == 3 and len(seen.requests) == 3
    assert all(body["messages"][0]["content"] == SYSTEM for body in seen.requests)
    assert data_of(seen.requests[0])["label"] == {"text": "cities", "role": "detects", "rule": "token: Paris"}


@pytest.mark.parametrize(
    "content", ["", "yes", '{"w0": "yes"}', '{"w0": "yes", "w1": "no", "w2": "maybe"}', '{"intruder": "w9"}']
)
def test_what_cannot_be_read_is_none(content: str) -> None:
    found, _, _ = judged(lambda *_: completion(content), question("detection"), question("intruder"))
    assert found == [[None] * 3] * 2


def test_a_spent_budget_is_no_unreadable_reply() -> None:
    with pytest.raises(BudgetSpent):
        judged(by_the_text, question("detection"), max_tokens=100)


def test_a_cap_holds_for_all_questions_of_a_judge() -> None:
    with faulty_server(by_the_text) as seen:
        judge = LLMJudge(OpenAISettings("m", base_url=seen.url, retries=0, max_tokens=3700), progress=False)
        assert judge.answer([question("detection")]) == [[1.0, 0.0, 1.0]] and judge.usage["tokens_in"] == 100

        def go_on() -> None:
            for _ in range(30):
                judge.answer([question("fuzzing")])

        with pytest.raises(BudgetSpent, match=r"[1-9][0-9,]*0 tokens used"):
            go_on()
        assert 1 < len(seen.requests) < 30


def test_marks_need_no_signs_in_the_text() -> None:
    assert parts(Window(("a", "b", "c", "d"), frozenset({1, 2}))) == [{"text": "a"}, {"marked": "bc"}, {"text": "d"}]
    assert parts(Window(())) == []

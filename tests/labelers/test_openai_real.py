"""The whole way with a real client, a real server on loopback and a small real model behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphs.label import LONGEST, ROLES
from labelers.judge import LLMJudge
from labelers.openai_labeler import label_nodes
from labelers.openai_settings import OpenAISettings
from tests.labelers.test_openai_judge import question
from tests.labelers.test_openai_labeler import Rules, everything


@pytest.fixture(scope="module")
def url(shared: Path) -> Iterator[str]:
    """Address of a server with a model of 260,000 parameters, which keeps the end of prompts that are too long."""
    from discovery.chat_model import load_chat_model
    from discovery.serving import ChatServer

    place = shared / "models" / "stories260K"
    if not place.is_dir():
        pytest.skip(f"needs {place}")
    with ChatServer(load_chat_model(str(place), "stories", long_prompts="cut")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join(10)


def test_every_reply_of_a_guided_model_has_the_form(url: str, tmp_path: Path) -> None:
    settings = OpenAISettings(
        "stories", base_url=url, cache=tmp_path / "r.sqlite", retries=0, reply_tokens=300, passes="one"
    )
    found = label_nodes(everything(), settings, fallback=Rules(), progress=False)
    assert set(found.labels) == set(everything())
    for node, reason in found.failures.items():  # the form holds; only the number of words may not
        assert "'label'" in reason and found.labels[node].labeler == "rules"
    named = [label for label in found.labels.values() if label.labeler == "stories"]
    assert all(len(label.text.split()) <= LONGEST and label.role in ROLES for label in named)
    for label in named:
        assert set(label.cites) <= everything()[label.node].ids
    assert found.usage["tokens_in"] > 0 and found.usage["tokens_out"] > 0
    again = label_nodes(everything(), settings, fallback=Rules(), progress=False)
    assert again.labels == found.labels and again.usage["requests"] == 0


def test_a_guided_model_judges(url: str) -> None:
    judge = LLMJudge(OpenAISettings("stories", base_url=url, retries=0), progress=False)
    found = judge.answer([question("detection"), question("fuzzing"), question("intruder")])
    assert all(value in (0.0, 1.0) for answers in found for value in answers) and sum(found[2]) == 1.0

"""The server, asked by the real OpenAI client over loopback."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from discovery.chat_format import Message, prompt_ids
from discovery.chat_model import ChatModel, load_chat_model
from discovery.demo import model_directory
from discovery.loading import ModelNotLoaded
from discovery.serving import MOST_WAITING, ChatServer, serving
from discovery.token_stream import Sampling, TokenStream
from tests.discovery.tiny_models import FAMILIES, tiny_model

LABEL = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "maxLength": 40},
        "role": {"type": "string", "enum": ["detects", "promotes", "suppresses", "moves", "mixed", "unclear"]},
        "cites": {"type": "array", "items": {"type": "string", "enum": ["c1", "c2", "c10"]}, "maxItems": 3},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "counter": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/counter"}]},
        "abstain": {"type": "boolean"},
    },
    "required": ["label", "role", "cites", "confidence", "counter", "abstain"],
    "additionalProperties": False,
    "$defs": {
        "counter": {
            "type": "object",
            "properties": {"text": {"type": "string", "maxLength": 10}, "n": {"type": "integer", "minimum": 1}},
            "required": ["text", "n"],
            "additionalProperties": False,
        }
    },
}
PROMPT: Any = [
    {"role": "system", "content": "You name things."},
    {"role": "user", "content": "Once upon a time there was a girl called Lily."},
]
pytestmark = pytest.mark.skipif(not model_directory().is_dir(), reason="the embedded model is not in this checkout")


def strict(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def embedded() -> ChatModel:
    return load_chat_model(model_directory(), "embedded", device="cpu")


@pytest.fixture(scope="module")
def stories(shared: Path) -> ChatModel:
    return load_chat_model(shared / "models" / "stories260K", "stories", device="cpu")


@pytest.fixture(scope="module")
def server(embedded: ChatModel) -> Iterator[ChatServer]:
    with serving(embedded) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ChatServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def say(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "embedded", "messages": PROMPT} | options)


def test_a_strict_schema_always_parses(client: OpenAI) -> None:
    for seed, temperature in ((0, 0), (1, 1), (2, 2)):
        reply = say(client, response_format=strict(LABEL), seed=seed, temperature=temperature, max_tokens=300)
        jsonschema.validate(json.loads(reply.choices[0].message.content), LABEL)
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_strict_schema_always_parses_with_byte_fallback_and_at_once_from_many_clients(stories: ChatModel) -> None:
    async def ask(url: str) -> list[Any]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            asked = (
                client.chat.completions.create(
                    model="stories", messages=PROMPT, response_format=strict(LABEL), seed=seed % 2, max_tokens=200
                )
                for seed in range(6)
            )
            return await asyncio.gather(*asked)

    with serving(stories) as running:
        replies = asyncio.run(ask(running.url))
    texts = [reply.choices[0].message.content for reply in replies]
    for text in texts:
        jsonschema.validate(json.loads(text), LABEL)
    assert len(set(texts)) == 2  # one for each seed, whoever asked and when


def test_out_of_tokens_the_json_is_closed(client: OpenAI) -> None:
    for limit in (1, 5, 20):
        reply = say(client, response_format=strict(LABEL), max_tokens=limit)
        assert reply.choices[0].finish_reason == "length"
        jsonschema.validate(json.loads(reply.choices[0].message.content), LABEL)
    free = say(client, response_format={"type": "json_object"}, max_completion_tokens=100)
    assert isinstance(json.loads(free.choices[0].message.content), dict)


def test_seeds_repeat_and_zero_temperature_needs_none(client: OpenAI) -> None:
    def text(**options: Any) -> str:
        return say(client, max_tokens=30, **options).choices[0].message.content

    assert text(seed=3) == text(seed=3)
    assert len({text(seed=seed, temperature=2) for seed in range(4)}) > 1
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)
    assert text(top_p=1e-9, seed=1) == text(temperature=0)


def test_stops_and_lengths(stories: ChatModel) -> None:
    with serving(stories) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        whole = say(client, model="stories", temperature=0, max_tokens=40)
        text = whole.choices[0].message.content
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 40
        stop = text[10:14]
        cut = say(client, model="stories", temperature=0, max_tokens=40, stop=["never said", stop])
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        pieces = list(
            say(
                client, model="stories", temperature=0, max_tokens=40, stop=stop, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == text[: text.index(stop)]
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "stop"
    assert pieces[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_of_json_is_the_json(client: OpenAI) -> None:
    pieces = say(client, response_format=strict(LABEL), seed=5, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == say(client, response_format=strict(LABEL), seed=5).choices[0].message.content


def test_letters_of_every_kind_go_in_and_out(client: OpenAI) -> None:
    odd = "é 😀 \u202e \x00 中文 <bos></s>"
    schema = {"type": "object", "properties": {odd: {"const": odd}}, "required": [odd]}
    reply = say(client, messages=[{"role": "user", "content": odd}], response_format=strict(schema))
    assert json.loads(reply.choices[0].message.content) == {odd: odd}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert say(client, messages=[{"role": "user", "content": parts}], max_tokens=3).usage.completion_tokens <= 3


def test_models_and_health(client: OpenAI, server: ChatServer) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").id == "embedded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    status, data = _raw(server, "GET", "/health", b"")
    assert (status, data["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("options", "param", "said"),
    [
        ({"response_format": strict({"type": "string", "pattern": "a+"})}, "response_format", "'pattern'"),
        ({"response_format": strict({"oneOf": [{}]})}, "response_format", "'oneOf'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format", "type"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"temperature": 3}, "temperature", "between"),
        ({"max_tokens": 0}, "max_tokens", "below 1"),
        ({"seed": "x"}, "seed", "int"),
        ({"stop": [""]}, "stop", "stop"),
        ({"stop": "x", "response_format": {"type": "json_object"}}, "stop", "free text"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text"),
        ({"extra_body": {"guess": 1}}, "guess", "unknown parameter"),
        ({"messages": [{"role": "user", "content": "word " * 500}]}, "messages", "context is 128"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client: OpenAI, options: Any, param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        say(client, **options)
    assert str(error.value.param).startswith(param)
    assert said in error.value.message
    assert error.value.type == "invalid_request_error"


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'embedded'"):
        say(client, model="gpt-5")


def _raw(server: ChatServer, method: str, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.server_name, server.server_port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, data


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/chat/completions", b"{", {}, 400),
        ("/v1/chat/completions", b"[" * 100_000, {}, 400),
        ("/v1/chat/completions", b'{"temperature": NaN}', {}, 400),
        ("/v1/chat/completions", b"\xff\xfe\xfd", {}, 400),
        ("/v1/chat/completions", b"[]", {}, 400),
        ("/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}, 415),
        ("/v1/chat/completions", b"", {"Content-Length": "99999999999"}, 413),
        ("/v1/chat/completions", b"", {"Content-Length": "-1"}, 411),
        ("/v1/embeddings", b"{}", {}, 404),
    ],
)
def test_malformed_requests_get_an_error_object(
    server: ChatServer, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    got, data = _raw(server, "POST", path, body, **headers)
    assert got == status
    assert data["error"]["message"]


def test_a_key_that_is_wanted_must_be_sent(embedded: ChatModel, capsys: Any, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    server = ChatServer(embedded, key="ké-secret")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    body = json.dumps({"model": "embedded", "messages": PROMPT, "max_tokens": 2}).encode()
    right = {"Authorization": "Bearer ké-secret".encode().decode("latin-1")}
    for headers, status in (
        (right, 200),
        ({}, 401),
        ({"Authorization": "Bearer ké"}, 401),
        ({"Authorization": "x"}, 401),
    ):
        assert _raw(server, "POST", "/v1/chat/completions", body, **headers)[0] == status
        assert _raw(server, "GET", "/v1/models", b"", **headers)[0] == status
        assert _raw(server, "GET", "/health", b"", **headers)[0] == 200
    with OpenAI(base_url=server.url, api_key="other", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            say(client)
        assert error.value.code == "invalid_api_key"
    server.shutdown()
    server.server_close()
    thread.join()
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err + caplog.text


class Part(BaseModel):
    """A tree."""

    name: str = Field(max_length=3)
    parts: list[Part] = Field(max_length=1)


class Answer(BaseModel):
    """What pydantic makes strict schemas of: bounds, choices, optional fields, nesting, recursion."""

    label: str = Field(min_length=1, max_length=6)
    role: Literal["detects", "moves"]
    confidence: float = Field(ge=0, le=1)
    number: int = Field(gt=3, lt=9)
    abstain: bool
    note: Literal["a", "b"] | None = None
    either: Part | None


@pytest.mark.parametrize("seed", range(3))
def test_pydantic_models_are_parsed(stories: ChatModel, seed: int) -> None:
    with serving(stories) as server, OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        reply = client.chat.completions.parse(
            model="stories", messages=PROMPT, response_format=Answer, seed=seed, max_tokens=400
        )
    found = reply.choices[0].message.parsed
    assert isinstance(found, Answer)


class Patterned(BaseModel):
    """What cannot be kept to."""

    code: str = Field(pattern="^[a-z]+$")


def test_pydantic_models_that_cannot_be_kept_to_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"schema\.code: keyword 'pattern'"):
        client.chat.completions.parse(model="embedded", messages=PROMPT, response_format=Patterned)


def test_too_many_waiting_are_sent_away(embedded: ChatModel) -> None:
    with serving(embedded) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        for _ in range(MOST_WAITING):
            running._places.acquire()
        with pytest.raises(openai.InternalServerError) as error:
            say(client)
        assert error.value.response.headers["retry-after"] == "1"
        running._places.release()
        assert say(client, max_tokens=2).choices


def test_a_failing_model_is_an_error_and_the_server_lives(embedded: ChatModel, monkeypatch: Any) -> None:
    with serving(embedded) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        with monkeypatch.context() as patch:
            patch.setattr(TokenStream, "_forward", lambda self: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="division"):
                say(client)
        assert say(client, max_tokens=2).choices


def test_a_stopped_server_stops_talking(stories: ChatModel) -> None:
    with serving(stories) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=30) as client:
        stream = say(client, model="stories", max_tokens=100_000, stream=True, seed=0)
        next(iter(stream))
        running.stopping.set()
        with pytest.raises(openai.APIError, match="stops"):
            list(stream)
    assert not [t for t in threading.enumerate() if t.name == "serve_forever"]


def test_long_prompts_can_be_cut(embedded: ChatModel) -> None:
    roomy = ChatModel(embedded.model, embedded.tokenizer, "embedded", long_prompts="cut")
    long: Any = [{"role": "user", "content": "Mary went to the market. " * 100}]
    with serving(roomy) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        reply = say(client, messages=long, response_format=strict(LABEL), max_tokens=400, seed=0)
        jsonschema.validate(json.loads(reply.choices[0].message.content), LABEL)
        assert reply.usage.prompt_tokens == 64
        assert reply.edgewise["cut_prompt_tokens"] > 400


def test_chats_by_template_or_plain(embedded: ChatModel, tmp_path: Path) -> None:
    turns = [
        Message("system", "Be kind."),
        Message("user", "Mary"),
        Message("assistant", "John"),
        Message("user", "<eos>"),
    ]
    plain = prompt_ids(turns, embedded.tokenizer)
    assert plain[0] == embedded.tokenizer.bos_token_id
    assert embedded.tokenizer.eos_token_id not in plain  # a special token's name in a message is text
    for file in model_directory().glob("*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}: {{ m.content }} {{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    model = load_chat_model(tmp_path, "templated", device="cpu")
    ids = prompt_ids(turns[:2], model.tokenizer)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 1, 1)
    assert ids == prompt_ids(
        [Message("user", "Be kind.\n\nMary")], model.tokenizer
    )  # templates without system messages
    with serving(model) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="no system"):
            say(client, model="templated", messages=[{"role": "system", "content": "x"}])
        assert say(client, model="templated", max_tokens=4).usage.completion_tokens <= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_is_the_same_as_at_once(family: str) -> None:
    model = tiny_model(family)
    ids = [3, 7, 11, 5, 9, 30, 12, 8, 4, 21]
    stream = TokenStream(model, ids[:4], Sampling(0.0), 10, None, False)
    for part in ([4], [5, 6, 7], [8], [9]):
        stream.logits()
        stream.append([ids[place] for place in part])
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(stream.logits(), whole, rtol=1e-4, atol=1e-4)
    assert stream.draw() == int(whole.argmax())
    assert stream.left == 4


def test_a_full_context_forgets_or_ends() -> None:
    model = tiny_model("llama")
    ids = list(range(3, 11))
    ending = TokenStream(model, ids, Sampling(0.0), 100, 8, False)
    assert ending.spent
    sliding = TokenStream(model, ids, Sampling(0.0), 100, 8, True)
    sliding.logits()
    sliding.append([20])
    kept = torch.tensor([[ids[0], *ids[-2:], 20]])
    with torch.no_grad():
        torch.testing.assert_close(sliding.logits(), model(input_ids=kept).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_draws_follow_temperature_and_top_p() -> None:
    model = tiny_model("llama")
    stream = TokenStream(model, [3, 4], Sampling(1.0, 1.0, 7), 10, None, False)
    chances = torch.softmax(stream.logits().double(), 0)
    drawn = torch.bincount(torch.tensor([stream.draw() for _ in range(4000)]), minlength=41) / 4000
    assert float((drawn - chances).abs().max()) < 0.04
    allowed = [5, 9, 17]
    assert {stream.draw(allowed) for _ in range(200)} <= set(allowed)
    best = chances.sort(descending=True)
    nucleus = int((best.values.cumsum(0) < 0.5).sum()) + 1
    narrow = TokenStream(model, [3, 4], Sampling(1.0, 0.5, 7), 10, None, False)
    assert {narrow.draw() for _ in range(500)} == set(best.indices[:nucleus].tolist())


def test_models_that_cannot_be_served_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoaded, match="does not exist"):
        load_chat_model(tmp_path / "none", "x")
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelNotLoaded, match="tokenizer"):
        load_chat_model(tmp_path, "x", device="cpu")

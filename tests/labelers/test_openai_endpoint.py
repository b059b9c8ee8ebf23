"""Requests that meet rate limits, errors, silence and garbage; budgets that hold; keys that stay where they belong."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelers.budget import Budget, BudgetSpent, likely_tokens, most_tokens
from labelers.endpoint import Endpoint, Reply, Request
from labelers.endpoint_faults import EndpointUnusable, FormatRefused, RequestFailed
from labelers.openai_settings import NO_KEY, OpenAISettings, Prices
from labelers.reply_cache import BadCache, ReplyCache, key_of
from tests.labelers.faulty_server import Answer, Seen, completion, failure, faulty_server

REQUEST = Request("system", "user", "json_schema", {"type": "object"}, "form", 50)
FINE = completion("{}")
Decide = Callable[[dict[str, Any], int], Answer]


def ask(
    decide: Decide, *requests: Request, cache: Path | None = None, **settings: Any
) -> tuple[list[Any], Endpoint, Seen]:
    """Replies or errors of some requests at once."""
    with faulty_server(decide) as seen:
        chosen = {"base_url": seen.url, "retries": 2, "timeout": 10.0, **settings}

        async def all_of_them() -> tuple[list[Any], Endpoint]:
            kept = None if cache is None else ReplyCache(cache)
            async with Endpoint(OpenAISettings("m", **chosen), kept) as endpoint:
                tasks = [endpoint.reply(request) for request in requests or (REQUEST,)]
                found = await asyncio.gather(*tasks, return_exceptions=True)
            if kept is not None:
                kept.close()
            return found, endpoint

        return *asyncio.run(all_of_them()), seen


def numbered(count: int) -> list[Request]:
    """Requests that differ."""
    return [Request("system", f"user {number}", "text", {}, "form", 50) for number in range(count)]


def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks() -> None:
    found, endpoint, seen = ask(lambda _, n: failure(429, retry_after="0.4") if n == 0 else FINE)
    assert found == [Reply("{}", "", "stop")] and endpoint.usage.retries == 1
    assert 0.4 <= seen.times[1] - seen.times[0] < 2


def test_everyone_waits_for_a_server_that_asks() -> None:
    def decide(body: dict[str, Any], number: int) -> Answer:
        return failure(429, retry_after="0.5") if number == 0 else FINE

    found, _, seen = ask(decide, *numbered(6), concurrency=1)
    assert len(found) == 6 and all(later - seen.times[0] >= 0.5 for later in seen.times[1:])


def test_a_date_and_milliseconds_are_pauses_too() -> None:
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    found, _, seen = ask(lambda _, n: failure(503, retry_after=soon) if n == 0 else FINE)
    assert found == [Reply("{}", "", "stop")] and 0.5 <= seen.times[1] - seen.times[0] <= 2.5
    found, _, seen = ask(lambda _, n: failure(429, retry_after_ms="300") if n == 0 else FINE)
    assert 0.3 <= seen.times[1] - seen.times[0] < 1.5


def test_a_pause_that_is_too_long_fails_at_once() -> None:
    found, _, seen = ask(lambda *_: failure(429, retry_after="9999"), longest_wait=5.0)
    assert isinstance(found[0], RequestFailed) and "9999 s" in str(found[0]) and len(seen.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        failure(500, "boom"),
        failure(503),
        Answer(FINE.body[:40]),
        Answer(FINE.body, cut=True),
        Answer(b"<html>gateway</html>"),
        Answer(b"[]"),
        Answer(b'{"choices": []}'),
        Answer(b'{"choices": [{"message": {"content": 3}}]}'),
        Answer(b'{"choices": [{"message": null}]}'),
        Answer(b"\xff\xfe"),
        Answer(b""),
    ],
)
def test_what_may_pass_is_tried_again(fault: Answer) -> None:
    found, endpoint, seen = ask(lambda _, n: fault if n == 0 else FINE)
    assert found == [Reply("{}", "", "stop")] and len(seen.requests) == 2 and endpoint.usage.retries == 1


def test_what_does_not_pass_is_reported() -> None:
    found, _, seen = ask(lambda *_: failure(500, "boom\n\x1b[31m"), retries=1)
    assert isinstance(found[0], RequestFailed) and "after 2 attempts" in str(found[0]) and "500" in str(found[0])
    assert len(seen.requests) == 2


def test_a_silent_server_times_out() -> None:
    found, endpoint, _ = ask(lambda _, n: Answer(FINE.body, delay=1.5) if n == 0 else FINE, timeout=0.4)
    assert found == [Reply("{}", "", "stop")]
    assert endpoint.usage.prompt_tokens > 100  # the lost request may have been paid for


def test_wrong_keys_and_models_end_the_run() -> None:
    for status, said in ((401, "refuses the key"), (403, "refuses access"), (404, "no such address or model")):
        found, _, seen = ask(lambda *_, status=status: failure(status, "no"))
        assert isinstance(found[0], EndpointUnusable) and said in str(found[0]) and len(seen.requests) == 1
    found, _, seen = ask(lambda *_: failure(429, code="insufficient_quota"))
    assert isinstance(found[0], EndpointUnusable) and len(seen.requests) == 1


def test_a_refused_format_is_known_for_good(tmp_path: Path) -> None:
    refuse = failure(400, "unknown field response_format")
    found, endpoint, _ = ask(lambda *_: refuse, cache=tmp_path / "r.sqlite")
    assert isinstance(found[0], FormatRefused)
    with ReplyCache(tmp_path / "r.sqlite") as kept:
        same = Endpoint(OpenAISettings("m", base_url=endpoint._url), kept)
        assert same.refuses("json_schema") and not same.refuses("json_object")
        assert not Endpoint(OpenAISettings("other", base_url=endpoint._url), kept).refuses("json_schema")


def test_concurrency_is_bounded() -> None:
    _, _, seen = ask(lambda *_: Answer(FINE.body, delay=0.1), *numbered(12), concurrency=3)
    assert seen.most_at_once == 3 and len(seen.requests) == 12


def test_a_cap_in_tokens_holds_whatever_the_server_says_or_hides() -> None:
    for usage in ((30, 20), None, ("x", -1)):
        answer = completion("{}", usage=usage) if usage != ("x", -1) else Answer(FINE.body.replace(b"100", b'"x"'))
        each = 50 if usage == (30, 20) else most_tokens(("system", "user 0", '""')) + 50
        cap = 5 * each if usage != (30, 20) else most_tokens(("system", "user 0", '""')) + 50 + 4 * each
        found, endpoint, seen = ask(lambda *_, answer=answer: answer, *numbered(10), max_tokens=cap)
        spent = [error for error in found if isinstance(error, BudgetSpent)]
        assert len(seen.requests) + len(spent) == 10 and len(seen.requests) >= 5
        assert endpoint.usage.prompt_tokens + endpoint.usage.reply_tokens <= cap


def test_a_cap_in_dollars_holds() -> None:
    prices = Prices(prompt=1000.0, reply=10000.0)
    found, endpoint, seen = ask(lambda *_: FINE, *numbered(20), prices=prices, max_usd=2.0)
    assert endpoint.usage.usd == pytest.approx(0.3 * len(seen.requests)) and endpoint.usage.usd <= 2.0
    assert 4 <= len(seen.requests) < 20 and sum(isinstance(error, BudgetSpent) for error in found) == 20 - len(
        seen.requests
    )
    with pytest.raises(ValueError, match="needs prices"):
        OpenAISettings("m", max_usd=1.0)
    with pytest.raises(ValueError, match="needs prices"):
        Budget(max_usd=1.0)


def test_the_bound_is_above_any_tokenizer_and_the_estimate_below_it() -> None:
    for text in ("", "a" * 1000, "\U0001f600" * 50, "日本語" * 10, "\ud800"):
        assert most_tokens([text]) >= len(text) and likely_tokens([text]) <= most_tokens([text])


def test_replies_are_kept_by_everything_that_shapes_them(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "replies.sqlite"
    with faulty_server(lambda *_: FINE) as seen:
        variants = [
            (REQUEST, {}),
            (Request("system!", "user", "json_schema", {"type": "object"}, "form", 50), {}),
            (Request("system", "user!", "json_schema", {"type": "object"}, "form", 50), {}),
            (Request("system", "user", "json_object", {"type": "object"}, "form", 50), {}),
            (Request("system", "user", "json_schema", {"type": "array"}, "form", 50), {}),
            (Request("system", "user", "json_schema", {"type": "object"}, "form", 51), {}),
            (REQUEST, {"temperature": 0.5}),
            (REQUEST, {"seed": 1}),
        ]

        async def send(request: Request, **other: Any) -> tuple[int, int]:
            with ReplyCache(path) as kept:
                async with Endpoint(OpenAISettings("m", base_url=seen.url, **other), kept) as endpoint:
                    assert await endpoint.reply(request) == Reply("{}", "", "stop")
                    return len(seen.requests), endpoint.usage.cached

        sent = [asyncio.run(send(request, **other)) for request, other in variants]
        assert sent == [(number, 0) for number in range(1, len(variants) + 1)]
        again = [asyncio.run(send(request, **other)) for request, other in variants]
        assert again == [(len(variants), 1)] * len(variants)


def test_no_key_reaches_the_cache_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWISE_API_KEY", "sk-very-secret")
    found, _, seen = ask(lambda *_: FINE, cache=tmp_path / "r.sqlite")
    assert seen.headers[0]["authorization"] == "Bearer sk-very-secret"
    found, _, _ = ask(lambda *_: failure(401, "Incorrect API key provided: sk-very-secret"))
    assert "***" in str(found[0]) and "secret" not in str(found[0])
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_which_key_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    openai, both = {"OPENAI_API_KEY": "o"}, {"OPENAI_API_KEY": "o", "EDGEWISE_API_KEY": "e"}

    def key(url: str | None, environment: dict[str, str]) -> str:
        return OpenAISettings("m", base_url=url).key(environment)

    assert key(None, openai) == "o" and key(None, both) == "e"
    assert key("http://127.0.0.1:8000/v1", openai) == "o" and key("http://localhost/v1", {}) == NO_KEY
    assert key("http://far.example/v1", openai) == NO_KEY and key("http://far.example/v1", both) == "e"
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        key(None, {})


@pytest.mark.parametrize(
    "url", ["far.example/v1", "ftp://x/v1", "https://user:pw@x/v1", "http://x/v1?key=s", "http:///v1"]
)
def test_odd_addresses_are_refused_without_showing_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as error:
        _ = OpenAISettings("m", base_url=url).url
    assert "pw" not in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no database at all, " * 100)
    with pytest.raises(BadCache, match=f"^{tmp_path / 'a'}: "):
        ReplyCache(tmp_path / "a")
    with pytest.raises(BadCache, match=f"^{tmp_path}: "):
        ReplyCache(tmp_path)


def test_keys_do_not_depend_on_the_order_of_fields() -> None:
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1}) != key_of({"a": 1})
    assert key_of({"a": "\ud800"}) != key_of({"a": "?"})

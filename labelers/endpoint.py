"""One OpenAI-compatible endpoint: requests that are retried, counted, capped and kept. The only file that imports openai."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import openai

from labelers.budget import Budget, Reservation, Usage, most_tokens
from labelers.endpoint_faults import (
    AGAIN,
    FATAL,
    Adapted,
    EndpointUnusable,
    FormatRefused,
    Passing,
    PromptTooLong,
    RequestFailed,
    is_too_long,
    retry_after,
)
from labelers.openai_settings import NO_KEY, OPENAI_URL, OpenAISettings
from labelers.reply_cache import ReplyCache, key_of

Format = Literal["json_schema", "json_object", "text"]
# What servers may not know of, with the words by which their complaints name it.
_OPTIONAL = {
    "max_tokens": ("max_completion_tokens",),
    "temperature": ("temperature",),
    "seed": ("seed",),
    "system": ("system role", "role 'system'", 'role "system"', "system message"),
}
_FORMAT_WORDS = ("response_format", "json_schema", "json_object", "schema", "grammar", "guided", "structured output")


@dataclass(frozen=True)
class Request:
    """What is asked."""

    system: str
    """Static instructions, first, so that providers can keep them."""
    user: str
    """The question and its data."""
    format: Format
    """How the reply's form is asked for."""
    schema: Mapping[str, Any]
    """The form: used by json_schema, part of the cache key always."""
    name: str
    """Name of the schema."""
    limit: int
    """Tokens of the reply at most."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    content: str
    """The text; hostile."""
    refusal: str = ""
    """Why the model would not answer; hostile. Empty where it did."""
    finish: str = ""
    """stop, length, content_filter, ..."""


class Endpoint:
    """Sends requests to one model. Use it in one event loop, as `async with Endpoint(...) as endpoint`."""

    def __init__(self, settings: OpenAISettings, cache: ReplyCache | None = None) -> None:
        """Raises ValueError for an impossible address, a missing key, or a cap that cannot be kept."""
        self.settings = settings
        self.budget = Budget(settings.prices, settings.max_usd, settings.max_tokens, settings.spent)
        self._cache, self._url, self._key = cache, settings.url, settings.key()
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=self._url, timeout=settings.timeout, max_retries=0
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._not_before, self._began = 0.0, time.monotonic()
        self._limit_name = "max_completion_tokens" if self._url == OPENAI_URL else "max_tokens"
        self._dropped: set[str] = set()
        self._refused_formats: set[Format] = set()
        self._answered = self._cached = self._retried = 0

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @property
    def usage(self) -> Usage:
        """What it has cost so far."""
        budget = self.budget
        counts = (self._answered, self._cached, self._retried, budget.prompt_tokens, budget.reply_tokens)
        return Usage(*counts, budget.usd, time.monotonic() - self._began)

    def known(self, request: Request) -> Reply | None:
        """The reply in the cache, if it is there. It is not counted."""
        found = None if self._cache is None else self._cache.get(self._cache_key(request))
        return None if found is None else _reply_of(found)

    def refuses(self, format: Format) -> bool:
        """Whether the endpoint is known not to take this response format, from this run or from the cache's."""
        if self._cache is not None and self._cache.get(self._fact_key(format)) is not None:
            self._refused_formats.add(format)
        return format in self._refused_formats

    async def reply(self, request: Request) -> Reply:
        """The reply: from the cache, or sent for and kept before anything else happens.

        Raises FormatRefused, PromptTooLong, RequestFailed, BudgetSpent (this request only) or EndpointUnusable (all of them).
        """
        found = self.known(request)
        if found is not None:
            self._cached += 1
            return found
        key = self._cache_key(request)
        refused = None if self._cache is None else self._cache.get(self._long_key(key))
        if refused is not None:
            raise PromptTooLong(str(refused.get("too_long", "")), key)
        async with self._slots:
            return await self._attempts(request)

    def keep_too_long(self, fault: PromptTooLong) -> None:
        """Notes in the cache that a request does not fit, so that a repeated run does not send it. For requests whose shorter
        form was answered: where none was, a repeated run asks again, for the endpoint may have changed."""
        if self._cache is not None:
            self._cache.put(self._long_key(fault.key), {"too_long": fault.said})

    async def _attempts(self, request: Request) -> Reply:
        attempt = 0
        while True:
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            try:
                return await self._send(request)
            except Adapted:  # a parameter that the server does not know was dropped: no failed attempt
                continue
            except Passing as fault:
                if attempt == self.settings.retries:
                    self._give_up(fault)
                attempt, self._retried = attempt + 1, self._retried + 1
                await self._pause(fault, attempt)

    def _give_up(self, fault: Passing) -> None:
        attempts = f" after {self.settings.retries + 1} attempts" if self.settings.retries else ""
        if fault.unreachable and not self._answered:
            raise EndpointUnusable(f"{self._url} cannot be reached{attempts} ({fault}): is it running?") from None
        raise RequestFailed(f"no reply{attempts}: {fault}") from None

    async def _pause(self, fault: Passing, attempt: int) -> None:
        """Waits as long as the server asks; else twice as long each time. Everyone waits for a server that asks."""
        if fault.after is None:
            await asyncio.sleep(
                min(0.5 * 2 ** (attempt - 1), 30.0, self.settings.longest_wait) * random.uniform(0.75, 1.25)
            )
            return
        if fault.after > self.settings.longest_wait:
            raise RequestFailed(
                f"the endpoint asks to wait {fault.after:.0f} s, longer than {self.settings.longest_wait:g} s"
            )
        self._not_before = max(self._not_before, time.monotonic() + fault.after)

    async def _send(self, request: Request) -> Reply:
        arguments = self._arguments(request)
        texts = [request.system, request.user, json.dumps(arguments.get("response_format", ""))]
        reserved = await self.budget.reserve(most_tokens(texts), request.limit)
        used = (0, 0)
        try:
            async with asyncio.timeout(self.settings.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(**arguments)
                body = raw.text
            content, used = _read_completion(body, reserved)
            if self._cache is not None:
                self._cache.put(self._cache_key(request), content)
            self._answered += 1
        except (TimeoutError, openai.APITimeoutError):
            used = (reserved.prompt, reserved.reply)  # it may have been worked on, and be paid for
            raise Passing(f"no answer within {self.settings.timeout:g} s", unreachable=True) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ != "ConnectError":
                used = (reserved.prompt, reserved.reply)
            raise Passing(self._say(cause), unreachable=type(cause).__name__ == "ConnectError") from None
        except openai.APIStatusError as error:
            raise self._fault(error, request) from None
        finally:
            await self.budget.settle(reserved, *used)
        return _reply_of(content)

    def _arguments(self, request: Request) -> dict[str, Any]:
        merged = f"{request.system}\n\n{request.user}"
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        arguments: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": merged}] if "system" in self._dropped else messages,
            self._limit_name: request.limit,
            "temperature": self.settings.temperature,
            "seed": self.settings.seed,
        }
        if request.format == "json_schema":
            described = {"name": request.name, "strict": True, "schema": dict(request.schema)}
            arguments["response_format"] = {"type": "json_schema", "json_schema": described}
        elif request.format == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        return {name: value for name, value in arguments.items() if name not in self._dropped}

    def _fault(self, error: openai.APIStatusError, request: Request) -> Exception:
        """What an error status means: try again, try otherwise, or give up."""
        told = error.body.get("message") if isinstance(error.body, dict) else None
        said = f"{error.status_code} {self._say(told or error.message)}"
        if error.status_code in FATAL:
            return EndpointUnusable(f"{self._url} {FATAL[error.status_code]} ({said})")
        complaint = f"{error.code or ''} {error.type or ''} {error.param or ''} {said}".lower()
        if is_too_long(error.status_code, complaint):
            return PromptTooLong(said, self._cache_key(request))
        if error.status_code == 429 and error.code == "insufficient_quota":
            return EndpointUnusable(f"{self._url}: the account's quota is spent ({said})")
        if error.status_code in AGAIN or error.status_code >= 500:
            return Passing(said, after=retry_after(error.response.headers))
        if request.format != "text" and any(word in complaint for word in _FORMAT_WORDS):
            self._refused_formats.add(request.format)
            if self._cache is not None:
                self._cache.put(self._fact_key(request.format), {"refused": said})
            return FormatRefused(said)
        return Adapted() if self._adapt(complaint) else RequestFailed(f"the endpoint refuses the request: {said}")

    def _adapt(self, complaint: str) -> bool:
        """Leaves out, or spells otherwise, what a server complains of. Whether there was something to change."""
        for name, words in _OPTIONAL.items():
            if name in self._dropped or not any(word in complaint for word in words):
                continue
            if name == "max_tokens" and self._limit_name != name:
                self._limit_name = name
                return True
            self._limit_name = "max_completion_tokens" if name == "max_tokens" else self._limit_name
            self._dropped.add(name)
            return True
        return False

    def _cache_key(self, request: Request) -> str:
        shaped = {"url": self._url, "model": self.settings.model, "request": vars(request)}
        return key_of({**shaped, "temperature": self.settings.temperature, "seed": self.settings.seed})

    def _fact_key(self, format: Format) -> str:
        return key_of({"url": self._url, "model": self.settings.model, "refuses": format})

    def _long_key(self, key: str) -> str:
        return key_of({"too long": key})

    def _say(self, error: object) -> str:
        """An error in one short line that does not hold the key."""
        text = " ".join(str(error).split()) or type(error).__name__
        return (text if self._key == NO_KEY else text.replace(self._key, "***"))[:200]


def _read_completion(body: str, reserved: Reservation) -> tuple[dict[str, Any], tuple[int, int]]:
    """What a chat completion says, as the cache keeps it, and the tokens that it took. Raises Passing for garbage."""
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message = choice["message"]
        content = {name: message.get(name) or "" for name in ("content", "refusal")}
        content["finish"] = str(choice.get("finish_reason") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Passing(f"the reply is no chat completion: {' '.join(body[:80].split())!r}") from None
    if not all(isinstance(text, str) for text in content.values()):
        raise Passing("the reply is no chat completion: its content is not text")
    usage = data.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, reply = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    return content, (reserved.prompt if prompt is None else prompt, reserved.reply if reply is None else reply)


def _reply_of(kept: Mapping[str, Any]) -> Reply:
    return Reply(*(str(kept.get(name, "")) for name in ("content", "refusal", "finish")))

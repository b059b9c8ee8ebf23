"""A chat completion request in OpenAI's form, read strictly: what cannot be done is refused by name, never ignored."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from discovery.chat_format import ChatRole, Message
from discovery.json_form import Schema
from discovery.json_schema import BadSchema, any_object, compile_schema
from discovery.token_stream import Sampling

# Said about a request, but without effect on what a model of ours writes.
_WITHOUT_EFFECT = {
    "user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls", "reasoning_effort", "verbosity",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
}  # fmt: skip
# Not implemented: only the value that changes nothing is taken.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
_ROLES: dict[str, ChatRole] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_STOPS = 4
_HIGHEST_SEED = 2**63 - 1


class BadRequest(ValueError):
    """A request that cannot be served: status and the fields of OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        """message: one line. param: the field that is wrong. code: OpenAI's word for it. status: of HTTP."""
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True)
class ChatRequest:
    """What is asked for."""

    model: str
    """Name of the model."""
    messages: tuple[Message, ...]
    """The chat so far."""
    limit: int | None
    """Most tokens of the reply; None = the server's default."""
    sampling: Sampling
    """How tokens are drawn."""
    stops: tuple[str, ...]
    """Texts before which the reply ends."""
    schema: Schema | None
    """Form of the reply; None = free text."""
    stream: bool
    """Whether the reply is sent piece by piece."""
    stream_usage: bool
    """Whether the token counts are sent behind the pieces."""


def read_request(body: bytes) -> ChatRequest:
    """The request in a body of JSON. Raises BadRequest."""
    try:
        data = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise BadRequest("the body is not a JSON object")
    _refuse_unknown(data)
    stream = _of(data, "stream", bool, False)
    schema = _schema(data.get("response_format"))
    stops = _stops(data.get("stop"))
    if stops and schema is not None:
        raise BadRequest("stop goes with free text only: a reply of JSON ends by itself", "stop", "unsupported_value")
    options = data.get("stream_options")
    return ChatRequest(
        model=_of(data, "model", str, None),
        messages=_messages(data.get("messages")),
        limit=_limit(data),
        sampling=_sampling(data),
        stops=stops,
        schema=schema,
        stream=stream,
        stream_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refuse_unknown(data: Mapping[str, Any]) -> None:
    known = {
        "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "response_format",
        "stream", *_WITHOUT_EFFECT,
    }  # fmt: skip
    for key, value in data.items():
        if key in known or value is None or (key in _NEUTRAL and value in _NEUTRAL[key]):
            continue
        if key in _NEUTRAL:
            raise BadRequest(f"{key} is not supported by this server", key, "unsupported_parameter")
        raise BadRequest(f"unknown parameter: {key[:60]!r}", key[:60], "unknown_parameter")


def _of(data: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = data.get(key, default)
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRequest(f"{key} is {'missing' if value is None else f'not of type {kind.__name__}'}", key)
    return value


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise BadRequest("messages is not a list of at least one message", "messages")
    found = []
    for place, turn in enumerate(given):
        name = f"messages[{place}]"
        if not isinstance(turn, Mapping):
            raise BadRequest(f"{name} is not an object", name)
        role = turn.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise BadRequest(f"{name}.role is not one of {', '.join(_ROLES)}", f"{name}.role")
        if turn.get("tool_calls"):
            raise BadRequest(
                f"{name}.tool_calls: tools are not supported", f"{name}.tool_calls", "unsupported_parameter"
            )
        found.append(Message(_ROLES[role], _content(turn.get("content"), f"{name}.content")))
    return tuple(found)


def _content(given: Any, name: str) -> str:
    """A text, or the texts of a list of parts."""
    parts = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(parts, list):
        raise BadRequest(f"{name} is not a text or a list of text parts", name)
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise BadRequest(f"{name}: only parts of type 'text' are supported", name, "unsupported_value")
        texts.append(text)
    try:
        return "".join(texts).encode().decode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name} holds half a character (a lone surrogate)", name) from None


def _limit(data: Mapping[str, Any]) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        if data.get(key) is not None:
            limit = _of(data, key, int, None)
            if limit < 1:
                raise BadRequest(f"{key} is below 1", key, "integer_below_min_value")
            return limit
    return None


def _sampling(data: Mapping[str, Any]) -> Sampling:
    temperature, top_p = _float(data, "temperature", 0, 2), _float(data, "top_p", 0, 1)
    drawn = int.from_bytes(os.urandom(7))
    seed = drawn if data.get("seed") is None else _of(data, "seed", int, None)
    if abs(seed) > _HIGHEST_SEED:
        raise BadRequest("seed does not fit into 64 bits", "seed")
    return Sampling(temperature, top_p, seed)


def _float(data: Mapping[str, Any], key: str, low: int, high: int) -> float:
    value = 1.0 if data.get(key) is None else data[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadRequest(f"{key} is not a number", key)
    if not low <= value <= high:
        raise BadRequest(f"{key} is not between {low} and {high}", key)
    return float(value)


def _stops(given: Any) -> tuple[str, ...]:
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop is not a text or a list of at most {_MOST_STOPS} texts", "stop")
    return tuple(stops)


def _schema(given: Any) -> Schema | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return any_object()
    if kind != "json_schema":
        raise BadRequest("response_format.type is not text, json_object or json_schema", "response_format.type")
    inner = given.get("json_schema")
    if not isinstance(inner, Mapping) or "schema" not in inner:
        raise BadRequest("response_format.json_schema.schema is missing", "response_format.json_schema.schema")
    try:
        return compile_schema(inner["schema"])
    except BadSchema as error:
        text = " ".join(str(error).split())
        raise BadRequest(text, "response_format.json_schema.schema", "invalid_json_schema") from error

"""The form of replies: strict JSON schemas, a tolerant parser, and the ladder of requests for servers that ignore them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from labelers.endpoint import Endpoint, Format, Reply, Request
from labelers.endpoint_faults import FormatRefused, PromptTooLong, RequestFailed
from labelers.prompt import data_block

Answer = TypeVar("Answer")
_RUNGS: tuple[Format, ...] = ("json_schema", "json_object", "text")
_PLAIN = "Reply with the one JSON object alone: no other text, no code fence."
_REPAIR = """\
A reply to the question in the data was not of the right form. Write it anew: the same meaning, as the one JSON object that \
the instructions describe, with the problem mended. The question, its data, the reply and the problem are in this block:"""
_MOST_TRIED = 20
"""Opening braces from which the tolerant parser reads, at most."""


class BadReply(ValueError):
    """A reply that is not of the form that was asked for; the message says what is wrong with it."""


@dataclass(frozen=True)
class Inquiry(Generic[Answer]):
    """Something to ask, and how to read the answer."""

    system: str
    """Static instructions; they describe the form in words too."""
    task: str
    """Static words before the data."""
    data: Mapping[str, Any]
    """Everything else: hostile, sent as one block of JSON."""
    name: str
    """Name of the schema."""
    schema: Mapping[str, Any]
    """Form of the reply, within what strict schemas may hold."""
    read: Callable[[Mapping[str, Any]], Answer]
    """Makes the answer of the JSON object; raises BadReply."""


async def ask(endpoint: Endpoint, question: Inquiry[Answer]) -> Answer:
    """The answer, by the first rung that gives one: strict schema, JSON mode, plain text, one repair.

    A rung whose reply is in the cache is taken first, so that a repeated run sends nothing. Raises RequestFailed when no
    rung gives one, and what `Endpoint.reply` raises.
    """
    limit = endpoint.settings.reply_tokens
    for format in _RUNGS:
        for longer in (1, 2):
            known = endpoint.known(_request(question, format, limit * longer))
            if known is not None and _is_read(known, question.read):
                return _read(await endpoint.reply(_request(question, format, limit * longer)), question.read)
    problem, said = "", ""
    for format in _RUNGS:
        if endpoint.refuses(format):
            continue
        try:
            reply = await endpoint.reply(_request(question, format, limit))
        except FormatRefused:
            continue
        try:
            return _read(reply, question.read)
        except BadReply as error:
            problem, said = str(error), reply.content
        limit = 2 * endpoint.settings.reply_tokens if reply.finish == "length" else limit
    repair = {"question": question.task, "data": question.data, "reply": said[:4000], "problem": problem}
    last = _request(
        Inquiry(question.system, _REPAIR, repair, question.name, question.schema, question.read), "text", limit
    )
    if not endpoint.refuses("json_schema"):
        last = Request(last.system, last.user, "json_schema", last.schema, last.name, last.limit)
    try:
        return _read(await endpoint.reply(last), question.read)
    except (BadReply, FormatRefused) as error:
        raise RequestFailed(f"no reply of the right form, even repaired: {error}") from None


async def ask_shorter(endpoint: Endpoint, versions: Iterable[Inquiry[Answer]]) -> tuple[Answer, int]:
    """The answer to the first of several versions of a question that the model's context can hold, and its place.

    versions: the whole first, then with less and less data. Raises PromptTooLong where none fits, and what `ask` raises.
    """
    refused: list[PromptTooLong] = []
    for place, question in enumerate(versions):
        try:
            answer = await ask(endpoint, question)
        except PromptTooLong as fault:
            refused.append(fault)
            continue
        for fault in refused:
            endpoint.keep_too_long(fault)
        return answer, place
    raise refused[-1]


def _request(question: Inquiry[Any], format: Format, limit: int) -> Request:
    task = f"{question.task}\n{_PLAIN}" if format == "text" else question.task
    return Request(
        question.system, f"{task}\n{data_block(question.data)}", format, question.schema, question.name, limit
    )


def _is_read(reply: Reply, read: Callable[[Mapping[str, Any]], Any]) -> bool:
    try:
        _read(reply, read)
    except (BadReply, RequestFailed):
        return False
    return True


def _read(reply: Reply, read: Callable[[Mapping[str, Any]], Answer]) -> Answer:
    """The answer that a reply holds. Raises BadReply, or RequestFailed where asking again will not help."""
    if reply.refusal:
        raise RequestFailed(f"the model refused: {' '.join(reply.refusal.split())[:120]!r}")
    if reply.finish == "content_filter":
        raise RequestFailed("the endpoint's filter stopped the reply")
    problem = BadReply("it was cut off" if reply.finish == "length" else "it holds no JSON object")
    for found in json_objects(reply.content):
        try:
            return read(found)
        except BadReply as error:
            problem = error
    raise problem


def json_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in a text, from the left, each as a whole: in code fences, behind thoughts, among prose."""
    decoder, place = json.JSONDecoder(strict=False), 0
    for _ in range(_MOST_TRIED):
        place = text.find("{", place)
        if place < 0:
            return
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        yield found


def strict_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def text_of(data: Mapping[str, Any], name: str) -> str:
    """A text of the reply. Raises BadReply."""
    value = data.get(name)
    if not isinstance(value, str):
        raise BadReply(f"{name!r} is {'missing' if value is None else 'not a text'}")
    return value


def one_of(data: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """A text of the reply that must be one of `choices`. Raises BadReply."""
    value = text_of(data, name)
    if value not in choices:
        raise BadReply(f"{name!r} is {value[:40]!r}, not one of {', '.join(choices)}")
    return value


def list_of(data: Mapping[str, Any], name: str, kind: type[Any]) -> list[Any]:
    """A list of the reply whose entries are all of one type. Raises BadReply."""
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        raise BadReply(f"{name!r} is {'missing' if value is None else 'not a list of the right kind'}")
    return value

"""The `spans` of a row: names and where they are, as texts, ranges of characters or ranges of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from discovery.task import BadTask, Span
from discovery.task_formats.row import Row

_PLACE = "a text of the prompt, [start, stop] or {tokens: [start, stop]}"


def read_spans(row: Row, column: str, clean: Any, corrupt: Any) -> tuple[Span, ...]:
    """The spans of a row: `{name: place}`, or `{name: {clean: place, corrupt: place}}` where the two differ.

    A place is a text that stands in the prompt once, `[start, stop]` (characters of a text, tokens of a list of ids), or
    `{"tokens": [start, stop]}`. A place given once is the clean prompt's; the corrupt prompt, which must be as long then,
    has the span at the same tokens. Raises BadTask naming row, field and span.
    """
    value = row.value(column)
    if row.text_only and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise row.bad(column, f"must be a JSON object: {error}") from None
    if not isinstance(value, Mapping):
        raise row.bad(column, f"must be an object {{name: place}}, not {type(value).__name__}")
    try:
        return tuple(_span(str(name), entry, clean, corrupt) for name, entry in value.items())
    except BadTask as error:
        raise row.bad(column, str(error)) from None


def _span(name: str, entry: Any, clean: Any, corrupt: Any) -> Span:
    both = isinstance(entry, Mapping) and "clean" in entry
    if both and not entry.keys() <= {"clean", "corrupt"}:
        raise BadTask(f"span {name!r}: give clean and corrupt, nothing else")
    place, unit = _place(name, entry["clean"] if both else entry, clean, "clean")
    if not both:
        return Span(name, place, None, unit)
    if "corrupt" not in entry:
        raise BadTask(f"span {name!r}: give its place in the corrupt prompt, too, or one place alone for both")
    other, other_unit = _place(name, entry["corrupt"], corrupt, "corrupt")
    if other_unit != unit:
        raise BadTask(f"span {name!r}: give both places in characters, or both in tokens")
    return Span(name, place, other, unit)


def _place(name: str, entry: Any, prompt: Any, side: str) -> tuple[tuple[int, int], Any]:
    """Start, stop, and what they count."""
    as_text = isinstance(prompt, str)
    if isinstance(entry, str) and as_text:
        if not entry or prompt.count(entry) != 1:
            times = prompt.count(entry) if entry else 0
            raise BadTask(
                f"span {name!r}: {entry!r} stands {times} times in the {side} prompt: give its characters [start, stop]"
            )
        start = prompt.index(entry)
        return (start, start + len(entry)), "characters"
    ends, in_tokens = entry, False
    if isinstance(entry, Mapping) and set(entry) == {"tokens"}:
        ends, in_tokens = entry["tokens"], True
    if not isinstance(ends, list | tuple) or len(ends) != 2 or any(type(end) is not int for end in ends):
        raise BadTask(f"span {name!r}: {json.dumps(entry, default=str)[:60]} is no place: give {_PLACE}")
    return (ends[0], ends[1]), "characters" if as_text and not in_tokens else "tokens"

"""Reading and writing numbers, names and texts of graph files, each error one line that says where it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from graphs.node import NodeId

Value = TypeVar("Value")


class BadGraphFile(ValueError):
    """A file that is not what it should be; the message names the field."""


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object. what: the kind of file, for errors."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadGraphFile(f"not {what}: not JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict):
        raise BadGraphFile(f"not {what}: not a JSON object")
    return data


def check_format(data: Mapping[str, Any], name: str, version: int) -> None:
    """Raises BadGraphFile unless the file says that it has this format and version."""
    if data.get("format") != name or data.get("version") != version:
        raise BadGraphFile(f"not a graph file: its 'format' is not {name!r}, or its 'version' not {version}")


def write_object(head: Mapping[str, Any], lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """UTF-8 JSON: one line for each field of `head`, then one for each entry of `lists`. Infinite numbers raise ValueError."""
    try:
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in head.items()]
        for key, entries in lists.items():
            listed = ",\n".join("    " + json.dumps(entry, allow_nan=False) for entry in entries)
            lines.append(f"  {json.dumps(key)}: [" + (f"\n{listed}\n  " if entries else "") + "]")
    except ValueError:
        raise ValueError("a graph file cannot hold infinite numbers: check weights and facts") from None
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8")


def take(data: Any, key: str, kind: type[Value], where: str) -> Value:
    """A field of a given type; for float any finite number, NaN for null."""
    if not isinstance(data, dict) or key not in data:
        raise BadGraphFile(f"{where}: {key!r} is missing")
    value = data[key]
    if kind is float:
        return number(value, f"{where}: {key!r}")  # type: ignore[return-value]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadGraphFile(f"{where}: {key!r} is {str(value)[:40]!r}, not {_KINDS[kind]}")
    return value


_KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}


def number(value: Any, where: str) -> float:
    """A finite number, or NaN for null."""
    if value is None:
        return float("nan")
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except OverflowError:
            pass
    raise BadGraphFile(f"{where} is {str(value)[:40]!r}, not a number")


def numbers(entries: Sequence[Any], key: str, dtype: type[np.floating], where: Sequence[str]) -> np.ndarray:
    """A number of every entry, as an array. where: what each entry is called in errors."""
    values = [number(entry.get(key), f"{place}: {key!r}") for entry, place in zip(entries, where)]
    with np.errstate(over="ignore"):
        result = np.array(values, dtype=np.float64).astype(dtype)
    if np.isinf(result).any():
        raise BadGraphFile(f"{where[int(np.isinf(result).argmax())]}: {key!r} is too large")
    return result


def plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON: the shortest decimals that read back as the same numbers of their type, null for NaN."""
    return [None if math.isnan(value) else float(str(value)) for value in values]


def texts_of(data: Any, key: str, where: str) -> dict[str, str]:
    """An object whose values are texts."""
    found = take(data, key, dict, where)
    return {name: take(found, name, str, f"{where}: {key!r}") for name in found}


def node_of(name: Any, where: str) -> NodeId:
    """The node that a name in a file says."""
    try:
        return NodeId.parse(name)
    except (ValueError, AttributeError, TypeError):
        raise BadGraphFile(f"{where}: {str(name)[:60]!r} is not a node name") from None


def nodes_of(data: Any, key: str, where: str) -> tuple[NodeId, ...]:
    """A list of node names."""
    return tuple(node_of(name, f"{where}: {key!r}") for name in take(data, key, list, where))


def objects(data: Any, key: str, where: str) -> list[dict[str, Any]]:
    """A list of objects."""
    entries = take(data, key, list, where)
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadGraphFile(f"{where}: {key!r}: entry {place} is not an object")
    return entries


def places_of(names: Sequence[Any], index: Mapping[Any, int], where: str) -> np.ndarray:
    """Places of names that a file uses among those that it lists."""
    for name in names:
        if not isinstance(name, str) or name not in index:
            raise BadGraphFile(f"{where}: there is no node {str(name)[:60]!r} in the file")
    return np.array([index[name] for name in names], dtype=np.int64)


def check_distinct(names: Sequence[Any], where: str) -> None:
    """Raises BadGraphFile naming the first of `names` that stands there twice."""
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise BadGraphFile(f"{where}: {name} is listed twice")
        seen.add(name)

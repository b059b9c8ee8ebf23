"""Evidence and labels as JSON: one file a node, and one file for the labels of a run. Reading checks every field."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from graphs.evidence import Evidence
from graphs.json_fields import BadGraphFile, check_distinct, check_format, node_of, objects, read_object, take
from graphs.label import Label
from graphs.node import NodeId

EVIDENCE_FORMAT, LABELS_FORMAT, VERSION = "edgewise-evidence", "edgewise-labels", 1


@dataclass(frozen=True)
class LabelFile:
    """What a file of labels holds."""

    labels: dict[NodeId, Label]
    """By node, in the file's order."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is known, as JSON holds it: labeler, failures, groups, narrative; hostile."""


def evidence_to_json(evidence: Evidence) -> bytes:
    """One node's evidence as ASCII JSON; `evidence_from_json` gives an equal one. Raises ValueError for infinite numbers."""
    return _dump({"format": EVIDENCE_FORMAT, "version": VERSION, **_plain(evidence, f"evidence of {evidence.node}")})


def evidence_from_json(text: str | bytes, where: str = "evidence file") -> Evidence:
    """What `evidence_to_json` wrote. where: the file, for errors. Raises BadGraphFile with one line that names the field."""
    data = _read(text, where, EVIDENCE_FORMAT)
    return _record(Evidence, {key: value for key, value in data.items() if key not in ("format", "version")}, where)


def labels_to_json(labels: Iterable[Label], facts: Mapping[str, Any] | None = None) -> bytes:
    """Labels as ASCII JSON, one line each. Raises ValueError for infinite numbers.

    facts: what else the file shall hold, as JSON.
    """
    entries = [_plain(label, f"label of {label.node}") for label in labels]
    lines = ",\n".join("  " + json.dumps(entry, allow_nan=False) for entry in entries)
    head = {"format": LABELS_FORMAT, "version": VERSION, "facts": dict(facts or {})}
    start = _dump(head).decode("ascii").removesuffix("\n}\n")
    return (start + ',\n "labels": [' + (f"\n{lines}\n ]" if entries else "]") + "\n}\n").encode("ascii")


def label_data(label: Label) -> dict[str, Any]:
    """One label as JSON data, as it stands in files of labels. Raises ValueError for infinite numbers."""
    return _plain(label, f"label of {label.node}")


def label_of(data: Any, where: str) -> Label:
    """The label that `label_data` gave. Raises BadGraphFile naming the field."""
    return _record(Label, data, where)


def named_data(named: Mapping[str, Label]) -> dict[str, list[dict[str, Any]]]:
    """The `named` field of a graph's file; nothing where there are no labels."""
    return {"named": [label_data(label) for label in named.values()]} if named else {}


def named_of(data: Mapping[str, Any], where: str) -> dict[str, Label]:
    """The labels of a file's `named` field, by node name; none where it has no such field. Raises BadGraphFile."""
    entries = objects(data, "named", where) if "named" in data else []
    found = [label_of(entry, f"{where}: 'named'") for entry in entries]
    check_distinct([label.node for label in found], f"{where}: 'named'")
    return {str(label.node): label for label in found}


def labels_from_json(text: str | bytes, where: str = "label file") -> LabelFile:
    """What `labels_to_json` wrote. where: the file, for errors. Raises BadGraphFile with one line that names node or field."""
    data = _read(text, where, LABELS_FORMAT)
    entries = objects(data, "labels", where)
    names = [take(entry, "node", str, f"{where}: labels") for entry in entries]
    check_distinct(names, f"{where}: labels")
    labels = [_record(Label, entry, f"{where}: label of {name[:60]!r}") for entry, name in zip(entries, names)]
    return LabelFile({label.node: label for label in labels}, take(data, "facts", dict, where))


def _dump(data: Mapping[str, Any]) -> bytes:
    """One line for each field."""
    try:
        lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in data.items()]
    except ValueError:
        raise ValueError("labels and evidence cannot hold infinite numbers") from None
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _read(text: str | bytes, where: str, name: str) -> dict[str, Any]:
    try:
        data = read_object(text, f"a file of {name}")
        check_format(data, name, VERSION)
    except BadGraphFile as error:
        raise BadGraphFile(f"{where}: {error}") from None
    return data


def _plain(value: Any, where: str) -> Any:
    """A value of one of the field types as JSON holds it. Fields that hold their default are left out."""
    if isinstance(value, NodeId):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: _plain(getattr(value, item.name), f"{where}: {item.name!r}")
            for item in dataclasses.fields(value)
            if getattr(value, item.name) != _default(item)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}: {key!r}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, where) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"{where} is {value}: labels and evidence hold finite numbers only")
    return value


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


_KINDS = {str: "a text", int: "a whole number", bool: "true or false"}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _record(kind: type, data: Any, where: str) -> Any:
    """A dataclass from an object: unknown and missing fields and wrong types are errors."""
    if not isinstance(data, dict):
        raise BadGraphFile(f"{where} is {str(data)[:40]!r}, not an object")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise BadGraphFile(f"{where}: there is no field {str(key)[:40]!r}")
    for name, item in fields.items():
        if name not in data and _default(item) is dataclasses.MISSING:
            raise BadGraphFile(f"{where}: {name!r} is missing")
    hints = _hints(kind)
    values = {key: _value(hints[key], value, f"{where}: {key!r}") for key, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise BadGraphFile(f"{where}: {error}") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type of a field."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        chosen = next(part for part in inner if part is not type(None))
        return None if value is None else _value(chosen, value, where)
    if origin is Literal:
        if value not in inner:
            raise BadGraphFile(f"{where} is {str(value)[:40]!r}, not one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        _check(isinstance(value, list), value, where, "a list")
        return tuple(_value(inner[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is not None:
        _check(isinstance(value, dict), value, where, "an object")
        return {
            _value(inner[0], key, where): _value(inner[1], item, f"{where}: {key!r}") for key, item in value.items()
        }
    if kind is NodeId:
        return node_of(value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where)
    if kind is float:
        return _finite(value, where)
    _check(type(value) is kind, value, where, _KINDS[kind])
    return value


def _finite(value: Any, where: str) -> float:
    okay = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
    _check(okay, value, where, "a finite number")
    return float(value)


def _check(okay: bool, value: Any, where: str, wanted: str) -> None:
    if not okay:
        raise BadGraphFile(f"{where} is {str(value)[:40]!r}, not {wanted}")

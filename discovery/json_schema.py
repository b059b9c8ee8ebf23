"""A JSON schema as a tree of what may be written. Everything that cannot be kept to is refused, by its keyword."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from discovery.json_form import (
    ANY,
    IS_OF_TYPE,
    Array,
    Choice,
    Either,
    Map,
    Member,
    Node,
    Number,
    Object,
    Reference,
    Schema,
    Text,
    is_number,
    least_depth,
    least_size,
)

MOST_DIGITS = 15
"""Digits of a number, at most, where its bounds allow that: so many are told apart by every reader."""
DECIMALS = 6
"""Digits after the point of a number, at most; more only where its bounds leave nothing else."""
_DEEPEST = 50
_MOST_REFERENCES = 300
_LARGEST = 100_000
_SAID_ONLY = {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
_DEFINITIONS = {"$defs", "definitions"}
_ROOT_ONLY = {"$schema", "$id"}


class BadSchema(ValueError):
    """A schema that is wrong, or that writing cannot be held to; the message names the place and the keyword."""


def any_object() -> Schema:
    """The form of JSON mode: an object that holds anything."""
    return compile_schema({"type": "object"})


def compile_schema(schema: Any) -> Schema:
    """The tree of a JSON schema (draft 2020-12, the part that strict structured output knows, and a little more).

    Raises BadSchema.
    """
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # half a character in a name, an infinite number
        raise BadSchema("schema: it holds a text or a number that JSON cannot hold") from None
    reader = _Reader(schema)
    root = reader.read(schema, "", 0)
    reader.read_references()
    depths = dict.fromkeys(reader.references, math.inf)
    for _ in depths:
        depths = {pointer: least_depth(node, depths) for pointer, node in reader.references.items()}
    deepest = max(least_depth(root, depths), *depths.values(), 0.0)
    if deepest > _DEEPEST:
        raise BadSchema(
            f"schema: $ref: values {'never end' if math.isinf(deepest) else f'nest deeper than {_DEEPEST}'}"
        )
    made = Schema(root, reader.references, depths)
    if least_size(made, root, {}) > _LARGEST:
        raise BadSchema(f"schema: its smallest value has more than {_LARGEST} characters")
    return made


class _Reader:
    """Reads one schema; `references` fills as `$ref`s are met."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.references: dict[str, Node] = {}
        self._open: list[str] = []

    def read(self, schema: Any, place: str, depth: int) -> Node:
        """The form that a schema at `place` gives."""
        if depth > _DEEPEST:
            raise BadSchema(f"schema{place[:80]}...: nested deeper than {_DEEPEST}")
        if schema is True:
            return self._anything()
        if not isinstance(schema, Mapping):
            raise BadSchema(f"schema{place}: {'false allows no value' if schema is False else 'not an object'}")
        known = _SAID_ONLY | _DEFINITIONS | (set() if place else _ROOT_ONLY)
        rest = {key: value for key, value in schema.items() if key not in known}
        for key, read in _WHOLE.items():
            if key in rest:
                allowed = {key, "type"} if key in ("enum", "const") else {key}
                _only(rest, allowed, place, f"beside {key!r}")
                return read(self, rest, place, depth)
        kinds = rest.pop("type", None)
        if kinds is None:
            kinds = next((kind for kind, words in _KEYWORDS.items() if words & set(rest)), None)
            if kinds is None:
                _only(rest, set(), place, "here")
                return self._anything()
        return self._typed(rest, kinds, place, depth)

    def _typed(self, rest: dict[str, Any], kinds: Any, place: str, depth: int) -> Node:
        names = _type_names(kinds, place)
        _only(rest, set().union(*(_KEYWORDS[name] for name in names)), place, f"for type {', '.join(names)}")
        nodes = tuple(_TYPES[name](self, rest, place, depth) for name in names)
        return nodes[0] if len(nodes) == 1 else Either(nodes)

    def _anything(self) -> Node:
        if ANY not in self.references:
            itself = Reference(ANY)
            scalars = Choice(("true", "false", "null"))
            top = 10**MOST_DIGITS - 1
            self.references[ANY] = Either((Text(), Number(-top, top, 0), scalars, Array(itself), Map(itself)))
        return Reference(ANY)

    def read_references(self) -> None:
        """Reads what the references point to, and what that refers to."""
        while self._open:
            pointer = self._open.pop()
            if len(self.references) > _MOST_REFERENCES:
                raise BadSchema(f"schema: $ref: more than {_MOST_REFERENCES} different ones")
            if pointer not in self.references:
                self.references[pointer] = self.read(self._find(pointer), f" at {pointer}", 0)

    def _find(self, pointer: str) -> Any:
        found = self.whole
        for part in filter(None, unquote(pointer[1:]).split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise BadSchema(f"schema: $ref {pointer!r} points to nothing")
        return found

    def reference(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """A `$ref` within the schema."""
        pointer = rest["$ref"]
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise BadSchema(f"schema{place}: $ref {pointer!r} is not a place in this schema, such as '#/$defs/name'")
        self._open.append(pointer)
        return Reference(pointer)

    def any_of(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """`anyOf`, at least one."""
        options = rest["anyOf"]
        if not isinstance(options, list) or not options:
            raise BadSchema(f"schema{place}: anyOf is not a list of schemas")
        return Either(tuple(self.read(s, f"{place}.anyOf[{i}]", depth + 1) for i, s in enumerate(options)))

    def all_of(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """`allOf` with one schema, as some generators write references."""
        options = rest["allOf"]
        if not isinstance(options, list) or len(options) != 1:
            raise BadSchema(f"schema{place}: keyword 'allOf' is supported with one schema only")
        return self.read(options[0], f"{place}.allOf[0]", depth + 1)

    def enum(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """`enum` or `const`, less the values that are not of the type."""
        values = [rest["const"]] if "const" in rest else rest["enum"]
        if not isinstance(values, list) or not values:
            raise BadSchema(f"schema{place}: enum is not a list of values")
        if "type" in rest:
            names = _type_names(rest["type"], place)
            values = [value for value in values if any(IS_OF_TYPE[name](value) for name in names)]
            if not values:
                raise BadSchema(f"schema{place}: no value of enum or const is of the type")
        return Choice(tuple(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values)))

    def object(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """An object; the properties that are not named are left out."""
        properties, required = rest.get("properties", {}), rest.get("required", [])
        others = rest.get("additionalProperties", True)
        if not isinstance(properties, Mapping):
            raise BadSchema(f"schema{place}: properties is not an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise BadSchema(f"schema{place}: required is not a list of names")
        if missing := [name for name in required if name not in properties]:
            raise BadSchema(f"schema{place}: required names {missing[0]!r}, which is not in properties")
        if not properties and others is not False:
            return Map(self.read(others, f"{place}.additionalProperties", depth + 1))
        return Object(tuple(
            Member(name, self.read(value, f"{place}.{name}", depth + 1), name in required)
            for name, value in properties.items()
        ))  # fmt: skip

    def array(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """A list."""
        least, most = _sizes(rest, "minItems", "maxItems", place)
        return Array(self.read(rest.get("items", True), f"{place}[]", depth + 1), least, most)

    def text(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """A string."""
        return Text(*_sizes(rest, "minLength", "maxLength", place))

    def integer(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """A whole number."""
        low, high = _bounds(rest, 0, place)
        if low > high:
            raise BadSchema(f"schema{place}: no whole number lies between minimum and maximum")
        return Number(low, high, 0)

    def number(self, rest: Mapping[str, Any], place: str, depth: int) -> Node:
        """A number with as many decimals as its bounds ask for."""
        given = [abs(rest[key]) for key in _LIMITS & set(rest) if is_number(rest[key]) and math.isfinite(rest[key])]
        finest = max(0, MOST_DIGITS - len(str(int(max(given, default=0)))))
        for decimals in range(min(DECIMALS, finest), finest + 1):
            low, high = _bounds(rest, decimals, place)
            if low <= high:
                return Number(low, high, decimals)
        raise BadSchema(f"schema{place}: no number of {MOST_DIGITS} digits lies between minimum and maximum")


_Read = Callable[[_Reader, dict[str, Any], str, int], Node]
_WHOLE: dict[str, _Read] = {
    "$ref": _Reader.reference,
    "anyOf": _Reader.any_of,
    "allOf": _Reader.all_of,
    "const": _Reader.enum,
    "enum": _Reader.enum,
}
_LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": _LIMITS,
    "integer": _LIMITS,
    "boolean": set(),
    "null": set(),
}
_TYPES: dict[str, _Read] = {
    "object": _Reader.object,
    "array": _Reader.array,
    "string": _Reader.text,
    "number": _Reader.number,
    "integer": _Reader.integer,
    "boolean": lambda *_: Choice(("true", "false")),
    "null": lambda *_: Choice(("null",)),
}


def _only(given: Iterable[str], allowed: set[str], place: str, where: str) -> None:
    for key in given:
        if key not in allowed:
            raise BadSchema(f"schema{place}: keyword {key!r} is not supported {where}")


def _type_names(kinds: Any, place: str) -> list[str]:
    names = kinds if isinstance(kinds, list) else [kinds]
    for name in names or [None]:
        if not isinstance(name, str) or name not in _TYPES:
            raise BadSchema(f"schema{place}: type {name!r} is not one of {', '.join(_TYPES)}")
    return names


def _sizes(rest: Mapping[str, Any], least_key: str, most_key: str, place: str) -> tuple[int, int | None]:
    least, most = rest.get(least_key, 0), rest.get(most_key)
    for key, value in ((least_key, least), (most_key, most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise BadSchema(f"schema{place}: {key} is {value!r}, not a whole number from 0")
    if most is not None and least > most:
        raise BadSchema(f"schema{place}: {least_key} is above {most_key}")
    return least, most


def _bounds(rest: Mapping[str, Any], decimals: int, place: str) -> tuple[int, int]:
    """Smallest and largest value in units of the last decimal."""
    unit = 10**decimals
    low = high = None
    for key in sorted(_LIMITS & set(rest)):
        value = rest[key]
        if not is_number(value) or not math.isfinite(value):
            raise BadSchema(f"schema{place}: {key} is {value!r}, not a number")
        scaled = Fraction(str(value)) * unit
        if key in ("minimum", "exclusiveMinimum"):
            edge = math.floor(scaled) + 1 if key == "exclusiveMinimum" else math.ceil(scaled)
            low = edge if low is None else max(low, edge)
        else:
            edge = math.ceil(scaled) - 1 if key == "exclusiveMaximum" else math.floor(scaled)
            high = edge if high is None else min(high, edge)
    top = 10**MOST_DIGITS - 1
    if low is None:
        low = -top if high is None else min(-top, high)
    return low, max(top, low) if high is None else high

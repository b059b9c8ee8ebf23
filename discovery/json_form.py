"""What may be written as JSON: a tree of forms, which a JSON schema is read into."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[str, ...]
    """The values as JSON texts."""


@dataclass(frozen=True)
class Text:
    """A string."""

    least: int = 0
    """Fewest characters (code points)."""
    most: int | None = None
    """Most characters; None = no limit."""


@dataclass(frozen=True)
class Number:
    """A number without exponent, on the grid of its last decimal."""

    low: int
    """Smallest value, in units of the last decimal."""
    high: int
    """Largest value, in the same units."""
    decimals: int
    """Digits after the point, at most; 0 = a whole number."""


@dataclass(frozen=True)
class Array:
    """A list of values of one form."""

    item: Node
    """Form of each."""
    least: int = 0
    """Fewest items."""
    most: int | None = None
    """Most items; None = no limit."""


@dataclass(frozen=True)
class Member:
    """A property of an object."""

    name: str
    """Its key."""
    value: Node
    """Form of its value."""
    required: bool
    """Whether it may not be left out."""


@dataclass(frozen=True)
class Object:
    """An object with these properties, in this order."""

    members: tuple[Member, ...]
    """Its properties."""


@dataclass(frozen=True)
class Map:
    """An object with any keys."""

    value: Node
    """Form of its values."""


@dataclass(frozen=True)
class Either:
    """Any one of several forms."""

    nodes: tuple[Node, ...]
    """The forms."""


@dataclass(frozen=True)
class Reference:
    """A form that stands elsewhere in the schema, perhaps around this very place."""

    pointer: str
    """Its place, as `$ref` says it."""


Node = Choice | Text | Number | Array | Object | Map | Either | Reference
ANY = "anything"
"""Pointer of the form that every value has."""


@dataclass(frozen=True)
class Schema:
    """A whole schema, ready for writing."""

    root: Node
    """Form of the whole value."""
    references: Mapping[str, Node] = field(default_factory=dict)
    """Pointer -> form."""
    depths: Mapping[str, float] = field(default_factory=dict)
    """Pointer -> how deep its shallowest value is nested."""

    def depth(self, node: Node) -> float:
        """How deep the shallowest value of this form is nested; infinite where none ends."""
        return least_depth(node, self.depths)


def least_size(schema: Schema, node: Node, known: dict[str, int]) -> int:
    """About how many characters the shallowest value has. known: pointer -> size, filled on the way."""
    if isinstance(node, Reference):
        if node.pointer not in known:
            known[node.pointer] = least_size(schema, schema.references[node.pointer], known)
        return known[node.pointer]
    if isinstance(node, Either):
        return least_size(schema, shallowest(schema, node), known)
    if isinstance(node, Array):
        return 2 + node.least * (2 + least_size(schema, node.item, known)) if node.least else 2
    if isinstance(node, Object):
        needed = (m for m in node.members if m.required)
        return 2 + sum(4 + len(m.name) + least_size(schema, m.value, known) for m in needed)
    if isinstance(node, Choice):
        return len(node.options[0])
    return 2 + node.least if isinstance(node, Text) else 2


def shallowest(schema: Schema, either: Either) -> Node:
    """The form of an `anyOf` whose values can end soonest."""
    return min(either.nodes, key=schema.depth)


def least_depth(node: Node, depths: Mapping[str, float]) -> float:
    """How deep the shallowest value is nested. depths: the same for pointers; infinite where it is not known."""
    if isinstance(node, Reference):
        return 1 + depths.get(node.pointer, math.inf)
    if isinstance(node, Either):
        return min(least_depth(option, depths) for option in node.nodes)
    if isinstance(node, Array):
        return 1 + least_depth(node.item, depths) if node.least else 0.0
    if isinstance(node, Object):
        return 1 + max((least_depth(m.value, depths) for m in node.members if m.required), default=-1.0)
    return 0.0


def is_number(value: Any) -> bool:
    """Whether it is a number of JSON: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


IS_OF_TYPE: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": is_number,
    "integer": lambda value: is_number(value) and float(value).is_integer(),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
"""Name of a JSON type -> whether a value is of it."""

"""JSON that always fits its schema: what is certain is written, what is open the model chooses among what may stand there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from discovery.json_form import (
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
    shallowest,
)
from discovery.json_number import can_begin
from discovery.json_pen import Pen, Vocabulary, Voice

LIST_ITEMS = 8
"""Most items of an array without `maxItems`, or keys of an object of any keys."""
_KEY = Text(1, 24)
_DEEP = 12  # from this depth on, the shallowest forms are taken


@dataclass(frozen=True)
class Written:
    """How the writing went."""

    shortened: bool
    """Whether the voice was spent before the end: the rest is the shortest that fits."""
    cut: int
    """Strings that were closed for they had had their share of the tokens, not by the model or `maxLength`."""


def write_json(schema: Schema, voice: Voice, vocabulary: Vocabulary, emit: Callable[[bytes], None]) -> Written:
    """Writes one value of the schema, piece by piece, to `emit`.

    A choice whose options no token of the vocabulary can begin is its first.
    """
    pen = Pen(voice, vocabulary, emit)
    _Writer(schema, pen).value(schema.root, 0)
    return Written(pen.shortened, pen.cut)


class _Writer:
    """Follows the tree of forms; the pen does the writing."""

    def __init__(self, schema: Schema, pen: Pen) -> None:
        self.schema = schema
        self.pen = pen
        self._known_starts: dict[tuple[str, int], list[bytes]] = {}

    def value(self, node: Node, depth: int) -> None:
        """Writes a value."""
        if isinstance(node, Reference):
            self.value(self.schema.references[node.pointer], depth + 1)
        elif isinstance(node, Either):
            self.value(self._one_of(node, depth), depth)
        elif isinstance(node, Choice):
            self.pen.choice(node.options)
        elif isinstance(node, Text):
            self.pen.string(node)
        elif isinstance(node, Number):
            self.pen.number(node)
        elif isinstance(node, Array):
            self._array(node, depth)
        elif isinstance(node, Object):
            self._object(node, depth)
        else:
            self._map(node, depth)

    def _one_of(self, either: Either, depth: int) -> Node:
        starts = [self._starts(node, 2) for node in either.nodes]
        if depth >= _DEEP or not self.pen.may_choose():
            return shallowest(self.schema, Either(tuple(either.nodes[i] for i in self.pen.possible(starts))))
        return either.nodes[self.pen.decide(starts)]

    def _object(self, node: Object, depth: int) -> None:
        self.pen.force("{")
        comma = ""
        for place, member in enumerate(node.members):
            if not member.required and not self._wants(node.members[place:], comma, depth):
                continue
            self.pen.force(f"{comma}{_quoted(member.name)}: ")
            self.value(member.value, depth + 1)
            comma = ", "
        self.pen.force("}")

    def _wants(self, members: Sequence[Member], comma: str, depth: int) -> bool:
        """Whether the model writes the first of these rather than any later one."""
        others: list[bytes] = []
        for member in members[1:]:
            others.append(f"{comma}{_quoted(member.name)}: ".encode())
            if member.required:
                break
        else:
            others.append(b"}")
        groups = [others, [f"{comma}{_quoted(members[0].name)}: ".encode()]]
        if depth >= _DEEP or not self.pen.may_choose():
            return self.pen.possible(groups)[0] == 1
        return self.pen.decide(groups) == 1

    def _array(self, node: Array, depth: int) -> None:
        most = max(LIST_ITEMS, node.least) if node.most is None else node.most
        starts = self._starts(node.item, 1)
        self.pen.force("[")
        for place in range(most):
            comma = ", " if place else ""
            if place >= node.least and not self._goes_on(comma, starts, b"]", depth):
                break
            self.pen.force(comma)
            self.value(node.item, depth + 1)
        self.pen.force("]")

    def _map(self, node: Map, depth: int) -> None:
        self.pen.force("{")
        for place in range(LIST_ITEMS):
            comma = ", " if place else ""
            if not self._goes_on(comma, [b'"'], b"}", depth):
                break
            self.pen.force(comma)
            self.pen.string(_KEY)
            self.pen.force(": ")
            self.value(node.value, depth + 1)
        self.pen.force("}")

    def _goes_on(self, comma: str, starts: Sequence[bytes], end: bytes, depth: int) -> bool:
        if depth >= _DEEP or not self.pen.may_choose():
            return False
        return self.pen.decide([[comma.encode() + start for start in starts], [end]]) == 0

    def _starts(self, node: Node, deeper: int) -> list[bytes]:
        """Beginnings of a form's values, as far as they tell it from others."""
        if isinstance(node, Reference):
            key = (node.pointer, deeper)
            if key not in self._known_starts:
                self._known_starts[key] = []  # a form that begins with itself adds nothing
                self._known_starts[key] = self._starts(self.schema.references[node.pointer], deeper)
            return self._known_starts[key]
        if isinstance(node, Choice):
            return [option.encode() for option in node.options]
        if isinstance(node, Text):
            return [b'"']
        if isinstance(node, Number):
            return [letter.encode() for letter in "-0123456789" if can_begin(node, letter)]
        if isinstance(node, Either):
            return [start for option in node.nodes for start in self._starts(option, deeper)]
        if isinstance(node, Object):
            return self._object_starts(node, deeper)
        return [b"["] if isinstance(node, Array) else [b"{"]

    def _object_starts(self, node: Object, deeper: int) -> list[bytes]:
        found: list[bytes] = []
        for member in node.members:
            key = b"{" + _quoted(member.name).encode() + b": "
            inner = self._starts(member.value, deeper - 1) if deeper > 0 else []
            found += [key + start for start in inner] or [key]
            if member.required:
                return found
        return [*found, b"{}"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

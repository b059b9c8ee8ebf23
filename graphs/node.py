"""Node, slot and edge names: one string grammar for files, the command line and pictures (docs: conventions, section
1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "input",
    "head",
    "mlp",
    "logits",
    "residual",
    "feature",
    "error",
    "token",
    "logit",
    "difference",
    "bias",
    "positional",
    "own",
]
Port = Literal["q", "k", "v"]
PORTS: tuple[Port, ...] = ("q", "k", "v")

# Which of (layer, index, minus) a node of each kind has, and how it is spelled. The last three are the constants of a
# local replacement model: what a layer adds whatever it reads, position embeddings, and what a target adds to itself.
_SPELLING: dict[Kind, str] = {
    "input": "input",
    "head": "a{layer}.h{index}",
    "mlp": "m{layer}",
    "logits": "logits",
    "residual": "r{layer}",
    "feature": "f{layer}.{index}",
    "error": "e{layer}",
    "token": "t{index}",
    "logit": "logit{index}",
    "difference": "logit{index}-logit{minus}",
    "bias": "b{layer}",
    "positional": "positional",
    "own": "own",
}
_NUMBER = "(?:0|[1-9][0-9]{0,17})"  # no leading zeros, so that no two strings name one node; fits 64 bits
_GRAMMAR: dict[Kind, re.Pattern[str]] = {
    kind: re.compile(
        re.escape(spelling)
        .replace(r"\{layer\}", f"(?P<layer>{_NUMBER})")
        .replace(r"\{index\}", f"(?P<index>{_NUMBER})")
        .replace(r"\{minus\}", f"(?P<minus>{_NUMBER})")
    )
    for kind, spelling in _SPELLING.items()
}
_POSITION = re.compile(f"-?{_NUMBER}|[A-Za-z_][A-Za-z0-9_]*")


class BadName(ValueError):
    """A string that is not a node, slot or edge name."""


@dataclass(frozen=True, slots=True, order=False)
class NodeId:
    """One node of a computation graph. `str(node)` is its name and `NodeId.parse` reads it back."""

    kind: Kind
    """What the node is."""
    layer: int | None = None
    """Block, counted from 0; None for input, logits, token and logit nodes."""
    index: int | None = None
    """Head, feature or vocabulary number; None where the kind has none."""
    position: int | str | None = None
    """Token position (negative counts from the end) or span name; None for a node that covers all positions."""
    minus: int | None = None
    """Vocabulary number of the logit that is subtracted, of a node that stands for a difference of logits."""

    def __post_init__(self) -> None:
        spelling = _SPELLING[self.kind]
        for field in ("layer", "index", "minus"):
            value = getattr(self, field)
            if (f"{{{field}}}" in spelling) != (value is not None) or (value is not None and value < 0):
                raise BadName(f"a node of kind {self.kind!r} cannot have {field}={value!r}")
        text = str(self.position)
        if self.position is not None and (
            not _POSITION.fullmatch(text) or isinstance(self.position, str) != (text[0].isalpha() or text[0] == "_")
        ):
            raise BadName(f"{self.position!r} is neither a position nor a span name")

    def __str__(self) -> str:
        name = _SPELLING[self.kind].format(layer=self.layer, index=self.index, minus=self.minus)
        return name if self.position is None else f"{name}@{self.position}"

    @staticmethod
    def parse(text: str) -> NodeId:
        """The node that `text` names. Raises ValueError naming the text when it names none."""
        name, at, position = text.partition("@")
        for kind, pattern in _GRAMMAR.items():
            match = pattern.fullmatch(name)
            if match is None:
                continue
            numbers = {field: int(value) for field, value in match.groupdict().items()}
            if not at:
                return NodeId(kind, **numbers)
            if not _POSITION.fullmatch(position) or position == "-0":
                break
            is_number = position.lstrip("-").isdigit()
            return NodeId(kind, **numbers, position=int(position) if is_number else position)
        raise BadName(f"{text!r} is not a node name (such as input, a0.h3, m2, logits, f1.77@4)")

    def at(self, position: int | str | None) -> NodeId:
        """The same node at one position or span."""
        return replace(self, position=position)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a node reads the residual stream: `a2.h0<q>`, `m1`, `logits`."""

    node: NodeId
    """The reading node. Under native grouped-query attention the index of a k or v slot is the key/value head's."""
    port: Port | None = None
    """q, k or v for heads, None otherwise."""

    def __post_init__(self) -> None:
        if self.port is not None and (self.node.kind != "head" or self.port not in PORTS):
            raise BadName(f"{self.node} has no port {self.port!r}: only attention heads have ports (q, k, v)")

    def __str__(self) -> str:
        return str(self.node) if self.port is None else f"{self.node}<{self.port}>"

    @staticmethod
    def parse(text: str) -> Slot:
        """The slot that `text` names. Raises ValueError naming the text when it names none."""
        if text.endswith(">") and len(text) > 3 and text[-3] == "<" and text[-2] in PORTS:
            node, port = NodeId.parse(text[:-3]), text[-2]
            if node.kind == "head":
                return Slot(node, port)  # type: ignore[arg-type]
            raise BadName(f"{text!r}: only attention heads have ports")
        return Slot(NodeId.parse(text))


@dataclass(frozen=True, slots=True)
class EdgeId:
    """One edge, `source->target` or `source->target<port>`."""

    source: NodeId
    """The writing node."""
    target: NodeId
    """The reading node."""
    port: Port | None = None
    """The target's port, for heads."""

    @property
    def slot(self) -> Slot:
        """Where the edge ends."""
        return Slot(self.target, self.port)

    def __str__(self) -> str:
        return f"{self.source}->{self.slot}"

    @staticmethod
    def parse(text: str) -> EdgeId:
        """The edge that `text` names. Raises ValueError naming the text when it names none."""
        source, arrow, target = text.partition("->")
        if not arrow:
            raise BadName(f"{text!r} is not an edge name (such as input->a2.h0<q> or m3->logits)")
        slot = Slot.parse(target)
        return EdgeId(NodeId.parse(source), slot.node, slot.port)

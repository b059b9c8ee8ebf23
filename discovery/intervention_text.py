"""Interventions as users write them: `f0.31@4=0`, `f2.7@-1*=2`, `a3.h1=mean`, `f0.*@4=swap`. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Act = Literal["set", "scale", "add", "mean", "swap"]
_PLACE = r"(?:f\d{1,9}\.(?:\d{1,9}|\*)|a\d{1,9}\.h(?:\d{1,9}|\*)|[me]\d{1,9})(?:@-?\d{1,9})?"
_ITEM = re.compile(rf"\s*(?P<places>{_PLACE}(?:\s*,\s*{_PLACE})*)\s*(?P<sign>[*+]?=)(?P<amount>.*)", re.DOTALL)
_NODE = re.compile(r"(?P<letter>[fame])(?P<layer>\d+)(?:\.h?(?P<index>\d+|\*))?(?:@(?P<position>-?\d+))?")
_SWAP = re.compile(r"swap(?:@(?P<position>-?\d{1,9}))?(?::(?P<donor>.*))?", re.DOTALL)
_ACTS: dict[str, Act] = {"=": "set", "*=": "scale", "+=": "add"}
NodeKind = Literal["feature", "head", "mlp", "error"]
_KINDS: dict[str, NodeKind] = {"f": "feature", "a": "head", "m": "mlp", "e": "error"}


class BadInterventionText(ValueError):
    """A text that is no intervention."""


@dataclass(frozen=True)
class Place:
    """A node, or all features or heads of a layer, at a position or at all."""

    kind: NodeKind
    """What it is."""
    layer: int
    """Its layer."""
    index: int | None
    """Number of the feature or head; None for all of them, and for MLPs and errors."""
    position: int | None
    """Position in the prompt, negative from its end; None for all tokens."""

    def __str__(self) -> str:
        letter = next(letter for letter, kind in _KINDS.items() if kind == self.kind)
        number = "*" if self.index is None else str(self.index)
        index = {"feature": f".{number}", "head": f".h{number}"}.get(self.kind, "")
        return f"{letter}{self.layer}{index}" + ("" if self.position is None else f"@{self.position}")


@dataclass(frozen=True)
class Intervention:
    """One thing that is done to one or several nodes."""

    text: str
    """As it was written."""
    places: tuple[Place, ...]
    """What is changed."""
    act: Act
    """set to, scale by or add an amount; set to the mean over reference prompts; swap with a donor prompt's value."""
    amount: float = 0.0
    """Of set, scale and add."""
    donor: str | None = None
    """Of swap: the donor prompt; None for the run's default donor."""
    donor_position: int | None = None
    """Of swap: the donor's position; None for the position that is changed."""


def parse_interventions(texts: Sequence[str]) -> tuple[Intervention, ...]:
    """What texts such as `f0.31@4,f0.7@4=0` ask for. Raises BadInterventionText naming the text."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Intervention:
    item = _ITEM.fullmatch(text)
    if item is None:
        raise BadInterventionText(
            f"--set {text!r}: write it as NODES=VALUE, NODES*=FACTOR, NODES+=AMOUNT, NODES=mean or NODES=swap, with nodes "
            "such as f2.17@4, f2.*, a0.h3, a0.h*, m2, e2@-1"
        )
    places = tuple(_place(part.strip()) for part in item["places"].split(","))
    sign, amount = item["sign"], item["amount"].strip()
    if sign == "=" and amount == "mean":
        return Intervention(text, places, "mean")
    swap = _SWAP.fullmatch(item["amount"].lstrip())
    if sign == "=" and swap is not None:
        position = None if swap["position"] is None else int(swap["position"])
        if position is not None and any(place.position is None for place in places):
            raise BadInterventionText(f"--set {text!r}: a donor position needs a position to put it at, such as @4")
        if swap["donor"] == "":
            raise BadInterventionText(f"--set {text!r}: the donor prompt is empty")
        return Intervention(text, places, "swap", 0.0, swap["donor"], position)
    act = _ACTS[sign]
    number = _number(text, amount)
    vectors = [place for place in places if place.kind != "feature"]
    if vectors and (act == "add" or (act == "set" and number != 0)):
        raise BadInterventionText(
            f"--set {text!r}: {vectors[0]} is a vector; it can be set to 0, mean or swap, or scaled (*=), not set to a number"
        )
    return Intervention(text, places, act, number)


def _place(text: str) -> Place:
    node = _NODE.fullmatch(text)
    assert node is not None
    index = None if node["index"] in (None, "*") else int(node["index"])
    position = None if node["position"] is None else int(node["position"])
    return Place(_KINDS[node["letter"]], int(node["layer"]), index, position)


def _number(text: str, amount: str) -> float:
    try:
        number = float(amount)
    except ValueError:
        number = float("nan")
    if number != number or abs(number) == float("inf"):
        raise BadInterventionText(f"--set {text!r}: {amount!r} is neither a number, mean nor swap")
    return number

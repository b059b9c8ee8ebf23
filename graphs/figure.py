"""What a picture over token positions and layers shows, before anything has a place: marks and arrows."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphs.named import Verdict
from graphs.node import NodeId


@dataclass(frozen=True)
class Mark:
    """One drawn node, or several that are drawn as one."""

    node: NodeId
    """Its (first) node."""
    level: int
    """-1 for tokens, the layer for what lies in a layer, the number of layers for outputs."""
    column: int
    """Place among the columns."""
    lines: tuple[str, ...]
    """What stands in its box, one line at least, already cut; hostile."""
    tip: str
    """Everything known of it; hostile."""
    size: float = 1.0
    """0 .. 1: how influential it is among the drawn ones."""
    presence: float = 1.0
    """0 .. 1: in how many prompts it is."""
    verdict: Verdict | None = None
    """Outcome of its name's causal test."""
    group: int | None = None
    """Its supernode's place in the figure's groups."""


@dataclass(frozen=True)
class Arrow:
    """One drawn edge."""

    source: NodeId
    """The mark where it starts."""
    target: NodeId
    """The mark where it ends."""
    value: float
    """Signed: width and colour."""
    tip: str
    """Everything known of it; hostile."""
    presence: float = 1.0
    """0 .. 1: in how many prompts it is."""


@dataclass(frozen=True)
class Figure:
    """Everything that a picture shows."""

    title: str
    """One line; hostile."""
    numbers: tuple[str, ...]
    """What the lines below the title say."""
    columns: int
    """Number of token positions or spans."""
    layers: int
    """Number of layers: the level of outputs."""
    marks: tuple[Mark, ...]
    """Nodes, tokens among them."""
    arrows: tuple[Arrow, ...]
    """Edges, the strongest first."""
    unit: str
    """What the width of an arrow is."""
    signs: tuple[str, str] = ("excites", "inhibits")
    """What positive and negative arrows mean."""
    groups: tuple[str, ...] = field(default=())
    """Labels of the supernodes; hostile."""
    faint: str = ""
    """What faint marks and arrows mean, if any are faint."""

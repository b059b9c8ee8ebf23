"""What names a node: evidence in, a label out. Failures are errors, never labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from graphs.evidence import Evidence
from graphs.label import Label
from graphs.node import NodeId


class LabelFailed(ValueError):
    """A node that could not be named; the message says why in one line."""


@runtime_checkable
class Labeler(Protocol):
    """Names one node at a time."""

    @property
    def name(self) -> str:
        """What stands in `Label.labeler`."""
        ...

    def label(self, evidence: Evidence) -> Label:
        """The node's label. Raises LabelFailed."""
        ...


@dataclass(frozen=True)
class Labelling:
    """What naming many nodes came to."""

    labels: dict[NodeId, Label]
    """The labels; a node that failed may still have one from a simpler labeler."""
    failures: dict[NodeId, str] = field(default_factory=dict)
    """Why the wanted labeler has not named a node, in one line; hostile where a server said so."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """What it cost: `requests`, `cached`, `tokens_in`, `tokens_out`, `usd`, `seconds`, where known."""
    shortened: Mapping[NodeId, str] = field(default_factory=dict)
    """Nodes of which less was shown than is known, because the model's context holds no more, and how much."""


def label_all(labeler: Labeler, evidence: Iterable[Evidence]) -> Labelling:
    """Names every node; those that fail are in `failures` and have no label."""
    labels: dict[NodeId, Label] = {}
    failures: dict[NodeId, str] = {}
    for item in evidence:
        try:
            labels[item.node] = labeler.label(item)
        except LabelFailed as error:
            failures[item.node] = str(error)
    return Labelling(labels, failures)

"""What labels of other tools have in common: long explanations, several sources for one layer, places of failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphs.escape import shorten
from graphs.json_fields import BadGraphFile
from graphs.label import LONGEST, Label
from graphs.node import NodeId

LONGEST_TEXT = 120
"""Letters of a label's text at most."""


@dataclass(frozen=True)
class Imported:
    """Labels that another tool wrote."""

    labels: Mapping[NodeId, Label]
    """One for each feature."""
    failures: Mapping[NodeId, str] = field(default_factory=dict)
    """Features whose file says that there is no explanation, with what it says; hostile."""


def foreign_label(node: NodeId, explanation: str, labeler: str, rule: str) -> Label:
    """A label of an explanation of any length: its first words, and the whole where that is not all of it.

    Such explanations say when a feature is active, so the role is `detects`.
    """
    whole = shorten(explanation, 10_000)
    text = shorten(" ".join(whole.split()[:LONGEST]), LONGEST_TEXT)
    return Label(node, text, "detects", shorten(labeler, LONGEST_TEXT), "" if text == whole else whole, rule)


def choose_sources(found: Mapping[str, int], chosen: str | None, what: str, where: str) -> frozenset[str]:
    """The sources to read. found: each source in the file and its layer. chosen: the one that is wanted, or None.

    Raises BadGraphFile where the wanted one is missing, or where a layer has several and none was chosen.
    """
    if chosen is not None:
        if chosen not in found:
            raise BadGraphFile(f"{where}: there is no {what} {chosen[:60]!r}, only {_listed(found)}")
        return frozenset([chosen])
    by_layer: dict[int, str] = {}
    for source, layer in found.items():
        if by_layer.setdefault(layer, source) != source:
            raise BadGraphFile(f"{where}: layer {layer} has several {what}s: choose one of {_listed(found)}")
    return frozenset(found)


def _listed(names: Mapping[str, int]) -> str:
    shown = [repr(name[:60]) for name in sorted(names)[:5]]
    return ", ".join(shown) + (", ..." if len(names) > 5 else "") if shown else "nothing"

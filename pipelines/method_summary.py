"""What a method says of its own run (`method` in run.json), as lines of the table of `edgewise discover`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.default_method import method_name

_NAMED = 5


def _acdc(facts: Mapping[str, Any]) -> list[str]:
    return [f"tau           {facts['tau']:.3g}  ({facts['kept']:,} edges kept; {facts['runs']:,} circuits run)"]


_ORDERS = {
    "exact": [],
    "larger": ["ranked        by the larger of exact and screened score: that gives the best circuits"],
    "screen": [
        "ranked        by screened scores: circuits ranked by exact ones are worse (edges make up for each other)"
    ],
}


def _screen_verify(facts: Mapping[str, Any]) -> list[str]:
    text = f"exact         {facts['exact']:,} of {facts['edges']:,} edges"
    if facts["exact"] < facts["edges"]:
        text += (
            f"; the others within {facts['largest_bound']:.2g} of their score at {facts['confidence']:.0%}, "
            f"{facts['uncertain']:,} of them on either side of a size"
        )
    return [text, *_ORDERS[facts.get("order", "exact")]]


def _conditional(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"ablated       {', '.join(facts['ablated']) or 'nothing'}"]
    backups = facts["backups"]
    named = [f"{one['name']} {one['alone']:z.2f} -> {one['conditional']:z.2f}" for one in backups[:_NAMED]]
    more = f" and {len(backups) - _NAMED} more" if len(backups) > _NAMED else ""
    return [*lines, f"backups       {', '.join(named) or 'none'}{more}  (effect alone -> once those are ablated)"]


LINES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "acdc": _acdc,
    "screen-verify": _screen_verify,
    "conditional": _conditional,
}
"""By method, for those that have something to say."""


def method_lines(run: Mapping[str, Any]) -> list[str]:
    """The lines for a run's method; none where it says nothing."""
    lines, facts = LINES.get(method_name(run)), run.get("method")
    return [] if lines is None or facts is None else lines(facts)

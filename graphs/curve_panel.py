"""One panel of curves over training steps: lines with points, intervals as bands, names at their right ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphs.drawing import GREY, svg_text, svg_title
from graphs.escape import shorten
from graphs.scale import Scale, tick_text
from graphs.step_axis import StepAxis

_LETTER = 11.5
_MANY = 60
"""Lines over more steps than these have no points."""


@dataclass(frozen=True)
class Curve:
    """One line."""

    name: str
    """At its right end; hostile."""
    values: tuple[float | None, ...]
    """By step; None: no point."""
    colour: str
    """As SVG has it."""
    width: float = 1.6
    """Of the line."""
    dash: str = ""
    """As SVG's stroke-dasharray; with it the line has no points."""
    low: tuple[float | None, ...] = ()
    """Lower ends of its intervals; empty: none."""
    high: tuple[float | None, ...] = ()
    """Upper ends."""


@dataclass(frozen=True)
class CurvePanel:
    """Curves with one vertical axis."""

    title: str
    """Above; hostile."""
    curves: tuple[Curve, ...]
    """The last is drawn on top."""
    limits: tuple[float, float] | None = None
    """Ends of the vertical axis at least and at most (what lies outside is cut); None: from the values."""
    log: bool = False
    """Logarithmic where all values are above 0 and span two decades."""
    guides: tuple[float, ...] = ()
    """Values with a grey line."""
    faint: tuple[bool, ...] = ()
    """Steps whose points say little: they are drawn faint on grey. Empty: none."""
    faint_note: str = ""
    """What grey means."""


def panel_svg(panel: CurvePanel, axis: StepAxis, names: Sequence[str], top: float, high: float) -> str:
    """The panel between two heights, its title above. names: of the steps, for tooltips."""
    up, bottom = _up(panel, top, high), top + high
    parts = [svg_text(shorten(panel.title, 100), axis.left, top - 7, 12, bold=True)]
    parts += _ground(panel, axis, top, high) + axis.grid(top, bottom)
    ticks = up.ticks(4)
    for value in ticks[:: -(-len(ticks) // 6)]:
        parts.append(f'<path d="M{axis.left:.1f} {up(value):.1f}H{axis.right:.1f}" stroke="#ececec"/>')
        parts.append(svg_text(tick_text(value), axis.left - 6, up(value) + 3.5, 10, GREY, anchor="end"))
    for value in panel.guides:
        if top <= up(value) <= bottom:
            parts.append(f'<path d="M{axis.left:.1f} {up(value):.1f}H{axis.right:.1f}" stroke="#aaaaaa"/>')
    drawn = [_curve(curve, panel, axis, up, names, (top, bottom)) for curve in panel.curves]
    frame = f'x="{axis.left:g}" y="{top:.1f}" width="{axis.right - axis.left:g}" height="{high:g}"'
    return "".join([*parts, *drawn, f'<rect {frame} fill="none" stroke="#999999"/>', *_names(panel, axis, up, top)])


def _up(panel: CurvePanel, top: float, high: float) -> Scale:
    """The vertical scale."""
    values = [v for curve in panel.curves for v in curve.values if v is not None and math.isfinite(v)] or [0.0]
    if panel.limits is not None:
        low, most = panel.limits
        low, most = (max(low, min(0.0, *values)), min(most, max(1.0, *values)))
        room = 0.06 * (most - low)
        return Scale(low - room, most + room, False, top + high, top)
    spans = min(values) > 0 and max(values) >= 100 * min(values)
    return Scale.over(values, panel.log and spans, top + high, top)


def _ground(panel: CurvePanel, axis: StepAxis, top: float, high: float) -> list[str]:
    """Grey behind the steps that say little, and what it means."""
    parts, cells = [], axis.cells
    grey = [place for place, faint in enumerate(panel.faint) if faint]
    for place in grey:
        left, right = cells[place]
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.2f}" height="{high:g}"'
        parts.append(f'<rect {box} fill="#f0f0f0"/>')
    if grey and panel.faint_note:
        parts.append(svg_text(panel.faint_note, axis.right, top - 7, 10, GREY, anchor="end"))
    return parts


def _curve(
    curve: Curve, panel: CurvePanel, axis: StepAxis, up: Scale, names: Sequence[str], ends: tuple[float, float]
) -> str:
    """Band, line pieces and points; what lies above or below the panel is drawn at its border."""

    def place(value: float) -> float:
        return min(max(up(value), ends[0]), ends[1])

    parts, xs = [], axis.places
    known = [i for i, value in enumerate(curve.values) if value is not None and math.isfinite(value)]
    faint = panel.faint or (False,) * len(xs)
    if curve.low and curve.high:
        parts += _band(curve, known, xs, faint, place)
    parts += _pieces(curve, known, xs, faint, place)
    bare = bool(curve.dash) or len(xs) > _MANY
    for i in known:
        value = curve.values[i]
        assert value is not None
        fill = "none" if bare and len(known) > 1 else "#ffffff" if faint[i] else curve.colour
        line = "none" if fill == "none" else curve.colour
        tip = svg_title(f"{curve.name} at {names[i]}: {value:.4g}{_interval(curve, i)}")
        dot = f'cx="{xs[i]:.1f}" cy="{place(value):.1f}" r="2.4" fill="{fill}" stroke="{line}"'
        parts.append(f'<circle {dot} pointer-events="all">{tip}</circle>')
    return "".join(parts)


def _pieces(
    curve: Curve, known: Sequence[int], xs: Sequence[float], faint: Sequence[bool], place: Callable[[float], float]
) -> list[str]:
    """The line, in pieces that are faint and others."""
    pieces: list[tuple[bool, str]] = []
    spots = {i: f"{xs[i]:.1f} {place(value):.1f}" for i in known if (value := curve.values[i]) is not None}
    for one, two in pairwise(known):
        pale = faint[one] or faint[two]
        if pieces and pieces[-1][0] == pale:
            pieces[-1] = (pale, f"{pieces[-1][1]}L{spots[two]}")
        else:
            pieces.append((pale, f"M{spots[one]}L{spots[two]}"))
    look = f'fill="none" stroke="{curve.colour}" stroke-width="{curve.width:g}" stroke-linejoin="round"'
    dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    opacity = {True: ' stroke-opacity="0.3"', False: ""}
    return [f'<path d="{path}" {look}{dash}{opacity[pale]}/>' for pale, path in pieces]


def _band(
    curve: Curve, known: Sequence[int], xs: Sequence[float], faint: Sequence[bool], place: Callable[[float], float]
) -> list[str]:
    """The intervals between neighbours that say something."""
    parts = []
    for one, two in pairwise(known):
        ends = [curve.low[one], curve.low[two], curve.high[two], curve.high[one]]
        sides = zip((xs[one], xs[two], xs[two], xs[one]), ends)
        at = [f"{x:.1f} {place(end):.1f}" for x, end in sides if end is not None]
        if len(at) == 4 and not faint[one] and not faint[two]:
            parts.append(f'<path d="M{"L".join(at)}Z" fill="{curve.colour}" fill-opacity="0.15"/>')
    return parts


def _interval(curve: Curve, place: int) -> str:
    if not curve.low or curve.low[place] is None or curve.high[place] is None:
        return ""
    return f" [{curve.low[place]:.3g}, {curve.high[place]:.3g}]"


def _names(panel: CurvePanel, axis: StepAxis, up: Scale, top: float) -> list[str]:
    """The curves' names at their right ends, moved apart where they would touch."""
    ends = []
    for curve in panel.curves:
        values = [value for value in curve.values if value is not None and math.isfinite(value)]
        if values:
            ends.append((min(max(up(values[-1]), min(up.start, up.end)), max(up.start, up.end)), curve))
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for y, _ in ends:
        places.append(max(y, places[-1] + _LETTER) if places else max(y, top + 4))
    over = places[-1] - max(up.start, up.end) if places else 0.0
    if over > 0:  # the lowest one pushes the others up
        bottom = max(up.start, up.end) + _LETTER
        for i in range(len(places) - 1, -1, -1):
            bottom = places[i] = min(places[i], bottom - _LETTER)
    parts = []
    for y, (at, curve) in zip(places, ends):
        parts.append(f'<path d="M{axis.right:.1f} {at:.1f}L{axis.right + 10:.1f} {y:.1f}" stroke="{curve.colour}"/>')
        parts.append(svg_text(shorten(curve.name, 24), axis.right + 13, y + 3.5, 10.5, curve.colour))
    return parts

"""Points in a plane as SVG: two axes (linear or logarithmic), a colour for a third number, lines through some points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from graphs.drawing import GREY, svg_page, svg_text, svg_title
from graphs.escape import display_width
from graphs.scale import Scale, tick_text

# Viridis (dark to light), readable without colours and by the colour-blind.
_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_LEFT, _TOP, _WIDE, _HIGH = 66.0, 62.0, 470.0, 330.0


@dataclass(frozen=True)
class Point:
    """One mark."""

    x: float | int
    """Place on the horizontal axis."""
    y: float | int
    """Place on the vertical axis."""
    tip: str
    """Everything known of it; hostile."""
    colour: float | int | None = None
    """The third number; None: grey."""
    strong: bool = False
    """Large, with an outline."""
    label: str = ""
    """Beside it; hostile."""


@dataclass(frozen=True)
class Line:
    """A line through places, from left to right."""

    places: tuple[tuple[float | int, float | int], ...]
    """x and y of each."""
    name: str
    """In the legend; hostile."""
    dashed: bool = False
    """Drawn with gaps."""
    stairs: bool = False
    """With steps: the value holds until the next place."""


@dataclass(frozen=True)
class Axis:
    """How numbers become places."""

    name: str
    """What it shows."""
    log: bool = False
    """Logarithmic where all numbers are above 0."""


def scatter_svg(
    title: str, points: Sequence[Point], lines: Sequence[Line], x: Axis, y: Axis, colour: Axis | None = None
) -> bytes:
    """The picture. Numbers that are not finite are left out; every point tells what it is in a tooltip. Raises ValueError
    where nothing is left."""
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        raise ValueError("a picture of points needs at least one point")
    places = [(point.x, point.y) for point in points] + [place for line in lines for place in line.places]
    across = Scale.over([place[0] for place in places], x.log, _LEFT, _LEFT + _WIDE)
    up = Scale.over([place[1] for place in places], y.log, _TOP + _HIGH, _TOP)
    shades = [point.colour for point in points if point.colour is not None and math.isfinite(point.colour)]
    shade = Scale.over(shades, colour.log, 0.0, 1.0) if colour is not None and shades else None
    width = _LEFT + _WIDE + (110 if shade is not None else 24)
    heading = [
        svg_text(line, 16, 24 + 18 * i, 14, bold=True)
        for i, line in enumerate(wrap(title, int((width - 32) / 7.6), max_lines=2, placeholder="…"))
    ]
    body = [*heading, *_frame(across, up, x, y), *(_line(line, across, up) for line in lines)]
    body += [_mark(point, across, up, shade) for point in sorted(points, key=lambda point: point.strong)]
    body += _labels(points, across, up)
    if shade is not None and colour is not None:
        body.append(_bar(_LEFT + _WIDE + 24, shade, colour))
    foot, high = _legend(lines)
    return svg_page(title, width, _TOP + _HIGH + 52 + high, [*body, foot])


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> list[str]:
    """Grid, numbers and names of the axes."""
    bottom, right = _TOP + _HIGH, _LEFT + _WIDE
    parts = []
    for value in across.ticks():
        at = across(value)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP:g}" x2="{at:.1f}" y2="{bottom:g}" stroke="#ececec"/>')
        parts.append(svg_text(tick_text(value), at, bottom + 15, 10.5, GREY, anchor="middle"))
    for value in up.ticks():
        at = up(value)
        parts.append(f'<line x1="{_LEFT:g}" y1="{at:.1f}" x2="{right:g}" y2="{at:.1f}" stroke="#ececec"/>')
        parts.append(svg_text(tick_text(value), _LEFT - 6, at + 3.5, 10.5, GREY, anchor="end"))
    parts.append(
        f'<rect x="{_LEFT:g}" y="{_TOP:g}" width="{_WIDE:g}" height="{_HIGH:g}" fill="none" stroke="#999999"/>'
    )
    parts.append(svg_text(_named(x, across), _LEFT + _WIDE / 2, bottom + 34, 11.5, anchor="middle"))
    parts.append(svg_text(_named(y, up), 18, _TOP + _HIGH / 2, 11.5, anchor="middle", turn=-90))
    return parts


def _named(axis: Axis, scale: Scale) -> str:
    return f"{axis.name} (log scale)" if scale.log else axis.name


def _line(line: Line, across: Scale, up: Scale) -> str:
    places = [(across(x), up(y)) for x, y in line.places if not (across.log and x <= 0) and not (up.log and y <= 0)]
    path = ""
    for number, (x, y) in enumerate(places):
        path += f"M{x:.1f} {y:.1f}" if not number else f"H{x:.1f}V{y:.1f}" if line.stairs else f"L{x:.1f} {y:.1f}"
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    colour = "#888888" if line.dashed else "#222222"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"{dash}>{svg_title(line.name)}</path>'


def _mark(point: Point, across: Scale, up: Scale, shade: Scale | None) -> str:
    fill = "#bdbdbd"
    if shade is not None and point.colour is not None and math.isfinite(point.colour):
        fill = _colour(shade(point.colour))
    x, y = across(point.x), up(point.y)
    radius, line = (6.0, ' stroke="#222222" stroke-width="1.4"') if point.strong else (3.2, "")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}"{line}>{svg_title(point.tip)}</circle>'


def _labels(points: Sequence[Point], across: Scale, up: Scale) -> list[str]:
    """The labels that find room beside their marks, above or below, right or left; tooltips have the others."""
    taken = [(across(p.x) - 5, up(p.y) - 5, across(p.x) + 5, up(p.y) + 5) for p in points]
    parts = []
    for point in points:
        wide, x, y = 5.9 * display_width(point.label), across(point.x), up(point.y)
        for left, base in ((x + 7, y - 5), (x + 7, y + 12), (x - 7 - wide, y - 5), (x - 7 - wide, y + 12)):
            box = (left, base - 9, left + wide, base + 1)
            if point.label and box[2] < _LEFT + _WIDE and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(svg_text(point.label, left, base, 10.5))
                break
    return parts


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _colour(share: float) -> str:
    """The colour at a share (0..1) of the scale."""
    place = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(place), len(_SCALE) - 2)
    mixed = (a + (b - a) * (place - low) for a, b in zip(_SCALE[low], _SCALE[low + 1]))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def _bar(x: float, shade: Scale, colour: Axis) -> str:
    steps, high = 40, 200.0
    parts = [
        f'<rect x="{x:.1f}" y="{_TOP + i * high / steps:.2f}" width="12" height="{high / steps + 0.5:.2f}" '
        f'fill="{_colour(1 - (i + 0.5) / steps)}"/>'
        for i in range(steps)
    ]
    for value in shade.ticks(4):
        parts.append(svg_text(tick_text(value), x + 17, _TOP + high * (1 - shade(value)) + 3.5, 10))
    parts.append(svg_text(_named(colour, shade), x + 66, _TOP + high / 2, 10.5, anchor="middle", turn=-90))
    return "".join(parts)


def _legend(lines: Sequence[Line]) -> tuple[str, float]:
    """What lines and marks are, below the picture; with its height."""
    rows, parts = [], []
    for line in lines:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        colour = "#888888" if line.dashed else "#222222"
        rows.append((f'<line x1="0" y1="0" x2="26" y2="0" stroke="{colour}" stroke-width="1.3"{dash}/>', line.name))
    for number, (sign, name) in enumerate(rows):
        y = _TOP + _HIGH + 54 + 17 * number
        parts.append(f'<g transform="translate({_LEFT:g} {y:.1f})">{sign}{svg_text(name, 33, 4, 10.5)}</g>')
    return "".join(parts), 17.0 * len(rows) + 6

"""Pictures over training steps: panels of curves, and below them rows of coloured cells, all on one axis of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from graphs.curve_panel import CurvePanel, panel_svg
from graphs.drawing import GREY, svg_page, svg_text, svg_title
from graphs.escape import display_width, shorten, wrapped
from graphs.exporters.heatmap import colour
from graphs.step_axis import StepAxis

_LEFT, _RIGHT, _WIDE = 168.0, 150.0, 540.0
_PANEL, _BETWEEN = 104.0, 34.0
_NARROW = 6.0
"""Cells that are on average narrower than this have no white lines between them."""
_ABSENT = "#d9d9d9"


@dataclass(frozen=True, eq=False)
class Row:
    """One line of cells."""

    name: str
    """On its left; hostile."""
    values: Float[np.ndarray, " step"]
    """By step; NaN is grey. Drawn as shares of the largest |value| of the row."""
    mark: int | None = None
    """Place of the step that gets a black line in front."""
    dot: int | None = None
    """Place of the step that gets a black dot."""
    note: str = ""
    """On its right; hostile."""


@dataclass(frozen=True)
class StepFigure:
    """Everything that a picture shows."""

    title: str
    """One line; hostile."""
    lines: tuple[str, ...]
    """What stands below the title; hostile."""
    steps: tuple[float, ...]
    """Ascending."""
    names: tuple[str, ...]
    """Of the steps, for tooltips; hostile."""
    panels: tuple[CurvePanel, ...]
    """From top to bottom."""
    rows: tuple[Row, ...]
    """From top to bottom."""
    rows_title: str = ""
    """What the rows are."""
    rows_note: str = ""
    """What is right of the rows."""
    mark_note: str = ""
    """What black lines mean."""
    dot_note: str = ""
    """What black dots mean."""
    moments: tuple[tuple[float, str], ...] = ()
    """Steps with a line through all panels, and what happens there."""


def step_figure_svg(figure: StepFigure) -> bytes:
    """The picture. All texts are escaped; every point and cell tells its numbers in a tooltip. Raises ValueError for steps
    that do not ascend."""
    axis = StepAxis(figure.steps, _LEFT, _LEFT + _WIDE)
    width = _LEFT + _WIDE + _RIGHT
    head, top = _heading(figure, width)
    body, y = [], top + 14.0 * len(figure.moments) + 22
    first = y
    for panel in figure.panels:
        body.append(panel_svg(panel, axis, figure.names, y, _PANEL))
        y += _PANEL + _BETWEEN
    last = y - _BETWEEN
    if figure.panels:
        body += axis.numbers(last)
        y = last + 62
    moments = _moments(figure, axis, top + 12, first, last) if figure.panels else []
    rows, y = _rows(figure, axis, y) if figure.rows else ([], y)
    return svg_page(figure.title, width, y + 8, [*head, *moments, *body, *rows])


def _heading(figure: StepFigure, width: float) -> tuple[list[str], float]:
    """Title and lines; with their height."""
    parts = [svg_text(shorten(figure.title, int((width - 32) / 8.2)), 16, 26, 15, bold=True)]
    lines = [piece for line in figure.lines for piece in wrapped(line, int((width - 32) / 5.6), 2)]
    parts += [svg_text(line, 16, 44 + 15 * i, 11.5, "#444444") for i, line in enumerate(lines)]
    return parts, 40.0 + 15 * len(lines)


def _moments(figure: StepFigure, axis: StepAxis, y: float, first: float, last: float) -> list[str]:
    """Lines through the panels, each with its text above them, on the side where there is room."""
    lines, texts = [], []
    for number, (step, text) in enumerate(figure.moments):
        at, base = axis(step), y + 14 * number
        aside = ("end", at - 5) if at > (axis.left + axis.right) / 2 else ("start", at + 5)
        wide = 5.4 * display_width(text)
        left = aside[1] - (wide if aside[0] == "end" else 0)
        lines.append(f'<path d="M{at:.1f} {base - 9:.1f}V{last:.1f}" stroke="#555555" stroke-dasharray="1.5 3"/>')
        texts.append(f'<rect x="{left:.1f}" y="{base - 9:.1f}" width="{wide:.1f}" height="12" fill="#ffffff"/>')
        texts.append(svg_text(text, aside[1], base, 10.5, "#444444", anchor=aside[0]))
    return [*lines, *texts]


def _rows(figure: StepFigure, axis: StepAxis, y: float) -> tuple[list[str], float]:
    """The cells with their names and the scale of colours; with the lower end."""
    shown = figure.rows
    high = 15.0 if len(shown) <= 24 else 11.0
    line = '<g stroke="#ffffff" stroke-width="0.4">'
    line = line if _WIDE / len(figure.steps) > _NARROW else "<g>"
    size = min(10.0, high - 1.5)
    parts = [svg_text(shorten(figure.rows_title, 100), _LEFT, y - 9, 12, bold=True)]
    parts.append(svg_text(figure.rows_note, axis.right + 8, y - 9, 10.5, GREY))
    for number, row in enumerate(shown):
        at = y + number * high
        parts.append(svg_text(shorten(row.name, 26), _LEFT - 7, at + high / 2 + 3.4, size, anchor="end"))
        parts += [line, *_cells(row, figure, axis, at, high), "</g>"]
        parts += _marks(row, axis, at, high)
        parts.append(svg_text(row.note, axis.right + 8, at + high / 2 + 3.4, size, "#444444"))
    bottom = y + high * len(shown)
    frame = f'x="{_LEFT:g}" y="{y:.1f}" width="{_WIDE:g}" height="{high * len(shown):.1f}"'
    parts.append(f'<rect {frame} fill="none" stroke="#888888"/>')
    return [*parts, *axis.numbers(bottom), _colours(figure, axis, bottom + 52)], bottom + 74


def _cells(row: Row, figure: StepFigure, axis: StepAxis, y: float, high: float) -> list[str]:
    largest = max((abs(float(value)) for value in row.values if math.isfinite(value)), default=0.0) or 1.0
    parts = []
    for place, (left, right) in enumerate(axis.cells):
        value = float(row.values[place])
        fill = colour(value / largest, 1.0) if math.isfinite(value) else _ABSENT
        tip = svg_title(f"{row.name} at {figure.names[place]}: {value:+.4g}")
        box = f'x="{left:.2f}" y="{y:.1f}" width="{right - left + 0.4:.2f}" height="{high:g}"'
        parts.append(f'<rect {box} fill="{fill}">{tip}</rect>')
    return parts


def _marks(row: Row, axis: StepAxis, y: float, high: float) -> list[str]:
    """The row's black line and its dot."""
    parts = []
    if row.mark is not None:
        at = axis.cells[row.mark][0]
        parts.append(f'<path d="M{at:.1f} {y:.1f}v{high:g}" stroke="#111111" stroke-width="2.2"/>')
    if row.dot is not None:
        parts.append(_dot(axis.places[row.dot], y + high / 2))
    return parts


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="#111111" stroke="#ffffff" stroke-width="1"/>'


def _colours(figure: StepFigure, axis: StepAxis, y: float) -> str:
    """What the colours, the black lines and the dots mean."""
    parts, steps, wide = [], 40, 120.0
    for i in range(steps):
        box = f'x="{axis.left + i * wide / steps:.1f}" y="{y - 8:.1f}" width="{wide / steps + 0.5:.1f}" height="9"'
        parts.append(f'<rect {box} fill="{colour(2 * (i + 0.5) / steps - 1, 1.0)}"/>')
    x = axis.left
    for share, text in ((0.0, "−1"), (0.5, "0"), (1.0, "+1")):
        parts.append(svg_text(text, x + share * wide, y + 12, 10, GREY, anchor="middle"))
    parts.append(svg_text("score over the row's largest |score|", x + wide + 14, y, 10.5))
    at = x + wide + 205
    if figure.mark_note:
        parts.append(f'<path d="M{at:.1f} {y - 10:.1f}v13" stroke="#111111" stroke-width="2.2"/>')
        parts.append(svg_text(figure.mark_note, at + 7, y, 10.5))
        at += 16 + 5.4 * display_width(figure.mark_note)
    if figure.dot_note:
        parts.append(_dot(at, y - 3.5) + svg_text(figure.dot_note, at + 8, y, 10.5))
    return "".join(parts)

"""Figures over token positions and layers as SVG: tokens below, outputs on top, edges signed and weighted between them."""

from __future__ import annotations

from graphs.blocks import Cell
from graphs.drawing import GREY, svg_page, svg_text, svg_title, svg_verdict
from graphs.escape import display_width, shorten
from graphs.exporters.svg import draw_route, stroke
from graphs.figure import Figure, Mark
from graphs.figure_layout import LINE, MARKER, Placed, place_figure
from graphs.named import MEANINGS
from graphs.node import EdgeId
from graphs.routing import route_edges

GROUP_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#B8A800", "#8C6BB1", "#A6761D", "#5E8C31")
"""Supernodes: Okabe and Ito's other colours, then some that differ from them; they come round again."""
_LEFT, _SMALLEST = 62.0, 640.0


def figure_svg(figure: Figure) -> bytes:
    """The picture. All texts are escaped; every mark and edge tells its numbers in a tooltip."""
    placed = place_figure(figure)
    layout = placed.layout
    width = max(layout.width + _LEFT + 12, _SMALLEST)
    title, top = _title(figure, width)
    aside = _LEFT + (width - 12 - _LEFT - layout.width) / 2
    largest = max((abs(arrow.value) for arrow in figure.arrows), default=0.0)
    routes = route_edges(layout, [EdgeId(arrow.source, arrow.target) for arrow in figure.arrows])
    drawn = [
        draw_route(route, arrow.value, largest, arrow.tip, 0.2 + 0.8 * arrow.presence)
        for route, arrow in zip(routes, figure.arrows)
    ]
    body = [title, f'<g transform="translate(0 {top:.0f})">', *_bands(placed, width)]
    body += [f'<g transform="translate({aside:.1f} 0)">', *_columns(placed)]
    body += [*drawn[::-1], *(_mark(figure, mark, placed.boxes[mark.node]) for mark in figure.marks), "</g></g>"]
    foot, below = _legend(figure, largest, width)
    y = top + layout.height + 14
    return svg_page(figure.title, width, y + below, [*body, f'<g transform="translate(0 {y:.1f})">{foot}</g>'])


def _title(figure: Figure, width: float) -> tuple[str, float]:
    """Title and numbers, on as many lines as they need; with the height of all."""
    lines = _wrapped(figure.numbers, width, 5.4)
    heading = svg_text(shorten(figure.title, int(width / 8.6)), 16, 24, 15, bold=True)
    rows = [svg_text(line, 16, 42 + 15 * i, 11.5, "#444444") for i, line in enumerate(lines)]
    return heading + "".join(rows), 42.0 + 15 * len(lines)


def _wrapped(parts: tuple[str, ...], width: float, letter: float) -> list[str]:
    """Parts with dots between them, on lines that fit."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) * letter < width - 32 else [*lines, part]
    return [line for line in lines if line]


def _bands(placed: Placed, width: float) -> list[str]:
    """Backgrounds of layers with their names in the margin."""
    parts = []
    for band in placed.layout.bands:
        top, height = band.top - 6, band.bottom - band.top + 12
        parts.append(f'<rect x="4" y="{top:.1f}" width="{width - 8:.1f}" height="{height:.1f}" rx="4" fill="#f5f5f5"/>')
        parts.append(svg_text(band.label, 10, top + height / 2 + 4, 11, GREY))
    return parts


def _columns(placed: Placed) -> list[str]:
    """Faint lines between the columns."""
    bottom = placed.layout.height
    return [
        f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom:.1f}" stroke="#dddddd" stroke-width="0.8" '
        'stroke-dasharray="1.5 3"/>'
        for x in placed.lines[1:-1]
    ]


def _mark(figure: Figure, mark: Mark, cell: Cell) -> str:
    """A node: a white box with a circle (feature), a diamond (error) or a ring (head); tokens and outputs are filled."""
    kind, middle = mark.node.kind, cell.y + cell.height / 2
    colour = "#444444" if mark.group is None else GROUP_COLOURS[mark.group % len(GROUP_COLOURS)]
    fill, line, ink, thick = "#ffffff", "#bbbbbb", "#111111", 1.0
    if mark.level >= figure.layers:
        fill, line, ink = "#333333", "#333333", "#ffffff"
    elif mark.level < 0:
        fill, line = "#e4e8f2", "#8b93ad"
    elif mark.group is not None:
        line, thick = colour, 1.8
    opacity = f' opacity="{0.35 + 0.65 * mark.presence:.2f}"' if mark.presence < 1 else ""
    box = (
        f'<rect x="{cell.x:.1f}" y="{cell.y:.1f}" width="{cell.width:.1f}" height="{cell.height:.1f}" rx="4" '
        f'fill="{fill}" stroke="{line}" stroke-width="{thick:g}"/>'
    )
    marker = _marker(kind, cell.x + 5 + MARKER / 2 - 2, middle, mark.size, colour)
    x = cell.x + (5 + MARKER if marker else 5)
    first = middle + 3.4 - LINE * (len(mark.lines) - 1) / 2
    lines = "".join(svg_text(text, x, first + LINE * place, 9.8, ink) for place, text in enumerate(mark.lines))
    sign = svg_verdict(mark.verdict, cell.x + cell.width - 8, middle) if mark.verdict else ""
    return f"<g{opacity}>{svg_title(mark.tip)}{box}{marker}{lines}{sign}</g>"


def _marker(kind: str, x: float, y: float, size: float, colour: str) -> str:
    """The sign of a node's kind, its area growing with influence; nothing for tokens and outputs."""
    radius = 2.2 + 3.8 * max(0.0, min(1.0, size)) ** 0.5
    if kind == "feature":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{colour}"/>'
    if kind == "error":
        r = radius * 1.15
        return (
            f'<path d="M{x:.1f} {y - r:.2f}l{r:.2f} {r:.2f}l{-r:.2f} {r:.2f}l{-r:.2f} {-r:.2f}z" fill="#ffffff" '
            f'stroke="{colour}" stroke-width="1.4"/>'
        )
    if kind == "head":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
    return ""


def _legend(figure: Figure, largest: float, width: float) -> tuple[str, float]:
    """What signs, widths, markers and colours mean, on as many lines as they need; with the height."""
    pieces: list[tuple[float, str]] = []  # width and drawing from the origin, the text's base line at y = 4

    def add(sign: str, room: float | int, text: str) -> None:
        pieces.append((room + 5.4 * display_width(text) + 16, sign + svg_text(text, room, 4, 10.5)))

    for value, meaning in zip((largest / 3, -largest / 3), figure.signs):
        colour, thick, dash = stroke(value or 0.0, largest)
        line = f'<line x1="0" y1="0" x2="28" y2="0" stroke="{colour}" stroke-width="{thick:.2f}"{dash}/>'
        add(line, 33, meaning)
    for share in (1.0, 0.25, 0.01) if largest else ():
        _, thick, _ = stroke(largest * share, largest)
        line = f'<line x1="0" y1="0" x2="20" y2="0" stroke="#555555" stroke-width="{thick:.2f}"/>'
        add(line, 25, f"{largest * share:.2g}")
    add("", 0, figure.unit)
    kinds = {mark.node.kind for mark in figure.marks}
    for kind, meaning in (("feature", "feature"), ("error", "error"), ("head", "attention head")):
        if kind in kinds:
            add(_marker(kind, 6.0, 0.0, 0.8, "#444444"), 15, f"{meaning}, area by influence")
    for outcome, meaning in MEANINGS.items():
        if any(mark.verdict == outcome for mark in figure.marks):
            add(svg_verdict(outcome, 5.0, 0.0), 13, meaning)
    if figure.faint:
        add("", 0, figure.faint)
    for place, label in enumerate(figure.groups):
        colour = GROUP_COLOURS[place % len(GROUP_COLOURS)]
        add(f'<circle cx="6" cy="0" r="5" fill="{colour}"/>', 15, shorten(label, 40))
    x, y, parts = 16.0, 18.0, [f'<line x1="16" y1="2" x2="{width - 16:.0f}" y2="2" stroke="#cccccc"/>']
    for room, piece in pieces:
        if x > 16 and x + room > width:
            x, y = 16.0, y + 18
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{piece}</g>')
        x += room
    return "".join(parts), y + 14

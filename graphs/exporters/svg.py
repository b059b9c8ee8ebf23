"""The picture of a circuit as SVG, drawn by us: no other program is needed, text stays text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphs.blocks import CELL_HEIGHT, LABEL_HEIGHT, TAB_HEIGHT, TAB_WIDTH, Cell
from graphs.circuit import Circuit
from graphs.columns import Column
from graphs.drawing import GREY, svg_page, svg_text, svg_title, svg_verdict
from graphs.escape import shorten
from graphs.layout import Band, Layout, layered_layout
from graphs.named import MEANINGS, Verdict, verdict
from graphs.node import EdgeId
from graphs.routing import Route, route_edges, smooth_path
from graphs.view import CircuitView

POSITIVE, NEGATIVE, UNSCORED = (
    "#0072B2",
    "#D55E00",
    "#555555",
)  # blue and vermilion of Okabe and Ito's colour-blind-safe set
WARNING = "#B00020"
TAB_COLOURS = {"q": "#bfe6d8", "k": "#f0cfe2", "v": "#f6eaa6"}
_CELL_COLOURS = {
    "head": ("#ffffff", "#333333"),
    "kv": ("#ececec", "#333333"),
    "mlp": ("#dfe3f3", "#333f7a"),
    "feature": ("#e2f0df", "#2f6b3a"),
    "error": ("#eeeeee", "#777777"),
    "input": ("#333333", "#333333"),
    "logits": ("#333333", "#333333"),
}
_ROUND = {"mlp": 9, "feature": 9, "error": 9}
_THIN, _THICK, _MARGIN_LEFT = 0.8, 5.0, 58.0


def export_svg(view: CircuitView) -> bytes:
    """The circuit without dead ends: layers from bottom to top, edge width by |score|, colour and dash by sign."""
    circuit = view.drawn
    if not circuit.edge_count:
        return _page(view, 560, 40, [svg_text("No path from input to logits: nothing to draw.", -42, 20, 12)], "")
    layout = layered_layout(circuit, view.texts)
    edges = circuit.edges
    largest = max((abs(score) for _, score in edges if score is not None), default=0.0)
    routes = route_edges(layout, [edge for edge, _ in edges])
    width = max(layout.width + _MARGIN_LEFT, 560.0)
    aside = (width - _MARGIN_LEFT - layout.width) / 2
    body = [_band(band, width) for band in layout.bands]
    body.append(f'<g transform="translate({aside:.1f} 0)">')
    body += [_column(column, layout.height, place > 0) for place, column in enumerate(layout.columns)]
    drawn = [_edge(route, score, largest, _surely(circuit, route.edge)) for route, (_, score) in zip(routes, edges)]
    body += drawn[::-1]  # the strongest on top
    body += [_cell(cell, view.tip(cell.name), verdict(view.named.get(cell.name))) for cell in layout.cells]
    body += [_tab(tab.slot.port, str(tab.slot), tab.x, tab.y) for tab in layout.tabs if tab.slot.port] + ["</g>"]
    legend = _legend(view, circuit, layout, largest, width)
    below = 64 if any(_verdicts(view, layout, outcome) for outcome in MEANINGS) else 46
    return _page(view, width, layout.height, body, legend, below)


def _page(
    view: CircuitView, width: float | int, height: float | int, body: Sequence[str], legend: str, room: int = 0
) -> bytes:
    """Title on top, then the drawing, then the legend."""
    title, top = _title(view, width)
    drawing = [f'<g transform="translate({_MARGIN_LEFT:.0f} {top:.0f})">', *body, "</g>"]
    below = [f'<g transform="translate(0 {top + height:.1f})">{legend}</g>'] if legend else []
    return svg_page(view.title, width, top + height + room, [title, *drawing, *below])


def _title(view: CircuitView, width: float | int) -> tuple[str, float]:
    """Title, the numbers below it on as many lines as they need, and a line for each warning; with the height of all."""
    lines = [""]
    for number in view.numbers:
        joined = f"{lines[-1]} · {number}" if lines[-1] else number
        lines = [*lines[:-1], joined] if len(joined) * 5.4 < width - 32 else [*lines, number]
    heading = svg_text(shorten(view.title, int(width / 8.6)), 16, 24, 15, bold=True)
    rows = [svg_text(line, 16, 42 + 15 * i, 11.5, "#444444") for i, line in enumerate(lines)]
    for warning in view.warnings:
        text = shorten(f"! {warning}", int((width - 32) / 5.6))
        rows.append(f"<g>{svg_title(warning)}{svg_text(text, 16, 42 + 15 * len(rows), 11.5, WARNING)}</g>")
    return heading + "".join(rows), 37.0 + 15 * len(rows)


def _band(band: Band, width: float) -> str:
    """A layer's background and its name in the margin."""
    top, height = band.top - 8, band.bottom - band.top + 16
    return (
        f'<rect x="{-_MARGIN_LEFT + 4:.1f}" y="{top:.1f}" width="{width - 8:.1f}" height="{height:.1f}" '
        f'rx="4" fill="#f6f6f6"/>' + svg_text(band.label, -_MARGIN_LEFT + 10, top + height / 2 + 4, 11, GREY)
    )


def _column(column: Column, height: float, divided: bool) -> str:
    """A span's name, and where wanted a line on its left."""
    line = f'<path d="M{column.left:.1f} 6V{height - 6:.1f}" stroke="#cccccc" stroke-dasharray="2 3"/>'
    return (line if divided else "") + svg_text(
        column.label, (column.left + column.right) / 2, 16, 12, GREY, bold=True, anchor="middle"
    )


def stroke(score: float | None, largest: float) -> tuple[str, float, str]:
    """Colour, width (growing with the root of |score|) and dash attribute of an edge."""
    if score is None:
        return UNSCORED, 1.2, ""
    width = _THIN + (_THICK - _THIN) * (abs(score) / largest) ** 0.5 if largest else _THIN
    if score >= 0:
        return POSITIVE, width, ""
    return NEGATIVE, width, f' stroke-dasharray="{5 + 1.5 * width:.1f} {2 + 0.6 * width:.1f}"'


def _edge(route: Route, score: float | None, largest: float, surely: str) -> str:
    """An edge with its name, score and how sure it is as tooltip."""
    text = str(route.edge) if score is None else f"{route.edge}  {score:+.4g}{surely}"
    return draw_route(route, score, largest, text)


def _surely(circuit: Circuit, edge: EdgeId) -> str:
    """Standard error of an edge's score, and how often it is selected, where these are known."""
    place, text = circuit.topology.locate(edge), ""
    stderr = None if circuit.scores is None else circuit.scores.stderr
    if stderr is not None and not np.isnan(stderr[place]):
        text += f" ± {stderr[place]:.2g}"
    if circuit.stability is not None and not np.isnan(circuit.stability[place]):
        text += f", selected in {circuit.stability[place]:.0%} of resamples"
    return text


def draw_route(route: Route, score: float | None, largest: float, tip: str, presence: float = 1.0) -> str:
    """A curve with a white rim, an arrow head and a tooltip. presence: 0 .. 1, times its opacity."""
    colour, width, dash = stroke(score, largest)
    half, length = 2.0 + 0.7 * width, 4.5 + 1.5 * width
    x, y = route.points[-1]
    path = smooth_path([*route.points[:-1], (x, y + length * 0.8)])
    head = f"M{x:.1f} {y:.1f}l{-half:.1f} {length:.1f}h{2 * half:.1f}z"
    opacity = presence * (1.0 if score is None else 0.65 + 0.35 * min(1.0, (width - _THIN) / 1.5))
    line = f'<path d="{path}" fill="none" stroke='
    faint = f' fill-opacity="{presence:.2f}"' if presence < 1 else ""
    return (
        f"<g>{svg_title(tip)}"
        f'{line}"#ffffff" stroke-width="{width + 1.6:.1f}" stroke-opacity="0.8"/>'
        f'{line}"{colour}" stroke-width="{width:.2f}" stroke-opacity="{opacity:.2f}"{dash}/>'
        f'<path d="{head}" fill="{colour}"{faint}/></g>'
    )


def _cell(cell: Cell, tip: str, outcome: Verdict | None) -> str:
    """A node's box, with the sign of its name's causal test; MLPs, features and (dashed) error nodes are filled and
    round, input and logits dark."""
    fill, line = _CELL_COLOURS.get(cell.kind, ("#ffffff", "#333333"))
    dark = fill == line
    dash = ' stroke-dasharray="4 2"' if cell.kind == "error" else ""
    middle = cell.x + cell.width / 2
    name = cell.name.split(".")[-1] if cell.kind == "kv" else cell.name
    line_up = (cell.height - CELL_HEIGHT - LABEL_HEIGHT * len(cell.label)) / 2
    text = svg_text(name, middle, cell.y + 15 + line_up, 11.5, "#ffffff" if dark else "#111111", "middle")
    for place, line_of_label in enumerate(cell.label):
        y = cell.y + 28 + line_up + LABEL_HEIGHT * place
        text += svg_text(line_of_label, middle, y, 9.5, "#ffffff" if dark else "#444444", "middle")
    text += svg_verdict(outcome, cell.x + cell.width - 8, cell.y + 9) if outcome else ""
    return (
        f"<g>{svg_title(tip)}"
        f'<rect x="{cell.x:.1f}" y="{cell.y:.1f}" width="{cell.width:.1f}" height="{cell.height:.1f}" '
        f'rx="{_ROUND.get(cell.kind, 2)}" fill="{fill}" stroke="{line}" stroke-width="1"{dash}/>{text}</g>'
    )


def _tab(port: str, tip: str, x: float, y: float | int) -> str:
    """The small labelled tab of a q, k or v slot; x and y are the middle of its lower edge."""
    title = svg_title(tip) if tip else ""
    return (
        f'<g>{title}<rect x="{x - TAB_WIDTH / 2:.1f}" y="{y - TAB_HEIGHT:.1f}" width="{TAB_WIDTH:g}" '
        f'height="{TAB_HEIGHT:g}" fill="{TAB_COLOURS[port]}" stroke="#333333" stroke-width="0.7"/>'
        + svg_text(port, x, y - 2.2, 9, "#111111", "middle")
        + "</g>"
    )


def _verdicts(view: CircuitView, layout: Layout, outcome: Verdict) -> bool:
    """Whether the causal test of any drawn name came out so."""
    return any(verdict(view.named.get(cell.name)) == outcome for cell in layout.cells)


def _legend(view: CircuitView, circuit: Circuit, layout: Layout, largest: float, width: float) -> str:
    """What widths, colours, dashes and tabs mean."""
    parts = [f'<line x1="16" y1="4" x2="{width - 16:.0f}" y2="4" stroke="#cccccc"/>']
    shared = any(cell.kind == "kv" for cell in layout.cells)

    def sample(score: float | None, text: str, x: float, y: float | int) -> float:
        colour, thick, dash = stroke(score, largest)
        line = f'x1="{x:.1f}" y1="{y:g}" x2="{x + 30:.1f}" y2="{y:g}"'
        parts.append(
            f'<line {line} stroke="{colour}" stroke-width="{thick:.2f}"{dash}/>' + svg_text(text, x + 35, y + 4, 10.5)
        )
        return x + 35 + 5.4 * len(text) + 14

    x = 16.0
    if circuit.scores is None:
        x = sample(None, "edge", x, 18)
    else:
        x = sample(largest / 4, "positive: corrupting the edge hurts", x, 18)
        x = sample(-largest / 4, "negative", x, 18)
        at = 16.0
        for share in (1.0, 0.25, 0.01):
            at = sample(largest * share, f"{largest * share:.2g}", at, 36)
        unit = "|score|" + (f" ({view.metric})" if view.metric else "")
        room = int((width - at - (175 if shared else 10)) / 5.6)
        parts.append(svg_text(shorten(f"{unit}, {circuit.scores.method}", room), at - 6, 40, 10.5))
    tabbed = any(tab.slot.port for tab in layout.tabs)
    for port, meaning in (("q", "query"), ("k", "key"), ("v", "value")) if tabbed else ():
        parts.append(_tab(port, "", x + 8, 23) + svg_text(meaning, x + 20, 22, 10.5))
        x += 20 + 5.6 * len(meaning) + 12
    x = 16.0
    for outcome, meaning in MEANINGS.items():
        if _verdicts(view, layout, outcome):
            parts.append(svg_verdict(outcome, x + 5, 50) + svg_text(meaning, x + 13, 54, 10.5))
            x += 13 + 5.4 * len(meaning) + 16
    if shared:
        parts.append(svg_text("kv: shared by the heads beside it", width - 16, 40, 10.5, anchor="end"))
    return "".join(parts)

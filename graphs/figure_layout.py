"""Places for a figure over token positions and layers: a column for each position, rows for each layer, boxes in their
cells. Edges are routed as a circuit's are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from graphs.blocks import Cell
from graphs.escape import display_width
from graphs.figure import Figure, Mark
from graphs.layout import Band, Layout, Tab
from graphs.node import NodeId, Slot

BOX, LETTER, MARKER, LINE, VERDICT = 19.0, 5.6, 16.0, 11.5, 11.0
"""Height of a box of one line, width of a letter in it, room for its marker, height of a further line, room for the sign of a
causal test."""
_GAP, _PADDING, _IN_A_ROW = 10.0, 26.0, 3


@dataclass(frozen=True, eq=False)
class Placed:
    """A figure with places, in pixels; y runs downwards."""

    layout: Layout
    """Boxes, and what routing needs."""
    centres: tuple[float, ...]
    """Middle of each column."""
    lines: tuple[float, ...]
    """x between columns."""
    boxes: Mapping[NodeId, Cell]
    """Box of each mark."""


def place_figure(figure: Figure) -> Placed:
    """Places for everything. Deterministic; marks of a cell stand near their neighbours."""
    rows = _rows(figure)
    widths = [0.0] * figure.columns
    for row in rows:
        for column, marks in _by_column(row).items():
            widths[column] = max(widths[column], sum(map(box_width, marks)) + _GAP * (len(marks) - 1))
    lines, centres, x = [0.0], [], 0.0
    for width in widths:
        centres.append(x + (width + _PADDING) / 2)
        x += width + _PADDING
        lines.append(x)
    return _place(figure, rows, centres, lines)


def box_width(mark: Mark) -> float:
    """Width of a mark's box."""
    sides = (MARKER if mark.node.kind in ("feature", "error", "head") else 0) + (VERDICT if mark.verdict else 0)
    return 10 + LETTER * max(map(display_width, mark.lines)) + sides


def box_height(mark: Mark) -> float:
    """Height of a mark's box."""
    return BOX + LINE * (len(mark.lines) - 1)


def _rows(figure: Figure) -> list[list[Mark]]:
    """Marks from bottom to top; the marks of one cell in rows of a few."""
    order = _order(figure)
    rows: list[list[Mark]] = []
    for level in sorted({mark.level for mark in figure.marks}):
        cells = _by_column([mark for mark in figure.marks if mark.level == level])
        lines: dict[int, list[Mark]] = defaultdict(list)
        for _, marks in sorted(cells.items()):
            marks.sort(key=lambda mark: (order[mark.node], str(mark.node)))
            count = -(-len(marks) // _IN_A_ROW)
            for place, mark in enumerate(marks):
                lines[place * count // len(marks) if count > 1 else 0].append(mark)
        rows += [lines[number] for number in sorted(lines)]
    return rows


def _by_column(marks: list[Mark]) -> dict[int, list[Mark]]:
    cells: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        cells[mark.column].append(mark)
    return cells


def _order(figure: Figure) -> dict[NodeId, float]:
    """Where each mark would stand if it stood in the mean column of its neighbours."""
    largest = max((abs(arrow.value) for arrow in figure.arrows), default=0.0) or 1.0
    near: dict[NodeId, list[tuple[NodeId, float]]] = defaultdict(list)
    for arrow in figure.arrows:
        weight = 0.1 + (abs(arrow.value) / largest) ** 0.5
        near[arrow.source].append((arrow.target, weight))
        near[arrow.target].append((arrow.source, weight))
    column = {mark.node: float(mark.column) for mark in figure.marks}
    at = dict(column)
    for _ in range(6):
        for node in column:
            total = sum(weight for _, weight in near[node])
            mean = sum(at[other] * weight for other, weight in near[node]) / total if total else column[node]
            at[node] = column[node] + 0.45 * max(-1.0, min(1.0, mean - column[node]))
    return at


def _place(figure: Figure, rows: list[list[Mark]], centres: list[float], lines: list[float]) -> Placed:
    """Coordinates, the origin at the upper left corner."""
    rank: dict[NodeId | Slot, int] = {}
    for number, row in enumerate(rows):
        for mark in row:
            rank[mark.node] = rank[Slot(mark.node)] = number
    crossed = [0] * (len(rows) + 1)
    for arrow in figure.arrows:
        for number in range(rank[arrow.source] + 1, rank[arrow.target] + 1):
            crossed[number] += 1
    cells: list[Cell] = []
    walls = []
    bands: dict[int, list[float]] = defaultdict(list)
    y = 14.0
    for number in range(len(rows) - 1, -1, -1):
        taken = []
        tall = max(map(box_height, rows[number]))
        for column, marks in _by_column(rows[number]).items():
            wide = sum(map(box_width, marks)) + _GAP * (len(marks) - 1)
            x = centres[column] - wide / 2
            for mark in marks:
                cells.append(Cell(str(mark.node), mark.node.kind, mark.lines, x, y, box_width(mark), tall))
                taken.append((x, x + box_width(mark)))
                x += box_width(mark) + _GAP
        bands[rows[number][0].level] += [y, y + tall]
        walls.append((y, y + tall, tuple(sorted(taken))))
        y += tall + (20 + 2.4 * crossed[number] ** 0.7 if number else 0)
    named = {str(mark.node): mark.node for mark in figure.marks}
    boxes = {named[cell.name]: cell for cell in cells}
    tabs = [Tab(Slot(node), c.x + c.width / 2, c.y + c.height, c.width * 0.75) for node, c in boxes.items()]
    drawn = tuple(
        Band(f"layer {level}", min(ys), max(ys)) for level, ys in sorted(bands.items()) if 0 <= level < figure.layers
    )
    nowhere = (-1e6, -1e6)  # no middle column
    layout = Layout(lines[-1], y, tuple(cells), tuple(tabs), drawn, tuple(reversed(walls)), nowhere, rank)
    return Placed(layout, tuple(centres), tuple(lines), boxes)

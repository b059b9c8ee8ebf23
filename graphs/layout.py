"""A layered picture of a circuit, without token positions: layers from bottom to top, MLPs between the heads.

Sizes are in pixels at 100 %, y runs downwards as in SVG. Only nodes that have a kept edge are placed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphs.arrangement import arrange
from graphs.blocks import TAB_HEIGHT, TAB_WIDTH, Block, Cell, blocks_by_row
from graphs.circuit import Circuit
from graphs.columns import Column, arrange_columns, spans_in
from graphs.node import NodeId, Slot

_HEADING = 20.0  # room for the names of columns


@dataclass(frozen=True)
class Tab:
    """Where edges end: the lower edge of a box, or of the small tab of a q, k or v slot."""

    slot: Slot
    """The slot."""
    x: float
    """Middle."""
    y: float
    """Lower edge: where arrows end."""
    width: float
    """How far arrow tips may spread."""


@dataclass(frozen=True)
class Band:
    """The rows of one layer."""

    label: str
    """Text for the margin; empty below the first and above the last layer."""
    top: float
    """Upper edge."""
    bottom: float
    """Lower edge."""


@dataclass(frozen=True)
class Layout:
    """Where everything is."""

    width: float
    """Of the drawing."""
    height: float
    """Of the drawing."""
    cells: tuple[Cell, ...]
    """All boxes, from bottom to top, left to right."""
    tabs: tuple[Tab, ...]
    """The slots in which some edge ends."""
    bands: tuple[Band, ...]
    """Layers from bottom to top."""
    walls: tuple[tuple[float, float, tuple[tuple[float, float], ...]], ...]
    """For each row from bottom to top: upper edge, lower edge, and the x intervals that boxes take."""
    corridor: tuple[float, float]
    """The x interval of the middle column, which a row without middle boxes leaves free."""
    rank: Mapping[NodeId | Slot, int]
    """Row of each source and of each slot, as an index into `walls`."""
    columns: tuple[Column, ...] = ()
    """Of a graph with spans: its spans from left to right."""


def layered_layout(circuit: Circuit, labels: Mapping[str, str] | None = None) -> Layout:
    """Places every node that has a kept edge. Deterministic. `labels` (by node name) become further lines
    in the boxes."""
    rows = blocks_by_row(circuit, labels or {})
    ranks = {end: r for r, blocks in enumerate(rows) for block in blocks for end in block.ends}
    links = _links(circuit, ranks)
    gap = 24 + 0.11 * min(len(links), 320)
    corridor = (
        max((b.width for row in rows for b in row if b.middle and b.cells[0].kind in ("mlp", "error")), default=0.0) / 2
    )
    order = dict.fromkeys(node.position for node in circuit.topology.sources if node.position is not None)
    columns: tuple[Column, ...] = ()
    if spans := spans_in(rows, list(order)):
        lefts, columns = arrange_columns(rows, links, gap, spans)
    else:
        lefts = arrange(rows, links, gap, corridor + gap)
    crossed = [0] * (len(rows) + 1)
    for source, slot, _ in links:
        for r in range(ranks[source] + 1, ranks[slot] + 1):
            crossed[r] += 1
    base = max(24.0, 36 - 0.04 * len(links))
    return _place(rows, lefts, [base + 1.5 * count**0.5 for count in crossed], ranks, corridor, columns)


def _links(circuit: Circuit, ranks: Mapping[NodeId | Slot, int]) -> list[tuple[NodeId, Slot, float]]:
    """Source, slot and weight (0.1 .. 1.1) of every edge."""
    edges = circuit.edges
    largest = max((abs(score) for _, score in edges if score is not None), default=0.0) or 1.0
    return [
        (edge.source, edge.slot, 0.1 + (abs(score or 0.0) / largest) ** 0.5)
        for edge, score in edges
        if edge.source in ranks and edge.slot in ranks
    ]


def _place(
    rows: Sequence[list[Block]],
    lefts: Sequence[list[float]],
    channels: Sequence[float],
    ranks: Mapping[NodeId | Slot, int],
    corridor: float,
    columns: tuple[Column, ...],
) -> Layout:
    """Final coordinates, the origin at the upper left corner."""
    margin = 24.0
    shift = margin - min(left for line in lefts for left in line)
    width = shift + margin + max(left + b.width for row, line in zip(rows, lefts) for b, left in zip(row, line))
    cells: list[Cell] = []
    tabs: list[Tab] = []
    walls = []
    tops: dict[int | None, list[float]] = {}
    y = margin + (_HEADING if columns else 0)
    for r in range(len(rows) - 1, -1, -1):
        tabbed = any(slot.port for block in rows[r] for slot, _ in block.slots)
        height = max(cell.height for block in rows[r] for cell in block.cells)
        bottom = y + height + (TAB_HEIGHT if tabbed else 0)
        taken = []
        for block, left in zip(rows[r], lefts[r]):
            x = left + shift
            taken.append((x, x + block.width))
            for slot, offset in block.slots:
                below, spread = (TAB_HEIGHT, TAB_WIDTH * 0.6) if slot.port else (0.0, block.width * 0.7)
                tabs.append(Tab(slot, x + offset, y + height + below, spread))
            for cell in block.cells:
                cells.append(replace(cell, x=x, y=y))
                x += cell.width
        layer = next((node.layer for block in rows[r] for node in block.nodes), None)
        tops.setdefault(layer if layer is not None else (None if r else -1), []).extend((y, bottom))
        walls.append((y, bottom, tuple(taken)))
        y = bottom + (channels[r] if r else margin)
    layers = sorted((layer, ys) for layer, ys in tops.items() if layer is not None and layer >= 0)
    bands = tuple(Band(f"layer {layer}", min(ys), max(ys)) for layer, ys in layers)
    order = sorted(cells, key=lambda cell: (-cell.y, cell.x))
    middle = (width, width) if columns else (shift - corridor, shift + corridor)  # columns leave no middle free
    moved = tuple(replace(column, left=column.left + shift, right=column.right + shift) for column in columns)
    return Layout(width, y, tuple(order), tuple(tabs), bands, tuple(reversed(walls)), middle, ranks, moved)

"""Order and x positions of the blocks of a graph with spans: one column for each span, in the order of the prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from graphs.blocks import Block
from graphs.node import NodeId, Slot

Link = tuple[NodeId, Slot, float]
_SWEEPS = 6


@dataclass(frozen=True)
class Column:
    """The part of a picture that belongs to one span."""

    label: str
    """The span's name."""
    left: float
    """Left edge."""
    right: float
    """Right edge."""


def spans_in(rows: Sequence[Sequence[Block]], order: Sequence[int | str]) -> list[int | str]:
    """The spans that some block stands at, in the given order; none for a graph without spans."""
    found = {_own_span(block) for row in rows for block in row}
    return [span for span in order if span in found]


def arrange_columns(
    rows: Sequence[list[Block]], links: Sequence[Link], gap: float, spans: Sequence[int | str]
) -> tuple[list[list[float]], tuple[Column, ...]]:
    """Left edges of all blocks, and the columns; sorts the blocks of each row.

    Within its column a block stands where its neighbours pull it; what has no span (the logits) stands in the column that
    most of its edges come from.
    """
    near = _neighbours(links)
    place = {id(block): spans.index(_span(block, near)) for row in rows for block in row}
    widths = [0.0] * len(spans)
    for row in rows:
        for number in range(len(spans)):
            own = [block.width for block in row if place[id(block)] == number]
            widths[number] = max(widths[number], sum(own) + gap * (len(own) - 1))
    starts = [sum(widths[:number]) + 2 * gap * number for number in range(len(spans))]
    columns = tuple(
        Column(str(span), start - gap / 2, start + width + gap / 2)
        for span, start, width in zip(spans, starts, widths, strict=True)
    )
    middles = [start + width / 2 for start, width in zip(starts, widths, strict=True)]
    centre: dict[NodeId | Slot, float] = {}
    lefts: list[list[float]] = [[] for _ in rows]
    for sweep in range(_SWEEPS):
        for number in range(len(rows)) if sweep % 2 == 0 else reversed(range(len(rows))):
            row = rows[number]
            row.sort(key=lambda block: (place[id(block)], _wanted(block, near, centre)))
            lefts[number] = _row(row, [place[id(block)] for block in row], middles, gap)
            for block, left in zip(row, lefts[number], strict=True):
                centre |= dict.fromkeys(block.ends, left + block.width / 2)
    return lefts, columns


def _row(row: Sequence[Block], places: Sequence[int], middles: Sequence[float], gap: float) -> list[float]:
    """Left edges of a row's blocks, side by side around the middle of their column."""
    lefts = []
    for number in dict.fromkeys(places):
        own = [block for block, place in zip(row, places, strict=True) if place == number]
        x = middles[number] - (sum(block.width for block in own) + gap * (len(own) - 1)) / 2
        for block in own:
            lefts.append(x)
            x += block.width + gap
    return lefts


def _neighbours(links: Sequence[Link]) -> dict[NodeId | Slot, list[tuple[NodeId | Slot, float]]]:
    near: dict[NodeId | Slot, list[tuple[NodeId | Slot, float]]] = defaultdict(list)
    for source, slot, weight in links:
        near[source].append((slot, weight))
        near[slot].append((source, weight))
    return near


def _wanted(
    block: Block,
    near: dict[NodeId | Slot, list[tuple[NodeId | Slot, float]]],
    centre: dict[NodeId | Slot, float],
) -> float:
    """Weighted mean x of those of a block's neighbours that are placed."""
    pulls = [(centre[end], weight) for own in block.ends for end, weight in near.get(own, ()) if end in centre]
    total = sum(weight for _, weight in pulls)
    return sum(x * weight for x, weight in pulls) / total if total else 0.0


def _own_span(block: Block) -> int | str | None:
    return next((span for end in block.ends if (span := _position(end)) is not None), None)


def _span(block: Block, near: dict[NodeId | Slot, list[tuple[NodeId | Slot, float]]]) -> int | str | None:
    """A block's span; without one of its own, that of the neighbours with the most weight."""
    own = _own_span(block)
    if own is not None:
        return own
    weights: dict[int | str | None, float] = defaultdict(float)
    for end in block.ends:
        for other, weight in near.get(end, ()):
            weights[_position(other)] += weight
    return max(weights, key=lambda span: (weights[span], str(span)))


def _position(end: NodeId | Slot) -> int | str | None:
    return end.node.position if isinstance(end, Slot) else end.position

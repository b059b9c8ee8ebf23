"""The layered picture: everything is placed once, nothing overlaps, edges keep clear of other boxes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from graphs.blocks import TAB_HEIGHT, Cell
from graphs.circuit import Circuit
from graphs.layout import Layout, layered_layout
from graphs.prune import drop_dead_ends, full_circuit, select_greedy
from graphs.routing import Route, route_edges, smooth_path
from graphs.scores import EdgeScores
from graphs.span_topology import Spans, span_topology
from graphs.topology import transformer_topology

Scored = Callable[..., EdgeScores]
SHAPES = [
    (4, 4, 4, False, 60),
    (12, 12, 12, False, 300),
    (5, 8, 2, False, 90),
    (6, 8, 4, True, 90),
    (3, 4, 1, False, 30),
]
LABELS = {"m0": "the first feed-forward block", "a1.h0": "x", "input": "日本語" * 9, "logits": "answer"}


SPANS = Spans(("start", "name", "end"), np.tril(np.ones((3, 3), dtype=bool)), np.array([False, False, True]))


@pytest.fixture(
    params=[*((*shape, False) for shape in SHAPES), (3, 4, 2, False, 70, True), (4, 4, 4, True, 60, True)], ids=str
)
def circuit(request: pytest.FixtureRequest, scored: Scored) -> Circuit:
    """Circuits of several shapes, some with spans, without dead ends."""
    *shape, edges, spans = request.param
    topology = transformer_topology(*shape)
    topology = span_topology(topology, SPANS) if spans else topology
    return drop_dead_ends(select_greedy(scored(topology, 7, ties=False), edges))


def _routes(layout: Layout, circuit: Circuit) -> tuple[Route, ...]:
    return route_edges(layout, [edge for edge, _ in circuit.edges])


def _curve(path: str) -> Iterator[tuple[float, float]]:
    """Points along the drawn curve."""
    numbers = [float(x) for x in re.findall(r"-?[0-9.]+", path)]
    start, rest = numbers[:2], numbers[2:]
    t = np.linspace(0, 1, 9)[:, None]
    for i in range(0, len(rest), 6):
        a, b, c, d = np.array([start, rest[i : i + 2], rest[i + 2 : i + 4], rest[i + 4 : i + 6]])
        yield from map(tuple, (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d)
        start = rest[i + 4 : i + 6]


@pytest.mark.parametrize("labels", [{}, LABELS], ids=["plain", "labels"])
def test_every_node_has_one_box_and_boxes_do_not_overlap(circuit: Circuit, labels: dict[str, str]) -> None:
    layout = layered_layout(circuit, labels)
    sources = {str(circuit.topology.sources[row]) for row in np.flatnonzero(circuit.kept.any(axis=1))}
    names = [cell.name for cell in layout.cells]
    assert len(names) == len(set(names))
    assert {cell.name for cell in layout.cells if cell.kind != "kv"} == sources | {"logits"}
    for i, a in enumerate(layout.cells):
        assert a.x >= 0
        assert a.x + a.width <= layout.width
        for b in layout.cells[:i]:
            apart = a.x + a.width <= b.x + 1e-6 or b.x + b.width <= a.x + 1e-6
            assert apart or a.y + a.height + TAB_HEIGHT <= b.y or b.y + b.height + TAB_HEIGHT <= a.y, (a, b)


def test_every_slot_has_its_tab_under_its_own_box(circuit: Circuit) -> None:
    layout = layered_layout(circuit)
    used = [circuit.topology.targets[column] for column in np.flatnonzero(circuit.kept.any(axis=0))]
    assert sorted(map(str, used)) == sorted(str(tab.slot) for tab in layout.tabs)
    cells = {cell.name: cell for cell in layout.cells}
    for tab in layout.tabs:
        shared = len(circuit.topology.feeds[circuit.topology.target_index[tab.slot]]) > 1
        name = str(tab.slot.node).replace("h", "kv", 1) if shared else str(tab.slot.node)
        cell = cells[name]
        assert cell.x < tab.x < cell.x + cell.width
        assert tab.y == pytest.approx(cell.y + cell.height + (TAB_HEIGHT if tab.slot.port else 0))


def test_edges_run_upwards_from_their_source_to_their_slot(circuit: Circuit) -> None:
    layout = layered_layout(circuit)
    cells, tabs = {cell.name: cell for cell in layout.cells}, {tab.slot: tab for tab in layout.tabs}
    routes = _routes(layout, circuit)
    assert [route.edge for route in routes] == [edge for edge, _ in circuit.edges]
    for route in routes:
        cell, tab = cells[str(route.edge.source)], tabs[route.edge.slot]
        (x0, y0), (x1, y1) = route.points[0], route.points[-1]
        assert (y0, y1) == (cell.y, tab.y)
        assert cell.x <= x0 <= cell.x + cell.width
        assert abs(x1 - tab.x) <= tab.width / 2 + 1e-6
        heights = [y for _, y in route.points]
        assert heights == sorted(heights, reverse=True)


def _hits(cell: Cell, points: list[tuple[float, float]]) -> bool:
    rim = 0.1  # paths are written with one decimal
    return any(
        cell.x + rim < x < cell.x + cell.width - rim and cell.y + rim < y < cell.y + cell.height - rim
        for x, y in points
    )


def test_edges_cross_no_other_box(circuit: Circuit) -> None:
    layout = layered_layout(circuit)
    for route in _routes(layout, circuit):
        points = list(_curve(smooth_path(route.points)))
        assert not [cell.name for cell in layout.cells if _hits(cell, points)], str(route.edge)
        assert all(-8.1 <= x <= layout.width + 8.1 for x, _ in points), str(route.edge)


def test_layers_rise_and_bands_do_not_overlap(circuit: Circuit) -> None:
    layout = layered_layout(circuit)
    assert [band.label for band in layout.bands] == sorted(
        (band.label for band in layout.bands), key=lambda label: int(label.split()[1])
    )
    for lower, upper in zip(layout.bands, layout.bands[1:]):
        assert upper.bottom < lower.top


def test_the_layout_is_deterministic(circuit: Circuit) -> None:
    first, second = layered_layout(circuit, LABELS), layered_layout(circuit, LABELS)
    assert first.cells == second.cells
    assert _routes(first, circuit) == _routes(second, circuit)


def test_a_whole_graph_without_scores_is_placed() -> None:
    circuit = full_circuit(transformer_topology(2, 3))
    assert len(_routes(layered_layout(circuit), circuit)) == circuit.edge_count


def test_spans_are_columns_in_their_order(scored: Scored) -> None:
    topology = span_topology(transformer_topology(3, 4, 2), SPANS)
    circuit = drop_dead_ends(select_greedy(scored(topology, 3, ties=False), 80))
    layout = layered_layout(circuit)
    assert [column.label for column in layout.columns] == ["start", "name", "end"]
    assert all(left.right <= right.left for left, right in pairwise(layout.columns))
    for cell in layout.cells:
        column = next(
            column for column in layout.columns if column.left <= cell.x and cell.x + cell.width <= column.right
        )
        assert cell.name in ("logits", f"{cell.name.partition('@')[0]}@{column.label}")
    assert layered_layout(full_circuit(transformer_topology(2, 2))).columns == ()

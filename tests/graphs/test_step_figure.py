"""Pictures over training steps: steps, points and cells have their places, and hostile text stays text."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from graphs.circuit import Circuit
from graphs.compare import jaccard
from graphs.curve_panel import Curve, CurvePanel
from graphs.development import appearance, edge_courses, lasting, overlaps, passing_edges
from graphs.scores import EdgeScores
from graphs.step_axis import StepAxis
from graphs.step_figure import Row, StepFigure, step_figure_svg
from graphs.topology import transformer_topology

_SVG = "{http://www.w3.org/2000/svg}"
_STEPS = {
    "even": (1.0, 2.0, 3.0, 4.0),
    "decades": (1.0, 10.0, 100.0, 1000.0),
    "from zero": (0.0, 1.0, 10.0, 1000.0),
    "one": (7.0,),
    "two": (0.0, 5.0),
}


@pytest.mark.parametrize("name", _STEPS)
def test_steps_ascend_within_the_axis_and_cells_fill_it(name: str) -> None:
    axis = StepAxis(_STEPS[name], 100.0, 300.0)
    places = axis.places
    assert places == sorted(places) and places[0] >= 100 and places[-1] <= 300
    assert axis.cells[0][0] == 100 and axis.cells[-1][1] == 300
    for (left, right), place in zip(axis.cells, places):
        assert left <= place <= right
    assert all(one[1] == two[0] for one, two in itertools.pairwise(axis.cells))


def test_the_axis_is_logarithmic_over_two_decades() -> None:
    assert StepAxis(_STEPS["decades"], 0.0, 1.0).log and StepAxis(_STEPS["from zero"], 0.0, 1.0).log
    assert not StepAxis(_STEPS["even"], 0.0, 1.0).log and not StepAxis((0.0, 100.0), 0.0, 1.0).log
    gaps = np.diff(StepAxis(_STEPS["decades"], 0.0, 300.0).places)
    assert gaps == pytest.approx([gaps[0]] * 3)
    gaps = np.diff(StepAxis(_STEPS["even"], 0.0, 300.0).places)
    assert gaps == pytest.approx([gaps[0]] * 3)


@pytest.mark.parametrize(
    "steps", [(), (2.0, 1.0), (1.0, 1.0), (-1.0, 2.0)], ids=["none", "falling", "equal", "negative"]
)
def test_steps_that_do_not_ascend_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend from 0"):
        StepAxis(steps, 0.0, 1.0)


def _figure(text: str = "plain", **changes) -> StepFigure:
    curves = (
        Curve(text, (0.0, 1.0, None, 4.0), "#222222", low=(0.0, 0.5, None, 3.0), high=(1.0, 2.0, None, 5.0)),
        Curve(f"{text} two", (4.0, 4.0, 4.0, 4.0), "#0072B2", dash="2 3"),
    )
    panel = CurvePanel(text, curves, faint=(True, False, False, False), faint_note=text)
    rows = tuple(Row(f"{text} {i}", np.array([0.0, 1.0, -2.0, np.nan]), 1, 2, text) for i in range(3))
    given = {"lines": (text,), "rows": rows, "rows_title": text, "moments": ((2.0, text), (4.0, text))}
    return StepFigure(text, steps=(1.0, 2.0, 3.0, 4.0), names=(text,) * 4, panels=(panel,), **(given | changes))


def _points(svg: bytes) -> list[tuple[float, float, str]]:
    circles = [circle for circle in ET.fromstring(svg).iter(_SVG + "circle") if circle.find(_SVG + "title") is not None]
    return [(float(c.attrib["cx"]), float(c.attrib["cy"]), c.findtext(_SVG + "title", "")) for c in circles]


def test_points_follow_the_numbers_and_tell_them() -> None:
    points = [point for point in _points(step_figure_svg(_figure())) if point[2].startswith("plain at")]
    assert [tip.rpartition(": ")[2] for _, _, tip in points] == ["0 [0, 1]", "1 [0.5, 2]", "4 [3, 5]"]
    assert [x for x, _, _ in points] == sorted(x for x, _, _ in points)
    (_, first, _), (_, second, _), (_, last, _) = points
    assert (first - second) * 3 == pytest.approx(second - last, abs=0.5)  # y runs downwards


def test_rows_are_scaled_by_themselves() -> None:
    many = tuple(Row(f"row{i}", np.array([1.0, 2.0, -2.0, np.nan]) * 10**i, 0) for i in range(8))
    root = ET.fromstring(step_figure_svg(_figure(rows=many, rows_title="rows")))
    cells = [c for c in root.iter(_SVG + "rect") if (c.findtext(_SVG + "title") or "").startswith("row")]
    assert len(cells) == 8 * 4
    colours = [tuple(cell.attrib["fill"] for cell in cells[4 * i : 4 * i + 4]) for i in range(8)]
    assert len(set(colours)) == 1 and len(set(colours[0])) == 4


def test_names_at_the_right_end_do_not_touch() -> None:
    curves = tuple(Curve(f"name {i}", (1.0, 1.0), "#222222") for i in range(6))
    figure = StepFigure("t", (), (1.0, 2.0), ("a", "b"), (CurvePanel("p", curves),), ())
    texts = [t for t in ET.fromstring(step_figure_svg(figure)).iter(_SVG + "text") if (t.text or "").startswith("name")]
    heights = sorted(float(text.attrib["y"]) for text in texts)
    assert len(heights) == 6 and min(np.diff(heights)) >= 10


@pytest.mark.parametrize("panels", [True, False], ids=["with curves", "rows alone"])
def test_hostile_text_stays_text(panels: bool) -> None:
    bad = "</title><script>alert(1)</script>\u202e\x00&\"'"
    svg = step_figure_svg(_figure(bad) if panels else StepFigure(bad, (bad,), (1.0,), (bad,), (), _one_row(bad)))
    assert not list(ET.fromstring(svg).iter(_SVG + "script"))
    assert b"\x00" not in svg and "\u202e" not in svg.decode()


def _one_row(text: str) -> tuple[Row, ...]:
    return (Row(text, np.array([1.0]), 0, 0, text),)


def test_appearance_is_the_first_half_of_the_last() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.normal(size=rng.integers(1, 8))
        first, stays = appearance(scores)
        there = [value / scores[-1] >= 0.5 for value in scores]
        assert first == there.index(True)
        assert stays == next(i for i in range(len(there)) if all(there[i:]))
    assert appearance(np.array([1.0, 0.0])) == (None, None)


def test_lasting() -> None:
    for holds in itertools.product((False, True), repeat=5):
        expected = next((i for i in range(5) if all(holds[i:])), None)
        assert lasting(holds) == expected
    assert lasting([]) is None


def test_courses_are_sorted_and_shares_take_growth_away() -> None:
    topology = transformer_topology(2, 2)
    places = np.argwhere(topology.possible)[:3]
    courses = {0: (0.0, 4.0, 8.0, 16.0), 1: (5.0, 5.0, 5.0, 5.0), 2: (0.0, -1.0, 3.0, 4.0)}
    scores = []
    for step in range(4):
        values = np.where(topology.possible, 0.0, np.nan).astype(np.float32)
        for number, (row, column) in enumerate(places):
            values[row, column] = courses[number][step]
        scores.append(EdgeScores(topology, values, "test"))
    kept = np.zeros_like(topology.possible)
    kept[tuple(places.T)] = True
    found = edge_courses(scores, Circuit(topology, kept), np.array([np.nan, 4.0, 8.0, 16.0]))
    names = [str(topology.edge(int(row), int(column))) for row, column in places]
    assert [str(one.edge) for one in found] == [names[1], names[0], names[2]]
    assert [one.appears for one in found] == [0, 2, 2]
    assert [one.settles for one in found] == [0, 2, 2]
    assert found[1].appears_as_share == 1  # always all of the gap, from where that says something


def test_passing_edges_are_those_of_other_circuits_by_their_largest_share() -> None:
    topology = transformer_topology(2, 2)
    places = np.argwhere(topology.possible)[:4]
    courses = ((1.0, 1.0, 1.0), (9.0, 4.0, 0.0), (0.0, -6.0, 1.0), (0.0, 1.0, 0.0))
    scores, own = [], []
    for step, members in enumerate(((1,), (0, 2, 3), (0,))):
        values, kept = np.where(topology.possible, 0.0, np.nan).astype(np.float32), np.zeros_like(topology.possible)
        values[tuple(places.T)] = [course[step] for course in courses]
        kept[tuple(places[list(members)].T)] = True
        scores.append(EdgeScores(topology, values, "test"))
        own.append(Circuit(topology, kept))
    names = [str(topology.edge(int(row), int(column))) for row, column in places]

    def found(gaps: list[float], most: int = 9) -> list[tuple[str, int]]:
        passing = passing_edges(scores, own, own[-1], np.array(gaps), most)
        return [(str(course.edge), place) for course, place in passing]

    assert found([2.0, 4.0, 8.0]) == [(names[1], 0), (names[2], 1), (names[3], 1)]
    assert found([np.nan, 4.0, 8.0]) == [(names[2], 1), (names[3], 1)]  # the first step's circuit says nothing
    assert found([2.0, 4.0, 8.0], most=1) == [(names[1], 0)]
    assert passing_edges(scores[-1:], own[-1:], own[-1], np.array([1.0]), 9) == ()


def test_the_overlap_by_chance_is_that_of_random_circuits() -> None:
    topology, rng = transformer_topology(2, 2), np.random.default_rng(0)
    possible = np.argwhere(topology.possible)

    def draw(edges: int) -> Circuit:
        kept = np.zeros_like(topology.possible)
        kept[tuple(possible[rng.choice(len(possible), edges, replace=False)].T)] = True
        return Circuit(topology, kept)

    drawn = [jaccard(draw(8), draw(20)) for _ in range(400)]
    ((own, chance),) = [one for one in overlaps([draw(8)], [draw(20)]) if one is not None]
    assert chance == pytest.approx(np.mean(drawn), abs=0.03) and 0 <= own <= 1
    assert overlaps([None, draw(3)], [draw(3), None]) == [None, None]
    same = draw(5)
    assert overlaps([same], [same])[0][0] == 1  # type: ignore[index]

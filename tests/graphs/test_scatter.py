"""Pictures of points: everything has its place, and hostile text stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from graphs.scatter import Axis, Line, Point, scatter_svg

_SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: bytes) -> list[tuple[float, float, str]]:
    found = []
    for circle in ET.fromstring(svg).iter(_SVG + "circle"):
        title = circle.find(_SVG + "title")
        assert title is not None
        found.append((float(circle.attrib["cx"]), float(circle.attrib["cy"]), title.text or ""))
    return found


@pytest.mark.parametrize("log", [False, True])
def test_places_follow_the_numbers(log: bool) -> None:
    points = [Point(x, y, f"{x} {y}", colour=y) for x, y in ((1.0, 5.0), (10.0, 3.0), (100.0, 1.0))]
    places = circles(scatter_svg("title", points, [], Axis("x", log), Axis("y"), Axis("shade")))
    assert [tip for _, _, tip in places] == ["1.0 5.0", "10.0 3.0", "100.0 1.0"]
    across, up = [x for x, _, _ in places], [y for _, y, _ in places]
    assert across == sorted(across) and up == sorted(up)  # y runs downwards
    steps = (across[1] - across[0], across[2] - across[1])
    assert (abs(steps[0] - steps[1]) < 0.2) == log


def test_numbers_at_or_below_zero_have_no_logarithm() -> None:
    places = circles(scatter_svg("t", [Point(0, 1, "a"), Point(4, 2, "b")], [], Axis("x", log=True), Axis("y")))
    assert places[0][0] < places[1][0]


def test_single_and_equal_points_are_drawn() -> None:
    assert (
        len(circles(scatter_svg("t", [Point(3, 3, "a"), Point(3, 3, "b")], [], Axis("x", True), Axis("y", True)))) == 2
    )


def test_what_is_not_finite_is_left_out() -> None:
    points = [Point(float("nan"), 1, "a"), Point(1, float("inf"), "b"), Point(1, 1, "c", colour=float("nan"))]
    assert [tip for _, _, tip in circles(scatter_svg("t", points, [], Axis("x"), Axis("y"), Axis("c")))] == ["c"]
    with pytest.raises(ValueError, match="at least one point"):
        scatter_svg("t", points[:2], [], Axis("x"), Axis("y"))


def test_hostile_text_stays_text() -> None:
    bad = "</title><script>alert(1)</script>\u202e\x00&"
    point = Point(1, 1, bad, label=bad, strong=True)
    svg = scatter_svg(bad, [point, Point(2, 2, "x")], [Line(((1, 1), (2, 2)), bad)], Axis(bad), Axis(bad))
    assert not list(ET.fromstring(svg).iter(_SVG + "script"))
    assert b"\x00" not in svg and "\u202e" not in svg.decode()


def test_labels_do_not_cover_each_other() -> None:
    points = [Point(1 + i / 1000, 1, "p", label=f"number {i}", strong=True) for i in range(30)] + [Point(2, 2, "far")]
    svg = scatter_svg("t", points, [], Axis("x"), Axis("y"))
    texts = [t for t in ET.fromstring(svg).iter(_SVG + "text") if (t.text or "").startswith("number")]
    places = {(round(float(t.attrib["x"])), round(float(t.attrib["y"]))) for t in texts}
    assert 0 < len(texts) == len(places) <= 4

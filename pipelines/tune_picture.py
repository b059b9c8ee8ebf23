"""The picture of a study: its front among all trials, or with a lone objective how it came down."""

from __future__ import annotations

from collections.abc import Sequence

from graphs.scatter import Axis, Line, Point, scatter_svg
from pipelines.tune_config import OBJECTIVES
from pipelines.tune_front import Entry

_LOG = ("edges", "seconds")


def picture(
    title: str, found: Sequence[Entry], best: Sequence[Entry], baseline: Entry | None, objectives: Sequence[str]
) -> bytes:
    """SVG. The second objective goes across, the first one up, the third is the colour; one alone is drawn over trials."""
    if len(objectives) == 1:
        return _course(title, found, best, baseline, objectives[0])
    up, across = objectives[0], objectives[1]
    third = objectives[2] if len(objectives) > 2 else None
    strong = {entry.number for entry in best}
    points = [
        Point(
            entry.found[across],
            entry.found[up],
            _tip(entry, objectives),
            None if entry.baseline or third is None else entry.found[third],
            entry.number in strong,
            "random" if entry.baseline else str(entry.number) if entry.number in strong else "",
        )
        for entry in found
    ]
    lines = []
    if baseline is not None and up in ("distance", "faithfulness") and across == "edges":
        curve = [(edges, abs(1 - value) if up == "distance" else value) for edges, value in baseline.random if edges]
        lines = [Line(tuple(sorted((float(x), y) for x, y in curve)), "random circuits", dashed=True)]
    heading = f"{title}: {len(found)} trials, {len(best)} that no other one beats"
    return scatter_svg(heading, points, lines, _axis(across), _axis(up), None if third is None else _axis(third))


def _course(title: str, found: Sequence[Entry], best: Sequence[Entry], baseline: Entry | None, objective: str) -> bytes:
    points, places, so_far = [], [], None
    better = min if OBJECTIVES[objective].direction == "minimize" else max
    for entry in sorted(found, key=lambda entry: entry.number):
        value, strong = entry.values[0], entry.number == best[0].number
        label = "random" if entry.baseline else str(entry.number) if strong else ""
        points.append(Point(entry.number, value, _tip(entry, (objective,)), None, strong, label))
        if not entry.baseline:
            so_far = value if so_far is None else better(so_far, value)
            places.append((float(entry.number), so_far))
    lines = [Line(tuple(places), "best so far", stairs=True)]
    if baseline is not None:
        ends = (float(points[0].x), float(points[-1].x))
        lines.append(Line(tuple((x, baseline.values[0]) for x in ends), "random baseline", dashed=True))
    return scatter_svg(f"{title}: {len(found)} complete trials", points, lines, Axis("trial"), _axis(objective))


def _axis(objective: str) -> Axis:
    return Axis(OBJECTIVES[objective].summary, objective in _LOG)


def _tip(entry: Entry, objectives: Sequence[str]) -> str:
    values = ", ".join(f"{name} {entry.found[name]:.4g}" for name in objectives)
    return f"trial {entry.number}: {describe(entry)}; {values}"


def describe(entry: Entry) -> str:
    """What an entry tries, on one line."""
    run = entry.run
    chosen = run.selection
    options = " ".join(
        f"{key}={f'{value:.3g}' if isinstance(value, float) else value}" for key, value in run.method.options.items()
    )
    cuts = {"nodes": chosen.nodes, "size": chosen.size, "threshold": chosen.threshold}
    cut = next((f"{key} {value:.3g}" for key, value in cuts.items() if value is not None), "")
    more = "" if chosen.min_stability is None else f" stability {chosen.min_stability:g}"
    return f"{run.method.name}{' ' + options if options else ''}, {run.ablation}, {chosen.rule} {chosen.by} {cut}{more}"

"""What progress.json and progress.svg hold of the checkpoints: numbers by step, moments, the courses of edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.fingerprint import edgewise_version
from pipelines.progress_steps import Step
from pipelines.store import EVALUATION

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.development import EdgeCourse
    from graphs.step_figure import StepFigure

FORMAT, VERSION = "edgewise-progress", 1
TOLD, SURE = 0.02, 3.0
"""Faithfulness is told from where the metric's gap (all edges less none) is at least this share of the largest gap of all
steps, of the same sign, and so many of its own standard errors from 0: else it is a ratio of noise, or of something else."""
MOST_ROWS = 48
"""Edges that are drawn, and passing ones that are listed."""
BLACK, BLUE, VERMILION, GREY, GREEN, PURPLE = "#222222", "#0072B2", "#D55E00", "#8a8a8a", "#009E73", "#AA4499"


def content_of(
    steps: Sequence[Step], circuit: Circuit | None, origin: str, name: str, failed: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The content of progress.json. circuit: the fixed one; None: each step's own. name: what is in training."""
    from graphs.circuit import Circuit
    from graphs.development import edge_courses, passing_edges

    run, config = steps[-1].store.run, steps[-1].config
    shown = circuit or next((Circuit(s.own.topology, s.own.kept) for s in reversed(steps) if s.own is not None), None)
    scores = [step.scores for step in steps if step.scores is not None]
    assert shown is not None  # `progress` stops where no step has a circuit
    rows = _rows(steps)
    gaps = np.array([row["gap"] if row["told"] else math.nan for row in rows])
    courses = edge_courses(scores, shown, gaps)
    passing = passing_edges(scores, [step.own for step in steps], shown, gaps, MOST_ROWS)
    return {
        "format": FORMAT,
        "version": VERSION,
        "edgewise": edgewise_version(),
        "title": f"{run['task']['name']} in {name}",
        "metric": run["task"]["metric"],
        "method": scores[-1].method,
        "ablation": config.ablation,
        "circuit": {"origin": origin, "edges": shown.edge_count, "possible": shown.topology.edge_count},
        "told": {"share": TOLD, "standard_errors": SURE},
        "from": _moments(rows, config.selection.reach),
        "reach": config.selection.reach,
        "steps": rows,
        "edges": [_edge(course, rows) for course in courses],
        "passing": [
            {"edge": str(course.edge), "peak": rows[place]["step"], "scores": course.scores.tolist()}
            for course, place in passing
        ],
        "failed": [dict(one) for one in failed],
    }


def _rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The numbers of every step."""
    from graphs.compare import spearman
    from graphs.development import overlaps

    own = [step.own for step in steps]
    beside = {"previous": overlaps(own, [None, *own[:-1]]), "last": overlaps(own, [own[-1]] * len(own))}
    largest = max((step.found["gap"] for step in steps), key=abs)
    rows = []
    for place, step in enumerate(steps):
        row = {
            "checkpoint": step.checkpoint.name,
            "step": step.checkpoint.step,
            "model": step.checkpoint.model,
            "revision": step.checkpoint.revision,
            **step.found,
            "told": _told(step.found, largest),
            "own": _own(step),
        }
        for name, found in beside.items():
            each = found[place]
            row[f"overlap_{name}"] = None if each is None else {"jaccard": each[0], "chance": each[1]}
        try:
            assert step.scores is not None and steps[-1].scores is not None
            row["spearman_last"] = spearman(step.scores, steps[-1].scores)
        except ValueError:  # the same score everywhere
            row["spearman_last"] = None
        rows.append(row)
    return rows


def _told(found: Mapping[str, Any], largest: float) -> bool:
    gap, error = found["gap"] * math.copysign(1.0, largest), found["gap_stderr"]
    return gap > 0 and gap >= TOLD * abs(largest) and (error is None or gap > SURE * error)


def _own(step: Step) -> dict[str, Any] | None:
    """What the run itself says of its circuit."""
    if step.own is None:
        return None
    found: dict[str, Any] = {"edges": step.own.edge_count}
    if step.store.finished("evaluation"):
        evaluation = step.store.read_json(EVALUATION)
        found |= {name: evaluation["circuit"].get(name) for name in ("faithfulness", "low", "high", "completeness")}
    return found


def _moments(rows: Sequence[Mapping[str, Any]], reach: float) -> dict[str, float | int | None]:
    """Steps from which something holds at every later one; null where it does not hold at the last."""
    from discovery.doubts import FAITHFUL, KNOWN
    from graphs.development import lasting

    def since(holds: Callable[[Mapping[str, Any]], bool]) -> float | int | None:
        place = lasting([holds(row) for row in rows])
        return None if place is None else rows[place]["step"]

    def value(row: Mapping[str, Any], name: str) -> float:
        found = row[name] and row[name]["faithfulness"]
        return math.nan if found is None or not row["told"] else found

    return {
        "known": since(lambda row: row["known"] >= KNOWN),
        "circuit": since(lambda row: value(row, "circuit") >= reach),
        "rest": since(lambda row: value(row, "rest") < FAITHFUL),
    }


def _edge(course: EdgeCourse, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    moments = {
        name: None if place is None else rows[place]["step"]
        for name in ("appears", "settles", "appears_as_share")
        for place in [getattr(course, name)]
    }
    return {"edge": str(course.edge), **moments, "scores": course.scores.tolist()}


def figure_of(content: Mapping[str, Any]) -> StepFigure:
    """The picture of a progress.json."""
    from graphs.step_figure import StepFigure

    rows, circuit = content["steps"], content["circuit"]
    lines = (
        f"{content['method']}, {content['metric']}, {content['ablation']} ablation, evaluated on {rows[-1]['pairs']} pairs; "
        f"circuit: {circuit['edges']:,} of {circuit['possible']:,} edges, {circuit['origin']}",
        *(f"left out: {one['checkpoint']}: {one['reason']}" for one in content["failed"]),
    )
    count = len(content["edges"])
    more = f" ({MOST_ROWS} of {count:,}: the strongest at the end)" if count > MOST_ROWS else ""
    words = {
        "known": "prefers the answer",
        "circuit": f"circuit {content['reach']:g} faithful",
        "rest": "all else below 0.5",
    }
    moments = [(float(step), words[name]) for name, step in content["from"].items() if step is not None]
    return StepFigure(
        title=content["title"],
        lines=lines,
        steps=tuple(float(row["step"]) for row in rows),
        names=tuple(row["checkpoint"] for row in rows),
        panels=_panels(content),
        rows=_heat_rows(content),
        rows_title=f"scores of the circuit's edges, by when they appear{more}",
        rows_note="final score",
        mark_note="half of the final score",
        dot_note="half of its share",
        moments=tuple(moments),
    )


def _panels(content: Mapping[str, Any]) -> tuple[Any, ...]:
    from graphs.curve_panel import CurvePanel

    rows = content["steps"]
    runs = ("full", "empty", "circuit", "rest")
    faint = tuple(not row["told"] for row in rows)
    note = "grey: the metric hardly tells clean from ablated"
    return (
        CurvePanel(f"metric ({content['metric']})", _curves(rows, "metric", runs)),
        CurvePanel("accuracy", _curves(rows, "accuracy", runs), limits=(0.0, 1.0)),
        CurvePanel(
            "faithfulness",
            _curves(rows, "faithfulness", ("random", "rest", "circuit")),
            limits=(-0.5, 1.5),
            guides=(0.0, 1.0),
            faint=faint,
            faint_note=note if any(faint) else "",
        ),
        CurvePanel(
            "loss of the answer (nats): circuit alone = restricted, all but the circuit = excluded",
            _curves(rows, "loss", runs),
            log=True,
        ),
        CurvePanel("edges that the step's own circuit shares (Jaccard)", _overlap_curves(rows), limits=(0.0, 1.0)),
    )


_LINES = {
    "full": ("full model", BLACK, 3.0, ""),
    "circuit": ("circuit alone", BLUE, 1.6, ""),
    "rest": ("all but the circuit", VERMILION, 1.6, ""),
    "random": ("random circuits", GREY, 1.6, "2 3"),
    "empty": ("no edge (ablated)", GREY, 3.0, "6 3"),
}
"""Name, colour, width and dash of what is run."""


def _curves(rows: Sequence[Mapping[str, Any]], measure: str, runs: Sequence[str]) -> tuple[Any, ...]:
    from graphs.curve_panel import Curve

    def column(run: str, name: str) -> tuple[float | None, ...]:
        return tuple(None if row[run] is None else row[run].get(name) for row in rows)

    found = []
    for run in runs:
        name, colour, width, dash = _LINES[run]
        ends = [column(run, end) if measure == "faithfulness" else () for end in ("low", "high")]
        found.append(Curve(name, column(run, measure), colour, width, dash, *ends))
    return tuple(found)


def _overlap_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    from graphs.curve_panel import Curve

    def column(other: str, name: str) -> tuple[float | None, ...]:
        return tuple(None if row[f"overlap_{other}"] is None else row[f"overlap_{other}"][name] for row in rows)

    return (
        Curve("with the last step's", column("last", "jaccard"), GREEN),
        Curve("with the step before's", column("previous", "jaccard"), PURPLE),
        Curve("chance, with the last", column("last", "chance"), GREY, dash="2 3"),
    )


def _heat_rows(content: Mapping[str, Any]) -> tuple[Any, ...]:
    from graphs.step_figure import Row

    places = {row["step"]: place for place, row in enumerate(content["steps"])}
    strongest = sorted(content["edges"], key=lambda edge: -abs(edge["scores"][-1]))[:MOST_ROWS]
    names = {edge["edge"] for edge in strongest}
    return tuple(
        Row(
            edge["edge"],
            np.array(edge["scores"]),
            places.get(edge["appears"]),
            places.get(edge["appears_as_share"]),
            f"{edge['scores'][-1]:+.3g}",
        )
        for edge in content["edges"]
        if edge["edge"] in names
    )

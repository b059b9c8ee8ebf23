"""Pictures of attribution graphs as SVG: tokens below by position, layers upwards, outputs on top."""

from __future__ import annotations

from graphs.attribution_figure import attribution_figure
from graphs.figure_svg import figure_svg
from graphs.pruned import PrunedGraph
from graphs.task_figure import task_figure
from graphs.task_graph import TaskGraph


def export_svg(graph: PrunedGraph) -> bytes:
    """The most influential nodes of one prompt's graph and the strongest edges between them; says what is left out."""
    return figure_svg(attribution_figure(graph))


def export_task_svg(graph: TaskGraph) -> bytes:
    """The nodes and edges that many prompts share, faint where few have them; or how two sets of prompts differ."""
    return figure_svg(task_figure(graph))

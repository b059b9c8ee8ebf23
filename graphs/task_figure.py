"""What of a graph of many prompts is drawn: the strongest edges; presence by frequency, or the difference of two sides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.attribution_figure import MOST_EDGES, MOST_NODES, strongest
from graphs.escape import shorten, visible_token, wrapped
from graphs.figure import Arrow, Figure, Mark
from graphs.named import told, verdict
from graphs.node import NodeId
from graphs.task_graph import TaskGraph, wilson


def task_figure(graph: TaskGraph, most_nodes: int = MOST_NODES, most_edges: int = MOST_EDGES) -> Figure:
    """The figure of a task. Of two sides, arrows are the difference of the edges' shares of the influence, and nodes that
    one side alone has in most of its prompts are coloured."""
    shown = graph.shares[0] - graph.shares[1] if graph.is_contrast else graph.shares[0]
    sizes = graph.influence.max(axis=0)
    if graph.is_contrast:
        sizes = np.abs(graph.influence[0] - graph.influence[1])
    free = np.array([node.layer is None for node in graph.nodes])
    drawn, edges = strongest(graph.edges, sizes, np.abs(shown), free, ~free, most_nodes, most_edges)
    groups = _groups(graph)
    marks = _marks(graph, drawn, edges, sizes, groups)
    first, second = (*graph.sides, "")[:2]
    return Figure(
        title=graph.title or "many prompts",
        numbers=_numbers(graph, drawn, edges, shown),
        columns=len(graph.places),
        layers=graph.layers,
        marks=marks,
        arrows=tuple(_arrow(graph, place, shown) for place in edges.tolist()),
        unit="difference of the shares of the influence" if graph.is_contrast else "mean share of the influence",
        signs=(f"more positive on {first}", f"more positive on {second}")
        if graph.is_contrast
        else ("excites", "inhibits"),
        groups=tuple(f"{side} only" for side in graph.sides) if graph.is_contrast else (),
        faint="faint: in few prompts",
    )


def _groups(graph: TaskGraph) -> dict[NodeId, int]:
    """The side of nodes that one side alone has."""
    if not graph.is_contrast:
        return {}
    clean, corrupt = graph.node_counts
    inner = [node.kind in ("feature", "error", "head") for node in graph.nodes]
    return {
        node: 0 if clean[place] else 1
        for place, node in enumerate(graph.nodes)
        if inner[place] and (clean[place] == 0) != (corrupt[place] == 0)
    }


def _marks(
    graph: TaskGraph,
    drawn: Bool[np.ndarray, " node"],
    edges: Int[np.ndarray, " drawn"],
    sizes: Float[np.ndarray, " node"],
    groups: Mapping[NodeId, int],
) -> tuple[Mark, ...]:
    column = {place: number for number, place in enumerate(graph.places)}
    inner = [size for node, size, shows in zip(graph.nodes, sizes, drawn) if shows and node.layer is not None]
    largest = float(max(inner, default=0.0)) or 1.0
    busy = set(graph.edges[edges].ravel().tolist())
    marks = []
    for place in np.flatnonzero(drawn).tolist():
        node = graph.nodes[place]
        is_input = node.kind == "input"
        frequency = float(graph.node_counts[:, place].max() / graph.prompts)
        marks.append(
            Mark(
                node=node,
                level=-1 if is_input else graph.layers if node.layer is None else node.layer,
                column=len(graph.places) - 1 if node.position is None else column[node.position],
                lines=_short(graph, node),
                tip=_tip(graph, place),
                size=float(sizes[place] / largest),
                presence=(1.0 if place in busy else 0.35) if is_input else frequency,
                verdict=verdict(graph.named.get(str(node.at(None)))),
                group=groups.get(node),
            )
        )
    return tuple(marks)


def _short(graph: TaskGraph, node: NodeId) -> tuple[str, ...]:
    text = graph.label(node)
    if node.kind == "input":
        seen = visible_token(text, 16)
        return (f"{shorten(node.position, 12)}: {seen}" if isinstance(node.position, str) else seen or "∅",)
    if node.kind in ("logits", "logit", "difference"):
        return (visible_token(text, 20) or str(node.at(None)),)
    return wrapped(text, 26, 2) or (str(node.at(None)),)


def _often(graph: TaskGraph, counts: Int[np.ndarray, " side"]) -> str:
    """How often something is, with its confidence interval."""
    low, high = wilson(counts, graph.prompts)
    parts = []
    for name, count, least, most in zip(graph.sides, counts.tolist(), low.tolist(), high.tolist()):
        parts.append(f"{name}: {count} of {graph.prompts} ({least:.0%} to {most:.0%})")
    return ", ".join(parts)


def _tip(graph: TaskGraph, place: int) -> str:
    node, label = graph.nodes[place], graph.label(graph.nodes[place])
    influence = ", ".join(f"{value:.4g}" for value in graph.influence[:, place].tolist())
    known = graph.named.get(str(node.at(None)))
    facts = told(known) if known is not None else []
    return "\n".join(
        [f"{node}: {label}", _often(graph, graph.node_counts[:, place]), f"mean influence {influence}", *facts]
    )


def _arrow(graph: TaskGraph, place: int, shown: Float[np.ndarray, " edge"]) -> Arrow:
    source, target = (graph.nodes[end] for end in graph.edges[place].tolist())
    word = " - ".join(graph.sides) if graph.is_contrast else "mean"
    tip = f"{source}->{target}\n{_often(graph, graph.edge_counts[:, place])}\n{word} {graph.effect[place]:+.4g}"
    if not np.isnan(graph.stderr[place]):
        tip += f" ± {graph.stderr[place]:.2g}"
    if not np.isnan(graph.agreement[place]):
        tip += f", one sign in {graph.agreement[place]:.0%}"
    tip += f"\nshare of the influence {shown[place]:+.2%}"
    return Arrow(source, target, float(shown[place]), tip, float(graph.edge_counts[:, place].max() / graph.prompts))


def _numbers(
    graph: TaskGraph,
    drawn: Bool[np.ndarray, " node"],
    edges: Int[np.ndarray, " drawn"],
    shown: Float[np.ndarray, " edge"],
) -> tuple[str, ...]:
    parts = [f"{graph.prompts} pairs of prompts" if graph.is_contrast else f"{graph.prompts} prompts"]
    for side in graph.sides:
        before = f"{side}: " if graph.is_contrast else ""
        scores = [(key, graph.scores.get(f"{side}.{key}")) for key in ("replacement", "completeness")]
        parts += [f"{before}mean {key} {value:.2f}" for key, value in scores if value is not None]
    total = float(np.abs(shown).sum()) or 1.0
    inner = np.array([node.kind != "input" for node in graph.nodes])
    parts.append(
        f"drawn: {int((drawn & inner).sum())} of {int(inner.sum())} nodes, {len(edges):,} of {len(shown):,} edges "
        f"({float(np.abs(shown[edges]).sum()) / total:.0%} of the strength)"
    )
    return tuple(parts)

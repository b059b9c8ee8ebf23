"""What of a pruned attribution graph is drawn: its most influential nodes and the strongest edges between them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.escape import shorten, visible_token, wrapped
from graphs.figure import Arrow, Figure, Mark
from graphs.named import told, verdict
from graphs.node import NodeId
from graphs.pruned import PrunedGraph

MOST_NODES, MOST_EDGES = 60, 150
"""As many a page can hold; files hold all."""
_MOST_COLUMNS = 20  # prompts up to this length show every token


def attribution_figure(graph: PrunedGraph, most_nodes: int = MOST_NODES, most_edges: int = MOST_EDGES) -> Figure:
    """The figure of one prompt. Members of a supernode at one position are drawn as one where that is possible."""
    sizes = _or_else(graph.influence, 1 - np.nan_to_num(graph.cumulative, nan=1.0))
    strengths = _or_else(graph.edge_scores, np.abs(graph.weights.astype(np.float64)))
    free, others = _candidates(graph, sizes)
    nodes, edges = strongest(graph.edges, sizes, strengths, free, others, most_nodes, most_edges)
    columns = _columns(graph, nodes, edges)
    lead, groups = _leads(graph, nodes, edges)
    marks = _marks(graph, nodes, lead, groups, columns, sizes) + _token_marks(graph, nodes, columns)
    arrows = _arrows(graph, edges, lead, strengths)
    scored = not np.isnan(graph.edge_scores).any()
    return Figure(
        title=graph.heading,
        numbers=_numbers(graph, nodes, edges, strengths),
        columns=max(columns.values()) + 1,
        layers=graph.layers,
        marks=tuple(marks),
        arrows=tuple(arrows),
        unit="share of the influence on the outputs" if scored else "|weight|",
        groups=tuple(group.label for group in graph.supernodes),
    )


def _or_else(values: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """`other` where a file of another program tells no values."""
    return other if np.isnan(values).any() else values


def _candidates(
    graph: PrunedGraph, sizes: Float[np.ndarray, " node"]
) -> tuple[Bool[np.ndarray, " node"], Bool[np.ndarray, " node"]]:
    """Nodes that are drawn in any case (tokens and targets), and those that may be: of a long prompt only what lies at its
    most influential positions, so that the picture does not become too wide."""
    at = np.array([_position(graph, node) for node in graph.nodes])
    held = np.bincount(at, sizes, minlength=len(graph.tokens))
    held[-1] = np.inf
    near = np.isin(at, np.argsort(-held, kind="stable")[:_MOST_COLUMNS])
    free = np.array([node.layer is None for node in graph.nodes]) & near
    free[graph.targets] = True
    return free, near & ~free


def strongest(
    edges: Int[np.ndarray, "edge 2"],
    sizes: Float[np.ndarray, " node"],
    strengths: Float[np.ndarray, " edge"],
    free: Bool[np.ndarray, " node"],
    others: Bool[np.ndarray, " node"],
    most_nodes: int,
    most_edges: int,
) -> tuple[Bool[np.ndarray, " node"], Int[np.ndarray, " drawn"]]:
    """Which nodes are drawn, and places of the drawn edges, the strongest first.

    free: nodes that are drawn in any case. others: of these the `most_nodes` largest. Each of them keeps its strongest edge
    upwards besides the `most_edges` strongest of all; one that leads nowhere is left out.
    """
    drawn = free.copy()
    ranked = np.argsort(-sizes, kind="stable")
    drawn[ranked[others[ranked]][:most_nodes]] = True
    order = np.argsort(-strengths, kind="stable")
    while True:
        inside = order[drawn[edges[order, 0]] & drawn[edges[order, 1]]]
        _, first = np.unique(edges[inside, 0], return_index=True)
        chosen = np.zeros(len(inside), dtype=bool)
        chosen[:most_edges] = True
        chosen[first[others[edges[inside[first], 0]]]] = True
        leads = np.zeros(len(free), dtype=bool)
        leads[edges[inside[chosen], 0]] = True
        if (leads | free | ~drawn).all():
            return drawn, inside[chosen]
        drawn &= leads | free


def _columns(graph: PrunedGraph, drawn: Bool[np.ndarray, " node"], edges: Int[np.ndarray, " drawn"]) -> dict[int, int]:
    """Column of each position: all of a short prompt; of a long one those with something, runs of others in one column."""
    width = len(graph.tokens)
    sends = set(graph.edges[edges, 0].tolist())
    shown = set(range(width)) if width <= _MOST_COLUMNS else {width - 1}
    for place in np.flatnonzero(drawn).tolist():
        if graph.nodes[place].kind != "token" or place in sends:
            shown.add(_position(graph, graph.nodes[place]))
    columns: dict[int, int] = {}
    last = -1
    for position in range(width):
        if position in shown or position == 0 or (position - 1) in shown:
            last += 1
        columns[position] = last
    return columns


def _position(graph: PrunedGraph, node: NodeId) -> int:
    """Outputs stand over the last token."""
    return node.position if isinstance(node.position, int) else len(graph.tokens) - 1


def _leads(
    graph: PrunedGraph, drawn: Bool[np.ndarray, " node"], edges: Int[np.ndarray, " drawn"]
) -> tuple[dict[NodeId, NodeId], dict[NodeId, int]]:
    """The node that each drawn node is drawn as, and the supernode of each of those.

    Members of a supernode at one position are drawn as one, in the highest of their layers, unless one of them leads to a
    node that does not lie above that: then only those of one layer are.
    """
    member = {node: place for place, group in enumerate(graph.supernodes) for node in group.nodes}
    together: dict[tuple[int, int], set[int]] = defaultdict(set)
    lead = {graph.nodes[place]: graph.nodes[place] for place in np.flatnonzero(drawn).tolist()}
    for node in lead:
        if node in member and node.layer is not None:
            together[member[node], _position(graph, node)].add(graph.index[node])
    for places in together.values():
        top = max(_level(graph, graph.nodes[place]) for place in places)
        after = {t for s, t in graph.edges[edges].tolist() if s in places and t not in places}
        whole = all(_level(graph, graph.nodes[place]) > top for place in after)
        first: dict[int | None, NodeId] = {}
        for place in sorted(places):
            node = graph.nodes[place]
            lead[node] = first.setdefault(None if whole else node.layer, node)
    return lead, {node: member[node] for node in set(lead.values()) if node in member}


def _level(graph: PrunedGraph, node: NodeId) -> int:
    """Outputs stand above all layers, tokens below."""
    return -1 if node.kind == "token" else graph.layers if node.layer is None else node.layer


def _marks(
    graph: PrunedGraph,
    drawn: Bool[np.ndarray, " node"],
    lead: Mapping[NodeId, NodeId],
    groups: Mapping[NodeId, int],
    columns: Mapping[int, int],
    sizes: Float[np.ndarray, " node"],
) -> list[Mark]:
    """Everything but tokens."""
    together: dict[NodeId, list[int]] = defaultdict(list)
    for place in np.flatnonzero(drawn).tolist():
        if graph.nodes[place].kind != "token":
            together[lead[graph.nodes[place]]].append(place)
    inner = [sum(sizes[i] for i in members) for node, members in together.items() if node.layer is not None]
    largest = max(inner, default=0.0) or 1.0
    marks = []
    for node, members in together.items():
        group = groups.get(node)
        text = graph.label(node)
        if group is not None and len(members) > 1:
            text = f"{shorten(graph.supernodes[group].label, 36)} ×{len(members)}"
        marks.append(
            Mark(
                node=node,
                level=max(_level(graph, graph.nodes[i]) for i in members),
                column=columns[_position(graph, node)],
                lines=_short(graph, node, text, members[0]),
                tip="\n".join(_tip(graph, place) for place in members),
                size=float(sum(sizes[i] for i in members) / largest),
                verdict=verdict(graph.named.get(str(node.at(None)))) if len(members) == 1 else None,
                group=group,
            )
        )
    return marks


def _short(graph: PrunedGraph, node: NodeId, text: str, place: int) -> tuple[str, ...]:
    """What stands in a node's box."""
    if node.kind == "logit":
        weight = dict(zip(graph.targets.tolist(), graph.target_weights.tolist())).get(place)
        shown = visible_token(text, 14) if text else str(node.at(None))
        return (shown if weight is None else f"{shown} {weight:.2f}",)
    if node.kind == "difference":
        return (shorten(text, 22) or str(node.at(None)),)
    return wrapped(text, 26, 2) or (str(node.at(None)),)


def _tip(graph: PrunedGraph, place: int) -> str:
    """A node's numbers."""
    node = graph.nodes[place]
    label = graph.label(node)
    parts = [f"{node}: {label}" if label else str(node)]
    for name, values, form in (
        ("value" if node.kind in ("logit", "difference") else "activation", graph.activations, ".4g"),
        ("influence", graph.influence, ".4g"),
        ("first", graph.cumulative, ".1%"),
        ("inputs explained", graph.explained, ".0%"),
    ):
        if not math.isnan(values[place]):
            parts.append(f"{name} {values[place]:{form}}")
    known = graph.named.get(str(node.at(None)))
    return "\n".join([", ".join(parts), *(told(known) if known is not None else ())])


def _token_marks(graph: PrunedGraph, drawn: Bool[np.ndarray, " node"], columns: Mapping[int, int]) -> list[Mark]:
    """One for each column: a token, or that some are left out."""
    together: dict[int, list[int]] = defaultdict(list)
    for position, column in columns.items():
        together[column].append(position)
    known = {node.position: node for node in graph.nodes if node.kind == "token"}
    sends = {graph.nodes[source] for source in graph.edges[:, 0].tolist()}
    marks = []
    for column, positions in together.items():
        at = positions[0]
        node = known.get(at, NodeId("token", index=max(graph.token_ids[at], 0), position=at))
        if len(positions) > 1:
            tip = "left out: " + " ".join(graph.tokens[p] for p in positions)
            marks.append(Mark(node, -1, column, (f"⋯ {len(positions)}",), tip, presence=0.2))
            continue
        place = graph.index.get(node)
        tip = str(node) if place is None else _tip(graph, place)
        presence = 1.0 if node in sends else 0.35
        marks.append(Mark(node, -1, column, (visible_token(graph.tokens[at], 14) or "∅",), tip, presence=presence))
    return marks


def _arrows(
    graph: PrunedGraph,
    edges: Int[np.ndarray, " drawn"],
    lead: Mapping[NodeId, NodeId],
    strengths: Float[np.ndarray, " edge"],
) -> list[Arrow]:
    """Edges between marks; those of nodes that are drawn as one are summed, with their signs."""
    values: dict[tuple[NodeId, NodeId], float] = defaultdict(float)
    tips: dict[tuple[NodeId, NodeId], list[str]] = defaultdict(list)
    for place in edges.tolist():
        source, target = (graph.nodes[end] for end in graph.edges[place].tolist())
        key = (lead[source], lead[target])
        if key[0] == key[1]:
            continue
        values[key] += math.copysign(strengths[place], graph.weights[place])
        tips[key].append(f"{source}->{target}  {graph.weights[place]:+.4g}")
        if not math.isnan(graph.edge_scores[place]):
            tips[key][-1] += f" ({graph.edge_scores[place]:.2%} of the influence)"
        split = sorted(graph.through.get(place, {}).items(), key=lambda part: -abs(part[1]))[:4]
        tips[key][-1] += "".join(f"\n  through {name}: {part:+.4g}" for name, part in split)
    order = sorted(values, key=lambda key: -abs(values[key]))
    return [Arrow(*key, values[key], "\n".join(tips[key])) for key in order]


def _numbers(
    graph: PrunedGraph,
    drawn: Bool[np.ndarray, " node"],
    edges: Int[np.ndarray, " drawn"],
    strengths: Float[np.ndarray, " edge"],
) -> tuple[str, ...]:
    """Scores, and what of the graph is kept and drawn."""
    parts = []
    if graph.scores is not None:
        scores = graph.scores
        parts.append(f"replacement {scores.replacement:.2f}")
        parts.append(f"completeness {scores.completeness:.2f} (strict {scores.completeness_strict:.2f})")
    kept, width = len(graph.nodes), len(graph.edges)
    if graph.whole is not None:
        parts.append(f"{kept:,} of {graph.whole[0]:,} nodes and {width:,} of {graph.whole[1]:,} edges kept")
    else:
        parts.append(f"{kept:,} nodes, {width:,} edges")
    tokens = np.array([node.kind == "token" for node in graph.nodes])
    if drawn.sum() < kept or len(edges) < width:
        share = strengths[edges].sum() / (strengths.sum() or 1.0)
        parts.append(
            f"drawn: {int((drawn & ~tokens).sum())} of {int((~tokens).sum()):,} nodes, {len(edges):,} edges "
            f"({share:.0%} of the strength)"
        )
    return tuple(parts)

"""Pruned attribution graphs for graph programs: GraphML, and Graphviz source."""

from __future__ import annotations

import math
from io import BytesIO

import networkx as nx

from graphs.escape import clean, dot_string, shorten, visible_token
from graphs.exporters.svg import stroke
from graphs.named import SIGNS, clean_attributes, told, verdict
from graphs.node import NodeId
from graphs.pruned import PrunedGraph

_SHAPES = {"feature": "ellipse", "error": "diamond", "token": "box", "logit": "box", "difference": "box"}


def to_networkx(graph: PrunedGraph) -> nx.DiGraph:
    """Nodes by name, with kind, layer, index, position, label, activation, influence, cumulative, explained, supernode,
    and of labels what `graphs.named.clean_attributes` gives; edges with weight, abs_weight, score. What is not known is
    left out; texts are made fit for XML."""
    result = nx.DiGraph(title=clean(graph.heading))
    if graph.scores is not None:
        result.graph.update({name: value for name, value in vars(graph.scores).items() if not math.isnan(value)})
    groups = {node: clean(group.label) for group in graph.supernodes for node in group.nodes}
    for place, node in enumerate(graph.nodes):
        known = {
            "kind": node.kind,
            "layer": node.layer,
            "index": node.index,
            "position": None if node.position is None else str(node.position),
            "label": clean(graph.label(node) or str(node)),
            "supernode": groups.get(node),
            "activation": float(graph.activations[place]),
            "influence": float(graph.influence[place]),
            "cumulative": float(graph.cumulative[place]),
            "explained": float(graph.explained[place]),
        }
        label = graph.named.get(str(node.at(None)))
        known |= {} if label is None else clean_attributes(label)
        result.add_node(str(node), **_known(known))
    for (source, target), weight, score in zip(
        graph.edges.tolist(), graph.weights.tolist(), graph.edge_scores.tolist()
    ):
        known = {"weight": weight, "abs_weight": abs(weight), "score": score}
        result.add_edge(str(graph.nodes[source]), str(graph.nodes[target]), **_known(known))
    return result


def _known(attributes: dict[str, object]) -> dict[str, object]:
    return {
        key: value
        for key, value in attributes.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }


def export_graphml(graph: PrunedGraph) -> bytes:
    """The whole graph as GraphML."""
    stream = BytesIO()
    nx.write_graphml_xml(to_networkx(graph), stream, encoding="utf-8", prettyprint=True)
    return stream.getvalue()


def export_dot(graph: PrunedGraph) -> bytes:
    """The whole graph as a DOT digraph, bottom to top; nodes of a layer share a rank, supernodes are clusters."""
    lines = [
        "digraph attribution {",
        f"  graph [rankdir=BT, fontname=Helvetica, labelloc=t, newrank=true, label={dot_string(shorten(graph.heading, 120))}];",
        "  node [fontname=Helvetica, fontsize=10, height=0.25];",
        "  edge [arrowsize=0.6];",
    ]
    ranks: dict[int, list[str]] = {}
    for node in graph.nodes:
        lines.append(f"  {dot_string(str(node))} [{_look(graph, node)}];")
        level = -1 if node.kind == "token" else graph.layers if node.layer is None else node.layer
        ranks.setdefault(level, []).append(dot_string(str(node)))
    for place, group in enumerate(graph.supernodes):
        members = "; ".join(dot_string(str(node)) for node in group.nodes if node in graph.index)
        lines.append(f"  subgraph cluster_{place} {{ label={dot_string(shorten(group.label, 60))}; {members}; }}")
    largest = max((abs(weight) for weight in graph.weights.tolist()), default=0.0)
    for (source, target), weight in zip(graph.edges.tolist(), graph.weights.tolist()):
        colour, width, dash = stroke(weight, largest)
        name = f"{graph.nodes[source]}->{graph.nodes[target]}  {weight:+.4g}"
        style = f'color="{colour}", penwidth={width:.2f}, tooltip={dot_string(name)}' + (
            ", style=dashed" if dash else ""
        )
        lines.append(f"  {dot_string(str(graph.nodes[source]))} -> {dot_string(str(graph.nodes[target]))} [{style}];")
    lines += [f"  {{ rank=same; {'; '.join(names)}; }}" for _, names in sorted(ranks.items()) if len(names) > 1]
    return ("\n".join([*lines, "}"]) + "\n").encode("utf-8")


def _look(graph: PrunedGraph, node: NodeId) -> str:
    text = graph.label(node)
    shown = visible_token(text, 30) if node.kind in ("token", "logit") else shorten(text, 60)
    known = graph.named.get(str(node.at(None)))
    outcome = verdict(known)
    label = " ".join(filter(None, (str(node), shown, SIGNS[outcome] if outcome else "")))
    tip = f", tooltip={dot_string(' · '.join([label, *told(known)]))}" if known is not None else ""
    return f"shape={_SHAPES.get(node.kind, 'ellipse')}, label={dot_string(label)}{tip}"

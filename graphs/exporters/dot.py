"""Graphviz source: layers as ranks, slots as ports, colour and dash by sign."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from graphs.blocks import shared_name
from graphs.circuit import Circuit
from graphs.escape import dot_string, shorten, xml_text
from graphs.exporters.svg import TAB_COLOURS, stroke
from graphs.named import SIGNS, verdict
from graphs.node import EdgeId, NodeId, Slot
from graphs.view import CircuitView


def export_dot(view: CircuitView) -> bytes:
    """The circuit without dead ends as a DOT digraph, bottom to top, its heads with one port per slot that is read.

    A key/value head that several query heads share is a node of its own (`a2.kv0`), with dotted lines to the heads it
    serves.
    """
    circuit = view.drawn
    edges = circuit.edges
    largest = max((abs(score) for _, score in edges if score is not None), default=0.0)
    heading = dot_string(shorten(view.title, 120))[:-1] + "\\n" + dot_string(view.summary)[1:]
    lines = [
        "digraph circuit {",
        f"  graph [rankdir=BT, fontname=Helvetica, labelloc=t, label={heading}];",
        "  node [fontname=Helvetica, fontsize=11, shape=box, height=0.3];",
        "  edge [arrowsize=0.6];",
    ]
    lines += _nodes(circuit, view)
    for edge, score in edges:
        colour, width, dash = stroke(score, largest)
        text = str(edge) if score is None else f"{edge}  {score:+.4g}"
        style = f'color="{colour}", penwidth={width:.2f}, tooltip={dot_string(text)}' + (
            ", style=dashed" if dash else ""
        )
        lines.append(f"  {dot_string(str(edge.source))} -> {_end(circuit, edge)} [{style}];")
    return ("\n".join([*lines, "}"]) + "\n").encode("utf-8")


def _shared(circuit: Circuit, slot: Slot) -> bool:
    """Whether several heads are computed from the slot."""
    return len(circuit.topology.feeds[circuit.topology.target_index[slot]]) > 1


def _box(circuit: Circuit, slot: Slot) -> str:
    """Name of the node that has the slot."""
    return shared_name(slot) if _shared(circuit, slot) else str(slot.node)


def _end(circuit: Circuit, edge: EdgeId) -> str:
    box = dot_string(_box(circuit, edge.slot))
    return box if edge.port is None else f'{box}:"{edge.port}":s'


def _nodes(circuit: Circuit, view: CircuitView) -> list[str]:
    """Statements for all boxes, grouped by layer so that heads of a layer share a rank."""
    topology = circuit.topology
    ports: dict[str, list[str]] = defaultdict(list)
    found: dict[str, tuple[NodeId, str]] = {}
    lines = []
    for row in np.flatnonzero(circuit.kept.any(axis=1)).tolist():
        node = topology.sources[row]
        found[str(node)] = (node, node.kind)
    for column in np.flatnonzero(circuit.kept.any(axis=0)).tolist():
        slot = topology.targets[column]
        box = _box(circuit, slot)
        found.setdefault(box, (slot.node, "kv" if _shared(circuit, slot) else slot.node.kind))
        if slot.port is not None:
            ports[box].append(slot.port)
        if _shared(circuit, slot) and len(ports[box]) == 1:
            served = [str(topology.sources[i]) for i in topology.feeds[column] if circuit.kept[i].any()]
            lines += [f"  {dot_string(box)} -> {dot_string(name)} [style=dotted, arrowhead=none];" for name in served]
    ranks: dict[int | None, list[str]] = defaultdict(list)
    for name, (node, kind) in found.items():
        lines.append(f"  {dot_string(name)} [{_look(name, kind, ports[name], _label(view, name))}{_tip(view, name)}];")
        if kind == "head":
            ranks[node.layer].append(dot_string(name))
    lines += [f"  {{ rank=same; {'; '.join(names)}; }}" for names in ranks.values() if len(names) > 1]
    return lines


def _label(view: CircuitView, name: str) -> str:
    """A node's label, with the sign of its causal test."""
    outcome = verdict(view.named.get(name))
    return " ".join([shorten(view.texts.get(name, ""), 60), *([SIGNS[outcome]] if outcome else [])]).strip()


def _tip(view: CircuitView, name: str) -> str:
    """The tooltip of a node with a label; Graphviz shows the node's own text for others."""
    return f", tooltip={dot_string(view.tip(name).replace(chr(10), ' · '))}" if name in view.named else ""


def _look(name: str, kind: str, ports: list[str], label: str) -> str:
    """Attributes of one node: an HTML-like table where it has ports."""
    if ports:
        text = xml_text(name) + (f'<BR/><FONT POINT-SIZE="9">{xml_text(label)}</FONT>' if label else "")
        cells = "".join(
            f'<TD PORT="{port}" BGCOLOR="{TAB_COLOURS[port]}"><FONT POINT-SIZE="8">{port}</FONT></TD>' for port in ports
        )
        fill = "#ececec" if kind == "kv" else "#ffffff"
        table = f'<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" BGCOLOR="{fill}">'
        return f'shape=plain, label=<{table}<TR><TD COLSPAN="{len(ports)}">{text}</TD></TR><TR>{cells}</TR></TABLE>>'
    look = {
        "mlp": ', style="rounded,filled", fillcolor="#dfe3f3"',
        "feature": ', style="rounded,filled", fillcolor="#e2f0df"',
        "error": ', style="rounded,dashed,filled", fillcolor="#eeeeee"',
        "input": ', style=filled, fillcolor="#333333", fontcolor="#ffffff"',
        "logits": ', style=filled, fillcolor="#333333", fontcolor="#ffffff"',
    }.get(kind, "")
    return f"label={dot_string(f'{name} {label}' if label else name)}{look}"

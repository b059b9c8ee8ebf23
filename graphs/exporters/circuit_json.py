"""The lossless form: a circuit with its graph, its scores and its labels, written and read back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from graphs.circuit import Circuit
from graphs.evidence_json import named_data, named_of
from graphs.node import EdgeId, NodeId, Slot
from graphs.scores import EdgeScores
from graphs.span_topology import Spans, span_topology, without_spans
from graphs.topology import Topology, transformer_topology
from graphs.view import CircuitView

FORMAT, VERSION = "edgewise-circuit", 1


class BadCircuitFile(ValueError):
    """A text that is not a circuit file."""


def export_json(view: CircuitView) -> bytes:
    """The view as UTF-8 JSON: format, version, title, metric, method, evaluation, topology, labels, `named` (labels with
    their scores, where there are any) and `edges`, strongest first.

    Each edge has its name and its score (null without scores; `stderr` and `stability` where there is one). Scores are as
    precise as they are stored, so that `read_view` gives an equal circuit.
    """
    circuit, scores = view.circuit, view.circuit.scores
    rows, columns = circuit.places
    names, slots = circuit.topology.source_names, circuit.topology.target_names
    edges: list[dict[str, Any]] = []
    for row, column in zip(rows.tolist(), columns.tolist()):
        entry: dict[str, Any] = {"edge": f"{names[row]}->{slots[column]}", "score": None}
        if scores is not None:
            entry["score"] = _number(scores.values[row, column].item(), scores.values.dtype)
            if scores.stderr is not None:
                entry["stderr"] = _number(scores.stderr[row, column].item(), scores.stderr.dtype)
        if circuit.stability is not None and not np.isnan(circuit.stability[row, column]):
            entry["stability"] = _number(circuit.stability[row, column].item(), circuit.stability.dtype)
        edges.append(entry)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "title": view.title,
        "metric": view.metric,
        "method": None if scores is None else scores.method,
        "dtype": None if scores is None else str(scores.values.dtype),
        "evaluation": dict(view.evaluation),
        "topology": describe_topology(circuit.topology),
        "labels": view.texts,
        **named_data(view.named),
    }
    if view.warnings:
        head["warnings"] = list(view.warnings)
    try:
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in head.items()]
        listed = ",\n".join("    " + json.dumps(entry, allow_nan=False) for entry in edges)
    except ValueError:
        raise ValueError(
            "a circuit file cannot hold infinite or undefined numbers: check scores and evaluation"
        ) from None
    lines.append('  "edges": [' + (f"\n{listed}\n  " if edges else "") + "]")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8")


def read_circuit(text: str | bytes) -> Circuit:
    """The circuit that `export_json` wrote; scores are known for its own edges alone. Raises BadCircuitFile."""
    return read_view(text).circuit


def read_view(text: str | bytes) -> CircuitView:
    """The view that `export_json` wrote. Raises BadCircuitFile with one line that names the field or the edge."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCircuitFile(f"not a circuit file: not JSON ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise BadCircuitFile(f"not a circuit file: its 'format' is not {FORMAT!r}, or its 'version' not {VERSION}")
    try:
        topology = _topology(data["topology"])
        circuit = _circuit(topology, data["edges"], data["method"], data["dtype"])
        title, metric = (_text(data[key], key) for key in ("title", "metric"))
        labels = {name: _text(label, f"labels: {name}") for name, label in data["labels"].items()}
        warnings = tuple(_text(one, "warnings") for one in data.get("warnings", ()))
        numbers = data["evaluation"].items()
        named = named_of(data, "labels with scores")
        evaluation = {key: None if value is None else _number_of(value, f"evaluation: {key}") for key, value in numbers}
    except KeyError as error:
        raise BadCircuitFile(f"circuit file: {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise BadCircuitFile(f"circuit file: {error}") from None
    return CircuitView(circuit, title, labels, evaluation, metric, named=named, warnings=warnings)


def describe_topology(topology: Topology) -> dict[str, Any]:
    """A graph as JSON data: its shape (and spans) where it is a plain decoder's, else names, runs of possible sources and
    feeds."""
    base, spans = without_spans(topology) or (topology, None)
    shape = _shape(base)
    if shape is not None and spans is not None:
        return {**shape, "spans": _spans_json(spans)}
    if shape is not None:
        return shape
    padded = np.pad(topology.possible.astype(np.int8), ((1, 1), (0, 0)))
    runs = []
    for column in range(len(topology.targets)):
        flips = np.flatnonzero(np.diff(padded[:, column])).tolist()
        runs.append([[start, stop] for start, stop in list(pairwise(flips))[::2]])
    return {
        "sources": list(topology.source_names),
        "targets": list(topology.target_names),
        "possible": runs,
        "feeds": [list(fed) for fed in topology.feeds],
    }


def _spans_json(spans: Spans) -> dict[str, Any]:
    return {
        "names": list(spans.names),
        "sees": spans.sees.astype(int).tolist(),
        "read": spans.read.astype(int).tolist(),
    }


def _spans(data: Any) -> Spans:
    """Spans of a file. Raises ValueError for what makes none."""
    names = tuple(data["names"])
    for name in names:
        NodeId("input", position=name)
    sees, read = np.array(data["sees"]), np.array(data["read"])
    good = all(set(array.ravel().tolist()) <= {0, 1} for array in (sees, read))
    if not good or sees.shape != (len(names), len(names)) or read.shape != (len(names),):
        raise ValueError("topology: 'spans' needs names, and 0 or 1 in sees (for each two of them) and read (for each)")
    if not names or None in names or len(set(map(str, names))) < len(names):
        raise ValueError("topology: the names of 'spans' are missing or not different")
    return Spans(names, sees.astype(bool), read.astype(bool))


def _shape(topology: Topology) -> dict[str, Any] | None:
    """Layers, heads, kv_heads and parallel of a decoder's component graph; None for any other graph."""
    layers = sum(node.kind == "mlp" for node in topology.sources)
    heads = sum(node.kind == "head" and node.layer == 0 for node in topology.sources)
    kv_heads = sum(slot.port == "k" and slot.node.layer == 0 for slot in topology.targets)
    if not kv_heads or heads % kv_heads:
        return None
    parallel = []
    for layer in range(layers):
        edge = (NodeId("head", layer, 0), Slot(NodeId("mlp", layer)))
        if edge[0] not in topology.source_index or edge[1] not in topology.target_index:
            return None
        parallel.append(not topology.possible[topology.source_index[edge[0]], topology.target_index[edge[1]]])
    if not transformer_topology(layers, heads, kv_heads, parallel).same_as(topology):
        return None
    flags = bool(parallel[0]) if len(set(parallel)) == 1 else list(map(bool, parallel))
    return {"layers": layers, "heads": heads, "kv_heads": kv_heads, "parallel": flags}


_LARGEST_GRAPH = 100_000_000
"""Rows times columns: no file may make its reader allocate more."""


def _topology(data: Any) -> Topology:
    if not isinstance(data, dict):
        raise ValueError("'topology' is not an object")
    if "layers" in data:
        layers, heads, kv_heads = (int(data[key]) for key in ("layers", "heads", "kv_heads"))
        if min(layers, heads, kv_heads) < 0:
            raise ValueError("topology: negative numbers")
        spans = _spans(data["spans"]) if "spans" in data else None
        count = 1 if spans is None else len(spans.names)
        _check_size(count * (layers * (heads + 1) + 1), count * (layers * (heads + 2 * kv_heads + 1) + 1))
        flags = data["parallel"] if isinstance(data["parallel"], list) else [data["parallel"]] * layers
        if len(flags) != layers or not all(isinstance(flag, bool) for flag in flags):
            raise ValueError("topology: 'parallel' is neither true nor false, nor one of these for every layer")
        base = transformer_topology(layers, heads, kv_heads, flags)
        return base if spans is None else span_topology(base, spans)
    sources = tuple(NodeId.parse(_text(name, "sources")) for name in data["sources"])
    targets = tuple(Slot.parse(_text(name, "targets")) for name in data["targets"])
    _check_size(len(sources), len(targets))
    possible = np.zeros((len(sources), len(targets)), dtype=bool)
    for column, runs in enumerate(data["possible"]):
        for start, stop in runs:
            possible[start:stop, column] = True
    feeds = tuple(tuple(map(int, fed)) for fed in data["feeds"])
    if len(feeds) != len(targets) or any(not 0 <= row < len(sources) for fed in feeds for row in fed):
        raise ValueError("topology: 'feeds' does not fit the sources and targets")
    return Topology(sources, targets, possible, feeds)


def _check_size(rows: int, columns: int) -> None:
    if min(rows, columns) < 1 or rows * columns > _LARGEST_GRAPH:
        raise ValueError(f"topology: a graph of {rows} sources and {columns} targets is not to be read")


def _circuit(topology: Topology, edges: Any, method: object, dtype: object) -> Circuit:
    if not isinstance(edges, list) or not all(isinstance(entry, dict) for entry in edges):
        raise ValueError("'edges' is not a list of objects")
    kept = np.zeros(topology.possible.shape, dtype=bool)
    rows, columns = (
        {name: i for i, name in enumerate(names)} for names in (topology.source_names, topology.target_names)
    )
    places = [_place(_text(entry["edge"], "edge"), topology, rows, columns) for entry in edges]
    for place, entry in zip(places, edges):
        if kept[place]:
            raise ValueError(f"edge {entry['edge']} is listed twice")
        kept[place] = True
    stability = None
    if any("stability" in entry for entry in edges):
        stability = np.full(topology.possible.shape, np.nan, dtype=np.float32)
        for place, entry in zip(places, edges):
            stability[place] = _score(entry, "stability")
    if method is None:
        return Circuit(topology, kept, stability=stability)
    if dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"'dtype' is {dtype!r}, not a floating type")
    arrays = {}
    for field in ("score", "stderr"):
        arrays[field] = np.full(topology.possible.shape, np.nan, dtype=dtype)
        for place, entry in zip(places, edges):
            arrays[field][place] = _score(entry, field)
    stderr = arrays["stderr"] if any("stderr" in entry for entry in edges) else None
    partial = not np.array_equal(kept, topology.possible)
    return Circuit(topology, kept, EdgeScores(topology, arrays["score"], str(method), stderr, partial), stability)


def _place(name: str, topology: Topology, rows: dict[str, int], columns: dict[str, int]) -> tuple[int, int]:
    """Row and column of an edge; KeyError or ValueError naming it when it is none of the graph's."""
    source, _, slot = name.partition("->")
    if source in rows and slot in columns and topology.possible[rows[source], columns[slot]]:
        return rows[source], columns[slot]
    return topology.locate(EdgeId.parse(name))


def _score(entry: dict[str, Any], field: str) -> float:
    value = entry[field] if field == "score" else entry.get(field, np.nan)
    return _number_of(value, f"the {field} of edge {entry['edge']}")


def _number_of(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} is not a number")
    return float(value)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field}: expected a text, got {str(value)[:40]}")
    return value


def _number(value: float, dtype: np.dtype[Any]) -> float:
    """A stored number as the shortest decimal that reads back as the same stored number."""
    short = float(str(dtype.type(value)))
    return short if dtype.type(short) == value else value

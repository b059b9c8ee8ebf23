"""The lossless form of a graph of many prompts, written and read back."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.evidence_json import named_data, named_of
from graphs.json_fields import (
    BadGraphFile,
    check_distinct,
    check_format,
    nodes_of,
    number,
    objects,
    places_of,
    plain,
    read_object,
    take,
    texts_of,
    write_object,
)
from graphs.task_graph import TaskGraph, wilson

FORMAT, VERSION = "edgewise-task-graph", 1
_FILE = "task graph file"


def export_json(graph: TaskGraph) -> bytes:
    """UTF-8 JSON: sides, places, texts, labels, scores, `nodes` and `edges`; `read_task_graph` gives an equal graph.

    Lists in nodes and edges hold one number for each side. `frequency` (with its 95 % interval) follows from the counts
    and is there for other readers.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "title": graph.title,
        "sides": list(graph.sides),
        "prompts": graph.prompts,
        "layers": graph.layers,
        "places": list(graph.places),
        "texts": dict(graph.texts),
        "labels": dict(graph.labels),
        **named_data(graph.named),
        "scores": dict(graph.scores),
    }
    nodes = _entries(
        [{"node": str(node)} for node in graph.nodes], graph, graph.node_counts, {"influence": graph.influence}
    )
    names = [str(node) for node in graph.nodes]
    edges = _entries(
        [{"source": names[source], "target": names[target]} for source, target in graph.edges.tolist()],
        graph,
        graph.edge_counts,
        {"shares": graph.shares, "weights": graph.weights},
    )
    for name, values in (("effect", graph.effect), ("stderr", graph.stderr), ("agreement", graph.agreement)):
        for entry, value in zip(edges, plain(values)):
            entry[name] = value
    return write_object(head, {"nodes": nodes, "edges": edges})


def _entries(
    entries: list[dict[str, Any]], graph: TaskGraph, counts: np.ndarray, columns: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Adds counts, frequencies and what else there is for each side."""
    low, high = wilson(counts, graph.prompts)
    for place, entry in enumerate(entries):
        entry["counts"] = counts[:, place].tolist()
        entry["frequency"] = [
            [round(float(part[side, place]), 4) for part in (counts / graph.prompts, low, high)]
            for side in range(len(graph.sides))
        ]
    for name, values in columns.items():
        for place, entry in enumerate(entries):
            entry[name] = plain(values[:, place])
    return entries


def read_task_graph(text: str | bytes) -> TaskGraph:
    """The graph that `export_json` wrote. Raises BadGraphFile with one line that names the field, node or edge."""
    data = read_object(text, f"a {_FILE}")
    check_format(data, FORMAT, VERSION)
    nodes, edges = objects(data, "nodes", _FILE), objects(data, "edges", _FILE)
    names = [take(entry, "node", str, "nodes") for entry in nodes]
    check_distinct(names, "nodes")
    index = {name: place for place, name in enumerate(names)}
    ends = [places_of([edge.get(end) for edge in edges], index, f"edges: {end!r}") for end in ("source", "target")]
    where = [f"{names[source]}->{names[target]}" for source, target in zip(*(part.tolist() for part in ends))]
    check_distinct(where, "edges")
    sides, prompts = take(data, "sides", list, _FILE), take(data, "prompts", int, _FILE)
    if len(sides) not in (1, 2) or not all(isinstance(side, str) for side in sides) or prompts < 1:
        raise BadGraphFile(f"{_FILE}: 'sides' are not one or two names, or 'prompts' is not positive")
    places = take(data, "places", list, _FILE)
    if not all(isinstance(place, int | str) and not isinstance(place, bool) for place in places):
        raise BadGraphFile(f"{_FILE}: 'places' are not names or whole numbers")
    scores = take(data, "scores", dict, _FILE)
    return TaskGraph(
        nodes=nodes_of({"nodes": names}, "nodes", _FILE),
        edges=np.stack(ends, axis=1),
        sides=tuple(sides),
        prompts=prompts,
        node_counts=_counts(nodes, names, len(sides), prompts),
        edge_counts=_counts(edges, where, len(sides), prompts),
        influence=_sided(nodes, "influence", names, len(sides)),
        shares=_sided(edges, "shares", where, len(sides)),
        weights=_sided(edges, "weights", where, len(sides)),
        **{
            key: np.array([take(edge, key, float, name) for edge, name in zip(edges, where)], dtype=np.float64)
            for key in ("effect", "stderr", "agreement")
        },
        places=tuple(places),
        layers=take(data, "layers", int, _FILE),
        texts=texts_of(data, "texts", _FILE),
        labels=texts_of(data, "labels", _FILE),
        named=named_of(data, _FILE),
        title=take(data, "title", str, _FILE),
        scores={key: None if value is None else number(value, f"scores: {key!r}") for key, value in scores.items()},
    )


def _sided(entries: list[dict[str, Any]], key: str, where: list[str], sides: int) -> np.ndarray:
    """A number of every side of every entry: [side, entry]."""
    result = np.zeros((sides, len(entries)))
    for place, entry in enumerate(entries):
        values = take(entry, key, list, where[place])
        if len(values) != sides:
            raise BadGraphFile(f"{where[place]}: {key!r} does not hold {sides} numbers")
        result[:, place] = [number(value, f"{where[place]}: {key!r}") for value in values]
    return result


def _counts(entries: list[dict[str, Any]], where: list[str], sides: int, prompts: int) -> np.ndarray:
    counts = _sided(entries, "counts", where, sides)
    wrong = ~((counts >= 0) & (counts <= prompts) & (counts == np.round(counts))).all(axis=0)
    if wrong.any():
        raise BadGraphFile(f"{where[int(wrong.argmax())]}: 'counts' are not numbers of {prompts} prompts")
    return counts.astype(np.int64)

"""The lossless form of a pruned attribution graph (`graph.json`), written and read back."""

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
    numbers,
    objects,
    places_of,
    plain,
    read_object,
    take,
    texts_of,
    write_object,
)
from graphs.node import NodeId
from graphs.pruned import GraphScores, PrunedGraph, Supernode

FORMAT, VERSION = "edgewise-attribution-graph", 1
_FILE = "attribution graph file"


def export_json(graph: PrunedGraph) -> bytes:
    """UTF-8 JSON that stands for itself: tokens, targets, scores, pruning, labels, supernodes, facts, `nodes`, `edges`.

    Numbers are as precise as they are stored, so that `read_graph` gives an equal graph. A node's `text` and `probability`
    and an edge's ends are there for other readers too; `text` and `probability` follow from the rest and are not read.
    """
    head = {"format": FORMAT, "version": VERSION, **describe(graph)}
    names, activations, influence, cumulative, explained = (
        [str(node) for node in graph.nodes],
        *map(plain, (graph.activations, graph.influence, graph.cumulative, graph.explained)),
    )
    probability = {int(place): float(weight) for place, weight in zip(graph.targets, graph.target_weights)}
    nodes: list[dict[str, Any]] = []
    for place, node in enumerate(graph.nodes):
        entry: dict[str, Any] = {"node": names[place], "text": graph.label(node), "activation": activations[place]}
        entry.update(influence=influence[place], cumulative=cumulative[place], explained=explained[place])
        if node.kind == "logit" and place in probability:
            entry["probability"] = probability[place]
        nodes.append(entry)
    edges: list[dict[str, Any]] = []
    columns = zip(graph.edges.tolist(), plain(graph.weights), plain(graph.edge_scores))
    for place, ((source, target), weight, score) in enumerate(columns):
        edges.append({"source": names[source], "target": names[target], "weight": weight, "score": score})
        if place in graph.through:
            edges[-1]["through"] = dict(graph.through[place])
    return write_object(head, {"nodes": nodes, "edges": edges})


def describe(graph: PrunedGraph) -> dict[str, Any]:
    """Everything but nodes and edges, as JSON data that `whole_graph` takes."""
    scores = graph.scores
    return {
        "title": graph.title,
        "tokens": [{"id": number, "text": text} for number, text in zip(graph.token_ids, graph.tokens)],
        "layers": graph.layers,
        "targets": [
            {"node": str(graph.nodes[place]), "weight": weight}
            for place, weight in zip(graph.targets.tolist(), graph.target_weights.tolist())
        ],
        "scores": None if scores is None else {key: plain(np.array([v]))[0] for key, v in vars(scores).items()},
        "pruning": {
            "node_threshold": graph.node_threshold,
            "edge_threshold": graph.edge_threshold,
            "whole": None if graph.whole is None else {"nodes": graph.whole[0], "edges": graph.whole[1]},
        },
        "texts": {str(number): text for number, text in graph.texts.items()},
        "labels": dict(graph.labels),
        **named_data(graph.named),
        "supernodes": [{"label": group.label, "nodes": list(map(str, group.nodes))} for group in graph.supernodes],
        "pinned": list(map(str, graph.pinned)),
        "facts": dict(graph.facts),
    }


def read_graph(text: str | bytes) -> PrunedGraph:
    """The graph that `export_json` wrote. Raises BadGraphFile with one line that names the field, node or edge."""
    data = read_object(text, f"an {_FILE}")
    check_format(data, FORMAT, VERSION)
    entries = objects(data, "nodes", _FILE)
    names = [take(entry, "node", str, f"{_FILE}: node {place}") for place, entry in enumerate(entries)]
    edges = objects(data, "edges", _FILE)
    index = {name: place for place, name in enumerate(names)}
    return whole_graph(
        data,
        nodes=nodes_of({"nodes": names}, "nodes", _FILE),
        measures={
            "activations": numbers(entries, "activation", np.float32, names),
            **{key: numbers(entries, key, np.float64, names) for key in ("influence", "cumulative", "explained")},
        },
        edges=np.stack([_ends(edges, "source", index), _ends(edges, "target", index)], axis=1),
        edge_entries=edges,
    )


def _ends(edges: list[dict[str, Any]], key: str, index: dict[str, int]) -> np.ndarray:
    return places_of([take(edge, key, str, f"edge {i}") for i, edge in enumerate(edges)], index, f"edges: {key!r}")


def whole_graph(
    data: dict[str, Any],
    nodes: tuple[NodeId, ...],
    measures: dict[str, np.ndarray],
    edges: np.ndarray,
    edge_entries: list[dict[str, Any]],
) -> PrunedGraph:
    """The graph of what `describe` gave and of nodes and edges that are read already. edge_entries: for each edge its
    `weight`, `score` and perhaps `through`. Raises BadGraphFile."""
    check_distinct(nodes, "nodes")
    check_distinct(list(map(tuple, edges.tolist())), "edges (places of source and target)")
    tokens, targets = objects(data, "tokens", _FILE), objects(data, "targets", _FILE)
    where = [f"{nodes[source]}->{nodes[target]}" for source, target in edges.tolist()]
    pruning = take(data, "pruning", dict, _FILE)
    index = {str(node): place for place, node in enumerate(nodes)}
    try:
        return PrunedGraph(
            nodes=nodes,
            edges=edges,
            weights=numbers(edge_entries, "weight", np.float32, where),
            edge_scores=numbers(edge_entries, "score", np.float64, where),
            **measures,
            targets=places_of([take(entry, "node", str, "targets") for entry in targets], index, "targets"),
            target_weights=np.array([take(entry, "weight", float, "targets") for entry in targets]),
            token_ids=tuple(take(entry, "id", int, "tokens") for entry in tokens),
            tokens=tuple(take(entry, "text", str, "tokens") for entry in tokens),
            layers=take(data, "layers", int, _FILE),
            texts=_texts(data),
            scores=_scores(data.get("scores")),
            node_threshold=_optional(pruning.get("node_threshold"), "node_threshold"),
            edge_threshold=_optional(pruning.get("edge_threshold"), "edge_threshold"),
            whole=_whole(pruning.get("whole")),
            title=take(data, "title", str, _FILE),
            labels=texts_of(data, "labels", _FILE),
            named=named_of(data, _FILE),
            supernodes=_supernodes(data),
            pinned=nodes_of(data, "pinned", _FILE),
            through=_through(edge_entries, where),
            facts=take(data, "facts", dict, _FILE),
        )
    except BadGraphFile:
        raise
    except ValueError as error:
        raise BadGraphFile(f"{_FILE}: {error}") from None


def _supernodes(data: dict[str, Any]) -> tuple[Supernode, ...]:
    groups, where = objects(data, "supernodes", _FILE), "supernodes"
    return tuple(Supernode(take(group, "label", str, where), nodes_of(group, "nodes", where)) for group in groups)


def _texts(data: dict[str, Any]) -> dict[int, str]:
    texts = texts_of(data, "texts", _FILE)
    for key in texts:
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise BadGraphFile(f"{_FILE}: 'texts': {key[:40]!r} is not a vocabulary number")
    return {int(key): text for key, text in texts.items()}


def _scores(data: Any) -> GraphScores | None:
    if data is None:
        return None
    names = ("replacement", "completeness", "completeness_strict")
    return GraphScores(**{name: take(data, name, float, "scores") for name in names})


def _optional(value: Any, key: str) -> float | None:
    return None if value is None else number(value, f"pruning: {key!r}")


def _whole(data: Any) -> tuple[int, int] | None:
    if data is None:
        return None
    return take(data, "nodes", int, "pruning: 'whole'"), take(data, "edges", int, "pruning: 'whole'")


def _through(entries: list[dict[str, Any]], where: list[str]) -> dict[int, dict[str, float]]:
    found = {}
    for place, entry in enumerate(entries):
        if "through" in entry:
            parts = take(entry, "through", dict, where[place])
            found[place] = {name: take(parts, name, float, f"{where[place]}: 'through'") for name in parts}
    return found

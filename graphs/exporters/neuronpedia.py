"""Neuronpedia's graph JSON (conventions, section 7), written and read back: by its website, circuit-tracer, and us.

What the format has no field for stands under `edgewise` in metadata and nodes and beside `weight` in links, which its
schema allows; a file without these is read as well, with NaN for what is not there.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from graphs.attribution_json import describe, whole_graph
from graphs.json_fields import BadGraphFile, node_of, nodes_of, numbers, objects, places_of, plain, read_object, take
from graphs.named import clean_attributes
from graphs.node import NodeId
from graphs.pruned import PrunedGraph, Supernode

LARGEST = 100 * 1000 * 1000
"""Bytes that Neuronpedia's client takes."""
_OURS = "edgewise"
_FEATURE, _ERROR, _TOKEN, _LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
_HEAD = "attention head"  # ours: the format has none
_OUTPUT = re.compile(r'Output "(.*)" \(p=[0-9.]+\)', re.DOTALL)


class _Names(NamedTuple):
    """What the format calls a node."""

    node_id: str
    feature: int | None
    layer: str
    kind: str
    js: str


def cantor(layer: int, index: int) -> int:
    """The one number for a feature that the format wants (Cantor's pairing)."""
    return (layer + index) * (layer + index + 1) // 2 + index


def uncantor(number: int) -> tuple[int, int]:
    """Layer and index of a feature's number."""
    total = (isqrt(8 * number + 1) - 1) // 2
    index = number - total * (total + 1) // 2
    return total - index, index


def names_of(node: NodeId, layers: int, width: int) -> tuple[str, int | None, str, str, str]:
    """node_id, feature, layer, feature_type and jsNodeId. layers: of the model; width: tokens of the prompt.

    Raises ValueError for a node that the format has no place for.
    """
    at = node.position if isinstance(node.position, int) else width - 1
    layer, index, last = node.layer, node.index, layers + 1
    if node.kind == "feature" and layer is not None and index is not None:
        return _Names(f"{layer}_{index}_{at}", cantor(layer, index), str(layer), _FEATURE, f"{layer}_{index}-0")
    if node.kind == "error":
        return _Names(f"{layer}_-1_{at}", -1, str(layer), _ERROR, f"{layer}_-1-{at}")
    if node.kind == "head":
        return _Names(f"{layer}_h{index}_{at}", None, str(layer), _HEAD, f"{layer}_h{index}-{at}")
    if node.kind == "token":
        return _Names(f"E_{index}_{at}", at, "E", _TOKEN, f"E_{index}-{at}")
    if node.kind == "logit" and index is not None:
        return _Names(f"{last}_{index}_{at}", index, str(last), _LOGIT, f"L_{index}-{at}")
    if node.kind == "difference" and index is not None:
        return _Names(f"{last}_{index}-{node.minus}_{at}", index, str(last), _LOGIT, f"L_{index}-{node.minus}-{at}")
    raise ValueError(f"{node}: Neuronpedia's format has no place for a node of kind {node.kind!r}")


def export_neuronpedia(graph: PrunedGraph, slug: str = "", scan: str = "", created_ms: int | None = None) -> bytes:
    """The graph with its labels, supernodes and pinned nodes. slug: its name there (default: from the title); scan:
    Neuronpedia's name of the model (default: the end of the model's name); created_ms: milliseconds since 1970."""
    names = {node: _Names(*names_of(node, graph.layers, len(graph.tokens))) for node in graph.nodes}
    ids = [names[node].node_id for node in graph.nodes]
    links: list[dict[str, Any]] = []
    columns = zip(graph.edges.tolist(), plain(graph.weights), plain(graph.edge_scores))
    for place, ((source, target), weight, score) in enumerate(columns):
        links.append({"source": ids[source], "target": ids[target], "weight": weight, "score": score})
        if place in graph.through:
            links[-1]["through"] = dict(graph.through[place])
    data = {
        "metadata": _metadata(graph, slug, scan, created_ms),
        "qParams": _state(graph),
        "nodes": _nodes(graph, list(names.values())),
        "links": links,
    }
    try:
        content = json.dumps(data, allow_nan=False).encode("utf-8")
    except ValueError:
        raise ValueError("a graph file cannot hold infinite numbers: check weights and facts") from None
    if len(content) > LARGEST:
        logging.getLogger(__name__).warning(
            "the graph is %d MB as JSON and Neuronpedia takes %d: prune more", len(content) // 10**6, LARGEST // 10**6
        )
    return content


def _metadata(graph: PrunedGraph, slug: str, scan: str, created_ms: int | None) -> dict[str, Any]:
    generator = {"name": "edgewise"}
    with suppress(PackageNotFoundError):  # run from a checkout that is not installed
        generator["version"] = version("edgewise")
    thresholds = {"node_threshold": graph.node_threshold, "edge_threshold": graph.edge_threshold}
    model = str(graph.facts.get("model", "")).replace("\\", "/").rstrip("/").rpartition("/")[2]
    data: dict[str, Any] = {
        "slug": slug or re.sub(r"[^a-z0-9]+", "-", graph.heading.lower()).strip("-")[:60].rstrip("-") or "graph",
        "scan": scan or model or "custom",
        "prompt_tokens": list(graph.tokens),
        "prompt": "".join(graph.tokens),
        "schema_version": 1,
        "info": {"creator_name": "edgewise", "generator": generator},
        "pruning_settings": {key: value for key, value in thresholds.items() if value is not None},
        _OURS: describe(graph),
    }
    if graph.node_threshold is not None:
        data["node_threshold"] = graph.node_threshold
    if created_ms is not None:
        data["info"]["create_time_ms"] = created_ms
    return data


def _state(graph: PrunedGraph) -> dict[str, Any]:
    """The saved subgraph: pinned nodes (without any: the members of supernodes, which else would not show)."""

    def identity(node: NodeId) -> str:
        return names_of(node, graph.layers, len(graph.tokens))[0]

    pinned = graph.pinned or tuple(dict.fromkeys(node for group in graph.supernodes for node in group.nodes))
    return {
        "pinnedIds": list(map(identity, pinned)),
        "supernodes": [[group.label, *map(identity, group.nodes)] for group in graph.supernodes],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }


def _nodes(graph: PrunedGraph, names: list[_Names]) -> list[dict[str, Any]]:
    probability = dict(zip(graph.targets.tolist(), graph.target_weights.tolist()))
    first = next((place for place in graph.targets.tolist() if names[place].kind == _LOGIT), None)
    activations, influence, cumulative, explained = map(
        plain, (graph.activations, graph.influence, graph.cumulative, graph.explained)
    )
    nodes = []
    for place, (node, name) in enumerate(zip(graph.nodes, names)):
        at = int(name.node_id.rpartition("_")[2])
        is_logit = name.kind == _LOGIT
        nodes.append(
            {
                "node_id": name.node_id,
                "feature": name.feature,
                "layer": name.layer,
                "ctx_idx": at,
                "feature_type": name.kind,
                "token_prob": probability.get(place, 0.0) if node.kind == "logit" else 0.0,
                "is_target_logit": place == first,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": name.js,
                "clerp": _clerp(graph, node, probability.get(place, 0.0)),
                # As circuit-tracer has it, so that a threshold in the browser never hides the outputs.
                "influence": None if is_logit else cumulative[place],
                "activation": activations[place],
                _OURS: {
                    "node": str(node),
                    "influence": influence[place],
                    "cumulative": cumulative[place],
                    "explained": explained[place],
                    **(
                        {"label": clean_attributes(graph.named[name_of])}
                        if (name_of := str(node.at(None))) in graph.named
                        else {}
                    ),
                },
            }
        )
    return nodes


def _clerp(graph: PrunedGraph, node: NodeId, probability: float) -> str:
    """What the website shows for a node."""
    text = graph.label(node)
    if node.kind == "logit":
        return f'Output "{text or node.index}" (p={probability:.3f})'
    if node.kind == "difference":
        return f"Output {text or node.at(None)}"
    return f'Emb: "{text}"' if node.kind == "token" else text


def read_neuronpedia(text: str | bytes) -> PrunedGraph:
    """A graph in Neuronpedia's format. One that `export_neuronpedia` wrote is read back equal, with the pinned nodes and
    supernodes that were changed since. Raises BadGraphFile with one line that names the field or the node."""
    data = read_object(text, "a Neuronpedia graph")
    metadata, state = take(data, "metadata", dict, "graph"), take(data, "qParams", dict, "graph")
    entries, links = objects(data, "nodes", "graph"), objects(data, "links", "graph")
    ids = [take(entry, "node_id", str, f"node {place}") for place, entry in enumerate(entries)]
    index = {identity: place for place, identity in enumerate(ids)}
    ends = [places_of([link.get(end) for link in links], index, f"links: {end!r}") for end in ("source", "target")]
    if isinstance(metadata.get(_OURS), dict) and all(isinstance(entry.get(_OURS), dict) for entry in entries):
        own = [entry[_OURS] for entry in entries]
        nodes = nodes_of({"nodes": [entry.get("node") for entry in own]}, "nodes", f"metadata.{_OURS}")
        described, more = metadata[_OURS], own
    else:
        nodes = tuple(_foreign_node(entry, identity) for entry, identity in zip(entries, ids))
        described, more = _describe_foreign(metadata, entries, nodes), entries
    measures = {
        "activations": numbers(entries, "activation", np.float32, ids),
        "influence": numbers(more, "influence", np.float64, ids),
        "cumulative": numbers(more, "cumulative", np.float64, ids),
        "explained": numbers(more, "explained", np.float64, ids),
    }
    if more is entries:  # here `influence` is the cumulative share
        measures["cumulative"], measures["influence"] = measures["influence"], measures["cumulative"]
    graph = whole_graph(described, nodes, measures, np.stack(ends, axis=1), links)
    if more is not entries:
        _check_names(graph, entries, ids)
    return _with_state(graph, state, dict(zip(ids, nodes)))


def _with_state(graph: PrunedGraph, state: dict[str, Any], known: dict[str, NodeId]) -> PrunedGraph:
    """The graph with the file's subgraph, where that is not the one it was written with. Nodes not in the file are left
    out of it."""
    stored = {key: state.get(key, []) for key in ("pinnedIds", "supernodes")}
    if all(value == _state(graph)[key] for key, value in stored.items()):
        return graph
    groups = []
    for group in take(stored, "supernodes", list, "qParams"):
        if not isinstance(group, list) or not group or not all(isinstance(part, str) for part in group):
            raise BadGraphFile(f"qParams: 'supernodes': {str(group)[:40]!r} is not a label with node ids")
        groups.append(Supernode(group[0], tuple(known[identity] for identity in group[1:] if identity in known)))
    pinned = take(stored, "pinnedIds", list, "qParams")
    chosen = tuple(known[identity] for identity in pinned if isinstance(identity, str) and identity in known)
    return replace(graph, pinned=chosen, supernodes=tuple(groups))


def _check_names(graph: PrunedGraph, entries: list[dict[str, Any]], ids: list[str]) -> None:
    """Raises BadGraphFile where our name of a node and the format's do not mean the same."""
    for node, entry, identity in zip(graph.nodes, entries, ids):
        names = _Names(*names_of(node, graph.layers, len(graph.tokens)))
        if (identity, entry.get("feature")) != (names.node_id, names.feature):
            raise BadGraphFile(f"node {identity}: it should be {names.node_id}, feature {names.feature}, for {node}")


def _foreign_node(entry: dict[str, Any], identity: str) -> NodeId:
    """The node of a file that another program wrote."""
    kind = take(entry, "feature_type", str, f"node {identity}")
    at = take(entry, "ctx_idx", int, f"node {identity}")
    first, _, rest = identity.partition("_")
    middle = rest.rpartition("_")[0]
    name = {
        _FEATURE: f"f{first}.{middle}@{at}",
        _TOKEN: f"t{middle}@{at}",
        _LOGIT: f"logit{middle}@{at}".replace("-", "-logit"),
        _ERROR: f"e{entry.get('layer')}@{at}",  # older files: the id is 0_{layer}_{position}
    }.get(kind)
    if name is None:
        raise BadGraphFile(f"node {identity}: nodes of type {kind[:40]!r} cannot be read")
    return node_of(name, f"node {identity}")


def _describe_foreign(
    metadata: dict[str, Any], entries: list[dict[str, Any]], nodes: tuple[NodeId, ...]
) -> dict[str, Any]:
    """What `describe` gives, as far as a file of another program tells it."""
    tokens = take(metadata, "prompt_tokens", list, "metadata")
    numbers_at = {node.position: node.index for node in nodes if node.kind == "token"}
    texts, labels, targets = {}, {}, []
    for node, entry in zip(nodes, entries):
        clerp = entry.get("clerp") or ""
        if node.kind == "logit":
            found = _OUTPUT.fullmatch(clerp)
            texts[str(node.index)] = found.group(1) if found else clerp
            targets.append({"node": str(node), "weight": entry.get("token_prob", 0.0)})
        elif node.kind in ("difference", "feature", "error") and clerp:
            labels[str(node)] = clerp
    outputs = [str(e.get("layer")) for e in entries if e.get("feature_type") == _LOGIT]
    layers = [int(layer) - 1 for layer in outputs if layer.isascii() and layer.isdigit()]
    pruning = metadata.get("pruning_settings")
    return {
        "title": "",
        "tokens": [{"id": numbers_at.get(place, -1), "text": text} for place, text in enumerate(tokens)],
        "layers": max([*layers, *(node.layer + 1 for node in nodes if node.layer is not None), 0]),
        "targets": targets,
        "pruning": {"node_threshold": metadata.get("node_threshold"), **(pruning if isinstance(pruning, dict) else {})},
        "texts": texts,
        "labels": labels,
        "supernodes": [],
        "pinned": [],
        "facts": {"model": take(metadata, "scan", str, "metadata"), "neuronpedia": metadata},
    }

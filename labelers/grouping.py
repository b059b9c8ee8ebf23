"""Groups of nodes that do one thing (supernodes): proposed from what they are connected to, what they write and what they are
called; kept in a file that can be edited by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from graphs.escape import shorten
from graphs.json_fields import (
    BadGraphFile,
    check_distinct,
    check_format,
    nodes_of,
    objects,
    read_object,
    take,
    write_object,
)
from graphs.label import Label
from graphs.node import NodeId
from graphs.pruned import PrunedGraph, Supernode
from labelers.wiring import Wire, wires_of_graph

FORMAT, VERSION = "edgewise-groups", 1
GROUPED = ("feature", "head", "mlp")
"""Kinds of nodes that groups hold."""
MOST = 5000
"""Nodes of one kind at one position, at most: distances between all pairs are held."""
_WORD = re.compile(r"\w+")
_EMPTY_WORDS = frozenset("a an and at for in of on or the to with".split())

Similarity = Float[np.ndarray, "node node"]
Known = Bool[np.ndarray, "node node"]


@dataclass(frozen=True)
class GroupSettings:
    """How alike nodes must be, and what counts."""

    threshold: float = 0.6
    """Mean similarity between two groups, from 0 to 1, at which they are still joined."""
    profile: float = 1.0
    """Weight of the attribution profile: cosine of the weights of all inputs, and of all outputs."""
    directions: float = 1.0
    """Weight of what nodes write: cosine of their decoder directions, where given."""
    labels: float = 0.5
    """Weight of the words that two labels share, where both have one."""
    across_positions: bool = False
    """Whether nodes at different positions may be one group."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or min(self.profile, self.directions, self.labels) < 0 or self.profile == 0:
            raise ValueError("groups need a threshold from 0 to 1, no negative weight, and a weight for the profile")


def propose_groups(
    wires: Sequence[Wire],
    labels: Mapping[NodeId, Label],
    directions: Mapping[NodeId, Float[np.ndarray, " d_model"]] | None = None,
    settings: GroupSettings | None = None,
) -> tuple[Supernode, ...]:
    """Groups of two nodes or more, by average linkage; each node is in one at most.

    labels and directions: by node, without a position. A group bears the most frequent label of its members, else that of
    the member that is most like the others. The result does not depend on the order of the wires. Raises ValueError where
    there are too many nodes to compare.
    """
    settings = settings or GroupSettings()
    groups: list[Supernode] = []
    for members in _buckets(wires, settings.across_positions):
        likeness = similarity(members, wires, labels, directions or {}, settings)
        distances = squareform(np.clip(1.0 - likeness, 0.0, 1.0), checks=False)
        clusters = fcluster(linkage(distances, "average"), 1.0 - settings.threshold, "distance")
        for cluster in sorted(set(clusters.tolist()), key=lambda number: int(np.argmax(clusters == number))):
            places = np.flatnonzero(clusters == cluster)
            if len(places) > 1:
                nodes = tuple(members[place] for place in places)
                groups.append(Supernode(_name(nodes, labels, likeness[np.ix_(places, places)]), nodes))
    return tuple(groups)


def similarity(
    nodes: Sequence[NodeId],
    wires: Sequence[Wire],
    labels: Mapping[NodeId, Label],
    directions: Mapping[NodeId, Float[np.ndarray, " d_model"]],
    settings: GroupSettings,
) -> Similarity:
    """How alike each pair is, from 0 to 1: the weighted mean of what is known of both."""
    measures = [
        (settings.profile, *_profiles(nodes, wires)),
        (settings.directions, *_directions(nodes, directions)),
        (settings.labels, *_words(nodes, labels)),
    ]
    total = np.zeros((len(nodes), len(nodes)))
    weight = np.zeros_like(total)
    for share, values, known in measures:
        total += share * np.where(known, values, 0.0)
        weight += share * known
    likeness = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    np.fill_diagonal(likeness, 1.0)
    return (likeness + likeness.T) / 2


def grouped(graph: PrunedGraph, groups: Iterable[Supernode]) -> PrunedGraph:
    """The graph with these groups in the place of its own. Raises ValueError as `check_groups` does."""
    groups = tuple(groups)
    check_groups(groups, graph.nodes)
    return replace(graph, supernodes=groups)


def group_graph(
    graph: PrunedGraph,
    labels: Mapping[NodeId, Label],
    directions: Mapping[NodeId, Float[np.ndarray, " d_model"]] | None = None,
    settings: GroupSettings | None = None,
) -> PrunedGraph:
    """The graph with proposed groups; groups that it has already stay as they are, and their members in them."""
    taken = {node for group in graph.supernodes for node in group.nodes}
    proposed = propose_groups(wires_of_graph(graph), labels, directions, settings)
    free = [replace(group, nodes=tuple(node for node in group.nodes if node not in taken)) for group in proposed]
    return grouped(graph, (*graph.supernodes, *(group for group in free if len(group.nodes) > 1)))


def check_groups(groups: Iterable[Supernode], nodes: Iterable[NodeId]) -> None:
    """Raises ValueError naming a member that is no node of the graph, or that is in two groups."""
    known, seen = set(nodes), set()
    for number, group in enumerate(groups):
        for node in group.nodes:
            if node not in known or node in seen:
                what = "is in two groups" if node in seen else "is no node of the graph"
                raise ValueError(f"group {number} ({shorten(group.label, 40)!r}): {node} {what}")
            seen.add(node)


def groups_to_json(groups: Iterable[Supernode]) -> bytes:
    """UTF-8 JSON to edit by hand: a label and node names for each group."""
    entries = [{"label": group.label, "nodes": [str(node) for node in group.nodes]} for group in groups]
    return write_object({"format": FORMAT, "version": VERSION}, {"groups": entries})


def groups_from_json(text: str | bytes) -> tuple[Supernode, ...]:
    """Groups that `groups_to_json` wrote, or a hand. Raises BadGraphFile naming the field."""
    data = read_object(text, "groups file")
    check_format(data, FORMAT, VERSION)
    groups = []
    for number, entry in enumerate(objects(data, "groups", "groups file")):
        where = f"group {number}"
        nodes = nodes_of(entry, "nodes", where)
        check_distinct(nodes, where)
        if not nodes:
            raise BadGraphFile(f"{where}: 'nodes' is empty")
        groups.append(Supernode(take(entry, "label", str, where), nodes))
    check_distinct([node for group in groups for node in group.nodes], "groups file")
    return tuple(groups)


def _buckets(wires: Sequence[Wire], across_positions: bool) -> list[list[NodeId]]:
    """Nodes that may be one group, in an order of their own: of one kind, and at one position."""
    found: dict[tuple[str, str], set[NodeId]] = {}
    for node in (end for wire in wires for end in (wire.edge.source, wire.edge.target)):
        if node.kind in GROUPED:
            found.setdefault((node.kind, "" if across_positions else str(node.position)), set()).add(node)
    buckets = [sorted(found[key], key=_order) for key in sorted(found) if len(found[key]) > 1]
    largest = max(map(len, buckets), default=0)
    if largest > MOST:
        raise ValueError(
            f"{largest} nodes at one position are too many to group ({MOST} at most): prune the graph further"
        )
    return buckets


def _order(node: NodeId) -> tuple[int, int, str]:
    return node.layer or 0, node.index or 0, str(node.position)


def _profiles(nodes: Sequence[NodeId], wires: Sequence[Wire]) -> tuple[Similarity, Known]:
    """Cosine of inputs and of outputs, the mean of those that both nodes have; edges within a pair hardly matter there."""
    own = {node: place for place, node in enumerate(nodes)}
    totals, known = np.zeros((len(nodes), len(nodes))), np.zeros((len(nodes), len(nodes)))
    for side in (0, 1):
        others: dict[object, int] = {}
        rows, columns, values = [], [], []
        for wire in sorted(wires, key=lambda wire: str(wire.edge)):
            pair = (wire.edge.source, wire.edge.target)
            if pair[side] in own:
                port = wire.edge.port if side == 1 else wire.edge.slot
                rows.append(own[pair[side]])
                columns.append(others.setdefault((pair[1 - side], port), len(others)))
                values.append(wire.weight)
        shape = (len(nodes), max(len(others), 1))
        matrix = csr_array((np.array(values, dtype=np.float64), (rows, columns)), shape=shape)
        lengths = np.sqrt(matrix.multiply(matrix).sum(axis=1))
        unit = matrix.multiply(1.0 / np.where(lengths > 0, lengths, 1.0)[:, None]).tocsr()
        both = np.outer(lengths > 0, lengths > 0)
        totals += np.where(both, (unit @ unit.T).toarray(), 0.0)
        known += both
    mean = np.divide(totals, known, out=np.zeros_like(totals), where=known > 0)
    return np.clip(mean, 0.0, 1.0), known > 0


def _directions(
    nodes: Sequence[NodeId], directions: Mapping[NodeId, Float[np.ndarray, " d_model"]]
) -> tuple[Similarity, Known]:
    given = [directions.get(node.at(None)) for node in nodes]
    width = max((len(vector) for vector in given if vector is not None), default=1)
    matrix = np.array([np.zeros(width) if vector is None else vector for vector in given], dtype=np.float64)
    lengths = np.linalg.norm(matrix, axis=1)
    unit = matrix / np.where(lengths > 0, lengths, 1.0)[:, None]
    return np.clip(unit @ unit.T, 0.0, 1.0), np.outer(lengths > 0, lengths > 0)


def _words(nodes: Sequence[NodeId], labels: Mapping[NodeId, Label]) -> tuple[Similarity, Known]:
    """Share of the words of two labels that both have (Jaccard)."""
    sets = [_words_of(labels.get(node.at(None))) for node in nodes]
    index = {word: place for place, word in enumerate(sorted(set().union(*sets)))}
    matrix = np.zeros((len(nodes), max(len(index), 1)))
    for place, words in enumerate(sets):
        matrix[place, [index[word] for word in words]] = 1.0
    common, sizes = matrix @ matrix.T, matrix.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - common
    return common / np.where(union > 0, union, 1.0), np.outer(sizes > 0, sizes > 0)


def _words_of(label: Label | None) -> frozenset[str]:
    if label is None or label.abstain or label.role == "unclear":
        return frozenset()
    return frozenset(_WORD.findall(label.text.lower())) - _EMPTY_WORDS


def _name(nodes: Sequence[NodeId], labels: Mapping[NodeId, Label], likeness: Similarity) -> str:
    texts = [label.text if (label := labels.get(node.at(None))) and _words_of(label) else "" for node in nodes]
    counts = Counter(text for text in texts if text)
    if counts and counts.most_common(1)[0][1] > 1:
        return counts.most_common(1)[0][0]
    best = [place for place in np.argsort(-likeness.sum(axis=1), kind="stable").tolist() if texts[place]]
    return texts[best[0]] if best else f"{len(nodes)} {nodes[0].kind}s"

"""Graphs of many prompts made one: nodes aligned by span, edges counted and averaged; clean against corrupt prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from graphs.attribution import AttributionGraph
from graphs.influence import blocks
from graphs.node import NodeId
from graphs.pruned import PrunedGraph
from graphs.task_graph import TaskGraph

_OTHER = "other"  # the span of positions that belong to none
_OUTPUTS = ("logit", "difference")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Traced prompts of one kind."""

    graphs: Sequence[PrunedGraph]
    """One for each prompt."""
    spans: Sequence[Mapping[int, str]] | None = None
    """For each prompt: position -> name of its span; positions without one are in the span `other`. None: positions count
    from the start if all prompts of all sides have one length, else from the end (-1 is last)."""
    whole: Sequence[AttributionGraph] | None = None
    """The unpruned graphs, if at hand: with them weights are known where pruning dropped an edge, too."""

    def __post_init__(self) -> None:
        if not self.graphs:
            raise ValueError("there is no graph to align")
        for name, given in (("spans", self.spans), ("whole graphs", self.whole)):
            if given is not None and len(given) != len(self.graphs):
                raise ValueError(f"{len(given)} {name} for {len(self.graphs)} graphs")


def align(
    prompts: Prompts, *, merge_targets: bool = True, least_frequency: float | int = 0.0, title: str = ""
) -> TaskGraph:
    """One graph of all prompts.

    merge_targets: a prompt's logits or differences, weighted as in its graph, become the one node `logits` (answers
    differ between prompts); else they stay apart. least_frequency: edges in a smaller share of the prompts are dropped.
    Raises ValueError where the prompts do not fit together.
    """
    return _together({"prompts": prompts}, merge_targets, least_frequency, title)


def contrast(
    clean: Prompts, corrupt: Prompts, *, merge_targets: bool = True, least_frequency: float | int = 0.0, title: str = ""
) -> TaskGraph:
    """How the graphs of clean prompts differ from those of the corrupt prompts of their pairs: clean - corrupt.

    least_frequency: edges in a smaller share of the prompts of both sides are dropped. The weight of an edge that a
    prompt's graph lacks is 0, unless `whole` tells it. Raises ValueError where the prompts do not fit together.
    """
    if len(clean.graphs) != len(corrupt.graphs):
        raise ValueError(f"{len(clean.graphs)} clean and {len(corrupt.graphs)} corrupt graphs: they must be pairs")
    return _together({"clean": clean, "corrupt": corrupt}, merge_targets, least_frequency, title)


class _Prompt:
    """One prompt's graph, its nodes named as they are in the graph of all."""

    def __init__(
        self, graph: PrunedGraph, spans: Mapping[int, str] | None, whole: AttributionGraph | None, from_end: bool
    ) -> None:
        self.graph, self.whole, self.spans, self.from_end = graph, whole, spans, from_end

    def place(self, position: int) -> int | str:
        """Span or number of a position."""
        if self.spans is not None:
            return self.spans.get(position, _OTHER)
        return position - len(self.graph.tokens) if self.from_end else position

    def name(self, node: NodeId, merge: bool) -> NodeId:
        """The aligned node that a node belongs to."""
        if merge and node.kind in _OUTPUTS:
            return NodeId("logits")
        if not isinstance(node.position, int):
            return node
        place = self.place(node.position)
        return NodeId("input", position=place) if node.kind == "token" else node.at(place)

    def places(self, nodes: tuple[NodeId, ...], index: Mapping[NodeId, int], merge: bool) -> Int[np.ndarray, " node"]:
        """Place of each node's aligned node; -1 where there is none."""
        return np.array([index.get(self.name(node, merge), -1) for node in nodes], dtype=np.int64)

    def factors(self, graph: PrunedGraph | AttributionGraph, merge: bool) -> Float[np.ndarray, " node"]:
        """What rows are multiplied with: a merged target's share of the target weights."""
        factors = np.ones(len(graph.nodes))
        if merge:
            for place, weight in zip(graph.targets.tolist(), graph.target_weights / graph.target_weights.sum()):
                if graph.nodes[place].kind in _OUTPUTS:
                    factors[place] = weight
        return factors


def _together(sides: dict[str, Prompts], merge: bool, least_frequency: float | int, title: str) -> TaskGraph:
    everything = [graph for prompts in sides.values() for graph in prompts.graphs]
    layers = {graph.layers for graph in everything}
    if len(layers) > 1:
        raise ValueError(f"graphs of models with {min(layers)} and {max(layers)} layers cannot be aligned")
    from_end = len({len(graph.tokens) for graph in everything}) > 1
    found = [_prompts(prompts, from_end) for prompts in sides.values()]
    flat = [prompt for side in found for prompt in side]
    order = _order(flat)
    names = {prompt.name(node, merge) for prompt in flat for node in prompt.graph.nodes}
    nodes = tuple(sorted(names, key=lambda node: _rank(node, order)))
    index = {node: place for place, node in enumerate(nodes)}
    keys, edge_counts = _union(found, index, merge, least_frequency)
    sums = _Sums(found, index, merge, keys)
    edges = np.stack([keys % len(nodes), keys // len(nodes)], axis=1)
    used = np.isin(np.arange(len(nodes)), edges) | np.array([node.kind not in ("feature", "error") for node in nodes])
    return TaskGraph(
        nodes=tuple(node for node, stays in zip(nodes, used) if stays),
        edges=(np.cumsum(used) - 1)[edges],
        sides=tuple(sides),
        prompts=len(found[0]),
        node_counts=sums.node_counts[:, used],
        edge_counts=edge_counts,
        influence=sums.influence[:, used],
        shares=sums.shares,
        weights=sums.weights,
        effect=sums.effect / len(found[0]),
        stderr=sums.stderr,
        agreement=sums.agreement,
        places=tuple(order),
        layers=layers.pop(),
        texts=_texts(flat),
        labels=_labels(flat),
        title=title,
        scores=_scores(sides),
    )


def _prompts(prompts: Prompts, from_end: bool) -> list[_Prompt]:
    count = len(prompts.graphs)
    spans = [None] * count if prompts.spans is None else prompts.spans
    whole = [None] * count if prompts.whole is None else prompts.whole
    return [_Prompt(graph, at, full, from_end) for graph, at, full in zip(prompts.graphs, spans, whole)]


def _order(prompts: Sequence[_Prompt]) -> dict[int | str, int]:
    """Places in the order of the prompts: by their mean distance from the end."""
    distances: dict[int | str, list[int]] = {}
    for prompt in prompts:
        width = len(prompt.graph.tokens)
        for position in range(width):
            distances.setdefault(prompt.place(position), []).append(position - width)
    means = {place: sum(values) / len(values) for place, values in distances.items()}
    return {place: number for number, place in enumerate(sorted(means, key=lambda place: (means[place], str(place))))}


def _rank(node: NodeId, order: Mapping[int | str, int]) -> tuple[int, int, int, str]:
    """Order of nodes: as in the graph of one prompt."""
    group = {"head": 0, "feature": 0, "error": 1, "input": 2}.get(node.kind, 3)
    place = -1 if node.position is None else order.get(node.position, len(order))
    return group, -1 if node.layer is None else node.layer, place, f"{node.index or 0:020}{node}"


def _union(
    sides: Sequence[Sequence[_Prompt]], index: Mapping[NodeId, int], merge: bool, least: float | int
) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, "side edge"]]:
    """Edges (target times the number of nodes plus source, ascending) that are often enough, and how often they are."""
    counted = []
    for side in sides:
        keys = [np.unique(_keys(prompt, index, merge)) for prompt in side]
        counted.append(np.unique(np.concatenate(keys), return_counts=True))
    union = np.unique(np.concatenate([keys for keys, _ in counted]))
    counts = np.zeros((len(sides), len(union)), dtype=np.int64)
    for number, (keys, values) in enumerate(counted):
        counts[number, np.searchsorted(union, keys)] = values
    often = counts.max(axis=0, initial=0) >= least * len(sides[0])
    return union[often], counts[:, often]


def _keys(prompt: _Prompt, index: Mapping[NodeId, int], merge: bool) -> Int[np.ndarray, " edge"]:
    """The aligned edge of each edge of a prompt's graph."""
    place = prompt.places(prompt.graph.nodes, index, merge)
    return place[prompt.graph.edges[:, 1]] * len(index) + place[prompt.graph.edges[:, 0]]


class _Sums:
    """Means and spreads over prompts, gathered prompt by prompt."""

    def __init__(
        self,
        sides: Sequence[Sequence[_Prompt]],
        index: Mapping[NodeId, int],
        merge: bool,
        keys: Int[np.ndarray, " edge"],
    ) -> None:
        self.index, self.merge, self.keys = index, merge, keys
        count, number = len(keys), len(sides[0])
        self.node_counts = np.zeros((len(sides), len(index)), dtype=np.int64)
        self.influence = np.zeros((len(sides), len(index)))
        self.shares, self.weights = np.zeros((len(sides), count)), np.zeros((len(sides), count))
        self.effect, squares, signs = np.zeros(count), np.zeros(count), np.zeros((2, count))
        for pair in zip(*sides):
            effect = np.zeros(count)
            for side, prompt in enumerate(pair):
                weights = self._add(side, prompt, 1 / number)
                effect += -weights if side else weights
            self.effect += effect
            squares += effect**2
            signs += np.stack([effect > 0, effect < 0])
        self.stderr = np.full(count, np.nan)
        if number > 1:
            spread = np.maximum(squares / number - (self.effect / number) ** 2, 0)
            self.stderr = np.sqrt(spread / (number - 1))
        self.agreement = np.full(count, np.nan)
        agreeing, some = np.where(self.effect >= 0, signs[0], signs[1]), signs.sum(0)
        np.divide(agreeing, some, out=self.agreement, where=some > 0)

    def _add(self, side: int, prompt: _Prompt, part: float) -> Float[np.ndarray, " edge"]:
        """Adds one prompt; gives its weights."""
        graph = prompt.graph
        place = prompt.places(graph.nodes, self.index, self.merge)
        self.node_counts[side, np.unique(place)] += 1
        np.add.at(self.influence[side], place, np.nan_to_num(graph.influence) * part)
        keys = _keys(prompt, self.index, self.merge)
        signed = np.copysign(np.nan_to_num(graph.edge_scores), graph.weights)
        self.shares[side] += self._at(keys, signed) * part
        rows = graph.edges[:, 1]
        weights = self._at(keys, graph.weights * prompt.factors(graph, self.merge)[rows])
        if prompt.whole is not None:
            weights = self._whole_weights(prompt, prompt.whole)
        self.weights[side] += weights * part
        return weights

    def _whole_weights(self, prompt: _Prompt, graph: AttributionGraph) -> Float[np.ndarray, " edge"]:
        """Weights of the aligned edges in the unpruned graph."""
        place = prompt.places(graph.nodes, self.index, self.merge)
        factors, total = prompt.factors(graph, self.merge), np.zeros(len(self.keys))
        for rows, columns, weights in blocks(graph, place >= 0):
            total += self._at(place[rows] * len(self.index) + place[columns], weights * factors[rows])
        return total

    def _at(self, keys: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edge"]:
        """Values summed by aligned edge; those of other edges are left out."""
        if not len(self.keys):
            return np.zeros(0)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[places] == keys
        return np.bincount(places[known], values[known], minlength=len(self.keys)).astype(np.float64)


def _texts(prompts: Sequence[_Prompt]) -> dict[str, str]:
    """The two most frequent texts of each input and of the likeliest outputs."""
    seen: dict[str, Counter[str]] = {}
    for prompt in prompts:
        for position, token in enumerate(prompt.graph.tokens):
            seen.setdefault(str(NodeId("input", position=prompt.place(position))), Counter())[token] += 1
        first = prompt.graph.nodes[int(prompt.graph.targets[int(np.argmax(prompt.graph.target_weights))])]
        if first.kind in _OUTPUTS:
            label = prompt.graph.label(first) or str(first.at(None))
            for name in ("logits", str(prompt.name(first, False))):
                seen.setdefault(name, Counter())[label] += 1
    return {
        name: " / ".join(text for text, _ in counter.most_common(2)) + (" / …" if len(counter) > 2 else "")
        for name, counter in seen.items()
    }


def _labels(prompts: Sequence[_Prompt]) -> dict[str, str]:
    """Labels by aligned name; the first prompt that has one names a node."""
    labels: dict[str, str] = {}
    for prompt in prompts:
        for name, label in prompt.graph.labels.items():
            labels.setdefault(str(prompt.name(NodeId.parse(name), False)), label)
    return labels


def _scores(sides: Mapping[str, Prompts]) -> dict[str, float | None]:
    """Mean of each score over the prompts of each side."""
    means: dict[str, float | None] = {}
    for side, prompts in sides.items():
        scored = [vars(graph.scores) for graph in prompts.graphs if graph.scores is not None]
        for name in scored[0] if scored else ():
            mean = float(np.mean([scores[name] for scores in scored]))
            means[f"{side}.{name}"] = None if np.isnan(mean) else mean
    return means

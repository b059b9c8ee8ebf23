"""The part of an attribution graph that is read: what pruning leaves, with everything that a file or a picture says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from graphs.label import Label
from graphs.node import EdgeId, NodeId


@dataclass(frozen=True)
class GraphScores:
    """How much of what reaches the targets runs through features and tokens rather than errors; of the unpruned graph.
    NaN where nothing reaches them."""

    replacement: float
    """Influence of tokens / influence of tokens and errors: whole paths."""
    completeness: float
    """Share of inputs that are no errors, weighted by influence, as circuit-tracer counts it: nodes without inputs (tokens,
    and the errors themselves) count as explained."""
    completeness_strict: float
    """The same over nodes with inputs alone; what was left out of the stored rows counts as not explained."""


@dataclass(frozen=True)
class Supernode:
    """Nodes that a reader takes for one."""

    label: str
    """Its name; hostile."""
    nodes: tuple[NodeId, ...]
    """Its members."""


@dataclass(frozen=True, eq=False)
class PrunedGraph:
    """The nodes and edges of one prompt's attribution graph that carry most of the influence on its targets.

    A graph that was read from another program's file holds NaN for numbers that the file lacks.
    """

    nodes: tuple[NodeId, ...]
    """Kept nodes, in the order of the unpruned graph."""
    edges: Int[np.ndarray, "edge 2"]
    """Places in `nodes` of source and target of each kept edge, by target, then by source."""
    weights: Float[np.ndarray, " edge"]
    """float32: what the source contributes to the target's pre-activation or demeaned logit."""
    edge_scores: Float[np.ndarray, " edge"]
    """Share of the target's inputs times the target's influence, both of the pruned nodes: what edges were selected by."""
    activations: Float[np.ndarray, " node"]
    """float32: a feature's activation, a target's pre-activation or demeaned logit; NaN for all others."""
    influence: Float[np.ndarray, " node"]
    """Influence of each node on the targets, in the unpruned graph."""
    cumulative: Float[np.ndarray, " node"]
    """Share of all influence that this node and the more influential ones hold: low is important."""
    explained: Float[np.ndarray, " node"]
    """Share of the absolute sum of a node's inputs that kept edges hold; NaN for nodes without inputs."""
    targets: Int[np.ndarray, " chosen"]
    """Places in `nodes` of what is explained."""
    target_weights: Float[np.ndarray, " chosen"]
    """A logit's probability, 1 for a chosen difference or feature."""
    token_ids: tuple[int, ...]
    """The prompt; -1 where a file of another program does not tell."""
    tokens: tuple[str, ...]
    """The prompt's tokens as text; hostile."""
    layers: int
    """Number of layers of the model."""
    texts: Mapping[int, str] = field(default_factory=dict)
    """Vocabulary number -> text of the logits among the nodes; hostile."""
    scores: GraphScores | None = None
    """Of the unpruned graph."""
    node_threshold: float | None = None
    """Share of the influence that nodes were pruned to."""
    edge_threshold: float | None = None
    """Share of the edge scores that edges were pruned to."""
    whole: tuple[int, int] | None = None
    """Number of nodes and of stored edges before pruning."""
    title: str = ""
    """One line for pictures; hostile. Empty: the prompt."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Texts by node name, with a position (`f3.17@4`) or for all positions (`f3.17`); hostile."""
    named: Mapping[str, Label] = field(default_factory=dict)
    """Labels with all that is known of them (role, scores, causal test), by node name without a position; hostile. `labels`
    decides what is shown where it has the node."""
    supernodes: tuple[Supernode, ...] = ()
    """Groups of nodes."""
    pinned: tuple[NodeId, ...] = ()
    """Nodes that a reader has picked out, as Neuronpedia's subgraph does."""
    through: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Of some edges, by place in `edges`: how the weight splits over what it passes, by name (`a2.h3`); sums to it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, as JSON holds it: model, transcoders, settings, closure, validation."""

    def __post_init__(self) -> None:
        count, edges = len(self.nodes), len(self.edges)
        lengths = {len(self.activations), len(self.influence), len(self.cumulative), len(self.explained)}
        if lengths != {count} or len(self.weights) != edges or len(self.edge_scores) != edges:
            raise ValueError(f"a pruned graph of {count} nodes and {edges} edges has arrays of other lengths")
        if edges and (int(self.edges.min()) < 0 or int(self.edges.max()) >= count):
            raise ValueError(f"a pruned graph of {count} nodes has an edge outside of them")
        if len(self.targets) != len(self.target_weights) or len(self.tokens) != len(self.token_ids):
            raise ValueError("a pruned graph needs a weight for each target and a number for each token")

    @cached_property
    def index(self) -> dict[NodeId, int]:
        """Place of each node."""
        return {node: place for place, node in enumerate(self.nodes)}

    @property
    def edge_names(self) -> list[str]:
        """`source->target` of every edge."""
        return [str(EdgeId(self.nodes[source], self.nodes[target])) for source, target in self.edges.tolist()]

    def label(self, node: NodeId) -> str:
        """What a node is called: its label, else the text of its token or logit, else nothing."""
        given = self.labels.get(str(node)) or self.labels.get(str(node.at(None)))
        if given:
            return given
        if str(node.at(None)) in self.named:
            return self.named[str(node.at(None))].text
        if node.kind == "token":
            return self.tokens[node.position] if isinstance(node.position, int) else ""
        if node.kind == "logit" and node.index is not None:
            return self.texts.get(node.index, "")
        if node.kind == "difference" and node.index is not None and node.minus is not None:
            sides = [self.texts.get(number, str(number)) for number in (node.index, node.minus)]
            return f"{sides[0]} −{sides[1]}" if any(n in self.texts for n in (node.index, node.minus)) else ""
        return ""

    @property
    def heading(self) -> str:
        """The title, or the prompt where there is none; hostile."""
        return self.title or "".join(self.tokens).strip() or "attribution graph"

    def same_as(self, other: PrunedGraph) -> bool:
        """Whether two graphs are equal in everything, number types included."""
        return same_fields(self, other)


def same_fields(one: Any, other: Any) -> bool:
    """Whether two objects of one dataclass are equal: arrays with their types, NaN equal to NaN, JSON data as JSON."""
    if type(one) is not type(other):
        return False
    return all(_same(getattr(one, name), getattr(other, name)) for name in (f.name for f in fields(one)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        same_type = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype
        return same_type and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, GraphScores):
        return isinstance(other, GraphScores) and repr(one) == repr(other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and _as_json(one) == _as_json(other)
    return one is other or bool(one == other)


def _data(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else repr(value)


def _as_json(data: Mapping[Any, Any]) -> str:
    return json.dumps({str(key): value for key, value in data.items()}, sort_keys=True, default=_data)

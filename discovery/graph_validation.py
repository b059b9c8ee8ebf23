"""Does an attribution graph say what the model does? Predicted effects of its strongest edges and features, and measured.

Frozen: in the local replacement model (attention patterns, norm denominators and MLP outputs held) doubling a feature must
change every target by its edge. Then features are ablated and doubled in the model itself, with its attention patterns held
and with everything live, and the changes are compared with the graph's total effects (`graphs.total_effect`): sums over all
paths with every feature's gate fixed. What runs through error nodes, gates that flip and norms that rescale is not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.component_model import ComponentModel
from discovery.intervened_run import Freeze, Outcome, Untouched, intervened_pass, untouched_pass
from discovery.intervention import Edit, prompts_of
from discovery.statistics import Agreement, agreement
from discovery.transcoder import TranscoderSet
from graphs.attribution import AttributionGraph
from graphs.influence import measure
from graphs.node import NodeId
from graphs.total_effect import total_effects

Change = Literal["ablate", "double"]
_FACTOR: dict[Change, float] = {"ablate": 0.0, "double": 2.0}
_FEATURE_TOLERANCE, _LOGIT_TOLERANCE = (5e-4, 1e-5), (1e-5, 1e-3)
"""Absolute and relative, of pre-activations and of demeaned logits."""
_TOKENS_PER_PASS = 2048


@dataclass(frozen=True)
class Effect:
    """One predicted and measured change."""

    source: str
    """The feature that is ablated or doubled."""
    target: str
    """What changes: a feature's pre-activation, a demeaned logit, a difference of logits."""
    change: Change
    """What is done to the source."""
    predicted: float
    """What the graph says: the edge's weight, or the total effect."""
    measured: float
    """What happens."""


@dataclass(frozen=True)
class Exactness:
    """Edges in the local replacement model, where they must be exact."""

    edges: int
    """Number of edges looked at."""
    within: int
    """How many are within 5e-4 + 1e-5 of the weight (features), or 1e-5 + 1e-3 of it (logits)."""
    largest_error: float
    """Largest difference."""


@dataclass(frozen=True)
class GraphValidation:
    """What `validate_graph` found."""

    exactness: Exactness
    """Of the strongest edges, everything frozen."""
    edges: dict[Freeze, tuple[Effect, ...]]
    """Total effects between the ends of the strongest edges, with frozen attention and live."""
    features: dict[Freeze, tuple[Effect, ...]]
    """Total effects of the most influential features on the graph's targets, likewise."""

    def agreements(self) -> dict[str, dict[Freeze, Agreement]]:
        """How well predicted and measured agree, for edges and features."""
        return {
            name: {
                freeze: agreement([e.predicted for e in effects], [e.measured for e in effects])
                for freeze, effects in found.items()
            }
            for name, found in (("edges", self.edges), ("features", self.features))
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; `none` stands for live. Correlations of fewer than two different values are NaN."""
        return {
            "exactness": asdict(self.exactness),
            "agreement": {
                name: {freeze: asdict(found) for freeze, found in by_freeze.items()}
                for name, by_freeze in self.agreements().items()
            },
            "effects": {
                name: {freeze: [asdict(effect) for effect in effects] for freeze, effects in found.items()}
                for name, found in (("edges", self.edges), ("features", self.features))
            },
        }


def validate_graph(
    model: ComponentModel,
    transcoders: TranscoderSet,
    graph: AttributionGraph,
    *,
    edges: int = 50,
    features: int = 20,
) -> GraphValidation:
    """Checks a graph's strongest edges from features, and its most influential features, against interventions.

    Edges are ranked by their share of the influence on the targets, features by their influence (conventions, section 6).
    """
    influence = measure(graph).nodes
    sources, targets = _strongest_edges(graph, influence, edges)
    ranked = np.where(graph.kinds == "feature", influence, -1.0)
    best = np.argsort(-ranked, kind="stable")[:features]
    best = best[ranked[best] > 0]
    lab = _Laboratory(model, transcoders, graph)
    with tqdm(desc="validate", unit="run", delay=1, leave=False) as bar:
        weights = np.array(
            [graph.weights[row, column] for row, column in zip(targets, sources, strict=True)], dtype=np.float64
        )
        frozen = lab.effects(sources, targets, weights, "double", "all", bar)
        ends, places = np.unique(targets, return_inverse=True)
        predicted = total_effects(graph, ends)[places, sources] if len(ends) else np.zeros(0)
        onto = total_effects(graph, graph.targets)
        pairs = np.repeat(best, len(graph.targets)), np.tile(graph.targets, len(best))
        lines = onto[:, best].T.reshape(-1)
        freezes: tuple[Freeze, ...] = ("attention", "none")
        return GraphValidation(
            exactness=_exactness(frozen),
            edges={freeze: lab.both(sources, targets, predicted, freeze, bar) for freeze in freezes},
            features={freeze: lab.both(*pairs, lines, freeze, bar) for freeze in freezes},
        )


def _strongest_edges(
    graph: AttributionGraph, influence: Float[np.ndarray, " node"], count: int
) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
    """Sources and targets of the edges from features that carry the most influence, row by row so that nothing is copied."""
    reach = influence.copy()
    np.add.at(reach, graph.targets, graph.target_weights)
    is_feature, weights = graph.kinds == "feature", graph.weights
    strength, rows, columns = np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for row in np.flatnonzero((reach > 0) & (graph.absolute > 0)).tolist():
        part = slice(weights.indptr[row], weights.indptr[row + 1])
        own = weights.indices[part]
        score = np.abs(weights.data[part]) * is_feature[own] * (reach[row] / graph.absolute[row])
        strength = np.concatenate([strength, score])
        rows, columns = np.concatenate([rows, np.full(len(own), row)]), np.concatenate([columns, own])
        if len(strength) > count:
            kept = np.argpartition(-strength, count - 1)[:count]
            strength, rows, columns = strength[kept], rows[kept], columns[kept]
    order = np.argsort(-strength, kind="stable")
    order = order[strength[order] > 0]
    return columns[order].astype(np.int64), rows[order].astype(np.int64)


def _exactness(effects: Sequence[Effect]) -> Exactness:
    errors = [abs(effect.measured - effect.predicted) for effect in effects]
    within = 0
    for effect, error in zip(effects, errors):
        absolute, relative = _FEATURE_TOLERANCE if effect.target.startswith("f") else _LOGIT_TOLERANCE
        within += error <= absolute + relative * abs(effect.predicted)
    return Exactness(len(effects), within, max(errors, default=0.0))


class _Laboratory:
    """Runs interventions on a graph's prompt, several in one pass."""

    def __init__(self, model: ComponentModel, transcoders: TranscoderSet, graph: AttributionGraph) -> None:
        self.model, self.transcoders, self.graph = model, transcoders, graph
        self.untouched: Untouched = untouched_pass(model, prompts_of([graph.token_ids], model.device))
        self.rows_per_pass = max(1, _TOKENS_PER_PASS // len(graph.token_ids))

    def both(
        self,
        sources: Int[np.ndarray, " pair"],
        targets: Int[np.ndarray, " pair"],
        doubled: Float[np.ndarray, " pair"],
        freeze: Freeze,
        bar: tqdm[Any],
    ) -> tuple[Effect, ...]:
        """Effects of ablating and of doubling; doubled: what the graph says of the latter."""
        return (
            *self.effects(sources, targets, -doubled, "ablate", freeze, bar),
            *self.effects(sources, targets, doubled, "double", freeze, bar),
        )

    def effects(
        self,
        sources: Int[np.ndarray, " pair"],
        targets: Int[np.ndarray, " pair"],
        predicted: Float[np.ndarray, " pair"],
        change: Change,
        freeze: Freeze,
        bar: tqdm[Any],
    ) -> tuple[Effect, ...]:
        """What changing each source does to its target. Each source is run once."""
        before = self._values(self._run([], 1, freeze), np.unique(targets), 0)
        measured = np.zeros(len(sources))
        chosen = np.unique(sources)
        for start in range(0, len(chosen), self.rows_per_pass):
            some = chosen[start : start + self.rows_per_pass].tolist()
            outcome = self._run(
                [self._edit(node, row, len(some), change) for row, node in enumerate(some)], len(some), freeze
            )
            for row, node in enumerate(some):
                pairs = np.flatnonzero(sources == node)
                after = self._values(outcome, targets[pairs], row)
                measured[pairs] = [after[target] - before[target] for target in targets[pairs].tolist()]
            bar.update(len(some))
        nodes = self.graph.nodes
        return tuple(
            Effect(str(nodes[source]), str(nodes[target]), change, float(said), float(seen))
            for source, target, said, seen in zip(sources.tolist(), targets.tolist(), predicted, measured, strict=True)
        )

    def _edit(self, place: int, row: int, rows: int, change: Change) -> Edit:
        node = self.graph.nodes[place]
        assert isinstance(node.position, int) and node.layer is not None
        cells = torch.zeros((rows, len(self.graph.token_ids)), dtype=torch.bool, device=self.model.device)
        cells[row, node.position] = True
        return Edit("feature", node.layer, node.index, operation="scale", value=_FACTOR[change], cells=cells)

    def _run(self, edits: Sequence[Edit], rows: int, freeze: Freeze) -> Outcome:
        prompts = prompts_of([self.graph.token_ids] * rows, self.model.device)
        return intervened_pass(self.model, self.transcoders, prompts, edits, freeze=freeze, untouched=self.untouched)

    def _values(self, outcome: Outcome, targets: Int[np.ndarray, " target"], row: int) -> dict[int, float]:
        """Pre-activations, demeaned logits and differences of one row of a pass, by place in the graph."""
        logits = outcome.uncapped[row].double()
        return {place: self._value(outcome, logits, self.graph.nodes[place], row) for place in targets.tolist()}

    def _value(self, outcome: Outcome, logits: Float[Tensor, " vocab"], node: NodeId, row: int) -> float:
        if node.kind == "feature":
            assert node.layer is not None and node.index is not None and isinstance(node.position, int)
            transcoder, x = self.transcoders.by_layer[node.layer], outcome.inputs[node.layer][row, node.position]
            return float(transcoder.encoder[node.index].to(x) @ x) + float(transcoder.encoder_bias[node.index])
        assert node.index is not None
        taken = logits.mean() if node.minus is None else logits[node.minus]
        return float(logits[node.index] - taken)

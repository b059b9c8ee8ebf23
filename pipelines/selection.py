"""From scores to the circuit of a run: which edges, how surely they would be chosen again, and which are left out for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import STANDARD_SIZES, RunConfig, SelectionConfig
from pipelines.inputs import Inputs
from pipelines.node_results import select_stored_nodes
from pipelines.scoring import rule_of
from pipelines.settings import ConfigError
from pipelines.store import RunStore

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.scores import EdgeScores
    from graphs.topology import Topology

_PAIRS_TO_CHOOSE_BY = 128
"""When the size is chosen by `selection.reach`, at most this many pairs of the scoring split are run."""
SURE = 0.95
"""An edge that is selected in at least this share of the draws is called sure."""


def select(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores) -> tuple[Circuit, dict[str, Any]]:
    """The circuit that the settings cut out of a run's scores, dead ends included, and what is to be said of its stability.

    Raises ConfigError where `selection.min_stability` is given but nothing was drawn that could tell it.
    """
    from discovery.stability import frequency, overlap, selections

    again = _again(config, inputs, store, scores)
    if config.selection.nodes is not None:
        circuit = select_stored_nodes(store, scores.topology, config.selection)
    else:
        circuit = again.cut(scores)
    if config.selection.refine:
        circuit = _refined(config, inputs, store, scores, circuit)
    draws, said = store.read_draws(), {}
    for kind in ("seeds", "resamples"):  # resamples, where there are any, decide how often an edge is selected
        if kind in draws:
            kept = selections(draws[kind], scores.topology, again)
            said[kind] = overlap(kept).to_json()
            circuit = dataclasses.replace(circuit, stability=frequency(kept, scores.topology))
    least = config.selection.min_stability
    if circuit.stability is None:
        if least is not None:
            raise ConfigError(
                f"selection.min_stability needs draws to count in: method {scores.method!r} gives no scores of single "
                "pairs and has no seed, or selection.resamples and selection.seeds are below 2; give --reruns 10 to run it "
                "on so many resamples of the pairs"
            )
        return circuit, {}
    if least is not None:
        circuit = dataclasses.replace(circuit, kept=circuit.kept & (circuit.stability >= least))
    return circuit, said


def _refined(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores, circuit: Circuit) -> Circuit:
    """The circuit with edges swapped by real runs on (some of) the scoring split; run.json then has `refined`."""
    from discovery.refine import refine

    few = inputs.some_of_train(_PAIRS_TO_CHOOSE_BY)
    found = refine(inputs.model, few, circuit, scores, config.selection.refine, config.selection.by)
    changed = int((found.circuit.kept & ~circuit.kept).sum())
    store.run["refined"] = {"before": found.before, "after": found.after, "runs": found.runs, "new_edges": changed}
    return found.circuit


@dataclass(frozen=True)
class Again:
    """Selects from a draw's scores as was selected from the run's own."""

    topology: Topology
    """The graph."""
    cut: Callable[[EdgeScores], Circuit]
    """From the scores of edges."""
    of_nodes: bool
    """Whether draws hold the scores of nodes."""
    selection: SelectionConfig
    """The settings: with `nodes`, nodes are selected."""

    def __call__(self, draw: np.ndarray) -> Circuit:
        """The circuit of one draw."""
        from discovery.stability import edge_table
        from graphs.node_scores import NodeScores, edge_scores, select_nodes

        if not self.of_nodes:
            return self.cut(edge_table(draw, self.topology))
        nodes = NodeScores(self.topology, draw, "draw")
        if self.selection.nodes is not None:
            return select_nodes(nodes, self.selection.nodes, self.selection.by)
        return self.cut(edge_scores(nodes))


def _again(config: RunConfig, inputs: Inputs, store: RunStore, scores: EdgeScores) -> Again:
    chosen, of_nodes = config.selection, store.finished("nodes")
    cut = _none if chosen.nodes is not None else cutter(config, inputs, scores)
    return Again(scores.topology, cut, of_nodes, chosen)


def _none(scores: EdgeScores) -> Circuit:
    raise ConfigError(f"method {scores.method!r} scores no nodes: give selection.edges or selection.size")


def sure_edges(circuit: Circuit) -> int | None:
    """How many of the circuit's edges are selected in nearly every draw (`SURE`); None where nothing was drawn."""
    return None if circuit.stability is None else int((circuit.stability[circuit.kept] >= SURE).sum())


def cutter(config: RunConfig, inputs: Inputs, scores: EdgeScores) -> Callable[[EdgeScores], Circuit]:
    """How the settings cut a circuit out of scores such as these.

    Without edges, size and threshold: the method's own circuit, where it decides on one (of draws as many edges); else as
    many edges as the smallest standard size has whose faithfulness on (some of) the scoring split is at least
    `selection.reach`. The held-out pairs have no say.
    """
    from graphs.circuit import Circuit
    from graphs.prune import SELECTIONS, edge_count, select_threshold

    chosen = config.selection
    threshold, rule = chosen.threshold, rule_of(config)
    if threshold is not None:
        if chosen.rule == "greedy":
            raise ConfigError(f"selection.threshold and selection.rule = {chosen.rule!r} exclude each other")
        return lambda each: select_threshold(each, threshold, chosen.by)
    if chosen.edges is None and chosen.size is None and scores.kept is not None:
        own = int(scores.kept.sum())
        return lambda each: (
            SELECTIONS[rule](each, own, chosen.by) if each.kept is None else Circuit(each.topology, each.kept, each)
        )
    if chosen.edges is not None:
        count = chosen.edges
    else:
        size = _size_that_reaches(config, inputs, scores) if chosen.size is None else chosen.size
        count = edge_count(scores.topology, size)
    return lambda each: SELECTIONS[rule](each, count, chosen.by)


def _size_that_reaches(config: RunConfig, inputs: Inputs, scores: EdgeScores) -> float:
    from discovery.evaluate import evaluate

    few = inputs.some_of_train(_PAIRS_TO_CHOOSE_BY)
    chosen = config.selection
    curve = evaluate(
        inputs.model,
        few,
        scores,
        sizes=STANDARD_SIZES,
        select=rule_of(config),
        by=chosen.by,
        bootstrap=0,
        faithfulness_only=True,
    )
    reached = [point.size for point in curve.points if point.faithfulness >= chosen.reach]
    return min(reached, default=STANDARD_SIZES[-1])

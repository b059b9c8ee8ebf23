"""ACDC (Conmy et al. 2023): edges are taken out one after the other, from the logits back, unless that hurts too much.

The decisions are those of the sequential algorithm; candidates are measured in speculative batches (see
`discovery.speculation`), by runs that compute only what a candidate changes (see `discovery.pruning_run`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from discovery.journal import ArrayJournal, Journal
from discovery.methods.eap_ig import quadrature
from discovery.model import PatchableModel
from discovery.patched_metric import full_metric, patched_metric
from discovery.pruning import judge_of, reach_of
from discovery.scoring import OnBatch, PairMoments, linear_scores
from discovery.speculation import Decision, Edge, Work, prune_in_order
from discovery.workload import Workload
from graphs.scores import EdgeScores
from graphs.topology import Topology

_SCREENING_STEPS = 1


@dataclass(frozen=True)
class Options:
    """When an edge stays, and in which order edges are tried."""

    tau: float | None = None
    """An edge stays if the metric falls by at least this much without it (mean over pairs, in the metric's unit)."""
    share: float = 0.01
    """Without tau: tau is this share of the gap between the metric of the whole model and with every edge ablated."""
    edges: int | None = None
    """Look for the tau whose circuit has about as many edges (before dead ends are dropped); excludes tau."""
    searches: int = 10
    """With edges: how many values of tau to try at most."""
    heads: Literal["descending", "ascending"] = "descending"
    """The order of nodes that stand side by side (a layer's heads), which the graph does not settle."""
    change: Literal["drop", "absolute"] = "drop"
    """Whether an edge also stays when the metric rises by tau without it (absolute)."""
    screen: bool = True
    """Guess the decisions from attribution scores, where the metric has a gradient; the circuit does not depend on it."""

    def __post_init__(self) -> None:
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"method 'acdc': tau must be more than 0, not {self.tau}")
        if not self.share > 0:
            raise ValueError(f"method 'acdc': share must be more than 0, not {self.share}")
        if self.tau is not None and self.edges is not None:
            raise ValueError("method 'acdc': tau and edges exclude each other; give one")
        if (self.edges is not None and self.edges < 1) or self.searches < 1:
            raise ValueError("method 'acdc': edges and searches must be 1 or more")


@dataclass(frozen=True, eq=False)
class Pruned:
    """One pass over all candidates."""

    tau: float
    """The threshold."""
    kept: Bool[np.ndarray, "src dst"]
    """The circuit, dead ends included."""
    drops: Float[np.ndarray, "pair src dst"]
    """By how much the metric fell when the edge's turn came; float32."""
    work: Work
    """What it cost."""


def score(
    model: PatchableModel,
    workload: Workload,
    options: Options | None = None,
    on_batch: OnBatch | None = None,
    journal: Journal | None = None,
) -> EdgeScores:
    """How much of the metric went with each edge when its turn came (0 for edges to slots that nobody read any more).

    The scores' `kept` is ACDC's circuit. Works with every metric and ablation. journal: keeps the decisions so far.
    """
    options = options or Options()
    order = candidates(model.topology, options.heads)
    first = _first_tau(model, workload, options)
    guess = _screen(model, workload, options)

    def prune(tau: float, resumed: Journal | None = None) -> Pruned:
        return _prune(model, workload, order, tau, options, guess, resumed)

    if options.edges is None:
        pruned = prune(first, journal)
    else:
        pruned = search_tau(prune, first, options.edges, options.searches)
    moments, start = PairMoments(model.topology), 0
    for number, batch in enumerate(workload.batches):
        some = torch.from_numpy(pruned.drops[start : start + len(batch)])
        moments.add(some)
        if on_batch is not None:
            on_batch(number, some)
        start += len(batch)
    facts = {"tau": pruned.tau, "kept": int(pruned.kept.sum()), "runs": pruned.work.masks}
    return replace(moments.scores("acdc"), kept=pruned.kept, facts=facts)


def candidates(topology: Topology, heads: Literal["descending", "ascending"] = "descending") -> list[Edge]:
    """Every possible edge: slots from the logits back, and each slot's sources from the last that writes.

    heads: the order of slots and sources that stand side by side, of one layer's attention or of its features.
    """

    def ordered(nodes: list[tuple[int, int | None, str]]) -> list[int]:
        places: list[int] = []
        for _, members in groupby(reversed(nodes), key=lambda node: node[1:]):
            some = [place for place, _, _ in members]
            places += some if heads == "descending" else some[::-1]
        return places

    slots = [(i, slot.node.layer, slot.node.kind) for i, slot in enumerate(topology.targets)]
    sources = [(i, node.layer, node.kind) for i, node in enumerate(topology.sources)]
    rows = ordered(sources)
    return [(row, column) for column in ordered(slots) for row in rows if topology.possible[row, column]]


def search_tau(prune: Callable[[float], Pruned], first: float, edges: int, tries: int) -> Pruned:
    """The pass whose circuit's size comes closest to `edges`: tau by factors of 4 until both sides are seen, then halving.

    Sizes need not fall evenly with tau: the closest of all that were tried is given.
    """
    best: Pruned | None = None
    low, high, tau = 0.0, np.inf, first
    for _ in range(tries):
        found = prune(tau)
        if best is None or abs(int(found.kept.sum()) - edges) < abs(int(best.kept.sum()) - edges):
            best = found
        count = int(found.kept.sum())
        if count == edges:
            break
        low, high = (tau, high) if count > edges else (low, tau)
        tau = low * 4 if high == np.inf else high / 4 if low == 0 else (low * high) ** 0.5
    assert best is not None
    return best


def gap_of(model: PatchableModel, workload: Workload) -> float:
    """How far apart the metric is, mean over pairs, with every edge and with none. Raises ValueError without pairs."""
    gaps = []
    nothing = np.zeros((1, *model.topology.possible.shape), dtype=bool)
    for batch in workload.batches:
        full, logits = full_metric(model, batch, workload.metric)
        gaps.append(full - patched_metric(model, batch, workload.metric, nothing, workload.ablation, logits, 1)[0])
    if not gaps:
        raise ValueError("there are no prompt pairs to score")
    return abs(float(torch.cat(gaps).mean()))


def _first_tau(model: PatchableModel, workload: Workload, options: Options) -> float:
    if options.tau is not None:
        return options.tau
    return max(options.share * gap_of(model, workload), float(np.finfo(np.float32).tiny))


def _screen(model: PatchableModel, workload: Workload, options: Options) -> Float[np.ndarray, "src dst"]:
    """What is guessed of each edge before it is measured: its attribution score; nothing lost without a gradient."""
    if not options.screen or not workload.metric.differentiable:
        return np.zeros(model.topology.possible.shape)
    points = quadrature(_SCREENING_STEPS, "left")
    return np.nan_to_num(linear_scores(model, workload, points, "acdc: screening").values)


def _prune(
    model: PatchableModel,
    workload: Workload,
    order: list[Edge],
    tau: float,
    options: Options,
    guess: Float[np.ndarray, "src dst"],
    journal: Journal | None,
) -> Pruned:
    topology, limit = model.topology, np.float32(tau)
    size = {"drop": lambda value: value, "absolute": abs}[options.change]
    kept = topology.possible.copy()
    drops = np.zeros((workload.pair_count, *kept.shape), np.float32)
    log, done = ArrayJournal(journal), 0
    stored = log.read()
    if stored:
        kept, done = stored["kept"], int(stored["done"])
        rows, columns = np.array(order[:done], dtype=np.intp).reshape(-1, 2).T
        drops[:, rows, columns] = stored["drops"]

    def keeps(drop: Float[np.ndarray, " pair"]) -> bool:
        return bool(size(np.float32(drop.mean())) >= limit)

    with (
        judge_of(model, workload) as judge,
        tqdm(total=len(order), desc="acdc", unit="edge", delay=1, leave=False) as bar,
    ):
        bar.update(done)

        def decided(decision: Decision) -> None:
            nonlocal done
            kept[decision.row, decision.column] = decision.kept
            if decision.drop is not None:
                drops[:, decision.row, decision.column] = decision.drop
            done += 1
            bar.update()
            if log.due:
                rows, columns = np.array(order[:done]).T
                log.write({"kept": kept, "done": np.array(done), "drops": drops[:, rows, columns]})

        work = prune_in_order(
            judge, topology, order[done:], keeps, size(guess) >= limit, reach_of(model), decided, kept.copy()
        )
    return Pruned(tau, kept, drops, work)

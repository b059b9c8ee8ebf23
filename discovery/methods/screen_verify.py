"""Attribution screens every edge, exact patching decides those whose rank is uncertain, and the rest keep a bound.

The bound comes from edges that are drawn at random and really patched: split conformal prediction (Vovk et al. 2005) on
|exact - screen|, by strata of the screen's own size, since larger scores are misjudged by more.

What an edge does when it alone is dropped is little where others make up for it, and a circuit without those others
needs it all the same. So that circuits themselves decide, on the scored pairs, by what edges are ranked: see `Order`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.evaluate import ask, curve_question
from discovery.measure import FlatMetric
from discovery.methods.eap_ig import Rule, quadrature
from discovery.methods.exact import edge_effects
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, linear_scores
from discovery.workload import Workload
from graphs.prune import SIZES, edge_count
from graphs.scores import EdgeScores
from graphs.topology import Topology

Order = Literal["auto", "exact", "larger", "screen"]
"""What ranks edges that were really patched: their exact score, the larger of the two, or the screen's; auto: whichever
gives the best circuits on the scored pairs (the smallest CMD)."""

_STRATA = 4
_ROUNDS = 5
_PAIRS_TO_RANK_BY = 128


@dataclass(frozen=True)
class Options:
    """How edges are screened and how many of them are really patched."""

    edges: int | None = None
    """Budget: how many edges are patched exactly; default a tenth of the graph's, at least 100."""
    seconds: float | None = None
    """Budget: about how long exact patching may take, judged by the random sample; excludes edges. Not reproducible."""
    circuit: int | None = None
    """The number of edges whose selection is to be sure; default: of all standard sizes."""
    confidence: float = 0.9
    """Share of the edges that were not patched whose exact score lies within their bound."""
    steps: int = 5
    """Steps of the screening integrated gradients (EAP-IG inputs)."""
    rule: Rule = "left"
    """Where they are taken; see method eap-ig."""
    order: Order = "auto"
    """What ranks edges that were patched."""
    seed: int = 0
    """Of the random sample."""

    def __post_init__(self) -> None:
        if self.edges is not None and self.seconds is not None:
            raise ValueError("method 'screen-verify': edges and seconds exclude each other; give one")
        for name in ("edges", "seconds", "circuit", "steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"method 'screen-verify': {name} must be more than 0, not {value}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"method 'screen-verify': confidence must lie between 0 and 1, not {self.confidence}")


def score(
    model: PatchableModel,
    workload: Workload,
    options: Options | None = None,
    on_batch: OnBatch | None = None,
    known: EdgeScores | None = None,
) -> EdgeScores:
    """Exact scores where `exact` says so, screened ones elsewhere, with a `bound` on |exact score - value| there.

    known: earlier scores of the same work, whose exact ones are not measured again and whose order is taken.
    Raises ValueError for metrics without a gradient.
    """
    options = options or Options()
    topology, rng = model.topology, np.random.default_rng(options.seed)
    verified = Verified(model, workload, options, on_batch is not None, known)
    budget = options.edges if options.edges is not None else default_budget(topology)
    everything = np.argwhere(topology.possible)
    first = min(len(everything), budget, max(20, budget // 4))
    start = time.monotonic()
    verified.patch(everything[np.sort(rng.permutation(len(everything))[:first])], sample=True)
    if options.seconds is not None:
        budget = int(first * options.seconds / max(time.monotonic() - start, 1e-3))
    for rounds_left in range(_ROUNDS, 0, -1):
        left = min(budget, len(everything)) - int(verified.exact.sum())
        if left <= 0:
            break
        uncertain = verified.uncertain(_cuts(topology, options))
        if not len(uncertain):
            break
        verified.patch(uncertain[: math.ceil(left / rounds_left)], sample=False)
    order, rank_by = _ranked(verified, _wanted_order(options, known))
    if on_batch is not None:
        verified.hand_out(on_batch, order)
    undecided = len(verified.uncertain(_cuts(topology, options)))
    facts = {
        "exact": int(verified.exact.sum()),
        "edges": topology.edge_count,
        "confidence": options.confidence,
        "largest_bound": float(np.max(verified.bound(), where=topology.possible, initial=0.0)),
        "uncertain": undecided,
        "order": order,
    }
    bound = np.where(topology.possible, verified.bound(), np.nan).astype(np.float32)
    return replace(verified.scores, exact=verified.exact, bound=bound, rank_by=rank_by, facts=facts)


def default_budget(topology: Topology) -> int:
    """Edges that are patched where no budget is given: a tenth of the graph's, at least 100."""
    return min(topology.edge_count, max(100, topology.edge_count // 10))


def _wanted_order(options: Options, known: EdgeScores | None) -> Order:
    return known.facts["order"] if options.order == "auto" and known is not None else options.order


def _ranked(verified: Verified, wanted: Order) -> tuple[Order, Float[np.ndarray, "src dst"] | None]:
    """The order that is used, and what ranks edges by it; None for the scores themselves."""
    orders: tuple[Order, ...] = ("exact", "larger", "screen")
    tables = [None if order == "exact" else verified.ranking(order) for order in orders]
    if wanted == "auto":
        best = int(np.argmin(verified.cmd(tables)))  # exact scores where all are as good
    else:
        best = orders.index(wanted)
    return orders[best], tables[best]


def _cuts(topology: Topology, options: Options) -> list[int]:
    """Sizes of circuits, as numbers of edges, that the ranking is to be sure of."""
    if options.circuit is not None:
        return [min(options.circuit, topology.edge_count)]
    return sorted({edge_count(topology, size) for size in SIZES} - {0, topology.edge_count})


class Verified:
    """The scores so far: which edges are exact, and what the random ones among them say of the others."""

    def __init__(
        self,
        model: PatchableModel,
        workload: Workload,
        options: Options,
        by_pair: bool,
        known: EdgeScores | None = None,
    ) -> None:
        """by_pair: whether pairs' own scores are kept. known: see `score`; not with by_pair."""
        self._model, self._workload, self._options = model, workload, options
        self._known = None if by_pair else known
        self._pieces: list[Float[Tensor, "pair src dst"]] = []
        self._patched: list[list[tuple[Bool[Tensor, "src dst"], Float[Tensor, "pair edge"]]]] = []
        keep = (lambda number, scores: self._pieces.append(scores.clone())) if by_pair else None
        points = quadrature(options.steps, options.rule)
        self.scores: EdgeScores = replace(
            linear_scores(model, workload, points, "screen-verify", keep), method="screen-verify"
        )
        self._screen: Float[np.ndarray, "src dst"] = self.scores.values
        self._sample: Bool[np.ndarray, "src dst"] = np.zeros_like(model.topology.possible)
        self.exact: Bool[np.ndarray, "src dst"] = np.zeros_like(model.topology.possible)
        """Edges that were really patched."""

    def patch(self, places: Int[np.ndarray, "edge 2"], sample: bool) -> None:
        """Scores some edges exactly. sample: whether they were drawn at random."""
        wanted = np.zeros_like(self.exact)
        wanted[tuple(places.T)] = True
        wanted &= ~self.exact
        if self._known is not None and self._known.exact is not None:
            self._put(self._known, wanted & self._known.exact)
        new = wanted & ~self.exact
        place = torch.from_numpy(new)
        self._patched.append([])

        def put(number: int, scores: Float[Tensor, "pair src dst"]) -> None:
            self._patched[-1].append((place, scores[:, place]))

        if new.any():
            self._put(edge_effects(self._model, self._workload, new, on_batch=put if self._pieces else None), new)
        if sample:
            self._sample |= wanted

    def _put(self, found: EdgeScores, places: Bool[np.ndarray, "src dst"]) -> None:
        """Takes exact scores at some places."""
        values = np.where(places, found.values, self.scores.values)
        stderr = None
        if self.scores.stderr is not None and found.stderr is not None:
            stderr = np.where(places, found.stderr, self.scores.stderr)
        self.scores = replace(self.scores, values=values, stderr=stderr)
        self.exact |= places

    def _by_screen(self, order: Order) -> Bool[np.ndarray, "src dst"]:
        """Which edges the screen ranks."""
        if order == "exact":
            return ~self.exact
        return ~self.exact | (order == "screen") | (np.abs(self._screen) >= np.abs(self.scores.values))

    def ranking(self, order: Order) -> Float[np.ndarray, "src dst"]:
        """What edges are ranked by."""
        return np.where(self._by_screen(order), self._screen, self.scores.values)

    def cmd(self, tables: Sequence[Float[np.ndarray, "src dst"] | None]) -> list[float]:
        """CMD of the circuits of all standard sizes, ranked by each table, on (some of) the scored pairs."""
        few: list[Batch] = []
        for batch in self._workload.batches:
            if few and sum(map(len, few)) + len(batch) > _PAIRS_TO_RANK_BY:
                break
            few.append(batch)
        asked = [
            curve_question(
                self._model.topology, replace(self.scores, rank_by=table), bootstrap=0, faithfulness_only=True
            )
            for table in tables
        ]
        try:
            curves = ask(self._model, replace(self._workload, batches=tuple(few)), asked)
        except FlatMetric:  # no edge does anything on these pairs: no order is better than another
            return [0.0] * len(tables)
        return [curve.cmd for curve in curves]

    def hand_out(self, on_batch: OnBatch, order: Order) -> None:
        """Every batch's own scores, as edges are ranked by them."""
        by_screen = torch.from_numpy(self._by_screen(order))
        for number, piece in enumerate(self._pieces):
            for batches in self._patched:
                if batches:
                    place, scores = batches[number]
                    use = ~by_screen[place]
                    piece[:, place & ~by_screen] = scores[:, use]
            on_batch(number, piece)

    def bound(self) -> Float[np.ndarray, "src dst"]:
        """By edge: the stratum's quantile of |exact - screen| over the random sample, 0 where exact.

        The quantile of n residuals at confidence c is their ceil((n + 1) c)-th smallest (the largest where there are too
        few), so that a new edge of the stratum lies within it with probability c.
        """
        size = np.abs(np.nan_to_num(self._screen))
        residuals = np.abs(self.scores.values - self._screen)
        drawn = np.sort(size[self._sample])
        edges = np.quantile(drawn, np.arange(1, _STRATA) / _STRATA) if len(drawn) >= 10 * _STRATA else []
        stratum = np.digitize(size, edges)
        bound = np.zeros(size.shape)
        for number in range(_STRATA):
            mine = np.sort(residuals[self._sample & (stratum == number)])
            if len(mine):
                rank = min(len(mine), math.ceil((len(mine) + 1) * self._options.confidence))
                bound[stratum == number] = mine[rank - 1]
        return np.where(self.exact, 0.0, bound)

    def uncertain(self, cuts: Sequence[int]) -> Int[np.ndarray, "edge 2"]:
        """Edges that a circuit of one of these sizes may hold or lack within their bounds, the least certain first."""
        possible = self._model.topology.possible
        strength = np.where(possible, np.abs(np.nan_to_num(self.scores.values)), -np.inf)
        ranked = np.sort(strength[possible])[::-1]
        bound = np.where(self.exact | ~possible, np.nan, self.bound())
        distance = np.full(strength.shape, np.inf)
        for cut in cuts:
            between = (ranked[cut - 1] + ranked[min(cut, len(ranked) - 1)]) / 2
            distance = np.fmin(distance, np.abs(strength - between) / np.maximum(bound, 1e-30))
        places = np.argwhere(distance <= 1)
        return places[np.argsort(distance[tuple(places.T)], kind="stable")]

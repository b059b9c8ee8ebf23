"""Attribution screens every edge, exact patching decides those whose rank is uncertain, and the rest keep a bound.

The bound comes from edges that are drawn at random and really patched: split conformal prediction (Vovk et al. 2005) on
|exact - screen|, by strata of the screen's own size, since larger scores are misjudged by more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.methods.eap_ig import Rule, quadrature
from discovery.methods.exact import edge_effects
from discovery.model import PatchableModel
from discovery.scoring import OnBatch, linear_scores
from discovery.workload import Workload
from graphs.prune import SIZES, edge_count
from graphs.scores import EdgeScores
from graphs.topology import Topology

_STRATA = 4
_ROUNDS = 5


@dataclass(frozen=True)
class Options:
    """How edges are screened and how many of them are really patched."""

    edges: int | None = None
    """Budget: how many edges are patched exactly; default a tenth of the graph's, at least 200."""
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
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """Exact scores where `exact` says so, screened ones elsewhere, with a `bound` on |exact score - value| there.

    Raises ValueError for metrics without a gradient.
    """
    options = options or Options()
    topology, rng = model.topology, np.random.default_rng(options.seed)
    verified = Verified(model, workload, options, on_batch is not None)
    budget = options.edges if options.edges is not None else max(200, topology.edge_count // 10)
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
    for number, piece in enumerate(verified.pieces):
        if on_batch is not None:
            on_batch(number, piece)
    undecided = len(verified.uncertain(_cuts(topology, options)))
    facts = {
        "exact": int(verified.exact.sum()),
        "edges": topology.edge_count,
        "confidence": options.confidence,
        "largest_bound": float(np.max(verified.bound(), where=topology.possible, initial=0.0)),
        "uncertain": undecided,
    }
    bound = np.where(topology.possible, verified.bound(), np.nan).astype(np.float32)
    return replace(verified.scores, exact=verified.exact, bound=bound, facts=facts)


def _cuts(topology: Topology, options: Options) -> list[int]:
    """Sizes of circuits, as numbers of edges, that the ranking is to be sure of."""
    if options.circuit is not None:
        return [min(options.circuit, topology.edge_count)]
    return sorted({edge_count(topology, size) for size in SIZES} - {0, topology.edge_count})


class Verified:
    """The scores so far: which edges are exact, and what the random ones among them say of the others."""

    def __init__(self, model: PatchableModel, workload: Workload, options: Options, by_pair: bool) -> None:
        self._model, self._workload, self._options = model, workload, options
        self.pieces: list[Float[Tensor, "pair src dst"]] = []
        """Every batch's own scores, where they are asked for."""
        keep = (lambda number, scores: self.pieces.append(scores.clone())) if by_pair else None
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

        def put(number: int, scores: Float[Tensor, "pair src dst"]) -> None:
            self.pieces[number][:, torch.from_numpy(wanted)] = scores[:, torch.from_numpy(wanted)]

        found = edge_effects(self._model, self._workload, wanted, on_batch=put if self.pieces else None)
        values = np.where(wanted, found.values, self.scores.values)
        stderr = None
        if self.scores.stderr is not None and found.stderr is not None:
            stderr = np.where(wanted, found.stderr, self.scores.stderr)
        self.scores = replace(self.scores, values=values, stderr=stderr)
        self.exact |= wanted
        if sample:
            self._sample |= wanted

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

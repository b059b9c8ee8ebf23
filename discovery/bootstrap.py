"""The scores that bootstrap resamples of the pairs would have given, added up while a method scores the pairs once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.batch_pieces import take
from discovery.distributed import summed
from discovery.memory import RESAMPLES_BYTES
from discovery.statistics import resample_counts
from discovery.workload import Workload
from graphs.topology import Topology

_PAIRS = 8
"""Pairs that are taken in at a time: the copy of their scores without impossible edges must stay small."""


def resampled(workload: Workload, counts: Int[np.ndarray, " pair"]) -> Workload:
    """A resample of the pairs as a workload of its own: each pair (in the order of the batches) as often as `counts` says.

    A pair that was drawn several times stands in several batches. What was measured for the ablation stays.
    """
    drawn: list[Batch] = []
    owned = np.split(counts, np.cumsum([len(batch) for batch in workload.batches])[:-1])
    for least in range(1, int(counts.max()) + 1):
        for batch, times in zip(workload.batches, owned, strict=True):
            pairs = np.flatnonzero(times >= least)
            if len(pairs):
                drawn.append(batch if len(pairs) == len(batch) else take(batch, torch.from_numpy(pairs)))
    return replace(workload, batches=tuple(drawn))


class Resamples:
    """Mean scores of every resample, from the pairs' own scores: a table [resample edge] over the possible edges, or
    [resample node] for methods that score nodes.

    `add` is what methods call after each batch. A resample draws as many pairs as there are, with replacement; how the
    pairs are cut into batches changes nothing.
    """

    def __init__(self, topology: Topology, workload: Workload, count: int, seed: int) -> None:
        """count: number of resamples; fewer are made where their tables would take more than 256 MiB, but at least two."""
        self._possible = torch.from_numpy(topology.possible)
        self._workload = workload
        self._seen = 0
        count = min(count, max(2, RESAMPLES_BYTES // (4 * topology.edge_count)))
        pairs = workload.pair_count
        self._weights = torch.from_numpy(resample_counts(pairs, count, seed) / pairs).float()
        self._tables: Tensor | None = None
        indices = [index for batch in workload.batches for index in batch.indices]
        self._place = {index: place for place, index in enumerate(sorted(set(indices)))}
        if len(self._place) != pairs:
            raise ValueError("pairs cannot be resampled: some have the same number")

    def add(self, number: int, scores: Float[Tensor, "pair src *dst"]) -> None:
        """Takes in the scores of a batch's pairs: [pair src dst], or [pair src] of nodes."""
        places = [self._place[index] for index in self._workload.batches[number].indices]
        for start in range(0, len(places), _PAIRS):
            some = scores[start : start + _PAIRS]
            flat = (some if some.ndim == 2 else some[:, self._possible]).float().cpu()
            if self._tables is None:
                self._tables = flat.new_zeros(len(self._weights), flat.shape[1])
            self._tables.addmm_(self._weights[:, places[start : start + _PAIRS]], flat)
        self._seen += len(places)

    def tables(self) -> Float[np.ndarray, "resample place"] | None:
        """The means over the pairs of all processes; None where the method did not give every pair's own scores."""
        if int(summed(torch.tensor(self._seen))) != self._workload.pair_count or self._tables is None:
            return None
        return summed(self._tables).numpy()

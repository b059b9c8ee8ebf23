"""Exact activation patching of edges: every edge is dropped on its own in a real run of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.distributed import own_batches
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.scoring import OnBatch, PairMoments
from discovery.workload import Workload
from graphs.scores import EdgeScores
from graphs.topology import Topology

# All edges but one are kept, so a run holds little more than a layer of the model's own (an MLP's width, a few slots).
_VECTORS_PER_TOKEN = 12


@dataclass(frozen=True)
class Options:
    """How the work is cut up; the scores do not depend on it."""

    edges_per_run: int | Literal["auto"] = "auto"
    """Edges dropped side by side in one run of the model; auto: as many as an estimate of memory allows."""

    def __post_init__(self) -> None:
        if self.edges_per_run != "auto" and self.edges_per_run < 1:
            raise ValueError(f"method 'exact': edges_per_run must be auto, or 1 or more, not {self.edges_per_run}")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> EdgeScores:
    """m(full) - m(edge dropped) for every possible edge, mean over pairs. Works with every metric and ablation."""
    return edge_effects(model, workload, model.topology.possible, options, on_batch)


def edge_effects(
    model: PatchableModel,
    workload: Workload,
    wanted: Bool[np.ndarray, "src dst"],
    options: Options | None = None,
    on_batch: OnBatch | None = None,
) -> EdgeScores:
    """The same for some edges alone; the others score 0."""
    options = options or Options()
    moments, own = PairMoments(model.topology), own_batches(workload)
    total = int(wanted.sum()) * len(own)
    with tqdm(total=total, desc="exact", unit="edge", delay=1, leave=False) as bar:
        for number, batch in own:
            scores = _batch_scores(model, workload, batch, wanted, options, bar)
            moments.add(scores)
            if on_batch is not None:
                on_batch(number, scores)
    moments.join()
    return moments.scores("exact")


def _batch_scores(
    model: PatchableModel,
    workload: Workload,
    batch: Batch,
    wanted: Bool[np.ndarray, "src dst"],
    options: Options,
    bar: tqdm,
) -> Float[Tensor, "pair src dst"]:
    topology, metric = model.topology, workload.metric
    full, logits = full_metric(model, batch, metric)
    size = options.edges_per_run
    if size == "auto":
        size = auto_masks_per_run(batch, logits, _VECTORS_PER_TOKEN)
    scores = torch.zeros(len(batch), *topology.possible.shape)
    for rows, columns in edge_groups(topology, size, wanted):
        keep = all_but_one(topology, rows, columns)
        dropped = patched_metric(model, batch, metric, keep, workload.ablation, logits, size)
        scores[:, rows, columns] = (full - dropped).T.float()
        bar.update(len(rows))
    return scores


def edge_groups(
    topology: Topology, size: int, wanted: Bool[np.ndarray, "src dst"] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of all possible edges (or of the wanted ones), at most `size` at a time, ordered by where they end.

    A group ends in one layer's attention, one MLP or the logits, so that its runs restart as late as they can.
    """
    edges = topology.possible if wanted is None else topology.possible & wanted
    columns, rows = np.nonzero(edges.T)  # by column, that is by the order in which the slots read

    def place(edge: int) -> tuple[int | None, str]:
        node = topology.targets[columns[edge]].node
        return node.layer, node.kind

    for _, members in groupby(range(len(rows)), key=place):
        group = np.fromiter(members, dtype=np.intp)
        for start in range(0, len(group), size):
            some = group[start : start + size]
            yield rows[some], columns[some]


def all_but_one(topology: Topology, rows: np.ndarray, columns: np.ndarray) -> Bool[np.ndarray, "mask src dst"]:
    """For each edge the mask that keeps every possible edge but this one."""
    keep = np.repeat(topology.possible[None], len(rows), axis=0)
    keep[np.arange(len(rows)), rows, columns] = False
    return keep

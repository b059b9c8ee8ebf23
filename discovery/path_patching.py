"""Path patching (Wang et al. 2022, Goldowsky-Dill et al. 2023): what one path through the model does, and nothing else.

The path's first edge carries its source's value on the other prompt. Every node of the path is computed from that, and
what changes of it goes on along the path's next edge alone: every other slot reads what it reads in the untouched run. A
path that ends before the logits sets its last slot, and from there everything follows as in the model: the sender's direct
effect on its receiver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.heat_map import Direction
from discovery.measure import FlatMetric
from discovery.patch_donors import check_ablation, nothing_kept
from discovery.pruning_plan import changed_by
from discovery.pruning_run import PruningRun
from discovery.recording import session
from discovery.statistics import rounding_noise
from discovery.workload import Workload
from graphs.node import EdgeId, NodeId, Slot
from graphs.topology import Topology


class BadPath(ValueError):
    """A path that the model's graph does not have."""


@dataclass(frozen=True)
class Path:
    """Edges, each of which ends at the node that the next one leaves."""

    edges: tuple[EdgeId, ...]
    """At least one, in the order of reading. A shared key or value slot goes on through every head that reads it."""

    def __str__(self) -> str:
        return "->".join([str(self.edges[0].source), *(str(edge.slot) for edge in self.edges)])

    @staticmethod
    def parse(text: str) -> Path:
        """The path that `text` names, such as `a0.h1->a2.h0<q>->logits`. Raises BadPath naming the text."""
        names = text.split("->")
        if len(names) < 2:
            raise BadPath(
                f"{text!r} is no path: write it as source->slot->...->logits, such as a0.h1->a2.h0<q>->logits"
            )
        try:
            source, slots = NodeId.parse(names[0]), [Slot.parse(name) for name in names[1:]]
        except ValueError as error:
            raise BadPath(f"path {text!r}: {error}") from None
        edges = []
        for slot in slots:
            edges.append(EdgeId(source, slot.node, slot.port))
            source = slot.node
        return Path(tuple(edges))


@dataclass(frozen=True)
class PathEffect:
    """What patching one path does."""

    path: str
    """The path."""
    metric: float
    """The metric with the path patched, mean over pairs."""
    effect: float
    """Noising: by how much the metric falls; denoising: by how much it rises. Mean over pairs."""
    stderr: float | None
    """Standard error of the effect over pairs; None for a single pair."""
    share: float
    """The effect as a share of the gap between the clean and the corrupt run's metric."""


@dataclass(frozen=True)
class PathPatching:
    """All paths' effects, and the two runs between which they lie."""

    metric: str
    """The metric's name."""
    direction: Direction
    """noising: values of the corrupt prompt into the clean run; denoising: the other way round."""
    clean: float
    """Mean metric of the clean run."""
    corrupt: float
    """Mean metric of the corrupt run (under another ablation, of the run with every edge ablated)."""
    pairs: int
    """Number of pairs."""
    paths: tuple[PathEffect, ...]
    """In the order asked for."""

    def to_json(self) -> dict[str, Any]:
        """As patch.json holds it."""
        return {**vars(self), "paths": [vars(path) for path in self.paths]}


def patch_paths(
    model: ComponentModel, workload: Workload, paths: Sequence[Path], direction: Direction = "noising"
) -> PathPatching:
    """Patches every path on its own, on all pairs.

    noising: the path's source has its ablated value, in the clean run; denoising: its clean value, in the run that gives
    ablated ones. Raises BadPath for an edge that the graph lacks, ValueError for denoising where there is no such run (an
    ablation by constants, prompts of unequal length), FlatMetric when the metric is the same on clean and corrupt prompts.
    """
    if not workload.pair_count or not paths:
        raise ValueError("path patching needs at least one pair of prompts and one path")
    check_ablation(workload.ablation, direction, "paths")
    swapped = workload.ablation.kind == "counterfactual"
    if direction == "denoising" and swapped and any(batch.corrupt_mask is not None for batch in workload.batches):
        raise ValueError(
            "denoising needs clean and corrupt prompts of equal length: leave the others out, or use noising"
        )
    reach = changed_by(model.topology, any(block.coupled for block in model.blocks))
    masks, flow = _masks(model.topology, paths, reach)
    found = []
    with tqdm(total=workload.pair_count, desc="paths", unit="pair", delay=1, leave=False) as bar:
        for batch in workload.batches:
            found.append(_patched(model, batch, workload, masks, flow, direction))
            bar.update(len(batch))
    values = torch.cat(found, 1).numpy()  # base, other, each path
    base, other, patched = values[0], values[1], values[2:]
    clean, corrupt = (base, other) if direction == "noising" else (other, base)
    if abs(base.mean() - other.mean()) <= rounding_noise(base, other):
        raise FlatMetric(
            f"metric {workload.metric.name!r} is {clean.mean():.6g} on the clean and on the corrupt prompts, "
            "so a path's effect is a share of nothing: use prompts whose corruption changes the answer, or another metric"
        )
    effects = tuple(_effect(str(path), mine, base, other, direction) for path, mine in zip(paths, patched, strict=True))
    return PathPatching(
        workload.metric.name, direction, float(clean.mean()), float(corrupt.mean()), workload.pair_count, effects
    )


def _masks(
    topology: Topology, paths: Sequence[Path], reach: tuple[tuple[int, ...], ...]
) -> tuple[Bool[np.ndarray, "path src dst"], Bool[np.ndarray, "path src dst"]]:
    """For every path what its run keeps, and the edges along which changes go on.

    reach: see `discovery.pruning_plan.changed_by`.
    """
    keep = np.repeat(topology.possible[None], len(paths), axis=0)
    flow = np.zeros_like(keep)
    for place, path in enumerate(paths):
        rows: tuple[int, ...] = ()
        column = None
        for step, edge in enumerate(path.edges):
            column = topology.target_index.get(edge.slot)
            if step == 0 and edge.source in topology.source_index:
                rows = (topology.source_index[edge.source],)
            if column is None or not rows or not topology.possible[list(rows), column].all():
                raise BadPath(f"path {path}: {edge} is not an edge of this model")
            if step == 0:
                keep[place, rows, column] = False
            else:
                flow[place, rows, column] = True
            rows = topology.feeds[column]  # several for a key/value head that several heads share
        if column is not None and rows:
            flow[place] |= topology.possible & _follows(topology, reach, column)[:, None]
    return keep, flow


def _follows(topology: Topology, reach: tuple[tuple[int, ...], ...], slot: int) -> Bool[np.ndarray, " src"]:
    """Sources that a change of one slot can change."""
    reached = np.zeros(len(topology.sources), dtype=bool)
    for column, changed in enumerate(reach):
        if column == slot or np.any(reached & topology.possible[:, column]):
            reached[list(changed)] = True
    return reached


def _patched(
    model: ComponentModel,
    batch: Batch,
    workload: Workload,
    masks: Bool[np.ndarray, "mask src dst"],
    flow: Bool[np.ndarray, "mask src dst"],
    direction: Direction,
) -> Float[torch.Tensor, "run pair"]:
    """The metric of the base run, of the other one, and of every path; float64, on the CPU."""
    metric, denoise = workload.metric, direction == "denoising"
    clean, ablated = model.full_logits(batch), nothing_kept(model, batch, workload.ablation)
    logits, other = (ablated, clean) if denoise else (clean, ablated)
    state = model.pruning_state(batch, workload.ablation, denoise)
    moved = batch.to(logits.device)

    def measured(logits: torch.Tensor) -> torch.Tensor:
        return metric.compute(logits, moved, clean if metric.needs_reference else None).cpu().double()

    pieces = []
    with session(model.hf, model.arch, model.blocks), torch.no_grad():
        for keep, onward in zip(masks, flow, strict=True):
            run = PruningRun(state, keep[None], onward[None])
            pieces.append(measured(model.unembed(run.final_stream())[0] if run.reaches_logits else logits))
    return torch.stack([measured(logits), measured(other), *pieces])


def _effect(
    path: str,
    patched: Float[np.ndarray, " pair"],
    base: Float[np.ndarray, " pair"],
    other: Float[np.ndarray, " pair"],
    direction: Direction,
) -> PathEffect:
    change = base - patched if direction == "noising" else patched - base
    gap = base.mean() - other.mean() if direction == "noising" else other.mean() - base.mean()
    stderr = float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else None
    return PathEffect(path, float(patched.mean()), float(change.mean()), stderr, float(change.mean() / gap))

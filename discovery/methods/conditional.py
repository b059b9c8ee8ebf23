"""Second-order scores: what each node does once the strongest heads are gone, which shows backups (Wang et al. 2022).

A backup head hardly matters as long as the heads that it stands in for work: first-order scores pass over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.methods import METHODS, method
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.scoring import Moments, OnBatch
from discovery.workload import Workload
from graphs.node_scores import NodeScores
from graphs.topology import Topology

_VECTORS_PER_TOKEN = 12
_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Options:
    """Which heads are taken away, and what counts as a backup."""

    base: str = "eap-ig"
    """The method that says which heads are strongest (any other method, with its default options)."""
    heads: int = 3
    """How many of the strongest heads are ablated (all of them where the graph has fewer)."""
    least: float = 0.01
    """A backup's effect grows by at least this share of the metric's gap between all edges and none."""

    def __post_init__(self) -> None:
        if self.base == "conditional" or self.base not in METHODS:
            known = ", ".join(name for name in METHODS if name != "conditional")
            raise ValueError(f"method 'conditional': base must be another method ({known}), not {self.base!r}")
        if self.heads < 1:
            raise ValueError(f"method 'conditional': heads must be 1 or more, not {self.heads}")
        if not self.least >= 0:
            raise ValueError(f"method 'conditional': least must be 0 or more, not {self.least}")


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> NodeScores:
    """By node, what the metric loses when all its edges are dropped besides those of the strongest heads; mean over pairs.

    The ablated heads themselves keep their effect on the whole model. `facts` name them, and the backups: nodes whose effect
    is larger than it was, by `least` and by two standard errors. Real runs: two for every node and batch. Every metric
    that the base method takes, and every ablation.
    """
    options = options or Options()
    topology = model.topology
    gone = strongest_heads(model, workload, options)
    alone, after, growth, gaps = Moments(), Moments(), Moments(), []
    total = (2 * len(topology.sources) + 2) * len(workload.batches)
    with tqdm(total=total, desc="conditional", unit="run", delay=1, leave=False) as bar:
        for number, batch in enumerate(workload.batches):
            single, without, gap = _effects(model, workload, batch, gone, bar)
            kept = torch.where(torch.from_numpy(gone), single, without).float()
            alone.add(single)
            after.add(kept)
            growth.add(kept - single)
            gaps.append(gap)
            if on_batch is not None:
                on_batch(number, kept)
    found = NodeScores(topology, np.asarray(after.mean(), np.float32), "conditional", _table(after.stderr()))
    enough = options.least * abs(float(torch.cat(gaps).mean()))
    names, first, grown, spread = topology.source_names, alone.mean(), growth.mean(), growth.stderr()
    places = [row for row in np.argsort(-np.abs(found.values)).tolist() if not gone[row]]
    backups = [
        {"name": names[row], "alone": float(first[row]), "conditional": float(found.values[row])}
        for row in places
        if grown[row] >= max(enough, 0.0 if spread is None else _SURE * float(spread[row]))
        and found.values[row] > abs(first[row])
    ]
    return replace(found, facts={"ablated": [names[row] for row in np.flatnonzero(gone)], "backups": backups})


def _table(values: Float[np.ndarray, " src"] | None) -> Float[np.ndarray, " src"] | None:
    return None if values is None else np.asarray(values, np.float32)


def strongest_heads(model: PatchableModel, workload: Workload, options: Options) -> Bool[np.ndarray, " src"]:
    """True at the heads (without heads: the nodes) whose scores by the base method are largest.

    Of edge scores, the sum over what the node writes to.
    """
    line = method(options.base)
    scores = line.load().score(model, workload, line.options({}))
    values = scores.values if isinstance(scores, NodeScores) else np.nan_to_num(scores.values).sum(1)
    heads = [row for row, node in enumerate(model.topology.sources) if node.kind == "head"]
    if not heads:  # a feature graph whose attention is wiring: its strongest nodes, then
        heads = [row for row, slots in enumerate(model.topology.slots_of) if slots]
    gone = np.zeros(len(values), dtype=bool)
    gone[sorted(heads, key=lambda row: -abs(float(values[row])))[: options.heads]] = True
    return gone


def _effects(
    model: PatchableModel, workload: Workload, batch: Batch, gone: Bool[np.ndarray, " src"], bar: tqdm
) -> tuple[Float[Tensor, "pair src"], Float[Tensor, "pair src"], Float[Tensor, " pair"]]:
    """Every node's effect on the whole model and without some heads, and the metric's gap; of each pair."""
    full, logits = full_metric(model, batch, workload.metric)
    size = auto_masks_per_run(batch, logits, _VECTORS_PER_TOKEN)

    def run(masks: Bool[np.ndarray, "mask src dst"]) -> Float[Tensor, "mask pair"]:
        values = patched_metric(model, batch, workload.metric, masks, workload.ablation, logits, size)
        bar.update(len(masks))
        return values

    possible = model.topology.possible
    rest = possible & ~gone[:, None]
    single = full - run(_without_each(model.topology, possible))
    left, nothing = run(np.stack([rest, np.zeros_like(rest)]))
    without = left - run(_without_each(model.topology, rest))
    return single.T, without.T, full - nothing


def _without_each(topology: Topology, kept: Bool[np.ndarray, "src dst"]) -> Bool[np.ndarray, "mask src dst"]:
    """For each source the mask that lacks its edges."""
    masks = np.repeat(kept[None], len(topology.sources), axis=0)
    every = np.arange(len(topology.sources))
    masks[every, every] = False
    return masks

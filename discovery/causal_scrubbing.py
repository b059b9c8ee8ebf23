"""Causal scrubbing (Chan et al. 2022): a hypothesis says which edges matter and which prompts are alike to them.

The hypothesis is a circuit and a grouping of prompts. Every edge of the circuit then carries its source's value on a random
prompt of the same group, computed the same way all the way up; the other edges of a slot carry what their sources are in
the untouched run on one random other prompt. A true hypothesis keeps the metric. Slots are nodes here: a head's query,
key and value draw on their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from discovery.ablation import ZERO
from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.measure import FlatMetric
from discovery.patched_metric import auto_masks_per_run, full_metric
from discovery.recording import session
from discovery.scrubbed_run import Draw, Drawn, Pool, ScrubbedRun, make_pool, of_equal_length, other_prompts
from discovery.statistics import faithfulness, faithfulness_interval, rounding_noise
from discovery.workload import Workload
from graphs.circuit import Circuit


@dataclass(frozen=True)
class Settings:
    """How often is drawn."""

    samples: int = 10
    """Draws for every pair; their metric is averaged."""
    bootstrap: int = 1000
    """Resamples of the pairs for the interval, 0 for none."""
    seed: int = 0
    """Of the draws and the bootstrap."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"causal scrubbing: samples must be at least 1, not {self.samples}")


@dataclass(frozen=True)
class Scrubbed:
    """What is left of the metric when everything is resampled that the hypothesis calls irrelevant."""

    recovered: float
    """(scrubbed - random) / (full - random), of means over pairs; 1 = as the untouched model."""
    low: float | None
    """Lower end of the bootstrap interval over pairs; None where there was none."""
    high: float | None
    """Upper end."""
    scrubbed: float
    """Mean metric under the hypothesis."""
    full: float
    """Mean metric of the untouched model."""
    random: float
    """Mean metric when the logits are those of a random other prompt of as many tokens."""
    pairs: int
    """Pairs that this is about."""
    alone: int
    """Pairs left out, since no other prompt of their batch has as many tokens."""
    alike: float
    """Prompts that a kept edge's value may come from, itself among them: mean over pairs. 1: the grouping says nothing."""

    def to_json(self) -> dict[str, Any]:
        """As the result's file holds it."""
        return dict(vars(self))


def scrub(
    model: ComponentModel,
    workload: Workload,
    circuit: Circuit,
    groups: Mapping[int, Hashable] | None = None,
    settings: Settings | None = None,
) -> Scrubbed:
    """Tests the hypothesis on the clean prompts of a workload; its ablation does not matter.

    groups: for each pair (its number in the task) what its group is known by; None: every prompt is alike to itself alone,
    and only dropped edges are resampled. Prompts are drawn from the same batch, among those with as many tokens. Raises
    ValueError for graphs with features or spans, answers of several tokens, and where no prompt can be resampled; FlatMetric
    where the untouched model does no better on its own prompt than on a random one.
    """
    settings = settings or Settings()
    if type(model) is not ComponentModel:
        raise ValueError("causal scrubbing works on graphs of heads and MLPs: leave out features and spans")
    found = []
    with tqdm(total=len(workload.batches), desc="scrub", unit="batch", delay=1, leave=False) as bar:
        for number, batch in enumerate(workload.batches):
            found.append(_scrub_batch(model, batch, workload, circuit, groups, settings, number))
            bar.update()
    scrubbed, full, random, alike = np.concatenate(found, axis=1)
    some = ~np.isnan(alike)
    if not some.any():
        raise ValueError("causal scrubbing needs prompts of equal length: every prompt's number of tokens is its own")
    pieces = scrubbed[some], full[some], random[some]
    return _result(*pieces, int((~some).sum()), float(alike[some].mean()), workload, settings)


def _result(
    scrubbed: Float[np.ndarray, " pair"],
    full: Float[np.ndarray, " pair"],
    random: Float[np.ndarray, " pair"],
    alone: int,
    alike: float,
    workload: Workload,
    settings: Settings,
) -> Scrubbed:
    if not abs(full.mean() - random.mean()) > rounding_noise(full, random):
        raise FlatMetric(
            f"metric {workload.metric.name!r} is {full.mean():.6g} on the prompts and {random.mean():.6g} with the logits of "
            "random ones, so nothing can be recovered: use prompts with different answers, or another metric"
        )
    low = high = None
    if settings.bootstrap:
        ends = faithfulness_interval(scrubbed[None], full, random, settings.bootstrap, settings.seed)
        low, high = (float(end[0]) for end in ends)
    mine, whole, none = (float(values.mean()) for values in (scrubbed, full, random))
    share = float(faithfulness(np.array([mine]), whole, none)[0])
    return Scrubbed(share, low, high, mine, whole, none, len(full), alone, alike)


def _scrub_batch(
    model: ComponentModel,
    batch: Batch,
    workload: Workload,
    circuit: Circuit,
    groups: Mapping[int, Hashable] | None,
    settings: Settings,
    number: int,
) -> Float[np.ndarray, "4 pair"]:
    """Scrubbed, full and random metric of every pair, and how many prompts are alike (NaN where none can be drawn)."""
    _check_rows(batch)
    alike, others = alike_prompts(batch, groups), other_prompts(batch)
    draw = draws(circuit, make_pool(alike), make_pool(others), settings.samples, (settings.seed, number))
    full, logits = full_metric(model, batch, workload.metric)
    reference = logits if workload.metric.needs_reference else None
    moved = batch.to(logits.device)
    size = auto_masks_per_run(batch, logits, len(model.topology.sources) + 1)
    sums = torch.zeros(2, len(batch), dtype=torch.float64)
    read_of_row = torch.argsort(batch.read_row)
    state = model.pruning_state(batch, ZERO)
    with session(model.hf, model.arch, model.blocks), torch.no_grad():
        for start in range(0, settings.samples, size):
            some = slice(start, start + size)
            drawn = torch.from_numpy(draw(len(model.topology.targets) - 1).dropped[some])
            run = ScrubbedRun(state, circuit.kept, len(drawn), _part(draw, some))
            found = model.unembed(run.final_stream())
            elsewhere = logits[read_of_row[drawn[:, batch.read_row]].to(logits.device)]
            for place, values in enumerate((found, elsewhere)):
                metric = workload.metric.compute(values, moved, reference)
                sums[place] += metric.sum(0).cpu().double()
    order = batch.row_pair.argsort().cpu().numpy()
    counts = np.where(others.any(1), alike.sum(1), np.nan)[order]
    scrubbed, random = (sums / settings.samples).numpy()
    return np.stack([scrubbed, full.numpy(), random, counts])


def _check_rows(batch: Batch) -> None:
    """Donors stand in for whole rows, so that a row must be a prompt and nothing else."""
    rows, width = batch.clean.shape
    if not rows == len(batch) == len(batch.read_row) or bool((batch.read_column != width - 1).any()):
        raise ValueError("causal scrubbing works on answers of one token: shorten the answers, or use another test")


def alike_prompts(batch: Batch, groups: Mapping[int, Hashable] | None) -> Bool[np.ndarray, "row other"]:
    """Which prompts of a batch a kept edge's value may come from: those of the same group with as many tokens."""
    if groups is None:
        return np.eye(len(batch), dtype=bool)
    numbers: dict[Hashable, int] = {}
    keys = [groups[batch.indices[pair]] for pair in batch.row_pair.tolist()]
    known = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    return of_equal_length(batch) & (known[:, None] == known[None, :])


def draws(circuit: Circuit, alike: Pool, others: Pool, samples: int, seed: tuple[int, ...]) -> Draw:
    """What is drawn for each slot; the same whenever it is asked for."""

    @cache
    def draw(slot: int) -> Drawn:
        rng = np.random.default_rng([*seed, slot])
        dropped = others.draw(rng, samples)
        return Drawn(alike.draw(rng, int(circuit.kept[:, slot].sum()), samples), dropped)

    return draw


def _part(draw: Draw, some: slice) -> Draw:
    """Some of the samples."""

    def part(slot: int) -> Drawn:
        drawn = draw(slot)
        return Drawn(drawn.kept[:, some], drawn.dropped[some])

    return part

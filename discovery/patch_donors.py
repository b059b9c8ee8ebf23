"""The two runs of node patching, by ablation: the untouched one, and the one that has ablated values at every site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.embedding_noise import noisy_embeddings
from discovery.heat_map import Direction, Site
from discovery.patch_passes import Passes
from discovery.recording import session
from discovery.resampling import with_donors
from discovery.span_places import numbered, renumbered
from discovery.turned_batch import turn_round
from discovery.workload import Workload

Values = Mapping[tuple[Site, int], Tensor]
"""By site and layer, [row pos width]."""


def check_ablation(ablation: Ablation, direction: Direction, what: Literal["nodes", "paths"]) -> None:
    """Raises ValueError where there is no run of ablated values to patch clean ones into, or no value for every node."""
    if what == "nodes" and ablation.kind == "optimal":
        raise ValueError(
            "ablation 'optimal' has constants for heads and MLPs alone: patch nodes with mean, or a path (--path)"
        )
    if direction == "denoising" and not ablation.still:
        raise ValueError(
            f"denoising puts clean values into a run with ablated ones, and under ablation {ablation.kind!r} there is no such "
            f"run: use --direction noising for {what}, or ablation counterfactual, resample or noise"
        )


def with_prompts(batch: Batch, ablation: Ablation) -> Batch:
    """The batch whose corrupt prompts are those that the ablation runs. Raises ValueError where they cannot be patched in."""
    batch = batch if ablation.donors is None else with_donors(batch, ablation.donors)
    if ablation.swaps_prompts and batch.corrupt_mask is not None:
        raise ValueError("patching swaps values between clean and corrupt prompts: these must have equally many tokens")
    return batch


@contextlib.contextmanager
def ablated_prompts(model: ComponentModel, batch: Batch, ablation: Ablation) -> Iterator[Int[Tensor, "row pos"]]:
    """The tokens of the run that gives ablated values, with noise on their embeddings where the ablation is noise."""
    if ablation.noise is None:
        yield batch.corrupt
        return
    with noisy_embeddings(model.hf, batch, ablation.noise):
        yield batch.clean


@dataclass
class SiteMeans:
    """Means of every site's value over a task's corrupt prompts, real tokens only."""

    ablation: Ablation
    """mean: over all positions; mean-positional: by position; mean-span: by span."""
    sums: dict[tuple[Site, int], Tensor] = field(default_factory=dict)
    counts: Tensor | None = None

    def add(self, batch: Batch, values: Values) -> None:
        """Takes in a pass over the corrupt prompts. batch: as it is, not turned round."""
        mask, positions = batch.corrupt_places
        if self.ablation.kind == "mean-span":
            if batch.corrupt_spans is None:
                raise ValueError("ablation 'mean-span' needs the spans of the corrupt prompts, too")
            index = renumbered(batch.corrupt_spans, batch.span_names, self.ablation.span_names)
            mask = mask & (index >= 0)
        else:
            index = positions if self.ablation.kind == "mean-positional" else torch.zeros_like(positions)
        places = index[mask]
        counts = torch.bincount(places)
        self.counts = counts if self.counts is None else _longer(self.counts, counts)
        for key, value in values.items():
            there = value[mask.to(value.device)].double()
            sums = there.new_zeros(len(counts), there.shape[-1]).index_add_(0, places.to(there.device), there)
            self.sums[key] = sums if key not in self.sums else _longer(self.sums[key], sums)

    def values(self, batch: Batch, like: Values) -> dict[tuple[Site, int], Tensor]:
        """The means at a batch's clean prompts. A position that no corrupt prompt had takes the last that one had."""
        assert self.counts is not None, "no pass was added"
        if self.ablation.kind == "mean-span":
            index = numbered(batch, self.ablation.span_names)
        else:
            index = batch.positions if self.ablation.kind == "mean-positional" else torch.zeros_like(batch.positions)
        index, counts = index.clamp(0, len(self.counts) - 1), self.counts.clamp(min=1)
        found = {}
        for key, value in like.items():
            means = self.sums[key] / counts.to(self.sums[key].device).unsqueeze(1)
            found[key] = means[index.to(means.device)].to(value)
        return found


def site_means(model: ComponentModel, workload: Workload) -> SiteMeans | None:
    """The means that a workload's ablation asks for; None where it asks for none."""
    if workload.ablation.means is None:
        return None
    means = SiteMeans(workload.ablation)
    with session(model.hf, model.arch, ()):
        for batch in tqdm(workload.batches, desc="means", unit="batch", leave=False, delay=1):
            other = turn_round(batch).to(model.device)
            means.add(batch.to(model.device), Passes(model, other).record(other.clean).values)
    return means


@dataclass(frozen=True, eq=False)
class Constants:
    """Ablated values that belong to no run."""

    means: SiteMeans | None
    """None: zeros."""
    logits: Float[Tensor, "read vocab"]
    """Of the batch at hand with every edge ablated."""

    def values(self, batch: Batch, like: Values) -> Values:
        """At the batch's clean prompts."""
        if self.means is None:
            return {key: torch.zeros_like(value) for key, value in like.items()}
        return self.means.values(batch, like)


def nothing_kept(model: ComponentModel, batch: Batch, ablation: Ablation) -> Float[Tensor, "read vocab"]:
    """Logits with every edge ablated."""
    with torch.no_grad():
        return model.run(batch, torch.zeros(model.topology.possible.shape), ablation)


def _longer(a: Float[Tensor, "some ..."] | Int[Tensor, " some"], b: Tensor) -> Tensor:
    """The sum of two tables of which one may have more rows."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer

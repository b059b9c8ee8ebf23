"""Node patching as heat maps: activation patching (Meng et al. 2022, Zhang and Nanda 2024) and attribution patching.

Plain forward hooks on the untouched model. Many cells share one forward pass: the batch is repeated, and each copy has
its own cell replaced. Passes start at the first layer that a cell of theirs touches, from the recorded residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.heat_map import SITES, Direction, NodePatching, PatchMethod, Site
from discovery.measure import FlatMetric
from discovery.patch_donors import (
    Constants,
    ablated_prompts,
    check_ablation,
    nothing_kept,
    site_means,
    with_prompts,
)
from discovery.patch_grid import Cell, Grid, columns_of, prompt_lengths
from discovery.patch_passes import Passes, Seen, Visit
from discovery.patched_metric import auto_masks_per_run
from discovery.recording import session
from discovery.scoring import require_gradient
from discovery.workload import Workload

_VECTORS_PER_TOKEN = 12  # a pass holds little more than a layer of the model's own


def patch_nodes(
    model: ComponentModel,
    workload: Workload,
    *,
    sites: Sequence[Site] = SITES,
    method: PatchMethod = "exact",
    direction: Direction = "denoising",
    copies: int | Literal["auto"] = "auto",
) -> NodePatching:
    """Mean metric with one activation taken from the other prompt, for every layer and position, and layer and head.

    The other values are the ablation's: those of a run on corrupt or other prompts or with noise; or constants, which can be
    put into the clean run alone: zeros, or each activation's mean over the corrupt prompts (see `SiteMeans`). copies: cells in
    one forward pass; auto: as many as an estimate of memory allows. Raises ValueError for optimal constants, for denoising
    with constants and for attribution with a metric that has no gradient, FlatMetric when the metric is the same on clean and
    corrupt prompts.
    """
    ablation = workload.ablation
    check_ablation(ablation, direction, "nodes")
    if method == "attribution":
        require_gradient(workload.metric, "attribution patching")
    grid = Grid(sites, len(model.blocks), model.blocks[0].heads, workload.batches)
    means = site_means(model, workload)
    with tqdm(total=len(grid.cells) * len(workload.batches), desc="patch", unit="cell", delay=1, leave=False) as bar:
        for batch in workload.batches:
            constants = None if ablation.still else Constants(means, nothing_kept(model, batch, ablation))
            moved = with_prompts(batch.to(model.device), ablation)
            with session(model.hf, model.arch, ()):
                runs = _Runs(model, moved, workload, direction, constants)
                if method == "exact":
                    values = _exact(runs, grid.cells, copies, bar)
                else:
                    values = _attribution(runs, grid.cells)
                    bar.update(len(grid.cells))
            grid.add(batch, values, runs.clean_metric, runs.corrupt_metric)
    if not grid.differs:
        raise FlatMetric(
            f"metric {workload.metric.name!r} is {grid.clean:.6g} on the clean and on the corrupt prompts, "
            "so there is nothing to trace: use prompts whose corruption changes the answer, or another metric"
        )
    return NodePatching(
        method, direction, workload.metric.name, grid.clean, grid.corrupt, workload.pair_count, grid.heat_maps()
    )


class _Runs:
    """One batch: the run that cells are put into (base), the values put there (donor), and passes in between."""

    def __init__(
        self,
        model: ComponentModel,
        batch: Batch,
        workload: Workload,
        direction: Direction,
        constants: Constants | None,
    ) -> None:
        """constants: the ablated values, where they belong to no run."""
        self.model = model
        self.batch = batch
        self._workload = workload
        self._is_noising = direction == "noising"
        self._passes = Passes(model, batch)
        clean = self._passes.record(batch.clean)
        if constants is None:
            with ablated_prompts(model, batch, workload.ablation) as tokens:
                ablated = self._passes.record(tokens)
        else:
            ablated = Seen(constants.values(batch, clean.values), constants.logits)
        self.base, self.donor = (clean, ablated) if self._is_noising else (ablated, clean)
        self._reference = clean.logits.float() if workload.metric.needs_reference else None
        self.clean_metric = self.metric(clean.logits)
        self.corrupt_metric = self.metric(ablated.logits)
        self.lengths = prompt_lengths(batch)
        self.pads = (~batch.mask).sum(1)

    @property
    def base_metric(self) -> Float[Tensor, " pair"]:
        """The metric of the run that cells are put into."""
        return self.clean_metric if self._is_noising else self.corrupt_metric

    def metric(self, logits: Float[Tensor, "*copy read vocab"]) -> Float[Tensor, "*copy pair"]:
        """Per pair, in float32 at least."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return self._workload.metric.compute(logits.to(dtype), self.batch, self._reference)

    def again(self, visit: Visit) -> Float[Tensor, "read vocab"]:
        """Logits of the base run, visited."""
        if self._is_noising:
            return self._passes.forward(self.batch.clean, visit)
        with ablated_prompts(self.model, self.batch, self._workload.ablation) as tokens:
            return self._passes.forward(tokens, visit)

    def restarted(self, copies: int, visit: Visit, first: int) -> Float[Tensor, "reads vocab"]:
        """Logits of copies of the base run from layer `first` on, into which `visit` must put what it reads."""
        return self._passes.forward(self.batch.clean.repeat(copies, 1), visit, first, self.base.outputs)

    def columns(self, position: int) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Rows whose prompt has a position (negative, from its end), and the column of it."""
        return columns_of(self.batch, self.lengths, self.pads, position)


def _exact(runs: _Runs, cells: Sequence[Cell], copies: int | Literal["auto"], bar: tqdm) -> Float[Tensor, "cell pair"]:
    """Every cell in a real run; cells that hold the same value in both runs need none."""
    values = runs.base_metric.repeat(len(cells), 1)
    work = [place for place, cell in enumerate(cells) if _differs(runs, cell)]
    work.sort(key=lambda place: cells[place].layer)
    bar.update(len(cells) - len(work))
    if copies == "auto":
        copies = auto_masks_per_run(runs.batch, runs.base.logits, _VECTORS_PER_TOKEN)
    for start in range(0, len(work), copies):
        some = work[start : start + copies]
        values[some] = _patched(runs, [cells[place] for place in some])
        bar.update(len(some))
    return values


def _differs(runs: _Runs, cell: Cell) -> bool:
    base, donor = runs.base.values[cell.key], runs.donor.values[cell.key]
    if cell.head is not None:
        width = base.shape[-1] // runs.model.blocks[0].heads
        part = slice(cell.head * width, (cell.head + 1) * width)
        return bool((base[..., part] != donor[..., part]).any())
    rows, columns = runs.columns(cell.position)
    return bool((base[rows, columns] != donor[rows, columns]).any())


def _patched(runs: _Runs, cells: Sequence[Cell]) -> Float[Tensor, "cell pair"]:
    """The metric of one pass in which copy i of the batch has cell i replaced."""
    first = min(min(cell.layer for cell in cells), len(runs.model.blocks) - 1)
    rows = len(runs.batch.clean)

    def visit(site: Site, layer: int, value: Tensor) -> Tensor | None:
        if (site, layer) == ("residual", first):
            value = runs.base.values["residual", first].repeat(len(cells), 1, 1)
        mine = [place for place, cell in enumerate(cells) if cell.key == (site, layer)]
        if not mine:
            return value
        value = value.clone()
        donor = runs.donor.values[site, layer]
        for place in mine:
            own = value[place * rows : (place + 1) * rows]  # a view: writing changes `value`
            head = cells[place].head
            if head is not None:
                width = value.shape[-1] // runs.model.blocks[0].heads
                own[..., head * width : (head + 1) * width] = donor[..., head * width : (head + 1) * width]
            else:
                index = runs.columns(cells[place].position)
                own[index] = donor[index]
        return value

    with torch.no_grad():
        logits = runs.restarted(len(cells), visit, first)
        return runs.metric(logits.unflatten(0, (len(cells), -1)))


def _attribution(runs: _Runs, cells: Sequence[Cell]) -> Float[Tensor, "cell pair"]:
    """Base metric + (donor - base) . gradient on the base run, for every cell from one backward pass."""
    seen: dict[tuple[Site, int], Tensor] = {}

    def visit(site: Site, layer: int, value: Tensor) -> Tensor:
        if not value.requires_grad:  # the embeddings: parameters are frozen
            value = value.detach().requires_grad_()
        seen[site, layer] = value
        return value

    with torch.enable_grad():
        total = runs.metric(runs.again(visit)).sum()
        gradients = torch.autograd.grad(total, list(seen.values()))
    products = {
        key: gradient.float() * (runs.donor.values[key].float() - runs.base.values[key].float())
        for key, gradient in zip(seen, gradients)
    }
    values = runs.base_metric.repeat(len(cells), 1)
    owner = runs.batch.row_pair
    for place, cell in enumerate(cells):
        product = products[cell.key]
        if cell.head is not None:
            own = product.unflatten(-1, (runs.model.blocks[0].heads, -1))[:, :, cell.head]
            values[place].index_add_(0, owner, own.sum((1, 2)))
        else:
            rows, columns = runs.columns(cell.position)
            values[place].index_add_(0, owner[rows], product[rows, columns].sum(-1))
    return values

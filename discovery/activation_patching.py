"""Node patching as heat maps: activation patching (Meng et al. 2022, Zhang and Nanda 2024) and attribution patching.

Plain forward hooks on the untouched model. Many cells share one forward pass: the batch is repeated, and each copy has
its own cell replaced. Passes start at the first layer that a cell of theirs touches, from the recorded residual stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.heat_map import SITES, Direction, NodePatching, PatchMethod, Site
from discovery.measure import FlatMetric
from discovery.patch_grid import Cell, Grid, columns_of, prompt_lengths
from discovery.patched_metric import auto_masks_per_run
from discovery.recording import override, session
from discovery.scoring import require_gradient
from discovery.workload import Workload

Visit = Callable[[Site, int, Tensor], "Tensor | None"]
"""Called with a site, its layer and its value [row pos width]; what it gives takes the value's place."""
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

    copies: cells in one forward pass; auto: as many as an estimate of memory allows. Raises ValueError for ablations
    other than counterfactual and for attribution with a metric that has no gradient, FlatMetric when the metric is the
    same on clean and corrupt prompts.
    """
    if workload.ablation.kind != "counterfactual":
        raise ValueError(f"node patching swaps clean and corrupt values: it has no {workload.ablation.kind!r} ablation")
    if method == "attribution":
        require_gradient(workload.metric, "attribution patching")
    grid = Grid(sites, len(model.blocks), model.blocks[0].heads, workload.batches)
    with (
        session(model.hf, model.arch, ()),
        tqdm(total=len(grid.cells) * len(workload.batches), desc="patch", unit="cell", delay=1, leave=False) as bar,
    ):
        for batch in workload.batches:
            runs = _Runs(model, batch.to(model.device), workload, direction)
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


@dataclass(frozen=True, eq=False)
class _Recorded:
    """One run's values at every site, and the metric."""

    values: dict[tuple[Site, int], Tensor]
    outputs: dict[int, tuple]
    """Layers that give a tuple: what follows the hidden state in it."""
    logits: Float[Tensor, "read vocab"]


class _Runs:
    """One batch: the run that cells are put into (base), the run they come from (donor), and passes in between."""

    def __init__(self, model: ComponentModel, batch: Batch, workload: Workload, direction: Direction) -> None:
        self.model = model
        self.batch = batch
        self._metric = workload.metric
        self._is_noising = direction == "noising"
        self.tokens = batch.clean if self._is_noising else batch.corrupt
        self.base = self._record(self.tokens)
        self.donor = self._record(batch.corrupt if self._is_noising else batch.clean)
        clean, corrupt = (self.base, self.donor) if self._is_noising else (self.donor, self.base)
        self._reference = clean.logits.float() if workload.metric.needs_reference else None
        self.clean_metric = self.metric(clean.logits)
        self.corrupt_metric = self.metric(corrupt.logits)
        self.lengths = prompt_lengths(batch)
        self.pads = (~batch.mask).sum(1)

    @property
    def base_metric(self) -> Float[Tensor, " pair"]:
        """The metric of the run that cells are put into."""
        return self.clean_metric if self._is_noising else self.corrupt_metric

    def metric(self, logits: Float[Tensor, "*copy read vocab"]) -> Float[Tensor, "*copy pair"]:
        """Per pair, in float32 at least."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return self._metric.compute(logits.to(dtype), self.batch, self._reference)

    def _record(self, tokens: Int[Tensor, "row pos"]) -> _Recorded:
        values: dict[tuple[Site, int], Tensor] = {}
        outputs: dict[int, tuple] = {}

        def visit(site: Site, layer: int, value: Tensor) -> None:
            values[site, layer] = value

        def see(layer: int) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple, out: Any) -> None:
                if isinstance(out, tuple):
                    outputs[layer] = out[1:]

            return keep

        with contextlib.ExitStack() as stack, torch.no_grad():
            for block in self.model.blocks:
                stack.callback(block.layer.register_forward_hook(see(block.index)).remove)
            logits = self.forward(tokens, visit)
        return _Recorded(values, outputs, logits)

    def forward(self, tokens: Int[Tensor, "rows pos"], visit: Visit, first: int = 0) -> Float[Tensor, "reads vocab"]:
        """Logits at the reads of a pass over `tokens` (the batch's rows, once or more often), from layer `first` on."""
        batch, rows = self.batch, len(self.batch.clean)
        copies = len(tokens) // rows
        start = int(batch.read_column.min())
        with contextlib.ExitStack() as stack:
            for block in self.model.blocks[:first]:
                rest = self.base.outputs.get(block.index)
                override(block.layer, "forward", _passing(rest), stack)
            stack.enter_context(_visiting(self.model, visit))
            logits = self.model.hf(
                input_ids=tokens,
                attention_mask=batch.mask.long().repeat(copies, 1),
                position_ids=batch.positions.repeat(copies, 1),
                use_cache=False,
                logits_to_keep=batch.clean.shape[1] - start,
            ).logits
        offsets = torch.arange(copies, device=tokens.device)[:, None] * rows
        return logits[(offsets + batch.read_row).flatten(), (batch.read_column - start).repeat(copies)]

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
        logits = runs.forward(runs.tokens.repeat(len(cells), 1), visit, first)
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
        total = runs.metric(runs.forward(runs.tokens, visit)).sum()
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


def _passing(rest: tuple | None) -> Callable[..., Any]:
    """A layer that does nothing, giving what the real one gives beside the hidden state."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if rest is None else (hidden_states, *rest)

    return forward


@contextlib.contextmanager
def _visiting(model: ComponentModel, visit: Visit) -> Iterator[None]:
    """Calls `visit` at every site of a forward pass."""

    def entering(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            value = visit("residual", layer, args[0] if args else kwargs["hidden_states"])
            if value is None:
                return None
            return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

        return hook

    def before(site: Site, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple) -> Any:
            value = visit(site, layer, args[0])
            return None if value is None else (value, *args[1:])

        return hook

    def after(site: Site, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> Any:
            return visit(site, layer, out)

        return hook

    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            for handle in (
                block.layer.register_forward_pre_hook(entering(block.index), with_kwargs=True),
                block.output.register_forward_pre_hook(before("head", block.index)),
                block.output.register_forward_hook(after("attention", block.index)),
                block.mlp.register_forward_hook(after("mlp", block.index)),
            ):
                stack.callback(handle.remove)
        final = model.hf.get_submodule(model.arch.final_norm)
        handle = final.register_forward_pre_hook(before("residual", len(model.blocks)))
        stack.callback(handle.remove)
        yield

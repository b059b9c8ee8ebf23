"""How much memory there is, what scoring a batch takes of it, and how many prompt pairs fit at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel

CHUNK_BYTES = 256 * 2**20
"""What the wide source differences of a contraction may take; larger chunks are no quicker."""
_LARGEST = 256
"""Pairs; beyond this a batch gains no speed, and prompts of different lengths lose some to padding."""
_WORKING_SET_ON_CPU = 2**29
"""Bytes; larger batches only push a CPU's caches further out of reach."""
RESAMPLES_BYTES = 2**28
"""What the tables of all resamples may take; larger graphs get fewer resamples."""
LARGE_WEIGHTS = 4 * 10**9
"""Bytes of weights from which on all that a batch takes stays within a share of them."""
SHARE_OF_WEIGHTS = 0.25
_SLACK = 2**28
"""Bytes for what no formula knows: an allocator's gaps, a graph's masks and lists (measured: up to 130 MB)."""
_POINTS = 5
"""Integration points that a batch size leaves room for."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows and macOS do not have the names
        return None


def peak_device_memory(device: torch.device) -> int | None:
    """Largest number of bytes that tensors took on a CUDA device so far; None on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class Shape:
    """What the memory that scoring takes depends on."""

    layers: int
    heads: int
    kv_slots: int
    """k slots of a layer, and v slots."""
    d_model: int
    d_head: int
    inner: int
    """Neurons of an MLP."""
    vocabulary: int
    sources: int
    targets: int
    weights: int
    """Bytes of all weights."""
    stored: int
    """Bytes of a number in weights and activations."""
    computed: int = 4
    """Bytes of a number in attribution."""

    @property
    def slots(self) -> int:
        """q, k and v slots of a layer."""
        return self.heads + 2 * self.kv_slots


def shape_of(model: ComponentModel) -> Shape:
    """The shape of a model and its graph."""
    config, block = model.config.get_text_config(), model.blocks[0]
    sources, targets = model.topology.possible.shape
    d_model = block.weight("q").shape[-1]
    return Shape(
        layers=len(model.blocks),
        heads=block.heads,
        kv_slots=block.kv_slots,
        d_model=d_model,
        d_head=block.d_head,
        inner=getattr(config, "intermediate_size", None) or 4 * d_model,
        vocabulary=config.vocab_size,
        sources=sources,
        targets=targets,
        weights=sum(weight.numel() * weight.element_size() for weight in model.hf.parameters()),
        stored=model.hf.dtype.itemsize,
        computed=model.dtype.itemsize,
    )


@dataclass(frozen=True)
class Needs:
    """Bytes that scoring and evaluating a batch takes on the model's device beside the weights; rather too many than too
    few."""

    recorded: int
    """The clean and the ablated run, source differences and narrow gradients: there from the passes to the contraction."""
    passes: int
    """What the largest pass with gradients keeps for its backward pass, and the gradients that it gives."""
    chunk: int
    """Source differences of a chunk of positions, with the gradients of one layer's slots there."""
    layer: int
    """Copies of one layer's attention weights in the type of the attribution, one projection at a time."""
    scores: int
    """The pairs' score tables."""
    run: int
    """Runs under masks, side by side, in which every source and every slot of a layer has a value of its own."""

    @property
    def total(self) -> int:
        """The largest sum that is there at one time."""
        return self.recorded + max(self.passes, self.chunk + self.layer + self.scores, self.run)


def needs(shape: Shape, rows: int, length: int, points: int = 1, together: int = 1, masks: int = 1) -> Needs:
    """What `rows` prompts of `length` columns take. points: integration points; together: how many of them share a pass;
    masks: runs side by side."""
    s, tokens = shape, rows * length
    mixed, projected = s.heads * s.d_head, s.slots * s.d_head
    one_run = s.stored * (5 * s.d_model + mixed + projected)
    baseline = s.computed * (mixed + 3 * s.d_model) + s.stored * projected
    narrow = s.computed * (projected + (1 + points) * s.d_model)
    differences = s.computed * (mixed + s.d_model)
    kept = (
        s.stored * (mixed + 2 * projected + 4 * s.d_model + 4 * s.inner)
        + s.computed * (4 * s.d_model + 3 * s.heads * length)
        + 2 * s.stored * (projected + s.d_model)
    )
    logits = 4 * rows * s.vocabulary * s.computed
    vector = s.computed * rows * s.d_model
    columns = min(length, max(1, CHUNK_BYTES // (vector * s.sources)))
    return Needs(
        recorded=s.layers * tokens * (one_run + baseline + narrow + differences),
        passes=together * (s.layers * tokens * kept + logits),
        chunk=columns * vector * (s.sources + s.slots + s.heads),
        layer=s.computed * 2 * mixed * s.d_model,
        scores=2 * s.computed * rows * s.sources * s.targets,
        run=masks * s.computed * (tokens * s.d_model * (1 + s.sources + 4 * s.slots) + 2 * s.sources * s.targets),
    )


def table_bytes(shape: Shape) -> int:
    """What is kept in CPU memory while pairs are scored, whatever the batches: mean and spread of every edge in float64 (the
    results as float32 beside them at the end), and the tables of resamples."""
    return 24 * shape.sources * shape.targets + RESAMPLES_BYTES


def large_budget(shape: Shape) -> int:
    """Bytes that a batch may take where all that is taken beside the weights is to stay within a quarter of them."""
    return max(0, int(SHARE_OF_WEIGHTS * shape.weights) - table_bytes(shape) - _SLACK)


def chunk_columns(width: int, column_bytes: int, device: torch.device, most: int | None = None) -> int:
    """Columns of a contraction that are taken at a time: as many as an eighth of the free memory holds, up to `most` bytes
    (default: CHUNK_BYTES) and one at least."""
    free = free_memory(device)
    most = CHUNK_BYTES if most is None else most
    return max(1, min(width, (most if free is None else min(most, free // 8)) // max(1, column_bytes)))


def working_memory(model: ComponentModel) -> int:
    """Bytes that a batch may take beside the weights: half of the free memory (on a CPU 512 MiB at most); where the weights
    are large, no more than a quarter of them with all that is kept in CPU memory."""
    free, shape = free_memory(model.device), shape_of(model)
    budget = _WORKING_SET_ON_CPU if free is None else free // 2
    if shape.weights >= LARGE_WEIGHTS:
        return min(budget, large_budget(shape))
    return min(budget, _WORKING_SET_ON_CPU) if model.device.type == "cpu" else budget


def largest_batch(shape: Shape, length: int, budget: int) -> int:
    """Rows of `length` columns whose needs stay within a budget at some integration points; one at least."""
    return _most(_LARGEST, lambda rows: needs(shape, rows, length, _POINTS).total <= budget)


def points_per_pass(model: ComponentModel, rows: int, length: int, points: int) -> int:
    """How many of `points` may share a pass with gradients."""
    shape, budget = shape_of(model), working_memory(model)
    return _most(points, lambda together: needs(shape, rows, length, points, together).total <= budget)


def _most(largest: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `largest` that fits, 1 where none does; smaller ones fit where larger ones do."""
    low = 1
    while low < largest:
        middle = (low + largest + 1) // 2
        low, largest = (middle, largest) if fits(middle) else (low, middle - 1)
    return low


def auto_batch_size(model: ComponentModel, length: int) -> int:
    """Pairs of `length` tokens in one batch: what fits into `working_memory`, within sensible bounds."""
    return largest_batch(shape_of(model), length, working_memory(model))

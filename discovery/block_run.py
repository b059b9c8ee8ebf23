"""What runs under masks are made of: one block's slots, its attention and its MLP, for several masks side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.baseline import Baseline
from discovery.blocks import Block, Projected
from discovery.contraction import SourceDifferences, head_writers
from discovery.device_index import at
from discovery.recording import Activations, Sequences, copy_cache, override, replay
from graphs.node import PORTS, NodeId, Port, Slot
from graphs.topology import Topology


@dataclass(frozen=True, eq=False)
class Recorded:
    """What is known of a batch before any mask: the clean run, the ablated values, and how to call attention again."""

    sequences: Sequences
    """The clean prompts from the first differing column on."""
    clean: Activations
    """Recorded clean pass."""
    baseline: Baseline
    """Ablated values and their stream."""
    differences: SourceDifferences
    """Clean less ablated values."""
    read_rows: Int[Tensor, " read"]
    """Rows of the reads."""
    read_columns: Int[Tensor, " read"]
    """Columns of the reads, from the first differing column on."""


class BlockRun:
    """The parts of a run: rows of every mask stand one after the other."""

    def __init__(self, blocks: Sequence[Block], topology: Topology, recorded: Recorded, masks: int) -> None:
        """masks: how many runs stand side by side."""
        self._blocks = blocks
        self._topology = topology
        self._recorded = recorded
        self._baseline = recorded.baseline
        self._dtype = recorded.baseline.entry.dtype
        self._rows, self._width, self._d_model = recorded.baseline.entry.shape
        self._masks = masks

    def _ports(self, block: Block) -> dict[Port, range]:
        """Columns of a block's q, k and v slots."""
        ports: dict[Port, range] = {}
        for port, count in zip(PORTS, (block.heads, block.kv_slots, block.kv_slots), strict=True):
            start = self._topology.target_index[Slot(NodeId("head", block.index, 0), port)]
            ports[port] = range(start, start + count)
        return ports

    def _mlp_columns(self, block: Block) -> range:
        """Columns of what stands for a block's MLP."""
        start = self._topology.target_index[Slot(NodeId("mlp", block.index))]
        return range(start, start + 1)

    def _first_source(self, block: Block) -> int:
        return self._topology.source_index[NodeId("head", block.index, 0)]

    @staticmethod
    def write_heads(block: Block, mix: Float[Tensor, "row pos head d_head"], heads: list[int]) -> Tensor:
        """What some heads add to the stream: [head row*pos d_model]."""
        writers = head_writers(block, mix.dtype)
        chosen = mix if len(heads) == block.heads else mix[:, :, at(heads, mix.device)]
        writers = writers if len(heads) == block.heads else writers[at(heads, writers.device)]
        return torch.bmm(chosen.permute(2, 0, 1, 3).flatten(1, 2).to(writers.device), writers)

    def _at_reads(self, values: Float[Tensor, "*lead row pos d_model"]) -> Float[Tensor, "*lead read d_model"]:
        return values[..., self._recorded.read_rows, self._recorded.read_columns, :]

    def _attention_write(self, block: Block, mix: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the whole attention adds to the stream, and the sum that a post-norm reads."""
        total = block.output(mix)
        if block.post_attention_norm is None:
            return total.to(self._dtype), None
        return block.post_attention_norm(total).to(self._dtype), total

    def _project_own(
        self, block: Block, port: Port, normed: Float[Tensor, "slot mask *place d_model"], local: list[int]
    ) -> Float[Tensor, "mask *place slot d_head"]:
        weight, bias = block.weight(port), block.bias(port)
        if len(local) != weight.shape[0]:
            chosen = at(local, weight.device)
            weight = weight[chosen]
            bias = None if bias is None else bias[chosen]
        place = normed.shape[1:-1]
        flat = normed.flatten(1, -2).to(device=weight.device, dtype=weight.dtype)
        out = torch.bmm(flat, weight.transpose(1, 2))
        if bias is not None:
            out = out + bias.unsqueeze(1)
        return out.unflatten(1, place).movedim(0, -2)

    def _call_attention(self, block: Block, projected: Projected, masks: int | None = None) -> Tensor:
        """The library's own attention on given slots, stopped before the output projection."""
        repeats = self._masks if masks is None else masks
        raws = [raw.contiguous() for raw in block.join(projected)]
        hidden = raws[0].new_zeros(()).expand(repeats * self._rows, self._width, self._d_model)
        cache = copy_cache(self._recorded.sequences.cache, repeats, block.index)
        args, kwargs = replay(self._recorded.clean.calls[block.index], hidden, cache, self._rows)
        with contextlib.ExitStack() as stack:
            for module, raw in zip(block.projections, raws, strict=True):
                override(module, "forward", lambda _hidden, raw=raw: raw, stack)
            override(block.output, "forward", lambda mix: mix, stack)
            return block.attention(*args, **kwargs)[0]

    def _mlp(self, block: Block, stream: Tensor) -> Tensor:
        out = block.run_mlp(stream)
        return (out if block.post_mlp_norm is None else block.post_mlp_norm(out)).to(self._dtype)

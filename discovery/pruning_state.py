"""A circuit's run as runs of smaller circuits take it up: its edges, and what every source and slot put out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.block_run import BlockRun, Recorded
from discovery.blocks import Block, Projected
from discovery.pruning_plan import changed_by
from graphs.topology import Topology


class PruningState:
    """One batch's run of a circuit, at first of the whole model. Memory: what every source writes, once."""

    def __init__(self, blocks: Sequence[Block], topology: Topology, recorded: Recorded) -> None:
        self.blocks = blocks
        self.topology = topology
        self.recorded = recorded
        self.kept: Bool[np.ndarray, "src dst"] = topology.possible.copy()
        self.changed_by = changed_by(topology, any(block.coupled for block in blocks))
        baseline, differences = recorded.baseline, recorded.differences
        self.values: Float[Tensor, "src row pos d_model"] = baseline.entry.new_empty(
            (len(topology.sources), *baseline.entry.shape)
        )
        """Every source's value less its ablated value."""
        self.values[0] = differences.entry
        row = 1
        for block in blocks:
            written = BlockRun.write_heads(block, differences.heads[block.index], list(range(block.heads)))
            self.values[row : row + block.heads] = written.unflatten(1, tuple(baseline.entry.shape[:2]))
            row += block.heads
            self.values[row] = differences.mlps[block.index]
            row += 1
        self.projected: dict[int, Projected] = {
            block.index: block.split([raw.detach() for raw in recorded.clean.raw[block.index]]) for block in blocks
        }
        """By layer what the slots put out."""
        self.there: tuple[slice, int] | tuple[Tensor, Tensor] = _place(recorded, len(baseline.entry))
        """Rows and columns of the reads, as an index."""

    def at_reads(self, values: Float[Tensor, "*lead row pos d_model"]) -> Float[Tensor, "*lead read d_model"]:
        """Of all positions those where logits are read."""
        return values[..., *self.there, :]


def _place(recorded: Recorded, rows: int) -> tuple[slice, int] | tuple[Tensor, Tensor]:
    """A view's index where every row is read once and in the same column, as prompts are that are padded on the left."""
    columns = set(recorded.read_columns.tolist())
    if recorded.read_rows.tolist() == list(range(rows)) and len(columns) == 1:
        return slice(None), columns.pop()
    return recorded.read_rows, recorded.read_columns

"""What a model keeps of the batch at hand: its sequences, recorded passes and ablated values."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.baseline import Baseline
from discovery.batch import Batch
from discovery.block_run import Recorded
from discovery.recording import Activations, Sequences


@dataclass(eq=False)
class BatchState:
    """What has been computed for the batch at hand; several methods and many masks look at the same batch in turn."""

    key: Batch
    """The batch as the caller holds it."""
    batch: Batch
    """The same on the model's device."""
    ablation: Ablation
    start: int
    """Columns before this one are alike in clean and corrupt, and in the cache."""
    clean_sequences: Sequences
    corrupt_sequences: Sequences
    baseline: Baseline | None = None
    recorded: Recorded | None = None
    clean: Activations | None = None
    """The clean pass, where another ablation of the same prompts recorded it."""
    full_logits: Tensor | None = None

    @property
    def first_read(self) -> int:
        """The first column that is read, from `start` on; known without asking the device."""
        return int(self.key.read_column.min()) - self.start


def corrupt_sequences(batch: Batch) -> Sequences:
    """The corrupt prompts, from their first column on."""
    mask, positions = batch.corrupt_places
    return Sequences(batch.corrupt, mask, positions, None)


def shared_columns(batch: Batch) -> int:
    """Columns, from the left, in which clean and corrupt agree in every row, short of the first read."""
    if batch.corrupt_mask is not None:
        return 0
    differs = (batch.clean != batch.corrupt).any(0).nonzero()
    first = int(differs[0]) if len(differs) else batch.clean.shape[1]
    first = min(first, int(batch.read_column.min()))
    # A pass of its own for a few columns costs more than it saves.
    return first if first >= max(4, batch.clean.shape[1] // 8) else 0


def sum_rows(rows: Float[Tensor, "row ..."], batch: Batch) -> Float[Tensor, "pair ..."]:
    """Sum the rows of each pair (several where an answer has several tokens)."""
    if rows.shape[0] == len(batch):
        return rows
    pairs = rows.new_zeros((len(batch), *rows.shape[1:]))
    return pairs.index_add_(0, batch.row_pair.to(rows.device), rows)

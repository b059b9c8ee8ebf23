"""What an intervention does: to features, errors, heads and MLPs at chosen positions, and to residual directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.batch import Batch
from discovery.recording import Sequences
from graphs.node import NodeId

Operation = Literal["set", "scale", "add"]
EditedKind = Literal["feature", "error", "head", "mlp"]
EDITED_KINDS: tuple[EditedKind, ...] = get_args(EditedKind)


class BadIntervention(ValueError):
    """An intervention that cannot be understood, or that the model, dictionaries or prompts have no place for."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sequences for one pass, and which of their tokens are the prompt: positions are counted in it."""

    sequences: Sequences
    """Left-padded token sequences, without a cache."""
    lengths: Int[Tensor, " row"]
    """Tokens of each row's prompt; what stands behind them (answers, generated tokens) has no position of its own."""

    @property
    def starts(self) -> Int[Tensor, " row"]:
        """Column of each row's first token."""
        return self.sequences.mask.shape[1] - self.sequences.mask.sum(1)

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on a device (themselves when they are there already)."""
        own = self.sequences
        if own.tokens.device == torch.device(device):
            return self
        moved = Sequences(own.tokens.to(device), own.mask.to(device), own.positions.to(device), None)
        return Prompts(moved, self.lengths.to(device))

    def columns(self, position: int) -> Int[Tensor, " row"]:
        """Column of one position of every prompt (negative: from its end). Raises BadIntervention where a prompt has none."""
        places = self.lengths + position if position < 0 else torch.full_like(self.lengths, position)
        if bool(((places < 0) | (places >= self.lengths)).any()):
            raise BadIntervention(f"there is no position {position} in a prompt of {int(self.lengths.min())} tokens")
        return self.starts + places

    def cells(self, position: int | None) -> Bool[Tensor, "row pos"]:
        """True at one position of every prompt, or at all tokens (also behind the prompt)."""
        if position is None:
            return self.sequences.mask
        everywhere = torch.arange(self.sequences.mask.shape[1], device=self.lengths.device)
        return everywhere == self.columns(position)[:, None]


def prompts_of(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Prompts:
    """Prompts of token ids as one left-padded batch."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    return Prompts(Sequences(tokens, mask, (mask.long().cumsum(1) - 1).clamp(min=0), None), lengths)


def prompts_of_batch(batch: Batch, corrupt: bool = False) -> Prompts:
    """The clean (or corrupt) rows of a batch; an answer's tokens in a row stand behind its prompt."""
    last = batch.positions[batch.read_row[batch.pair_read], batch.read_column[batch.pair_read]]
    tokens = batch.corrupt if corrupt else batch.clean
    return Prompts(Sequences(tokens, batch.mask, batch.positions, None), last[batch.row_pair] + 1)


@dataclass(frozen=True, eq=False)
class Edit:
    """One change to one node's value (a feature's activation, a head's mixed values, what an MLP or error node writes)."""

    kind: EditedKind
    """What is changed."""
    layer: int
    """Its layer (for a feature: the one that its dictionary reads)."""
    index: int | None = None
    """Number of the feature or head; None for all of the layer, and for MLPs and errors."""
    position: int | None = None
    """Position in the prompt, negative from its end; None for all tokens."""
    operation: Operation = "set"
    """set to the value, scale by it, or add it."""
    value: float | Tensor = 0.0
    """A number, or a tensor that broadcasts to [row pos] of a feature, [row pos feature] of all features, [row pos d] else."""
    cells: Bool[Tensor, "row pos"] | None = None
    """Where, instead of `position`: lets each row of a batch have edits of its own."""

    @staticmethod
    def of(node: NodeId, operation: Operation = "set", value: float | Tensor = 0.0) -> Edit:
        """The change of a named node. Raises BadIntervention for a node whose value cannot be changed."""
        if node.kind not in EDITED_KINDS:
            raise BadIntervention(
                f"{node} cannot be set: only features, errors, heads and MLPs can (f2.17, e2, a0.h3, m2)"
            )
        if isinstance(node.position, str):
            raise BadIntervention(f"{node}: a position must be a number here")
        assert node.layer is not None
        return Edit(cast(EditedKind, node.kind), node.layer, node.index, node.position, operation, value)

    def places(self, prompts: Prompts) -> Bool[Tensor, "row pos"]:
        """Where it applies."""
        return prompts.cells(self.position) if self.cells is None else self.cells

    def changed(self, old: Tensor, places: Bool[Tensor, "row pos"]) -> Tensor:
        """The new value of [row pos] activations or [row pos d] vectors."""
        value = self.value.to(old) if isinstance(self.value, Tensor) else self.value
        new = old * value if self.operation == "scale" else old + value if self.operation == "add" else value
        places = places.to(old.device)
        where = places if old.ndim == 2 else places[..., None]
        return torch.where(where, torch.as_tensor(new, dtype=old.dtype, device=old.device), old)


@dataclass(frozen=True, eq=False)
class DirectionEdit:
    """A direction of the residual stream that is removed, or added to it."""

    vector: Float[Tensor, " d_model"]
    """The direction; its length matters for adding only."""
    add: float | None = None
    """How often the vector is added; None: its component is projected out."""
    streams: tuple[int, ...] | None = None
    """Residual streams, by the layer that they enter (number of layers = before the final norm). None: every stream when
    adding; every write (embedding, attention, MLP) when projecting out, so that no stream ever has the component."""
    position: int | None = None
    """Position in the prompt; None for all tokens."""

    def changed(self, old: Float[Tensor, "row pos d_model"], places: Bool[Tensor, "row pos"]) -> Tensor:
        """The stream, or the write, afterwards."""
        wide = old if old.dtype == torch.float64 else old.float()
        vector = self.vector.to(wide)
        if self.add is not None:
            new = wide + self.add * vector
        else:
            unit = vector / vector.norm()
            new = wide - (wide @ unit)[..., None] * unit
        return torch.where(places[..., None], new, wide).to(old.dtype)

"""Rows of direct effects of a local replacement model, computed in batches and kept sparse as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.replacement import LocalReplacement, Readouts
from discovery.targets import Target

# Gradients of one batch of rows take at most so many bytes; a batch has at most so many rows, since rows of one batch are
# all carried to the last position of any of them.
_BATCH_BYTES = 64 * 2**20
_BATCH_ROWS = 512


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Some rows of direct effects, the strongest entries of each."""

    rows: Int[np.ndarray, " row"]
    """Numbers of the rows: features by their place, then targets."""
    ends: Int[np.ndarray, " row"]
    """Number of entries up to and with each row."""
    columns: Int[np.ndarray, " entry"]
    """Sources, ascending within a row."""
    values: Float[np.ndarray, " entry"]
    """Direct effects, float32."""
    absolute: Float[np.ndarray, " row"]
    """Sum of absolute values, all entries counted."""
    rest: Float[np.ndarray, " row"]
    """Sum of what was left out."""


def strongest(effects: Float[np.ndarray, "row column"], share: float) -> Bool[np.ndarray, "row column"]:
    """Which entries of each row to store: the fewest, largest ones that hold a share of the sum of absolute values.

    Entries as large as the smallest one kept are kept too. Zeros are never kept; a share of 1 keeps all others.
    """
    if share >= 1:
        return effects != 0
    size = np.abs(effects)
    ascending = np.sort(size, axis=1)
    held = ascending.cumsum(1, dtype=np.float64)
    smallest = (held <= (1 - share) * held[:, -1:]).sum(1).clip(max=size.shape[1] - 1)
    return (size >= np.take_along_axis(ascending, smallest[:, None], 1)) & (size > 0)


class EffectRows:
    """Direct effects of a local replacement model's sources on its features and targets, computed batch by batch."""

    def __init__(
        self, replacement: LocalReplacement, targets: Sequence[Target], share: float, constants: bool = False
    ) -> None:
        """share: of each row's absolute sum that is kept. constants: add the constants' columns, and `own` as the last."""
        self._replacement = replacement
        self._share = share
        self._constants = constants
        self._own = torch.cat([
            replacement.features.own,
            torch.tensor([t.own for t in targets if t.direction is not None]).to(replacement.features.own),
        ])  # fmt: skip
        self._features = len(replacement.features)
        logits = [target.direction for target in targets if target.direction is not None]
        self._logits = replacement.logit_readouts(torch.stack(logits)) if logits else None
        self.pieces: list[SparseRows] = []
        """What has been computed, in the order in which it was."""

    @property
    def logit_rows(self) -> range:
        """Numbers of the rows of targets that are no features."""
        return range(self._features, self._features + (0 if self._logits is None else len(self._logits)))

    def compute(self, rows: Int[np.ndarray, " row"], bar: tqdm[Any]) -> None:
        """Computes and stores some rows."""
        positions = np.concatenate([
            self._replacement.features.position.cpu().numpy(),
            np.full(len(self.logit_rows), self._replacement.width - 1),
        ])  # fmt: skip
        rows = rows[np.argsort(positions[rows], kind="stable")]
        d_model = self._replacement.frozen.embeddings.shape[1]
        first = 0
        while first < len(rows):
            end = min(first + _BATCH_ROWS, len(rows))
            # Rows ascend in position: the last one of a batch decides how wide it is.
            while end > first + 1 and (end - first) * (positions[rows[end - 1]] + 1) * d_model * 4 > _BATCH_BYTES:
                end -= max(1, (end - first) // 8)
            self.pieces.append(self._batch(np.sort(rows[first:end])))
            bar.update(end - first)
            first = end

    def sums(self, rows: Int[np.ndarray, " row"]) -> Float[Tensor, " row"]:
        """Sums of some rows with all constants: what the targets have in the model, where nothing is missing."""
        readouts, places = self.readouts(rows)
        own = self._own[torch.as_tensor(rows, device=self._own.device)]
        return self._replacement.direct_effects(readouts, True).sum(0)[places] + own

    def readouts(self, rows: Int[np.ndarray, " row"]) -> tuple[Readouts, Int[Tensor, " row"]]:
        """Readouts of some rows, deepest first, and the place of each row among them."""
        device = self._replacement.model.device
        features = torch.as_tensor(rows[rows < self._features], device=device)
        chosen = torch.as_tensor(rows[rows >= self._features] - self._features, device=device)
        deepest = self._replacement.features.layer[features].argsort(descending=True, stable=True)
        readouts = self._replacement.feature_readouts(features[deepest])
        order = torch.cat([deepest, len(features) + torch.arange(len(chosen), device=device)])
        if self._logits is not None and len(chosen):
            logits = self._logits
            parts = (getattr(logits, field)[chosen] for field in ("depth", "position", "vectors"))
            own = (readouts.depth, readouts.position, readouts.vectors)
            readouts = Readouts(*(torch.cat(pair) for pair in zip(parts, own)))
            order = torch.cat([len(features) + torch.arange(len(chosen), device=device), deepest])
        return readouts, order.argsort()

    def _batch(self, rows: Int[np.ndarray, " row"]) -> SparseRows:
        readouts, places = self.readouts(rows)
        found = self._replacement.direct_effects(readouts, self._constants).t()[places]
        if self._constants:
            found = torch.cat([found, self._own[torch.as_tensor(rows, device=found.device), None]], 1)
        effects = np.ascontiguousarray(found.cpu().numpy(), dtype=np.float32)
        carried = effects[:, : self._replacement.sources]
        kept = strongest(carried, self._share)
        absolute = np.abs(carried).sum(1, dtype=np.float64)
        left_out = np.where(kept, 0, carried).sum(1, dtype=np.float64)
        if self._constants:
            kept = np.concatenate([kept, effects[:, self._replacement.sources :] != 0], 1)
        counts = np.count_nonzero(kept, axis=1)
        flat = np.flatnonzero(kept)
        columns = (flat - np.repeat(np.arange(len(rows)) * kept.shape[1], counts)).astype(np.int32)
        return SparseRows(rows, counts.cumsum(), columns, effects.reshape(-1)[flat], absolute, left_out)


def influence_of_features(
    pieces: Sequence[SparseRows], weights: Mapping[int, float], features: int, sources: int
) -> Float[np.ndarray, " source"]:
    """Influence on the targets (conventions, section 6) of every source, as far as the rows computed so far carry it.

    weights: the targets' weights by row. Features are numbered by layer, so that a higher number is never below a lower one.
    """
    where: dict[int, tuple[SparseRows, int]] = {}
    for piece in pieces:
        where |= {int(row): (piece, i) for i, row in enumerate(piece.rows)}
    flow = np.zeros(max(sources, features + len(weights)))
    reached = np.zeros(max([*where, sources]) + 1)
    for row, weight in weights.items():
        reached[row] += weight
    for row in sorted(where, reverse=True):
        piece, i = where[row]
        if not reached[row] or not piece.absolute[i]:
            continue
        start = piece.ends[i - 1] if i else 0
        columns = piece.columns[start : piece.ends[i]]
        share = np.abs(piece.values[start : piece.ends[i]]) * (reached[row] / piece.absolute[i])
        flow[columns] += share
        within = columns < features
        reached[columns[within]] += share[within]
    return flow[:sources]

"""The inputs of slots that read a mixture of their own: kept sources on the ablated stream, or the stream less dropped ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.device_index import at
from discovery.patch_plan import Plan

Reads = tuple[Int[Tensor, " read"], Int[Tensor, " read"]]
"""Rows and columns where logits are read."""


class SourceMixture:
    """Source differences as they become known in a run, and the products of masks with them.

    *Known* differences come from the clean run and are the same for every mask; *fresh* ones are computed in this run. Row 0
    of the known values is the base of the slots at hand, row 0 of the fresh ones their running stream: they ride in the
    products instead of being copied into every slot first.
    """

    def __init__(self, keep: Float[Tensor, "mask src dst"], plan: Plan, like: Float[Tensor, "row pos d_model"]) -> None:
        """keep: on the device and in the dtype of `like`, which gives the shape of a source's value."""
        self._keep = keep
        self._plan = plan
        self._masks = keep.shape[0]
        self._gradients = torch.is_grad_enabled()  # for masks or for ablated values: nothing is written in place
        self._known: list[int] = []
        self._fresh: list[int] = []
        self._known_values = like.new_empty((1, like.numel()))
        self._fresh_values: list[Tensor] = []
        self._expected = 0
        self._buffer: Tensor | None = None

    def set_known(self, values: dict[int, Tensor]) -> None:
        """The differences of sources before the run's first stage; all others that are used are awaited."""
        self._known = list(values)
        rows = [value.reshape(1, -1).to(self._known_values.device) for value in values.values()]
        self._known_values = torch.cat([self._known_values, *rows])
        awaited = self._plan.used.any(1)
        awaited[self._known] = False
        self._expected = int(awaited.sum())

    def add_fresh(self, sources: Sequence[int], values: Float[Tensor, "source mask value"]) -> None:
        """Differences computed in this run, in the order of the sources."""
        start = len(self._fresh)
        self._fresh += sources
        values = values.transpose(0, 1).to(self._known_values.device)
        if self._gradients:
            self._fresh_values.append(values)
        else:
            self._rows()[:, 1 + start : 1 + start + len(sources)] = values

    def _rows(self) -> Float[Tensor, "mask row value"]:
        if self._buffer is None:
            shape = (self._masks, 1 + self._expected, self._known_values.shape[1])
            self._buffer = self._known_values.new_empty(shape)
        return self._buffer

    def _fresh_rows(self, stream: Tensor | None) -> Float[Tensor, "mask row value"] | None:
        """The stream (where it is wanted), then the differences computed in this run."""
        if self._gradients:
            first = [] if stream is None else [stream.reshape(self._masks, 1, -1)]
            return torch.cat([*first, *self._fresh_values], 1) if first or self._fresh_values else None
        if stream is None and not self._fresh:
            return None
        rows = self._rows()
        if stream is None:
            return rows[:, 1 : 1 + len(self._fresh)]
        rows[:, 0] = stream.reshape(self._masks, -1)
        return rows[:, : 1 + len(self._fresh)]

    def inputs(
        self,
        slots: list[int],
        base: Float[Tensor, "row pos d_model"],
        stream: Tensor | None,
        reads: Reads | None = None,
    ) -> Float[Tensor, "mask slot *place d_model"]:
        """What some slots read that stand at one place in the model.

        base: the ablated stream there. stream: this run's, for slots that are made by subtraction. Places are rows and
        columns, or with `reads` the reads alone.
        """
        if not bool(self._plan.subtract[slots].any()):
            stream = None
        subtract = self._plan.subtract[slots].to(self._keep.device, non_blocking=True)
        if self._gradients:  # products of earlier stages still need their own base
            self._known_values = self._known_values.clone()
        self._known_values[0] = base.flatten()
        known, fresh = self._known_values, self._fresh_rows(stream)
        shape = base.shape
        if reads is not None:
            known = known.unflatten(1, shape)[:, reads[0], reads[1]].flatten(1)
            fresh = None if fresh is None else fresh.unflatten(2, shape)[:, :, reads[0], reads[1]].flatten(2)
            shape = (len(reads[0]), shape[-1])
        return self._products(slots, subtract, known, fresh, stream is not None, reads).unflatten(2, shape)

    def _products(
        self,
        slots: list[int],
        subtract: Bool[Tensor, " slot"],
        known: Float[Tensor, "known value"],
        fresh: Float[Tensor, "mask fresh value"] | None,
        streaming: bool,
        reads: Reads | None,
    ) -> Float[Tensor, "mask slot value"]:
        """Masks times values at all places. streaming: row 0 of the fresh values is the stream."""
        weight = self._weights(self._keep[:, :, at(slots, self._keep.device)], slots, subtract)
        return self._product(weight, subtract, known, fresh, streaming)

    def _product(
        self,
        weight: Float[Tensor, "mask slot src"],
        subtract: Bool[Tensor, " slot"],
        known: Float[Tensor, "known value"],
        fresh: Float[Tensor, "mask fresh value"] | None,
        streaming: bool,
    ) -> Float[Tensor, "mask slot value"]:
        on_base = (~subtract).to(weight.dtype)[:, None].expand(self._masks, -1, 1)
        mixed = torch.matmul(torch.cat([on_base, weight[:, :, at(self._known, weight.device)]], 2).flatten(0, 1), known)
        mixed = mixed.unflatten(0, (self._masks, len(subtract)))
        if fresh is None:
            return mixed
        own = weight[:, :, at(self._fresh, weight.device)]
        if streaming:
            own = torch.cat([subtract.to(weight.dtype)[:, None].expand(self._masks, -1, 1), own], 2)
        return torch.baddbmm(mixed, own, fresh) if self._gradients else mixed.baddbmm_(own, fresh)

    def _weights(
        self, keep: Float[Tensor, "mask src slot"], slots: list[int], subtract: Tensor
    ) -> Float[Tensor, "mask slot src"]:
        """Factor of every source difference: keep, or keep - 1 where dropped sources are taken off the stream."""
        used = self._plan.used[:, slots].to(keep.device, non_blocking=True)
        weight = torch.where(used, torch.where(subtract, keep - 1, keep), torch.zeros((), dtype=keep.dtype))
        return weight.transpose(1, 2)

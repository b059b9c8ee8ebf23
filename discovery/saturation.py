"""The QK fix of AtP* (Kramar et al. 2024): what a patched query or key does to its head, with the softmax computed anew.

With values as they are, a head's mix is its attention pattern times them, so that (pattern - patched pattern) times the
gradient behind the softmax is (mix - patched mix) times the gradient at the mix: the library's own attention is called with
the patched query or key, and no kernel has to show its pattern.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.activations import Activations, Sequences, copy_cache
from discovery.blocks import Block, Projected
from discovery.contraction import SourceDifferences, head_writers
from discovery.feature_layer import FeatureLayers
from discovery.memory import chunk_columns
from discovery.recording import override, replay

Sharp = Literal["q", "k"]
_COPIES = 8
"""Tensors of a stream's size that one source's patched attention may hold."""


class Saturation:
    """One batch's attention modules, ready to be called with patched queries or keys."""

    def __init__(self, seen: Activations, sequences: Sequences, dtype: torch.dtype, wide_norm: bool) -> None:
        """seen: the clean pass. wide_norm: whether a norm over all heads' queries or keys couples the heads."""
        self._seen, self._sequences, self._dtype, self._wide_norm = seen, sequences, dtype, wide_norm

    def slot_effects(
        self,
        block: Block,
        port: Sharp,
        patched: Float[Tensor, "some row pos slot d_head"],
        at_mix: Float[Tensor, "pass row pos head d_head"],
    ) -> Float[Tensor, "pass row some slot"]:
        """What it does to replace each slot's query or key alone, by gradients at the heads' mixes."""
        clean = block.split([raw.detach() for raw in self._seen.raw[block.index]])
        if not self._wide_norm:
            change = self._mix_change(block, clean._replace(**{port: patched.flatten(0, 1)}), len(patched))
            per_head = torch.einsum("nrphe,arphe->arnh", change, at_mix)
            return per_head.unflatten(-1, (patched.shape[3], -1)).sum(-1)
        found = []
        for slot in range(patched.shape[3]):
            own = getattr(clean, port).repeat(len(patched), *[1] * 3)
            own[:, :, slot] = patched[:, :, :, slot].flatten(0, 1).to(own.dtype)
            change = self._mix_change(block, clean._replace(**{port: own}), len(patched))
            found.append(torch.einsum("nrphe,arphe->arn", change, at_mix))
        return torch.stack(found, -1)

    def _mix_change(self, block: Block, projected: Projected, count: int) -> Float[Tensor, "some row pos head d_head"]:
        """Clean less patched mix, `projected` holding one tensor of `count` times as many rows."""
        rows = count * len(self._seen.mix[block.index])
        parts = [part if len(part) == rows else part.repeat(count, *[1] * (part.ndim - 1)) for part in projected]
        dtype = self._seen.mix[block.index].dtype
        raws = [raw.to(dtype).contiguous() for raw in block.join(Projected(*parts))]
        width, d_model = raws[0].shape[1], block.weight("q").shape[-1]
        hidden = raws[0].new_zeros(()).expand(rows, width, d_model)
        cache = copy_cache(self._sequences.cache, count, block.index)
        args, kwargs = replay(self._seen.calls[block.index], hidden, cache, rows // count)
        with contextlib.ExitStack() as stack:
            for module, raw in zip(block.projections, raws, strict=True):
                override(module, "forward", lambda _hidden, raw=raw: raw, stack)
            override(block.output, "forward", lambda mix: mix, stack)
            mix = block.attention(*args, **kwargs)[0]
        change = self._seen.mix[block.index].detach().to(self._dtype) - mix.to(self._dtype).unflatten(0, (count, -1))
        return change.unflatten(-1, (block.heads, block.d_head))

    def edge_effects(
        self,
        block: Block,
        sources: Sequence[Float[Tensor, "_ row pos d_model"]],
        at_mix: Float[Tensor, "pass row pos head d_head"],
    ) -> dict[Sharp, Float[Tensor, "pass row src slot"]]:
        """By port, what every source's change does through each query and key slot of a block, one edge at a time."""
        stream = self._seen.attention_in[block.index].detach().to(self._dtype)
        found: dict[Sharp, list[Tensor]] = {"q": [], "k": []}
        size = chunk_columns(sum(map(len, sources)), _COPIES * stream.nbytes, stream.device)
        for piece in (piece for written in sources for piece in written.split(size)):
            patched = (stream - piece.to(stream.device)).flatten(0, 1)
            normed = patched if block.attention_norm is None else block.attention_norm(patched)
            for port, effects in found.items():
                weight, bias = block.weight(port), block.bias(port)
                slots = (normed.to(weight.dtype) @ weight.flatten(0, 1).t()).unflatten(-1, weight.shape[:2])
                slots = slots if bias is None else slots + bias
                effects.append(self.slot_effects(block, port, slots.unflatten(0, (len(piece), -1)), at_mix))
        return {port: torch.cat(effects, 2) for port, effects in found.items()}


def writes_of(
    block: Block, differences: SourceDifferences, features: FeatureLayers
) -> list[Float[Tensor, "_ row pos d_model"]]:
    """What the differences of a block's sources add to the residual stream, in the order of the sources."""
    change, whole = differences.heads[block.index], differences.mlps[block.index]
    heads = torch.einsum("rphe,hed->hrpd", change, head_writers(block, change.dtype))
    if block.index not in features or not features[block.index].chosen:
        return [heads, whole.unsqueeze(0)]
    written = features[block.index].write(differences.features[block.index])
    return [heads, written, (whole - written.sum(0)).unsqueeze(0)]

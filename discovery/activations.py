"""What hooks see of one forward pass, and the sequences that it runs on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from discovery.model import Sublayer


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token sequences for one pass; columns before `start` are in the cache already."""

    tokens: Int[Tensor, "row pos"]
    """Token ids from column `start` on."""
    mask: Bool[Tensor, "row total"]
    """True at real tokens, all columns."""
    positions: Int[Tensor, "row pos"]
    """Position ids from column `start` on."""
    cache: DynamicCache | None
    """Keys and values of the columns before `start`; None when there are none."""

    def repeat(self, times: int) -> Sequences:
        """The same sequences several times over, one after the other."""
        if times == 1:
            return self
        tokens, mask, positions = (part.repeat(times, 1) for part in (self.tokens, self.mask, self.positions))
        return Sequences(tokens, mask, positions, copy_cache(self.cache, times))


@dataclass(frozen=True, eq=False)
class Held:
    """What is put in the place of a sublayer's output."""

    place: Sublayer
    """The sublayer."""
    rows: slice
    """Rows of the pass."""
    value: Float[Tensor, "row pos d_model"]
    """What the residual stream receives there."""


@dataclass(eq=False)
class Activations:
    """What one forward pass did, from column `start` on. Lists have one entry per layer."""

    entry: Tensor | None = None
    """Residual stream before block 0 [row pos d_model]."""
    attention_in: list[Tensor] = field(default_factory=list)
    """Residual stream before the attention."""
    mlp_in: list[Tensor] = field(default_factory=list)
    """Residual stream before the MLP."""
    raw: list[tuple[Tensor, ...]] = field(default_factory=list)
    """Outputs of the projection modules (widened where key/value heads are ungrouped)."""
    mix: list[Tensor] = field(default_factory=list)
    """Input of the output projection: the heads' mixed values [row pos head*d_head]."""
    attention_sum: list[Tensor] = field(default_factory=list)
    """Output of the output projection, recorded where a post-norm follows."""
    mlp_normed: list[Tensor] = field(default_factory=list)
    """Input of the MLP module."""
    attention_out: list[Tensor] = field(default_factory=list)
    """What the attention adds to the residual stream, where outputs were asked for."""
    hidden: list[Tensor] = field(default_factory=list)
    """The MLPs' neurons [row pos neuron], where they were asked for."""
    mlp_raw: list[Tensor] = field(default_factory=list)
    """Output of the MLP module, recorded where a post-norm follows."""
    mlp_out: list[Tensor] = field(default_factory=list)
    """What the MLP adds to the residual stream."""
    patterns: list[Tensor] = field(default_factory=list)
    """Attention probabilities [row head query key], where they were asked for."""
    final_in: Tensor | None = None
    """Residual stream before the final norm."""
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    """Arguments of each attention module, to call it again."""
    logits: Float[Tensor, "read vocab"] | None = None
    """Logits at the reads, where they were asked for."""
    real: Bool[Tensor, "row pos"] | None = None
    """True at tokens that are no padding."""


@dataclass(eq=False)
class LayerSwitch:
    """Which layer hands no gradient back through what it adds to the residual stream; set between backward passes."""

    dropped: int | None = None
    """The layer; None: all hand it back."""


def copy_cache(cache: DynamicCache | None, repeats: int = 1, layer: int | None = None) -> DynamicCache | None:
    """A cache that a forward pass may grow without changing the original.

    repeats: how many times the rows of `layer`, where it is the only one that is called, or of all layers stand one after the
    other (several masks, several points).
    """
    if cache is None:
        return None
    twin = copy.copy(cache)
    twin.layers = [copy.copy(each) for each in cache.layers]  # tensors are replaced by updates, never written into
    for called in cast(Any, twin.layers if layer is None else [twin.layers[layer]]) if repeats > 1 else ():
        if called.is_initialized:
            called.keys = called.keys.repeat(repeats, 1, 1, 1)
            called.values = called.values.repeat(repeats, 1, 1, 1)
    return twin

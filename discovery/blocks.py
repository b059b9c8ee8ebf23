"""A model's blocks as the engine sees them: modules resolved from the architecture record, weights as per-head views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from discovery.architecture import Architecture, Layout, NormKind, UnsupportedModel
from graphs.node import PORTS, Port


class Projected(NamedTuple):
    """What the q, k and v slots of one block produce."""

    q: Float[Tensor, "*row head d_head"]
    """Queries, one slot per head."""
    k: Float[Tensor, "*row kv_slot d_head"]
    """Keys, one slot per key/value head (per head when ungrouped)."""
    v: Float[Tensor, "*row kv_slot d_head"]
    """Values, as the keys."""


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm, callable like its module, with what its closed-form derivative needs."""

    module: nn.Module
    """The library's module."""
    kind: NormKind
    """LayerNorm or one of the RMSNorms."""

    def __call__(self, x: Tensor) -> Tensor:
        """The module's own output, on the device and in the dtype that it stores its weights in."""
        return self.module(x.to(self.module.weight))  # type: ignore[union-attr,arg-type]

    @property
    def weight(self) -> Float[Tensor, " d_model"]:
        """The factor after normalisation (1 + w for Gemma)."""
        weight = cast(Tensor, self.module.weight)
        return weight + 1 if self.kind == "rms-plus-one" else weight

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """The constant after normalisation, where there is one."""
        return cast("Tensor | None", getattr(self.module, "bias", None))

    def centre(self, x: Tensor) -> Tensor:
        """x less its mean for a LayerNorm, x itself for an RMSNorm."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def centre_(self, x: Tensor) -> Tensor:
        """`centre`, written over x."""
        return x.sub_(x.mean(-1, keepdim=True)) if self.kind == "layer" else x

    def inverse_scale(self, centred: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"]:
        """1 / sqrt(mean square + eps) of a centred input."""
        eps = getattr(self.module, "eps", None) or getattr(self.module, "variance_epsilon", 0.0)
        return torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder layer."""

    index: int
    """Number of the layer."""
    layer: nn.Module
    """The decoder layer."""
    attention: nn.Module
    """The module that holds the projections."""
    projections: tuple[nn.Module, ...]
    """q, k and v projections, or the fused one."""
    layout: Layout
    """How the projections are laid out."""
    output: nn.Module
    """The attention's output projection."""
    mlp: nn.Module
    """The MLP."""
    attention_norm: Norm | None
    """Norm in front of the attention."""
    mlp_norm: Norm | None
    """Norm in front of the MLP."""
    post_attention_norm: Norm | None
    """Norm on what the attention writes."""
    post_mlp_norm: Norm | None
    """Norm on what the MLP writes."""
    parallel: bool
    """Whether the MLP reads what the attention reads."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads, as the model has them."""
    d_head: int
    """Width of a head."""
    ungrouped: bool
    """Whether each query head has its own k and v slot although the model shares them."""

    coupled: bool
    """Whether a head's slots change the other heads' outputs: a norm behind the attention, or a q/k norm over all heads."""

    @property
    def kv_slots(self) -> int:
        """Number of k slots, and of v slots."""
        return self.heads if self.ungrouped else self.kv_heads

    def _sizes(self) -> tuple[int, int, int]:
        return self.heads, self.kv_heads, self.kv_heads

    def native_weight(self, port: Port) -> Float[Tensor, "head d_head d_model"]:
        """Projection weights as the model has them: those of a key/value head once for all the heads that share it."""
        which = PORTS.index(port)
        sizes = self._sizes()
        if self.layout == "separate":
            return linear_weight(self.projections[which]).unflatten(0, (sizes[which], self.d_head))
        fused = linear_weight(self.projections[0])
        if self.layout == "interleaved":
            return fused.unflatten(0, (self.heads, 3, self.d_head))[:, which]
        return fused.split([n * self.d_head for n in sizes])[which].unflatten(0, (sizes[which], self.d_head))

    def _native_bias(self, port: Port) -> Float[Tensor, "head d_head"] | None:
        which = PORTS.index(port)
        sizes = self._sizes()
        bias = cast("Tensor | None", self.projections[which if self.layout == "separate" else 0].bias)
        if bias is None:
            return None
        if self.layout == "separate":
            return bias.unflatten(0, (sizes[which], self.d_head))
        if self.layout == "interleaved":
            return bias.unflatten(0, (self.heads, 3, self.d_head))[:, which]
        return bias.split([n * self.d_head for n in sizes])[which].unflatten(0, (sizes[which], self.d_head))

    def weight(self, port: Port) -> Float[Tensor, "slot d_head d_model"]:
        """Projection weights per slot: projected = weight @ normed input + bias."""
        return self._per_slot(port, self.native_weight(port))

    def bias(self, port: Port) -> Float[Tensor, "slot d_head"] | None:
        """Projection biases per slot."""
        native = self._native_bias(port)
        return None if native is None else self._per_slot(port, native)

    def _per_slot(self, port: Port, native: Tensor) -> Tensor:
        if port == "q" or not self.ungrouped:
            return native
        return native.repeat_interleave(self.heads // self.kv_heads, 0)

    def output_weight(self) -> Float[Tensor, "head d_head d_model"]:
        """Output projection per head: the head writes mix @ weight."""
        return linear_weight(self.output).t().unflatten(0, (self.heads, self.d_head))

    def split(self, raw: Sequence[Tensor]) -> Projected:
        """Per-slot views of the projections' outputs [*row out], grouped or not as the tensors' widths say."""
        if self.layout == "separate":
            return Projected(*(part.unflatten(-1, (-1, self.d_head)) for part in raw))
        if self.layout == "interleaved":
            return Projected(*raw[0].unflatten(-1, (self.heads, 3, self.d_head)).unbind(-2))
        q_width = self.heads * self.d_head
        kv_width = (raw[0].shape[-1] - q_width) // 2
        parts = raw[0].split([q_width, kv_width, kv_width], -1)
        return Projected(*(part.unflatten(-1, (-1, self.d_head)) for part in parts))

    def join(self, projected: Projected) -> tuple[Tensor, ...]:
        """The inverse of `split`: one tensor per projection module."""
        if self.layout == "separate":
            return tuple(part.flatten(-2) for part in projected)
        if self.layout == "interleaved":
            return (torch.stack(projected, -2).flatten(-3),)
        return (torch.cat([part.flatten(-2) for part in projected], -1),)

    def run_mlp(self, stream: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP module returns for a residual stream, before a norm behind it."""
        weight = next(self.mlp.parameters())
        normed = stream if self.mlp_norm is None else self.mlp_norm(stream.to(weight.device))
        return self.mlp(normed.to(device=weight.device, dtype=weight.dtype))

    def widen(self, projected: Projected) -> Projected:
        """Give every query head its own copy of its key/value head."""
        groups = self.heads // self.kv_heads
        return Projected(
            projected.q, projected.k.repeat_interleave(groups, -2), projected.v.repeat_interleave(groups, -2)
        )


def linear_weight(module: nn.Module) -> Float[Tensor, "out in_"]:
    """Weight as a Linear stores it; GPT-2's Conv1D stores the transpose."""
    weight = cast(Tensor, module.weight)
    return weight.t() if type(module).__name__ == "Conv1D" else weight


def find_blocks(model: PreTrainedModel, record: Architecture, ungroup: bool) -> tuple[Block, ...]:
    """The blocks of a model. ungroup: give each query head its own k and v slot."""
    config = model.config.get_text_config()
    layers = cast(nn.ModuleList, model.get_submodule(record.layers))
    return tuple(_block(layers[i], i, record, config, ungroup) for i in range(len(layers)))


def _block(layer: nn.Module, index: int, record: Architecture, config: PreTrainedConfig, ungroup: bool) -> Block:
    attention = layer.get_submodule(record.attention)
    output = attention.get_submodule(record.output)
    for name in (*record.projections, record.output):
        weight = getattr(attention.get_submodule(name), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta or not weight.is_floating_point():
            raise UnsupportedModel(
                f"layer {index}: {record.attention}.{name} has no plain weight matrix in memory "
                "(quantised, adapted or offloaded layers are not supported)"
            )
    if record.post_attention_norm is not None and output.bias is not None:
        # The normed bias would belong to no head and yet change with every patch.
        raise UnsupportedModel(f"layer {index}: an attention output bias behind a post-attention norm is not supported")
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads

    def norm(path: str | None) -> Norm | None:
        return None if path is None else Norm(layer.get_submodule(path), record.norm)

    return Block(
        index=index,
        layer=layer,
        attention=attention,
        projections=tuple(attention.get_submodule(name) for name in record.projections),
        layout=record.layout,
        output=output,
        mlp=layer.get_submodule(record.mlp),
        attention_norm=norm(record.attention_norm),
        mlp_norm=norm(record.mlp_norm),
        post_attention_norm=norm(record.post_attention_norm),
        post_mlp_norm=norm(record.post_mlp_norm),
        parallel=getattr(config, record.parallel) if isinstance(record.parallel, str) else record.parallel,
        heads=heads,
        kv_heads=kv_heads,
        d_head=linear_weight(output).shape[1] // heads,
        ungrouped=ungroup and kv_heads != heads,
        coupled=record.post_attention_norm is not None or record.wide_key_norm is not None,
    )

"""One prompt's forward pass with everything that a local replacement model holds fixed: attention patterns and norm scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.blocks import Block, Norm
from discovery.component_model import ComponentModel
from discovery.contraction import head_writers
from discovery.recording import Activations, Sequences, record_pass, session
from discovery.transcoder import Site


class FrozenLayer:
    """One block with its attention pattern and norm denominators as they were: a linear map of the residual stream.

    `pull` methods take gradients [row pos d_model] back through a part of the layer; positions are the first ones of the
    prompt, as many as the gradients have.
    """

    def __init__(self, block: Block, seen: Activations, dtype: torch.dtype) -> None:
        self.block = block
        self._dtype = dtype
        layer = block.index
        self.pattern: Float[Tensor, "head query key"] = seen.patterns[layer][0].to(dtype)
        self.attention_scale = _scale(block.attention_norm, seen.attention_in[layer], dtype)
        self.mlp_scale = _scale(block.mlp_norm, seen.mlp_in[layer], dtype)
        self.post_attention_scale = None
        if block.post_attention_norm is not None:
            self.post_attention_scale = _scale(block.post_attention_norm, seen.attention_sum[layer], dtype)
        self.post_mlp_scale = None
        if block.post_mlp_norm is not None:
            self.post_mlp_scale = _scale(block.post_mlp_norm, seen.mlp_raw[layer], dtype)
        self.writers: Float[Tensor, "head d_head d_model"] = head_writers(block, dtype)
        weight = block.weight("v").to(dtype)
        norm = block.attention_norm
        self.readers: Float[Tensor, "kv_slot d_head d_model"] = (
            weight if norm is None else norm.centre(weight * norm.weight.to(dtype))
        )

    def pull_attention(
        self, gradient: Float[Tensor, "row pos d_model"], heads: slice = slice(None)
    ) -> Float[Tensor, "row pos d_model"]:
        """Through the attention (or the heads of a slice, without grouping) to what it read: paths by its values alone."""
        rows, width, d_model = gradient.shape
        if self.post_attention_scale is not None:
            gradient = gradient * self.post_attention_scale[:width]
        writers, pattern, readers = self.writers[heads], self.pattern[heads, :width, :width], self.readers
        if heads != slice(None):
            group = self.block.heads // readers.shape[0]
            readers = readers.repeat_interleave(group, 0)[heads]
        slots, d_head = readers.shape[:2]
        group = writers.shape[0] // slots
        mixed = gradient.reshape(rows * width, d_model) @ writers.flatten(0, 1).t()
        # [slot, head of the group * query, row * d_head]: a group's heads are summed by the product itself.
        mixed = mixed.view(rows, width, slots * group, d_head).permute(2, 1, 0, 3)
        mixed = mixed.reshape(slots, group * width, rows * d_head)
        values = torch.bmm(pattern.reshape(slots, group * width, width).transpose(1, 2), mixed)
        values = values.view(slots, width, rows, d_head).permute(2, 1, 0, 3).reshape(rows * width, slots * d_head)
        pulled = (values @ readers.flatten(0, 1)).view(rows, width, d_model)
        return pulled if self.attention_scale is None else pulled.mul_(self.attention_scale[:width])

    def pull_to_values(self, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos head d_head"]:
        """To every head's values, one copy for each query head."""
        rows, width, _ = gradient.shape
        if self.post_attention_scale is not None:
            gradient = gradient * self.post_attention_scale[:width]
        heads, d_head, _ = self.writers.shape
        mixed = (gradient.flatten(0, 1) @ self.writers.flatten(0, 1).t()).view(rows, width, heads, d_head)
        mixed = mixed.permute(2, 1, 0, 3).reshape(heads, width, rows * d_head)
        pulled = torch.bmm(self.pattern[:, :width, :width].transpose(1, 2), mixed)
        return pulled.view(heads, width, rows, d_head).permute(2, 1, 0, 3)

    def pull_attention_from(
        self, gradient: Float[Tensor, "row d_model"], positions: Int[Tensor, " row"], width: int
    ) -> Float[Tensor, "row pos d_model"]:
        """As `pull_attention`, of rows that are at one position each: one vector a head instead of one a position."""
        if self.post_attention_scale is not None:
            gradient = gradient * self.post_attention_scale[positions]
        rows, (slots, d_head, d_model) = len(gradient), self.readers.shape
        mixed = (gradient @ self.writers.flatten(0, 1).t()).view(rows, slots, -1, d_head)
        read = torch.bmm(mixed.transpose(0, 1).reshape(slots, -1, d_head), self.readers)
        heads = read.view(slots, rows, -1, d_model).transpose(0, 1).reshape(rows, -1, d_model)
        pulled = torch.bmm(self.pattern[:, positions, :width].permute(1, 2, 0), heads)
        return pulled if self.attention_scale is None else pulled.mul_(self.attention_scale[:width])

    @cached_property
    def attention_constant(self) -> Float[Tensor, "pos d_model"]:
        """What the attention adds to the residual stream whatever it reads: biases of norm, values and output."""
        block, norm, dtype = self.block, self.block.attention_norm, self._dtype
        bias = block.bias("v")
        constant = self.readers.new_zeros(self.readers.shape[:2]) if bias is None else bias.to(dtype)
        if norm is not None and norm.bias is not None:
            constant = constant + block.weight("v").to(dtype) @ norm.bias.to(dtype)
        per_head = constant.repeat_interleave(block.heads // constant.shape[0], 0)
        written = torch.einsum("hqk,he,hed->qd", self.pattern, per_head, self.writers)
        if self.post_attention_scale is not None:
            written = written * self.post_attention_scale
        return written if block.output.bias is None else written + block.output.bias.to(dtype)  # type: ignore[operator]

    def pull_mlp_read(self, gradient: Float[Tensor, "*row d"], positions: Tensor, site: Site) -> Tensor:
        """From a site in front of the MLP to the residual stream that the MLP reads. positions: one for each row."""
        norm = self.block.mlp_norm
        if norm is None or self.mlp_scale is None or site == "residual-mid":
            return gradient
        if site == "mlp-in":
            gradient = gradient * norm.weight.to(gradient.dtype)
        return norm.centre(gradient) * self.mlp_scale[positions]

    def mlp_read_constant(self, site: Site) -> Tensor | None:
        """What a site in front of the MLP holds whatever the residual stream is: [d_model]; None for nothing."""
        norm = self.block.mlp_norm
        return None if norm is None or norm.bias is None or site != "mlp-in" else norm.bias.to(self._dtype)

    def push_mlp_write(self, vectors: Float[Tensor, "*row d"], positions: Tensor, site: Site) -> Tensor:
        """From a site behind the MLP to what is added to the residual stream. positions: one for each vector."""
        norm = self.block.post_mlp_norm
        if site != "mlp-raw" or norm is None or self.post_mlp_scale is None:
            return vectors
        return vectors * norm.weight.to(vectors.dtype) * self.post_mlp_scale[positions]


def _scale(norm: Norm | None, stream: Tensor, dtype: torch.dtype) -> Float[Tensor, "pos 1"] | None:
    return None if norm is None else norm.inverse_scale(norm.centre(stream[0].to(dtype)))


@dataclass(frozen=True, eq=False)
class FrozenPrompt:
    """A recorded prompt and the linear maps that its layers become."""

    tokens: Int[Tensor, " pos"]
    """The prompt."""
    seen: Activations
    """The untouched model's pass; one row."""
    layers: tuple[FrozenLayer, ...]
    """The blocks, frozen."""
    positional: Float[Tensor, "pos d_model"] | None
    """Learned position embeddings; None where there are none."""
    embeddings: Float[Tensor, "pos d_model"]
    """Token embeddings as they enter the residual stream."""
    final_norm: Norm
    """The norm before the unembedding."""
    final_scale: Float[Tensor, "pos 1"]
    """Its inverse scale."""
    logits: Float[Tensor, " vocab"]
    """The model's logits at the last position, float32 at least."""

    def pull_logits(self, gradient: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """From behind the final norm at the last position to the residual stream before it."""
        return self.final_norm.centre(gradient * self.final_norm.weight.to(gradient.dtype)) * self.final_scale[-1]


def freeze(model: ComponentModel, tokens: Int[Tensor, " pos"]) -> FrozenPrompt:
    """Run the untouched model on one prompt and keep what a local replacement model freezes, without gradients."""
    ids = tokens.to(model.device).unsqueeze(0)
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    sequences = Sequences(ids, torch.ones_like(ids, dtype=torch.bool), positions, None)
    last = (torch.zeros(1, dtype=torch.long, device=ids.device), positions[0, -1:])
    with session(model.hf, model.arch, model.blocks), torch.no_grad():
        seen = record_pass(model.hf, model.arch, model.blocks, sequences, reads=last, patterns=True)
        assert seen.entry is not None and seen.final_in is not None and seen.logits is not None
        entry = seen.entry[0].to(model.dtype)
        positional = None
        if model.arch.position_embedding is not None:
            positional = model.hf.get_submodule(model.arch.position_embedding)(positions[0]).to(model.dtype)
        final_scale = _scale(model.final_norm, seen.final_in, model.dtype)
        assert final_scale is not None
        return FrozenPrompt(
            tokens=ids[0],
            seen=seen,
            layers=tuple(FrozenLayer(block, seen, model.dtype) for block in model.blocks),
            positional=positional,
            embeddings=entry if positional is None else entry - positional,
            final_norm=model.final_norm,
            final_scale=final_scale,
            logits=seen.logits[0].to(model.dtype),
        )

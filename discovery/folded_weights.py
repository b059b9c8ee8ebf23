"""Weights of a model and its transcoders as maps of the residual stream, norms without their scales."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.blocks import Block, Norm
from discovery.component_model import ComponentModel
from discovery.contraction import head_writers
from discovery.transcoder import Transcoder, TranscoderSet
from graphs.node import NodeId

CHUNK = 1 << 24
"""Numbers of a weight matrix that are read in one go."""


class FoldedWeights:
    """The model's weights and the dictionaries', norms folded in without their scales."""

    def __init__(self, model: ComponentModel, transcoders: TranscoderSet) -> None:
        self.model, self.transcoders, self.blocks = model, transcoders, model.blocks

    def place(self, rows: Tensor) -> Tensor:
        """Rows of a matrix that may lie on disk, ready to compute with."""
        return rows.to(self.model.device, self.model.dtype)

    def folded(self, norm: Norm | None, vectors: Tensor) -> Tensor:
        """Vectors in the residual stream as what stands behind a norm sees them."""
        return vectors if norm is None else norm.centre(vectors) * self.place(norm.weight)

    def mlp_reads(self, layer: int, vectors: Tensor) -> Tensor:
        """The same as the layer's dictionary sees them."""
        norm, site = self.blocks[layer].mlp_norm, self.transcoders.reads
        if norm is None or site == "residual-mid":
            return vectors
        return self.folded(norm, vectors) if site == "mlp-in" else norm.centre(vectors)

    def reads(self, feature: NodeId) -> Float[Tensor, " d_model"]:
        """What a feature reads: its gradient at the residual stream."""
        assert feature.layer is not None and feature.index is not None
        norm, site = self.blocks[feature.layer].mlp_norm, self.transcoders.reads
        row = self.place(self.transcoders.by_layer[feature.layer].encoder[feature.index])
        if norm is None or site == "residual-mid":
            return row
        return norm.centre(row * self.place(norm.weight) if site == "mlp-in" else row)

    def writes(self, feature: NodeId) -> dict[int, Float[Tensor, " d_model"]]:
        """What a feature adds to the residual stream, by layer."""
        assert feature.layer is not None and feature.index is not None
        own = self.transcoders.by_layer[feature.layer]
        return {layer: self.written(own, layer, slice(feature.index, feature.index + 1))[0] for layer in own.decoders}

    def written(self, transcoder: Transcoder, layer: int, some: slice) -> Float[Tensor, "feature d_model"]:
        """What some features of a dictionary add to the residual stream at a layer."""
        rows, norm = self.place(transcoder.decoders[layer][some]), self.blocks[layer].post_mlp_norm
        return rows if norm is None or self.transcoders.writes != "mlp-raw" else rows * self.place(norm.weight)

    def readers(self, block: Block) -> Float[Tensor, "kv_slot d_head d_model"]:
        """What turns the residual stream into values."""
        weight, norm = self.place(block.weight("v")), block.attention_norm
        return weight if norm is None else norm.centre(weight * self.place(norm.weight))

    def push_heads(self, block: Block, vector: Float[Tensor, " d_model"]) -> Float[Tensor, "head d_model"]:
        """What every head writes where it attends to a vector with weight 1."""
        values = self.readers(block) @ vector
        values = values.repeat_interleave(block.heads // len(values), 0)
        return torch.einsum("he,hed->hd", values, self.place(head_writers(block, self.model.dtype)))

    def pull_heads(self, block: Block, gradient: Float[Tensor, " d_model"]) -> Float[Tensor, "head d_model"]:
        """The reverse: from a gradient at what heads write to what each reads."""
        values, readers = self.place(head_writers(block, self.model.dtype)) @ gradient, self.readers(block)
        return torch.einsum("he,hed->hd", values, readers.repeat_interleave(block.heads // len(readers), 0))

    def embedded(self, read: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
        """What a reader of the residual stream sees of every token, as the embedding module gives it."""
        module = self.model.hf.get_input_embeddings()
        vocabulary: int = module.weight.shape[0]  # type: ignore[union-attr,index,assignment]
        ids = torch.arange(vocabulary, device=self.model.device)
        return torch.cat([self.place(module(some)) @ read for some in ids.split(max(1, CHUNK // len(read)))])  # type: ignore[operator,misc]

    def unembedded(self, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
        """Demeaned logits of a vector in the residual stream."""
        head: Tensor = self.model.hf.get_submodule(self.model.arch.unembedding).weight  # type: ignore[assignment]
        seen = self.folded(self.model.final_norm, vector)
        logits = torch.cat([self.place(rows) @ seen for rows in head.split(max(1, CHUNK // len(vector)))])
        return logits - logits.mean()

"""Random transcoders of every kind for a tiny model, scaled to its own activations so that about 30 % of features fire."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.recording import Activations, Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import Activation, Site, Transcoder, TranscoderSet

TranscoderKind = Literal["relu", "jumprelu", "topk", "batchtopk", "skip", "cross-layer"]
KINDS: tuple[TranscoderKind, ...] = ("relu", "jumprelu", "topk", "batchtopk", "skip", "cross-layer")
_ACTIVE = 0.3


def tiny_transcoders(
    model: ComponentModel,
    kind: TranscoderKind,
    features: int = 13,
    seed: int = 0,
    reads: Site = "mlp-in",
    writes: Site = "mlp-out",
    dtype: torch.dtype = torch.float32,
) -> TranscoderSet:
    """One random dictionary for each layer. cross-layer: JumpReLU, every layer writes itself and all layers behind it."""
    generator = torch.Generator().manual_seed(seed)
    seen = record(model, random_tokens(model, seed))
    layers = range(len(model.blocks))
    outputs = {layer: at_site(model.blocks, seen, layer, writes).flatten(0, 1).double() for layer in layers}
    transcoders = []
    for layer in layers:
        x = at_site(model.blocks, seen, layer, reads).flatten(0, 1).double()
        encoder = torch.randn(features, x.shape[-1], generator=generator, dtype=torch.float64)
        h = x @ encoder.t()
        encoder = encoder / h.std(0, keepdim=True).t().clamp(min=1e-3)
        # The bias puts the chosen quantile of every feature at its threshold.
        threshold = 0.2 + 0.3 * torch.rand(features, generator=generator, dtype=torch.float64)
        activation, level = _activation(kind, features, threshold.to(dtype))
        bias = level - (x @ encoder.t()).quantile(1 - _ACTIVE, dim=0)
        written = range(layer, len(model.blocks)) if kind == "cross-layer" else (layer,)
        decoders = {
            target: (_like(outputs[target], features, generator) / len(written)).to(dtype) for target in written
        }
        skip = None
        if kind == "skip":
            skip = torch.randn(outputs[layer].shape[-1], x.shape[-1], generator=generator, dtype=torch.float64)
            skip = (skip * 0.3 * outputs[layer].std() / x.norm(dim=-1).mean()).to(dtype)
        transcoders.append(
            Transcoder(layer, encoder.to(dtype).contiguous(), bias.to(dtype), decoders, activation, skip=skip)
        )
    biases = {layer: _like(outputs[layer], 1, generator)[0].to(dtype) for layer in layers}
    return TranscoderSet(tuple(transcoders), reads, writes, biases, name=f"tiny {kind}")


def random_tokens(model: ComponentModel, seed: int = 0, rows: int = 4, width: int = 12) -> Tensor:
    """Random token ids [row pos], none of them special in the tiny models."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(model.config.get_text_config().vocab_size, 38)  # gemma3-images: the last ids stand for pictures
    return torch.randint(3, vocabulary, (rows, width), generator=generator)


def record(model: ComponentModel, tokens: Tensor) -> Activations:
    """A recorded pass over unpadded rows of tokens [row pos], with logits at every position."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    rows = torch.arange(tokens.shape[0]).repeat_interleave(tokens.shape[1])
    reads = (rows, torch.arange(tokens.shape[1]).repeat(tokens.shape[0]))
    with session(model.hf, model.arch, model.blocks):
        return record_pass(model.hf, model.arch, model.blocks, Sequences(tokens, mask, positions, None), reads=reads)


def _activation(kind: TranscoderKind, features: int, threshold: Tensor) -> tuple[Activation, Tensor]:
    """The nonlinearity, and the pre-activation at which a feature starts to fire (0 where the features compete)."""
    k = max(1, round(_ACTIVE * features))
    if kind in ("jumprelu", "cross-layer"):
        return Activation("jumprelu", threshold=threshold), threshold.double()
    if kind in ("topk", "batchtopk"):
        # Twice as many as may fire stand above 0, so that competition decides and not the sign.
        return Activation("topk" if kind == "topk" else "batchtopk", k=k), torch.full_like(threshold.double(), 0.6)
    return Activation("relu"), torch.zeros_like(threshold.double())


def _like(outputs: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Random rows whose entries are about as large as the outputs [row d_out] that they add up to."""
    return torch.randn(rows, outputs.shape[-1], generator=generator, dtype=torch.float64) * outputs.std() / rows**0.5

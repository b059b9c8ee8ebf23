"""Transcoders and sparse autoencoders: what is read from disk, trained, traced and patched, in one shape.

Every published kind is brought to one form when it is read (see discovery/transcoder_formats):

    h = W_enc x + b_enc        a = activation(h)        output of layer l = sum_f a_f W_dec[f, l] + b_dec[l] (+ W_skip x)

A decoder bias that is subtracted from the input, a gate (Rajamanoharan et al. 2024a) and input scalings are linear in x
or in h, and are folded into W_enc, b_enc and the threshold. Weights may be memory-mapped: rows are read when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Site = Literal[
    "residual-in",
    "attention-mix",
    "attention-out",
    "residual-mid",
    "mlp-norm",
    "mlp-in",
    "mlp-raw",
    "mlp-out",
    "residual-out",
]
"""A place in a layer. residual-in, -mid, -out: the residual stream before the attention, before the MLP, after the layer.
attention-mix: the heads' mixed values side by side, before the output projection. attention-out, mlp-out: what is added to
the residual stream. mlp-norm: normalised, before the norm's weight and bias. mlp-in: what the MLP module is called with.
mlp-raw: what the MLP module returns, before a norm behind it (elsewhere the same as mlp-out)."""
SITES: tuple[Site, ...] = get_args(Site)
TRANSCODER_READS: tuple[Site, ...] = ("residual-mid", "mlp-norm", "mlp-in")
"""Where a dictionary that stands for the MLP may read."""
TRANSCODER_WRITES: tuple[Site, ...] = ("mlp-raw", "mlp-out")
"""Where it may write."""

ActivationKind = Literal["relu", "jumprelu", "topk", "batchtopk"]


class BadTranscoder(ValueError):
    """Transcoders that cannot be read, or that do not fit the model."""


@dataclass(frozen=True, eq=False)
class Activation:
    """The nonlinearity between pre-activations and activations."""

    kind: ActivationKind
    """relu; jumprelu: h where h > threshold; topk: the k largest of a position; batchtopk: the k * positions largest of a
    call. A gated autoencoder is a jumprelu whose threshold was folded from its gate."""
    threshold: Float[Tensor, " feature"] | None = None
    """Of jumprelu, one per feature."""
    k: int | None = None
    """Of topk and batchtopk."""
    rectified: bool = True
    """Whether negative pre-activations that pass are set to 0 all the same (SAELens, sparsify; not circuit-tracer)."""

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.kind == "jumprelu"):
            raise BadTranscoder(f"activation {self.kind}: a threshold belongs to jumprelu, and only to it")
        if (self.k is None) == (self.kind in ("topk", "batchtopk")):
            raise BadTranscoder(f"activation {self.kind}: k belongs to topk and batchtopk, and only to them")

    def __call__(self, h: Float[Tensor, "*position feature"]) -> Float[Tensor, "*position feature"]:
        """Activations of pre-activations."""
        return ACTIVATIONS[self.kind](self, h)


def _relu(activation: Activation, h: Tensor) -> Tensor:
    return torch.relu(h)


def _jumprelu(activation: Activation, h: Tensor) -> Tensor:
    assert activation.threshold is not None
    threshold = activation.threshold.to(device=h.device, dtype=h.dtype)
    least = threshold.clamp(min=0) if activation.rectified else threshold
    return torch.where(h > least, h, h.new_zeros(()))  # three times as fast as multiplying with the mask


def _topk(activation: Activation, h: Tensor) -> Tensor:
    assert activation.k is not None
    values, places = h.topk(min(activation.k, h.shape[-1]), -1)
    if activation.rectified:
        values = torch.relu(values)
    return torch.zeros_like(h).scatter(-1, places, values)


def _batchtopk(activation: Activation, h: Tensor) -> Tensor:
    assert activation.k is not None
    passed = (torch.relu(h) if activation.rectified else h).flatten()
    positions = h.numel() // h.shape[-1]
    values, places = passed.topk(min(activation.k * positions, passed.numel()))
    return torch.zeros_like(passed).scatter(-1, places, values).view_as(h)


ACTIVATIONS = {"relu": _relu, "jumprelu": _jumprelu, "topk": _topk, "batchtopk": _batchtopk}
"""What each kind computes."""


@dataclass(frozen=True, eq=False)
class Transcoder:
    """One dictionary: reads one layer, writes one layer (per-layer transcoders, autoencoders) or several (cross-layer)."""

    layer: int
    """The layer that it reads."""
    encoder: Float[Tensor, "feature d_in"]
    """W_enc, one row a feature; may be a memory-mapped or transposed view."""
    encoder_bias: Float[Tensor, " feature"]
    """b_enc, everything that is constant in x folded in."""
    decoders: Mapping[int, Float[Tensor, "feature d_out"]]
    """W_dec by the layer that is written; may be memory-mapped."""
    activation: Activation
    """The nonlinearity."""
    skip: Float[Tensor, "d_out d_in"] | None = None
    """W_skip of a skip transcoder: adds W_skip x to what it writes at its own layer."""

    @property
    def features(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    def preactivations(self, x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position feature"]:
        """h = W_enc x + b_enc, in the dtype of x."""
        return torch.nn.functional.linear(
            x, self.encoder.to(x.device, x.dtype), self.encoder_bias.to(x.device, x.dtype)
        )

    def encode(self, x: Float[Tensor, "*position d_in"]) -> Float[Tensor, "*position feature"]:
        """Activations of the features."""
        return self.activation(self.preactivations(x))


@dataclass(frozen=True, eq=False)
class TranscoderSet:
    """Dictionaries of one model, at most one for each layer that is read. Layers without one are left to the model."""

    transcoders: tuple[Transcoder, ...]
    """By the layer that they read, ascending."""
    reads: Site
    """Where they read."""
    writes: Site
    """Where they write; the same as `reads` for autoencoders."""
    biases: Mapping[int, Float[Tensor, " d_out"]]
    """b_dec by the layer that is written; once for each, however many dictionaries write there."""
    name: str = ""
    """Where it came from: a directory or a hub name."""
    model_name: str = ""
    """The model that it was made for, as its files say; may be empty."""

    def __post_init__(self) -> None:
        layers = [transcoder.layer for transcoder in self.transcoders]
        if not layers or layers != sorted(set(layers)):
            raise BadTranscoder(f"{self.name or 'transcoders'}: layers {layers} are not ascending and different")
        missing = {layer for transcoder in self.transcoders for layer in transcoder.decoders} - set(self.biases)
        if missing:
            raise BadTranscoder(f"{self.name or 'transcoders'}: no decoder bias for layer {min(missing)}")

    def __iter__(self) -> Iterator[Transcoder]:
        return iter(self.transcoders)

    def __len__(self) -> int:
        return len(self.transcoders)

    @property
    def by_layer(self) -> dict[int, Transcoder]:
        """The dictionaries by the layer that they read."""
        return {transcoder.layer: transcoder for transcoder in self.transcoders}

    @property
    def is_autoencoder(self) -> bool:
        """Whether what is read is also what is rebuilt."""
        return self.reads == self.writes

    @property
    def cross_layer(self) -> bool:
        """Whether any dictionary writes another layer than it reads."""
        return any(set(transcoder.decoders) != {transcoder.layer} for transcoder in self.transcoders)

    def writers_of(self, layer: int) -> tuple[Transcoder, ...]:
        """The dictionaries that write a layer, by the layer that they read."""
        return tuple(transcoder for transcoder in self.transcoders if layer in transcoder.decoders)

    def reconstruct(
        self, inputs: Mapping[int, Float[Tensor, "*position d_in"]], layer: int
    ) -> Float[Tensor, "*position d_out"]:
        """What the dictionaries put in the place of a layer's own output. inputs: what each layer's dictionary reads."""
        writers = self.writers_of(layer)
        if not writers:
            raise BadTranscoder(f"no dictionary writes layer {layer}")
        like = inputs[writers[0].layer]
        total = self.biases[layer].to(like.device, like.dtype).expand(*like.shape[:-1], -1)
        for transcoder in writers:
            x = inputs[transcoder.layer]
            total = total + transcoder.encode(x) @ transcoder.decoders[layer].to(x.device, x.dtype)
            if transcoder.skip is not None and transcoder.layer == layer:
                total = total + x @ transcoder.skip.to(x.device, x.dtype).t()
        return total

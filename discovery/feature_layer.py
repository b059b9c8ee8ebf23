"""Chosen features of one layer's dictionary as nodes: what they read, how they fire, and what they write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.blocks import Block
from discovery.recording import Activations
from discovery.sites import at_site
from discovery.transcoder import TRANSCODER_READS, TRANSCODER_WRITES, Activation, BadTranscoder, Site, TranscoderSet


@dataclass(frozen=True, eq=False)
class FeatureLayer:
    """Some features of the dictionary that stands for a layer's MLP.

    A feature's value is its activation times its decoder row, as the residual stream receives it: a norm behind the MLP is
    part of the node, with its scale taken from the run at hand (as for heads). The error node's value is the MLP's output
    less these values, so that decoder bias, skip connection and all features that were not chosen are part of it.
    """

    block: Block
    """The layer."""
    reads: Site
    """What the encoder reads; the MLP's output for an autoencoder."""
    writes: Site
    """What the decoder writes."""
    chosen: tuple[int, ...]
    """Numbers of the features, ascending."""
    encoder: Float[Tensor, "some d_in"]
    """W_enc: the chosen rows, or all of them where features compete."""
    bias: Float[Tensor, " some"]
    """b_enc of the same rows."""
    activation: Activation
    """The nonlinearity of the same rows."""
    decoder: Float[Tensor, "feature d_model"]
    """W_dec, the chosen rows."""

    @property
    def reads_output(self) -> bool:
        """Whether it is an autoencoder on the MLP's output."""
        return self.reads in TRANSCODER_WRITES

    @property
    def normed(self) -> bool:
        """Whether what it writes goes through a norm before it reaches the residual stream."""
        return self.writes == "mlp-raw" and self.block.post_mlp_norm is not None

    @property
    def competing(self) -> bool:
        """Whether one feature's activation depends on the other features' pre-activations."""
        return self.activation.k is not None

    @property
    def steps(self) -> bool:
        """Whether activations jump: a gate that opens at once, or competition."""
        return self.activation.kind != "relu"

    @property
    def writers(self) -> Float[Tensor, "feature d_model"]:
        """What turns a (scaled) activation into what the feature adds to the residual stream."""
        norm = self.block.post_mlp_norm
        return self.decoder * norm.weight.to(self.decoder.dtype) if self.normed and norm is not None else self.decoder

    def write(self, scaled: Float[Tensor, "*place feature"]) -> Float[Tensor, "feature *place d_model"]:
        """What every feature adds to the residual stream."""
        scaled = scaled.to(self.decoder.device).movedim(-1, 0)
        return scaled.unsqueeze(-1) * self.writers.reshape(-1, *[1] * (scaled.ndim - 1), self.decoder.shape[-1])

    def scale(self, raw: Float[Tensor, "*place d_model"]) -> Float[Tensor, "*place 1"]:
        """Inverse scale of the norm behind the MLP for the sum that it reads."""
        assert self.block.post_mlp_norm is not None
        return self.block.post_mlp_norm.inverse_scale(raw)

    def output(self, stream: Float[Tensor, "*place pos d_model"]) -> Float[Tensor, "*place pos d_model"]:
        """The layer's MLP on a residual stream: what the dictionary writes to is what this gives."""
        block = self.block
        flat = stream.flatten(0, -3) if stream.ndim > 3 else stream
        raw = block.run_mlp(flat)
        if self.writes == "mlp-out" and block.post_mlp_norm is not None:
            raw = block.post_mlp_norm(raw)
        return raw.to(stream.dtype).reshape(stream.shape)

    def site(self, stream: Float[Tensor, "*place pos d_model"]) -> Float[Tensor, "*place pos d_in"]:
        """What the encoder reads when the slot reads this residual stream."""
        norm = self.block.mlp_norm
        if self.reads_output:
            return self.output(stream)
        if norm is None or self.reads == "residual-mid":
            return stream
        if self.reads == "mlp-in":
            return norm(stream).to(stream.dtype)
        centred = norm.centre(stream)
        return centred * norm.inverse_scale(centred)

    def preactivations(self, x: Float[Tensor, "*place d_in"]) -> Float[Tensor, "*place some"]:
        """h of the features that are held: the chosen ones, or all where they compete."""
        return torch.nn.functional.linear(x.to(self.encoder.device), self.encoder, self.bias)

    def activations(
        self, x: Float[Tensor, "*lead row pos d_in"], real: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "*lead row pos feature"]:
        """Activations of the chosen features, all from one input. real: tokens that are no padding."""
        return self.pick(self.fire(self.preactivations(x), real))

    def own_activations(
        self, x: Float[Tensor, "mask slot row pos d_in"], places: Sequence[int], real: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "mask row pos slot"]:
        """Activations of some features (places in `chosen`), each from an input of its own."""
        if self.activation.kind == "topk":
            return torch.stack([self._among_top(x[:, slot], place) for slot, place in enumerate(places)], -1)
        if self.competing:
            alone = [self.activations(x[:, slot], real)[..., place] for slot, place in enumerate(places)]
            return torch.stack(alone, -1)
        index = list(places)
        h = torch.einsum("msrpd,sd->mrps", x.to(self.encoder.device), self.encoder[index]) + self.bias[index]
        threshold = self.activation.threshold
        return replace(self.activation, threshold=None if threshold is None else threshold[index])(h)

    def _among_top(self, x: Float[Tensor, "mask row pos d_in"], place: int) -> Float[Tensor, "mask row pos"]:
        """One feature's topk activation: fewer than k features lie above it. Counting is quicker than sorting."""
        assert self.activation.k is not None
        h = self.preactivations(x)
        own = h[..., self.chosen[place]]
        fires = (h.detach() > own.detach().unsqueeze(-1)).sum(-1) < self.activation.k
        return (torch.relu(own) if self.activation.rectified else own) * fires

    def fire(
        self, h: Float[Tensor, "*lead row pos some"], real: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "*lead row pos some"]:
        """Activations of pre-activations. batchtopk takes the real tokens of one prompt for a call."""
        if self.activation.kind != "batchtopk":
            return self.activation(h)
        prompts = []
        for run in h.reshape(-1, *h.shape[-3:]):
            for row, tokens in zip(run, real.to(h.device), strict=True):
                prompts.append(torch.zeros_like(row).index_put((tokens.nonzero()[:, 0],), self.activation(row[tokens])))
        return torch.stack(prompts).reshape(h.shape)

    def pick(self, all_or_chosen: Float[Tensor, "*place some"]) -> Float[Tensor, "*place feature"]:
        """The chosen features of those that are held."""
        return all_or_chosen[..., list(self.chosen)] if self.competing else all_or_chosen

    def gates(
        self, x: Float[Tensor, "row pos d_in"], real: Bool[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos feature"], Float[Tensor, "row pos feature"]]:
        """Pre-activations, and the slopes of the activations there: 1 where a feature fires, 0 where it does not."""
        h = self.preactivations(x.detach()).requires_grad_()
        with torch.enable_grad():
            fired = self.pick(self.fire(h, real)).sum()
            (slopes,) = torch.autograd.grad(fired, h)
        return self.pick(h.detach()), self.pick(slopes)

    def recorded(self, blocks: Sequence[Block], seen: Activations) -> Float[Tensor, "row pos feature"]:
        """Activations in a recorded pass, times the post-norm's inverse scale there where `normed`."""
        assert seen.real is not None
        dtype = self.encoder.dtype
        fired = self.activations(at_site(blocks, seen, self.block.index, self.reads).detach().to(dtype), seen.real)
        return fired * self.scale(seen.mlp_raw[self.block.index].detach().to(dtype)) if self.normed else fired


FeatureLayers = Mapping[int, FeatureLayer]
"""By layer."""
NO_FEATURES: FeatureLayers = MappingProxyType({})


def feature_layer(
    blocks: Sequence[Block], transcoders: TranscoderSet, layer: int, chosen: Sequence[int] | None, dtype: torch.dtype
) -> FeatureLayer:
    """A layer's chosen features, or all of them (None), their weights beside the MLP's own.

    Raises BadTranscoder naming the set, the layer and what does not fit.
    """
    transcoder, block = transcoders.by_layer[layer], blocks[layer]
    numbers = range(transcoder.features) if chosen is None else sorted(chosen)
    for number in () if chosen is None else numbers:
        if not 0 <= number < transcoder.features:
            raise BadTranscoder(f"f{layer}.{number}: layer {layer}'s dictionary has {transcoder.features} features")
    device = next(block.mlp.parameters()).device
    rows = slice(None) if chosen is None else list(numbers)
    held = slice(None) if transcoder.activation.k is not None else rows
    threshold = transcoder.activation.threshold
    activation = replace(
        transcoder.activation, threshold=None if threshold is None else threshold[held].to(device=device, dtype=dtype)
    )

    def take(weights: Tensor, which: slice | list[int]) -> Tensor:
        return weights[which].to(device=device, dtype=dtype)

    return FeatureLayer(
        block=block,
        reads=transcoders.reads,
        writes=transcoders.writes,
        chosen=tuple(numbers),
        encoder=take(transcoder.encoder, held),
        bias=take(transcoder.encoder_bias, held),
        activation=activation,
        decoder=take(transcoder.decoders[layer], rows),
    )


def check_fit(blocks: Sequence[Block], transcoders: TranscoderSet, layers: Iterable[int] = ()) -> None:
    """Raises BadTranscoder where the features cannot stand for the model's MLPs, or a layer has no dictionary."""
    name, reads, writes = transcoders.name or "transcoders", transcoders.reads, transcoders.writes
    missing = set(layers) - set(transcoders.by_layer)
    if missing:
        raise BadTranscoder(f"{name}: there is no dictionary for layer {min(missing)}")
    if writes not in TRANSCODER_WRITES or not (reads in TRANSCODER_READS or reads == writes):
        raise BadTranscoder(
            f"{name}: they read {reads} and write {writes}; a feature graph needs dictionaries that stand for the MLPs, "
            f"reading {', '.join(TRANSCODER_READS)} or (autoencoders) the MLP's output"
        )
    if transcoders.cross_layer:
        raise BadTranscoder(
            f"{name}: cross-layer transcoders have no error node that one layer's input explains, so their edges cannot be "
            "patched; use per-layer ones (`edgewise trace` takes both)"
        )
    d_model = blocks[0].weight("q").shape[-1]
    for transcoder in transcoders:
        if transcoder.layer >= len(blocks):
            raise BadTranscoder(f"{name}: layer {transcoder.layer}, but the model has {len(blocks)} layers")
        for what, rows in (("encoder", transcoder.encoder), ("decoder", transcoder.decoders[transcoder.layer])):
            if rows.shape[-1] != d_model:
                raise BadTranscoder(
                    f"{name}: layer {transcoder.layer}'s {what} has rows of {rows.shape[-1]} numbers; "
                    f"the model's width is {d_model}"
                )

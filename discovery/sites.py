"""What a recorded pass says of each place where a transcoder or an autoencoder may read or write."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from discovery.blocks import Block
from discovery.recording import Activations
from discovery.transcoder import Site


def at_site(blocks: Sequence[Block], seen: Activations, layer: int, site: Site) -> Float[Tensor, "row pos d_site"]:
    """Activations of one layer at a site, as the pass stored them (see `discovery.transcoder.Site`)."""
    return _READERS[site](blocks, seen, layer)


def _residual_in(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.attention_in[layer]


def _residual_mid(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.mlp_in[layer]


def _residual_out(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    if layer + 1 < len(blocks):
        return seen.attention_in[layer + 1]
    assert seen.final_in is not None
    return seen.final_in


def _attention_mix(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.mix[layer]


def _attention_out(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    block = blocks[layer]
    if block.post_attention_norm is not None:
        return block.post_attention_norm(seen.attention_sum[layer])
    return block.output(seen.mix[layer])


def _mlp_norm(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    norm, stream = blocks[layer].mlp_norm, seen.mlp_in[layer]
    if norm is None:
        return stream
    wide = norm.centre(stream.float() if stream.dtype.itemsize < 4 else stream)
    return (wide * norm.inverse_scale(wide)).to(stream.dtype)


def _mlp_in(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.mlp_normed[layer]


def _mlp_raw(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.mlp_out[layer] if blocks[layer].post_mlp_norm is None else seen.mlp_raw[layer]


def _mlp_out(blocks: Sequence[Block], seen: Activations, layer: int) -> Tensor:
    return seen.mlp_out[layer]


_READERS = {
    "residual-in": _residual_in,
    "attention-mix": _attention_mix,
    "attention-out": _attention_out,
    "residual-mid": _residual_mid,
    "mlp-norm": _mlp_norm,
    "mlp-in": _mlp_in,
    "mlp-raw": _mlp_raw,
    "mlp-out": _mlp_out,
    "residual-out": _residual_out,
}

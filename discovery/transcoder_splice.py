"""The model with dictionaries in the place of what they rebuild: how much worse it predicts the next token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.blocks import Block
from discovery.component_model import ComponentModel
from discovery.recording import Sequences
from discovery.transcoder import BadTranscoder, Site, TranscoderSet
from discovery.visited_forward import visiting

Rebuild = Callable[[int, Mapping[int, Tensor]], Tensor]
"""(layer, what each layer's dictionary reads [token d_in]) -> what stands in the place of the layer's output."""


def dictionary_output(transcoders: TranscoderSet) -> Rebuild:
    """Rebuilds what the dictionaries say."""
    return lambda layer, inputs: transcoders.reconstruct(inputs, layer)


def constant_output(values: Mapping[int, Float[Tensor, " d_out"]]) -> Rebuild:
    """Puts one vector in every place (a mean, or zeros)."""
    return lambda layer, inputs: values[layer]


class Splice:
    """A visitor of a forward pass (see `discovery.visited_forward`) that replaces the outputs of some layers.

    What the dictionaries read is taken from the same pass, with all replacements before it.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        transcoders: TranscoderSet,
        layers: Collection[int],
        rebuild: Rebuild,
        free: Bool[Tensor, "row pos"],
        dtype: torch.dtype,
    ) -> None:
        """layers: whose output is replaced, at the positions that are `free`. dtype: of the dictionaries' arithmetic."""
        self.blocks, self.layers, self.rebuild, self.free, self.dtype = blocks, layers, rebuild, free, dtype
        self.reads: Site = transcoders.reads
        self.writes: Site = transcoders.writes
        self.autoencoder = transcoders.is_autoencoder
        self.entry: Tensor | None = None
        self.inputs: dict[int, Tensor] = {}
        if not self.autoencoder and (self.reads not in _READABLE or self.writes not in _WRITABLE):
            raise BadTranscoder(f"dictionaries from {self.reads} to {self.writes} cannot be spliced in")

    def __call__(self, site: str, layer: int, value: Tensor) -> Tensor:
        if self.autoencoder:
            return self._autoencoded(site, layer, value)
        if layer < len(self.blocks) and site == _stream_visit(self.blocks[layer], self.reads):
            stream = _normed(self.blocks[layer], value) if self.reads == "mlp-norm" else value
            self.inputs[layer] = stream[self.free].to(self.dtype)
        where = (site, layer - 1) if site == "residual-in" else (site, layer)
        if where[1] in self.layers and where[0] == _WRITABLE[self.writes]:
            return self._replaced(value, self.rebuild(where[1], self.inputs))
        return value

    def _replaced(self, value: Tensor, new: Tensor) -> Tensor:
        changed = value.clone()
        changed[self.free] = new.to(value.dtype)
        return changed

    def _autoencoded(self, site: str, layer: int, value: Tensor) -> Tensor:
        """An autoencoder reads the very value that it replaces."""
        if site == "residual-in":
            self.entry = value
            if self.writes == "residual-out":
                layer -= 1
        if layer not in self.layers or layer >= len(self.blocks):
            return value
        block = self.blocks[layer]
        middle = self.writes == "residual-mid"
        if middle and block.parallel and site == "residual-in":
            return self._rebuilt(layer, value)
        if middle and not block.parallel and site == "attention-out":
            assert self.entry is not None
            stream = self.entry + value  # what the attention adds is changed so that the stream is what is rebuilt
            return value + self._rebuilt(layer, stream) - stream
        if self.writes == "mlp-norm" and block.mlp_norm is not None:
            if site == _stream_visit(block, "residual-mid"):
                self.inputs[layer] = _normed(block, value)
            if site == "mlp-in":
                new = self._rebuilt(layer, self.inputs[layer]) * block.mlp_norm.weight
                return (new if block.mlp_norm.bias is None else new + block.mlp_norm.bias).to(value.dtype)
            return value
        return self._rebuilt(layer, value) if site == _VISITS.get(self.writes) else value

    def _rebuilt(self, layer: int, value: Tensor) -> Tensor:
        return self._replaced(value, self.rebuild(layer, {layer: value[self.free].to(self.dtype)}))


_READABLE: tuple[Site, ...] = ("residual-in", "residual-mid", "mlp-norm", "mlp-in")
_WRITABLE: dict[Site, str] = {"mlp-raw": "mlp-raw", "mlp-out": "mlp-out", "residual-out": "residual-in"}
_VISITS: dict[Site, str] = {
    "residual-in": "residual-in",
    "attention-mix": "attention-mix",
    "attention-out": "attention-out",
    "mlp-norm": "mlp-in",  # where there is no norm
    "mlp-in": "mlp-in",
    "mlp-raw": "mlp-raw",
    "mlp-out": "mlp-out",
    "residual-out": "residual-in",
}
"""Where a forward pass is visited to replace what is at a site (residual-out: in the next layer)."""


def _stream_visit(block: Block, reads: Site) -> str:
    """Where a visitor meets what is read at a site that transcoders read."""
    if reads in ("residual-in", "mlp-in"):
        return reads
    if block.parallel:
        return "residual-in"
    return "residual-mid" if block.mlp_norm is not None else "mlp-in"


def _normed(block: Block, stream: Tensor) -> Tensor:
    norm = block.mlp_norm
    if norm is None:
        return stream
    wide = norm.centre(stream.float() if stream.dtype.itemsize < 4 else stream)
    return (wide * norm.inverse_scale(wide)).to(stream.dtype)


def next_token_loss(
    model: ComponentModel, blocks: Sequence[Block], sequences: Sequences, splice: Splice | None = None
) -> tuple[float, int]:
    """Sum of cross-entropies in nats of all next tokens in right-padded rows, and their number. Call inside a `session`."""

    def untouched(site: str, layer: int, value: Tensor) -> Tensor:
        return value

    with torch.no_grad(), visiting(model, blocks, splice or untouched):
        logits: Tensor = model.hf(
            input_ids=sequences.tokens,
            attention_mask=sequences.mask.long(),
            position_ids=sequences.positions,
            use_cache=False,
        ).logits
    real = sequences.mask[:, 1:]
    predicted, targets = logits[:, :-1][real].float(), sequences.tokens[:, 1:][real]
    return float(torch.nn.functional.cross_entropy(predicted, targets, reduction="sum")), len(targets)

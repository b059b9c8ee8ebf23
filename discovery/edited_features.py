"""What dictionaries read in a run at hand, and what edits of their features and errors add where they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.blocks import Block
from discovery.intervention import Edit, Prompts
from discovery.recording import Activations
from discovery.sites import at_site
from discovery.transcoder import Site, Transcoder, TranscoderSet

Event = tuple[str, int]


def activations(
    transcoder: Transcoder, x: Float[Tensor, "row pos d_in"], mask: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row pos feature"]:
    """Activations of each prompt by itself: a batch-wide top k counts the prompt's own tokens, not others or padding."""
    if transcoder.activation.kind != "batchtopk":
        return transcoder.encode(x)
    found = x.new_zeros((*x.shape[:2], transcoder.features))
    for row, real in enumerate(mask):
        found[row, real] = transcoder.encode(x[row, real])
    return found


def reconstruction(
    transcoders: TranscoderSet,
    inputs: Mapping[int, Float[Tensor, "row pos d_in"]],
    mask: Bool[Tensor, "row pos"],
    layer: int,
) -> Float[Tensor, "row pos d_out"]:
    """What the dictionaries put in the place of a layer's own output: the error node is that output less this."""
    some = inputs[transcoders.writers_of(layer)[0].layer]
    total = transcoders.biases[layer].to(some).expand(*some.shape[:-1], -1)
    for transcoder in transcoders.writers_of(layer):
        x = inputs[transcoder.layer]
        total = total + activations(transcoder, x, mask) @ transcoder.decoders[layer].to(x)
        if transcoder.skip is not None and transcoder.layer == layer:
            total = total + x @ transcoder.skip.to(x).t()
    return total


class DictionaryEdits:
    """Follows one pass: reads what dictionaries read, and adds at their write sites what edits change."""

    def __init__(
        self,
        blocks: Sequence[Block],
        transcoders: TranscoderSet,
        prompts: Prompts,
        edits: Sequence[Edit],
        seen: Activations | None,
        still: frozenset[int],
        frozen_norms: bool,
        dtype: torch.dtype,
    ) -> None:
        """seen: the untouched pass. still: layers whose MLP is held at it: "old" means its values there."""
        self.blocks, self.transcoders, self.prompts = blocks, transcoders, prompts
        self.edits, self.seen, self.still, self.dtype = edits, seen, still, dtype
        self.frozen_norms = frozen_norms
        self.inputs: dict[int, Tensor] = {}
        self.stream: Tensor | None = None
        """The residual stream as it enters the layer at hand, set by the run."""
        self._pending: dict[int, Tensor] = {}
        self._reads = {self._event(t.layer, transcoders.reads): t.layer for t in transcoders}
        self._writes = {self._event(layer, transcoders.writes): layer for layer in transcoders.biases}

    def _event(self, layer: int, site: Site) -> Event:
        """Where in a pass a site can be read (and, for sites that dictionaries write, changed)."""
        block = self.blocks[layer]
        if site == "residual-out":
            return "residual-in", layer + 1
        if site == "residual-mid" and self.transcoders.is_autoencoder:
            # Hooks cannot change the stream between the sublayers but through what the attention adds to it.
            return ("residual-in" if block.parallel else "attention-out"), layer
        if site in ("residual-mid", "mlp-norm"):
            return ("mlp-in" if block.parallel or block.mlp_norm is None else "residual-mid"), layer
        return site, layer

    def at(self, site: str, layer: int, value: Tensor) -> Tensor:
        """A value that passes a site, with what edits add to it there (the value itself where they add nothing)."""
        event = site, layer
        if event in self._reads:
            self._read(self._reads[event], self._as_read(site, layer, value))
        return self._write(self._writes[event], value) if event in self._writes else value

    def _as_read(self, site: str, layer: int, value: Tensor) -> Float[Tensor, "row pos d_in"]:
        reads, block = self.transcoders.reads, self.blocks[layer] if layer < len(self.blocks) else None
        wide = value.to(self.dtype)
        if block is None or reads not in ("residual-mid", "mlp-norm"):
            return wide
        if site == "attention-out" or (site == "mlp-in" and block.parallel):
            assert self.stream is not None
            stream = self.stream.to(self.dtype)
            wide = wide + stream if site == "attention-out" else stream
        norm = block.mlp_norm
        if reads == "residual-mid" or norm is None:
            return wide
        scaled_by = wide
        if self.frozen_norms:
            assert self.seen is not None
            scaled_by = self.seen.mlp_in[layer].to(self.dtype)
        return norm.centre(wide) * norm.inverse_scale(norm.centre(scaled_by))

    def _recorded(self, layer: int, site: Site) -> Tensor:
        assert self.seen is not None
        return at_site(self.blocks, self.seen, layer, site).to(self.dtype)

    def _base(self, layer: int) -> Float[Tensor, "row pos d_in"]:
        """What "old" activations of a layer are computed from."""
        return self._recorded(layer, self.transcoders.reads) if layer in self.still else self.inputs[layer]

    def _read(self, layer: int, x: Float[Tensor, "row pos d_in"]) -> None:
        self.inputs[layer] = x
        edits = [edit for edit in self.edits if edit.kind == "feature" and edit.layer == layer]
        if not edits:
            return
        transcoder, mask = self.transcoders.by_layer[layer], self.prompts.sequences.mask
        base = self._base(layer)
        old = activations(transcoder, base, mask if len(base) == len(mask) else mask[:1]).expand(*mask.shape, -1)
        everything = any(edit.index is None for edit in edits)
        wanted = range(transcoder.features) if everything else sorted({int(e.index) for e in edits})  # type: ignore[arg-type]
        columns = {index: column for column, index in enumerate(wanted)}
        chosen = torch.tensor(list(wanted))
        old = old[..., chosen.to(old.device)]
        new = old.clone()
        for edit in edits:
            places = edit.places(self.prompts)
            if edit.index is None:
                new = edit.changed(new, places)
            else:
                new[..., columns[edit.index]] = edit.changed(new[..., columns[edit.index]], places)
        for target, decoder in transcoder.decoders.items():
            written = (new - old) @ decoder[chosen.to(decoder.device)].to(x)
            self._pending[target] = self._pending[target] + written if target in self._pending else written

    def _write(self, layer: int, value: Tensor) -> Tensor:
        extra = self._pending.pop(layer, None)
        own = self.transcoders.by_layer.get(layer)
        additions = [] if extra is None else [extra]
        if own is not None and own.skip is not None and layer in self.still:
            moved = self.inputs[layer] - self._recorded(layer, self.transcoders.reads)
            additions.append(moved @ own.skip.to(moved).t())
        edits = [edit for edit in self.edits if edit.kind == "error" and edit.layer == layer]
        if edits:
            additions.append(self._error_change(layer, value, edits))
        return value if not additions else (value.to(self.dtype) + sum(additions)).to(value.dtype)

    def _error_change(self, layer: int, value: Tensor, edits: Sequence[Edit]) -> Float[Tensor, "row pos d_out"]:
        transcoders, mask = self.transcoders, self.prompts.sequences.mask
        inputs = {t.layer: self._base(t.layer).expand(*mask.shape, -1) for t in transcoders.writers_of(layer)}
        whole = self._recorded(layer, transcoders.writes) if layer in self.still else self._as_written(layer, value)
        old = whole - reconstruction(transcoders, inputs, mask, layer)
        new = old
        for edit in edits:
            new = edit.changed(new, edit.places(self.prompts))
        return new - old

    def _as_written(self, layer: int, value: Tensor) -> Tensor:
        """A value at the write site's event, as the site's own."""
        if self.transcoders.writes == "residual-mid" and not self.blocks[layer].parallel:
            assert self.stream is not None
            return value.to(self.dtype) + self.stream.to(self.dtype)
        return value.to(self.dtype)

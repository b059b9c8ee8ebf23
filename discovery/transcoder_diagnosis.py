"""Why a dictionary explains nothing: other sites, neighbouring layers, transposed matrices and biases are tried in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from discovery.blocks import Block
from discovery.recording import Activations
from discovery.sites import at_site
from discovery.transcoder import SITES, Site, Transcoder, TranscoderSet

_READS: tuple[Site, ...] = ("mlp-in", "mlp-norm", "residual-mid", "residual-in")
_WRITES: tuple[Site, ...] = ("mlp-out", "mlp-raw", "residual-out")
_SHIFTS = (1, -1, 2, -2)
BAD_FVU = 0.9
"""From here on a dictionary explains next to nothing, which is said even if no reason is found."""
_MUCH_BETTER = 0.7
"""Share of the FVU below which another reading is believed, if it explains something at all."""

WHY_READ: dict[Site, str] = {
    "mlp-in": "the encoder expects the normed input",
    "mlp-norm": "the encoder expects the normed input, without the norm's weight",
    "residual-mid": "the encoder expects the residual stream before the MLP, without its norm",
    "residual-in": "the encoder expects the residual stream before the attention",
    "residual-out": "it was made for the residual stream behind the layer",
    "attention-mix": "it was made for the heads' mixed values",
    "attention-out": "it was made for the attention's output",
    "mlp-raw": "it was made for the MLP's own output, before the norm behind it",
    "mlp-out": "it was made for what the MLP adds to the residual stream",
}
WHY_WRITE: dict[Site, str] = {
    "mlp-out": "the decoder gives what is added to the residual stream, behind the post-norm",
    "mlp-raw": "the decoder gives the MLP's own output, before the post-norm",
    "residual-out": "the decoder gives the whole residual stream behind the layer",
}


@dataclass(frozen=True)
class Alternative:
    """One other way to take a dictionary."""

    reads: Site
    """Where it would read."""
    writes: Site
    """Where it would write."""
    shift: int = 0
    """Layers that it would move up."""
    change: str = ""
    """What would be done to its weights: a name of `CHANGES`, or nothing."""


def _transposed_encoder(one: Transcoder, bias: Tensor) -> Transcoder | None:
    if one.encoder.shape[0] != one.encoder.shape[1]:
        return None
    return dataclasses.replace(one, encoder=one.encoder.t())


def _transposed_decoder(one: Transcoder, bias: Tensor) -> Transcoder | None:
    if any(decoder.shape[0] != decoder.shape[1] for decoder in one.decoders.values()):
        return None
    return dataclasses.replace(one, decoders={layer: decoder.t() for layer, decoder in one.decoders.items()})


def _transposed_skip(one: Transcoder, bias: Tensor) -> Transcoder | None:
    if one.skip is None or one.skip.shape[0] != one.skip.shape[1]:
        return None
    return dataclasses.replace(one, skip=one.skip.t())


def _centred(one: Transcoder, bias: Tensor, sign: float = -1.0) -> Transcoder | None:
    if len(bias) != one.encoder.shape[1]:
        return None
    moved = one.encoder.float() @ bias.float()
    return dataclasses.replace(one, encoder_bias=one.encoder_bias.float() + sign * moved)


CHANGES: dict[str, tuple[Callable[[Transcoder, Tensor], Transcoder | None], str]] = {
    "transposing W_enc": (_transposed_encoder, "the file stores the other orientation"),
    "transposing W_dec": (_transposed_decoder, "the file stores the other orientation"),
    "transposing W_skip": (_transposed_skip, "the file stores the other orientation"),
    "subtracting b_dec from the input": (_centred, "the encoder expects the input less the decoder's bias"),
    "not subtracting b_dec from the input": (
        lambda one, bias: _centred(one, bias, 1.0),
        "the encoder expects the input as it is",
    ),
}
"""What may be wrong with the weights -> how they would be, and why."""


def diagnose(
    blocks: Sequence[Block],
    seen: Activations,
    free: Bool[Tensor, "row pos"],
    transcoders: TranscoderSet,
    layer: int,
    dtype: torch.dtype,
) -> str | None:
    """One line on a layer that is badly rebuilt: the best other way to take its dictionary, or that there is none.

    None where nothing is much better and the dictionary explains something as it is.

    seen: a recorded pass; free: its tokens that count. Single differences are tried first, then pairs of them.
    """
    trial = _Trial(blocks, seen, free, transcoders, layer, dtype)
    nominal = trial.fvu(Alternative(transcoders.reads, transcoders.writes))
    start = f"layer {layer}: FVU {_number(nominal)}"
    best, fvu = None, float("inf")
    for stage in (_single, _double):
        for alternative in stage(transcoders):
            value = trial.fvu(alternative)
            if value is not None and value < fvu * 0.999:  # the simplest of equals, which comes first
                best, fvu = alternative, value
        if best is not None and fvu < min(BAD_FVU, _MUCH_BETTER * (float("inf") if nominal is None else nominal)):
            return f"{start}; {_what(transcoders, layer, best)} gives {_number(fvu)}: {_why(transcoders, best)}"
        if nominal is not None and nominal <= BAD_FVU:
            return None
    if best is None:
        return f"{start}; nothing else fits its shape"
    tried = f"the best other is {_what(transcoders, layer, best)} with {_number(fvu)}"
    return f"{start}; no other site, layer or orientation explains it ({tried}): is it of this model?"


class Pair(NamedTuple):
    """Where a dictionary reads and writes."""

    reads: Site
    writes: Site


def _pairs(transcoders: TranscoderSet) -> list[Pair]:
    nominal = Pair(transcoders.reads, transcoders.writes)
    same = [Pair(site, site) for site in SITES]
    if transcoders.is_autoencoder:
        return [pair for pair in same if pair != nominal]
    near = [Pair(read, transcoders.writes) for read in _READS] + [Pair(transcoders.reads, write) for write in _WRITES]
    far = [Pair(read, write) for read in _READS for write in _WRITES]
    return [pair for pair in dict.fromkeys((*near, *far, *same)) if pair != nominal]


def _single(transcoders: TranscoderSet) -> Iterator[Alternative]:
    for reads, writes in _pairs(transcoders):
        yield Alternative(reads, writes)
    for shift in _SHIFTS:
        yield Alternative(transcoders.reads, transcoders.writes, shift)
    for change in CHANGES:
        yield Alternative(transcoders.reads, transcoders.writes, change=change)


def _double(transcoders: TranscoderSet) -> Iterator[Alternative]:
    for reads, writes in _pairs(transcoders):
        for shift in _SHIFTS:
            yield Alternative(reads, writes, shift)
        for change in CHANGES:
            yield Alternative(reads, writes, change=change)
    for shift in _SHIFTS:
        for change in CHANGES:
            yield Alternative(transcoders.reads, transcoders.writes, shift, change)


class _Trial:
    """Tries alternatives on one recorded pass."""

    def __init__(
        self,
        blocks: Sequence[Block],
        seen: Activations,
        free: Tensor,
        transcoders: TranscoderSet,
        layer: int,
        dtype: torch.dtype,
    ) -> None:
        self.blocks, self.seen, self.free = blocks, seen, free
        self.transcoders, self.layer, self.dtype = transcoders, layer, dtype

    def _at(self, layer: int, site: Site) -> Tensor:
        return at_site(self.blocks, self.seen, layer, site)[self.free].to(self.dtype)

    def fvu(self, way: Alternative) -> float | None:
        """Fraction of variance unexplained on the tokens of the pass; None where the shapes do not allow it."""
        writers = self.transcoders.writers_of(self.layer)
        layers = {one.layer: one.layer + way.shift for one in writers}
        target = self.layer + way.shift
        if not writers or not all(0 <= layer < len(self.blocks) for layer in (*layers.values(), target)):
            return None
        changed = []
        for one in writers:
            change = CHANGES[way.change][0] if way.change else None
            new = one if change is None else change(one, self.transcoders.biases[self.layer])
            if new is None:
                return None
            changed.append(new)
        inputs = {one.layer: self._at(layers[one.layer], way.reads) for one in changed}
        y = self._at(target, way.writes)
        if y.shape[-1] != len(self.transcoders.biases[self.layer]) or any(
            inputs[one.layer].shape[-1] != one.encoder.shape[-1] for one in changed
        ):
            return None
        tried = dataclasses.replace(self.transcoders, transcoders=tuple(changed))
        error = (y - tried.reconstruct(inputs, self.layer)).double()
        spread = float((y - y.mean(0)).double().square().sum())
        return float(error.square().sum()) / spread if spread > 0 else None


def _what(transcoders: TranscoderSet, layer: int, way: Alternative) -> str:
    parts = []
    if way.reads == way.writes and (way.reads, way.writes) != (transcoders.reads, transcoders.writes):
        parts.append(f"reading and writing {way.reads} instead of {_place(transcoders)}")
    else:
        if way.reads != transcoders.reads:
            parts.append(f"reading {way.reads} instead of {transcoders.reads}")
        if way.writes != transcoders.writes:
            parts.append(f"writing {way.writes} instead of {transcoders.writes}")
    if way.shift:
        parts.append(f"taking it for layer {layer + way.shift}")
    return " and ".join([*parts, *([way.change] if way.change else [])])


def _place(transcoders: TranscoderSet) -> str:
    if transcoders.is_autoencoder:
        return transcoders.reads
    return f"{transcoders.reads} and {transcoders.writes}"


def _why(transcoders: TranscoderSet, way: Alternative) -> str:
    reasons = [WHY_READ[way.reads]] if way.reads != transcoders.reads else []
    if way.writes != transcoders.writes and way.reads != way.writes:
        reasons.append(WHY_WRITE[way.writes])
    if way.shift:
        reasons.append(f"layers are counted from another end or off by {abs(way.shift)}")
    if way.change:
        reasons.append(CHANGES[way.change][1])
    return ", and ".join(reasons)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"

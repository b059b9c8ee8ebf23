"""How well dictionaries stand for the layers on text: the sums behind every such figure, and training's table of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.activation_stream import ActivitySource
from discovery.corpus_files import Window
from discovery.transcoder import BadTranscoder, TranscoderSet


@dataclass(frozen=True)
class Figures:
    """How well what is written to one layer is rebuilt, and how busy the dictionary is that reads the layer."""

    fvu: float
    """Fraction of variance unexplained: squared errors over squared distances from the mean output, summed over all tokens;
    infinite where the output never varies."""
    features: int
    """Features of the dictionary that reads the layer; 0, as all that follows, where there is none."""
    l0: float
    """Active features of a token, on average."""
    dead: float
    """Share of the features that were active nowhere."""
    largest: float
    """Largest activation; never below 0."""


class FitSums:
    """Running sums over tokens, in float64. Nothing of the size of the sample is kept."""

    def __init__(self, transcoders: TranscoderSet, principal: bool = False) -> None:
        """principal: also what `principal_fvu` needs, a matrix of d_out by d_out for each layer."""
        self.transcoders, self.principal = transcoders, principal
        self.tokens = 0
        self._errors: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}
        self._products: dict[int, Tensor] = {}
        self._fired: dict[int, Tensor] = {}
        self._largest: dict[int, float] = {}

    def add(
        self, inputs: Mapping[int, Float[Tensor, "token d_in"]], outputs: Mapping[int, Float[Tensor, "token d_out"]]
    ) -> None:
        """Some tokens more: what is read and what is written at each layer that is measured; no token is padding.

        Raises BadTranscoder naming the layer whose widths are not the dictionaries'.
        """
        self.tokens += len(next(iter(outputs.values())))
        acts: dict[int, Tensor] = {}
        for layer in sorted(outputs):
            y = outputs[layer]
            guess = self.transcoders.biases[layer].to(y)
            for one in self.transcoders.writers_of(layer):
                x = inputs[one.layer]
                if one.layer not in acts:
                    self._check_width(one.layer, "reads", one.encoder.shape[-1], x)
                    acts[one.layer] = one.encode(x)
                    self._count(one.layer, acts[one.layer])
                guess = guess + acts[one.layer] @ one.decoders[layer].to(x)
                if one.skip is not None and one.layer == layer:
                    guess = guess + x @ one.skip.to(x).t()
            self._check_width(layer, "writes", guess.shape[-1], y)
            self._compare(layer, y.double(), guess.double())
            # A cross-layer dictionary's activations wait for the last layer that it writes; others are dropped at once.
            acts = {n: a for n, a in acts.items() if max(self.transcoders.by_layer[n].decoders) > layer}

    def _check_width(self, layer: int, does: str, width: int, seen: Tensor) -> None:
        if seen.shape[-1] != width:
            site = self.transcoders.reads if does == "reads" else self.transcoders.writes
            raise BadTranscoder(
                f"{self.transcoders.name}: layer {layer} {does} {width} dimensions; "
                f"{site} of the model has {seen.shape[-1]}"
            )

    def _count(self, layer: int, acts: Float[Tensor, "token feature"]) -> None:
        _add(self._fired, layer, (acts != 0).sum(0))
        self._largest[layer] = max(self._largest.get(layer, 0.0), float(acts.max()))

    def _compare(self, layer: int, y: Float[Tensor, "token d_out"], guess: Float[Tensor, "token d_out"]) -> None:
        _add(self._errors, layer, (y - guess).square().sum())
        _add(self._squares, layer, y.square().sum())
        _add(self._totals, layer, y.sum(0))
        if self.principal:
            _add(self._products, layer, y.t() @ y)

    def mean(self, layer: int) -> Float[Tensor, " d_out"]:
        """Mean output of a layer that is written, float64."""
        return self._totals[layer] / self.tokens

    def figures(self, layer: int) -> Figures:
        """The figures of a layer that is written."""
        spread = float(self._squares[layer]) - self.tokens * float(self.mean(layer).square().sum())
        fvu = float(self._errors[layer]) / spread if spread > 0 else float("inf")
        fired = self._fired.get(layer)
        if fired is None:
            return Figures(fvu, 0, 0.0, 0.0, 0.0)
        l0, dead = float(fired.sum()) / self.tokens, float((fired == 0).double().mean())
        return Figures(fvu, len(fired), l0, dead, self._largest[layer])

    def principal_fvu(self, layer: int, rank: int) -> float:
        """What the best projection of a layer's outputs on `rank` directions and their mean leaves unexplained of these very
        tokens. Only with `principal`."""
        mean = self.mean(layer)
        spread = torch.linalg.eigvalsh(self._products[layer] / self.tokens - torch.outer(mean, mean)).clamp(min=0)
        left = spread[: max(len(spread) - rank, 0)].sum()
        return float(left / spread.sum().clamp(min=1e-30))


def _add(sums: dict[int, Tensor], layer: int, part: Tensor) -> None:
    sums[layer] = sums[layer] + part if layer in sums else part


@dataclass(frozen=True)
class LayerFit:
    """One layer's figures after training."""

    layer: int
    """The layer."""
    fvu: float
    """See `Figures.fvu`."""
    l0: float
    """See `Figures.l0`."""
    dead: float
    """See `Figures.dead`."""
    pca_rank: int
    """L0, rounded up; at most the width of the outputs."""
    pca_fvu: float
    """What the best projection of the outputs on so many directions leaves unexplained; the directions are taken from the
    very same tokens, which favours it."""


@torch.no_grad()
def measure_fit(transcoders: TranscoderSet, source: ActivitySource, windows: Sequence[Window]) -> tuple[LayerFit, ...]:
    """The figures of every layer of the source, over all free positions of the windows. The set must read and write where the
    source looks, and have a transcoder for each of its layers."""
    sums = FitSums(transcoders, principal=True)
    for part in source.passes(windows):
        sums.add(dict(zip(source.layers, part.inputs)), dict(zip(source.layers, part.outputs)))
    return tuple(_layer_fit(sums, layer) for layer in source.layers)


def _layer_fit(sums: FitSums, layer: int) -> LayerFit:
    found = sums.figures(layer)
    rank = min(math.ceil(found.l0), len(sums.mean(layer)))
    return LayerFit(layer, found.fvu, found.l0, found.dead, rank, sums.principal_fvu(layer, rank))

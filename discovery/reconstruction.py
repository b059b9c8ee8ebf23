"""How well transcoders stand for the layers on text that they were not trained on, with a plain PCA of equal rank beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.activation_stream import ActivitySource
from discovery.corpus_files import Window
from discovery.transcoder import TranscoderSet


@dataclass(frozen=True)
class LayerFit:
    """One layer's figures."""

    layer: int
    """The layer."""
    fvu: float
    """Fraction of variance unexplained: squared errors over squared distances from the mean, summed over all tokens."""
    l0: float
    """Active features of a token, on average."""
    dead: float
    """Share of the features that were active nowhere."""
    pca_rank: int
    """L0, rounded up."""
    pca_fvu: float
    """What the best projection of the outputs on so many directions leaves unexplained; the directions are taken from the
    very same tokens, which favours it."""


class _Sums:
    """Running sums of one layer, in float64."""

    def __init__(self, width: int, features: int, device: torch.device) -> None:
        self.tokens = 0
        self.squares = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.fired = torch.zeros(features, dtype=torch.float64, device=device)

    def add(self, y: Float[Tensor, "token d"], guess: Float[Tensor, "token d"], a: Float[Tensor, "token f"]) -> None:
        """Some tokens more: outputs, what stands for them, activations."""
        self.tokens += len(y)
        wide = y.double()
        self.squares += (wide - guess.double()).square().sum()
        self.sum += wide.sum(0)
        self.products += wide.t() @ wide
        self.fired += (a != 0).sum(0)

    def fit(self, layer: int) -> LayerFit:
        """The figures."""
        mean = self.sum / self.tokens
        spread = torch.linalg.eigvalsh(self.products / self.tokens - torch.outer(mean, mean)).clamp(min=0)
        total = float(spread.sum().clamp(min=1e-30))
        l0 = float(self.fired.sum()) / self.tokens
        rank = min(math.ceil(l0), len(spread))
        left = float(spread[: len(spread) - rank].sum())
        return LayerFit(
            layer=layer,
            fvu=float(self.squares) / self.tokens / total,
            l0=l0,
            dead=float((self.fired == 0).double().mean()),
            pca_rank=rank,
            pca_fvu=left / total,
        )


@torch.no_grad()
def measure_fit(transcoders: TranscoderSet, source: ActivitySource, windows: Sequence[Window]) -> tuple[LayerFit, ...]:
    """The figures of every layer of the source, over all free positions of the windows. The set must read and write where the
    source looks, and have a transcoder for each of its layers."""
    device = source.model.device
    width = source.model.config.get_text_config().hidden_size
    sums = [_Sums(width, transcoders.by_layer[layer].features, device) for layer in source.layers]
    for part in source.passes(windows):
        inputs = {layer: part.inputs[i] for i, layer in enumerate(source.layers)}
        for i, layer in enumerate(source.layers):
            active = transcoders.by_layer[layer].encode(inputs[layer])
            sums[i].add(part.outputs[i], transcoders.reconstruct(inputs, layer), active)
    return tuple(one.fit(layer) for one, layer in zip(sums, source.layers))

"""Dictionaries while they are trained: which features are active, what they rebuild, and the transcoders that they become.

Everything here is in normalised units: what each layer reads and writes is centred and scaled to one unit of variance per
coordinate, so that one learning rate fits all layers and a squared error is a fraction of variance unexplained. `fold`
takes the normalisation into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from discovery.activation_stream import Activity
from discovery.transcoder import Activation, Site, Transcoder, TranscoderSet

DictionaryKind = Literal["per-layer", "skip", "cross-layer"]
"""per-layer: each layer's features write that layer. skip: the same beside a linear map. cross-layer: they write every
later layer, too."""
TrainedActivation = Literal["topk", "jumprelu"]
"""topk: the k most active features of each token. jumprelu: those above a threshold that lets k through on average."""
_SAMPLED = 1 << 18  # pre-activations of a batch that a threshold is taken from


@dataclass(frozen=True, eq=False)
class Scaling:
    """How activity is normalised, by layer."""

    input_mean: Float[Tensor, "layer d_in"]
    """Taken off what is read."""
    input_scale: Float[Tensor, " layer"]
    """Then divided by: the root of the mean variance of its coordinates."""
    output_mean: Float[Tensor, "layer d_out"]
    """The same of what is written."""
    output_scale: Float[Tensor, " layer"]
    """The same of what is written."""

    @classmethod
    def of(cls, activity: Activity) -> Scaling:
        """The scaling that normalises this activity."""
        means = [x.mean(1) for x in (activity.inputs, activity.outputs)]
        scales = [x.var(1, correction=0).mean(-1).sqrt().clamp(min=1e-8) for x in (activity.inputs, activity.outputs)]
        return cls(means[0], scales[0], means[1], scales[1])

    def normalise(self, activity: Activity) -> Activity:
        """Activity in normalised units."""
        return Activity(
            (activity.inputs - self.input_mean[:, None]) / self.input_scale[:, None, None],
            (activity.outputs - self.output_mean[:, None]) / self.output_scale[:, None, None],
        )


class Active(NamedTuple):
    """The active features of one layer at several tokens, one entry each, token by token."""

    features: Int[Tensor, " entry"]
    """Which feature."""
    starts: Int[Tensor, " token"]
    """First entry of each token."""
    values: Float[Tensor, " entry"]
    """Its activation."""

    def write(self, decoder: Float[Tensor, "feature d_out"]) -> Float[Tensor, "token d_out"]:
        """What the features write through a decoder."""
        return nn.functional.embedding_bag(
            self.features, decoder, self.starts, mode="sum", per_sample_weights=self.values
        )


def largest(h: Float[Tensor, "token feature"], k: int) -> Active:
    """The k largest pre-activations of each token; negative ones count as 0."""
    k = min(k, h.shape[1])
    values, features = h.topk(k, -1, sorted=False)
    starts = torch.arange(0, features.numel(), k, device=h.device)
    return Active(features.flatten(), starts, torch.relu(values).flatten())


def above(h: Float[Tensor, "token feature"], threshold: Float[Tensor, "*feature"]) -> Active:
    """The pre-activations above a threshold, which is at least 0."""
    passed = h.detach() > threshold
    counts = passed.sum(-1)
    tokens, features = passed.nonzero(as_tuple=True)
    return Active(features, counts.cumsum(0) - counts, h[tokens, features])


def threshold_for(h: Float[Tensor, "token feature"], k: int, most_tokens: int | None = None) -> Float[Tensor, ""]:
    """The threshold above which k pre-activations of a token lie on average (BatchTopK, Bussmann et al. 2024); at least 0.

    most_tokens: take it from so many of the tokens, evenly spread; by default a number that is quick on a CPU.
    """
    most = max(1, _SAMPLED // h.shape[1]) if most_tokens is None else most_tokens
    some = h.detach()[:: -(-h.shape[0] // most)]
    passing = min(k * some.shape[0], some.numel() - 1)
    return some.flatten().kthvalue(some.numel() - passing).values.clamp(min=0)


class Dictionary(nn.Module):
    """Encoders and decoders of several layers, in normalised units."""

    def __init__(self, layers: int, d_in: int, d_out: int, features: int, kind: DictionaryKind) -> None:
        super().__init__()
        self.kind: DictionaryKind = kind
        self.pairs: tuple[tuple[int, int], ...] = tuple(
            (source, target)
            for source in range(layers)
            for target in (range(source, layers) if kind == "cross-layer" else (source,))
        )
        """(layer that is read, layer that is written), as places in the list of layers."""
        self.encoders = nn.ParameterList(torch.zeros(features, d_in) for _ in range(layers))
        self.encoder_biases = nn.ParameterList(torch.zeros(features) for _ in range(layers))
        self.decoders = nn.ParameterList(torch.zeros(features, d_out) for _ in self.pairs)
        self.biases = nn.ParameterList(torch.zeros(d_out) for _ in range(layers))
        self.skips = nn.ParameterList(torch.zeros(d_out, d_in) for _ in range(layers if kind == "skip" else 0))

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.encoders)

    @property
    def features(self) -> int:
        """Features of each layer."""
        return self.encoders[0].shape[0]

    @torch.no_grad()
    def start_from(self, activity: Activity, k: int, generator: torch.Generator) -> None:
        """Every feature begins as one token: it reads what that token brings and writes what the layer then writes.

        Far fewer features die than from random directions. Encoders get the length with which k features of a token rebuild
        best. activity: in normalised units.
        """
        for layer in range(self.layers):
            chosen = torch.randint(activity.tokens, (self.features,), generator=generator).to(activity.inputs.device)
            read = activity.inputs[layer, chosen]
            self.encoders[layer].copy_(read / read.norm(dim=-1, keepdim=True).clamp(min=1e-8))
            for place, (source, target) in enumerate(self.pairs):
                if source == layer:
                    self.decoders[place].copy_(activity.outputs[target, chosen])
        self.rescale()
        some = activity.inputs[:, :1024]
        rebuilt = self.rebuild(some, [largest(self.preactivations(x, i), k) for i, x in enumerate(some)])
        for encoder, guess, y in zip(self.encoders, rebuilt, activity.outputs[:, :1024]):
            encoder.mul_(((guess * y).sum() / guess.square().sum().clamp(min=1e-8)).clamp(min=1e-3))

    @torch.no_grad()
    def rescale(self) -> None:
        """Decoder rows to unit length, over all layers that the feature writes. Activations are then comparable."""
        for layer in range(self.layers):
            mine = [self.decoders[place] for place, (source, _) in enumerate(self.pairs) if source == layer]
            length = torch.stack([rows.square().sum(-1) for rows in mine]).sum(0).sqrt().clamp(min=1e-8)
            for rows in mine:
                rows.div_(length[:, None])

    def preactivations(self, x: Float[Tensor, "token d_in"], layer: int) -> Float[Tensor, "token feature"]:
        """Of one layer."""
        return nn.functional.linear(x, self.encoders[layer], self.encoder_biases[layer])

    def rebuild(self, inputs: Float[Tensor, "layer token d_in"], active: Sequence[Active]) -> list[Tensor]:
        """What stands for each layer's output [token d_out]. active: by layer."""
        rebuilt = [self.biases[layer].expand(inputs.shape[1], -1) for layer in range(self.layers)]
        for layer, skip in enumerate(self.skips):
            rebuilt[layer] = rebuilt[layer] + inputs[layer] @ skip.t()
        for decoder, (source, target) in zip(self.decoders, self.pairs):
            rebuilt[target] = rebuilt[target] + active[source].write(decoder)
        return rebuilt

    @torch.no_grad()
    def fold(
        self,
        scaling: Scaling,
        layers: Sequence[int],
        sites: tuple[Site, Site],
        k: int | None = None,
        thresholds: Float[Tensor, "layer feature"] | None = None,
        model_name: str = "",
    ) -> TranscoderSet:
        """The transcoders that compute the same on activity as it is. One of k (topk) and thresholds (jumprelu).

        Features are scaled so that an activation is the length of what the feature writes at its own layer's scale.
        sites: where they read and write.
        """
        made: list[Transcoder] = []
        biases = {
            number: self.biases[i] * scaling.output_scale[i] + scaling.output_mean[i] for i, number in enumerate(layers)
        }
        for i, number in enumerate(layers):
            unit = scaling.output_scale[i]
            encoder = self.encoders[i] * unit / scaling.input_scale[i]
            skip = self.skips[i] * unit / scaling.input_scale[i] if self.skips else None
            if skip is not None:
                biases[number] = biases[number] - skip @ scaling.input_mean[i]
            made.append(
                Transcoder(
                    layer=number,
                    encoder=encoder,
                    encoder_bias=self.encoder_biases[i] * unit - encoder @ scaling.input_mean[i],
                    decoders={
                        layers[target]: decoder * (scaling.output_scale[target] / unit)
                        for decoder, (source, target) in zip(self.decoders, self.pairs)
                        if source == i
                    },
                    activation=Activation("topk", k=k)
                    if thresholds is None
                    else Activation("jumprelu", threshold=thresholds[i] * unit),
                    skip=skip,
                )
            )
        return TranscoderSet(tuple(made), sites[0], sites[1], biases, model_name=model_name)

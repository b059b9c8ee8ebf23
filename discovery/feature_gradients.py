"""Gradients at features' slots: through the gates that are open, kept narrow (one number a feature) where they can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.feature_layer import FeatureLayer, FeatureLayers
from discovery.narrow_gradients import NarrowGradients, expand, narrow_gradients, over_points, through_norm
from discovery.recording import Activations


class FeatureGradients:
    """The gradients of all features' slots, summed over integration points.

    A feature's pre-activation is a linear reader of what it reads, so that its gradient is one number: the slope of its
    activation times its decoder row's product with the gradient at what it writes to. Autoencoders read through the
    MLP: theirs are wide.
    """

    def __init__(self, features: FeatureLayers, dtype: torch.dtype, frozen_norms: bool = False) -> None:
        """frozen_norms: denominators of norms count as constants."""
        self._frozen_norms = frozen_norms
        self._features = features
        self._dtype = dtype
        self._narrow: dict[int, NarrowGradients] = {}
        self._wide: dict[int, Float[Tensor, "feature row pos d_model"]] = {}

    @property
    def reads_outputs(self) -> bool:
        """Whether `add` differentiates the pass once more."""
        return any(layer.reads_output for layer in self._features.values())

    def written(self, seen: Activations) -> list[Tensor]:
        """What the features of each layer write to in a recorded pass, in the order of the layers."""
        return [(seen.mlp_raw if layer.normed else seen.mlp_out)[index] for index, layer in self._features.items()]

    def add(self, seen: Activations, gradients: Sequence[Float[Tensor, "row pos d_model"]], points: int) -> None:
        """Count a pass in. gradients: at `written`."""
        for (index, layer), gradient in zip(self._features.items(), gradients, strict=True):
            gradient = gradient.to(layer.decoder.device)
            if layer.reads_output:
                self._add_wide(index, layer, seen, gradient, points)
            else:
                self._add_narrow(index, layer, seen, gradient, points)

    def _slopes(self, layer: FeatureLayer, x: Tensor, seen: Activations, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations, and the gradients there [row pos feature]."""
        assert seen.real is not None
        h, slopes = layer.gates(x, seen.real)
        return h, slopes * (gradient @ layer.decoder.t())

    def _add_narrow(self, index: int, layer: FeatureLayer, seen: Activations, gradient: Tensor, points: int) -> None:
        stream = seen.mlp_in[index].detach().to(self._dtype)
        h, slopes = self._slopes(layer, layer.site(stream), seen, gradient)
        constant = layer.pick(layer.bias)
        norm = None if layer.reads == "residual-mid" else layer.block.mlp_norm
        if norm is not None and norm.bias is not None and layer.reads == "mlp-in":
            constant = constant + layer.pick(layer.encoder @ norm.bias.to(self._dtype))
        outputs, at_outputs = [(h - constant).unsqueeze(-1)], [slopes.unsqueeze(-1)]
        new = narrow_gradients(norm, stream, outputs, at_outputs, points, self._frozen_norms)
        if index in self._narrow:
            self._narrow[index].add(new)
        else:
            self._narrow[index] = new

    def _add_wide(self, index: int, layer: FeatureLayer, seen: Activations, gradient: Tensor, points: int) -> None:
        site = (seen.mlp_raw if layer.reads == "mlp-raw" and layer.block.post_mlp_norm else seen.mlp_out)[index]
        _, slopes = self._slopes(layer, site.detach().to(self._dtype), seen, gradient)
        stream, normed = (kept[index].detach().to(self._dtype) for kept in (seen.mlp_in, seen.mlp_normed))
        wide = []
        for place, row in enumerate(_chosen_rows(layer)):
            back = (slopes[..., place, None] * row).to(device=site.device, dtype=site.dtype)
            (at_input,) = torch.autograd.grad(site, seen.mlp_normed[index], back, retain_graph=True)
            at_stream = through_norm(layer.block.mlp_norm, stream, normed, at_input.to(self._dtype), self._frozen_norms)
            wide.append(over_points(at_stream, points))
        new = torch.stack(wide) if wide else stream.new_empty((0, stream.shape[0] // points, *stream.shape[1:]))
        self._wide[index] = self._wide[index] + new if index in self._wide else new

    def expand(self, index: int, columns: slice) -> Float[Tensor, "feature row pos d_model"]:
        """The gradients of a layer's features at the residual stream, at some positions."""
        if index in self._wide:
            return self._wide[index][:, :, columns]
        layer = self._features[index]
        rows, norm = _chosen_rows(layer), layer.block.mlp_norm
        if norm is not None and layer.reads == "mlp-in":
            rows = norm.centre(rows * norm.weight.to(self._dtype))
        elif norm is not None and layer.reads == "mlp-norm":
            rows = norm.centre(rows)
        return expand([rows.unsqueeze(1)], self._narrow[index], columns)


def _chosen_rows(layer: FeatureLayer) -> Float[Tensor, "feature d_in"]:
    return layer.encoder[list(layer.chosen)] if layer.competing else layer.encoder

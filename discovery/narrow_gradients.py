"""Gradients at the outputs of narrow linear readers of the residual stream, carried through a norm in closed form.

For y = norm(x) and a reader's output o = W y + b with gradient g there, with x' the centred input, r the inverse scale, w
and c the norm's weight and bias and P the centring:

    d/dx = r P(w * W^T g) - x' (r^2 / d_model) ((o - b - W c) . g)

so that the only wide product per reader is W^T (r g), made when it is needed; r g is summed over integration points
before that. The inverse scale and the second factor never need the per-reader normed input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.blocks import Norm


@dataclass(eq=False)
class NarrowGradients:
    """What is known of the gradients of some readers at one place of the model, summed over points."""

    narrow: list[Tensor]
    """Per group of readers [row pos slot d_head]: sum over points of r * gradient."""
    corrections: list[tuple[Tensor, Tensor]]
    """Per point: centred input [row pos d_model] and its factor for every slot of all groups [row pos slots]; empty where
    there is no norm."""

    def add(self, new: NarrowGradients) -> None:
        """Count further points in."""
        self.narrow = [old + more for old, more in zip(self.narrow, new.narrow, strict=True)]
        self.corrections += new.corrections


def narrow_gradients(
    norm: Norm | None,
    stream: Float[Tensor, "row pos d_model"],
    linear: Sequence[Float[Tensor, "row pos _ d_head"]],
    gradients: Sequence[Float[Tensor, "row pos _ d_head"]],
    points: int,
    frozen: bool = False,
) -> NarrowGradients:
    """Gradients at readers' outputs, ready for `expand`. linear: o - b - W c, unused without a norm.

    points: how many points' rows stand one after the other. frozen: the norm's denominator counts as a constant.
    """
    if norm is None:
        return NarrowGradients([over_points(gradient, points) for gradient in gradients], [])
    centred = norm.centre(stream)
    scale = norm.inverse_scale(centred)
    share = scale.square() / stream.shape[-1]
    factors, narrow = [], []
    for output, gradient in zip(linear, gradients, strict=True):
        if not frozen:
            factors.append((output * gradient).sum(-1) * share)
        narrow.append(over_points(scale.unsqueeze(-1) * gradient, points))
    if frozen:
        return NarrowGradients(narrow, [])
    corrections = zip(centred.chunk(points), torch.cat(factors, -1).chunk(points), strict=True)
    return NarrowGradients(narrow, list(corrections))


def expand(
    readers: Sequence[Float[Tensor, "_ d_head d_model"]],
    gradients: NarrowGradients,
    columns: slice,
    norm: Norm | None = None,
) -> Float[Tensor, "slots row pos d_model"]:
    """The gradients at the residual stream, at some positions.

    readers: W of every group, in any type; one that serves several slots (a key/value head) stands once for them all.
    norm: the one in front, where the readers do not hold its weight and centring. They are applied to the products: nothing
    is made of a layer's weights but, where they are stored in half precision, one group's copy at a time.
    """
    rows, width = gradients.narrow[0][:, columns].shape[:2]
    slots = sum(narrow.shape[2] for narrow in gradients.narrow)
    wide = gradients.narrow[0].new_empty((slots, rows * width, readers[0].shape[-1]))
    first = 0
    for narrow, reader in zip(gradients.narrow, readers, strict=True):
        served = narrow.shape[2]
        places = served // max(1, len(reader)) * rows * width
        flat = narrow[:, columns].permute(2, 0, 1, 3).reshape(len(reader), places, narrow.shape[-1])
        out = wide[first : first + served].view(len(reader), places, wide.shape[-1])
        torch.bmm(flat, reader.to(wide.dtype), out=out)
        first += served
    if norm is not None:
        norm.centre_(wide.mul_(norm.weight.to(wide.dtype)))
    wide = wide.unflatten(1, (rows, width))
    for centred, factor in gradients.corrections:
        wide.addcmul_(factor[:, columns].permute(2, 0, 1).unsqueeze(-1), centred[:, columns], value=-1)
    return wide


def through_norm(
    norm: Norm | None,
    stream: Float[Tensor, "row pos d_model"],
    normed: Float[Tensor, "row pos d_model"],
    gradient: Float[Tensor, "row pos d_model"],
    frozen: bool = False,
) -> Float[Tensor, "row pos d_model"]:
    """A gradient at a norm's output, at its input. frozen: its denominator counts as a constant."""
    if norm is None:
        return gradient
    centred = norm.centre(stream)
    scale = norm.inverse_scale(centred)
    if frozen:
        return scale * norm.centre(norm.weight * gradient)
    output = normed if norm.bias is None else normed - norm.bias
    factor = (output * gradient).sum(-1, keepdim=True) * scale.square() / stream.shape[-1]
    return scale * norm.centre(norm.weight * gradient) - centred * factor


def over_points(values: Tensor, points: int) -> Tensor:
    """Sum over points that stand one after the other on the row axis."""
    return values if points == 1 else values.unflatten(0, (points, -1)).sum(0)

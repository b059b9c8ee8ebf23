"""Noise ablation: dropped edges carry what their source is with noise on some tokens' embeddings (Meng et al. 2022)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from discovery.ablation import Noise
from discovery.batch import Batch

_ROWS = 8192  # of the embedding that are looked at together


class NothingToNoise(ValueError):
    """Prompts without any token that is to get noise."""


def measure_noise(hf: PreTrainedModel, scale: float, tokens: Sequence[int] = (), seed: int = 0) -> Noise:
    """Noise of `scale` standard deviations of the token embeddings, as the embedding module gives them."""
    embedding = hf.get_input_embeddings()
    weight: Tensor = embedding.weight  # type: ignore[union-attr,assignment]
    count, total, squares = 0, 0.0, 0.0
    with torch.no_grad():
        for ids in torch.arange(weight.shape[0], device=weight.device).split(_ROWS):
            values = embedding(ids).double()  # type: ignore[misc]
            count, total = count + values.numel(), total + float(values.sum())
            squares += float(values.square().sum())
    return Noise(scale * max(squares / count - (total / count) ** 2, 0.0) ** 0.5, tuple(tokens), seed)


def noised_places(batch: Batch, noise: Noise) -> Bool[Tensor, "row pos"]:
    """Where the noise goes. Raises NothingToNoise naming the first pair of the batch without such a token."""
    if noise.tokens:
        wanted = torch.isin(batch.clean, torch.tensor(noise.tokens, device=batch.clean.device)) & batch.mask
    elif batch.corrupt_mask is not None:
        raise NothingToNoise("clean and corrupt prompts differ in length: name the tokens that noise is to go on")
    else:
        wanted = (batch.clean != batch.corrupt) & batch.mask
    without = (~wanted.any(1)).nonzero().flatten().tolist()
    if without and noise.tokens:
        raise NothingToNoise(
            f"pair {batch.indices[int(batch.row_pair[without[0]])] + 1} has none of the tokens that noise is to go on: "
            "name other tokens, or none (then it goes where clean and corrupt prompts differ)"
        )
    return wanted


def noise_values(batch: Batch, noise: Noise, d_model: int) -> Float[Tensor, "row pos d_model"]:
    """What is added to the embeddings: the same for a prompt in any batch, and for all runs. float32, on the CPU."""
    places = noised_places(batch, noise).cpu()
    values = torch.zeros(*places.shape, d_model)
    for row, where in enumerate(places):
        own = batch.clean[row, batch.mask[row]].tolist()
        draw = np.random.default_rng([noise.seed, *own]).standard_normal((int(where.sum()), d_model))
        values[row, where] = torch.from_numpy(draw * noise.deviation).float()
    return values


@contextlib.contextmanager
def noisy_embeddings(hf: PreTrainedModel, batch: Batch, noise: Noise) -> Iterator[None]:
    """Adds the noise to the token embeddings of every pass over the batch's clean prompts."""
    embedding = hf.get_input_embeddings()
    width = embedding.weight.shape[1]  # type: ignore[union-attr,index]
    values = noise_values(batch, noise, int(width))  # type: ignore[arg-type]

    def add(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return out + values.to(device=out.device, dtype=out.dtype)

    handle = embedding.register_forward_hook(add)  # type: ignore[union-attr]
    try:
        yield
    finally:
        handle.remove()

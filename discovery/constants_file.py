"""Learned constants as a safetensors file."""

from __future__ import annotations

import json

from safetensors import SafetensorError
from safetensors.torch import load, save

from discovery.ablation import Ablation, SourceMeans
from discovery.component_model import ComponentModel


class BadConstants(ValueError):
    """A file of learned constants that cannot be read or belongs to another graph."""


def constants_to_bytes(ablation: Ablation) -> bytes:
    """The file: `input`, `heads.{layer}`, `mlps.{layer}` and `features.{layer}`, one row each."""
    means = ablation.means
    assert means is not None
    tensors = {"input": means.input}
    tensors |= {f"heads.{layer}": value for layer, value in enumerate(means.heads)}
    tensors |= {f"mlps.{layer}": value for layer, value in enumerate(means.mlps)}
    tensors |= {f"features.{layer}": value for layer, value in means.features.items()}
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"ablation": ablation.kind})


def constants_from_bytes(content: bytes, model: ComponentModel) -> Ablation:
    """The optimal ablation that `constants_to_bytes` wrote. Raises BadConstants where it does not fit the model's graph."""
    try:
        tensors = load(content)
    except (SafetensorError, json.JSONDecodeError, ValueError) as error:
        raise BadConstants(f"learned constants that cannot be read: {error}") from None
    d_model = model.blocks[0].weight("q").shape[-1]
    wanted: dict[str, tuple[int, ...]] = {"input": (1, d_model)}
    for block in model.blocks:
        wanted[f"heads.{block.index}"] = (1, block.heads, block.d_head)
        wanted[f"mlps.{block.index}"] = (1, d_model)
    wanted |= {f"features.{index}": (1, len(layer.chosen)) for index, layer in model.features.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise BadConstants("learned constants of another model or graph: delete the file, or choose another directory")
    layers = range(len(model.blocks))
    means = SourceMeans(
        tensors["input"],
        tuple(tensors[f"heads.{layer}"] for layer in layers),
        tuple(tensors[f"mlps.{layer}"] for layer in layers),
        {index: tensors[f"features.{index}"] for index in model.features},
    )
    return Ablation("optimal", means)

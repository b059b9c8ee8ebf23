"""Masks that are being learned, as the content of a safetensors file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class BadCheckpoint(ValueError):
    """A checkpoint that cannot be read, or of another run."""


def to_checkpoint(adam: torch.optim.Adam, plan: Any, step: int) -> bytes:
    """Parameters and moments as a safetensors file. plan: a dataclass of settings."""
    about = {"plan": json.dumps(dataclasses.asdict(plan)), "step": str(step)}
    return save({name: tensor.detach().contiguous() for name, tensor in _tensors(adam).items()}, about)


def from_checkpoint(content: bytes, adam: torch.optim.Adam, plan: Any) -> int:
    """Puts a checkpoint's numbers into parameters and optimizer; gives the steps that are done.

    Raises BadCheckpoint for content that is damaged or of a run with other settings.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        theirs, step = json.loads(header["__metadata__"]["plan"]), int(header["__metadata__"]["step"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"unfinished masks that cannot be read ({error}): start anew with --overwrite") from None
    own = dataclasses.asdict(plan)
    for name in own:
        if theirs.get(name) != own[name]:
            raise BadCheckpoint(
                f"unfinished masks of a run with {name} = {theirs.get(name)}, not {own[name]}: start anew with --overwrite"
            )
    _begin(adam)
    known = _tensors(adam)
    if known.keys() != tensors.keys() or any(known[name].shape != tensors[name].shape for name in known):
        raise BadCheckpoint("unfinished masks of another graph: start anew with --overwrite")
    with torch.no_grad():
        for name, tensor in known.items():
            tensor.copy_(tensors[name])
    return step


def _begin(adam: torch.optim.Adam) -> None:
    """Makes the optimizer's moments, by a step that changes nothing."""
    rates = [group["lr"] for group in adam.param_groups]
    for group in adam.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    adam.step()
    for group, rate in zip(adam.param_groups, rates, strict=True):
        group["lr"] = rate


def _tensors(adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Every tensor of the parameters and their moments by name; writing into them changes the run."""
    found: dict[str, Tensor] = {}
    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        found[f"parameters.{number}"] = parameter
        for moment, tensor in adam.state[parameter].items():
            found[f"adam.{number}.{moment}"] = tensor
    return found

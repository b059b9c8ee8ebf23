"""Checkpoints of masks that are being learned: one safetensors file, whole or not there at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class BadCheckpoint(ValueError):
    """A checkpoint that cannot be read, or of another run."""


def save_checkpoint(path: Path, adam: torch.optim.Adam, plan: Any, step: int) -> None:
    """Writes parameters and moments; a reader sees the old file or the new one. plan: a dataclass of settings."""
    about = {"plan": json.dumps(dataclasses.asdict(plan)), "step": str(step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in _tensors(adam).items()}, partial, about)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, adam: torch.optim.Adam, plan: Any) -> int:
    """Puts a checkpoint's numbers into parameters and optimizer; gives the steps that are done (0 without a file).

    Raises BadCheckpoint for a file that is damaged or of a run with other settings.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs, step = json.loads(about["plan"]), int(about["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"checkpoint {path} cannot be read ({error}): delete it to start anew") from None
    own = dataclasses.asdict(plan)
    for name in own:
        if theirs.get(name) != own[name]:
            raise BadCheckpoint(
                f"checkpoint {path} is of a run with {name} = {theirs.get(name)}, not {own[name]}: delete it to start anew"
            )
    _begin(adam)
    known = _tensors(adam)
    if known.keys() != tensors.keys() or any(known[name].shape != tensors[name].shape for name in known):
        raise BadCheckpoint(f"checkpoint {path} does not hold the tensors of this run: delete it to start anew")
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

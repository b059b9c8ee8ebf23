"""Checkpoints of a training run: one safetensors file, whole or not there at all, that says what it belongs to."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from discovery.training_settings import TrainingSettings
from discovery.transcoder import BadTranscoder

if TYPE_CHECKING:
    from discovery.transcoder_training import TrainingState


def save_checkpoint(path: Path, state: TrainingState, settings: TrainingSettings, identity: str) -> None:
    """Writes the state; a reader sees the old file or the new one."""
    about = {"settings": json.dumps(dataclasses.asdict(settings)), "identity": identity, "step": str(state.step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in _tensors(state).items()}, partial, about)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, state: TrainingState, settings: TrainingSettings, identity: str) -> None:
    """Puts a checkpoint's numbers into a state that was begun with the same settings.

    Raises BadTranscoder for a file that is damaged, or of another run (the first setting that differs is named).
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        theirs, step = json.loads(about["settings"]), int(about["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadTranscoder(f"checkpoint {path} cannot be read ({error}): delete it to start anew") from None
    for name, value in dataclasses.asdict(settings).items():
        if theirs.get(name) != value:
            raise BadTranscoder(
                f"checkpoint {path} is of a run with {name} = {theirs.get(name)}, not {value}: "
                "give the same settings, or another directory"
            )
    if about.get("identity") != identity:
        raise BadTranscoder(f"checkpoint {path} is of another model or corpus: use another directory")
    own = _tensors(state)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise BadTranscoder(f"checkpoint {path} does not hold the tensors of this run: delete it to start anew")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    state.step = step


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of a state by name; writing into them changes the state."""
    found: dict[str, Tensor] = {"idle": state.idle}
    for field in dataclasses.fields(state.scaling):
        found[f"scaling.{field.name}"] = getattr(state.scaling, field.name)
    for name, parameter in state.dictionary.named_parameters():
        found[f"weights.{name}"] = parameter
        for moment, tensor in state.optimizer.state[parameter].items():
            found[f"adam.{name}.{moment}"] = tensor
    return found

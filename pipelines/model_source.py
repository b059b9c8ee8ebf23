"""The model that the settings name: where it lies, what it is called, what it is known by, and itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import ModelConfig
from pipelines.fingerprint import hash_model_directory

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel


def model_place(config: ModelConfig) -> str:
    """The hub name or directory to load: the embedded model's where none is named."""
    if config.name is not None:
        return config.name
    from discovery.demo import model_directory

    return str(model_directory())


def model_title(config: ModelConfig) -> str:
    """What the model is called in titles."""
    if config.name is None:
        return "the embedded model"
    name = Path(config.name).name if Path(config.name).is_dir() else config.name
    return name if config.revision is None else f"{name}@{config.revision}"


def hash_model(config: ModelConfig) -> Mapping[str, str | None]:
    """SHA-256 of each of the model's files in a directory, or the commit of a hub name."""
    place = model_place(config)
    if Path(place).is_dir():
        return hash_model_directory(Path(place))
    from discovery.loading import commit_of

    return {"commit": commit_of(place, config.revision)}


def load(config: ModelConfig) -> ComponentModel:
    """The model of these settings."""
    from discovery.loading import load_model

    return load_model(
        model_place(config),
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        kv_heads=config.kv_heads,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
    )

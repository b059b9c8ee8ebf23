"""Which transcoders a command uses, how they are read, and what they are known by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import ModelConfig, TranscodersConfig
from pipelines.fingerprint import hash_transcoder_directory
from pipelines.settings import ConfigError

if TYPE_CHECKING:
    from discovery.transcoder import TranscoderSet


def transcoders_place(named: str | None, model: ModelConfig) -> str:
    """The directory or hub name to load: those of the embedded model where neither they nor a model are named."""
    if named is not None:
        return named
    if model.name is not None:
        raise ConfigError(
            f"--transcoders is missing: which transcoders belong to {model.name}? (a directory or a hub name)"
        )
    from discovery.demo import transcoder_directory

    return str(transcoder_directory())


def read_transcoders(place: str, config: TranscodersConfig) -> TranscoderSet:
    """The transcoders of a directory or hub name, read as the settings say. Raises ConfigError for an unknown option."""
    from discovery.transcoder_source import load_transcoders

    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.load.items()
    }
    try:
        return load_transcoders(place, **options)
    except TypeError as error:
        raise ConfigError(f"transcoders.load: {error}") from None


def hash_transcoders(place: str) -> dict[str, str] | str:
    """Hashes of a directory's files; a hub name is itself."""
    return hash_transcoder_directory(Path(place)) if Path(place).is_dir() else place

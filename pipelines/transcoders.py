"""Which transcoders a command uses, and what they are known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import ModelConfig
from pipelines.settings import ConfigError


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


def hash_transcoders(directory: Path) -> dict[str, Any] | str:
    """Sizes and times of a directory's files: cheap to tell whether anything changed, however large; a hub name is itself."""
    if not directory.is_dir():
        return str(directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

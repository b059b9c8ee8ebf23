"""What a run's results depend on, in hashes: the model's files, the task's pairs, the versions of the libraries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "numpy", "networkx", "safetensors", "tokenizers")
# What decides a model's outputs; notes and licences beside them do not.
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.py")

_TRANSCODER_FILES = ("*.safetensors", "*.npz", "*.json", "*.yaml", "*.yml")


def edgewise_version() -> str:
    """The version of this program; "source" when it runs from a checkout that is not installed."""
    try:
        return version("edgewise")
    except PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Versions of Python, the system and the libraries that compute. Nothing of the environment, where secrets live."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def hash_model_directory(directory: Path) -> dict[str, str]:
    """File name -> SHA-256 of everything in a checkpoint directory that decides what the model puts out."""
    files = {path for pattern in _MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    return {path.name: hash_file(path) for path in sorted(files)}


def hash_transcoder_directory(directory: Path) -> dict[str, str]:
    """Path below the directory -> SHA-256 of everything in it that decides what the dictionaries compute."""
    files = {path for pattern in _TRANSCODER_FILES for path in directory.rglob(pattern) if path.is_file()}
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in sorted(files)}


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_pairs(pairs: Iterable[Any], spans: bool = False) -> str:
    """SHA-256 of a task's pairs (dataclasses), whatever they were read from. spans: whether their spans count."""
    digest = hashlib.sha256()
    for pair in pairs:
        fields = dataclasses.asdict(pair)
        if not spans:
            fields.pop("spans", None)
        digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode("utf-8"))
        digest.update(b"\n")
    return digest.hexdigest()


def hash_settings(settings: Any) -> str:
    """Eight hexadecimal digits that stand for JSON-like settings: the tail of a default run directory's name."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]

"""Writing a set of transcoders: every file appears whole or not at all, and never beside those of another set."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from discovery.transcoder import BadTranscoder

Content = str | Callable[[], Mapping[str, Tensor]]
"""Text, or what gives the tensors of a .safetensors file (called when the file's turn comes, so that one is in memory)."""


def write_files(directory: str | Path, files: Mapping[str, Content]) -> list[Path]:
    """Writes files by their relative paths, in order, replacing those of the same names. Gives their paths.

    Raises BadTranscoder if the directory holds weight files that are not among them: a reader would mix them.
    """
    root = Path(directory)
    stale = sorted(set(_weights_in(root)) - set(files))
    if stale:
        raise BadTranscoder(f"{root} holds {stale[0]} of another set of transcoders: name an empty directory")
    return [_write(root / name, content) for name, content in files.items()]


def _weights_in(root: Path) -> Iterable[str]:
    for suffix in ("safetensors", "npz"):
        yield from (path.relative_to(root).as_posix() for path in root.rglob(f"[!.]*.{suffix}"))


def _write(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        else:
            save_file({name: value.detach().cpu().contiguous() for name, value in content().items()}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path

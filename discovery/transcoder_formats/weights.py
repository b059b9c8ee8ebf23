"""Weight files, memory-mapped: what is read from disk is what is used. Nothing in them is ever executed."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from discovery.transcoder import BadTranscoder

_LARGEST_CONFIG = 4_000_000
_ZIP_LOCAL_HEADER = 30
_ROWS = 4096
"""Rows of a mapped matrix that are worked on at a time."""


class Weights:
    """The named tensors of one file. Every one must be taken: a tensor that nobody knows is an error, not a guess."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """path: for messages. tensors: by the names in the file; views of the mapped file."""
        self.path = path
        self.left = tensors
        self.sizes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str, *axes: str) -> Float[Tensor, ...]:
        """A tensor of floats with these axes. An axis has one size in the whole file; vectors must be finite."""
        if name not in self.left:
            raise BadTranscoder(f"{self.path} has no tensor {name} (it has: {', '.join(sorted(self.left)) or 'none'})")
        tensor = self.left.pop(name)
        if not tensor.is_floating_point():
            raise BadTranscoder(f"{self.path}: {name} must hold floats, not {tensor.dtype}")
        if tensor.ndim != len(axes):
            raise BadTranscoder(f"{self.path}: {name} has shape {list(tensor.shape)}, not [{', '.join(axes)}]")
        for axis, size in zip(axes, tensor.shape):
            if self.sizes.setdefault(axis, size) != size or size == 0:
                raise BadTranscoder(
                    f"{self.path}: {name} has shape {list(tensor.shape)} as [{', '.join(axes)}], "
                    f"but {axis} is {self.sizes[axis] or 'empty'}"
                )
        if tensor.ndim == 1 and not bool(torch.isfinite(tensor).all()):
            raise BadTranscoder(f"{self.path}: {name} holds values that are not finite")
        return tensor

    def take_if_there(self, name: str, *axes: str) -> Float[Tensor, ...] | None:
        """As `take`, or None where the file has no such tensor."""
        return self.take(name, *axes) if name in self.left else None

    def drop(self, name: str) -> None:
        """Leaves out a tensor that plays no part in what is computed."""
        self.left.pop(name, None)

    def finish(self) -> None:
        """Raises BadTranscoder naming a tensor that was not taken."""
        if self.left:
            raise BadTranscoder(f"{self.path} has a tensor {sorted(self.left)[0]!r} that this format does not know")


def open_weights(path: Path) -> Weights:
    """The tensors of a .safetensors or .npz file, mapped (npz entries where they are stored uncompressed).

    Raises BadTranscoder for a file that cannot be read.
    """
    opened = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    return Weights(path, opened)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle cannot be iterated
    except (SafetensorError, OSError, ValueError) as error:
        raise BadTranscoder(f"cannot read {path}: {_first_line(error)}") from error


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        return {entry.filename.removesuffix(".npy"): _npz_entry(path, entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, TypeError) as error:
        raise BadTranscoder(f"cannot read {path}: {_first_line(error)}") from error


def _npz_entry(path: Path, entry: zipfile.ZipInfo) -> Tensor:
    if entry.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(_plain(arrays[entry.filename.removesuffix(".npy")]))
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(_ZIP_LOCAL_HEADER))
        file.seek(entry.header_offset + _ZIP_LOCAL_HEADER + name + extra)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects")
        if not shape or 0 in shape:
            return torch.from_numpy(np.fromfile(file, dtype, 1 if not shape else 0).reshape(shape))
        # Copy on write: torch wants memory that it may write to; nobody does.
        mapped = np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")
    return torch.from_numpy(_plain(mapped))


def _plain(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadTranscoder naming the file."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadTranscoder(f"{path} is not JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise BadTranscoder(f"{path} must hold an object, not {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """A small text file. Raises BadTranscoder naming the file."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise BadTranscoder(f"{path} is too large for a configuration ({path.stat().st_size} bytes)")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadTranscoder(f"cannot read {path}: {_first_line(error)}") from error


def centred_bias(
    encoder: Float[Tensor, "feature d_in"], bias: Float[Tensor, " feature"], centre: Float[Tensor, " d_in"]
) -> Float[Tensor, " feature"]:
    """The bias of an encoder that reads x - centre. Reads the encoder once, a few rows at a time."""
    wide = torch.promote_types(bias.dtype, torch.float32)
    parts = [rows.to(wide) @ centre.to(wide) for rows in encoder.split(_ROWS)]
    return bias.to(wide) - torch.cat(parts)


def row_norms(matrix: Float[Tensor, "feature d_out"]) -> Float[Tensor, " feature"]:
    """Norm of every row, a few rows at a time."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    return torch.cat([rows.to(wide).norm(dim=-1) for rows in matrix.split(_ROWS)])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

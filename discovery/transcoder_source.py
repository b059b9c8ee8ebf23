"""Transcoders by name: a directory in any known format, or a name on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from discovery.transcoder import BadTranscoder, Site, TranscoderSet
from discovery.transcoder_formats.format import Choice, Source
from discovery.transcoder_formats.hub import SUFFIXES, fetch, list_files, parse_hub_name
from discovery.transcoder_formats.table import format_of

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DEEPEST = 6


def load_transcoders(
    name_or_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    layers: tuple[int, ...] | None = None,
    variant: str | None = None,
    l0: int | float | None = None,
    reads: Site | None = None,
    writes: Site | None = None,
) -> TranscoderSet:
    """The transcoders or autoencoders of a directory, or of a hub name: owner/name, owner/name/folder, either @revision.

    The format is recognised from the files. On the CPU and in the dtype that they are stored in, weights are memory-mapped and
    read when they are used; another device or dtype copies them. layers: only these. variant: part of the path (or a
    pattern with *) where there are several sizes or sites; l0: the dictionary whose mean L0 is nearest. reads, writes:
    sites, instead of what the files say. Raises BadTranscoder naming the file and the field.
    """
    if dtype is not None and dtype not in DTYPES:
        raise BadTranscoder(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    choice = Choice(layers, variant, l0, reads, writes)
    place = Path(name_or_dir).expanduser()
    if place.is_dir():
        source, root = Source(str(name_or_dir).rstrip("/"), _files_in(place)), place
        found = format_of(source).read(source, root, choice)
    elif place.exists() or str(name_or_dir).startswith((".", "/", "~")):
        raise BadTranscoder(f"transcoders {name_or_dir}: there is no such directory")
    else:
        repository, folder, revision = parse_hub_name(str(name_or_dir))
        source = Source(str(name_or_dir), list_files(repository, folder, revision))
        known = format_of(source)
        needed = known.needed(source, choice)
        if not needed:
            raise BadTranscoder(f"transcoders {name_or_dir}: no file is left after choosing layers and variant")
        found = known.read(source, fetch(repository, folder, revision, needed), choice)
    _check_shapes(found)
    return place_transcoders(found, device, None if dtype is None else DTYPES[dtype])


def _files_in(root: Path) -> tuple[str, ...]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not name.startswith(".")] if len(here.parts) < _DEEPEST else []
        found += [(here / name).as_posix() for name in files if name.endswith(SUFFIXES) and not name.startswith(".")]
    return tuple(sorted(found))


def _check_shapes(found: TranscoderSet) -> None:
    """An autoencoder gives what it takes, and all that write a layer write vectors of the same width."""
    for one in found:
        for layer, decoder in one.decoders.items():
            if decoder.shape[-1] != len(found.biases[layer]):
                raise BadTranscoder(
                    f"{found.name}: layer {layer} is written with widths {decoder.shape[-1]} and others"
                )
        if found.is_autoencoder and found.biases[one.layer].shape[0] != one.encoder.shape[1]:
            raise BadTranscoder(
                f"{found.name}: layer {one.layer} reads {one.encoder.shape[1]} and writes {len(found.biases[one.layer])} "
                f"dimensions at the same site {found.reads}"
            )


def place_transcoders(
    transcoders: TranscoderSet, device: str | torch.device, dtype: torch.dtype | None = None
) -> TranscoderSet:
    """The same set on a device and in a dtype (None: as stored); what lies there already is not copied."""

    def put(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype)

    return map_tensors(transcoders, put)


def map_tensors(transcoders: TranscoderSet, change: Callable[[Tensor], Tensor]) -> TranscoderSet:
    """A set with a function applied to each of its tensors."""
    placed = []
    for one in transcoders:
        threshold = one.activation.threshold
        activation = one.activation
        if threshold is not None:
            activation = dataclasses.replace(activation, threshold=change(threshold))
        placed.append(
            dataclasses.replace(
                one,
                encoder=change(one.encoder),
                encoder_bias=change(one.encoder_bias),
                decoders={layer: change(decoder) for layer, decoder in one.decoders.items()},
                activation=activation,
                skip=None if one.skip is None else change(one.skip),
            )
        )
    biases = {layer: change(bias) for layer, bias in transcoders.biases.items()}
    return dataclasses.replace(transcoders, transcoders=tuple(placed), biases=biases)

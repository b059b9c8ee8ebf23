"""What a transcoder format is, what may be chosen among many dictionaries, and how those that are read become a set."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from discovery.transcoder import BadTranscoder, Site, Transcoder, TranscoderSet


@dataclass(frozen=True)
class Choice:
    """Which dictionaries are wanted where a directory holds more, and what its files do not say."""

    layers: tuple[int, ...] | None = None
    """Layers to read; None for all that are there."""
    variant: str | None = None
    """Part of the path (or a pattern with *) that the dictionaries' files must have, such as width_16k."""
    l0: int | float | None = None
    """Of several dictionaries of a layer that differ in their mean L0 only, the one nearest to this."""
    reads: Site | None = None
    """Where they read, instead of what the files say."""
    writes: Site | None = None
    """Where they write, instead of what the files say."""

    def wants_file(self, path: str) -> bool:
        """Whether a file's path has the variant in it."""
        return self.variant is None or fnmatch.fnmatchcase(path, f"*{self.variant}*")

    def wants_layer(self, layer: int) -> bool:
        """Whether the layer is among those wanted."""
        return self.layers is None or layer in self.layers


@dataclass(frozen=True)
class Source:
    """A directory of files, on this machine or not yet."""

    name: str
    """Directory or hub name, as the user gave it."""
    files: tuple[str, ...]
    """Paths of all its weight and configuration files, relative, with forward slashes."""

    def named(self, *names: str) -> list[str]:
        """Files with one of these names, in whatever folder."""
        return [file for file in self.files if file.rpartition("/")[2] in names]


@dataclass(frozen=True)
class TranscoderFormat:
    """One way of laying out transcoders on disk."""

    fits: Callable[[Source], bool]
    """Whether the files look like this format, by their names."""
    needed: Callable[[Source, Choice], Sequence[str]]
    """The files that reading needs, for a download."""
    read: Callable[[Source, Path, Choice], TranscoderSet]
    """(source, directory that holds its files, choice) -> set. Raises BadTranscoder naming file and field."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """One dictionary as its own files describe it."""

    transcoder: Transcoder
    """Reads and writes one layer."""
    bias: Tensor
    """b_dec of the layer that it writes [d_out]."""
    reads: Site
    """Where it reads."""
    writes: Site
    """Where it writes."""
    where: str
    """The file that it came from."""
    model_name: str = ""
    """The model that it was made for, where the files say so."""


def as_set(dictionaries: Iterable[Dictionary], source: Source, choice: Choice) -> TranscoderSet:
    """Per-layer dictionaries as one set. They must agree on where they read and write, and be one for each layer."""
    by_layer: dict[int, Dictionary] = {}
    for one in dictionaries:
        other = by_layer.setdefault(one.transcoder.layer, one)
        if other is not one:
            raise BadTranscoder(
                f"{source.name}: {other.where} and {one.where} both read layer {one.transcoder.layer}; "
                "say which is meant by a part of its path (variant)"
            )
    chosen = [by_layer[layer] for layer in sorted(by_layer)]
    if not chosen:
        raise BadTranscoder(f"{source.name}: no dictionary is left after choosing layers and variant")
    first = chosen[0]
    for one in chosen:
        if (one.reads, one.writes) != (first.reads, first.writes):
            raise BadTranscoder(
                f"{source.name}: {first.where} goes from {first.reads} to {first.writes}, {one.where} from {one.reads} "
                f"to {one.writes}; say which is meant by a part of its path (variant)"
            )
    biases: Mapping[int, Tensor] = {one.transcoder.layer: one.bias for one in chosen}
    return TranscoderSet(
        tuple(one.transcoder for one in chosen),
        choice.reads or first.reads,
        choice.writes or first.writes,
        biases,
        name=source.name,
        model_name=first.model_name,
    )

"""Directions of the residual stream: read from safetensors, or made as a difference of means between two sets of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor
from tqdm import tqdm

from discovery.component_model import ComponentModel
from discovery.intervened_run import untouched_pass
from discovery.intervention import BadIntervention, DirectionEdit, Prompts


def difference_of_means(
    model: ComponentModel, positive: Sequence[Prompts], negative: Sequence[Prompts], position: int | None = -1
) -> Float[Tensor, "stream d_model"]:
    """Mean residual stream of the positive prompts less that of the negative ones, for the stream that enters each layer and
    the one before the final norm. position: where it is read (negative: from the end); None: mean over all tokens, every
    token counting alike. float32 at least."""
    means = []
    for name, batches in (("positive", positive), ("negative", negative)):
        total, cells = None, 0
        for prompts in tqdm(batches, desc=f"{name} prompts", unit="batch", delay=1, leave=False):
            untouched = untouched_pass(model, prompts, patterns=False)
            where = untouched.prompts.cells(position)
            assert untouched.seen.final_in is not None
            streams = [stream[where] for stream in (*untouched.seen.attention_in, untouched.seen.final_in)]
            summed = torch.stack([stream.double().sum(0) for stream in streams])
            total = summed if total is None else total + summed
            cells += int(where.sum())
        if total is None:
            raise BadIntervention(f"a difference of means needs {name} prompts")
        means.append(total / cells)
    return (means[0] - means[1]).to(model.dtype)


def direction_bytes(directions: Float[Tensor, "stream d_model"]) -> bytes:
    """A safetensors file with one vector for each residual stream, r0 (the embedding) up to the one before the final norm."""
    return save({f"r{stream}": vector.cpu().clone() for stream, vector in enumerate(directions)})


def read_directions(file: str | Path | bytes, name: str | None = None) -> dict[int | None, Float[Tensor, " d_model"]]:
    """The vectors of a safetensors file (or of its content), by the residual stream that each is for; None: for every stream.

    A file holds a single vector (or `name` chooses one), which is for every stream; or vectors r0, r1, ..., each for its own;
    or one matrix [stream d_model] of such. Raises BadIntervention naming the file and the tensor.
    """
    path = "of the difference of means" if isinstance(file, bytes) else file
    try:
        tensors = load(file) if isinstance(file, bytes) else load_file(file)
    except (OSError, SafetensorError) as error:
        raise BadIntervention(f"direction {path}: not a safetensors file that can be read: {error}") from None
    if name is not None:
        if name not in tensors:
            raise BadIntervention(
                f"direction {path}: there is no tensor {name!r} (it has {', '.join(sorted(tensors))})"
            )
        tensors = {name: tensors[name]}
    found: dict[int | None, Tensor] = {}
    if len(tensors) == 1:
        only, tensor = next(iter(tensors.items()))
        if tensor.ndim == 2:
            found = dict(enumerate(tensor))
        elif name is not None or not _is_stream(only):
            found = {None: tensor}
    if not found:
        strange = sorted(key for key in tensors if not _is_stream(key))
        if strange or not tensors:
            first = f"tensor {strange[0]!r} is none of r0, r1, ..." if strange else "there is no tensor in it"
            raise BadIntervention(f"direction {path}: {first}; name the vector to use with --vector")
        found = {int(key[1:]): tensor for key, tensor in tensors.items()}
    for stream, vector in found.items():
        if vector.ndim != 1 or not vector.is_floating_point() or not bool(torch.isfinite(vector).all()):
            which = "the vector" if stream is None else f"r{stream}"
            raise BadIntervention(
                f"direction {path}: {which} must be one vector of finite numbers, not {tuple(vector.shape)}"
            )
    return found


def _is_stream(key: str) -> bool:
    return key[:1] == "r" and key[1:].isascii() and key[1:].isdigit()


def direction_edits(
    model: ComponentModel,
    directions: Mapping[int | None, Float[Tensor, " d_model"]],
    *,
    add: float | None = None,
    streams: Sequence[int] | None = None,
    position: int | None = None,
) -> list[DirectionEdit]:
    """Edits that add the directions, `add` times, or (None) project them out.

    streams: where, of those that there are directions for; by default at all of them. One direction that is for every stream
    is projected out of everything that is written, so that no stream ever has it. Raises BadIntervention.
    """
    layers, width = len(model.blocks), model.blocks[0].weight("q").shape[-1]
    for stream in (*(streams or ()), *(key for key in directions if key is not None)):
        if not 0 <= stream <= layers:
            raise BadIntervention(f"there is no residual stream r{stream}: the model has r0 to r{layers}")
    for vector in directions.values():
        if len(vector) != width:
            raise BadIntervention(f"the direction has {len(vector)} dimensions, the model's residual stream {width}")
        if add is None and not bool(vector.any()):
            raise BadIntervention("the direction is zero: there is nothing to project out")
    if None in directions:
        chosen = None if streams is None else tuple(streams)
        return [DirectionEdit(directions[None], add, chosen, position)]
    missing = [stream for stream in streams or () if stream not in directions]
    if missing:
        raise BadIntervention(f"there is no direction for residual stream r{missing[0]}")
    wanted = sorted(key for key in directions if key is not None) if streams is None else streams
    return [DirectionEdit(directions[stream], add, (stream,), position) for stream in wanted]

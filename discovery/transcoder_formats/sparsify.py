"""sparsify's folders (cfg.json beside sae.safetensors), one for each hookpoint such as layers.3.mlp; read and written.

Activations are the k largest of relu(h). An autoencoder reads x - b_dec, a transcoder (transcode) x; W_skip multiplies x.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from discovery.transcoder import Activation, BadTranscoder, Site, Transcoder, TranscoderSet
from discovery.transcoder_formats.format import Choice, Dictionary, Source, TranscoderFormat, as_set
from discovery.transcoder_formats.weights import centred_bias, open_weights, read_json
from discovery.transcoder_formats.writing import Content, write_files

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
PLACES: dict[str, tuple[Site, Site]] = {
    "": ("residual-in", "residual-out"),
    "mlp": ("mlp-in", "mlp-raw"),
    "attn": ("attention-out", "attention-out"),
    "self_attn": ("attention-out", "attention-out"),
    "attention": ("attention-out", "attention-out"),
}
"""Module inside a layer -> (its input, its output). An autoencoder rebuilds the output. Where a norm stands behind the
attention, `attention-out` is behind it and the module's own output is not: check-transcoders tells."""
_HOOKPOINT = re.compile(r"(?:.*\.)?(?:layers|h|blocks)[._](\d{1,4})(?:\.(.+))?")
_UNSUPPORTED = {"signed": False, "embed_skip": False, "gram_lookup": False}
"""Fields that change what is computed, and the value that is supported."""


def _fits(source: Source) -> bool:
    return bool(source.named(WEIGHTS))


def _needed(source: Source, choice: Choice) -> Sequence[str]:
    folders = [file.removesuffix(WEIGHTS) for file in source.named(WEIGHTS) if choice.wants_file(file)]
    return [file for folder in folders for file in (folder + CONFIG, folder + WEIGHTS) if file in source.files]


def _read(source: Source, root: Path, choice: Choice) -> TranscoderSet:
    read = []
    for file in source.named(WEIGHTS):
        folder = f"{source.name}/{file}".removesuffix(f"/{WEIGHTS}").rpartition("/")[2]
        match = _HOOKPOINT.fullmatch(folder)
        if not choice.wants_file(file):
            continue
        if match is None or (match[2] or "") not in PLACES:
            known = ", ".join(f"layers.0.{module}".removesuffix(".") for module in PLACES)
            raise BadTranscoder(f"{root / file}: the folder {folder!r} is no hookpoint that is known (known: {known})")
        if choice.wants_layer(int(match[1])):
            read.append(_read_one(root / file, int(match[1]), PLACES[match[2] or ""], file))
    return as_set(read, source, choice)


def _read_one(path: Path, layer: int, place: tuple[Site, Site], file: str) -> Dictionary:
    where = path.with_name(CONFIG)
    config = read_json(where)
    for field, value in _UNSUPPORTED.items():
        if config.get(field, value) != value:
            raise BadTranscoder(f"{where}: {field} = {config[field]!r} is not supported")
    activation, k = config.get("activation", "topk"), config.get("k")
    if activation != "topk" or type(k) is not int or k < 1:
        raise BadTranscoder(f"{where}: activation must be topk with k from 1, not {activation!r} with {k!r}")
    transcodes = config.get("transcode", False)
    weights = open_weights(path)
    encoder = weights.take("encoder.weight", "feature", "d_in")
    bias = weights.take("encoder.bias", "feature")
    decoder, decoder_bias = weights.take("W_dec", "feature", "d_out"), weights.take("b_dec", "d_out")
    skip = weights.take_if_there("W_skip", "d_out", "d_in")
    weights.finish()
    if not transcodes:
        bias = centred_bias(encoder, bias, decoder_bias)
    transcoder = Transcoder(layer, encoder, bias, {layer: decoder}, Activation("topk", k=k), skip=skip)
    return Dictionary(transcoder, decoder_bias, place[0] if transcodes else place[1], place[1], file)


SPARSIFY = TranscoderFormat(_fits, _needed, _read)
_FOLDERS: dict[tuple[Site, Site], tuple[str, bool]] = {
    ("residual-in", "residual-out"): ("layers.{}", True),
    ("residual-out", "residual-out"): ("layers.{}", False),
    ("mlp-in", "mlp-raw"): ("layers.{}.mlp", True),
    ("mlp-in", "mlp-out"): ("layers.{}.mlp", True),
    ("mlp-raw", "mlp-raw"): ("layers.{}.mlp", False),
    ("mlp-out", "mlp-out"): ("layers.{}.mlp", False),
    ("attention-out", "attention-out"): ("layers.{}.self_attn", False),
}
"""(reads, writes) -> folder and whether it transcodes. mlp-out is taken for mlp-raw: they differ behind a post-norm only."""


def write_sparsify(transcoders: TranscoderSet, directory: str | Path) -> list[Path]:
    """Writes a set, one folder for each hookpoint, and gives the paths.

    Sets that write mlp-out are read back as writing mlp-raw (the same but for families with a norm behind the MLP).
    Raises BadTranscoder for what sparsify does not have: cross-layer sets, activations other than a rectified top-k, other
    places, inputs and outputs of different widths.
    """
    place = (transcoders.reads, transcoders.writes)
    if place not in _FOLDERS or transcoders.cross_layer:
        what = "cross-layer sets" if transcoders.cross_layer else f"dictionaries from {place[0]} to {place[1]}"
        raise BadTranscoder(f"sparsify has no {what}")
    folder, transcodes = _FOLDERS[place]
    files: dict[str, Content] = {}
    for one in transcoders:
        config, tensors = _written(transcoders, one, transcodes)
        name = folder.format(one.layer)
        files[f"{name}/{WEIGHTS}"] = lambda tensors=tensors: tensors
        files[f"{name}/{CONFIG}"] = json.dumps(config, indent=1)
    return write_files(directory, files)


def _written(transcoders: TranscoderSet, one: Transcoder, transcodes: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kind, decoder, decoder_bias = one.activation, one.decoders[one.layer], transcoders.biases[one.layer]
    width = one.encoder.shape[1]
    if kind.kind != "topk" or not kind.rectified or decoder.shape[1] != width:
        what = f"{'' if kind.rectified else 'unrectified '}{kind.kind} from {width} to {decoder.shape[1]}"
        raise BadTranscoder(f"sparsify has no {what} dimensions: layer {one.layer} cannot be written")
    # What the reader will subtract from the input of an autoencoder is put back beforehand.
    bias = one.encoder_bias if transcodes else centred_bias(one.encoder, one.encoder_bias, -decoder_bias)
    config: dict[str, Any] = {
        "activation": "topk",
        "k": kind.k,
        "num_latents": one.features,
        "expansion_factor": max(1, one.features // width),
        "normalize_decoder": False,
        "multi_topk": False,
        "skip_connection": one.skip is not None,
        "transcode": transcodes,
        "d_in": width,
    }
    tensors = {"encoder.weight": one.encoder, "encoder.bias": bias, "W_dec": decoder, "b_dec": decoder_bias}
    # sparsify loads all tensors of a file in one dtype.
    tensors |= {} if one.skip is None else {"W_skip": one.skip}
    return config, {name: value.to(one.encoder.dtype) for name, value in tensors.items()}

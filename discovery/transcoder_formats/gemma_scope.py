"""Gemma Scope's params.npz (layer_0/width_16k/average_l0_76/) and Gemma Scope 2's safetensors with config.json.

In both W_enc is [d_in, feature] and activations are relu(h) * (h > threshold). A skip connection is [d_in, d_out].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from discovery.transcoder import Activation, BadTranscoder, Site, Transcoder, TranscoderSet
from discovery.transcoder_formats.format import Choice, Dictionary, Source, TranscoderFormat, as_set
from discovery.transcoder_formats.hooks import place_of_module
from discovery.transcoder_formats.weights import Weights, open_weights, read_json

NPZ, SAFETENSORS = "params.npz", "params.safetensors"
PLACES: dict[str, tuple[Site, Site]] = {
    "transcoder": ("mlp-norm", "mlp-out"),
    "att": ("attention-mix", "attention-mix"),
    "mlp": ("mlp-out", "mlp-out"),
    "res": ("residual-out", "residual-out"),
}
"""Part of the repository's name (as in gemma-scope-2b-pt-res) -> (reads, writes)."""
PLACES_2: dict[str, tuple[Site, Site]] = {
    "clt": ("mlp-in", "mlp-out"),
    "transcoder": ("mlp-in", "mlp-out"),
    "attn_out": ("attention-mix", "attention-mix"),
    "mlp_out": ("mlp-out", "mlp-out"),
    "resid_post": ("residual-out", "residual-out"),
}
"""Of Gemma Scope 2 the folder's name, where a config.json is missing."""
_LAYER = re.compile(r"(?:^|/|_)layer_(\d{1,4})(?=/|_|\.|$)")
_L0 = re.compile(r"average_l0_(\d+)|l0_(small|medium|big)")
_CROSS_LAYER = re.compile(r"(?:.*/)?params_layer_(\d{1,4})\.safetensors")


def read_parameters(weights: Weights, layer: int) -> tuple[Transcoder, Tensor]:
    """The dictionary of one parameter file that writes the layer it reads, and its b_dec."""
    transcoder, bias, _ = _parameters(weights, layer)
    return transcoder, bias


def _parameters(weights: Weights, layer: int, cross_layer: bool = False) -> tuple[Transcoder, Tensor, Tensor]:
    """Also gives the decoder as it is stored."""
    names = ("w_enc", "w_dec") if "w_enc" in weights else ("W_enc", "W_dec")
    encoder = weights.take(names[0], "d_in", "feature").t()
    axes = ("feature", "layer", "d_out") if cross_layer else ("feature", "d_out")
    decoder = weights.take(names[1], *axes)
    bias, decoder_bias = weights.take("b_enc", "feature"), weights.take("b_dec", "d_out")
    threshold = weights.take("threshold", "feature")
    skip = weights.take_if_there("affine_skip_connection", "d_in", "d_out")
    weights.finish()
    activation = Activation("jumprelu", threshold=threshold)
    decoders = {} if cross_layer else {layer: decoder}
    transcoder = Transcoder(layer, encoder, bias, decoders, activation, skip=None if skip is None else skip.t())
    return transcoder, decoder_bias, decoder


def _files(source: Source, choice: Choice) -> dict[int, str]:
    """The chosen parameter file of each layer."""
    found: dict[int, list[str]] = {}
    for file in source.files:
        whole = f"{source.name}/{file}"
        if file.rpartition("/")[2] not in (NPZ, SAFETENSORS) and not _CROSS_LAYER.fullmatch(file):
            continue
        layers = _LAYER.findall(whole)
        if layers and choice.wants_file(whole) and choice.wants_layer(int(layers[-1])):
            found.setdefault(int(layers[-1]), []).append(file)
    return {layer: _choose(layer, files, source, choice) for layer, files in sorted(found.items())}


def _choose(layer: int, files: list[str], source: Source, choice: Choice) -> str:
    if len(files) == 1:
        return files[0]
    numbers = {file: float(match[1]) for file in files if (match := _L0.search(file)) and match[1]}
    alike = len({_L0.sub("", file) for file in files}) == 1
    if choice.l0 is not None and alike and len(numbers) == len(files):
        wanted = choice.l0
        return min(files, key=lambda file: abs(numbers[file] - wanted))
    shown = ", ".join(file.rpartition("/")[0] for file in files[:6]) + (", ..." if len(files) > 6 else "")
    raise BadTranscoder(
        f"{source.name}: layer {layer} has {len(files)} dictionaries ({shown}); "
        f"say which by a part of the path (variant){' or the nearest mean L0 (l0)' if alike and numbers else ''}"
    )


def _fits(source: Source) -> bool:
    return bool(source.named(NPZ, SAFETENSORS)) or any(map(_CROSS_LAYER.fullmatch, source.files))


def _needed(source: Source, choice: Choice) -> Sequence[str]:
    chosen = list(_files(source, choice).values())
    return chosen + [config for file in chosen if (config := _config_of(file)) in source.files]


def _config_of(file: str) -> str:
    folder = file.rpartition("/")[0]
    return f"{folder}/config.json" if folder else "config.json"


def _read(source: Source, root: Path, choice: Choice) -> TranscoderSet:
    files = _files(source, choice)
    if not files:
        raise BadTranscoder(
            f"{source.name}: no file names a layer (as layer_0/width_16k/average_l0_76/params.npz does)"
        )
    if any(map(_CROSS_LAYER.fullmatch, files.values())):
        return _read_cross_layer(source, root, choice, files)
    return as_set((_read_one(source, root, choice, layer, file) for layer, file in files.items()), source, choice)


def _read_one(source: Source, root: Path, choice: Choice, layer: int, file: str) -> Dictionary:
    weights = open_weights(root / file)
    reads, writes, model = _place(source, root, choice, layer, file, PLACES if file.endswith(NPZ) else PLACES_2)
    transcoder, bias = read_parameters(weights, layer)
    return Dictionary(transcoder, bias, reads, writes, file, model)


def _place(
    source: Source, root: Path, choice: Choice, layer: int, file: str, places: dict[str, tuple[Site, Site]]
) -> tuple[Site, Site, str]:
    """Where a dictionary reads and writes: as its config.json says, or the choice, or the names around it."""
    config, path, model = _config_of(file), root / _config_of(file), ""
    if config in source.files:
        said = read_json(path)
        model = str(said.get("model_name") or "")
        if said.get("architecture", "jump_relu") != "jump_relu":
            raise BadTranscoder(f"{path}: architecture {said['architecture']!r} is not known (known: jump_relu)")
        if "hf_hook_point_in" in said:
            there, reads = place_of_module(said["hf_hook_point_in"], f"{path}: hf_hook_point_in")
            out = said.get("hf_hook_point_out") or said["hf_hook_point_in"]
            _, writes = place_of_module(out, f"{path}: hf_hook_point_out")
            if there != layer:
                raise BadTranscoder(f"{path}: hf_hook_point_in names layer {there}, the folder layer {layer}")
            return reads, writes, model
    if choice.reads and choice.writes:
        return choice.reads, choice.writes, model
    whole = f"{source.name}/{file}".lower()
    for part, (reads, writes) in places.items():
        if re.search(rf"[-_/]{part}", whole) or whole.startswith(part):
            return reads, writes, model
    raise BadTranscoder(
        f"{source.name}: no name says whether these are {', '.join(places)}; say where they read and write (reads, writes)"
    )


def _read_cross_layer(source: Source, root: Path, choice: Choice, files: dict[int, str]) -> TranscoderSet:
    if sorted(files) != list(range(len(files))):
        raise BadTranscoder(f"{source.name}: cross-layer transcoders belong together; here are layers {sorted(files)}")
    count, transcoders, biases = len(files), [], {}
    reads, writes, model = _place(source, root, choice, 0, files[0], PLACES_2)
    for layer, file in files.items():
        weights = open_weights(root / file)
        one, biases[layer], decoder = _parameters(weights, layer, cross_layer=True)
        # All layers are stored, or only those that are written.
        if decoder.shape[1] not in (count, count - layer):
            raise BadTranscoder(f"{weights.path}: w_dec has {decoder.shape[1]} layers; the set has {count}")
        first = layer if decoder.shape[1] == count else 0
        decoders = {target: decoder[:, first + target - layer] for target in range(layer, count)}
        transcoders.append(Transcoder(layer, one.encoder, one.encoder_bias, decoders, one.activation, skip=one.skip))
    return TranscoderSet(tuple(transcoders), reads, writes, biases, name=source.name, model_name=model)


GEMMA_SCOPE = TranscoderFormat(_fits, _needed, _read)

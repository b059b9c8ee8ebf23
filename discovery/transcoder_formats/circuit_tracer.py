"""circuit-tracer's directories: config.yaml beside the weights of per-layer or cross-layer transcoders; read and written.

Written files may say two things more than circuit-tracer knows: `rectified` (whether what passes a threshold or a top-k is
rectified too) and, of cross-layer sets, `activation: topk` (circuit-tracer itself takes those for ReLU).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from discovery.transcoder import Activation, BadTranscoder, Site, Transcoder, TranscoderSet
from discovery.transcoder_formats.format import Choice, Dictionary, Source, TranscoderFormat, as_set
from discovery.transcoder_formats.gemma_scope import read_parameters
from discovery.transcoder_formats.hooks import NAMES, site_of_hook
from discovery.transcoder_formats.hub import fetch_uri
from discovery.transcoder_formats.weights import Weights, open_weights, read_text
from discovery.transcoder_formats.writing import Content, write_files

CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
_LAYER = re.compile(r"layer_(\d{1,4})\.safetensors")
_ENCODER = re.compile(r"W_enc_(\d{1,4})\.safetensors")
_FILE = re.compile(r"config\.yaml|(?:layer|W_enc|W_dec)_\d{1,4}\.safetensors")


def _fits(source: Source) -> bool:
    return CONFIG in source.files


def _needed(source: Source, choice: Choice) -> Sequence[str]:
    return [file for file in source.files if _FILE.fullmatch(file)]


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise BadTranscoder(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise BadTranscoder(f"{path} must hold keys and values, not {type(config).__name__}")
    return config


def _read(source: Source, root: Path, choice: Choice) -> TranscoderSet:
    path = root / CONFIG
    config = _config(path)
    kind = config.get("model_kind")
    if kind not in _KINDS:
        raise BadTranscoder(f"{path}: model_kind must be {' or '.join(_KINDS)}, not {kind!r}")
    reads = choice.reads or site_of_hook(config.get("feature_input_hook"), f"{path}: feature_input_hook")
    writes = choice.writes or site_of_hook(config.get("feature_output_hook"), f"{path}: feature_output_hook")
    return _KINDS[kind](source, root, choice, config, reads, writes)


def _activation(config: Mapping[str, Any], where: Path, threshold: Tensor | None, k: int | None = None) -> Activation:
    """What config.yaml says, else what the weights have."""
    kind = config.get("activation")
    rectified = config.get("rectified", False)
    if kind not in (None, "relu", "topk", "jumprelu", "jump_relu") or not isinstance(rectified, bool):
        raise BadTranscoder(f"{where}: activation {kind!r} (rectified: {rectified!r}) is not known")
    if kind == "relu":
        return Activation("relu")
    if kind == "topk":
        count = config.get("k", k)
        if type(count) is not int or count < 1:
            raise BadTranscoder(f"{where}: activation topk needs k, a whole number from 1, not {count!r}")
        return Activation("topk", k=count, rectified=rectified)
    if threshold is not None:
        return Activation("jumprelu", threshold=threshold, rectified=rectified)
    if kind is not None:
        raise BadTranscoder(f"{where}: activation {kind} needs thresholds in the weight files")
    return Activation("relu")


def _read_layers(
    source: Source, root: Path, choice: Choice, config: dict[str, Any], reads: Site, writes: Site
) -> TranscoderSet:
    model = str(config.get("model_name") or "")
    read = []
    for layer, path in _layer_files(source, root, config):
        if choice.wants_layer(layer):
            weights = open_weights(path)
            parts = read_parameters(weights, layer) if "w_enc" in weights or path.suffix == ".npz" else None
            transcoder, bias = parts or _layer(weights, layer, config)
            read.append(Dictionary(transcoder, bias, reads, writes, path.name, model))
    return as_set(read, source, choice)


def _layer_files(source: Source, root: Path, config: Mapping[str, Any]) -> list[tuple[int, Path]]:
    listed = config.get("transcoders")
    if listed is None:
        found = [(int(match[1]), root / file) for file in source.files if (match := _LAYER.fullmatch(file))]
        if not found:
            raise BadTranscoder(f"{source.name}: {CONFIG} says transcoder_set, but there is no layer_0.safetensors")
        return sorted(found)
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise BadTranscoder(f"{root / CONFIG}: transcoders must be a list of paths")
    return [(layer, _listed_file(entry, root)) for layer, entry in enumerate(listed)]


def _listed_file(entry: str, root: Path) -> Path:
    """A file that config.yaml names: on the hub (hf://owner/name/path?revision=...), or inside the directory."""
    if entry.startswith("hf://"):
        return fetch_uri(entry)
    path = root / entry
    if Path(entry).is_absolute() or ".." in Path(entry).parts or not path.is_file():
        raise BadTranscoder(f"{root / CONFIG}: transcoders names {entry!r}, which is no file in this directory")
    return path


def _layer(weights: Weights, layer: int, config: Mapping[str, Any]) -> tuple[Transcoder, Tensor]:
    encoder = weights.take("W_enc", "feature", "d_in")
    bias = weights.take("b_enc", "feature")
    decoder = weights.take("W_dec", "feature", "d_out")
    decoder_bias = weights.take("b_dec", "d_out")
    skip = weights.take_if_there("W_skip", "d_out", "d_in")
    threshold = weights.take_if_there(THRESHOLD, "feature")
    k = int(weights.left.pop("k").item()) if "k" in weights else None
    weights.finish()
    activation = _activation(config, weights.path, threshold, k)
    return Transcoder(layer, encoder, bias, {layer: decoder}, activation, skip=skip), decoder_bias


def _read_cross_layer(
    source: Source, root: Path, choice: Choice, config: dict[str, Any], reads: Site, writes: Site
) -> TranscoderSet:
    layers = sorted(int(match[1]) for file in source.files if (match := _ENCODER.fullmatch(file)))
    if not layers or layers != list(range(len(layers))):
        raise BadTranscoder(
            f"{source.name}: {CONFIG} says cross_layer_transcoder, but W_enc_*.safetensors are {layers}"
        )
    if choice.layers is not None:
        raise BadTranscoder(f"{source.name}: cross-layer transcoders belong together; leave out the choice of layers")
    transcoders, biases = [], {}
    for layer in layers:
        weights = open_weights(root / f"W_enc_{layer}.safetensors")
        encoder = weights.take(f"W_enc_{layer}", "feature", "d_in")
        bias = weights.take(f"b_enc_{layer}", "feature")
        biases[layer] = weights.take(f"b_dec_{layer}", "d_out")
        threshold = weights.take_if_there(f"threshold_{layer}", "feature")
        weights.finish()
        written = open_weights(root / f"W_dec_{layer}.safetensors")
        written.sizes |= {"feature": encoder.shape[0], "d_out": len(biases[layer]), "layer": len(layers) - layer}
        decoder = written.take(f"W_dec_{layer}", "feature", "layer", "d_out")
        written.finish()
        decoders = {layer + i: decoder[:, i] for i in range(decoder.shape[1])}
        transcoders.append(Transcoder(layer, encoder, bias, decoders, _activation(config, weights.path, threshold)))
    model = str(config.get("model_name") or "")
    return TranscoderSet(tuple(transcoders), reads, writes, biases, name=source.name, model_name=model)


_KINDS = {"transcoder_set": _read_layers, "cross_layer_transcoder": _read_cross_layer}
CIRCUIT_TRACER = TranscoderFormat(_fits, _needed, _read)


def write_circuit_tracer(transcoders: TranscoderSet, directory: str | Path) -> list[Path]:
    """Writes a set into one directory and gives the paths. Raises BadTranscoder for what the layout cannot hold."""
    kinds = {(one.activation.kind, one.activation.k, one.activation.rectified) for one in transcoders}
    if len(kinds) > 1 and {kind for kind, _, _ in kinds} != {"relu"}:
        raise BadTranscoder("circuit-tracer's layout has one activation for all layers; these differ")
    activation = transcoders.transcoders[0].activation
    if activation.kind == "batchtopk":
        raise BadTranscoder("circuit-tracer's layout has no batchtopk: turn it into a jumprelu with a threshold first")
    files = _cross_layer_files(transcoders) if transcoders.cross_layer else _files_by_layer(transcoders)
    config: dict[str, Any] = {
        "model_kind": "cross_layer_transcoder" if transcoders.cross_layer else "transcoder_set",
        "model_name": transcoders.model_name,
        "feature_input_hook": NAMES[transcoders.reads],
        "feature_output_hook": NAMES[transcoders.writes],
        "activation": activation.kind,
    }
    if activation.k is not None:
        config["k"] = activation.k
    if activation.kind != "relu" and activation.rectified:
        config["rectified"] = True
    return write_files(directory, files | {CONFIG: yaml.safe_dump(config, sort_keys=False)})


def _files_by_layer(transcoders: TranscoderSet) -> dict[str, Content]:
    def tensors(one: Transcoder) -> dict[str, Tensor]:
        found = {
            "W_enc": one.encoder,
            "b_enc": one.encoder_bias,
            "W_dec": one.decoders[one.layer],
            "b_dec": transcoders.biases[one.layer],
        }
        if one.activation.threshold is not None:
            found[THRESHOLD] = one.activation.threshold
        return found | ({} if one.skip is None else {"W_skip": one.skip})

    return {f"layer_{one.layer}.safetensors": lambda one=one: tensors(one) for one in transcoders}


def _cross_layer_files(transcoders: TranscoderSet) -> dict[str, Content]:
    layers = range(len(transcoders))
    for layer, one in enumerate(transcoders):
        if one.layer != layer or sorted(one.decoders) != list(layers)[layer:]:
            raise BadTranscoder(
                "circuit-tracer's cross-layer layout has a dictionary for each layer from 0 that writes it and all behind it; "
                f"layer {one.layer} writes {sorted(one.decoders)}"
            )
        if one.skip is not None:
            raise BadTranscoder("circuit-tracer's cross-layer layout holds no skip connection")

    def encoder(one: Transcoder) -> dict[str, Tensor]:
        i = one.layer
        found = {f"W_enc_{i}": one.encoder, f"b_enc_{i}": one.encoder_bias, f"b_dec_{i}": transcoders.biases[i]}
        return found | ({} if one.activation.threshold is None else {f"threshold_{i}": one.activation.threshold})

    def decoder(one: Transcoder) -> dict[str, Tensor]:
        return {f"W_dec_{one.layer}": torch.stack([one.decoders[layer] for layer in layers[one.layer :]], 1)}

    files: dict[str, Content] = {}
    for one in transcoders:
        files[f"W_enc_{one.layer}.safetensors"] = lambda one=one: encoder(one)
        files[f"W_dec_{one.layer}.safetensors"] = lambda one=one: decoder(one)
    return files

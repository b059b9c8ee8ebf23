"""SAELens's folders (cfg.json beside sae_weights.safetensors), one for each dictionary; read and written.

W_enc is [d_in, feature]. What SAELens computes in several steps is folded into one encoder, bias and threshold: the decoder
bias that it subtracts from the input, gates, and the rescaling of activations by decoder norms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discovery.transcoder import Activation, BadTranscoder, Transcoder, TranscoderSet
from discovery.transcoder_formats.format import Choice, Dictionary, Source, TranscoderFormat, as_set
from discovery.transcoder_formats.hooks import NAMES, place_of_hook
from discovery.transcoder_formats.weights import Weights, centred_bias, open_weights, read_json, row_norms
from discovery.transcoder_formats.writing import Content, write_files

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
ARCHITECTURES: dict[str, str] = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "matryoshka": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Architecture as cfg.json names it -> how its features are activated."""
_LINEAR = ("none", None, False, "expected_average_only_in")
# The average norm of expected_average_only_in is folded before a file is written, and SAELens applies nothing at run time.
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def _fits(source: Source) -> bool:
    return bool(source.named(WEIGHTS))


def _needed(source: Source, choice: Choice) -> Sequence[str]:
    folders = [file.removesuffix(WEIGHTS) for file in source.named(WEIGHTS) if choice.wants_file(file)]
    return [file for folder in folders for file in (folder + CONFIG, folder + WEIGHTS) if file in source.files]


def _read(source: Source, root: Path, choice: Choice) -> TranscoderSet:
    read = []
    for file in source.named(WEIGHTS):
        if choice.wants_file(file):
            config = _config(root / file.replace(WEIGHTS, CONFIG))
            layer, reads = place_of_hook(config.get("hook_name"), f"{root / file.replace(WEIGHTS, CONFIG)}: hook_name")
            if choice.wants_layer(layer):
                read.append(_read_one(root / file, config, layer, reads, file))
    return as_set(read, source, choice)


def _config(path: Path) -> dict[str, Any]:
    """cfg.json with the metadata of later versions beside the rest, and the names of earlier ones brought up to date."""
    config = read_json(path)
    metadata = config.pop("metadata", {})
    if not isinstance(metadata, dict):
        raise BadTranscoder(f"{path}: metadata must be an object")
    merged = {_OLD_NAMES.get(name, name): value for name, value in (config | metadata).items()}
    merged["where"] = path
    for field, known, why in (
        ("normalize_activations", _LINEAR, "it depends on the input in ways that are not linear"),
        ("reshape_activations", ("none", None, "hook_z"), "it is not known"),
        ("hook_head_index", (None,), "a dictionary of a single head is not supported"),
        ("activation_fn", ("relu", "topk", None), "it is not known"),
    ):
        if merged.get(field) not in known:
            raise BadTranscoder(f"{path}: {field} is {merged[field]!r}; {why}")
    return merged


def _read_one(path: Path, config: Mapping[str, Any], layer: int, reads: Any, file: str) -> Dictionary:
    where, name = config["where"], config.get("architecture", "standard")
    if name not in ARCHITECTURES:
        raise BadTranscoder(f"{where}: architecture {name!r} is not supported (supported: {', '.join(ARCHITECTURES)})")
    transcodes = name.endswith("transcoder")
    writes, out = reads, config.get("hook_name_out")
    if transcodes:
        target, writes = place_of_hook(out, f"{where}: hook_name_out")
        if target != layer:
            raise BadTranscoder(f"{where}: hook_name_out names layer {target}, hook_name layer {layer}")
    weights = open_weights(path)
    encoder = weights.take("W_enc", "d_in", "feature").t()
    decoder = weights.take("W_dec", "feature", "d_out")
    decoder_bias = weights.take("b_dec", "d_out")
    skip = weights.take("W_skip", "d_out", "d_in") if "skip" in name else None
    decoder = _finetuned(weights, config, decoder)
    kind = "topk" if name == "standard" and config.get("activation_fn") == "topk" else ARCHITECTURES[name]
    parts = _READERS[kind](weights, config, encoder, decoder)
    weights.finish()
    bias = parts.bias
    if config.get("apply_b_dec_to_input", not transcodes):
        if transcodes:
            raise BadTranscoder(f"{where}: apply_b_dec_to_input does not go with {name}")
        bias = centred_bias(parts.encoder, bias, decoder_bias)  # thresholds are on h and stay where they are
    model = str(config.get("model_name") or "")
    transcoder = Transcoder(layer, parts.encoder, bias, {layer: parts.decoder}, parts.activation, skip=skip)
    return Dictionary(transcoder, decoder_bias, reads, writes, file, model)


def _finetuned(weights: Weights, config: Mapping[str, Any], decoder: Tensor) -> Tensor:
    """The decoder with the factors on activations that were learned after training, where there are any."""
    factor = weights.take_if_there("scaling_factor", "feature")
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return decoder
    if not config.get("finetuning_scaling_factor"):
        raise BadTranscoder(f"{weights.path}: scaling_factor is not 1, but finetuning_scaling_factor is false")
    return decoder * factor[:, None]


class _Parts(NamedTuple):
    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    activation: Activation


def _relu(weights: Weights, config: Mapping[str, Any], encoder: Tensor, decoder: Tensor) -> _Parts:
    return _Parts(encoder, weights.take("b_enc", "feature"), decoder, Activation("relu"))


def _jumprelu(weights: Weights, config: Mapping[str, Any], encoder: Tensor, decoder: Tensor) -> _Parts:
    threshold = weights.take_if_there("threshold", "feature")
    if threshold is None:
        threshold = weights.take("log_threshold", "feature").exp()
    return _rescaled(
        _Parts(encoder, weights.take("b_enc", "feature"), decoder, Activation("jumprelu", threshold)), config
    )


def _gated(weights: Weights, config: Mapping[str, Any], encoder: Tensor, decoder: Tensor) -> _Parts:
    """relu(exp(r) W x + b_mag) where W x + b_gate > 0: a threshold on h = exp(r) W x + b_mag."""
    gate, magnitude = weights.take("b_gate", "feature"), weights.take("b_mag", "feature")
    scale = weights.take("r_mag", "feature").exp()
    weights.drop("b_enc")
    scaled = encoder if bool((scale == 1).all()) else encoder * scale[:, None]
    return _Parts(scaled, magnitude, decoder, Activation("jumprelu", threshold=magnitude - scale * gate))


def _topk(weights: Weights, config: Mapping[str, Any], encoder: Tensor, decoder: Tensor) -> _Parts:
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    return _rescaled(
        _Parts(encoder, weights.take("b_enc", "feature"), decoder, Activation("topk", k=_whole(k, config))), config
    )


def _batchtopk(weights: Weights, config: Mapping[str, Any], encoder: Tensor, decoder: Tensor) -> _Parts:
    """A threshold was learned in training, and is used in its place; a file without one takes the top of each batch."""
    bias = weights.take("b_enc", "feature")
    if "topk_threshold" in weights:
        level = weights.left.pop("topk_threshold").to(bias.dtype)
        activation = Activation("jumprelu", threshold=torch.ones_like(bias) * level)
    elif "threshold" in weights:
        activation = Activation("jumprelu", threshold=weights.take("threshold", "feature"))
    else:
        activation = Activation("batchtopk", k=_whole(config.get("k"), config))
    return _rescaled(_Parts(encoder, bias, decoder, activation), config)


_READERS = {"relu": _relu, "gated": _gated, "jumprelu": _jumprelu, "topk": _topk, "batchtopk": _batchtopk}


def _rescaled(parts: _Parts, config: Mapping[str, Any]) -> _Parts:
    """Pre-activations times decoder norms, decoder rows divided by them, where cfg.json says so."""
    if not config.get("rescale_acts_by_decoder_norm"):
        return parts
    norms = row_norms(parts.decoder)
    encoder, bias = parts.encoder * norms[:, None], parts.bias * norms
    return parts._replace(encoder=encoder, bias=bias, decoder=parts.decoder / norms[:, None])


def _whole(k: Any, config: Mapping[str, Any]) -> int:
    if isinstance(k, bool) or not isinstance(k, int | float) or k < 1 or k != int(k):
        raise BadTranscoder(f"{config['where']}: k must be a whole number from 1, not {k!r}")
    return int(k)


SAE_LENS = TranscoderFormat(_fits, _needed, _read)


def write_sae_lens(transcoders: TranscoderSet, directory: str | Path) -> list[Path]:
    """Writes a set, one folder for each layer named after its hook, and gives the paths.

    Raises BadTranscoder for what SAELens has no architecture for: cross-layer sets, transcoders with top-k, autoencoders with
    a skip connection, activations that are not rectified.
    """
    files: dict[str, Content] = {}
    for one in transcoders:
        folder = f"blocks.{one.layer}.{NAMES[transcoders.reads]}"
        config, tensors = _written(transcoders, one)
        files[f"{folder}/{WEIGHTS}"] = lambda tensors=tensors: tensors
        files[f"{folder}/{CONFIG}"] = json.dumps(config, indent=1)
    return write_files(directory, files)


_WRITTEN: dict[tuple[str, bool, bool], str] = {
    ("relu", False, False): "standard",
    ("jumprelu", False, False): "jumprelu",
    ("topk", False, False): "topk",
    ("relu", True, False): "transcoder",
    ("relu", True, True): "skip_transcoder",
    ("jumprelu", True, False): "jumprelu_transcoder",
    ("jumprelu", True, True): "jumprelu_skip_transcoder",
}
"""(activation, whether it transcodes, whether it has a skip connection) -> SAELens's architecture."""


def _written(transcoders: TranscoderSet, one: Transcoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    activation, transcodes = one.activation, not transcoders.is_autoencoder
    architecture = _WRITTEN.get((activation.kind, transcodes, one.skip is not None))
    threshold = activation.threshold
    signed = not activation.rectified and (
        activation.kind == "topk" or bool((threshold is not None) and (threshold < 0).any())
    )
    if architecture is None or transcoders.cross_layer or signed:
        what = "cross-layer " if transcoders.cross_layer else "skip " if one.skip is not None else ""
        what += f"{'unrectified ' if signed else ''}{activation.kind}"
        raise BadTranscoder(
            f"SAELens has no {what} {'transcoders' if transcodes else 'autoencoders'}; layer {one.layer} is one"
        )
    decoder = one.decoders[one.layer]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": one.encoder.shape[1],
        "d_sae": one.features,
        "dtype": str(one.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    metadata = {"sae_lens_version": "6.0.0", "model_name": transcoders.model_name}
    metadata["hook_name"] = f"blocks.{one.layer}.{NAMES[transcoders.reads]}"
    if transcodes:
        config["d_out"] = decoder.shape[1]
        metadata["hook_name_out"] = f"blocks.{one.layer}.{NAMES[transcoders.writes]}"
    if activation.kind == "topk":
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if transcoders.reads == "attention-mix" and not transcodes:
        config["reshape_activations"] = "hook_z"
    tensors = {
        "W_enc": one.encoder.t(), "b_enc": one.encoder_bias, "W_dec": decoder, "b_dec": transcoders.biases[one.layer],
    }  # fmt: skip
    tensors |= {} if threshold is None else {"threshold": threshold}
    tensors |= {} if one.skip is None else {"W_skip": one.skip}
    return config | {"metadata": metadata}, tensors

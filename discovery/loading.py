"""Loading an untouched Hugging Face causal LM, and checking on a first batch that the engine computes what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from discovery.architectures import architecture_of
from discovery.batch import Batch
from discovery.component_model import ComponentModel, KvHeads

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Largest difference to the untouched model's logits, relative to the largest logit, that passes the first-batch check.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


class ModelNotLoaded(ValueError):
    """A model that cannot be loaded as it is asked for."""


class NotTheSameModel(ValueError):
    """The engine's run with every edge kept differs from the untouched model."""


def pick_device(device: str) -> torch.device:
    """`auto`: CUDA, else MPS, else CPU; anything else as torch understands it. Raises ModelNotLoaded for an unknown device."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ModelNotLoaded(f"device {device!r} cannot be used here: {_one_line(error)}") from error
    return picked


def load_model(
    name_or_dir: str | Path,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    kv_heads: KvHeads = "native",
    trust_remote_code: bool = False,
    attention: str | None = None,
    revision: str | None = None,
) -> ComponentModel:
    """A component model from a hub name or a directory in the Hugging Face layout.

    dtype: storage and forward dtype of the weights (attribution products are float32 at least, whatever it is).
    device_map: as in transformers (needs accelerate); overrides `device`. attention: `sdpa` or `eager`; default sdpa where
    the class supports it without dropping a soft cap. revision: branch, tag or commit of a hub name. Raises
    ModelNotLoaded or UnsupportedModel with one line.
    """
    if dtype not in DTYPES:
        raise ModelNotLoaded(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    name = str(name_or_dir)
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelNotLoaded(f"model directory {name} does not exist")
    if revision is not None and Path(name).is_dir():
        raise ModelNotLoaded(f"revision {revision!r}: {name} is a directory, which has none; name a hub model")
    config = _config(name, trust_remote_code, revision)
    record = architecture_of(config)
    implementation = attention or ("sdpa" if record.sdpa else "eager")
    if implementation == "sdpa" and not record.sdpa:
        raise ModelNotLoaded(
            f"model type {config.model_type!r} cannot use sdpa attention without changing what it computes"
        )
    place = {} if device_map is None else {"device_map": device_map}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=implementation,
            trust_remote_code=trust_remote_code,
            revision=revision or "main",
            output_loading_info=True,
            **place,
        )
    except (OSError, ValueError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        raise ModelNotLoaded(f"cannot load the weights of model {name!r}: {_one_line(error)}") from error
    model, info = loaded
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelNotLoaded(
            f"model {name!r} has no weight {missing[0]!r} ({len(missing)} missing); it would be random"
        )
    if device_map is None:
        model = model.to(pick_device(device))
    away = [weight for weight, value in model.named_parameters() if value.is_meta]
    if away:
        raise ModelNotLoaded(
            f"the weights of model {name!r} do not fit into the devices of device map {device_map!r}: {len(away)} are kept "
            f"elsewhere (the first is {away[0]}), and all are needed in place; give more devices, or --dtype bfloat16"
        )
    tokenizer = _load_tokenizer(name, trust_remote_code, revision)
    return ComponentModel(model.eval(), tokenizer, kv_heads=kv_heads, name=name)


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit that a hub name stands for now (where there is no network, in the cache). Raises ModelNotLoaded."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise ModelNotLoaded(f"cannot find model {_at(name, revision)!r}: {_one_line(error)}") from error


def _at(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"


def _config(name: str, trust_remote_code: bool, revision: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        which = _at(name, revision)
        raise ModelNotLoaded(f"cannot load the configuration of model {which!r}: {_one_line(error)}") from error


def _load_tokenizer(name: str, trust_remote_code: bool, revision: str | None) -> PreTrainedTokenizerBase | None:
    directory = Path(name)
    if directory.is_dir() and not any((directory / file).exists() for file in _TOKENIZER_FILES):
        return None  # a token-id model; from_pretrained would invent an empty tokenizer for some classes
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotLoaded(f"cannot load the tokenizer of model {name!r}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_first_batch(model: ComponentModel, batch: Batch) -> float:
    """Run with every edge kept, every slot on its own input, against the untouched model.

    Gives the largest logit difference relative to the largest logit. Raises NotTheSameModel naming the first layer whose
    slots read another residual stream than the model's own.
    """
    tolerance = _TOLERANCE[model.hf.dtype]
    differing: list[str] = []

    def compare(stage: str, inputs: Tensor) -> None:
        if not differing and not _relative(inputs, model.recorded_stream(stage)) <= tolerance:
            differing.append(stage)

    logits, own = model.run_every_slot(batch, compare), model.full_logits(batch)
    if not bool(torch.isfinite(own).all()):
        raise NotTheSameModel(
            f"{model.name or model.config.model_type}: the untouched model's own logits are not finite in {model.hf.dtype}; "
            "try --dtype float32, or --batch-size 1 where prompts differ in length"
        )
    error = _relative(logits, own)
    if not error <= tolerance:
        where = differing[0] if differing else "the unembedding"
        raise NotTheSameModel(
            f"{model.name or model.config.model_type}: with every edge kept the logits differ from the untouched model's by "
            f"{error:.1e} of the largest; first difference: {where}. Please report the architecture and configuration."
        )
    return error


def _relative(seen: Tensor, own: Tensor) -> float:
    """Largest difference over the largest value."""
    own = own.to(seen.device)
    return float((seen - own).abs().max() / own.abs().max().clamp(min=1e-30))

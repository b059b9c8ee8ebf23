"""What the engine must know of a model family: names of modules, layout of projections, norms. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from transformers import PreTrainedConfig

NormKind = Literal["layer", "rms", "rms-plus-one"]
Layout = Literal["separate", "slices", "interleaved"]


class UnsupportedModel(ValueError):
    """A model that the engine would have to guess about."""


@dataclass(frozen=True)
class Architecture:
    """One model family. Module paths are relative to the causal LM, or to the decoder layer, or to the attention module."""

    model_type: str
    """`config.model_type`."""
    layers: str
    """Path of the list of decoder layers."""
    final_norm: str
    """Path of the norm before the unembedding."""
    attention: str
    """Path of the attention module in a layer (the one that holds the projections)."""
    output: str
    """Name of the output projection in the attention module."""
    projections: tuple[str, ...]
    """Names of the q, k and v projections in the attention module, or of the one fused projection."""
    layout: Layout
    """separate; or fused as slices [all q | all k | all v]; or interleaved per head [q k v | q k v | ...] (GPT-NeoX)."""
    attention_norm: str | None
    """Norm that the attention reads through; None where there is none (OLMo 2)."""
    mlp_norm: str | None
    """Norm that the MLP reads through; the attention's own where a parallel block shares it."""
    norm: NormKind
    """LayerNorm, RMSNorm with weight w, or RMSNorm with weight 1 + w (Gemma)."""
    mlp: str = "mlp"
    """Path of the MLP in a layer."""
    post_attention_norm: str | None = None
    """Norm on the attention's output before it is added to the residual stream."""
    post_mlp_norm: str | None = None
    """Norm on the MLP's output before it is added to the residual stream."""
    parallel: bool | str = False
    """Whether the MLP reads what the attention reads; a string names the configuration key that says so."""
    position_embedding: str | None = None
    """Path of the learned position embeddings, which are added to the token embeddings; None where there are none."""
    unembedding: str = "lm_head"
    """Path of the unembedding."""
    final_softcap: str | None = None
    """Configuration key of the soft cap on the logits."""
    sdpa: bool = True
    """False where the class has no sdpa attention, or sdpa would drop a soft cap: `eager` is used then."""
    wide_key_norm: str | None = None
    """Name of a key norm that spans all key/value heads (OLMo 2): widened when key/value heads are ungrouped."""
    ungrouped: Mapping[str, Literal["one", "heads"]] = field(default_factory=lambda: MappingProxyType({}))
    """Attributes of the attention module to set while key/value heads are ungrouped: to 1, or to the number of query heads."""
    handled: frozenset[str] = frozenset()
    """Configuration keys that alter the computation and that this record, or the library's own modules, take care of."""
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Configuration keys that may only have these values."""


# Keys that every family here computes inside modules that stay the library's own (attention kernels, rotary embeddings,
# activations, embeddings), or that only name sizes which are read from the modules.
COMMON_KEYS = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "max_position_embeddings rms_norm_eps layer_norm_eps attention_dropout attention_bias mlp_bias rope_theta rope_scaling "
    "rope_parameters partial_rotary_factor sliding_window layer_types use_sliding_window max_window_layers "
    "original_max_position_embeddings embd_pdrop resid_pdrop pretraining_tp tie_word_embeddings".split()
)
# Keys that say something about a model without entering its forward pass for next-token logits.
DESCRIPTIVE_KEYS = frozenset(
    "initializer_range use_cache bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id model_type "
    "architectures transformers_version torch_dtype dtype auto_map _name_or_path name_or_path license n_ctx "
    "gradient_checkpointing classifier_dropout cache_implementation task_specific_params summary_type summary_use_proj "
    "summary_activation summary_proj_to_labels summary_first_dropout tokenizer_class unsloth_version unsloth_fixed "
    "_attn_implementation _attn_implementation_autoset attn_implementation quantization_config is_decoder".split()
)


def check_configuration(architecture: Architecture, config: PreTrainedConfig) -> None:
    """Raise UnsupportedModel on a configuration key, or a value, that alters the computation and is not known here."""
    text = config.get_text_config()
    known = architecture.handled | COMMON_KEYS | DESCRIPTIVE_KEYS | set(PreTrainedConfig().to_dict())
    known |= set(text.attribute_map) | set(architecture.required)
    unknown = sorted({*config.to_dict(), *text.to_dict()} - known)
    if unknown:
        raise UnsupportedModel(
            f"model type {config.model_type!r}: configuration key {unknown[0]!r} is not known to its architecture record; "
            f"if it changes what the model computes, add it to discovery/architectures (unknown: {', '.join(unknown)})"
        )
    for key, allowed in architecture.required.items():
        value = getattr(text, key, None)
        if value not in allowed:
            raise UnsupportedModel(f"model type {config.model_type!r} with {key}={value!r} is not supported")

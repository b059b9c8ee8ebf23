"""Tiny random models of every architecture family, as the transformers library builds them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from discovery.batch import Batch

_LLAMA = dict(
    vocab_size=41, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
_GEMMA = _LLAMA | dict(head_dim=10)
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_TOKENS = dict(vocab_size=41, bos_token_id=1, eos_token_id=2)
_GPT = _TOKENS | dict(n_positions=64, n_embd=24, n_layer=3, n_head=4)
_NEOX = _TOKENS | dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64
)

FAMILIES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", _GPT),
    "gpt2-untied": ("gpt2", _GPT | dict(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True)),
    "gpt_neox-parallel": ("gpt_neox", _NEOX | dict(use_parallel_residual=True)),
    "gpt_neox-sequential": ("gpt_neox", _NEOX | dict(use_parallel_residual=False)),
    "gpt_neo": ("gpt_neo", _TOKENS | dict(
        hidden_size=24, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=3, intermediate_size=40, max_position_embeddings=64)),
    "gptj": ("gptj", _GPT | dict(rotary_dim=4)),
    "phi": ("phi", _LLAMA | dict(hidden_size=32)),
    "phi3": ("phi3", _LLAMA | dict(sliding_window=4)),
    "llama": ("llama", _LLAMA),
    "llama-bias": ("llama", _LLAMA | dict(attention_bias=True, mlp_bias=True, head_dim=8)),
    "mistral": ("mistral", _LLAMA | dict(sliding_window=4)),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA | dict(head_dim=10)),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", _GEMMA | dict(
        layer_types=_SLIDING, sliding_window=4, query_pre_attn_scalar=12, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0)),
    "gemma3": ("gemma3_text", _GEMMA | dict(layer_types=_SLIDING, sliding_window=4, query_pre_attn_scalar=12)),
    "gemma3-images": ("gemma3", dict(
        text_config=_GEMMA | dict(layer_types=_SLIDING, sliding_window=4, query_pre_attn_scalar=12),
        vision_config=dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4),
        mm_tokens_per_image=1, boi_token_index=38, eoi_token_index=39, image_token_index=40)),
    "olmo2": ("olmo2", _LLAMA),
}  # fmt: skip
_SMALLER = {
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "num_attention_heads": 2, "num_heads": 2, "n_head": 2,
    "num_key_value_heads": 1, "layer_types": _SLIDING[:2],
}  # fmt: skip
GROUPED = ("phi", "phi3", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3-images", "olmo2")


def tiny_model(
    family: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    smaller: bool = False,
) -> PreTrainedModel:
    """A random model of a family whose weights are large enough for every part to matter.

    smaller: of two layers with two heads (over one key/value head where they are grouped): a tenth of the edges.
    """
    model_type, options = FAMILIES[family]
    options = _reduced(options) if smaller else options
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention or "eager", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            is_norm = "norm" in name or "ln_" in name
            parameter.copy_(parameter + 0.2 * noise if is_norm else noise * (0.5 if parameter.ndim < 2 else 0.3))
    return model.eval()


def _reduced(options: dict) -> dict:
    """The options with fewer layers and heads, in a nested text configuration too."""
    found = {name: _SMALLER.get(name, value) for name, value in options.items()}
    return found | ({"text_config": _reduced(found["text_config"])} if "text_config" in found else {})


def tiny_batch(
    seed: int = 0, pairs: int = 3, width: int = 9, ragged: bool = True, first_change: int = 5, vocabulary: int = 41
) -> Batch:
    """Random aligned pairs that differ in two columns from `first_change` on; one right and one wrong answer each."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, vocabulary, (pairs, width), generator=generator)
    corrupt = clean.clone()
    for row in range(pairs):
        for column in {first_change, min(first_change + 1, width - 2)}:
            corrupt[row, column] = (clean[row, column] - 3 + 1 + row) % (vocabulary - 3) + 3
    lengths = torch.tensor([width - (2 * row) % 4 if ragged else width for row in range(pairs)])
    mask = torch.arange(width) >= (width - lengths)[:, None]
    rows = torch.arange(pairs)
    candidates = torch.arange(2 * pairs)
    return Batch(
        clean=clean * mask,
        corrupt=corrupt * mask,
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        row_pair=rows,
        read_row=rows,
        read_column=torch.full((pairs,), width - 1),
        pair_read=rows,
        step_read=candidates // 2,
        step_token=torch.randint(3, vocabulary, (2 * pairs,), generator=generator),
        step_candidate=candidates,
        candidate_pair=candidates // 2,
        candidate_right=candidates % 2 == 0,
        indices=tuple(range(pairs)),
    )

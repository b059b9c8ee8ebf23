"""GPT-2: LayerNorm, one Conv1D for q, k and v, learned positions."""

from types import MappingProxyType

from discovery.architecture import Architecture

GPT2 = Architecture(
    model_type="gpt2",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    output="c_proj",
    projections=("c_attn",),
    layout="slices",
    position_embedding="transformer.wpe",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    norm="layer",
    handled=frozenset(
        "n_positions n_embd n_layer n_head n_inner activation_function attn_pdrop layer_norm_epsilon scale_attn_weights "
        "scale_attn_by_inverse_layer_idx reorder_and_upcast_attn".split()
    ),
    required=MappingProxyType({"add_cross_attention": (False,)}),
)

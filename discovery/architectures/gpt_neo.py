"""GPT-Neo: GPT-2's block with separate projections and alternating local attention; eager only."""

from discovery.architecture import Architecture

GPT_NEO = Architecture(
    model_type="gpt_neo",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn.attention",
    output="out_proj",
    projections=("q_proj", "k_proj", "v_proj"),
    layout="separate",
    position_embedding="transformer.wpe",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    norm="layer",
    sdpa=False,
    handled=frozenset(
        "num_layers num_heads attention_types attention_layers window_size activation_function resid_dropout embed_dropout "
        "layer_norm_epsilon".split()
    ),
)

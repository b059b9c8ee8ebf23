"""circuit-tracer on the work of `benchmarks/trace.py`, in an environment of its own: run by that script, not by hand.

    PEER_PYTHON benchmarks/trace_peer.py FOLDER REPEATS

FOLDER holds model.safetensors and work.json (a Llama's sizes, token ids), and transcoders/ in circuit-tracer's layout.
Writes peer.npz (adjacency, features) and peer.json (seconds, memory) there.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformer_lens.pretrained.weight_conversions as conversions
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file
from transformer_lens import HookedTransformerConfig
from transformers import LlamaConfig, LlamaForCausalLM


class Tokenizer:
    """The little that circuit-tracer asks of a tokenizer when it is given token ids."""

    all_special_ids = (1,)
    bos_token_id = pad_token_id = eos_token_id = 1
    padding_side = "right"
    vocab_size = 32000

    def decode(self, ids: object) -> str:
        return str(ids)


def main(folder: Path, repeats: int) -> None:
    work = json.loads((folder / "work.json").read_text())
    hf = LlamaForCausalLM(LlamaConfig(**work["config"]))
    hf.load_state_dict(load_file(folder / "model.safetensors"))
    sizes = work["config"]
    config = HookedTransformerConfig(
        n_layers=sizes["num_hidden_layers"], d_model=sizes["hidden_size"], n_ctx=256,
        d_head=sizes["hidden_size"] // sizes["num_attention_heads"], n_heads=sizes["num_attention_heads"],
        n_key_value_heads=sizes["num_key_value_heads"], d_mlp=sizes["intermediate_size"], d_vocab=sizes["vocab_size"],
        act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary", rotary_adjacent_pairs=False,
        rotary_dim=sizes["hidden_size"] // sizes["num_attention_heads"], rotary_base=10000, final_rms=True, gated_mlp=True,
        eps=1e-6, original_architecture="LlamaForCausalLM", model_name="bench", device="cpu", dtype=torch.float32,
    )  # fmt: skip
    paths = {i: str(folder / "transcoders" / f"layer_{i}.safetensors") for i in range(config.n_layers)}
    sets = load_transcoder_set(
        paths, scan="bench", feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out",
        device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=False, lazy_decoder=False,
    )  # fmt: skip
    model = ReplacementModel.from_config(config, sets)
    weights = conversions.convert_llama_weights(hf, config)
    weights = {
        name.replace("mlp.", "mlp.old_mlp.").replace("unembed.", "unembed.old_unembed."): value
        for name, value in weights.items()
    }
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert not [
        name
        for name in missing
        if "transcoder" not in name
        and "mask" not in name
        and "rotary" not in name
        and "IGNORE" not in name
        and "b_" not in name
    ], missing
    model.tokenizer = Tokenizer()
    tokens = torch.tensor(work["tokens"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        graph = attribute(
            tokens, model, max_n_logits=10, desired_logit_prob=0.95, batch_size=work["batch_size"], verbose=False
        )
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(folder / "peer.npz", adjacency=graph.adjacency_matrix.numpy(), features=graph.active_features.numpy())
    (folder / "peer.json").write_text(
        json.dumps({"seconds": min(times), "added_mb": (peak - before) / 1024, "peak_mb": peak / 1024})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

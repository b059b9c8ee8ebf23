"""Small random transcoders laid out by hand as other tools lay them out, with the formula that each format computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from discovery.transcoder import TranscoderSet

D, F, LAYERS = 6, 11, 3
"""Width, features and layers of all of them."""
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Inputs to activations and output."""
_SKIP = ("skip_transcoder", "jumprelu_skip_transcoder")


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int = 99) -> Tensor:
    return random(seed, 40, D)


def keep_top(h: Tensor, k: int) -> Tensor:
    """The k largest of each row, the slow way."""
    out = torch.zeros_like(h)
    for row in range(h.shape[0]):
        for place in sorted(range(h.shape[1]), key=lambda i: -float(h[row, i]))[:k]:
            out[row, place] = h[row, place]
    return out


def check(found: TranscoderSet, layer: int, forward: Forward) -> None:
    """Activations and output of a layer's dictionary against the format's own formula."""
    x = inputs(layer)
    acts, output = forward(x)
    assert 0.05 < float((acts != 0).float().mean()) < 0.95
    torch.testing.assert_close(found.by_layer[layer].encode(x), acts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reconstruct({layer: x}, layer), output, rtol=1e-5, atol=1e-5)


def circuit_tracer_layers(root: Path, kind: str) -> list[Forward]:
    config = {
        "model_name": "some/model",
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
    }
    config |= {"activation": "topk", "k": 7} if kind == "topk" else {}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    forwards = []
    for i in range(LAYERS):
        w_enc, w_dec, b_enc, b_dec = random(i, F, D), random(i + 10, F, D), random(i + 20, F), random(i + 30, D)
        threshold, w_skip = random(i + 40, F), random(i + 50, D, D)
        tensors = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
        tensors |= {"activation_function.threshold": threshold} if kind == "jumprelu" else {}
        tensors |= {"W_skip": w_skip} if kind == "skip" else {}
        save_file(tensors, root / f"layer_{i}.safetensors")

        def forward(x: Tensor, w=w_enc, v=w_dec, b=b_enc, c=b_dec, t=threshold, s=w_skip) -> tuple[Tensor, Tensor]:
            h = x @ w.T + b
            # Neither a threshold below 0 nor the top k takes negative values away there.
            acts = {"relu": h.relu(), "skip": h.relu(), "jumprelu": h * (h > t), "topk": keep_top(h, 7)}[kind]
            return acts, acts @ v + c + (x @ s.T if kind == "skip" else 0)

        forwards.append(forward)
    return forwards


def gemma_scope(root: Path, layer: int, rest: str, save: Callable = np.savez, seed: int = 0) -> Forward:
    folder = root / f"layer_{layer}" / rest
    folder.mkdir(parents=True)
    w_enc, w_dec = random(layer + seed, D, F), random(layer + seed + 10, F, D)
    b_enc, b_dec, threshold = random(layer + seed + 20, F), random(layer + seed + 30, D), random(layer + 40, F).abs()
    tensors = dict(W_enc=w_enc, W_dec=w_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold)
    save(folder / "params.npz", **{name: value.numpy() for name, value in tensors.items()})

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        h = x @ w_enc + b_enc
        acts = (h > threshold) * h.relu()
        return acts, acts @ w_dec + b_dec

    return forward


def sae_lens(
    root: Path, architecture: str, *, hook: str = "hook_resid_post", layer: int = 0, **more: object
) -> Forward:
    transcodes = "transcoder" in architecture
    config = {
        "architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not transcodes, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.1.0", "model_name": "gpt2", "hook_name": f"blocks.{layer}.{hook}"},
    }  # fmt: skip
    if transcodes:
        config["metadata"]["hook_name_out"] = f"blocks.{layer}.hook_mlp_out"
    config |= more
    w_enc, w_dec, b_enc, b_dec = random(1, D, F), random(2, F, D) * 0.7, random(3, F), random(4, D)
    threshold, skip = random(5, F).abs(), random(6, D, D)
    b_gate, b_mag, r_mag = random(7, F), random(8, F), random(9, F) * 0.3
    tensors = {"W_enc": w_enc, "W_dec": w_dec, "b_dec": b_dec}
    tensors |= dict(b_gate=b_gate, b_mag=b_mag, r_mag=r_mag) if architecture == "gated" else {"b_enc": b_enc}
    tensors |= {"threshold": threshold} if "jumprelu" in architecture else {}
    tensors |= {"W_skip": skip} if architecture in _SKIP else {}
    tensors |= {"topk_threshold": torch.tensor(0.9, dtype=torch.float64)} if "batchtopk" in architecture else {}
    root.mkdir(parents=True)
    (root / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, root / "sae_weights.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - b_dec if config["apply_b_dec_to_input"] else x
        h = centred @ w_enc + b_enc
        norms = w_dec.norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else torch.ones(F)
        h = h * norms
        acts = h.relu()
        if "jumprelu" in architecture:
            acts = acts * (h > threshold)
        elif architecture == "gated":
            open_ = centred @ w_enc + b_gate > 0
            acts = open_ * (centred @ (w_enc * r_mag.exp()) + b_mag).relu()
        elif "batchtopk" in architecture:
            acts = acts * (h > 0.9)
        elif architecture == "topk" or config.get("activation_fn_str") == "topk":
            acts = keep_top(h, 4).relu()
        return acts, (acts / norms) @ w_dec + b_dec + (x @ skip.T if architecture in _SKIP else 0)

    return forward


def sparsify(root: Path, folder: str, **more: object) -> Forward:
    config = {
        "activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": F, "k": 4,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    } | more  # fmt: skip
    weight, bias, w_dec, b_dec, skip = random(1, F, D), random(2, F), random(3, F, D), random(4, D), random(5, D, D)
    tensors = {"encoder.weight": weight, "encoder.bias": bias, "W_dec": w_dec, "b_dec": b_dec}
    tensors |= {"W_skip": skip} if config["skip_connection"] else {}
    (root / folder).mkdir(parents=True)
    (root / folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, root / folder / "sae.safetensors")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = ((x if config["transcode"] else x - b_dec) @ weight.T + bias).relu()
        acts = keep_top(pre, 4)
        return acts, acts @ w_dec + b_dec + (x @ skip.T if config["skip_connection"] else 0)

    return forward

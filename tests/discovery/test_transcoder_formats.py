"""Every format laid out by hand and compared with its own formula; written sets come back; bad files give one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from discovery.transcoder import BadTranscoder, Site
from discovery.transcoder_source import load_transcoders
from tests.discovery.transcoder_layouts import (
    LAYERS,
    D,
    F,
    check,
    circuit_tracer_layers,
    gemma_scope,
    inputs,
    random,
    sae_lens,
    sparsify,
)

# circuit-tracer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "skip"])
def test_circuit_tracer_per_layer(tmp_path: Path, kind: str) -> None:
    forwards = circuit_tracer_layers(tmp_path, kind)
    found = load_transcoders(tmp_path)
    assert (found.reads, found.writes, found.model_name) == ("mlp-norm", "mlp-out", "some/model")
    assert found.name == str(tmp_path) and [one.layer for one in found] == list(range(LAYERS))
    for layer, forward in enumerate(forwards):
        check(found, layer, forward)
    assert [one.layer for one in load_transcoders(tmp_path, layers=(1, 2))] == [1, 2]


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_circuit_tracer_cross_layer(tmp_path: Path, kind: str) -> None:
    config = {"model_kind": "cross_layer_transcoder", "model_name": "m", "feature_input_hook": "hook_resid_mid"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"feature_output_hook": "mlp.hook_out"}))
    x, expected = {}, {layer: random(layer + 30, D).expand(40, D) for layer in range(LAYERS)}
    acts = {}
    for i in range(LAYERS):
        w_enc, b_enc, threshold = random(i, F, D), random(i + 20, F), random(i + 40, F).abs()
        w_dec = random(i + 10, F, LAYERS - i, D)
        tensors = {f"W_enc_{i}": w_enc, f"b_enc_{i}": b_enc, f"b_dec_{i}": random(i + 30, D)}
        tensors |= {f"threshold_{i}": threshold} if kind == "jumprelu" else {}
        save_file(tensors, tmp_path / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": w_dec}, tmp_path / f"W_dec_{i}.safetensors")
        x[i] = inputs(i)
        h = x[i] @ w_enc.T + b_enc
        acts[i] = h.relu() if kind == "relu" else h * (h > threshold)
        for j in range(i, LAYERS):
            expected[j] = expected[j] + acts[i] @ w_dec[:, j - i]
    found = load_transcoders(tmp_path)
    assert found.cross_layer and (found.reads, found.writes) == ("residual-mid", "mlp-raw")
    for i in range(LAYERS):
        torch.testing.assert_close(found.by_layer[i].encode(x[i]), acts[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.reconstruct(x, i), expected[i], rtol=1e-5, atol=1e-4)


def test_circuit_tracer_lists_files_of_gemma_scope_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = gemma_scope(tmp_path / "cache", 0, "width_16k/average_l0_76")
    asked = []

    def download(repo: str, path: str, revision: str | None) -> str:
        asked.append((repo, path, revision))
        return str(tmp_path / "cache" / path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    listed = ["hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz?revision=abc"]
    config = {"model_kind": "transcoder_set", "feature_input_hook": "ln2.hook_normalized", "transcoders": listed}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "config.yaml").write_text(yaml.safe_dump(config | {"feature_output_hook": "hook_mlp_out"}))
    check(load_transcoders(tmp_path / "set"), 0, forward)
    assert asked == [
        ("google/gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76/params.npz", "abc"),
    ]


# Gemma Scope --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("repository", "sites"),
    [
        ("gemma-scope-2b-pt-res", ("residual-out", "residual-out")),
        ("gemma-scope-2b-pt-mlp", ("mlp-out", "mlp-out")),
        ("gemma-scope-2b-pt-att", ("attention-mix", "attention-mix")),
        ("gemma-scope-2b-pt-transcoders", ("mlp-norm", "mlp-out")),
    ],
)
def test_gemma_scope(tmp_path: Path, save: Callable, repository: str, sites: tuple[Site, Site]) -> None:
    root = tmp_path / repository
    forwards = {layer: gemma_scope(root, layer, f"width_16k/average_l0_{70 + layer}", save) for layer in (3, 11)}
    found = load_transcoders(root)
    assert (found.reads, found.writes) == sites
    for layer, forward in forwards.items():
        check(found, layer, forward)
    inside = load_transcoders(root / "layer_11" / "width_16k" / "average_l0_81")
    check(inside, 11, forwards[11])


def test_gemma_scope_asks_which_dictionary_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "x"  # whose name does not say what it holds
    nearest = gemma_scope(root, 0, "width_16k/average_l0_76", seed=1)
    gemma_scope(root, 0, "width_16k/average_l0_200", seed=2)
    wide = gemma_scope(root, 0, "width_65k/average_l0_50", seed=3)
    sites = {"reads": "mlp-norm", "writes": "mlp-out"}
    with pytest.raises(BadTranscoder, match=r"layer 0 has 3 dictionaries.*variant"):
        load_transcoders(root, **sites)
    with pytest.raises(BadTranscoder, match=r"layer 0 has 2 dictionaries.*l0"):
        load_transcoders(root, variant="width_16k", **sites)
    check(load_transcoders(root, variant="width_16k", l0=90, **sites), 0, nearest)
    check(load_transcoders(root, variant="width_65k", **sites), 0, wide)
    with pytest.raises(BadTranscoder, match="say where they read and write"):
        load_transcoders(root, variant="width_65k")


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2(tmp_path: Path, affine: bool) -> None:
    forwards = []
    for i in range(2):
        folder = tmp_path / "transcoder_all" / f"layer_{i}_width_16k_l0_small{'_affine' if affine else ''}"
        folder.mkdir(parents=True)
        place = f"model.layers.{i}"
        config = {
            "hf_hook_point_in": f"{place}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"{place}.post_feedforward_layernorm.output",
            "width": F, "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 20,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        w_enc, w_dec, b_enc, b_dec = random(i, D, F), random(i + 10, F, D), random(i + 20, F), random(i + 30, D)
        threshold, skip = random(i + 40, F).abs(), random(i + 50, D, D)
        tensors = dict(w_enc=w_enc, w_dec=w_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold)
        save_file(tensors | ({"affine_skip_connection": skip} if affine else {}), folder / "params.safetensors")

        def forward(x: Tensor, w=w_enc, v=w_dec, b=b_enc, c=b_dec, t=threshold, s=skip) -> tuple[Tensor, Tensor]:
            acts = (x @ w + b) * (x @ w + b > t)
            return acts, acts @ v + c + (x @ s if affine else 0)

        forwards.append(forward)
    found = load_transcoders(tmp_path)
    assert (found.reads, found.writes, found.model_name) == ("mlp-in", "mlp-out", "google/gemma-3-1b-pt")
    for layer, forward in enumerate(forwards):
        check(found, layer, forward)


@pytest.mark.parametrize("all_layers", [True, False])
def test_gemma_scope_2_cross_layer(tmp_path: Path, all_layers: bool) -> None:
    folder = tmp_path / "clt" / "width_262k_l0_big_affine"
    folder.mkdir(parents=True)
    x = {i: inputs(i) for i in range(LAYERS)}
    expected = {j: x[j] @ random(j + 50, D, D) + random(j + 30, D) for j in range(LAYERS)}
    for i in range(LAYERS):
        w_enc, b_enc, threshold = random(i, D, F), random(i + 20, F), random(i + 40, F).abs()
        w_dec = random(i + 10, F, LAYERS, D)
        tensors = dict(w_enc=w_enc, b_enc=b_enc, threshold=threshold, b_dec=random(i + 30, D))
        tensors |= {"affine_skip_connection": random(i + 50, D, D)}
        tensors |= {"w_dec": w_dec if all_layers else w_dec[:, i:].contiguous()}
        save_file(tensors, folder / f"params_layer_{i}.safetensors")
        h = x[i] @ w_enc + b_enc
        for j in range(i, LAYERS):
            expected[j] = expected[j] + (h * (h > threshold)) @ w_dec[:, j]
    found = load_transcoders(tmp_path)
    assert (found.reads, found.writes) == ("mlp-in", "mlp-out")
    for j in range(LAYERS):
        torch.testing.assert_close(found.reconstruct(x, j), expected[j], rtol=1e-5, atol=1e-4)


# SAELens ------------------------------------------------------------------------------------------------------------

_HOOKS: dict[str, Site] = {
    "hook_resid_pre": "residual-in",
    "attn.hook_z": "attention-mix",
    "hook_attn_out": "attention-out",
    "hook_resid_mid": "residual-mid",
    "ln2.hook_normalized": "mlp-norm",
    "mlp.hook_out": "mlp-raw",
    "hook_mlp_out": "mlp-out",
    "hook_resid_post": "residual-out",
}


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("jumprelu", {}),
        ("topk", {"k": 4, "rescale_acts_by_decoder_norm": False}),
        ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
        ("batchtopk", {"k": 4.0, "rescale_acts_by_decoder_norm": True}),
        ("matryoshka_batchtopk", {"k": 4.0, "rescale_acts_by_decoder_norm": False}),
        ("transcoder", {"d_out": D}),
        ("skip_transcoder", {"d_out": D}),
        ("jumprelu_transcoder", {"d_out": D}),
        ("jumprelu_skip_transcoder", {"d_out": D}),
    ],
)
def test_sae_lens(tmp_path: Path, architecture: str, more: dict) -> None:
    transcodes = "transcoder" in architecture
    hook = "ln2.hook_normalized" if transcodes else "hook_resid_post"
    forward = sae_lens(tmp_path / "one", architecture, hook=hook, **more)
    for place in (tmp_path, tmp_path / "one"):
        found = load_transcoders(place)
        check(found, 0, forward)
        assert found.model_name == "gpt2"
        assert (found.reads, found.writes) == (
            ("mlp-norm", "mlp-out") if transcodes else ("residual-out", "residual-out")
        )


@pytest.mark.parametrize("hook", _HOOKS)
def test_sae_lens_hooks(tmp_path: Path, hook: str) -> None:
    sae_lens(tmp_path / "a", "standard", hook=hook, layer=4)
    found = load_transcoders(tmp_path)
    assert found.reads == found.writes == _HOOKS[hook] and found.is_autoencoder
    assert [one.layer for one in found] == [4]


def test_sae_lens_before_version_6(tmp_path: Path) -> None:
    forward = sae_lens(tmp_path / "a", "standard", activation_fn_str="topk")
    path = tmp_path / "a" / "cfg.json"
    config = json.loads(path.read_text())
    metadata = config.pop("metadata")
    config |= {"hook_point": metadata["hook_name"], "activation_fn_kwargs": {"k": 4}, "hook_point_head_index": None}
    del config["apply_b_dec_to_input"], config["reshape_activations"]
    path.write_text(json.dumps(config | {"normalize_activations": False, "model_name": "gpt2"}))
    check(load_transcoders(tmp_path), 0, forward)


def test_sae_lens_layers_and_sites_side_by_side(tmp_path: Path) -> None:
    for layer in (0, 1):
        sae_lens(tmp_path / f"mlp_{layer}", "jumprelu", hook="hook_mlp_out", layer=layer)
        sae_lens(tmp_path / f"res_{layer}", "jumprelu", hook="hook_resid_pre", layer=layer)
    with pytest.raises(BadTranscoder, match=r"mlp_0.*res_0.*both read layer 0"):
        load_transcoders(tmp_path)
    found = load_transcoders(tmp_path, variant="res_")
    assert found.reads == "residual-in" and [one.layer for one in found] == [0, 1]


# sparsify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "more", "sites"),
    [
        ("layers.2", {}, ("residual-out", "residual-out")),
        ("h.2.mlp", {}, ("mlp-raw", "mlp-raw")),
        ("layers.2.mlp", {"transcode": True}, ("mlp-in", "mlp-raw")),
        ("gpt_neox.layers.2.mlp", {"transcode": True, "skip_connection": True}, ("mlp-in", "mlp-raw")),
        ("layers.2.self_attn", {"skip_connection": True}, ("attention-out", "attention-out")),
    ],
)
def test_sparsify(tmp_path: Path, folder: str, more: dict, sites: tuple[Site, Site]) -> None:
    forward = sparsify(tmp_path, folder, **more)
    for place in (tmp_path, tmp_path / folder):
        found = load_transcoders(place)
        assert (found.reads, found.writes) == sites
        check(found, 2, forward)

"""Written sets come back, weights stay in their files, only needed files are downloaded, and bad files give one clear line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.transcoder import BadTranscoder, Site
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from discovery.transcoder_formats.sae_lens import write_sae_lens
from discovery.transcoder_formats.sparsify import write_sparsify
from discovery.transcoder_source import load_transcoders
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import KINDS, TranscoderKind, tiny_transcoders
from tests.discovery.transcoder_layouts import (
    D,
    F,
    check,
    circuit_tracer_layers,
    gemma_scope,
    random,
    sae_lens,
    sparsify,
)

WRITERS = {"circuit-tracer": write_circuit_tracer, "sae-lens": write_sae_lens, "sparsify": write_sparsify}
PLACES: tuple[tuple[Site, Site], ...] = (("mlp-in", "mlp-raw"), ("mlp-raw", "mlp-raw"))
_NO = {
    "circuit-tracer": {("batchtopk", False), ("batchtopk", True)},
    "sae-lens": {("topk", False), ("batchtopk", False), ("batchtopk", True), ("skip", True)}
    | {("cross-layer", False), ("cross-layer", True)},
    "sparsify": {(kind, same) for kind in KINDS if kind != "topk" for same in (False, True)},
}
"""(kind, whether it is an autoencoder) that a format does not have."""


@pytest.fixture(scope="module")
def model() -> ComponentModel:
    return ComponentModel(tiny_model("llama"))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_written_sets_come_back(
    tmp_path: Path, model: ComponentModel, writer: str, kind: TranscoderKind, place: tuple[Site, Site]
) -> None:
    given = tiny_transcoders(model, kind, reads=place[0], writes=place[1])
    if (kind, place[0] == place[1]) in _NO[writer]:
        with pytest.raises(BadTranscoder) as error:
            WRITERS[writer](given, tmp_path / "set")
        assert "\n" not in str(error.value)
        return
    for _ in range(2):  # the same set may be written again
        paths = WRITERS[writer](given, tmp_path / "set")
    assert all(path.is_file() for path in paths)
    found = load_transcoders(tmp_path / "set")
    assert (found.reads, found.writes) == place
    x = {layer: random(layer, 30, given.transcoders[0].encoder.shape[1]) for layer in range(len(given))}
    for one, other in zip(given, found):
        torch.testing.assert_close(one.encode(x[one.layer]), other.encode(x[one.layer]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(given.reconstruct(x, one.layer), found.reconstruct(x, one.layer))


def test_a_set_is_not_written_beside_another(tmp_path: Path, model: ComponentModel) -> None:
    circuit_tracer_layers(tmp_path, "relu")
    shutil.copy(tmp_path / "layer_0.safetensors", tmp_path / "layer_7.safetensors")
    with pytest.raises(BadTranscoder, match="layer_7"):
        write_circuit_tracer(tiny_transcoders(model, "relu"), tmp_path)


def test_rectified_and_not_are_kept_apart(tmp_path: Path, model: ComponentModel) -> None:
    given = tiny_transcoders(model, "topk", features=4)
    write_circuit_tracer(given, tmp_path)
    assert all(one.activation.rectified for one in load_transcoders(tmp_path))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["activation"] == "topk"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("form", ["circuit-tracer", "gemma-scope", "sparsify"])
def test_weights_stay_in_the_file(tmp_path: Path, form: str) -> None:
    root = tmp_path / "gemma-scope-2b-pt-mlp"
    root.mkdir()
    if form == "gemma-scope":
        gemma_scope(root, 0, "width_16k/average_l0_7")
    elif form == "sparsify":
        sparsify(root, "layers.0.mlp")
    else:
        circuit_tracer_layers(root, "relu")
    found = load_transcoders(root)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(root) in line]
    spans = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in mapped]
    for one in found:
        for tensor in (one.encoder, *one.decoders.values()):
            assert any(start <= tensor.data_ptr() < end for start, end in spans)
    copied = load_transcoders(root, dtype="float64")
    assert copied.transcoders[0].encoder.dtype == torch.float64 and copied.biases[0].dtype == torch.float64


def test_hub_names_download_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "hub"
    forward = gemma_scope(there / "sub", 3, "width_16k/average_l0_76")
    gemma_scope(there / "sub", 3, "width_65k/average_l0_50")
    gemma_scope(there / "sub", 4, "width_16k/average_l0_50")
    files = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
    asked = []

    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            asked.append((repository, revision))
            return [*files, "README.md", "sub/evil.pt"]

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        for file in allow_patterns:
            (tmp_path / "here" / file).parent.mkdir(parents=True)
            shutil.copy(there / file, tmp_path / "here" / file)
        return str(tmp_path / "here")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = load_transcoders("google/gemma-scope-2b-pt-res/sub@v1", variant="width_16k", layers=(3,))
    check(found, 3, forward)
    assert found.reads == "residual-out"
    assert asked == [("google/gemma-scope-2b-pt-res", "v1"), ["sub/layer_3/width_16k/average_l0_76/params.npz"]]


def _change(path: Path, **fields: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | fields))


def _tensors(path: Path, **tensors: Tensor | None) -> None:
    from safetensors.torch import load_file

    values = {name: value.clone() for name, value in load_file(path).items()} | tensors
    save_file({name: value for name, value in values.items() if value is not None}, path)


def _npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **(dict(np.load(path)) | arrays))


_CT: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda d: (d / "layer_1.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "layer_1.safetensors"),
    "no tensor": (lambda d: _tensors(d / "layer_1.safetensors", b_enc=None), "has no tensor b_enc"),
    "transposed": (lambda d: _tensors(d / "layer_1.safetensors", W_enc=random(0, D, F)), "W_dec|b_enc"),
    "not finite": (lambda d: _tensors(d / "layer_1.safetensors", b_dec=torch.full((D,), torch.nan)), "b_dec.*finite"),
    "whole numbers": (lambda d: _tensors(d / "layer_1.safetensors", b_dec=torch.zeros(D, dtype=torch.int32)), "floats"),
    "unknown tensor": (lambda d: _tensors(d / "layer_1.safetensors", W_gate=random(0, 1)), "'W_gate'"),
    "not YAML": (lambda d: (d / "config.yaml").write_text("a: [1"), "config.yaml is not YAML"),
    "code": (lambda d: (d / "config.yaml").write_text("!!python/object/apply:os.system ['false']"), "is not YAML"),
    "a list": (lambda d: (d / "config.yaml").write_text("- 1"), "must hold keys and values"),
    "kind": (lambda d: (d / "config.yaml").write_text("model_kind: x"), "model_kind must be"),
    "hook": (
        lambda d: (d / "config.yaml").write_text("model_kind: transcoder_set\nfeature_input_hook: hook_embed"),
        "feature_input_hook: the hook 'hook_embed' is not known",
    ),
    "outside": (
        lambda d: (d / "config.yaml").write_text(
            (d / "config.yaml").read_text() + "\ntranscoders: ['../layer_0.safetensors']"
        ),
        "'../layer_0.safetensors', which is no file",
    ),
    "no hub file": (
        lambda d: (d / "config.yaml").write_text((d / "config.yaml").read_text() + "\ntranscoders: ['hf://a/b']"),
        "'hf://a/b' is no file",
    ),
    "activation": (
        lambda d: (d / "config.yaml").write_text((d / "config.yaml").read_text() + "\nactivation: gelu"),
        "'gelu'",
    ),
    "k": (
        lambda d: (d / "config.yaml").write_text((d / "config.yaml").read_text() + "\nactivation: topk"),
        "needs k",
    ),
}


def one_line(error: pytest.ExceptionInfo[BadTranscoder]) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("case", _CT)
def test_bad_circuit_tracer_files(tmp_path: Path, case: str) -> None:
    circuit_tracer_layers(tmp_path, "relu")
    spoil, message = _CT[case]
    spoil(tmp_path)
    with pytest.raises(BadTranscoder, match=message) as error:
        load_transcoders(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "cfg.json: normalize_activations is 'layer_norm'; .*not linear"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations"),
        ({"architecture": "temporal"}, "architecture 'temporal' is not supported"),
        ({"metadata": {"hook_name": "hook_embed"}}, "hook_name: 'hook_embed' is no place"),
        ({"metadata": {"hook_name": "blocks.0.hook_q"}}, "the hook 'hook_q' is not known"),
        ({"metadata": {"hook_name": None}}, "hook_name: None"),
        ({"metadata": {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 3}}, "hook_head_index is 3"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"metadata": []}, "metadata must be an object"),
    ],
)
def test_bad_sae_lens_files(tmp_path: Path, fields: dict, message: str) -> None:
    sae_lens(tmp_path / "a", "standard")
    _change(tmp_path / "a" / "cfg.json", **fields)
    with pytest.raises(BadTranscoder, match=message) as error:
        load_transcoders(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("folder", "fields", "message"),
    [
        ("layers.0.mlp", {"activation": "groupmax"}, "not 'groupmax'"),
        ("layers.0.mlp", {"k": 0}, "with 0"),
        ("layers.0.mlp", {"signed": True}, "signed = True"),
        ("embed_tokens", {}, "'embed_tokens' is no hookpoint"),
        ("layers.0.mlp.act", {}, "'layers.0.mlp.act' is no hookpoint"),
    ],
)
def test_bad_sparsify_files(tmp_path: Path, folder: str, fields: dict, message: str) -> None:
    sparsify(tmp_path, folder)
    _change(tmp_path / folder / "cfg.json", **fields)
    with pytest.raises(BadTranscoder, match=message) as error:
        load_transcoders(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "cannot read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cannot read"),
        (lambda path: _npz(path, b_enc=np.array([{"a": 1}] * F, dtype=object)), "cannot read.*objects"),
        (lambda path: _npz(path, threshold=np.zeros(F + 1, np.float32)), "threshold has shape"),
        (lambda path: _npz(path, extra=np.zeros(1)), "'extra'"),
        (lambda path: _npz(path, b_dec=np.array(["x"] * D)), "cannot read"),
    ],
)
def test_bad_npz_files(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    gemma_scope(tmp_path, 0, "width_16k/average_l0_7")
    spoil(tmp_path / "layer_0/width_16k/average_l0_7/params.npz")
    with pytest.raises(BadTranscoder, match=message) as error:
        load_transcoders(tmp_path, reads="mlp-in", writes="mlp-out")
    one_line(error)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "one", "a/b/../c", "a/b c", "https://x.y/z", "a//b", ""])
def test_names_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        with pytest.raises(BadTranscoder, match="no known format"):
            load_transcoders(name)
        return
    with pytest.raises(BadTranscoder, match="no such directory") as error:
        load_transcoders(name)
    one_line(error)

"""Files that SAELens and sparsify write themselves, read by us: the same activations and outputs. Skips without them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from discovery.transcoder_source import load_transcoders

D, F = 16, 48
_TRANSCODES = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
_REBUILDS = {"hook_name": "blocks.1.hook_resid_post"}
# Architecture -> (metadata, what its configuration has besides, whether it is a training class).
SAE_LENS: dict[str, tuple[dict, dict, bool]] = {
    "standard": (_REBUILDS, {}, False),
    "gated": (_REBUILDS, {}, False),
    "jumprelu": (_REBUILDS, {}, False),
    "topk": (_REBUILDS, {"k": 7}, False),
    "topk-rescaled": (_REBUILDS, {"k": 7, "rescale_acts_by_decoder_norm": True}, False),
    "transcoder": (_TRANSCODES, {"d_out": D, "apply_b_dec_to_input": False}, False),
    "skip_transcoder": (_TRANSCODES, {"d_out": D, "apply_b_dec_to_input": False}, False),
    "jumprelu_transcoder": (_TRANSCODES, {"d_out": D, "apply_b_dec_to_input": False}, False),
    "jumprelu_skip_transcoder": (_TRANSCODES, {"d_out": D, "apply_b_dec_to_input": False}, False),
    "batchtopk": (_REBUILDS, {"k": 7}, True),
    "matryoshka_batchtopk": (_REBUILDS, {"k": 7, "matryoshka_widths": [16, F]}, True),
}


def _randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.abs() * 0.5 if "threshold" in name else noise * 0.4)


def _compare(directory: Path, acts: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> None:
    found = load_transcoders(directory)
    one = found.transcoders[0]
    assert 0.02 < float((acts != 0).float().mean()) < 0.98
    torch.testing.assert_close(one.encode(x), acts.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.reconstruct({one.layer: x}, one.layer), output.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAE_LENS)
@pytest.mark.filterwarnings("ignore")
def test_sae_lens_reads_the_same(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sae_lens", exc_type=ImportError)
        from sae_lens.registry import get_sae_class, get_sae_training_class
        from sae_lens.saes.sae import SAEMetadata
    architecture = name.removesuffix("-rescaled")
    metadata, more, trains = SAE_LENS[name]
    cls, config = (get_sae_training_class if trains else get_sae_class)(architecture)
    made: Any = cls(config(d_in=D, d_sae=F, metadata=SAEMetadata(model_name="gpt2", **metadata), **more))
    _randomise(made)
    if trains:
        made.topk_threshold.fill_(1.3)
        made.save_inference_model(tmp_path / "a")
        from sae_lens import SAE

        made = SAE.load_from_disk(tmp_path / "a")
    else:
        made.save_model(tmp_path / "a")
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    _compare(tmp_path, made.encode(x), made(x), x)


@pytest.mark.parametrize("more", [{}, {"transcode": True}, {"transcode": True, "skip_connection": True}])
@pytest.mark.filterwarnings("ignore")
def test_sparsify_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict) -> None:
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sparsify", exc_type=ImportError)
        from sparsify import SparseCoder, SparseCoderConfig
    made = SparseCoder(D, SparseCoderConfig(num_latents=F, k=7, **more))
    _randomise(made)
    made.save_to_disk(tmp_path / "layers.1.mlp")
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    values, places, _ = made.encode(x)
    out = made.decode(values, places)
    out = out if made.W_skip is None else out + x @ made.W_skip.T  # as its forward does
    _compare(tmp_path, torch.zeros(50, F).scatter(1, places, values), out, x)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "skip"])
@pytest.mark.filterwarnings("ignore")
def test_they_read_what_we_write(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sae_lens", exc_type=ImportError)
        pytest.importorskip("sparsify", exc_type=ImportError)
        from sae_lens import SAE
        from sparsify import SparseCoder

    from discovery.component_model import ComponentModel
    from discovery.transcoder_formats.sae_lens import write_sae_lens
    from discovery.transcoder_formats.sparsify import write_sparsify
    from tests.discovery.tiny_models import tiny_model
    from tests.discovery.tiny_transcoders import tiny_transcoders

    sites: Any = ("mlp-out", "mlp-out") if kind == "topk" else ("mlp-norm", "mlp-out")
    given = tiny_transcoders(ComponentModel(tiny_model("llama")), kind, reads=sites[0], writes=sites[1])  # type: ignore[arg-type]
    write_sae_lens(given, tmp_path / "sae_lens")
    x = torch.randn(50, given.transcoders[1].encoder.shape[1], generator=torch.Generator().manual_seed(1))
    hook = "hook_mlp_out" if kind == "topk" else "ln2.hook_normalized"
    theirs: Any = SAE.load_from_disk(tmp_path / "sae_lens" / f"blocks.1.{hook}")
    torch.testing.assert_close(theirs.encode(x), given.transcoders[1].encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), given.reconstruct({1: x}, 1), rtol=1e-5, atol=1e-5)
    if kind == "topk":
        write_sparsify(given, tmp_path / "sparsify")
        coder = SparseCoder.load_from_disk(tmp_path / "sparsify" / "layers.1.mlp")
        torch.testing.assert_close(coder(x).sae_out, given.reconstruct({1: x}, 1), rtol=1e-5, atol=1e-5)

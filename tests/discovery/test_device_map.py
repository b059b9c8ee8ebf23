"""Models whose weights are on several devices give what they give on one; weights that are in place nowhere are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from transformers import AutoModelForCausalLM

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.loading import ModelNotLoaded, check_first_batch, load_model
from discovery.metrics import METRICS
from discovery.model import Point
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

ROOT = Path(__file__).resolve().parents[2]
METRIC = METRICS["logit-diff"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "families",
    [
        ("llama", "gpt2"),
        pytest.param(tuple(f for f in FAMILIES if f not in ("llama", "gpt2")), marks=pytest.mark.slow),
    ],
    ids=["two", "others"],
)
def test_a_model_on_two_devices_is_the_model_on_one(families: tuple[str, ...]) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch knows no device that Python makes up")
    command = [sys.executable, "-m", "tests.discovery.two_devices", *families]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{family} is the same" for family in families]


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu"])
def test_a_device_map_is_followed(llama: Path, device_map: str) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    model, batch = load_model(llama, device_map=device_map), tiny_batch()
    assert check_first_batch(model, batch) < 1e-4
    scores = model.linearize(batch, METRIC, [Point(1.0, 1.0)], COUNTERFACTUAL)
    alone = load_model(llama, device="cpu").linearize(batch, METRIC, [Point(1.0, 1.0)], COUNTERFACTUAL)
    assert torch.allclose(scores, alone, atol=1e-4 * float(alone.abs().max()))


def test_weights_that_are_not_in_place_are_refused_in_a_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate", reason="device_map needs accelerate")
    load: Any = AutoModelForCausalLM.from_pretrained

    def offloaded(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        model, info = load(*arguments, **{**options, "device_map": None})
        # As where a GPU holds the first layers and main memory the rest, but that the "GPU" is the CPU.
        accelerate.cpu_offload(model.model.layers[2].mlp, execution_device=torch.device("cpu"))
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offloaded)
    with pytest.raises(
        ModelNotLoaded, match=r"3 are kept elsewhere \(the first is model.layers.2.mlp.gate_proj.weight\)"
    ):
        load_model(llama, device_map="auto")


@pytest.mark.parametrize("device_map", ["disk", "nowhere", "meta"])
def test_a_map_that_holds_no_model_is_refused_in_a_line(llama: Path, device_map: str) -> None:
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    with pytest.raises(ModelNotLoaded, match="device") as refusal:
        load_model(llama, device_map=device_map)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("kv_heads", ["native", "query"])
def test_two_cuda_devices(llama: Path, kv_heads: Any) -> None:
    one = load_model(llama, device="cuda:0", kv_heads=kv_heads)
    # By layers, as accelerate would divide a model that does not fit: through its own dispatch.
    from accelerate import dispatch_model

    from discovery.component_model import ComponentModel

    places: dict[str, int | str | torch.device] = {"model.embed_tokens": 0, "model.layers.0": 0, "model.rotary_emb": 0}
    places |= {"model.layers.1": 1, "model.layers.2": 1, "model.norm": 1, "lm_head": 1}
    divided: Any = dispatch_model(tiny_model("llama"), places)
    two = ComponentModel(divided, kv_heads=kv_heads)
    batch = tiny_batch()
    masks = torch.rand(3, *one.topology.possible.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    assert check_first_batch(two, batch) < 1e-3
    for ablation in (COUNTERFACTUAL, ZERO):
        points = [Point(k / 3, 1 / 3) for k in range(4)]
        mine, theirs = (model.linearize(batch, METRIC, points, ablation) for model in (two, one))
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        mine, theirs = (model.run(batch, masks, ablation).cpu() for model in (two, one))
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))

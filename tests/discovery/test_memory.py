"""Batch sizes from free memory: an estimate that is never too small for what a pass really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from discovery import memory
from discovery.ablation import COUNTERFACTUAL
from discovery.bootstrap import Resamples
from discovery.component_model import ComponentModel, KvHeads
from discovery.metrics import METRICS
from discovery.model import Point
from discovery.scoring import Moments
from discovery.workload import Workload
from tests.discovery.live_tensors import LiveTensors
from tests.discovery.tiny_models import GROUPED, tiny_batch, tiny_model

METRIC = METRICS["logit-diff"]
LLAMA_8B = memory.Shape(
    layers=32, heads=32, kv_slots=32, d_model=4096, d_head=128, inner=14336, vocabulary=128256, sources=1057, targets=3105,
    weights=16_060_522_496, stored=2,
)  # fmt: skip
"""Llama-3.1-8B in bfloat16, with a key and a value slot for every query head."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> ComponentModel:
    return ComponentModel(tiny_model("gpt2"))


def test_free_memory_is_a_plausible_number() -> None:
    free = memory.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_longer_prompts_and_less_memory_make_smaller_batches(
    model: ComponentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [memory.auto_batch_size(model, length) for length in (4, 64, 512, 4096)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 1
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**24)
    size = memory.auto_batch_size(model, 16)
    shape = memory.shape_of(model)
    assert memory.needs(shape, size, 16, 5).total <= 2**23 < memory.needs(shape, size + 1, 16, 5).total
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert memory.auto_batch_size(model, 64) == 1


def test_without_an_answer_from_the_system_there_is_still_a_size(
    model: ComponentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert memory.auto_batch_size(model, 16) >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox-parallel", "gemma2", "llama", "olmo2"])
def test_needs_cover_every_tensor_and_not_much_more(family: str, dtype: torch.dtype) -> None:
    kv_heads: KvHeads = "query" if family in GROUPED else "native"
    model = ComponentModel(tiny_model(family, dtype=dtype), kv_heads=kv_heads, share_prefix=False)
    shape, weights = memory.shape_of(model), (*model.hf.parameters(), *model.hf.buffers())
    for rows, length in ((1, 40), (6, 12)):
        batch = tiny_batch(pairs=rows, width=length, ragged=False)
        for points in (1, 4):
            model.forget()
            steps = [Point(1 - k / 4, 1 / points) for k in range(points)]
            with LiveTensors(weights) as live:
                model.linearize(batch, METRIC, steps, COUNTERFACTUAL)
            needs = memory.needs(shape, rows, length, points, max(1, points - 1))
            assert live.peak <= needs.recorded + max(needs.passes, needs.chunk + needs.layer + needs.scores), points
            assert needs.recorded + needs.passes < 3 * live.peak, points
        masks = torch.rand(model.topology.possible.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        model.forget()
        with LiveTensors(weights) as live:
            model.run(batch, masks, COUNTERFACTUAL)
        needs = memory.needs(shape, rows, length)
        assert live.peak <= needs.recorded + needs.run < 3 * live.peak


def test_passes_share_points_only_as_far_as_memory_goes(model: ComponentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, steps = tiny_batch(pairs=2, ragged=False), [Point(k / 9, 1.0) for k in range(1, 9)]
    apart = ComponentModel(model.hf, share_prefix=False)
    scores, peaks = [], []
    for free in (2**40, 0):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        apart.forget()
        with LiveTensors((*apart.hf.parameters(), *apart.hf.buffers())) as live:
            scores.append(apart.linearize(batch, METRIC, steps, COUNTERFACTUAL))
        peaks.append(live.peak)
    assert peaks[1] < peaks[0] / 2
    assert torch.allclose(scores[0], scores[1], atol=1e-5 * float(scores[0].abs().max()))


def test_a_chunk_never_outgrows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 8000)
    assert memory.chunk_columns(50, 100, CPU) == 10
    assert memory.chunk_columns(50, 5000, CPU) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**50)
    assert memory.chunk_columns(10**6, 2**20, CPU) == memory.CHUNK_BYTES >> 20


@pytest.mark.parametrize("length", [8, 20, 50, 90])
def test_an_8b_model_is_scored_and_evaluated_within_a_quarter_of_its_weights(length: int) -> None:
    tables = memory.table_bytes(LLAMA_8B)
    rows = memory.largest_batch(LLAMA_8B, length, memory.large_budget(LLAMA_8B))
    assert rows * length >= 50  # enough tokens for the weights to be read with profit
    assert memory.needs(LLAMA_8B, rows, length, points=5).total + tables + 2e8 <= LLAMA_8B.weights // 4


def test_large_weights_bound_what_a_batch_takes(model: ComponentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = memory.shape_of(model).weights
    monkeypatch.setattr(memory, "RESAMPLES_BYTES", 0)
    monkeypatch.setattr(memory, "_SLACK", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    small = memory.working_memory(model)
    monkeypatch.setattr(memory, "LARGE_WEIGHTS", weights)
    assert memory.working_memory(model) == max(0, weights // 4 - memory.table_bytes(memory.shape_of(model))) < small


def test_tables_of_large_graphs_are_made_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discovery.scoring._VALUES", 2**12)
    scores, moments = torch.randn(6, 100, 900, generator=torch.Generator().manual_seed(0)), Moments()
    table = 8 * 100 * 900
    with LiveTensors((scores,)) as live:
        for part in scores.split([1, 3, 2]):
            moments.add(part)
    assert live.peak < 2.5 * table  # the two tables, and pieces
    assert moments.mean() == pytest.approx(scores.double().mean(0).numpy(), abs=1e-12)
    spread = moments.stderr()
    assert spread is not None
    assert spread == pytest.approx((scores.double().var(0) / 6).sqrt().numpy(), abs=1e-12)


def test_resamples_copy_few_pairs_at_a_time(model: ComponentModel) -> None:
    batch = tiny_batch(pairs=40, ragged=False)
    scores = model.linearize(batch, METRIC, [Point(1.0, 1.0)], COUNTERFACTUAL)
    resamples = Resamples(model.topology, Workload((batch,), METRIC, COUNTERFACTUAL), 5, seed=0)
    with LiveTensors((scores,)) as live:
        resamples.add(0, scores)
    assert live.peak < (5 + 2 * 8 + 4) * 4 * model.topology.edge_count


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of a process are read from /proc")
def test_a_process_takes_what_is_foretold_at_the_8b_graph(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "benchmarks/memory.py",
        "--width",
        "128",
        "--rows",
        "2",
        "--place",
        str(tmp_path),
        "--stage",
    ]
    options = {"cwd": root, "env": os.environ | {"PYTHONPATH": str(root)}, "check": True, "timeout": 900}
    subprocess.run([*command, "write"], **options)
    found = json.loads(subprocess.run([*command, "look"], capture_output=True, text=True, **options).stdout)
    assert found["edges"] == 1_592_881
    for name, foretold in (("eap", "scoring"), ("eap-ig", "scoring"), ("evaluate", "evaluate")):
        # What does not grow with the model: masks and lists of the graph in Python, the allocator's gaps.
        assert found[f"measured {name}"] < found[f"foretold {foretold}"] + 2 * 10**8, name
    assert found["measured eap-ig"] > 0.4 * found["foretold scoring"]

"""What scoring and evaluating Llama-3.1-8B's graph takes beside the weights, measured at a reduced width.

    python benchmarks/memory.py [--width 512] [--dtype bfloat16] [--tokens 20] [--rows N] [--resamples 42]

A random Llama of 32 layers and 32 heads over 8 key/value heads, --kv-heads query: 1,057 sources, 1,592,881 edges. Its
weights are written as safetensors and loaded by a process of its own, which scores two batches with eap and eap-ig and
runs three circuits; the largest resident size of each part stands beside what `discovery.memory` foretells for this width
and, by the same formulas, for the whole model. Without --rows the batch is the largest that fits into a quarter of the
weights, tables included (one pair at least).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from discovery import memory
from discovery.ablation import COUNTERFACTUAL
from discovery.batches import make_batches
from discovery.bootstrap import Resamples
from discovery.loading import DTYPES, load_model
from discovery.measure import measure
from discovery.methods import eap, eap_ig
from discovery.metrics import METRICS
from discovery.patched_metric import auto_masks_per_run
from discovery.task import PromptPair
from discovery.workload import Workload
from graphs.prune import random_circuit

WHOLE = memory.Shape(
    layers=32, heads=32, kv_slots=32, d_model=4096, d_head=128, inner=14336, vocabulary=128256, sources=1057, targets=3105,
    weights=16_060_522_496, stored=2,
)  # fmt: skip
"""Llama-3.1-8B in bfloat16."""


def config(width: int) -> LlamaConfig:
    """The whole model's, but for its width and vocabulary."""
    return LlamaConfig(
        vocab_size=8192, hidden_size=width, intermediate_size=width * 7 // 2, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=width // 32, tie_word_embeddings=False,
    )  # fmt: skip


def write_weights(width: int, dtype: str, place: str) -> None:
    """A seeded random model in the Hugging Face layout."""
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[dtype])
    LlamaForCausalLM(config(width)).save_pretrained(place)


def workload(tokens: int, rows: int) -> Workload:
    """Two batches of aligned pairs that differ from the first token on."""
    drawn = torch.randint(3, 8192, (2 * rows, 2, tokens + 1), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [PromptPair(tuple(a[1:]), tuple(b[1:-1] + a[-1:]), ((a[0],),), ((b[0],),)) for a, b in drawn]
    return Workload(make_batches(pairs, None, batch_size=rows), METRICS["logit-diff"], COUNTERFACTUAL)


def resident(field: str) -> int:
    """A size of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


def largest(work: Callable[[], object]) -> int:
    """The largest resident size during some work."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was given back before must not count
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    work()
    return resident("VmHWM")


def look(place: str, dtype: str, tokens: int, rows: int, resamples: int) -> dict[str, float]:
    """Bytes of each part, beside the loaded model, and what was foretold."""
    model = load_model(place, dtype=dtype, device="cpu", kv_heads="query")
    shape = memory.shape_of(model)
    rows = rows or memory.largest_batch(shape, tokens, memory.large_budget(shape))
    work = workload(tokens, rows)
    touched = sum(
        float(weight.detach().sum()) for weight in model.hf.parameters()
    )  # every page of the weights is resident
    assert np.isfinite(touched)
    with torch.no_grad():
        model.hf(input_ids=torch.zeros(1, 2, dtype=torch.long))  # what the library keeps for itself does not count
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    loaded, found = resident("VmRSS"), {}
    together = memory.points_per_pass(model, rows, tokens, 4)
    masks = auto_masks_per_run(work.batches[0], torch.zeros(rows, shape.vocabulary), 1 + shape.sources)
    needs = memory.needs(shape, rows, tokens, 5, together, masks=min(3, masks))

    def score(method: Callable[..., object]) -> None:
        drawn = Resamples(model.topology, work, resamples, 0)
        method(model, work, None, drawn.add)

    found["eap"] = largest(lambda: score(eap.score)) - loaded
    model.forget()
    found["eap-ig"] = largest(lambda: score(eap_ig.score)) - loaded
    model.forget()
    rng = np.random.default_rng(0)
    circuits = [
        random_circuit(model.topology, int(share * model.topology.edge_count), rng) for share in (0.01, 0.3, 0.9)
    ]
    found["evaluate"] = largest(lambda: measure(model, work, circuits)) - loaded
    return {
        "rows": rows,
        "edges": model.topology.edge_count,
        "weights": shape.weights,
        **{f"measured {name}": size for name, size in found.items()},
        **_foretold(shape, needs),
    }


def _foretold(shape: memory.Shape, needs: memory.Needs) -> dict[str, float]:
    tables = memory.table_bytes(shape)
    scoring = needs.recorded + max(needs.passes, needs.chunk + needs.layer + needs.scores)
    return {
        **{part: getattr(needs, part) for part in ("recorded", "passes", "chunk", "layer", "scores", "run")},
        "tables": tables,
        "foretold scoring": scoring + tables,
        "foretold evaluate": needs.recorded + needs.run,
    }


def main() -> None:
    """Print measured and foretold sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=42)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stage", choices=("write", "look"), help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.stage == "write":
        write_weights(chosen.width, chosen.dtype, chosen.place)
        return
    if chosen.stage == "look":
        print(json.dumps(look(chosen.place, chosen.dtype, chosen.tokens, chosen.rows, chosen.resamples)))
        return
    with tempfile.TemporaryDirectory(prefix="edgewise-") as place:
        command = [sys.executable, __file__, *sys.argv[1:], "--place", str(Path(place)), "--stage"]
        subprocess.run([*command, "write"], check=True)
        found = json.loads(subprocess.run([*command, "look"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    weights, rows = found["weights"], found["rows"]
    print(
        f"width {chosen.width}, {chosen.dtype}: {found['edges']:,} edges, {rows} pair(s) of {chosen.tokens} tokens in a batch"
    )
    for name, size in found.items():
        if name not in ("rows", "edges"):
            print(f"{name:<20}{size / 1e6:>10.0f} MB{100 * size / weights:>8.1f} % of the weights")
    rows = memory.largest_batch(WHOLE, chosen.tokens, memory.large_budget(WHOLE))
    needs = memory.needs(WHOLE, rows, chosen.tokens, points=5)
    print(f"\nLlama-3.1-8B by the same formulas, {rows} pair(s)")
    for name, size in {"weights": WHOLE.weights, **_foretold(WHOLE, needs)}.items():
        print(f"{name:<20}{size / 1e6:>10.0f} MB{100 * size / WHOLE.weights:>8.1f} % of the weights")


if __name__ == "__main__":
    main()

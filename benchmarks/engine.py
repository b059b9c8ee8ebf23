"""What the engine's methods cost, as ratios measured in one process.

    python benchmarks/engine.py [--parts neurons ...] [--shape gpt2s|llamagqa] [--repeats 3] [--threads N]

    neurons   atp on every neuron, head vector and node, against eap's floor: two forwards and one input-backward of the
              untouched model, last-position logits, the same pairs in the same batches (32 pairs of 16 tokens by 8)
    acdc, evaluate, exact   see benchmarks/exact_runs.py

Each figure is the best of the repeats, the compared works taking turns. Models are seeded and random (see benchmarks/eap.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import exact_runs
from benchmarks.eap import alternate, backward, build, forward, workload
from discovery.component_model import ComponentModel
from discovery.methods import atp


def neurons(shape: str, repeats: int) -> None:
    """Print what it costs to score every neuron."""
    hf = build(shape)
    hf.requires_grad_(False)
    model = ComponentModel(hf)
    work, scored = workload(hf), atp.Options(neurons=True)

    def score() -> object:
        model.forget()
        return atp.score(model, work, scored)

    scores = atp.score(model, work, scored)
    assert scores.neurons is not None and scores.slots is not None
    seconds = alternate(
        {"forward": lambda: forward(hf, work.batches), "pass": lambda: backward(hf, work.batches), "atp": score},
        repeats,
    )
    floor = seconds["forward"] + seconds["pass"]
    vectors = sum(slot.port is not None for slot in model.topology.targets)
    print(
        f"neurons   {shape}: {scores.neurons.size:,} neurons, {vectors:,} q/k/v vectors and {len(scores.values)} nodes in "
        f"{seconds['atp']:.2f} s; floor {floor:.2f} s; ratio {seconds['atp'] / floor:.2f}  <= 1.3"
    )


PARTS: dict[str, Callable[[str, int], None]] = {
    "neurons": neurons,
    "acdc": exact_runs.acdc_part,
    "evaluate": exact_runs.evaluate_part,
    "exact": exact_runs.exact_part,
}
"""What is measured: (shape, repeats) -> printed lines."""


def main() -> None:
    """Print the figures of the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--shape", choices=("gpt2s", "llamagqa"), default="gpt2s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, best of {arguments.repeats}")
    for part in arguments.parts:
        PARTS[part](arguments.shape, arguments.repeats)


if __name__ == "__main__":
    main()

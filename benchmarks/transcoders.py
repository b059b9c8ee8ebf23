"""Whether transcoders trained with the default settings stand for the MLPs of a real model.

    python benchmarks/transcoders.py [--out DIR] [--shared ../shared] [--threads 2]

Runs `edgewise train-transcoders` on stories260K (5 layers, d_model 64) and 1,000 TinyStories, a tenth of the stories held out,
and holds the mean over layers of the fraction of variance unexplained, on the held-out stories and all positions but the
first, against the bar: 0.15 at no more than 16 active features a token. PCA of equal rank stands beside. Time is counted
as CPU seconds of all threads, against 15 minutes on two cores, besides the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

BARS = {"mean FVU": 0.15, "L0": 16.0, "CPU seconds": 15 * 60 * 2}


def main() -> int:
    """Trains, prints the figures, gives 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("transcoders/stories260K"), help="must not exist")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, corpus = options.shared / "models/stories260K", options.shared / "corpora/tinystories_1000.json"
    if not model.is_dir() or not corpus.is_file():
        parser.error(f"needs {model} and {corpus}")
    if options.out.exists():
        parser.error(f"{options.out} exists: name another --out, so that all of the training is timed")
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "train-transcoders",
        "--model",
        str(model),
        "--corpus",
        str(corpus),
    ]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--device", "cpu", "--out", str(options.out)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    held_out = json.loads((options.out / "training.json").read_text(encoding="utf-8"))["held_out"]
    measured = {
        "mean FVU": held_out["mean_fvu"],
        "L0": max(layer["l0"] for layer in held_out["layers"]),
        "CPU seconds": used.ru_utime + used.ru_stime,
    }
    print(f"{time.perf_counter() - start:.0f} s by the clock")
    for name, value in measured.items():
        print(f"{name:12s} {value:10.4f}  bar {BARS[name]:8.2f}  {'ok' if value <= BARS[name] else 'MISSED'}")
    print(f"PCA of equal rank: mean FVU {sum(x['pca_fvu'] for x in held_out['layers']) / len(held_out['layers']):.4f}")
    return int(any(value > BARS[name] for name, value in measured.items()))


if __name__ == "__main__":
    sys.exit(main())

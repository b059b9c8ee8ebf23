"""Every method on three trained models: how good its circuits are, how much they hang on the pairs, what it costs.

    python benchmarks/methods.py [--shared DIR] [--limit N] [--seconds S] [--only METHOD,...] [--models NAME,...]
                                 [--out PATH]

For each model and each line of the table of methods (its default options) `edgewise discover` runs in a process of its
own, which is stopped after S seconds. Taken from its files: CMD and CPR on held-out pairs (absolute scores, counterfactual
ablation), edges and faithfulness of the circuit of the size in CASES, stability (mean Jaccard overlap of the selections from
bootstrap resamples, or of two seeds where a method gives no scores of single pairs), and the seconds that the scores took
(those of a second seed included, where a method has one). The table is printed as Markdown and written to PATH.md and
PATH.json. Models and tasks are those of the folder of shared data (modadd113, nano-sort, stories260K).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from discovery.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "modadd113": ("modadd113.jsonl", 0.5),
    "nano-sort": ("nano_sort_first.jsonl", 0.3),
    "stories260K": ("stories_pronouns.jsonl", 0.1),
}
"""Model -> its task, and the circuit's share of the edges: small graphs need more of theirs to hold a path."""
COLUMNS = ("method", "CMD", "CPR", "faithful", "edges", "stability", "seconds")


def measure(shared: Path, model: str, method: str, limit: int, seconds: float) -> dict[str, Any]:
    """The numbers of one method on one model; `failed` says why there are none."""
    task, size = CASES[model]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.cli", "discover", "--model", shared / "models" / model,
                   "--task", shared / "tasks" / task, "--limit", limit, "--method", method, "--size", size,
                   "--rivals", 0, "--random-circuits", 0, "--tests", "none", "--missed", 0, "--faithfulness-only",
                   "--bootstrap", 0, "--labeler", "none", "--formats", "json", "--out", folder + "/run"]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
        start = time.perf_counter()
        try:
            done = subprocess.run(
                list(map(str, command)), env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"over {seconds:g} s"}
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        run = json.loads(Path(folder, "run", "run.json").read_text(encoding="utf-8"))
        evaluation = json.loads(Path(folder, "run", "evaluation.json").read_text(encoding="utf-8"))
    stability = run["circuit"].get("stability") or {}
    kind = next((kind for kind in ("resamples", "seeds") if kind in stability), None)
    return {
        "cmd": evaluation["cmd"],
        "cpr": evaluation["cpr"],
        "faithfulness": evaluation["circuit"]["faithfulness"],
        "edges": run["circuit"]["edges"],
        "stability": None if kind is None else stability[kind]["mean"],
        "draws": kind,
        "seconds": run["seconds"]["scores"],
        "whole": time.perf_counter() - start,
    }


def row(method: str, found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    if "failed" in found:
        return (method, found["failed"], *[""] * (len(COLUMNS) - 2))
    stability = "" if found["stability"] is None else f"{found['stability']:.2f}"
    return (
        method,
        *(f"{found[key]:.3f}" for key in ("cmd", "cpr", "faithfulness")),
        f"{found['edges']:,}",
        stability + (" (seeds)" if found["draws"] == "seeds" else ""),
        f"{found['seconds']:.2f}",
    )


def markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table for each model, the best CMD first; methods that were stopped last."""
    lines = []
    for model, found in results.items():
        lines += [
            f"**{model}**",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "| " + " | ".join("---" for _ in COLUMNS) + " |",
        ]
        order = sorted(found, key=lambda name: found[name].get("cmd", float("inf")))
        lines += ["| " + " | ".join(row(name, found[name])) + " |" for name in order]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models/ and tasks/")
    parser.add_argument("--limit", type=int, default=120, help="pairs, of which 70 %% are scored")
    parser.add_argument("--seconds", type=float, default=60, help="of one method on one model, loading included")
    parser.add_argument("--only", default="", help="methods, joined by commas")
    parser.add_argument("--models", default=",".join(CASES), help="models, joined by commas")
    parser.add_argument("--out", type=Path, default=None, help="write PATH.md and PATH.json")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(METHODS)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for model in options.models.split(","):
        results[model] = {}
        for name in names:
            results[model][name] = measure(options.shared, model, name, options.limit, options.seconds)
            print(model, name, results[model][name], file=sys.stderr, flush=True)
        if options.out is not None:
            options.out.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
            options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()

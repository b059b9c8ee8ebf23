"""How well each method's scores agree with exact patching, on trained models.

    python benchmarks/agreement.py [--pairs 16] [--threads N] [--subjects NAME ...] [--shared DIR]

Subjects: five tasks of the embedded model, and the models of the shared folder with their tasks where it is there. Every
possible edge is patched exactly, one at a time; then for each method the rank correlation with it over all edges (rho), the
same of absolute values (|rho|), that of the means of single pairs' absolute values (pairs: what AtP* estimates, in which
pairs that disagree in sign do not cancel), the share of exact's n strongest edges that are among the method's n strongest, n
a twentieth of all (top), and seconds. A second table compares node scores with exact ablations of nodes; there n is a quarter.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import numpy as np
import torch
from scipy.stats import spearmanr

from discovery.ablation import COUNTERFACTUAL
from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.demo import model_directory
from discovery.loading import load_model
from discovery.methods import exact, method
from discovery.metrics import METRICS
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.task_source import load_task
from discovery.workload import Workload
from graphs.node_scores import NodeScores

EDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "eap": ("eap", {}),
    "eap-ig": ("eap-ig", {}),
    "eap-ig midpoint": ("eap-ig", {"rule": "midpoint"}),
    "clean-corrupted": ("clean-corrupted", {}),
    "eap-ig-activations": ("eap-ig-activations", {}),
    "eap-ig-activations own": ("eap-ig-activations", {"over": "own", "rule": "midpoint"}),
    "relp": ("relp", {}),
    "relp, attention live": ("relp", {"attention": False}),
    "atp-star": ("atp-star", {}),
    "atp-star, QK fix alone": ("atp-star", {"grad_drop": False}),
    "atp-star, GradDrop alone": ("atp-star", {"qk_fix": False}),
    "information-flow": ("information-flow", {}),
    "random": ("random", {}),
}
"""Rows of the first table: method and options."""
NODES: dict[str, tuple[str, dict[str, Any]]] = {"atp": ("atp", {}), "atp-star": ("atp-star", {"level": "nodes"})}
"""Rows of the second table."""
BUILT_IN = ("ioi", "induction", "greater-than", "subject-verb-agreement", "two-hop")
SHARED = {"stories260K": "stories_pronouns", "nano-sort": "nano_sort_first", "modadd113": "modadd113"}
"""Model of the shared folder -> its task file."""


def subjects(shared: Path) -> dict[str, tuple[Path, str]]:
    """By name: directory of the model and source of the task."""
    found = {task: (Path(model_directory()), task) for task in BUILT_IN}
    for name, task in SHARED.items():
        if (shared / "models" / name).is_dir():
            found[name] = (shared / "models" / name, str(shared / "tasks" / f"{task}.jsonl"))
    return found


def workload(model: ComponentModel, source: str, pairs: int) -> Workload:
    """The task's first pairs under its own metric."""
    task = load_task(source, limit=pairs)
    return Workload(
        tuple(make_batches(task.pairs, model.tokenizer, batch_size=16)), METRICS[task.metric], COUNTERFACTUAL
    )


def node_effects(model: ComponentModel, work: Workload) -> np.ndarray:
    """m(full) - m(what one source writes ablated for all readers), for every pair and source."""
    topology = model.topology
    keep = np.repeat(topology.possible[None], len(topology.sources), axis=0)
    keep[np.arange(len(keep)), np.arange(len(keep))] = False
    effects = []
    for batch in work.batches:
        full, logits = full_metric(model, batch, work.metric)
        size = auto_masks_per_run(batch, logits, len(topology.sources) + 1)
        values = patched_metric(model, batch, work.metric, keep, work.ablation, logits, size)
        effects.append((full - values).T.numpy())
    return np.concatenate(effects)


def rank_correlation(said: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's; NaN where all is one value."""
    return float(np.asarray(spearmanr(said, truth))[0]) if np.ptp(said) and np.ptp(truth) else float("nan")


def row(
    model: ComponentModel, work: Workload, name: str, options: dict[str, Any], truth: np.ndarray, strongest: float
) -> str:
    """One method's line. truth: [pair place]. strongest: the share of places that `top` compares."""
    line = method(name)
    model.forget()
    start = time.perf_counter()
    pieces: list[torch.Tensor] = []
    scores = line.load().score(model, work, line.options(options), lambda _, pairs: pieces.append(pairs.abs()))
    seconds = time.perf_counter() - start
    of_nodes, mean = isinstance(scores, NodeScores), truth.mean(0)
    values = scores.values if of_nodes else scores.values[scores.topology.possible]
    single = torch.cat(pieces).mean(0).numpy() if pieces else np.abs(scores.values)
    single = single if of_nodes else single[scores.topology.possible]
    count = max(1, int(len(mean) * strongest))
    best = [set(np.argsort(-np.abs(each), kind="stable")[:count].tolist()) for each in (values, mean)]
    figures = (
        rank_correlation(values, mean),
        rank_correlation(np.abs(values), np.abs(mean)),
        rank_correlation(single, np.abs(truth).mean(0)),
    )
    return "".join(f"{each:8.3f}" for each in figures) + f"{len(best[0] & best[1]) / count:8.2f}{seconds:9.2f}"


def measure(name: str, model: ComponentModel, work: Workload) -> None:
    """Print one subject's tables."""
    start = time.perf_counter()
    pieces: list[torch.Tensor] = []
    exact.score(model, work, on_batch=lambda _, pairs: pieces.append(pairs))
    truth = torch.cat(pieces).numpy()[:, model.topology.possible]
    seconds = time.perf_counter() - start
    print(f"\n{name}: {work.pair_count} pairs, {truth.shape[1]:,} edges, exact {seconds:.1f} s")
    for kind, table, real, share in (("edges", EDGES, truth, 0.05), ("nodes", NODES, node_effects(model, work), 0.25)):
        print(f"{kind:<26}{'rho':>8}{'|rho|':>8}{'pairs':>8}{'top':>8}{'seconds':>9}")
        for title, (chosen, options) in table.items():
            print(f"{title:<26}{row(model, work, chosen, options, real, share)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--subjects", nargs="+", metavar="NAME", help="default: all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    known = subjects(options.shared)
    for name in options.subjects or known:
        if name not in known:
            parser.error(f"there is no subject {name!r} (known: {', '.join(known)})")
        directory, source = known[name]
        model = load_model(directory, device="cpu")
        measure(name, model, workload(model, source, options.pairs))


if __name__ == "__main__":
    main()

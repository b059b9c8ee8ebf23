"""How much quicker the engine is than the plain way to the same numbers, in one process.

    python benchmarks/exact_runs.py [--repeats 3] [--threads N] [--part acdc|evaluate|exact]

acdc      On a 4-layer GPT-2 shape (d_model 128, 4 heads, 479 edges) that is first trained to go on with repeated lists
          (a minute or two), 8 pairs of 16 tokens: the sequential loop, one candidate at a time by the model's own `run`,
          restarting at the first layer that changes (restart) or computing every layer and slot (whole), against method
          `acdc`, for several tau as shares of the metric's gap. The three circuits must be the same. Then the same on that
          shape with seeded random weights (vocabulary 1,000), which has no circuit, and on the embedded model's ioi task.
evaluate  On GPT-2 small's shape (random): faithfulness at ten sizes against ten forwards of the untouched model.
exact     On GPT-2 small's shape: seconds of a sample of the edges into every layer; the estimate for all 32,491 edges, and
          what even layers foretell of odd ones against what was measured there.

Times are the process's CPU seconds where --cpu is given (a busy machine), else wall-clock.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import induction_model
from discovery.ablation import COUNTERFACTUAL
from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.evaluate import evaluate
from discovery.methods import acdc, eap, exact
from discovery.metrics import METRICS
from discovery.pruning import RestartJudge
from discovery.task import PromptPair
from discovery.workload import Workload

SHARES = (0.003, 0.01, 0.03, 0.1)
BARS = {"acdc": 10.0, "evaluate": 1.5}


def random_model(layers: int, heads: int, width: int, vocabulary: int, scale: float = 1.0) -> ComponentModel:
    """A seeded GPT-2; scale: what its matrices are multiplied with (parts of a fresh model hardly matter)."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=width, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0
    )
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.requires_grad_(False)
            if weight.ndim == 2 and ".h." in name:
                weight.mul_(scale)
    return ComponentModel(hf)


def random_work(vocabulary: int, pairs: int, batch_size: int = 8) -> Workload:
    """Random pairs of 16 tokens that end alike."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(pairs):
        clean, corrupt = torch.randint(3, vocabulary, (2, 16), generator=generator).tolist()
        right, wrong = torch.randint(3, vocabulary, (2,), generator=generator).tolist()
        made.append(PromptPair(tuple(clean), (*corrupt[:-1], clean[-1]), ((right,),), ((wrong,),)))
    return Workload(tuple(make_batches(made, None, batch_size=batch_size)), METRICS["logit-diff"], COUNTERFACTUAL)


class WholeRuns(RestartJudge):
    """Every layer and every slot of every run, as a loop without restarts has it."""

    def measure(self, masks: np.ndarray) -> np.ndarray:
        """One mask after the other; the first slot loses an edge that it does not have, so that nothing is skipped."""
        work, pieces = self._workload, []
        with torch.no_grad():
            for model, batch, logits in zip(self._models, work.batches, self._logits, strict=True):
                assert isinstance(model, ComponentModel)
                keep = torch.from_numpy(masks).float().requires_grad_()  # as in a run for gradients: every slot
                with torch.enable_grad():
                    found = model.run(batch, keep, work.ablation).detach()
                reference = logits if work.metric.needs_reference else None
                pieces.append(work.metric.compute(found, batch, reference).cpu().double())
        return torch.cat(pieces, 1).numpy()


def plain_loop(judge: RestartJudge, order: list[acdc.Edge], possible: np.ndarray, tau: float) -> np.ndarray:
    """The sequential algorithm, one run per candidate."""
    kept = possible.copy()
    now = judge.current.mean()
    for row, column in order:
        kept[row, column] = False
        without = judge.measure(kept[None])[0].mean()
        if np.float32(now - without) < np.float32(tau):
            now = without
        else:
            kept[row, column] = True
    return kept


def timed(work: Callable[[], object], clock: Callable[[], float]) -> tuple[float, object]:
    """Seconds and the result."""
    start = clock()
    result = work()
    return clock() - start, result


def _loop(
    judge: type[RestartJudge], model: ComponentModel, work: Workload, order: list[acdc.Edge], tau: float
) -> np.ndarray:
    return plain_loop(judge(model, work), order, model.topology.possible, tau)


def print_acdc(
    title: str, model: ComponentModel, work: Workload, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    """A line per tau."""
    topology = model.topology
    order = acdc.candidates(topology)
    gap = acdc.gap_of(model, work)
    print(f"\nacdc on {title}: {topology.edge_count} edges, {work.pair_count} pairs, {work.metric.name}, gap {gap:.3g}")
    head = ("tau / gap", "kept", "share", "acdc s", "restart s", "factor", "whole s", "factor", "same")
    print("".join(f"{name:>11}" for name in head))
    for share in SHARES:
        tau = share * gap
        seconds, kept = {"acdc": np.inf, "restart": np.inf, "whole": np.inf}, []
        for turn in range(repeats):
            model.forget()
            took, scores = timed(partial(acdc.score, model, work, acdc.Options(tau=tau)), clock)
            seconds["acdc"] = min(seconds["acdc"], took)
            for name, judge in (("restart", RestartJudge), ("whole", WholeRuns)):
                if name == "restart" or turn == 0:
                    took, circuit = timed(partial(_loop, judge, model, work, order, tau), clock)
                    seconds[name] = min(seconds[name], took)
                    kept.append(circuit)
            kept.append(scores.kept)  # type: ignore[attr-defined]
        same = all(np.array_equal(kept[0], other) for other in kept)
        count = int(kept[0].sum())
        print(
            f"{share:>11}{count:>11}{count / topology.edge_count:>11.1%}{seconds['acdc']:>11.2f}"
            f"{seconds['restart']:>11.2f}{seconds['restart'] / seconds['acdc']:>10.1f}x{seconds['whole']:>11.2f}"
            f"{seconds['whole'] / seconds['acdc']:>10.1f}x{'yes' if same else 'NO':>11}",
            flush=True,
        )


def print_all_acdc(repeats: int, clock: Callable[[], float] = time.perf_counter) -> None:
    """The trained and the random model of the small shape, and the embedded one."""
    trained, work = induction_model.train(), induction_model.pairs(8)
    right = induction_model.knows(trained, work)
    print_acdc(f"a GPT-2, 4 layers, trained on repeated lists ({right:.0%} right)", trained, work, repeats, clock)
    print(f"bar: >= {BARS['acdc']:.0f}x against the plain loop with restart")
    print_acdc("a random GPT-2, 4 layers", random_model(4, 4, 128, 1000, 3.0), random_work(1000, 8), repeats, clock)
    print_acdc("the embedded model's ioi", *embedded(), repeats, clock)


def embedded() -> tuple[ComponentModel, Workload]:
    """The embedded model and 8 pairs of its ioi task."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from discovery.demo import model_directory
    from discovery.tasks.ioi import generate

    hf = AutoModelForCausalLM.from_pretrained(model_directory()).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    batches = make_batches(generate(8, 0, "train"), tokenizer, batch_size=8)
    return ComponentModel(hf, tokenizer), Workload(tuple(batches), METRICS["logit-diff"], COUNTERFACTUAL)


def print_evaluate(repeats: int, clock: Callable[[], float] = time.perf_counter) -> None:
    """Ten sizes against ten forwards batched likewise."""
    model, work = random_model(12, 12, 768, 50257), random_work(50257, 32)
    scores = eap.score(model, work)
    best = {"evaluate": np.inf, "forward": np.inf}
    for turn in range(repeats + 1):
        took, _ = timed(lambda: _forwards(model, work), clock)
        best["forward"] = min(best["forward"], took) if turn else np.inf
        model.forget()
        took, _ = timed(lambda: evaluate(model, work, scores, faithfulness_only=True, bootstrap=0), clock)
        best["evaluate"] = min(best["evaluate"], took) if turn else np.inf
    ratio = best["evaluate"] / (10 * best["forward"])
    print(
        f"\nevaluate, ten sizes, GPT-2 small's shape, 32 pairs x 16 tokens: {best['evaluate']:.2f} s; ten forwards "
        f"{10 * best['forward']:.2f} s; ratio {ratio:.2f} (bar <= {BARS['evaluate']})",
        flush=True,
    )


def _forwards(model: ComponentModel, work: Workload) -> None:
    with torch.no_grad():
        for batch in work.batches:
            model.hf(input_ids=batch.clean, use_cache=False, logits_to_keep=1)


def print_exact(clock: Callable[[], float] = time.perf_counter) -> None:
    """Edges per second by layer, on some edges of each; the estimate from even layers checked on odd ones."""
    model = random_model(12, 12, 768, 50257)
    work = random_work(50257, 32)
    work = replace(work, batches=work.batches[:1])
    topology = model.topology
    rng = np.random.default_rng(0)
    model.forget()
    exact.edge_effects(model, work, _sample(topology.possible, [len(topology.targets) - 1], 8, rng))  # warms up
    rates: dict[int, float] = {}
    counts: dict[int, int] = {}
    for layer in range(len(model.blocks)):
        columns = [place for place, slot in enumerate(topology.targets) if slot.node.layer == layer]
        counts[layer] = int(topology.possible[:, columns].sum())
        wanted = _sample(topology.possible, columns, 24, rng)
        took, _ = timed(partial(exact.edge_effects, model, work, wanted), clock)
        rates[layer] = took / int(wanted.sum())
    even = [layer for layer in rates if layer % 2 == 0]
    foretold = {layer: float(np.interp(layer, even, [rates[e] for e in even])) for layer in rates}
    odd = [layer for layer in rates if layer % 2]
    error = sum(foretold[layer] * counts[layer] for layer in odd) / sum(rates[layer] * counts[layer] for layer in odd)
    total = sum(rates[layer] * counts[layer] for layer in rates)
    print(
        f"\nexact, GPT-2 small's shape, 8 pairs x 16 tokens: {topology.edge_count:,} edges in an estimated "
        f"{total:.0f} s ({topology.edge_count / total:.0f} edges a second; layer 0 {1 / rates[0]:.0f}, layer 11 "
        f"{1 / rates[11]:.0f}); odd layers as foretold from even ones: {error:.2f} of what was measured",
        flush=True,
    )


def _sample(possible: np.ndarray, columns: list[int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Some possible edges into some slots."""
    places = [(row, column) for column in columns for row in np.flatnonzero(possible[:, column])]
    chosen = rng.choice(len(places), size=min(count, len(places)), replace=False)
    wanted = np.zeros_like(possible)
    for place in chosen:
        wanted[places[int(place)]] = True
    return wanted


def acdc_part(shape: str, repeats: int) -> None:
    """The part `acdc` of benchmarks/engine.py; it has shapes of its own."""
    print_all_acdc(repeats)


def evaluate_part(shape: str, repeats: int) -> None:
    """The part `evaluate`, on GPT-2 small's shape."""
    print_evaluate(repeats)


def exact_part(shape: str, repeats: int) -> None:
    """The part `exact`, on GPT-2 small's shape."""
    print_exact()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--part", choices=("acdc", "evaluate", "exact"))
    parser.add_argument("--cpu", action="store_true", help="CPU seconds instead of wall-clock")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    what = "CPU" if options.cpu else "wall-clock"
    print(f"torch {torch.__version__}, {options.threads} threads, {what} seconds, best of {options.repeats}")
    if options.part in (None, "acdc"):
        print_all_acdc(options.repeats, clock)
    if options.part in (None, "evaluate"):
        print_evaluate(options.repeats, clock)
    if options.part in (None, "exact"):
        print_exact(clock)


if __name__ == "__main__":
    main()

"""What interventions do to a prompt's next token, to a task's metric and to the text that is generated: before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.intervened_generation import generate
from discovery.intervened_run import Outcome, Untouched, intervened_pass, untouched_pass
from discovery.intervention import DirectionEdit, Prompts, prompts_of, prompts_of_batch
from discovery.intervention_text import Intervention, Place
from discovery.metrics import METRICS, Metric
from discovery.node_values import Resolver, node_values
from discovery.statistics import mean_interval
from discovery.tokenisation import Ids
from discovery.transcoder import TranscoderSet
from discovery.visited_forward import Freeze

BEFORE = "before"
"""Name of the run without interventions, beside the names of the freezes."""
_PAIRS_TO_GENERATE = 5
_PROMPTS_PER_BATCH = 32


@dataclass(frozen=True, eq=False)
class Plan:
    """What is done, and what is looked at."""

    interventions: tuple[Intervention, ...] = ()
    """Changes to nodes."""
    directions: tuple[DirectionEdit, ...] = ()
    """Changes to directions of the residual stream."""
    freezes: tuple[Freeze, ...] = ("attention", "none")
    """Runs to make: with these things frozen."""
    means: Mapping[Place, Tensor] = field(default_factory=dict)
    """Of `discovery.node_values.mean_values`."""
    donors: Mapping[str, Ids] = field(default_factory=dict)
    """Tokens of the donors that interventions name."""
    donor: Ids | None = None
    """Tokens of the donor of swaps that name none; of a task each pair's corrupt prompt is it, unless this is given."""
    generate: int = 0
    """Number of tokens to generate."""
    top: int = 10
    """Number of next tokens to report for each run."""

    def places(self, act: str | None = None) -> list[Place]:
        """What is changed, each place once; act: only by interventions of this kind."""
        found = (place for one in self.interventions if act in (None, one.act) for place in one.places)
        return list(dict.fromkeys(found))


def batched_prompts(rows: Sequence[Ids]) -> list[Prompts]:
    """Prompts in left-padded batches of like lengths."""
    order = sorted(rows, key=len)
    return [prompts_of(order[start : start + _PROMPTS_PER_BATCH]) for start in range(0, len(order), _PROMPTS_PER_BATCH)]


def _resolver(
    model: ComponentModel, transcoders: TranscoderSet | None, plan: Plan, default: Prompts | None
) -> Resolver:
    donors: dict[str | None, Prompts] = {text: prompts_of([ids]) for text, ids in plan.donors.items()}
    if plan.donor is not None:
        donors[None] = prompts_of([plan.donor])
    elif default is not None:
        donors[None] = default
    return Resolver(model, transcoders, plan.interventions, donors, plan.means)


def _decoded(model: ComponentModel, ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) if model.tokenizer is None else str(model.tokenizer.decode(list(ids)))


def prompt_report(model: ComponentModel, transcoders: TranscoderSet | None, tokens: Ids, plan: Plan) -> dict[str, Any]:
    """Next-token logits, probabilities and generated text of one prompt, before and after, as JSON holds it."""
    prompts = prompts_of([tokens], model.device)
    resolver = _resolver(model, transcoders, plan, None)
    edits = resolver.edits(prompts)
    untouched = untouched_pass(model, prompts)
    logits = {BEFORE: _logits(intervened_pass(model, transcoders, prompts))}
    for freeze in plan.freezes:
        outcome = intervened_pass(
            model, transcoders, prompts, edits, directions=plan.directions, freeze=freeze, untouched=untouched
        )
        logits[freeze] = _logits(outcome)
    texts: dict[str, Any] = {}
    if plan.generate:
        texts[BEFORE] = generate(model, transcoders, prompts, None, steps=plan.generate)[0]
        for freeze in plan.freezes:
            texts[freeze] = generate(
                model, transcoders, prompts, resolver, plan.directions, freeze=freeze, steps=plan.generate
            )[0]
    return {
        "prompt": _decoded(model, tokens),
        "tokens": [{"id": token, "text": _decoded(model, [token])} for token in tokens],
        "nodes": _nodes(model, transcoders, plan, [untouched]),
        "next": _next_tokens(model, logits, plan.top),
        "divergence": {name: _divergence(logits[BEFORE], after) for name, after in logits.items() if name != BEFORE},
        "generated": {name: {"ids": ids, "text": _decoded(model, ids)} for name, ids in texts.items()},
    }


def _logits(outcome: Outcome) -> Float[Tensor, " vocab"]:
    return outcome.logits[0].double().cpu()


def _next_tokens(
    model: ComponentModel, logits: Mapping[str, Float[Tensor, " vocab"]], top: int
) -> list[dict[str, Any]]:
    """Every token among the likeliest of any run, the likeliest before the interventions first; ranks count from 1."""
    chosen: dict[int, None] = {}
    for values in logits.values():
        chosen.update(dict.fromkeys(values.topk(min(top, len(values))).indices.tolist()))
    probabilities = {name: values.softmax(0) for name, values in logits.items()}
    order = sorted(chosen, key=lambda token: -float(probabilities[BEFORE][token]))
    return [
        {
            "token": token,
            "text": _decoded(model, [token]),
            **{
                name: {
                    "logit": float(values[token]),
                    "probability": float(probabilities[name][token]),
                    "rank": int((values > values[token]).sum()) + 1,
                }
                for name, values in logits.items()
            },
        }
        for token in order
    ]


def _divergence(before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"]) -> float:
    """KL divergence of the next-token distribution after from the one before, in nats."""
    reference, here = before.log_softmax(0), after.log_softmax(0)
    possible = reference.exp() > 0
    return float((reference.exp() * (reference - here))[possible].sum())


def _nodes(
    model: ComponentModel, transcoders: TranscoderSet | None, plan: Plan, passes: Sequence[Untouched]
) -> list[dict[str, Any]]:
    """For every feature that is changed: its activation without interventions, and in which share of its places it fires."""
    found = []
    for place in plan.places():
        if place.kind != "feature":
            continue
        values = [
            node_values(model, transcoders, untouched, place)[untouched.prompts.cells(place.position)].flatten()
            for untouched in passes
        ]
        joined = torch.cat(values).double()
        found.append(
            {"node": str(place), "activation": float(joined.mean()), "active": float((joined != 0).double().mean())}
        )
    return found


def task_report(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    batches: Sequence[Batch],
    metric: Metric,
    plan: Plan,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """A task's metric before and after, over all pairs, with bootstrap intervals, as JSON holds it.

    right, wrong: share of the pairs whose most likely answer, over the whole vocabulary, is a right or a wrong one.
    """
    names = (BEFORE, *plan.freezes)
    values: dict[str, list[Tensor]] = {f"{name} {what}": [] for name in names for what in ("metric", "right", "wrong")}
    nodes, indices, generated = [], [], []
    for batch in tqdm(batches, desc="intervene", unit="batch", delay=1, leave=False):
        moved = batch.to(model.device)
        logits, untouched = _task_logits(model, transcoders, moved, plan)
        for name in names:
            for what, value in _measured(logits[name], moved, metric, logits[BEFORE]).items():
                values[f"{name} {what}"].append(value.cpu())
        nodes.append((len(batch.clean), _nodes(model, transcoders, plan, [untouched])))
        indices += batch.indices
        if plan.generate and len(generated) < _PAIRS_TO_GENERATE:
            generated += _task_texts(model, transcoders, moved, plan)[: _PAIRS_TO_GENERATE - len(generated)]
    order = np.argsort(indices)
    joined = {name: torch.cat(parts).double().numpy()[order] for name, parts in values.items()}
    return {
        "pairs": len(indices),
        "metric": metric.name,
        "nodes": _joined_nodes(nodes),
        "runs": {name: _summary(joined, name, bootstrap, seed) for name in names},
        "per_pair": {name: joined[f"{name} metric"].tolist() for name in names},
        "generated": generated,
    }


def _task_logits(
    model: ComponentModel, transcoders: TranscoderSet | None, batch: Batch, plan: Plan
) -> tuple[dict[str, Tensor], Untouched]:
    prompts = prompts_of_batch(batch)
    edits = _resolver(model, transcoders, plan, prompts_of_batch(batch, corrupt=True)).edits(prompts)
    untouched = untouched_pass(model, prompts)
    logits = {BEFORE: model.full_logits(batch)}
    for freeze in plan.freezes:
        logits[freeze] = intervened_pass(
            model, transcoders, prompts, edits, directions=plan.directions, freeze=freeze, untouched=untouched,
            reads=(batch.read_row, batch.read_column),
        ).logits  # fmt: skip
    return logits, untouched


def _measured(logits: Tensor, batch: Batch, metric: Metric, reference: Tensor) -> dict[str, Tensor]:
    swapped = replace(batch, candidate_right=~batch.candidate_right)
    return {
        "metric": metric.compute(logits, batch, reference),
        "right": METRICS["accuracy"].compute(logits, batch, None),
        "wrong": METRICS["accuracy"].compute(logits, swapped, None),
    }


def _summary(joined: Mapping[str, np.ndarray], name: str, bootstrap: int, seed: int) -> dict[str, Any]:
    """Means and intervals of one run; the change is taken pair by pair."""
    own, before = joined[f"{name} metric"], joined[f"{BEFORE} metric"]
    low, high = mean_interval(own, bootstrap, seed)
    found: dict[str, Any] = {"mean": float(own.mean()), "low": low, "high": high}
    if name != BEFORE:
        low, high = mean_interval(own - before, bootstrap, seed)
        found |= {"change": float((own - before).mean()), "change_low": low, "change_high": high}
    return found | {what: float(joined[f"{name} {what}"].mean()) for what in ("right", "wrong")}


def _joined_nodes(parts: Sequence[tuple[int, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Means over batches, by their rows."""
    rows = sum(count for count, _ in parts)
    return [
        same[0]
        | {key: sum(n * one[key] for (n, _), one in zip(parts, same)) / rows for key in ("activation", "active")}
        for same in zip(*(nodes for _, nodes in parts))
    ]


def _task_texts(
    model: ComponentModel, transcoders: TranscoderSet | None, batch: Batch, plan: Plan
) -> list[dict[str, Any]]:
    """Generated text of the first pairs of a batch."""
    rows = _prompts_alone(batch, corrupt=False)[:_PAIRS_TO_GENERATE]
    donors = _prompts_alone(batch, corrupt=True)[:_PAIRS_TO_GENERATE]
    prompts = prompts_of(rows, model.device)
    resolver = _resolver(model, transcoders, plan, prompts_of(donors, model.device))
    texts = {BEFORE: generate(model, transcoders, prompts, None, steps=plan.generate)}
    for freeze in plan.freezes:
        texts[freeze] = generate(
            model, transcoders, prompts, resolver, plan.directions, freeze=freeze, steps=plan.generate
        )
    return [
        {
            "pair": batch.indices[place],
            "prompt": _decoded(model, row),
            "donor": _decoded(model, donors[place]),
            **{name: {"ids": found[place], "text": _decoded(model, found[place])} for name, found in texts.items()},
        }
        for place, row in enumerate(rows)
    ]


def _prompts_alone(batch: Batch, corrupt: bool) -> list[Ids]:
    """Each pair's prompt without answer tokens."""
    tokens, starts = batch.corrupt if corrupt else batch.clean, (~batch.mask).sum(1)
    rows, columns = batch.read_row[batch.pair_read], batch.read_column[batch.pair_read]
    return [
        tuple(tokens[row, starts[row] : column + 1].tolist()) for row, column in zip(rows.tolist(), columns.tolist())
    ]

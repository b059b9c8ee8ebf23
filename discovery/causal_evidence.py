"""What happens to a task's metric when a node is silenced, or given what it is on the corrupt prompt, in the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.intervened_run import Untouched, intervened_pass, untouched_pass
from discovery.intervention import Edit, prompts_of_batch
from discovery.intervention_text import Place
from discovery.metrics import Metric
from discovery.node_values import mean_values, node_values
from discovery.transcoder import TranscoderSet
from graphs.evidence import CausalEffect
from graphs.node import NodeId

Change = Literal["ablate", "swap"]
CHANGES: tuple[Change, ...] = ("ablate", "swap")


@dataclass(eq=False)
class _Measured:
    """Per pair, in the order of the batches."""

    before: list[Tensor] = field(default_factory=list)
    corrupt: list[Tensor] = field(default_factory=list)
    after: dict[tuple[NodeId, Change], list[Tensor]] = field(default_factory=dict)


def causal_effects(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    nodes: Sequence[NodeId],
    batches: Sequence[Batch],
    metric: Metric,
    task: str,
) -> dict[NodeId, tuple[CausalEffect, ...]]:
    """For every feature, head and MLP among the nodes: ablated and swapped, at all positions, nothing frozen.

    Ablated: a feature is set to 0 (its error stays), a head or MLP to its mean over the tokens of the corrupt prompts.
    Swapped: set, position by position, to what it is on the pair's corrupt prompt.
    """
    wanted = {node.at(None): _place(node) for node in nodes if node.kind in ("feature", "head", "mlp")}
    written = [place for place in wanted.values() if place.kind != "feature"]
    means = mean_values(model, transcoders, written, [prompts_of_batch(batch, corrupt=True) for batch in batches])
    measured = _Measured(after={(node, change): [] for node in wanted for change in CHANGES})
    for batch in tqdm(batches if wanted else (), desc="causal effects", unit="batch", delay=1, leave=False):
        _measure(model, transcoders, batch.to(model.device), metric, wanted, means, measured)
    return {node: tuple(_effect(measured, (node, change), task, metric.name) for change in CHANGES) for node in wanted}


def _place(node: NodeId) -> Place:
    assert node.layer is not None
    return Place(node.kind, node.layer, node.index, None)  # type: ignore[arg-type]


def _measure(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    batch: Batch,
    metric: Metric,
    wanted: Mapping[NodeId, Place],
    means: Mapping[Place, Tensor],
    measured: _Measured,
) -> None:
    reads = (batch.read_row, batch.read_column)
    prompts, twins = prompts_of_batch(batch), prompts_of_batch(batch, corrupt=True)
    donor = untouched_pass(model, twins, False)
    reference = model.full_logits(batch)
    measured.before.append(metric.compute(reference, batch, reference).double().cpu())
    corrupt = intervened_pass(model, None, twins, reads=reads).logits
    measured.corrupt.append(metric.compute(corrupt, batch, reference).double().cpu())
    clean = untouched_pass(model, prompts, False)
    for node, place in tqdm(wanted.items(), desc="nodes", unit="node", delay=2, leave=False):
        for change in CHANGES:
            value = _new_value(model, transcoders, place, change, donor, means)
            # A feature that is already so everywhere changes nothing: most are silent on most prompts.
            if place.kind == "feature" and _unchanged(model, transcoders, place, clean, value):
                logits = reference
            else:
                edit = Edit(place.kind, place.layer, place.index, None, "set", value)
                logits = intervened_pass(model, transcoders, prompts, [edit], reads=reads).logits
            measured.after[node, change].append(metric.compute(logits, batch, reference).double().cpu())


def _new_value(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    place: Place,
    change: Change,
    donor: Untouched,
    means: Mapping[Place, Tensor],
) -> float | Tensor:
    if change == "swap":
        return node_values(model, transcoders, donor, place)
    return 0.0 if place.kind == "feature" else means[place]


def _unchanged(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    place: Place,
    clean: Untouched,
    value: float | Float[Tensor, "row pos"],
) -> bool:
    own = node_values(model, transcoders, clean, place)
    return bool(((own == value) | ~clean.prompts.sequences.mask).all())


def _effect(measured: _Measured, key: tuple[NodeId, Change], task: str, metric: str) -> CausalEffect:
    before, after = torch.cat(measured.before), torch.cat(measured.after[key])
    count = len(before)
    return CausalEffect(
        change=key[1],
        task=task,
        metric=metric,
        before=float(before.mean()),
        after=float(after.mean()),
        stderr=float((after - before).std() / count**0.5) if count > 1 else 0.0,
        pairs=count,
        gap=float((before - torch.cat(measured.corrupt)).mean()),
    )

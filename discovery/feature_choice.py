"""Which features become nodes: those whose own effect on the task is the largest, by node attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.feature_layer import check_fit, feature_layer
from discovery.metrics import Metric
from discovery.model import Point
from discovery.narrow_gradients import over_points
from discovery.preparation import prepare_ablation
from discovery.recording import Activations
from discovery.transcoder import TranscoderSet
from discovery.workload import Workload
from graphs.node import BadName, NodeId


class NoFeatures(ValueError):
    """A task on which no feature can be told from the others, or a stored choice that cannot be read."""


@dataclass(frozen=True)
class FeatureChoice:
    """The features that were chosen from a task."""

    attributions: Mapping[NodeId, float]
    """Chosen features, strongest first: (clean less ablated value) . gradient, summed over positions, mean over pairs."""
    live: int
    """Features with an attribution other than 0, over all layers."""
    share: float
    """Share of the sum of |attribution| over all features that the chosen ones hold."""

    @property
    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """The chosen numbers by layer, ascending."""
        found: dict[int, list[int]] = {}
        for node in self.attributions:
            assert node.layer is not None and node.index is not None
            found.setdefault(node.layer, []).append(node.index)
        return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}

    def to_json(self) -> dict[str, Any]:
        """The content of `features.json`; `from_json` reads it back."""
        named = {str(node): value for node, value in self.attributions.items()}
        return {"features": named, "live": self.live, "share": self.share}

    @staticmethod
    def from_json(content: Any) -> FeatureChoice:
        """The choice that `to_json` wrote. Raises NoFeatures naming what is wrong."""
        try:
            named = {NodeId.parse(name): float(value) for name, value in content["features"].items()}
            choice = FeatureChoice(named, int(content["live"]), float(content["share"]))
        except (KeyError, TypeError, AttributeError, BadName, ValueError) as error:
            raise NoFeatures(f"a choice of features that cannot be read: {error}") from None
        wrong = [str(node) for node in named if node.kind != "feature" or node.position is not None]
        if wrong or not named:
            raise NoFeatures(
                f"a choice of features that cannot be read: {wrong[0] if wrong else 'it'} holds no feature"
            )
        return choice


def choose_features(
    model: ComponentModel,
    transcoders: TranscoderSet,
    workload: Workload,
    count: int,
    points: Sequence[Point],
) -> FeatureChoice:
    """The `count` features of all layers with the largest |attribution| on the workload; fewer where fewer have any.

    The gradient is the one at what the feature adds to the residual stream, so that closed gates have one too. points:
    where gradients are taken. Raises BadTranscoder where the dictionaries do not fit, NoFeatures where no feature has
    an attribution or the metric no gradient.
    """
    check_fit(model.blocks, transcoders)
    if not workload.metric.differentiable:
        raise NoFeatures(
            f"metric {workload.metric.name!r} has no gradient to choose features by; use another, such as logit-diff"
        )
    every = _with_every_feature(model, transcoders)
    ablation = workload.ablation
    if ablation.kind in ("mean", "mean-positional", "optimal"):  # of other features; constants are learned for a graph
        kind = "mean" if ablation.kind == "optimal" else ablation.kind
        ablation = prepare_ablation(every, kind, workload.batches)
    sums: dict[int, Tensor] = {}
    with tqdm(total=workload.pair_count, desc="features", unit="pair", delay=1, leave=False) as bar:
        for batch in workload.batches:
            for layer, found in _attributions(every, batch, workload.metric, points, ablation):
                sums[layer] = sums.get(layer, torch.zeros_like(found)) + found / workload.pair_count
            bar.update(len(batch))
    return _strongest(sums, count)


def _with_every_feature(model: ComponentModel, transcoders: TranscoderSet) -> ComponentModel:
    """The model with values for all features of all dictionaries; its graph has none of them."""
    batchtopk = any(transcoder.activation.kind == "batchtopk" for transcoder in transcoders)
    every = ComponentModel(
        model.hf,
        model.tokenizer,
        kv_heads=model.kv_heads,
        name=model.name,
        share_prefix=model.share_prefix and not batchtopk,
    )
    every.features = {
        layer: feature_layer(every.blocks, transcoders, layer, None, every.dtype) for layer in transcoders.by_layer
    }
    return every


def _strongest(sums: Mapping[int, Float[Tensor, " feature"]], count: int) -> FeatureChoice:
    layers = list(sums)
    values = torch.cat([sums[layer] for layer in layers])
    starts = torch.tensor([0, *(len(sums[layer]) for layer in layers)]).cumsum(0)
    live, total = int((values != 0).sum()), float(values.abs().sum())
    if not live or not bool(torch.isfinite(values).all()):
        what = "no feature of the dictionaries differs" if not live else "the attributions of features are not finite"
        raise NoFeatures(f"{what} between clean and ablated runs of this task; check the transcoders and the prompts")
    order = values.abs().argsort(descending=True, stable=True)[: min(count, live)]
    chosen: dict[NodeId, float] = {}
    for place in order.tolist():
        which = int(torch.searchsorted(starts, place, right=True)) - 1
        chosen[NodeId("feature", layers[which], place - int(starts[which]))] = float(values[place])
    return FeatureChoice(chosen, live, float(values[order].abs().sum()) / total)


def _attributions(
    model: ComponentModel,
    batch: Batch,
    metric: Metric,
    points: Sequence[Point],
    ablation: Ablation,
) -> list[tuple[int, Float[Tensor, " feature"]]]:
    """By layer every feature's attribution, summed over pairs; float64 on the CPU."""
    gradients: list[Tensor] = []

    def take(seen: Activations, value: Tensor, count: int) -> None:
        found = torch.autograd.grad(value, seen.mlp_out)
        new = [over_points(gradient, count).to(model.dtype) for gradient in found]
        gradients[:] = [old + more for old, more in zip(gradients, new, strict=True)] if gradients else new

    clean, baseline = model.differentiate(batch, metric, points, ablation, take)
    found = []
    with torch.no_grad():
        for index, layer in model.features.items():
            change = layer.recorded(model.blocks, clean) - baseline.features[index]
            toward = gradients[index].to(layer.decoder.device) @ layer.writers.t()
            found.append((index, (change * toward).sum((0, 1), dtype=torch.float64).cpu()))
    return found

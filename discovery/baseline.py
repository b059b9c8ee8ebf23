"""The residual stream made of ablated values alone: what a patched run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.ablation import Ablation, SourceMeans
from discovery.blocks import Block, Projected
from discovery.contraction import SourceDifferences, head_writers
from discovery.feature_layer import NO_FEATURES, FeatureLayers
from discovery.recording import Activations


@dataclass(eq=False)
class Baseline:
    """Ablated source values, and the residual stream that they and the constants make."""

    entry: Float[Tensor, "row pos d_model"]
    """Ablated `input`."""
    heads: list[Float[Tensor, "row pos head d_head"]]
    """Per layer: ablated head mixes, scaled by the post-norm where there is one."""
    mlps: list[Float[Tensor, "row pos d_model"]]
    """Per layer: ablated MLP output (of the features and the error node together)."""
    attention_in: list[Float[Tensor, "row pos d_model"]]
    """Per layer: residual stream before the attention."""
    mlp_in: list[Float[Tensor, "row pos d_model"]]
    """Per layer: residual stream before the MLP."""
    final_in: Float[Tensor, "row pos d_model"]
    """Residual stream before the final norm."""
    still: bool
    """True when a node all of whose inputs are ablated puts out its ablated value (a run of the model on other prompts)."""
    features: dict[int, Float[Tensor, "row pos feature"]] = field(default_factory=dict)
    """Per layer with features: ablated activations, scaled by the post-norm where they go through one."""
    projected: dict[int, Projected] = field(default_factory=dict)
    """By layer: slot outputs at this stream; filled as needed unless recorded."""

    def slots(self, block: Block) -> Projected:
        """What a block's slots put out when nothing is kept."""
        if block.index not in self.projected:
            self.projected[block.index] = project_stream(block, self.attention_in[block.index])
        return self.projected[block.index]


def project_stream(block: Block, stream: Float[Tensor, "row pos d_model"]) -> Projected:
    """A block's slots (widened where ungrouped) from one residual stream, by the library's own modules."""
    normed = stream if block.attention_norm is None else block.attention_norm(stream)
    raw = [module(normed.to(module.weight.dtype)) for module in block.projections]  # type: ignore[union-attr,arg-type]
    projected = block.split(raw)
    return block.widen(projected) if block.ungrouped else projected


def scaled_mixes(blocks: Sequence[Block], seen: Activations, dtype: torch.dtype) -> list[Tensor]:
    """Per layer the heads' mixes of a recorded pass, times the post-norm's inverse scale in that pass."""
    return [
        scaled_mix(
            block,
            seen.mix[block.index].detach().to(dtype),
            None if block.post_attention_norm is None else seen.attention_sum[block.index].detach().to(dtype),
        )
        for block in blocks
    ]


def scaled_mix(
    block: Block, mix: Float[Tensor, "row pos mix"], total: Float[Tensor, "row pos d_model"] | None
) -> Float[Tensor, "row pos head d_head"]:
    """Heads' mixes, times the post-norm's inverse scale for `total`, the sum that it reads (None where there is none)."""
    if block.post_attention_norm is not None and total is not None:
        mix = mix * block.post_attention_norm.inverse_scale(total)
    return mix.unflatten(-1, (block.heads, block.d_head))


def recorded_baseline(
    blocks: Sequence[Block], seen: Activations, dtype: torch.dtype, features: FeatureLayers = NO_FEATURES
) -> Baseline:
    """The baseline of a counterfactual, resample or noise ablation: the recorded pass that gives the ablated values."""
    assert seen.entry is not None and seen.final_in is not None

    def plain(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.detach().to(dtype) for tensor in tensors]

    return Baseline(
        entry=seen.entry.detach().to(dtype),
        heads=scaled_mixes(blocks, seen, dtype),
        mlps=plain(seen.mlp_out),
        attention_in=plain(seen.attention_in),
        mlp_in=plain(seen.mlp_in),
        final_in=seen.final_in.detach().to(dtype),
        still=True,
        features={index: layer.recorded(blocks, seen) for index, layer in features.items()},
        projected={block.index: block.split([raw.detach() for raw in seen.raw[block.index]]) for block in blocks},
    )


def constant_baseline(
    blocks: Sequence[Block],
    ablation: Ablation,
    like: Float[Tensor, "row pos d_model"],
    positions: Int[Tensor, "row pos"],
    features: FeatureLayers = NO_FEATURES,
) -> Baseline:
    """The baseline of a zero, mean or optimal ablation: the same values for every prompt.

    Raises ValueError where the means were measured without these features.
    """
    means = ablation.means
    if means is not None and any(
        index not in means.features or means.features[index].shape[-1] != len(layer.chosen)
        for index, layer in features.items()
    ):
        raise ValueError(f"ablation {ablation.kind!r} was measured on a graph with other features")

    def spread(values: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if values is None:
            return like.new_zeros((*like.shape[:2], *shape), device=device)
        index = positions.to(values.device).clamp(max=values.shape[0] - 1)
        return values[index].to(device=device, dtype=like.dtype)

    d_model = like.shape[-1]
    stream = entry = spread(None if means is None else means.input, (d_model,), like.device)
    heads, mlps, attention_in, mlp_in = [], [], [], []
    for block in blocks:
        device = block.output_weight().device
        head = spread(None if means is None else means.heads[block.index], (block.heads, block.d_head), device)
        mlp = spread(None if means is None else means.mlps[block.index], (d_model,), device)
        stream = stream.to(device)
        written = torch.einsum("rphe,hed->rpd", head, head_writers(block, like.dtype))
        bias = block.output.bias
        after = stream + written if bias is None else stream + written + bias  # type: ignore[operator]
        attention_in.append(stream)
        mlp_in.append(stream if block.parallel else after)
        heads.append(head)
        mlps.append(mlp)
        stream = after + mlp
    fired = {
        index: spread(None if means is None else means.features[index], (len(layer.chosen),), layer.decoder.device)
        for index, layer in features.items()
    }
    return Baseline(entry, heads, mlps, attention_in, mlp_in, stream, still=False, features=fired)


def differences(
    blocks: Sequence[Block],
    clean: Activations,
    baseline: Baseline,
    dtype: torch.dtype,
    features: FeatureLayers = NO_FEATURES,
) -> SourceDifferences:
    """Clean less ablated value of every source."""
    assert clean.entry is not None
    mixes = scaled_mixes(blocks, clean, dtype)
    return SourceDifferences(
        entry=clean.entry.detach().to(dtype) - baseline.entry,
        heads=[mix - baseline.heads[i] for i, mix in enumerate(mixes)],
        mlps=[out.detach().to(dtype) - baseline.mlps[i] for i, out in enumerate(clean.mlp_out)],
        features={i: layer.recorded(blocks, clean) - baseline.features[i] for i, layer in features.items()},
    )


class RunningMeans:
    """Means of every source over recorded passes, one pass in memory at a time."""

    def __init__(
        self, blocks: Sequence[Block], positional: bool, dtype: torch.dtype, features: FeatureLayers = NO_FEATURES
    ) -> None:
        self._blocks = blocks
        self._features = features
        self._positional = positional
        self._dtype = dtype
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._count: Tensor | None = None

    def add(self, seen: Activations, mask: Bool[Tensor, "row pos"], positions: Int[Tensor, "row pos"]) -> None:
        """Count one recorded pass in, real tokens only."""
        assert seen.entry is not None
        fired = [layer.recorded(self._blocks, seen) for layer in self._features.values()]
        values = [seen.entry, *scaled_mixes(self._blocks, seen, self._dtype), *seen.mlp_out, *fired]
        index = (positions if self._positional else torch.zeros_like(positions))[mask]
        length = int(index.max()) + 1
        sums, squares = [], []
        for value in values:
            there = value[mask.to(value.device)].to(self._dtype)
            total = value.new_zeros((length, *value.shape[2:]), dtype=self._dtype)
            sums.append(total.index_add(0, index.to(value.device), there))
            squares.append(total.index_add(0, index.to(value.device), there.square()))
        count = torch.bincount(index, minlength=length).to(self._dtype)
        if self._count is not None:
            sums = [_add_longer(old, new) for old, new in zip(self._sums, sums, strict=True)]
            squares = [_add_longer(old, new) for old, new in zip(self._squares, squares, strict=True)]
            count = _add_longer(self._count, count)
        self._sums, self._squares, self._count = sums, squares, count

    def finish(self, rows: int | None = None) -> SourceMeans:
        """The means so far. rows: as many of them; those that no token belongs to take the mean over all tokens."""
        means = self._over_tokens(self._sums)
        if rows is None:
            return self._shaped(means)
        assert self._count is not None
        empty = torch.nn.functional.pad(self._count, (0, rows - len(self._count))) == 0
        filled = []
        for mean, total in zip(means, self._sums, strict=True):
            values = mean.new_zeros((rows, *mean.shape[1:]))
            values[: len(mean)] = mean
            values[empty.to(mean.device)] = total.sum(0) / self._count.sum().to(mean.device)
            filled.append(values)
        return self._shaped(filled)

    def spread(self) -> SourceMeans:
        """Standard deviations so far."""
        means, squares = self._over_tokens(self._sums), self._over_tokens(self._squares)
        pairs = zip(squares, means, strict=True)
        return self._shaped([(square - mean.square()).clamp(min=0).sqrt() for square, mean in pairs])

    def _over_tokens(self, sums: list[Tensor]) -> list[Tensor]:
        assert self._count is not None, "no pass was added"
        count = self._count.clamp(min=1)
        return [total / count.to(total.device).view(-1, *[1] * (total.ndim - 1)) for total in sums]

    def _shaped(self, values: list[Tensor]) -> SourceMeans:
        layers = len(self._blocks)
        heads, mlps, fired = values[1 : 1 + layers], values[1 + layers : 1 + 2 * layers], values[1 + 2 * layers :]
        return SourceMeans(values[0], tuple(heads), tuple(mlps), dict(zip(self._features, fired, strict=True)))


def _add_longer(a: Tensor, b: Tensor) -> Tensor:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer

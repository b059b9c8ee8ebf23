"""A run under masks in which features and an error node stand for MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.block_run import Recorded
from discovery.blocks import Block
from discovery.feature_layer import FeatureLayer, FeatureLayers
from discovery.patched_run import Observer, PatchedRun
from graphs.node import NodeId, Slot
from graphs.topology import Topology

# Two inputs that differ by no more than this many roundings of their largest number are the same input: a gate must not
# open for the feature's own node and stay closed in the error node, or all edges together were not the model.
_SAME = 64


@dataclass(eq=False)
class _Stage:
    """What one layer's slots read and what comes of it. Places count the layer's features, then the error node."""

    block: Block
    layer: FeatureLayer
    columns: range
    own: dict[int, Float[Tensor, "mask row pos d_model"]]
    """By place: the inputs of slots that have one of their own."""
    stream: Float[Tensor, "mask row pos d_model"] | None
    """What shared slots read; None where there are none."""

    @property
    def features(self) -> int:
        """Number of features; the error node's place."""
        return len(self.layer.chosen)


class FeatureRun(PatchedRun):
    """A `PatchedRun` on a graph where some layers' MLPs are features and an error node."""

    def __init__(
        self,
        blocks: Sequence[Block],
        topology: Topology,
        recorded: Recorded,
        keep: Float[Tensor, "mask src dst"],
        features: FeatureLayers,
        *,
        every_slot: bool = False,
        observe: Observer | None = None,
    ) -> None:
        self._features = features
        self._masks_given = keep
        assert recorded.clean.real is not None
        self._real: Bool[Tensor, "row pos"] = recorded.clean.real
        super().__init__(blocks, topology, recorded, keep, every_slot=every_slot, observe=observe)

    def _mlp_columns(self, block: Block) -> range:
        if block.index not in self._features:
            return super()._mlp_columns(block)
        stop = self._topology.target_index[Slot(NodeId("error", block.index))] + 1
        return range(stop - len(self._features[block.index].chosen) - 1, stop)

    def _sources(self, block: Block) -> range:
        """Rows of a layer's features and of its error node."""
        start = self._first_source(block) + block.heads
        return range(start, start + len(self._features[block.index].chosen) + 1)

    def _known_mlp(self, block: Block) -> dict[int, Tensor]:
        if block.index not in self._features:
            return super()._known_mlp(block)
        differences, layer = self._recorded.differences, self._features[block.index]
        return self._needed_values(
            self._sources(block), layer, differences.features[block.index], differences.mlps[block.index]
        )

    def _needed_values(
        self, sources: range, layer: FeatureLayer, fired: Float[Tensor, "*place feature"], whole: Tensor
    ) -> dict[int, Tensor]:
        """What the sources that a slot needs add to the stream. whole: of all sources together."""
        values: dict[int, Tensor] = {}
        if any(self._needed[source] for source in sources):
            written = layer.write(fired)
            values = {source: value for source, value in zip(sources, written) if self._needed[source]}
            if self._needed[sources[-1]]:
                values[sources[-1]] = whole - written.sum(0)
        return values

    def _run_mlp(self, block: Block, stream: Tensor | None, after: Tensor | None) -> Tensor | None:
        if block.index not in self._features:
            return super()._run_mlp(block, stream, after)
        sources = self._sources(block)
        wanted = any(self._needed[source] for source in sources)
        if not wanted and after is None:
            return None
        columns = list(self._mlp_columns(block))
        if bool(self._plan.silent[columns].all()):
            fired = self._spread(self._baseline.features[block.index])
            total = self._spread(self._baseline.mlps[block.index])
        else:
            fired, total = self._fire(self._read(block, stream))
        if wanted:
            index = block.index
            change = self._needed_values(
                sources,
                self._features[index],
                fired - self._baseline.features[index],
                total - self._baseline.mlps[index],
            )
            self._mixture.add_fresh(list(change), torch.stack([value.flatten(1) for value in change.values()]))
        return None if after is None else after.to(total.device) + total.flatten(0, 1)

    def _spread(self, values: Float[Tensor, "row pos *d"]) -> Float[Tensor, "mask row pos *d"]:
        return values.expand(self._masks, *values.shape)

    def _read(self, block: Block, stream: Tensor | None) -> _Stage:
        """The inputs of a layer's slots."""
        columns, plan = self._mlp_columns(block), self._plan
        own = [place for place, column in enumerate(columns) if not plan.shared[column] and not plan.silent[column]]
        inputs: dict[int, Tensor] = {}
        if own:
            base = self._baseline.mlp_in[block.index]
            first = self._alike(own, columns)
            different = sorted(set(first.values()))
            mixed = self._mixture.inputs([columns[place] for place in different], base, stream)
            if self._observe is not None:
                self._observe(f"layer {block.index} MLP", mixed)
            found = dict(zip(different, mixed.unbind(1), strict=True))
            inputs = {place: found[first[place]] for place in own}
        shared = bool(plan.shared[list(columns)].any())
        whole = stream.unflatten(0, (self._masks, self._rows)) if shared and stream is not None else None
        return _Stage(block, self._features[block.index], columns, inputs, whole)

    def _alike(self, own: Sequence[int], columns: range) -> dict[int, int]:
        """For every place with an input of its own the first place that reads the same mixture in every mask."""
        if self._own_inputs:
            return {place: place for place in own}
        places = [columns[place] for place in own]
        kept = torch.where(self._plan.used[:, places], self._masks_given[:, :, places].cpu(), torch.nan)
        firsts: dict[bytes, int] = {}
        keys = [
            bytes([int(self._plan.subtract[column])]) + kept[:, :, i].contiguous().numpy().tobytes()
            for i, column in enumerate(places)
        ]
        return {place: firsts.setdefault(key, place) for place, key in zip(own, keys, strict=True)}

    def _fire(
        self, stage: _Stage
    ) -> tuple[Float[Tensor, "mask row pos feature"], Float[Tensor, "mask row pos d_model"]]:
        """Activations (scaled by the post-norm where they go through one), and what all nodes add to the stream."""
        layer, plan, error = stage.layer, self._plan, stage.columns[-1]
        shared = None
        if stage.stream is not None:
            shared = layer.activations(layer.site(stage.stream), self._real)
        fired = self._merge(stage, shared)
        if bool(plan.shared[list(stage.columns)].all()):
            assert stage.stream is not None
            whole = layer.output(stage.stream)
        else:
            if plan.silent[error]:
                rest = self._spread(self._silent_error(stage))
            else:
                inputs = stage.stream if plan.shared[error] else stage.own[stage.features]
                assert inputs is not None
                known = shared if plan.shared[error] else None
                rest = layer.output(inputs) - self._in_error(stage, inputs, fired, known) @ layer.decoder
            whole = rest + fired @ layer.decoder
        if not layer.normed:
            return fired, whole
        norm = layer.block.post_mlp_norm
        assert norm is not None
        return fired * layer.scale(whole), norm(whole).to(whole.dtype)

    def _merge(self, stage: _Stage, shared: Tensor | None) -> Float[Tensor, "mask row pos feature"]:
        """Every feature's activation at what its slot reads."""
        plan, own = self._plan, self._own_activations(stage)
        silent = None
        columns = []
        for place in range(stage.features):
            if place in own:
                columns.append(own[place])
            elif plan.shared[stage.columns[place]]:
                assert shared is not None
                columns.append(shared[..., place])
            else:
                silent = self._spread(self._silent_activations(stage)) if silent is None else silent
                columns.append(silent[..., place])
        return (
            torch.stack(columns, -1)
            if columns
            else stage.layer.decoder.new_zeros((self._masks, self._rows, self._width, 0))
        )

    def _own_activations(self, stage: _Stage) -> dict[int, Float[Tensor, "mask row pos"]]:
        """By place, the activations of features that have an input of their own; equal inputs are looked at once."""
        layer, by_input = stage.layer, {}
        for place in stage.own:
            by_input.setdefault(id(stage.own[place]), []).append(place)
        found: dict[int, Tensor] = {}
        alone: list[int] = []
        for places in by_input.values():
            features = [place for place in places if place < stage.features]
            if len(features) > 1:
                fired = layer.activations(layer.site(stage.own[features[0]]), self._real)
                found |= {place: fired[..., place] for place in features}
            else:
                alone += features
        if alone:
            inputs = torch.stack([stage.own[place] for place in alone], 1)
            fired = layer.own_activations(layer.site(inputs), alone, self._real)
            found |= dict(zip(alone, fired.unbind(-1), strict=True))
        return found

    def _silent_activations(self, stage: _Stage) -> Float[Tensor, "row pos feature"]:
        """The ablated run's activations, before any scaling."""
        index, layer = stage.block.index, stage.layer
        if not layer.normed:
            return self._baseline.features[index]
        return layer.activations(layer.site(self._baseline.mlp_in[index]), self._real)

    def _silent_error(self, stage: _Stage) -> Float[Tensor, "row pos d_model"]:
        """The ablated run's error, before any scaling."""
        index, layer = stage.block.index, stage.layer
        whole = layer.output(self._baseline.mlp_in[index]) if layer.normed else self._baseline.mlps[index]
        return whole - self._silent_activations(stage) @ layer.decoder

    def _in_error(
        self, stage: _Stage, inputs: Float[Tensor, "mask row pos d_model"], fired: Tensor, known: Tensor | None
    ) -> Float[Tensor, "mask row pos feature"]:
        """The activations that the error node takes off the MLP's output, at its own input.

        Where a feature's slot reads the same input, up to rounding, its activation is taken (see `_SAME`), with the
        error node's own gradient. known: the activations there, where they have been computed.
        """
        layer = stage.layer
        there = layer.activations(layer.site(inputs), self._real) if known is None else known
        if not layer.steps:
            return there
        size = inputs.detach().abs().amax(-1)
        same = []
        for place in range(stage.features):
            column = stage.columns[place]
            read = stage.own.get(
                place, stage.stream if self._plan.shared[column] else self._baseline.mlp_in[stage.block.index]
            )
            assert read is not None
            apart = (read.detach() - inputs.detach()).abs().amax(-1)
            alike = apart <= _SAME * torch.finfo(size.dtype).eps * size
            if layer.activation.kind == "batchtopk":  # the whole prompt decides
                alike = (alike | ~self._real.to(alike.device)).all(-1, keepdim=True).expand_as(alike)
            same.append(alike)
        if not same:
            return there
        agreed = torch.where(torch.stack(same, -1).to(there.device), fired, there)
        return there + (agreed - there).detach()

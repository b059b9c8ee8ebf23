"""The feature model: an untouched causal LM whose MLPs are seen as chosen features of transcoders and error nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.block_run import Recorded
from discovery.component_model import ComponentModel
from discovery.feature_layer import check_fit, feature_layer
from discovery.feature_run import FeatureRun
from discovery.patched_run import Observer
from discovery.transcoder import TranscoderSet
from graphs.topology import Topology, transformer_topology, without_heads


class FeatureModel(ComponentModel):
    """A component model in which chosen features `f{l}.{i}` and an error node `e{l}` stand for every MLP with a dictionary.

    Every feature has a slot of its own at the residual stream that the layer's MLP reads. What the chosen features leave of
    the MLP's output at the error node's own input is the error node's, so that all edges together are the untouched model.
    See `discovery.feature_layer.FeatureLayer` for the value of a node.

    Without heads, attention is no node but wiring. It stays live, in every run: it reads the stream of this run, in which a
    source counts as kept when any of its edges is kept, and what it writes reaches every slot. An edge between features
    is then their direct connection, and the connections through attention are cut only with the last edge of a source.
    With no edge kept the run is the corrupt one; under the zero and mean ablations it is what attention makes of ablated
    nodes. Dropping dead ends may move such a circuit's output, since attention no longer sees their sources.
    """

    def __init__(
        self,
        model: ComponentModel,
        transcoders: TranscoderSet,
        chosen: Mapping[int, Sequence[int]],
        heads: bool = True,
    ) -> None:
        """chosen: by layer the numbers of the features that are nodes. heads: whether attention heads are nodes.

        Layers that the set has a dictionary for but where nothing is chosen are one error node. Raises BadTranscoder
        naming what does not fit the model, and for layers in `chosen` without a dictionary.
        """
        batchtopk = any(transcoder.activation.kind == "batchtopk" for transcoder in transcoders)
        super().__init__(
            model.hf,
            model.tokenizer,
            kv_heads=model.kv_heads,
            name=model.name,
            # A batchtopk feature competes with all positions of its prompt: none of them may be left out.
            share_prefix=model.share_prefix and not batchtopk,
        )
        self.transcoders = transcoders
        self.heads = heads
        check_fit(self.blocks, transcoders, chosen)
        self.features = {
            layer: feature_layer(self.blocks, transcoders, layer, chosen.get(layer, ()), self.dtype)
            for layer in transcoders.by_layer
        }
        first = self.blocks[0]
        self._all: Topology = transformer_topology(
            len(self.blocks),
            first.heads,
            first.kv_slots,
            [block.parallel for block in self.blocks],
            {index: layer.chosen for index, layer in self.features.items()},
        )
        self.topology = self._all if heads else without_heads(self._all)
        self._rows = torch.tensor([self._all.source_index[node] for node in self.topology.sources])
        self._columns = torch.tensor([self._all.target_index[slot] for slot in self.topology.targets])

    @property
    def all_nodes(self) -> Topology:
        """The graph with its attention heads, whether they are nodes or not."""
        return self._all

    @property
    def chosen(self) -> dict[int, tuple[int, ...]]:
        """By layer the features that are nodes."""
        return {index: layer.chosen for index, layer in self.features.items()}

    def _patched_run(self, recorded: Recorded, masks: Tensor, every_slot: bool, observe: Observer | None) -> FeatureRun:
        return FeatureRun(
            self.blocks, self._all, recorded, masks, self.features, every_slot=every_slot, observe=observe
        )

    def _all_edges(self, masks: Float[Tensor, "mask src dst"]) -> Float[Tensor, "mask all_src all_dst"]:
        if self.heads:
            return masks
        possible = torch.from_numpy(self.topology.possible).to(masks.device)
        # 1 - the product of what is dropped: 1 with any edge kept, 0 with none, and smooth in between.
        any_kept = 1 - torch.where(possible, 1 - masks, torch.ones((), dtype=masks.dtype, device=masks.device)).prod(-1)
        rows, columns = self._rows.to(masks.device), self._columns.to(masks.device)
        of_sources = any_kept.unsqueeze(-1).expand(-1, -1, len(self._all.targets)).index_copy(2, columns, masks)
        wiring = masks.new_ones((masks.shape[0], *self._all.possible.shape))
        return wiring.index_copy(1, rows, of_sources)

    def _shown(self, scores: Float[Tensor, "pair all_src all_dst"]) -> Float[Tensor, "pair src dst"]:
        if self.heads:
            return scores
        return scores[:, self._rows.to(scores.device)][:, :, self._columns.to(scores.device)]

    def _shown_nodes(self, sources: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        if self.heads:
            return sources, slots
        return sources[:, self._rows.to(sources.device)], slots[:, self._columns.to(slots.device)]

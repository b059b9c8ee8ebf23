"""What nodes do at each token of a recorded pass, as one number each: activations of features, norms of what heads and MLPs
write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.baseline import scaled_mix
from discovery.blocks import Block
from discovery.component_model import ComponentModel
from discovery.contraction import head_writers
from discovery.edited_features import activations
from discovery.recording import Activations
from discovery.sites import at_site
from discovery.transcoder import BadTranscoder, Site, Transcoder, TranscoderSet
from graphs.node import NodeId


class Meter(Protocol):
    """Nodes of one kind and layer, measured together."""

    nodes: tuple[NodeId, ...]
    """The nodes, without positions."""

    def measure(self, seen: Activations, first: int, real: Bool[Tensor, "row pos"]) -> Float[Tensor, "row pos node"]:
        """One number for each node and token, from position `first` on (so does `real`); 0 where inactive and at padding."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureMeter:
    """Features of one dictionary."""

    nodes: tuple[NodeId, ...]
    """See `Meter`."""
    transcoder: Transcoder
    """The dictionary; of those whose features do not compete, only the chosen ones."""
    chosen: tuple[int, ...] | None
    """Which of its features are meant; None for all, in order."""
    reads: Site
    """Where it reads."""
    blocks: tuple[Block, ...]
    """The model's."""

    @staticmethod
    def of(model: ComponentModel, transcoders: TranscoderSet, layer: int, features: Sequence[int]) -> FeatureMeter:
        """The meter of some features of a layer. Raises BadTranscoder where there are none of these numbers."""
        whole = transcoders.by_layer.get(layer)
        if whole is None or not 0 <= max(features) < whole.features:
            raise BadTranscoder(f"{transcoders.name or 'transcoders'}: there is no feature f{layer}.{max(features)}")
        nodes, chosen = tuple(NodeId("feature", layer, index) for index in features), tuple(features)
        if chosen == tuple(range(whole.features)):
            return FeatureMeter(nodes, whole, None, transcoders.reads, model.blocks)
        if whole.activation.kind not in ("relu", "jumprelu"):
            return FeatureMeter(nodes, whole, chosen, transcoders.reads, model.blocks)
        rows, own = list(chosen), whole.activation
        kept = own if own.threshold is None else replace(own, threshold=own.threshold[rows])
        part = replace(
            whole,
            encoder=whole.encoder[rows],
            encoder_bias=whole.encoder_bias[rows],
            decoders={target: decoder[rows] for target, decoder in whole.decoders.items()},
            activation=kept,
        )
        return FeatureMeter(nodes, part, None, transcoders.reads, model.blocks)

    def measure(self, seen: Activations, first: int, real: Bool[Tensor, "row pos"]) -> Float[Tensor, "row pos node"]:
        """Activations."""
        x = at_site(self.blocks, seen, self.nodes[0].layer or 0, self.reads)[:, first:].float()
        found = activations(self.transcoder, x, real)
        found = found if self.chosen is None else found[..., list(self.chosen)]
        found[~real] = 0
        return found


@dataclass(frozen=True, eq=False)
class WriteMeter:
    """Heads, or the MLP, of one layer. They write something everywhere: they count as active where the norm of it is large."""

    nodes: tuple[NodeId, ...]
    """See `Meter`."""
    block: Block
    """Their layer."""
    thresholds: Float[Tensor, " node"]
    """Norms above which a node counts as active."""
    dtype: torch.dtype = torch.float32
    """What is computed in."""

    def written(self, seen: Activations, first: int) -> Float[Tensor, "row pos node d_own"]:
        """What the nodes write: a head's mix (scaled by a norm behind the attention), the MLP's own output."""
        if self.nodes[0].kind == "mlp":
            return seen.mlp_out[self.block.index][:, first:, None].to(self.dtype)
        layer = self.block.index
        total = seen.attention_sum[layer].to(self.dtype) if self.block.post_attention_norm is not None else None
        mixes = scaled_mix(self.block, seen.mix[layer].to(self.dtype), total)
        return mixes[:, first:, [node.index or 0 for node in self.nodes]]

    def to_stream(self, own: Float[Tensor, "node d_own"]) -> Float[Tensor, "node d_model"]:
        """Directions in the residual stream of what `written` gives."""
        return own if self.nodes[0].kind == "mlp" else torch.einsum("nd,ndm->nm", own, self.writers())

    def norms(self, seen: Activations, first: int) -> Float[Tensor, "row pos node"]:
        """Length of what each node adds to the residual stream."""
        own = self.written(seen, first)
        if self.nodes[0].kind == "mlp":
            return own.norm(dim=-1)
        writers = self.writers()
        gram = torch.einsum("ndm,nem->nde", writers, writers)
        return torch.einsum("rpnd,nde,rpne->rpn", own, gram, own).clamp(min=0).sqrt()

    def measure(self, seen: Activations, first: int, real: Bool[Tensor, "row pos"]) -> Float[Tensor, "row pos node"]:
        """Norms; 0 below the thresholds."""
        norms = self.norms(seen, first)
        return torch.where((norms > self.thresholds.to(norms)) & real[..., None], norms, 0).float()

    def writers(self) -> Float[Tensor, "node d_own d_model"]:
        """Of heads: what turns `written` into what is added to the residual stream."""
        return head_writers(self.block, self.dtype)[[node.index or 0 for node in self.nodes]]


def meters_of(
    model: ComponentModel, transcoders: TranscoderSet | None, nodes: Sequence[NodeId]
) -> tuple[FeatureMeter | WriteMeter, ...]:
    """Meters of all features, heads and MLPs among the nodes, grouped by kind and layer; thresholds are not set yet.

    Raises BadTranscoder for features without their dictionary, ValueError for a head or layer that does not exist.
    """
    groups: dict[tuple[str, int], set[int]] = {}
    for node in nodes:
        if node.kind in ("feature", "head", "mlp"):
            assert node.layer is not None
            groups.setdefault((node.kind, node.layer), set()).add(node.index or 0)
    found: list[FeatureMeter | WriteMeter] = []
    for (kind, layer), numbers in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        if kind == "feature":
            if transcoders is None:
                raise BadTranscoder(f"f{layer}.{min(numbers)}: evidence of features needs transcoders")
            found.append(FeatureMeter.of(model, transcoders, layer, sorted(numbers)))
            continue
        if layer >= len(model.blocks) or (kind == "head" and max(numbers) >= model.blocks[layer].heads):
            raise ValueError(f"the model has no {kind} {max(numbers)} in layer {layer}")
        nodes_here = (
            (NodeId("mlp", layer),) if kind == "mlp" else tuple(NodeId("head", layer, i) for i in sorted(numbers))
        )
        found.append(WriteMeter(nodes_here, model.blocks[layer], torch.zeros(len(nodes_here)), model.dtype))
    return tuple(found)

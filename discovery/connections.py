"""Input-independent connections of a feature, from weights alone (Dunefsky et al. 2024, transcoders): which features of other
layers it reads and feeds, directly and through heads, which tokens excite it and which it promotes.

Norms enter by their weights and centring. Their scales depend on the prompt and are left out, attention patterns likewise:
what a prompt's attribution graph holds is the connection times the source's activation, these scales, and the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.component_model import ComponentModel
from discovery.folded_weights import CHUNK, FoldedWeights
from discovery.replacement import check_fit
from discovery.transcoder import BadTranscoder, Transcoder, TranscoderSet
from graphs.node import NodeId


@dataclass(frozen=True)
class Connection:
    """Another feature that a feature reads or feeds."""

    feature: NodeId
    """The other feature."""
    via: NodeId | None
    """The head whose values carry it; None for the residual stream itself."""
    value: float
    """Product of the source's decoder row, through the head, with the target's encoder row."""
    deviation: float
    """The value over the root mean square of those of all features of that layer along the same way."""


@dataclass(frozen=True)
class TokenWeight:
    """A token that excites a feature, or that a feature promotes."""

    token: int
    """Vocabulary number."""
    text: str
    """Its text, the number where there is no tokenizer; hostile."""
    value: float
    """Product with the encoder row, or change of the demeaned logit for each unit of activation."""
    deviation: float
    """The value over the root mean square of those of all tokens."""


Entry = TypeVar("Entry", Connection, TokenWeight)


@dataclass(frozen=True)
class Ranked(Generic[Entry]):
    """The most positive and the most negative of many values."""

    up: tuple[Entry, ...]
    """Most positive first."""
    down: tuple[Entry, ...]
    """Most negative first."""


@dataclass(frozen=True)
class Connections:
    """What the weights say of one feature."""

    feature: NodeId
    """The feature, at no position."""
    reads: Ranked[Connection]
    """Features of earlier layers that excite or inhibit it."""
    reads_through_heads: Ranked[Connection]
    """The same from other positions, through one head each."""
    feeds: Ranked[Connection]
    """Features of later layers that it excites or inhibits."""
    feeds_through_heads: Ranked[Connection]
    """The same at later positions, through one head each."""
    excited_by: Ranked[TokenWeight]
    """Token embeddings that its encoder reads straight from the residual stream."""
    promotes: Ranked[TokenWeight]
    """Logits that its decoder changes straight through the unembedding."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, nodes by name."""

        def plain(entry: Connection | TokenWeight) -> dict[str, Any]:
            values = dict(vars(entry))
            return {key: str(value) if isinstance(value, NodeId) else value for key, value in values.items()}

        parts = {name: value for name, value in vars(self).items() if name != "feature"}
        return {"feature": str(self.feature)} | {
            name: {side: [plain(entry) for entry in getattr(ranked, side)] for side in ("up", "down")}
            for name, ranked in parts.items()
        }


def connections(model: ComponentModel, transcoders: TranscoderSet, feature: NodeId, top: int = 10) -> Connections:
    """What a feature is connected to. top: how many of each, upwards and downwards.

    Encoders and decoders are read in pieces, so that they may lie on disk. Raises BadTranscoder where the dictionaries do
    not stand for the model's MLPs, or have no such feature.
    """
    check_fit(model, transcoders)
    _check_feature(transcoders, feature)
    weights = FoldedWeights(model, transcoders)
    feature = feature.at(None)
    with torch.no_grad():
        read, written = weights.reads(feature), weights.writes(feature)
        sources, targets = _Sources(weights, feature, read), _Targets(weights, feature, written)
        return Connections(
            feature=feature,
            reads=sources.ranked(top, heads=False),
            reads_through_heads=sources.ranked(top, heads=True),
            feeds=targets.ranked(top, heads=False),
            feeds_through_heads=targets.ranked(top, heads=True),
            excited_by=_tokens(model, weights.embedded(read), top),
            promotes=_tokens(model, weights.unembedded(torch.stack(list(written.values())).sum(0)), top),
        )


def _check_feature(transcoders: TranscoderSet, feature: NodeId) -> None:
    if feature.kind != "feature" or feature.layer is None or feature.index is None:
        raise BadTranscoder(f"{feature} is not a feature (such as f2.31)")
    own = transcoders.by_layer.get(feature.layer)
    if own is None:
        raise BadTranscoder(
            f"{feature}: there is no dictionary for layer {feature.layer} in {transcoders.name or 'the transcoders'}"
        )
    if feature.index >= own.features:
        raise BadTranscoder(f"{feature}: the dictionary of layer {feature.layer} has {own.features:,} features")


def _tokens(model: ComponentModel, values: Float[Tensor, " vocab"], top: int) -> Ranked[TokenWeight]:
    """The tokens at both ends."""
    scale, tokenizer = float(values.square().mean().sqrt()) or 1.0, model.tokenizer

    def made(number: int) -> TokenWeight:
        text, value = str(number) if tokenizer is None else str(tokenizer.decode([number])), float(values[number])
        return TokenWeight(number, text, value, value / scale)

    ends = []
    for sign in (1, -1):
        best = (sign * values).topk(min(top, len(values)))
        ends.append(tuple(map(made, best.indices[best.values > 0].tolist())))
    return Ranked(*ends)


@dataclass(eq=False)
class _Ends:
    """Keeps the largest and smallest of many products, and how large those of each layer and way are."""

    top: int
    found: list[tuple[float, int, int, int]] = field(default_factory=list)
    squares: dict[tuple[int, int], float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, layer: int, first: int, products: Float[Tensor, "feature way"], ways: Sequence[int]) -> None:
        """Products of some features of a layer, from number `first` on, along some ways."""
        flat = products.flatten()
        for sign in (1, -1):
            best = (sign * flat).topk(min(self.top, len(flat)))
            places = best.indices[best.values > 0]
            for place, value in zip(places.tolist(), flat[places].tolist(), strict=True):
                row, column = divmod(place, len(ways))
                self.found.append((value, layer, first + row, ways[column]))
        for way, square in zip(ways, products.double().square().sum(0).tolist(), strict=True):
            self.squares[layer, way] = self.squares.get((layer, way), 0.0) + square
        self.counts[layer] = self.counts.get(layer, 0) + len(products)
        self.found = [entry for end in self._ends() for entry in end]

    def _ends(self) -> tuple[list[tuple[float, int, int, int]], list[tuple[float, int, int, int]]]:
        ordered = sorted(set(self.found), key=lambda entry: (-entry[0], *entry[1:]))
        up = [entry for entry in ordered if entry[0] > 0][: self.top]
        return up, [entry for entry in reversed(ordered) if entry[0] < 0][: self.top]

    def ranked(self, way_name: Callable[[int], NodeId | None]) -> Ranked[Connection]:
        """What has been kept."""

        def made(entry: tuple[float, int, int, int]) -> Connection:
            value, layer, index, way = entry
            scale = (self.squares[layer, way] / self.counts[layer]) ** 0.5
            return Connection(NodeId("feature", layer, index), way_name(way), value, value / scale)

        return Ranked(*(tuple(map(made, end)) for end in self._ends()))


class _Ways:
    """The residual stream (way -1), or all heads of the model, numbered layer by layer."""

    def __init__(self, weights: FoldedWeights, feature: NodeId) -> None:
        assert feature.layer is not None
        self.weights, self.layer, self.blocks = weights, feature.layer, weights.blocks
        self.heads = weights.blocks[0].heads

    def way_name(self, way: int) -> NodeId | None:
        return None if way < 0 else NodeId("head", way // self.heads, way % self.heads)

    def before_mlp(self, head_layer: int, layer: int) -> bool:
        """Whether what heads of a layer write reaches another's (or the same layer's) MLP."""
        return head_layer < layer or (head_layer == layer and not self.blocks[layer].parallel)

    def products(self, heads: bool) -> Iterator[tuple[int, int, Tensor, Sequence[int]]]:
        """Pieces: layer, number of the first feature, products [feature way], the ways."""
        raise NotImplementedError

    def ranked(self, top: int, heads: bool) -> Ranked[Connection]:
        """The strongest connections of one kind."""
        ends = _Ends(top)
        pieces = self.products(heads)
        for piece in tqdm(pieces, desc="connections", unit="piece", delay=1, leave=False):
            ends.add(*piece)
        return ends.ranked(self.way_name)

    def pieces(self, transcoder: Transcoder) -> Iterator[slice]:
        """A dictionary's features, so many that their rows fit."""
        step = max(1, CHUNK // transcoder.encoder.shape[1])
        return (slice(start, start + step) for start in range(0, transcoder.features, step))


class _Targets(_Ways):
    """Features of later layers that a feature feeds."""

    def __init__(self, weights: FoldedWeights, feature: NodeId, written: dict[int, Tensor]) -> None:
        super().__init__(weights, feature)
        self.written = written

    def before(self, layer: int) -> Tensor | None:
        """What the feature has written before a layer's attention."""
        parts = [vector for own, vector in self.written.items() if own < layer]
        return sum(parts[1:], parts[0]) if parts else None

    def products(self, heads: bool) -> Iterator[tuple[int, int, Tensor, Sequence[int]]]:
        carried: dict[int, Tensor] = {}
        for layer, block in enumerate(self.blocks) if heads else ():
            vector = self.before(layer)
            if vector is not None:
                carried[layer] = self.weights.push_heads(block, vector)
        for transcoder in self.weights.transcoders:
            layer = transcoder.layer
            if heads:
                reaching = [own for own in carried if self.before_mlp(own, layer)]
                vectors = [carried[own] for own in reaching]
                ways = [own * self.heads + head for own in reaching for head in range(self.heads)]
            else:
                vector = self.before(layer)
                vectors, ways = ([] if vector is None else [vector[None]]), [-1]
            if not vectors:
                continue
            seen = self.weights.mlp_reads(layer, torch.cat(vectors)).t()
            for some in self.pieces(transcoder):
                yield layer, some.start, self.weights.place(transcoder.encoder[some]) @ seen, ways


class _Sources(_Ways):
    """Features of earlier layers that a feature reads."""

    def __init__(self, weights: FoldedWeights, feature: NodeId, read: Float[Tensor, " d_model"]) -> None:
        super().__init__(weights, feature)
        self.read = read

    def products(self, heads: bool) -> Iterator[tuple[int, int, Tensor, Sequence[int]]]:
        if heads:
            reached = [own for own in range(len(self.blocks)) if self.before_mlp(own, self.layer)]
            readers = [self.weights.pull_heads(self.blocks[own], self.read) for own in reached]
        else:
            reached, readers = [self.layer], [self.read[None]]
        count = len(readers[0]) if readers else 0
        for transcoder in self.weights.transcoders:
            # What is written at a layer is read by the heads behind it.
            first = {layer: sum(own <= layer for own in reached) for layer in transcoder.decoders}
            begin = min(first.values())
            if begin >= len(reached):
                continue
            ways = [own * self.heads + head for own in reached[begin:] for head in range(self.heads)] if heads else [-1]
            for some in self.pieces(transcoder):
                total: Tensor | None = None
                for layer, start in first.items():
                    if start < len(reached):
                        rows = self.weights.written(transcoder, layer, some)
                        total = rows.new_zeros((len(rows), len(ways))) if total is None else total
                        total[:, (start - begin) * count :] += rows @ torch.cat(readers[start:]).t()
                assert total is not None
                yield transcoder.layer, some.start, total, ways

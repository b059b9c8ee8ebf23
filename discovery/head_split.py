"""Which attention heads carry each direct effect: every edge of an attribution graph, split by what reads its source first.

A direct effect is a sum over paths. Each path either goes straight down the residual stream (`direct`), or the source is
read first by some head (`a{l}.h{h}`, which moves it to other positions) or by a layer's skip connection (`m{l}`):
effect = direct + heads + skips, exactly. Whatever comes after that first reading, later heads included, is in its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

from discovery.effect_rows import EffectRows, strongest
from discovery.replacement import LocalReplacement, Readouts
from discovery.source_columns import source_columns, source_positions, source_vectors
from discovery.targets import Target
from graphs.node import NodeId
from graphs.pruned import PrunedGraph

DIRECT, REST = "direct", "rest"
"""Names of the paths that no head and no skip connection reads, and of the small parts that are not listed."""
_BATCH_BYTES = 64 * 2**20  # of gradients, of parts, and of gathered head values, each
_TOLERANCE = 1e-4  # float32 rounding stays an order of magnitude below


class SplitFails(ValueError):
    """Parts that do not add up to the effects, or a graph of another prompt."""


@dataclass(frozen=True, eq=False)
class HeadSplits:
    """Direct effects and what they are made of, one row an edge."""

    parts: tuple[str, ...]
    """Names of the columns of `values`: by layer its heads, then its skip connection; last `direct`."""
    values: csr_array
    """[edge, part] float32: of each edge the strongest parts, which hold a stated share of the sum of absolute values."""
    rest: Float[np.ndarray, " edge"]
    """float32: sum of an edge's other parts."""
    flow: Float[np.ndarray, " part"]
    """float64: sum over all edges of the edge's weight times the part's absolute value, nothing left out."""
    error: float
    """Largest difference between an edge's parts and its effect, relative to the size of the parts and of the largest
    effect on the same readout."""

    def through(self) -> dict[int, dict[str, float]]:
        """By edge: part -> value, strongest first, and `rest` where something is left; sums to the edge."""
        found: dict[int, dict[str, float]] = {}
        ends, columns, values = self.values.indptr, self.values.indices, self.values.data
        for edge in range(len(self.rest)):
            own = slice(ends[edge], ends[edge + 1])
            pairs = sorted(
                zip(columns[own].tolist(), values[own].tolist(), strict=True), key=lambda pair: -abs(pair[1])
            )
            found[edge] = {self.parts[column]: value for column, value in pairs}
            if self.rest[edge]:
                found[edge][REST] = float(self.rest[edge])
        return found

    def head_flow(self) -> dict[NodeId, float]:
        """Heads that carry anything, with their flow, largest first."""
        pairs = [
            (NodeId.parse(name), float(flow))
            for name, flow in zip(self.parts, self.flow, strict=True)
            if name != DIRECT
        ]
        heads = [(node, flow) for node, flow in pairs if node.kind == "head" and flow > 0]
        return dict(sorted(heads, key=lambda pair: -pair[1]))


def split_graph(
    replacement: LocalReplacement, targets: Sequence[Target], graph: PrunedGraph, share: float = 0.95
) -> HeadSplits:
    """Splits every edge of a pruned graph of this replacement model. targets: what the graph was made for.

    `graphs.pruned.PrunedGraph.through` takes `HeadSplits.through()`. A part's flow is in the unit of the edges' scores: its
    share of the target's inputs times the target's influence. Raises SplitFails where graph and model differ.
    """
    rows = EffectRows(replacement, targets, 1.0)
    logits = {target.node: rows.logit_rows[i] for i, target in enumerate(t for t in targets if t.direction is not None)}
    read = np.unique(graph.edges[:, 1])
    strangers = [node for node in (graph.nodes[i] for i in read) if node.kind != "feature" and node not in logits]
    if strangers:
        raise SplitFails(f"{strangers[0]} has inputs in the graph, but is none of the targets that were given")
    number, columns = np.zeros((2, len(graph.nodes)), dtype=np.int64)
    ends = np.array([i for i in np.unique(graph.edges).tolist() if graph.nodes[i] not in logits], dtype=np.int64)
    # A feature's row has the number of its column.
    columns[ends] = number[ends] = source_columns(replacement, [graph.nodes[i] for i in ends]).cpu().numpy()
    for place in read:
        number[place] = logits.get(graph.nodes[place], number[place])
    numbers = np.unique(number[read])
    readouts, order = rows.readouts(numbers)
    row = order.cpu().numpy()[np.searchsorted(numbers, number[graph.edges[:, 1]])]
    size = np.abs(graph.weights.astype(np.float64))
    unit = np.divide(graph.edge_scores, size, out=np.zeros(len(size)), where=size > 0)
    found = split_by_head(replacement, readouts, row, columns[graph.edges[:, 0]], share=share, weights=unit)
    off = np.abs(found.values.sum(1) + found.rest - graph.weights)
    if len(off) and not off.max() <= 1e-3 * max(size.max(), 1e-6):
        worst = graph.edge_names[int(off.argmax())]
        raise SplitFails(
            f"{worst}: the graph says {graph.weights[off.argmax()]:.4g}; it is not of this model and prompt"
        )
    return found


def split_by_head(
    replacement: LocalReplacement,
    readouts: Readouts,
    rows: Int[np.ndarray, " edge"],
    columns: Int[np.ndarray, " edge"],
    *,
    share: float = 0.95,
    weights: Float[np.ndarray, " edge"] | None = None,
) -> HeadSplits:
    """Splits direct effects. rows: number of the readout of each edge; columns: its source (features, errors, tokens).

    readouts: deepest first, each for itself. share: of an edge's absolute sum that is listed part by part. weights: of each
    edge in `flow`; 1 where there are none. Raises SplitFails where the parts do not add up to `direct_effects`.
    """
    weights = np.ones(len(rows)) if weights is None else weights
    names = _part_names(replacement)
    flow, rest, error = np.zeros(len(names)), np.zeros(len(rows), dtype=np.float32), 0.0
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with tqdm(total=len(rows), desc="heads", unit="edge", delay=1, leave=False) as bar:
        for edges in _batches(replacement, readouts, rows, len(names)):
            parts, worst = _batch(replacement, readouts, rows[edges], columns[edges], len(names))
            chosen = strongest(parts, share)
            rest[edges] = np.where(chosen, 0, parts).sum(1, dtype=np.float64)
            flow += weights[edges] @ np.abs(parts, dtype=np.float64)
            row, column = chosen.nonzero()
            kept.append((edges[row], column, parts[row, column]))
            error = max(error, worst)
            bar.update(len(edges))
    if not error <= _TOLERANCE:
        raise SplitFails(f"heads, skips and direct paths miss the direct effects by {error:.1e} of their size")
    row, column, values = (
        np.concatenate(part) if kept else np.zeros(0) for part in (zip(*kept) if kept else ((),) * 3)
    )
    shape = (len(rows), len(names))
    matrix = csr_array((values.astype(np.float32), (row.astype(np.int64), column.astype(np.int64))), shape=shape)
    return HeadSplits(names, matrix, rest, flow, error)


def _part_names(replacement: LocalReplacement) -> tuple[str, ...]:
    names: list[str] = []
    for block in replacement.model.blocks:
        names += [str(NodeId("head", block.index, head)) for head in range(block.heads)]
        names.append(str(NodeId("mlp", block.index)))
    return (*names, DIRECT)


def _batches(
    replacement: LocalReplacement, readouts: Readouts, rows: Int[np.ndarray, " edge"], parts: int
) -> Iterator[Int[np.ndarray, " edge"]]:
    """Edges that are computed together: those of some readouts, which ascend in position so that batches stay narrow."""
    position, d_model = readouts.position.cpu().numpy(), replacement.frozen.embeddings.shape[1]
    edges = np.lexsort((rows, position[rows]))
    start = 0
    while start < len(edges):
        wide = np.diff(rows[edges[start:]], prepend=-1).astype(bool).cumsum() * (position[rows[edges[start:]]] + 1)
        numbers = np.maximum(wide * d_model, np.arange(1, len(wide) + 1) * parts)
        size = max(1, int(np.searchsorted(numbers, _BATCH_BYTES // 4, side="right")))
        yield edges[start : start + size]
        start += size


def _batch(
    replacement: LocalReplacement,
    readouts: Readouts,
    rows: Int[np.ndarray, " edge"],
    columns: Int[np.ndarray, " edge"],
    parts: int,
) -> tuple[Float[np.ndarray, "edge part"], float]:
    """All parts of some edges, and the largest relative difference of their sums to the direct effects."""
    device = readouts.depth.device
    numbers, row = np.unique(rows, return_inverse=True)
    some = torch.as_tensor(numbers, device=device)
    own = Readouts(readouts.depth[some], readouts.position[some], readouts.vectors[some])
    row, column = torch.as_tensor(row, device=device), torch.as_tensor(columns, device=device)
    with torch.no_grad():
        effects = replacement.direct_effects(own)
        wanted, largest = effects[column, row], effects.abs().amax(0)[row]
        del effects
        found = _Split(replacement, own, row, column, parts).run()
        size = (found.abs().sum(1) + largest).clamp(min=torch.finfo(found.dtype).tiny)
        error = float(((found.sum(1) - wanted).abs() / size).max())
    return found.float().cpu().numpy(), error


class _Split:
    """One batch of readouts, carried down the layers; at each layer every edge's source meets what each head reads."""

    def __init__(
        self,
        replacement: LocalReplacement,
        readouts: Readouts,
        row: Int[Tensor, " edge"],
        column: Int[Tensor, " edge"],
        parts: int,
    ) -> None:
        self._replacement, self._readouts = replacement, readouts
        self._sources, self._source = column.unique(return_inverse=True)
        self._row = row
        self._position = source_positions(replacement, self._sources)
        self._written = source_vectors(replacement, self._sources)
        width = int(readouts.position.max()) + 1
        self._gradient = readouts.vectors.new_zeros((len(readouts), width, readouts.vectors.shape[1]))
        self._parts = self._gradient.new_zeros((len(column), parts))
        self._depth = readouts.depth.tolist()
        self._active = 0
        self._heads = replacement.model.blocks[0].heads

    def _stream(self, layer: int) -> Float[Tensor, "source d_model"]:
        """What each source has written before a layer."""
        entry, by_layer = self._written
        stream = entry.clone()
        for which, vectors in by_layer[:layer]:
            stream.index_add_(0, which, vectors)
        return stream

    def _inject(self, depth: int) -> None:
        """Readouts of this depth begin; sources that they read themselves have a direct part."""
        end = self._active
        while end < len(self._depth) and self._depth[end] >= depth:
            end += 1
        if end == self._active:
            return
        new = torch.arange(self._active, end, device=self._row.device)
        self._gradient[new, self._readouts.position[new]] += self._readouts.vectors[new]
        at = self._position[self._source] == self._readouts.position[self._row]
        edges = ((self._row >= self._active) & (self._row < end) & at).nonzero().squeeze(1)
        stream = self._stream(depth // 2)[self._source[edges]]
        self._parts[edges, -1] = (stream * self._readouts.vectors[self._row[edges]]).sum(1)
        self._active = end

    def run(self) -> Float[Tensor, "edge part"]:
        """All parts."""
        replacement = self._replacement
        self._inject(2 * replacement.layers)
        for layer in reversed(range(replacement.layers)):
            parallel = replacement.model.blocks[layer].parallel
            skipped = self._pull_skip(layer) if self._active else None
            if skipped is not None and not parallel:
                self._gradient[: len(skipped)] += skipped
            self._inject(2 * layer + 1)
            if self._active:
                pulled = self._pull_heads(layer)
                if skipped is not None and parallel:
                    pulled[: len(skipped)] += skipped
                self._gradient[: self._active] += pulled
            self._inject(2 * layer)
        return self._parts

    def _edges(self) -> Int[Tensor, " live"]:
        """Edges whose readout has begun, and whose source stands within the batch's positions."""
        reached = self._position[self._source] < self._gradient.shape[1]
        return ((self._row < self._active) & reached).nonzero().squeeze(1)

    def _pull_skip(self, layer: int) -> Tensor | None:
        pulled = self._replacement.pull_skip(layer, self._gradient[: self._active])
        if pulled is not None:
            edges = self._edges()
            source = self._source[edges]
            there = pulled[self._row[edges], self._position[source]]
            place = (layer + 1) * (self._heads + 1) - 1
            self._parts[edges, place] = (there * self._stream(layer)[source]).sum(1)
        return pulled

    def _pull_heads(self, layer: int) -> Float[Tensor, "row pos d_model"]:
        """Notes every head's part, and gives what all heads read."""
        frozen = self._replacement.frozen.layers[layer]
        values = frozen.pull_to_values(self._gradient[: self._active])
        stream, edges = self._stream(layer), self._edges()
        if frozen.attention_scale is not None:
            stream = stream * frozen.attention_scale[self._position]
        slots, d_head, d_model = frozen.readers.shape
        reads = (stream @ frozen.readers.flatten(0, 1).t()).view(-1, slots, 1, d_head)
        grouped = values.unflatten(2, (slots, -1))
        first, step = layer * (self._heads + 1), max(1, _BATCH_BYTES // (4 * self._heads * d_head))
        for some in edges.split(step):
            source = self._source[some]
            met = (grouped[self._row[some], self._position[source]] * reads[source]).sum(-1)
            self._parts[some, first : first + self._heads] = met.flatten(1)
        rows, width = values.shape[:2]
        pulled = grouped.sum(3).view(rows * width, slots * d_head) @ frozen.readers.flatten(0, 1)
        pulled = pulled.view(rows, width, d_model)
        return pulled if frozen.attention_scale is None else pulled * frozen.attention_scale[:width]

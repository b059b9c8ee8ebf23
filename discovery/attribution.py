"""The attribution graph of one prompt: every direct effect between its features, errors, tokens and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from tqdm import tqdm

from discovery.effect_rows import EffectRows, SparseRows, influence_of_features
from discovery.replacement import LocalReplacement
from discovery.targets import Target
from graphs.attribution import AttributionGraph
from graphs.node import NodeId

_SELECTION_ROUNDS = 8


def attribution_graph(
    replacement: LocalReplacement,
    targets: Sequence[Target],
    *,
    share: float = 0.999,
    max_features: int | None = None,
    bias_nodes: bool = False,
    tokens: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> AttributionGraph:
    """Every direct effect between features, errors, tokens and targets, of which each row stores a share.

    share: of a row's absolute sum that is stored, the strongest entries first; 1 stores all. max_features: with more active
    features than these, only those with the largest influence on the targets become nodes; effects of the others count in
    `rest` and `absolute`. bias_nodes: add the constants as nodes. tokens: the prompt's tokens as text.
    """
    if not targets:
        raise ValueError("an attribution graph needs at least one target")
    rows = EffectRows(replacement, targets, share, bias_nodes)
    features = len(replacement.features)
    numbers = _target_rows(replacement, targets, rows)
    weights = {number: target.weight for number, target in zip(numbers, targets, strict=True)}
    with tqdm(total=features + len(rows.logit_rows), desc="attribution", unit="row", delay=1, leave=False) as bar:
        if max_features is None or features <= max_features:
            chosen = np.arange(features)
            rows.compute(np.arange(features + len(rows.logit_rows)), bar)
        else:
            bar.total = max_features + len(rows.logit_rows)
            chosen = _most_influential(rows, weights, max_features, features, replacement.sources, bar)
    return _assemble(replacement, targets, numbers, rows, chosen, bias_nodes, tokens, {"keep": share, **(facts or {})})


def _target_rows(replacement: LocalReplacement, targets: Sequence[Target], rows: EffectRows) -> list[int]:
    found, logit = [], rows.logit_rows.start
    for target in targets:
        if target.direction is not None:
            found.append(logit)
            logit += 1
        else:
            found.append(feature_place(replacement, target.node))
    return found


def feature_place(replacement: LocalReplacement, node: NodeId) -> int:
    """Number of an active feature's row. Raises ValueError for a feature that is not active there."""
    features = replacement.features
    position = node.position
    if isinstance(position, int) and position < 0:
        position += replacement.width
    there = (features.layer == node.layer) & (features.position == position) & (features.index == node.index)
    if node.kind != "feature" or not isinstance(position, int) or not bool(there.any()):
        raise ValueError(f"{node} is not an active feature of this prompt at a position (such as f1.77@4)")
    return int(there.nonzero()[0, 0])


def _most_influential(
    rows: EffectRows, weights: Mapping[int, float], wanted: int, features: int, sources: int, bar: tqdm[Any]
) -> Int[np.ndarray, " chosen"]:
    """The features whose rows are worth having: rounds of computing rows and asking which others now matter most."""
    chosen = np.array(sorted(number for number in weights if number < features), dtype=np.int64)
    rows.compute(np.concatenate([chosen, np.array(rows.logit_rows, dtype=np.int64)]), bar)
    step = max(1, -(-wanted // _SELECTION_ROUNDS))
    while len(chosen) < wanted:
        influence = influence_of_features(rows.pieces, weights, features, sources)[:features]
        influence[chosen] = -1
        count = min(step, wanted - len(chosen))
        best = np.argpartition(-influence, count - 1)[:count]
        best = best[influence[best] > 0]
        if not len(best):
            break
        rows.compute(best, bar)
        chosen = np.concatenate([chosen, best])
    return np.sort(chosen)


def _assemble(
    replacement: LocalReplacement,
    targets: Sequence[Target],
    numbers: Sequence[int],
    rows: EffectRows,
    chosen: Int[np.ndarray, " chosen"],
    bias_nodes: bool,
    tokens: Sequence[str] | None,
    facts: Mapping[str, Any],
) -> AttributionGraph:
    features = replacement.features
    places = _places(replacement, chosen, bias_nodes)
    logit_nodes = tuple(target.node for target in targets if target.direction is not None)
    nodes = _source_nodes(replacement, chosen, bias_nodes) + logit_nodes
    size, first_logit = len(nodes), len(nodes) - len(logit_nodes)
    row_place = np.concatenate([places[: len(features)], first_logit + np.arange(len(logit_nodes))])
    absolute, rest = np.zeros(size), np.zeros(size)
    for piece in rows.pieces:
        absolute[row_place[piece.rows]] = piece.absolute
        rest[row_place[piece.rows]] = piece.rest
    weights = _join(rows.pieces, row_place, places, size, rest)
    activations = np.full(size, np.nan, dtype=np.float32)
    activations[: len(chosen)] = features.activation.cpu().numpy()[chosen]
    activations[first_logit:] = [target.value for target in targets if target.direction is not None]
    target_places = np.array([row_place[number] for number in numbers])
    ids = tuple(replacement.frozen.tokens.tolist())
    texts = {number: text for target in targets for number, text in target.texts.items()}
    return AttributionGraph(
        nodes=nodes,
        weights=weights,
        absolute=absolute,
        rest=rest,
        activations=activations,
        targets=target_places,
        target_weights=np.array([target.weight for target in targets]),
        token_ids=ids,
        tokens=tuple(map(str, ids)) if tokens is None else tuple(tokens),
        texts=texts,
        facts=facts,
    )


def _places(replacement: LocalReplacement, chosen: np.ndarray, bias_nodes: bool) -> Int[np.ndarray, " column"]:
    """Column of the local replacement model (and of `own` behind them) -> place among the nodes; -1 for what is no node."""
    places = np.full(replacement.columns + 1, -1, dtype=np.int64)
    places[chosen] = np.arange(len(chosen))
    first, end = len(replacement.features), replacement.columns + 1 if bias_nodes else replacement.sources
    places[first:end] = np.arange(len(chosen), len(chosen) + end - first)
    return places


def _source_nodes(replacement: LocalReplacement, chosen: np.ndarray, bias_nodes: bool) -> tuple[NodeId, ...]:
    features, width = replacement.features, replacement.width
    where = torch.as_tensor(chosen, device=features.layer.device)
    columns = (part[where].tolist() for part in (features.layer, features.index, features.position))
    nodes = [NodeId("feature", layer, index, position) for layer, index, position in zip(*columns, strict=True)]
    everywhere = [(layer, position) for layer in range(replacement.layers) for position in range(width)]
    nodes += [NodeId("error", layer, None, position) for layer, position in everywhere]
    ids = replacement.frozen.tokens.tolist()
    nodes += [NodeId("token", None, token, position) for position, token in enumerate(ids)]
    if bias_nodes:
        nodes += [NodeId("bias", layer, None, position) for layer, position in everywhere]
        if replacement.frozen.positional is not None:
            nodes += [NodeId("positional", None, None, position) for position in range(width)]
        nodes.append(NodeId("own"))
    return tuple(nodes)


def _join(
    pieces: list[SparseRows],
    row_place: Int[np.ndarray, " row"],
    places: Int[np.ndarray, " column"],
    size: int,
    rest: Float[np.ndarray, " node"],
) -> csr_array:
    """One matrix from all pieces, which are given up on the way. Entries of columns that are no nodes go to `rest`."""
    if (places[: len(row_place)] < 0).any():
        pieces[:] = [_without_strangers(piece, row_place, places, rest) for piece in pieces]
    lengths = np.zeros(size + 1, dtype=np.int64)
    for piece in pieces:
        lengths[row_place[piece.rows] + 1] = np.diff(piece.ends, prepend=0)
    starts = lengths.cumsum()
    kind = np.int32 if starts[-1] < 2**31 else np.int64
    columns, values = np.empty(starts[-1], dtype=kind), np.empty(starts[-1], dtype=np.float32)
    while pieces:
        piece = pieces.pop()
        begin = 0
        for row, end in zip(row_place[piece.rows].tolist(), piece.ends.tolist(), strict=True):
            start, stop = starts[row], starts[row] + end - begin
            columns[start:stop] = places[piece.columns[begin:end]]
            values[start:stop] = piece.values[begin:end]
            begin = end
    return csr_array((values, columns, starts.astype(kind)), shape=(size, size))


def _without_strangers(
    piece: SparseRows, row_place: np.ndarray, places: np.ndarray, rest: Float[np.ndarray, " node"]
) -> SparseRows:
    known = places[piece.columns] >= 0
    row = np.repeat(np.arange(len(piece.rows)), np.diff(piece.ends, prepend=0))
    lost = np.bincount(row[~known], weights=piece.values[~known], minlength=len(piece.rows))
    rest[row_place[piece.rows]] += lost
    ends = np.bincount(row[known], minlength=len(piece.rows)).cumsum()
    return SparseRows(piece.rows, ends, piece.columns[known], piece.values[known], piece.absolute, piece.rest)

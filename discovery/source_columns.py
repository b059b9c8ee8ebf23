"""The columns of a local replacement model: which node each stands for, where it is, and what it writes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.replacement import LocalReplacement
from discovery.source_writes import pick
from graphs.node import NodeId


def source_nodes(replacement: LocalReplacement, columns: Iterable[int]) -> tuple[NodeId, ...]:
    """The nodes of some columns; the one behind all constants is `own`, what a target adds to itself."""
    return tuple(_node(replacement, column) for column in columns)


def _node(replacement: LocalReplacement, column: int) -> NodeId:
    features, width = replacement.features, replacement.width
    if column < replacement.first_error:
        layer, index, position = (int(part[column]) for part in (features.layer, features.index, features.position))
        return NodeId("feature", layer, index, position)
    if column < replacement.first_token:
        layer, position = divmod(column - replacement.first_error, width)
        return NodeId("error", layer, None, position)
    if column < replacement.sources:
        position = column - replacement.first_token
        return NodeId("token", None, int(replacement.frozen.tokens[position]), position)
    if column < replacement.columns:
        layer, position = divmod(column - replacement.sources, width)
        constant = layer < replacement.layers
        return NodeId("bias", layer, None, position) if constant else NodeId("positional", position=position)
    return NodeId("own")


def source_columns(replacement: LocalReplacement, nodes: Iterable[NodeId]) -> Int[Tensor, " node"]:
    """The columns of features, errors and tokens at their positions. Raises ValueError naming one that is no source here."""
    features = replacement.features
    parts = (features.layer.tolist(), features.index.tolist(), features.position.tolist())
    active = {key: column for column, key in enumerate(zip(*parts, strict=True))}
    ids = replacement.frozen.tokens.tolist()
    found = []
    for node in nodes:
        column = None
        if isinstance(node.position, int) and 0 <= node.position < replacement.width:
            if node.kind == "feature":
                column = active.get((node.layer, node.index, node.position))
            elif node.kind == "error" and node.layer is not None and node.layer < replacement.layers:
                column = replacement.first_error + node.layer * replacement.width + node.position
            elif node.kind == "token" and ids[node.position] == node.index:
                column = replacement.first_token + node.position
        if column is None:
            raise ValueError(f"{node} is no active feature, error or token of this prompt")
        found.append(column)
    return torch.tensor(found, dtype=torch.long, device=features.layer.device)


def source_positions(replacement: LocalReplacement, columns: Int[Tensor, " source"]) -> Int[Tensor, " source"]:
    """Where features, errors and tokens stand in the prompt."""
    features = len(replacement.features)
    found = (columns - features) % replacement.width
    found[columns < features] = replacement.features.position[columns[columns < features]]
    return found


def source_vectors(
    replacement: LocalReplacement, columns: Int[Tensor, " source"]
) -> tuple[Float[Tensor, "source d_model"], list[tuple[Int[Tensor, " written"], Float[Tensor, "written d_model"]]]]:
    """What different features, errors and tokens put in the residual stream before block 0, and what they add to it at each
    layer: numbers of sources, and their vectors."""
    place = torch.full((replacement.columns,), -1, device=columns.device)
    place[columns] = torch.arange(len(columns), device=columns.device)
    entry = replacement.frozen.embeddings.new_zeros((len(columns), replacement.frozen.embeddings.shape[1]))
    tokens = (columns >= replacement.first_token) & (columns < replacement.sources)
    entry[tokens] = replacement.frozen.embeddings[columns[tokens] - replacement.first_token]
    by_layer = []
    for layouts in replacement.writes:
        found, vectors = pick(layouts, place >= 0)
        by_layer.append((place[found], vectors))
    return entry, by_layer

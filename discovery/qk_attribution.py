"""Why a head attends where it does: its score before the softmax as a sum over pairs of sources, query side and key side.

With attention patterns and all norm denominators frozen (conventions, section 6) the query and the key are linear in what
the sources of a local replacement model write, so that their product is bilinear: one term for each pair of sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.replacement import LocalReplacement, Readouts
from discovery.score_maps import Reader, ScoreMaps
from discovery.source_columns import source_nodes
from graphs.node import NodeId, Port

_BATCH_BYTES = 64 * 2**20
_BLOCK = 1 << 24  # pairs that are looked at in one go
# Largest difference of a side's sum to the library's own query or key, relative to the sum of absolute terms.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class QkFails(ValueError):
    """A score that cannot be attributed."""


@dataclass(frozen=True)
class PairTerm:
    """What two sources together add to a score."""

    query_source: NodeId
    """Read by the query."""
    key_source: NodeId
    """Read by the key."""
    value: float
    """Their term."""


@dataclass(frozen=True)
class SideTerm:
    """What one source on one side adds to a score, the other side as it is: the sum of its pairs."""

    source: NodeId
    """The source."""
    value: float
    """Its sum."""


@dataclass(frozen=True)
class QkAttribution:
    """One score of one head, taken apart. Sources are features, errors, tokens and constants (`b{l}`, `positional`, `own`)."""

    layer: int
    """Of the head."""
    head: int
    """Its number."""
    query: int
    """Position that attends."""
    key: int
    """Position that is attended to."""
    contrast: bool
    """Whether the score is compared with the mean score of the other keys, weighted by the attention pattern."""
    score: float
    """scale * query . key as the library computes them, before mask and soft cap; or its difference to that mean."""
    pattern: float
    """Attention probability of this key."""
    pairs: tuple[PairTerm, ...]
    """The strongest pairs, strongest first."""
    query_side: tuple[SideTerm, ...]
    """The strongest sources of the query."""
    key_side: tuple[SideTerm, ...]
    """The strongest sources of the key."""
    rest: float
    """Score less the listed pairs."""
    error: float
    """Difference between the sum of all pairs and the score."""

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, nodes by name."""
        numbers = {
            name: getattr(self, name) for name in ("query", "key", "contrast", "score", "pattern", "rest", "error")
        }
        sides = {
            name: [{"source": str(term.source), "value": term.value} for term in getattr(self, name)]
            for name in ("query_side", "key_side")
        }
        pairs = [{"query": str(p.query_source), "key": str(p.key_source), "value": p.value} for p in self.pairs]
        return {"head": str(NodeId("head", self.layer, self.head)), **numbers, "pairs": pairs, **sides}


def qk_attribution(
    replacement: LocalReplacement,
    layer: int,
    head: int,
    query: int,
    key: int,
    top: int = 20,
    *,
    contrast: bool = False,
    maps: ScoreMaps | None = None,
) -> QkAttribution:
    """Takes a head's score for one query and one key position apart; lists the `top` strongest pairs and sources.

    contrast: why here rather than elsewhere. The softmax sees differences of scores alone, so that what adds the same to
    all keys explains nothing; the score less the mean of the other keys', weighted by the attention pattern, leaves that
    out. (Times the probability of the other keys it is the score less the mean over all keys: the direction in which the
    logarithm of this key's probability grows.) maps: of this layer, where several scores are asked for.
    Raises QkFails for a head or position that does not exist.
    """
    _check(replacement, layer, head, query, key)
    if maps is None:
        maps = ScoreMaps(replacement.model, replacement.frozen, layer)
    pattern = replacement.frozen.layers[layer].pattern[head, query]
    at_query, at_key = torch.zeros_like(pattern), torch.zeros_like(pattern)
    at_query[query] = at_key[key] = 1
    if contrast:
        others = pattern * (1 - at_key)
        if not others.sum() > 0:
            raise QkFails(f"a{layer}.h{head} attends from {query} to {key} alone: there is nothing to compare it with")
        at_key = at_key - others / others.sum()
    with torch.no_grad():
        left = _side(replacement, maps, layer, head, "q", at_query) * maps.scale
        right = _side(replacement, maps, layer, head, "k", at_key)
        score = float(maps.scores(head, query).double() @ at_key.double())
        whole_left, whole_right = left.double().sum(0), right.double().sum(0)
        rows, columns, values = strongest_pairs(left, right, top)
        sides = (left @ whole_right.to(left), right @ whole_left.to(right))
    chosen = zip(source_nodes(replacement, rows.tolist()), source_nodes(replacement, columns.tolist()), values.tolist())
    pairs = tuple(PairTerm(*pair) for pair in chosen)
    return QkAttribution(
        layer=layer,
        head=head,
        query=query,
        key=key,
        contrast=contrast,
        score=score,
        pattern=float(pattern[key]),
        pairs=pairs,
        query_side=_listed(replacement, sides[0], top),
        key_side=_listed(replacement, sides[1], top),
        rest=score - sum(pair.value for pair in pairs),
        error=float(whole_left @ whole_right) - score,
    )


def _check(replacement: LocalReplacement, layer: int, head: int, query: int, key: int) -> None:
    if not 0 <= layer < replacement.layers or not 0 <= head < replacement.model.blocks[layer].heads:
        raise QkFails(f"a{layer}.h{head}: the model has no such head")
    if not 0 <= key <= query < replacement.width:
        raise QkFails(
            f"query {query}, key {key}: a head attends from a position of the prompt (0 to {replacement.width - 1}) to "
            "itself or an earlier one"
        )


def _side(
    replacement: LocalReplacement, maps: ScoreMaps, layer: int, head: int, port: Port, weights: Float[Tensor, " pos"]
) -> Float[Tensor, "source d_head"]:
    """What every source, constants and `own` included, adds to a weighted sum of queries or keys over positions."""
    reader, scale = maps.reader(port, head), replacement.frozen.layers[layer].attention_scale
    positions = weights.nonzero().squeeze(1)
    own = weights @ reader.own
    d_head, d_model = reader.weight.shape
    step = max(1, _BATCH_BYTES // (8 * d_model * (int(positions[-1]) + 1)))
    found: list[Tensor] = []
    for some in torch.arange(d_head, device=weights.device).split(step):
        readouts = _readouts(reader, some, weights, positions, scale, 2 * layer)
        found.append(torch.cat([replacement.direct_effects(readouts, constants=True), own[None, some]]))
    terms = torch.cat(found, 1)
    error = (terms.double().sum(0) - weights.double() @ reader.value.double()).abs().max()
    size = terms.abs().sum(0).max()
    if not error <= _TOLERANCE[replacement.model.hf.dtype] * size:
        raise QkFails(
            f"a{layer}.h{head}<{port}>: the sources add up to another vector than the model's own (off by "
            f"{float(error / size):.1e} of the terms' size)"
        )
    return terms


def _readouts(
    reader: Reader,
    rows: Int[Tensor, " row"],
    weights: Float[Tensor, " pos"],
    positions: Int[Tensor, " read"],
    scale: Float[Tensor, "pos 1"] | None,
    depth: int,
) -> Readouts:
    """Some coordinates of the weighted sum, each read at all positions that have a weight."""
    factor = weights[positions] if scale is None else weights[positions] * scale[positions, 0]
    slopes = reader.slopes[positions][:, rows].transpose(0, 1) * factor[:, None]
    vectors = (slopes @ reader.weight).flatten(0, 1)
    sums = torch.arange(len(rows), device=rows.device).repeat_interleave(len(positions))
    return Readouts(torch.full_like(sums, depth), positions.repeat(len(rows)), vectors, sums)


def strongest_pairs(
    left: Float[Tensor, "left d_head"], right: Float[Tensor, "right d_head"], count: int
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, " pair"]]:
    """The pairs of rows with the largest absolute products: places and products, largest first.

    Longest rows come first: once no product of lengths reaches the weakest pair found, no others need to be looked at.
    """
    lengths, order = left.norm(dim=1).sort(descending=True)
    reach, other = right.norm(dim=1).sort(descending=True)
    left, right = left[order], right[other]
    best = (order[:0], other[:0], left.new_zeros(0))
    start = 0
    while start < len(left) and count:
        least = float(best[2][-1].abs()) if len(best[2]) == count else 0.0
        far = int((lengths[start] * reach > least).sum())
        if not far:
            break
        stop = min(len(left), start + max(1, _BLOCK // far))
        if not start:
            stop = min(stop, max(1, count))  # a few long rows first: they say how far the others need to look
        products = left[start:stop] @ right[:far].t()
        flat = products.flatten()
        places = flat.abs().topk(min(count, len(flat))).indices
        rows, columns = order[start + places // far], other[places % far]
        values = torch.cat([best[2], flat[places]])
        strongest = values.abs().sort(descending=True, stable=True).indices[:count]
        best = (torch.cat([best[0], rows])[strongest], torch.cat([best[1], columns])[strongest], values[strongest])
        start = stop
    nonzero = best[2] != 0
    return best[0][nonzero], best[1][nonzero], best[2][nonzero]


def _listed(replacement: LocalReplacement, values: Float[Tensor, " source"], top: int) -> tuple[SideTerm, ...]:
    places = values.abs().topk(min(top, len(values))).indices
    places = places[values[places] != 0]
    nodes = source_nodes(replacement, places.tolist())
    return tuple(SideTerm(node, value) for node, value in zip(nodes, values[places].tolist(), strict=True))

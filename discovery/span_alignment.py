"""Prompts of a pair laid side by side, span by span: what in the corrupt prompt stands for each token of the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.baseline import Baseline
from discovery.span_tokens import Names


def span_names(rows: Sequence[Names]) -> Names:
    """All spans of some rows, once each."""
    return tuple(dict.fromkeys(name for row in rows for name in row))


def number_spans(rows: Sequence[Names], names: Names, width: int) -> Int[Tensor, "row pos"]:
    """The spans of left-padded rows as places among `names`, -1 at padding."""
    place = {name: number for number, name in enumerate(names)}
    return torch.tensor([[-1] * (width - len(row)) + [place[name] for name in row] for row in rows])


def align(clean: Names, corrupt: Names) -> Float[Tensor, "pos corrupt_pos"]:
    """For every token of the clean prompt the weights, which sum to 1, of the corrupt prompt's tokens.

    Spans of equal length are aligned token by token; others from their right ends, and the clean prompt's remaining tokens
    take the mean over the corrupt prompt's span. A span that the corrupt prompt lacks takes the mean over all its tokens.
    """
    weights = torch.zeros(len(clean), len(corrupt))
    for name in dict.fromkeys(clean):
        own = [place for place, span in enumerate(clean) if span == name]
        other = [place for place, span in enumerate(corrupt) if span == name]
        matched = min(len(own), len(other))
        if matched:
            weights[own[-matched:], other[-matched:]] = 1
        mean = other or list(range(len(corrupt)))
        for place in own[: len(own) - matched]:
            weights[place, mean] = 1 / len(mean)
    return weights


def align_rows(
    clean: Sequence[Names], corrupt: Sequence[Names], width: int, corrupt_width: int
) -> Float[Tensor, "row pos corrupt_pos"]:
    """The weights of left-padded rows; zero at padding."""
    weights = torch.zeros(len(clean), width, corrupt_width)
    for row, (own, other) in enumerate(zip(clean, corrupt, strict=True)):
        weights[row, width - len(own) :, corrupt_width - len(other) :] = align(own, other)
    return weights


def aligned_baseline(baseline: Baseline, weights: Float[Tensor, "row pos corrupt_pos"]) -> Baseline:
    """The recorded values of a run on corrupt prompts of other lengths, at the places of the clean prompts' tokens.

    Sources and streams are mixed alike, so that the streams are still what the sources and constants make. Keys and
    queries stand at the clean prompt's positions: a node all of whose inputs are ablated is not still.
    """

    def moved(values: Tensor) -> Tensor:
        return torch.einsum("rpc,rc...->rp...", weights.to(device=values.device, dtype=values.dtype), values)

    return replace(
        baseline,
        entry=moved(baseline.entry),
        heads=[moved(values) for values in baseline.heads],
        mlps=[moved(values) for values in baseline.mlps],
        attention_in=[moved(values) for values in baseline.attention_in],
        mlp_in=[moved(values) for values in baseline.mlp_in],
        final_in=moved(baseline.final_in),
        still=False,
        features={layer: moved(values) for layer, values in baseline.features.items()},
        projected={},
    )

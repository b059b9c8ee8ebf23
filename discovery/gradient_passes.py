"""Recorded passes with gradients, at points between the ablated and the clean value of the input or of a sublayer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from discovery.activations import Activations, Held
from discovery.baseline import recorded_baseline, scaled_mixes
from discovery.batch_state import BatchState
from discovery.contraction import head_writers
from discovery.memory import points_per_pass
from discovery.metrics import Metric
from discovery.model import Point, Sublayer
from discovery.rules import Rules

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel

# Several integration points share a gradient pass while it has at most this many tokens: short prompts leave the
# processor idle, and the pass's activations must fit.
_TOKENS_PER_PASS = 1024
_TOKENS_PER_PASS_ON_ACCELERATOR = 8192

Take = Callable[[Activations, Tensor, int], object]
"""Called with a recorded pass, the weighted sum over its pairs and points of the metric, to be differentiated, and how
many points' rows stand in the pass one after the other."""


class GradientPasses:
    """The passes over one batch, inside a session with gradients enabled."""

    def __init__(self, model: ComponentModel, state: BatchState, rules: Rules) -> None:
        self._model = model
        self._state = state
        self._rules = rules
        self.clean: Activations | None = None if state.recorded is None else state.recorded.clean

    def run(self, points: Sequence[Point], metric: Metric, reference: Tensor | None, take: Take) -> None:
        """Runs the model at every point. Afterwards `clean` is a recorded clean pass; the state may have its baseline."""
        model, state = self._model, self._state
        for group in self._groups(points):
            end = self._end(group[0])
            seen = self._pass(group, end)
            assert seen.logits is not None
            logits = seen.logits.to(model.dtype).unflatten(0, (len(group), -1))
            value = metric.compute(logits, state.batch, reference).sum(-1)
            weights = torch.tensor([point.weight for point in group], dtype=model.dtype)
            weights = weights.to(value.device, non_blocking=True)
            take(seen, (weights * value).sum(), len(group))
            if end == "clean":
                self.clean = seen
            elif end == "corrupt" and state.baseline is None:
                with torch.no_grad():
                    state.baseline = recorded_baseline(model.blocks, seen, model.dtype, model.features)
            seen.logits = None

    def _end(self, point: Point) -> Literal["clean", "corrupt"] | None:
        """Which of the model's own runs a point is, if one."""
        if point.at is not None:
            return None
        if point.alpha == 1:
            return "clean"
        swaps = self._state.ablation.swaps_prompts and self._state.batch.corrupt_mask is None
        return "corrupt" if point.alpha == 0 and swaps else None

    def _groups(self, points: Sequence[Point]) -> Iterator[list[Point]]:
        """Points that share a pass. The ends come first and alone: their passes also record the source values."""
        ends = [point for point in points if self._end(point)]
        between = [point for point in points if not self._end(point)]
        tokens = self._state.clean_sequences.tokens
        limit = _TOKENS_PER_PASS if self._model.device.type == "cpu" else _TOKENS_PER_PASS_ON_ACCELERATOR
        size = max(1, min(len(between), limit // tokens.numel()))
        if size > 1:
            size = points_per_pass(self._model, tokens.shape[0], tokens.shape[1], size)
        yield from ([point] for point in sorted(ends, key=lambda point: point.alpha))
        yield from (between[i : i + size] for i in range(0, len(between), size))

    def _pass(self, group: Sequence[Point], end: Literal["clean", "corrupt"] | None) -> Activations:
        """A recorded pass with gradients; the rows of a group's points stand one after the other."""
        state = self._state
        sequences = state.corrupt_sequences if end == "corrupt" else state.clean_sequences
        rows, columns = state.batch.read_row, state.batch.read_column - state.start
        entry, held = None, []
        if end is None:
            entry, held = self._between(group)
            offsets = torch.arange(len(group), device=rows.device) * sequences.tokens.shape[0]
            rows, columns = (offsets[:, None] + rows).flatten(), columns.repeat(len(group))
            sequences = sequences.repeat(len(group))
        return self._model.record(
            sequences,
            gradients=True,
            entry=entry,
            held=held,
            reads=(rows, columns),
            first_read=state.first_read,
            rules=self._rules,
        )

    def _between(self, group: Sequence[Point]) -> tuple[Tensor, list[Held]]:
        """The residual stream before block 0 and what is written in the place of sublayers, for points that are no ends."""
        model = self._model
        with torch.no_grad():
            if self.clean is None:
                self.clean = model.record(self._state.clean_sequences)
            assert self.clean.entry is not None
            start, end = model.baseline(self._state).entry, self.clean.entry.detach()
            count = end.shape[0]
            entries, held = [], []
            for place, point in enumerate(group):
                entries.append(end if point.at else point.alpha * end + (1 - point.alpha) * start)
                if point.at is not None:
                    written = self._written(point.at, point.alpha)
                    held.append(Held(point.at, slice(place * count, (place + 1) * count), written))
            return torch.cat(entries).to(end.dtype), held

    def _written(self, place: Sublayer, alpha: float) -> Tensor:
        """What a sublayer writes between its ablated and its clean value."""
        model, clean, baseline = self._model, self.clean, self._model.baseline(self._state)
        assert clean is not None
        if place.kind == "mlp":
            return alpha * clean.mlp_out[place.layer].detach() + (1 - alpha) * baseline.mlps[place.layer]
        block = model.blocks[place.layer]
        (mix,) = scaled_mixes([block], clean, model.dtype)
        mix = alpha * mix + (1 - alpha) * baseline.heads[place.layer]
        written = torch.einsum("rphe,hed->rpd", mix, head_writers(block, model.dtype))
        bias = block.output.bias
        return written if bias is None else written + bias  # type: ignore[operator]

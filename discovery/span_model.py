"""The component model with positions: every node once per span of the prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.baseline import differences
from discovery.batch import Batch
from discovery.batch_state import sum_rows
from discovery.block_run import Recorded
from discovery.component_model import ComponentModel
from discovery.information_flow import InformationFlow, mean_over_rows
from discovery.metrics import Metric
from discovery.model import Point
from discovery.node_effects import NO_FIXES, Fixes, NodeEffects
from discovery.node_gradients import node_effects
from discovery.patched_run import Observer
from discovery.recording import session
from discovery.rules import PLAIN, Rules
from discovery.span_gradients import SpanContraction, SpanGradients
from discovery.span_nodes import SpanNodePass, fixed_span_edges
from discovery.span_places import SpanPlaces, numbered
from discovery.span_run import SpanRun
from graphs.span_topology import Spans, span_topology
from graphs.topology import Topology


class SpanModel(ComponentModel):
    """A component model whose nodes are named at spans (`m0@name`, `a3.h1@end<v>`); see `graphs.span_topology`.

    Edges stay within a span, but for those into k and v slots, which cross: dropping `m0@name->a3.h1@end<v>` ablates m0's
    output at the tokens of `name` in the values that the head finds there when it looks from the tokens of `end`, and
    nowhere else. All edges of one between nodes together are that edge of the graph without spans.
    """

    def __init__(self, model: ComponentModel, spans: Spans) -> None:
        """spans: of all batches that will be looked at. Raises ValueError for a model with features."""
        if model.features:
            raise ValueError("spans do not go together with features as nodes: leave out --spans or --transcoders")
        super().__init__(
            model.hf, model.tokenizer, kv_heads=model.kv_heads, name=model.name, share_prefix=model.share_prefix
        )
        self.spans = spans
        self.base: Topology = self.topology
        self.topology = span_topology(self.base, spans)

    def linearize(
        self, batch: Batch, metric: Metric, points: Sequence[Point], ablation: Ablation, rules: Rules = PLAIN
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize`."""
        with session(self.hf, self.arch, self.blocks):
            self._prepare(batch, ablation)
        gradients = SpanGradients(self.blocks, self.dtype, self._places(), rules.norms)
        clean, baseline = self.differentiate(batch, metric, points, ablation, gradients.add, rules)
        with torch.no_grad():
            change = differences(self.blocks, clean, baseline, self.dtype)
            rows = SpanContraction(change, gradients).scores()
        return sum_rows(rows, batch).cpu()

    def linearize_nodes(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes = NO_FIXES, neurons: bool = False
    ) -> NodeEffects:
        """See `PatchableModel.linearize_nodes`; a q, k or v vector at a span is what the head finds when it looks from there.

        Neurons are no nodes of the graph: their effects are those at all positions.
        """
        reference = self.full_logits(batch).to(self.dtype) if metric.needs_reference else None
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            state = self._prepare(batch, ablation)
            run = SpanNodePass(self, state, metric, reference, neurons, self._places())
            return node_effects(self, batch, run, fixes)

    def linearize_fixed(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes
    ) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.linearize_fixed`."""
        reference = self.full_logits(batch).to(self.dtype) if metric.needs_reference else None
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            state = self._prepare(batch, ablation)
            places = self._places()
            run = SpanNodePass(self, state, metric, reference, False, places)
            return fixed_span_edges(self, batch, run, places, fixes).cpu()

    def flow(self, batch: Batch, tau: float) -> Float[Tensor, "pair src dst"]:
        """See `PatchableModel.flow`; shares of keys and values are apart for every span that looks."""
        spans = numbered(batch, self.spans.names)
        with session(self.hf, self.arch, self.blocks), torch.no_grad():
            rows = InformationFlow(self, batch, tau, spans, len(self.spans.names)).scores()
        return mean_over_rows(rows, batch).float()

    @property
    def graph_without_spans(self) -> Topology:
        """See `ComponentModel`."""
        return self.base

    def _patched_run(self, recorded: Recorded, masks: Tensor, every_slot: bool, observe: Observer | None) -> SpanRun:
        return SpanRun(
            *(self.blocks, self.base, recorded, masks, self._places(), self.topology),
            every_slot=every_slot,
            observe=observe,
        )

    def _places(self) -> SpanPlaces:
        """The spans of the columns that are run of the batch at hand."""
        state = self._state
        assert state is not None
        index = numbered(state.batch, self.spans.names)
        read = set(index[state.batch.read_row, state.batch.read_column].tolist())
        for span in sorted(read - set(np.flatnonzero(self.spans.read).tolist())):
            raise ValueError(f"logits are read at the span {self.spans.names[span]!r}, where the graph reads none")
        return SpanPlaces(self.spans, index[:, state.start :])

"""Path patching of one edge of a graph with spans, with ordinary forward hooks on an untouched model."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from discovery.batch import Batch
from discovery.span_model import SpanModel
from tests.discovery.plain_hooks import PlainHooks


class PlainSpanHooks(PlainHooks):
    """As `PlainHooks`, but a source is corrupt at one span's tokens only, and a k or v slot for one looking span only."""

    def __init__(self, model: SpanModel, batch: Batch) -> None:
        assert batch.spans is not None
        self.spans = batch.spans
        self.count = len(model.spans.names)
        super().__init__(model, batch)

    def logits_without(self, source: int, target: int) -> Tensor:
        row, source_span = divmod(source, self.count)
        slot = self.model.topology.targets[target]
        difference = (self.corrupt[row] - self.clean[row]) * (self.spans == source_span)[..., None]
        with contextlib.ExitStack() as stack, torch.no_grad():
            if slot.node.kind != "head":
                self._patch_whole(stack, slot, difference)
            else:
                assert slot.node.layer is not None
                output = self.model.blocks[slot.node.layer].output
                looking = (self.spans == target % self.count)[..., None]
                changed = self._mix_with(slot, difference, output)
                stack.callback(
                    output.register_forward_pre_hook(lambda _m, args: (torch.where(looking, changed, args[0]),)).remove
                )
            return self._call(self.batch.clean)

    def _mix_with(self, slot, difference: Tensor, output: torch.nn.Module) -> Tensor:
        """What the heads of a layer mix when a slot reads something else, whoever looks."""
        seen: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            self._patch_head(stack, slot, difference)
            self._watch(stack, output, "mix", seen, before=True)
            self._call(self.batch.clean)
        return seen["mix"]

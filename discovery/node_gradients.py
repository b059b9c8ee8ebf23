"""Gradients at what nodes write, at query, key and value vectors and at neurons: all of them in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.activations import Activations, LayerSwitch
from discovery.baseline import Baseline, differences, recorded_baseline
from discovery.batch import Batch
from discovery.batch_state import BatchState, sum_rows
from discovery.blocks import Block
from discovery.contraction import SourceDifferences, head_writers
from discovery.metrics import Metric
from discovery.node_effects import Fixes, NodeEffects
from discovery.saturation import Saturation
from graphs.node import PORTS

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel


class NodePass:
    """The clean pass with gradients, the ablated values, and what becomes of them. Made inside a session."""

    def __init__(
        self, model: ComponentModel, state: BatchState, metric: Metric, reference: Tensor | None, neurons: bool
    ) -> None:
        """Runs the clean and the ablated pass. Raises ValueError for neurons under an ablation by constants but zero."""
        if neurons and state.ablation.means is not None:
            raise ValueError(
                f"ablation {state.ablation.kind!r} has no values for single neurons: leave neurons out, or use "
                "counterfactual, resample, noise or zero"
            )
        if neurons and state.batch.alignment is not None:
            raise ValueError("neurons need clean and corrupt prompts of equal length: leave neurons out")
        self._model, self._state = model, state
        self.switch = LayerSwitch()
        reads = (state.batch.read_row, state.batch.read_column - state.start)
        with torch.enable_grad():
            self.seen: Activations = model.record(
                state.clean_sequences,
                gradients=True,
                reads=reads,
                first_read=state.first_read,
                outputs=True,
                neurons=neurons,
                switch=self.switch,
            )
            assert self.seen.logits is not None
            self.value = metric.compute(self.seen.logits.to(model.dtype), state.batch, reference).sum()
        ablated = self._ablated_pass(neurons)
        self.baseline: Baseline = model.baseline(state)
        self.differences: SourceDifferences = differences(
            model.blocks, self.seen, self.baseline, model.dtype, model.features
        )
        self._neurons = self._neuron_differences(ablated) if neurons else []
        self._slots = self._slot_differences()

    def _ablated_pass(self, neurons: bool) -> Activations | None:
        """The run that gives ablated values, where there is one and something of it is not known yet."""
        model, state = self._model, self._state
        if not state.ablation.still or state.batch.alignment is not None or not (neurons or state.baseline is None):
            return None
        ablated = model.ablated_pass(state, outputs=neurons, neurons=neurons)
        if state.baseline is None:
            state.baseline = recorded_baseline(model.blocks, ablated, model.dtype, model.features)
        return ablated

    def _neuron_differences(self, ablated: Activations | None) -> list[Tensor]:
        """Clean less ablated neurons [row pos neuron]; a zero ablation sets neurons to zero."""
        clean = [hidden.detach().to(self._model.dtype) for hidden in self.seen.hidden]
        if ablated is None:
            return clean
        return [here - there.to(here.dtype) for here, there in zip(clean, ablated.hidden, strict=True)]

    def _slot_differences(self) -> list[list[Tensor]]:
        """By layer and port, clean less ablated query, key and value vectors [row pos slot d_head]."""
        found = []
        for block in self._model.blocks:
            clean = block.split([raw.detach().to(self._model.dtype) for raw in self.seen.raw[block.index]])
            if self._state.ablation.kind == "zero":
                found.append(list(clean))
                continue
            ablated = self.baseline.slots(block)
            found.append([here - there.to(here) for here, there in zip(clean, ablated, strict=True)])
        return found

    def gradients(self, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Of the pairs' summed metric, with the switch as it stands. Keeps the graph for the next ones."""
        found = torch.autograd.grad(self.value, list(wanted), materialize_grads=True, retain_graph=True)
        return [gradient.to(self._model.dtype) for gradient in found]

    def effects(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(clean - ablated) . gradient: [row src], [row dst], [row layer neuron] (None where not asked for)."""
        seen, layers = self.seen, len(self._model.blocks)
        assert seen.entry is not None
        raw = [tensor for tensors in seen.raw for tensor in tensors]
        wanted = [seen.entry, *seen.attention_out, *seen.mlp_out, *raw, *(seen.hidden if self._neurons else [])]
        entry, *rest = self.gradients(wanted)
        attention, mlps, rest = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
        sources, slots, per_layer = [_along(self.differences.entry, entry)], [], len(raw) // layers
        for block in self._model.blocks:
            at_slots = block.split(rest[block.index * per_layer : (block.index + 1) * per_layer])
            for change, gradient in zip(self._slots[block.index], at_slots, strict=True):
                slots.append((change * gradient).sum((1, 3)))
            written = self._mlp_effects(block, mlps[block.index])
            slots.append(torch.zeros_like(written))
            sources += [self._head_changes(block, attention[block.index]).sum(1), written]
        slots.append(torch.zeros_like(sources[0]))
        hidden = None
        if self._neurons:
            at_neurons = zip(self._neurons, rest[len(raw) :], strict=True)
            hidden = torch.stack([(change * gradient).sum(1).to(entry.device) for change, gradient in at_neurons], 1)
        return _join(sources), _join(slots), hidden

    def _head_changes(self, block: Block, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos head"]:
        change = self.differences.heads[block.index]
        at_mix = gradient @ head_writers(block, change.dtype).flatten(0, 1).t()
        return (change * at_mix.unflatten(-1, (block.heads, -1))).sum(3)

    def _mlp_effects(self, block: Block, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row some"]:
        """Of the MLP, or of its features and the error node."""
        whole = _along(self.differences.mlps[block.index], gradient)
        layer = self._model.features.get(block.index)
        if layer is None:
            return whole
        parts = (self.differences.features[block.index] * (gradient @ layer.writers.t())).sum(1)
        return torch.cat([parts, whole - parts.sum(1, keepdim=True)], 1)

    def at_mixes(self) -> list[Float[Tensor, "row pos head d_head"]]:
        """Gradients at the heads' mixes, by layer."""
        found = zip(self._model.blocks, self.gradients(self.seen.mix), strict=True)
        return [gradient.unflatten(-1, (block.heads, block.d_head)) for block, gradient in found]

    def saturation(self) -> Saturation:
        """Attention with patched queries and keys."""
        return Saturation(
            self.seen, self._state.clean_sequences, self._model.dtype, self._model.arch.wide_key_norm is not None
        )

    def sharpen(self, slots: Float[Tensor, "row dst"]) -> Float[Tensor, "row dst"]:
        """The slots' effects with those of query and key vectors by the QK fix."""
        saturation, slots, column = self.saturation(), slots.clone(), 0
        for block, at_mix in zip(self._model.blocks, self.at_mixes(), strict=True):
            clean = block.split([raw.detach().to(self._model.dtype) for raw in self.seen.raw[block.index]])
            for port, here, change in zip(PORTS, clean, self._slots[block.index], strict=True):
                count = here.shape[2]
                if port != "v":
                    found = saturation.slot_effects(block, port, (here - change).unsqueeze(0), at_mix.unsqueeze(0))
                    slots[:, column : column + count] = found[0, :, 0].to(slots.device)
                column += count
            layer = self._model.features.get(block.index)
            column += 1 if layer is None else len(layer.chosen) + 1
        return slots


def node_effects(model: ComponentModel, batch: Batch, run: NodePass, fixes: Fixes) -> NodeEffects:
    """What `ComponentModel.linearize_nodes` gives, over all of the model's nodes."""

    def once() -> list[Tensor]:
        sources, slots, neurons = run.effects()
        slots = run.sharpen(slots) if fixes.qk_fix else slots
        return [sum_rows(part, batch) for part in (sources, slots, neurons) if part is not None]

    found = over_layers(run.switch, len(model.blocks), once) if fixes.grad_drop else once()
    sources, slots, *neurons = (part.float().cpu() for part in found)
    return NodeEffects(sources, slots, neurons[0] if neurons else None)


def over_layers(switch: LayerSwitch, layers: int, once: Callable[[], list[Tensor]]) -> list[Tensor]:
    """GradDrop: absolute values summed over one gradient for each layer that is dropped, over (layers - 1).

    A model of one layer has nothing else to drop: the absolute values of its plain gradient.
    """
    if layers == 1:
        return [part.abs() for part in once()]
    total: list[Tensor] = []
    for layer in range(layers):
        switch.dropped = layer
        new = [part.abs() / (layers - 1) for part in once()]
        total = [old + more for old, more in zip(total, new, strict=True)] if total else new
    switch.dropped = None
    return total


def _along(change: Float[Tensor, "row pos d_model"], gradient: Tensor) -> Float[Tensor, "row 1"]:
    return (change * gradient.to(change.device)).sum((1, 2)).unsqueeze(1)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to(parts[0].device) for part in parts], 1)

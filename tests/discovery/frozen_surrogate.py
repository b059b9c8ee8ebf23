"""A model with norm scales, attention patterns and activation secants written down as numbers: relevance rules by hand."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from discovery.batch import Batch
from discovery.blocks import Block, Norm
from discovery.component_model import ComponentModel


class FrozenSurrogate:
    """What relevance rules make of a run: a linear model, rebuilt from the numbers that plain hooks saw in one eager pass."""

    def __init__(self, model: ComponentModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.seen: dict[tuple[str, nn.Module], Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for module in model.hf.modules():
                stack.callback(module.register_forward_hook(self._watch, with_kwargs=True).remove)
            model.hf(
                input_ids=batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
            )

    def _watch(self, module: nn.Module, args: tuple, kwargs: dict, out: object) -> None:
        if args and isinstance(args[0], Tensor):
            self.seen["in", module] = args[0]
        elif "hidden_states" in kwargs:
            self.seen["in", module] = kwargs["hidden_states"]
        if isinstance(out, Tensor):
            self.seen["out", module] = out
        elif isinstance(out, tuple) and len(out) > 1 and isinstance(out[1], Tensor):
            self.seen["pattern", module] = out[1]

    def _norm(self, norm: Norm | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        there = self.seen["in", norm.module]
        if norm.kind == "layer":
            there, x = there - there.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        eps = getattr(norm.module, "eps", None) or getattr(norm.module, "variance_epsilon", 0.0)
        scaled = x / (there.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
        return scaled if norm.bias is None else scaled + norm.bias

    def _attention(self, block: Block, streams: list[Tensor]) -> Tensor:
        """streams: what each v slot reads."""
        pattern = self.seen["pattern", block.attention]
        weight, bias = block.weight("v"), block.bias("v")
        group = block.heads // block.kv_slots
        written = torch.zeros_like(streams[0])
        for head in range(block.heads):
            slot = head // group
            value = self._norm(block.attention_norm, streams[slot]) @ weight[slot].T
            value = value if bias is None else value + bias[slot]
            written = written + pattern[:, head] @ value @ block.output_weight()[head]
        if isinstance(block.output.bias, Tensor):
            written = written + block.output.bias
        return self._norm(block.post_attention_norm, written)

    def _mlp(self, block: Block, stream: Tensor) -> Tensor:
        read = self._norm(block.mlp_norm, stream)
        linear = [module for module in block.mlp.modules() if hasattr(module, "weight")]
        (bent,) = [m for m in block.mlp.modules() if not list(m.parameters()) and not isinstance(m, nn.Dropout)]
        before, after = self.seen["in", bent], self.seen["out", bent]
        hidden = linear[0](read)
        other = linear[1](read) if len(linear) == 3 else None
        if other is None and hidden.shape[-1] == 2 * before.shape[-1]:
            hidden, other = hidden.chunk(2, -1)
        active = hidden * (after / before)
        if other is not None:
            active = active * other.detach() / 2 + after * other / 2
        return self._norm(block.post_mlp_norm, linear[-1](active))

    def run(self, probes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at the reads, and the stream before the final norm. probes: what is added to what each slot reads."""
        column = iter(probes)
        stream = self.seen["in", self.model.blocks[0].layer]
        for block in self.model.blocks:
            for _ in range(block.heads + block.kv_slots):
                next(column)  # queries and keys: the pattern is a number
            attended = self._attention(block, [stream + next(column) for _ in range(block.kv_slots)])
            after = stream + attended
            stream = after + self._mlp(block, (stream if block.parallel else after) + next(column))
        final = stream + next(column)
        read = self._norm(self.model.final_norm, final)[self.batch.read_row, self.batch.read_column]
        logits = self.model.hf.get_submodule(self.model.arch.unembedding)(read)
        cap = self.model.arch.final_softcap and getattr(self.model.config, self.model.arch.final_softcap)
        return (torch.tanh(logits / cap) * cap if cap else logits), final

    def slot_gradients(self, metric) -> Tensor:
        """Gradients of the pairs' summed metric at every slot [dst row pos d_model]."""
        shape = self.seen["in", self.model.blocks[0].layer].shape
        probes = [torch.zeros(shape, requires_grad=True) for _ in self.model.topology.targets]
        value = metric.compute(self.run(probes)[0], self.batch, None).sum()
        return torch.stack(torch.autograd.grad(value, probes, materialize_grads=True))

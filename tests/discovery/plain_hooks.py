"""Path patching of one edge with ordinary forward hooks on an untouched model."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from graphs.node import PORTS


class PlainHooks:
    """Path patching of one edge with ordinary forward hooks, a whole pass each: slow and obviously right."""

    def __init__(self, model: ComponentModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.clean, self.streams = self._sources(batch.clean)
        self.corrupt, _ = self._sources(batch.corrupt)

    def _call(self, tokens: Tensor) -> Tensor:
        batch = self.batch
        return self.model.hf(
            input_ids=tokens, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
        ).logits[:, -1]

    def _sources(self, tokens: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Every source's value in order, and the residual stream at every place where a slot reads."""
        seen: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for block in self.model.blocks:
                where = block.index
                self._watch(stack, block.layer, f"layer{where}", seen, before=True)
                self._watch(stack, block.output, f"mix{where}", seen, before=True)
                self._watch(stack, block.output, f"sum{where}", seen)
                writer = block.post_attention_norm.module if block.post_attention_norm else block.output
                self._watch(stack, writer, f"attention{where}", seen)
                self._watch(
                    stack, block.post_mlp_norm.module if block.post_mlp_norm else block.mlp, f"mlp{where}", seen
                )
            self._watch(stack, self.model.final_norm.module, "final", seen, before=True)
            self._call(tokens)
        sources = [seen["layer0"]]
        streams = {"final": seen["final"]}
        with torch.no_grad():
            for block in self.model.blocks:
                where, mix = block.index, seen[f"mix{block.index}"]
                silence = block.output(torch.zeros_like(mix))
                ratio = seen[f"attention{where}"] / seen[f"sum{where}"] if block.post_attention_norm else 1.0
                for head in range(block.heads):
                    alone = torch.zeros_like(mix)
                    part = slice(head * block.d_head, (head + 1) * block.d_head)
                    alone[..., part] = mix[..., part]
                    sources.append((block.output(alone) - silence) * ratio)
                sources.append(seen[f"mlp{where}"])
                streams[f"attention{where}"] = seen[f"layer{where}"]
                after = seen[f"layer{where}"] + seen[f"attention{where}"]
                streams[f"mlp{where}"] = seen[f"layer{where}"] if block.parallel else after
        return sources, streams

    @staticmethod
    def _watch(stack: contextlib.ExitStack, module, name: str, seen: dict[str, Tensor], before: bool = False) -> None:
        def pre(_module, args, kwargs) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        def post(_module, _args, out) -> None:
            seen[name] = out

        handle = (
            module.register_forward_pre_hook(pre, with_kwargs=True) if before else module.register_forward_hook(post)
        )
        stack.callback(handle.remove)

    def logits_without(self, source: int, target: int) -> Tensor:
        slot = self.model.topology.targets[target]
        difference = self.corrupt[source] - self.clean[source]
        with contextlib.ExitStack() as stack, torch.no_grad():
            if slot.node.kind == "head":
                self._patch_head(stack, slot, difference)
            else:
                self._patch_whole(stack, slot, difference)
            return self._call(self.batch.clean)

    def _patch_whole(self, stack: contextlib.ExitStack, slot, difference: Tensor) -> None:
        """What an MLP or the logits read."""
        if slot.node.kind == "logits":
            final = self.model.final_norm.module
            stack.callback(final.register_forward_pre_hook(lambda _m, args: (args[0] + difference,)).remove)
            return
        block = self.model.blocks[slot.node.layer]
        patched = self.streams[f"mlp{block.index}"] + difference
        normed = block.mlp_norm(patched) if block.mlp_norm else patched
        stack.callback(block.mlp.register_forward_pre_hook(lambda _m, _args: (normed,)).remove)

    def _patch_head(self, stack: contextlib.ExitStack, slot, difference: Tensor) -> None:
        block = self.model.blocks[slot.node.layer]
        patched = self.streams[f"attention{block.index}"] + difference
        normed = block.attention_norm(patched) if block.attention_norm else patched
        port = PORTS.index(slot.port)
        own = [module(normed) for module in block.projections]

        def mend(module, _args, out: Tensor) -> Tensor:
            which = block.projections.index(module)
            parts = [part.clone() for part in block.split((out,) * (3 if block.layout == "separate" else 1))]
            new = block.split((own[which],) * (3 if block.layout == "separate" else 1))
            if block.layout == "separate" and which != port:
                return out
            parts[port][..., slot.node.index, :] = new[port][..., slot.node.index, :]
            return parts[port].flatten(-2) if block.layout == "separate" else block.join(type(new)(*parts))[0]

        for module in block.projections:
            stack.callback(module.register_forward_hook(mend).remove)

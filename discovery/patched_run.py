"""One run in which every slot reads its own mixture of sources: exact edge patching, several masks at a time.

A slot's input is (baseline stream) + sum over sources of keep * (this run's value - ablated value). Slots fall into three
groups, judged over all masks together: with every edge kept they read the running residual stream, as in the model; with
none kept (and a counterfactual baseline) they repeat the ablated run; only the rest need an input of their own, made from
the kept sources or from the stream less the dropped ones, whichever is fewer. Stages before the first one with a dropped
edge are taken from the recorded clean run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.baseline import project_stream, scaled_mix
from discovery.block_run import BlockRun, Recorded
from discovery.blocks import Block, Projected
from discovery.device_index import at
from discovery.patch_plan import Plan, plan_run
from discovery.source_mixture import SourceMixture
from graphs.node import Port
from graphs.topology import Topology

Observer = Callable[[str, Tensor], None]


class PatchedRun(BlockRun):
    """A run under masks. Made for one call; see `final_stream`."""

    def __init__(
        self,
        blocks: Sequence[Block],
        topology: Topology,
        recorded: Recorded,
        keep: Float[Tensor, "mask src dst"],
        *,
        every_slot: bool = False,
        observe: Observer | None = None,
    ) -> None:
        super().__init__(blocks, topology, recorded, keep.shape[0])
        self._own_inputs = every_slot or keep.requires_grad
        self._coupled = any(block.coupled for block in blocks)
        self._plan = self._make_plan(keep, self._own_inputs)
        self._needed: list[bool] = self._plan.used.any(1).tolist()
        entry = recorded.baseline.entry
        self._mixture = self._make_mixture(keep.to(device=entry.device, dtype=self._dtype), entry)
        self._observe = observe
        self._start = self._find_start()
        self._streaming = bool((self._plan.shared | self._plan.subtract)[self._first_column() :].any())

    def _make_plan(self, keep: Tensor, every_slot: bool) -> Plan:
        return plan_run(self._topology, keep, self._baseline.still, every_slot, self._coupled)

    def _make_mixture(self, keep: Tensor, like: Tensor) -> SourceMixture:
        return SourceMixture(keep, self._plan, like)

    def _needed_heads(self, block: Block) -> list[int]:
        """Heads whose difference a mixed slot needs."""
        first = self._first_source(block)
        return [head for head in range(block.heads) if self._needed[first + head]]

    def _find_start(self) -> tuple[int, bool]:
        """(layer, whether its attention is unchanged) where the run begins; layer = number of layers for logits alone."""
        for block in self._blocks:
            columns = self._mlp_columns(block)
            if self._plan.first < columns.stop:
                return block.index, self._plan.first in columns
        return len(self._blocks), False

    def _first_column(self) -> int:
        layer, skip_attention = self._start
        if layer == len(self._blocks):
            return len(self._topology.targets) - 1
        block = self._blocks[layer]
        return (self._mlp_columns(block) if skip_attention else self._ports(block)["q"]).start

    def final_stream(self) -> Float[Tensor, "mask read d_model"]:
        """What the `logits` slot reads, at the reads."""
        layer, skip_attention = self._start
        self._take_known(layer, skip_attention)
        stream = self._clean_stream(layer)
        for block in self._blocks[layer:]:
            stream = self._run_block(block, stream, skip_attention and block.index == layer)
        return self._final(stream)

    def _clean_stream(self, layer: int) -> Tensor | None:
        if not self._streaming:
            return None
        clean = self._recorded.clean
        if layer == len(self._blocks):
            assert clean.final_in is not None
            stream = clean.final_in
        else:
            stream = clean.attention_in[layer]
        return self._repeat(stream.detach().to(self._dtype))

    def _repeat(self, tensor: Tensor) -> Tensor:
        """[row ...] -> [mask*row ...] without copying where there is one mask."""
        if self._masks == 1:
            return tensor
        return tensor.expand(self._masks, *tensor.shape).flatten(0, 1)

    def _take_known(self, layer: int, skip_attention: bool) -> None:
        """Differences of the sources before the first changed stage, from the clean run."""
        known: dict[int, Tensor] = {}
        differences = self._recorded.differences
        if self._needed[0]:
            known[0] = differences.entry
        for block in self._blocks[: layer + 1]:
            if block.index == layer and not skip_attention:
                break
            first, heads = self._first_source(block), self._needed_heads(block)
            if heads:
                written = self.write_heads(block, differences.heads[block.index], heads)
                known |= {first + head: value for head, value in zip(heads, written, strict=True)}
            if block.index < layer:
                known |= self._known_mlp(block)
        self._mixture.set_known(known)

    def _known_mlp(self, block: Block) -> dict[int, Tensor]:
        """Differences that are needed of what stands for a block's MLP, from the clean run."""
        source = self._first_source(block) + block.heads
        return {source: self._recorded.differences.mlps[block.index]} if self._needed[source] else {}

    def _run_block(self, block: Block, stream: Tensor | None, skip_attention: bool) -> Tensor | None:
        before = stream
        if skip_attention:
            after = None if stream is None else stream + self._clean_attention(block)
        else:
            after = self._run_attention(block, stream)
        return self._run_mlp(block, before if block.parallel else after, after)

    def _clean_attention(self, block: Block) -> Tensor:
        return self._repeat(self._attention_write(block, self._recorded.clean.mix[block.index].detach())[0])

    def _run_attention(self, block: Block, stream: Tensor | None) -> Tensor | None:
        ports, heads = self._ports(block), self._needed_heads(block)
        slots = [slot for port in ports.values() for slot in port]
        if not heads and stream is None:
            return None
        if bool(self._plan.silent[slots].all()) and not heads:
            assert stream is not None
            mix = self._repeat(self._silent_mix(block))
        else:
            mix = self._mix(block, ports, stream)
        write = total = None
        if stream is not None or block.post_attention_norm is not None:
            write, total = self._attention_write(block, mix)
        if heads:
            self._record_heads(block, mix, total, heads)
        return None if stream is None or write is None else stream.to(write.device) + write

    def _mix(self, block: Block, ports: dict[Port, range], stream: Tensor | None) -> Tensor:
        """The heads' mixed values at what their slots read."""
        return self._call_attention(block, self._project(block, ports, stream))

    def _silent_mix(self, block: Block) -> Tensor:
        """The ablated run's mix, unscaled: recomputed from its slots, since only scaled mixes are kept."""
        return self._call_attention(block, self._baseline.slots(block), masks=1)

    def _record_heads(self, block: Block, mix: Tensor, total: Tensor | None, heads: list[int]) -> None:
        scaled = scaled_mix(block, mix.to(self._dtype), None if total is None else total.to(self._dtype))
        difference = (scaled.unflatten(0, (self._masks, self._rows)) - self._baseline.heads[block.index]).flatten(0, 1)
        written = self.write_heads(block, difference, heads)
        first = self._first_source(block)
        self._mixture.add_fresh([first + h for h in heads], written.unflatten(1, (self._masks, -1)).flatten(2))

    def _project(self, block: Block, ports: dict[Port, range], stream: Tensor | None) -> Projected:
        plan = self._plan
        shared = None
        if stream is not None and any(bool(plan.shared[slot]) for slots in ports.values() for slot in slots):
            shared = project_stream(block, stream)
        mixed = [s for slots in ports.values() for s in slots if not plan.shared[s] and not plan.silent[s]]
        own = None
        if mixed:
            inputs = self._mixture.inputs(mixed, self._baseline.attention_in[block.index], stream)
            if self._observe is not None:
                self._observe(f"layer {block.index} attention", inputs)
            own = inputs if block.attention_norm is None else block.attention_norm(inputs)
        parts: list[Tensor] = []
        for which, (port, slots) in enumerate(ports.items()):
            chosen = [s for s in slots if not plan.shared[s] and not plan.silent[s]]
            local = [s - slots.start for s in chosen]
            projected = None
            if own is not None and chosen:
                begin = mixed.index(chosen[0])
                normed = own[:, begin : begin + len(chosen)].transpose(0, 1)
                projected = self._project_own(block, port, normed, local).flatten(0, 1)
            if projected is not None and len(chosen) == len(slots):
                parts.append(projected)
                continue
            out = self._repeat(self._baseline.slots(block)[which])
            flags = plan.shared[list(slots)]
            if shared is not None and bool(flags.any()):
                out = (
                    shared[which]
                    if bool(flags.all())
                    else torch.where(flags[:, None].to(out.device, non_blocking=True), shared[which], out)
                )
            if projected is not None:
                out = out.clone()
                out[:, :, at(local, out.device)] = projected.to(out)
            parts.append(out)
        return Projected(*parts)

    def _run_mlp(self, block: Block, stream: Tensor | None, after: Tensor | None) -> Tensor | None:
        column = self._mlp_columns(block).start
        source = self._first_source(block) + block.heads
        plan = self._plan
        wanted = self._needed[source]
        if not wanted and after is None:
            return None
        if plan.silent[column]:
            out = self._repeat(self._baseline.mlps[block.index])
        else:
            if plan.shared[column]:
                assert stream is not None
                inputs = stream
            else:
                mixed = self._mixture.inputs([column], self._baseline.mlp_in[block.index], stream)
                if self._observe is not None:
                    self._observe(f"layer {block.index} MLP", mixed)
                inputs = mixed.squeeze(1).flatten(0, 1)
            out = self._mlp(block, inputs)
        if wanted:
            difference = out.unflatten(0, (self._masks, self._rows)) - self._baseline.mlps[block.index]
            self._mixture.add_fresh([source], difference.flatten(1).unsqueeze(0))
        return None if after is None else after.to(out.device) + out

    def _final(self, stream: Tensor | None) -> Float[Tensor, "mask read d_model"]:
        column = len(self._topology.targets) - 1
        if self._plan.shared[column]:
            assert stream is not None
            return self._at_reads(stream.unflatten(0, (self._masks, self._rows)))
        reads = (self._recorded.read_rows, self._recorded.read_columns)
        mixed = self._mixture.inputs([column], self._baseline.final_in, stream, reads).squeeze(1)
        if self._observe is not None:
            self._observe("logits", mixed)
        return mixed

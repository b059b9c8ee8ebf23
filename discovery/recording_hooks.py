"""The hooks of a recorded pass: which modules they watch and what they change there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from discovery.activations import Activations, Held, LayerSwitch
from discovery.blocks import Block, linear_weight
from discovery.mlp_parts import mlp_parts


def attention_writer(block: Block) -> nn.Module:
    """The module whose output the attention adds to the residual stream."""
    return block.output if block.post_attention_norm is None else block.post_attention_norm.module


def mlp_writer(block: Block) -> nn.Module:
    """The module whose output the MLP adds to the residual stream."""
    return block.mlp if block.post_mlp_norm is None else block.post_mlp_norm.module


def hook_held(blocks: Sequence[Block], held: Sequence[Held], stack: contextlib.ExitStack) -> None:
    """Must come after hooks that record, so that gradients at what a sublayer really put out are zero in held rows."""

    def replace_rows(mine: list[Held]):
        def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            out = out.clone()
            for one in mine:
                out[one.rows] = one.value.to(out)
            return out

        return hook

    for place in {one.place for one in held}:
        block = blocks[place.layer]
        norm, writer = (
            (block.post_attention_norm, block.output) if place.kind == "attention" else (block.post_mlp_norm, block.mlp)
        )
        module = writer if norm is None else norm.module
        stack.callback(module.register_forward_hook(replace_rows([one for one in held if one.place == place])).remove)


def hook_switch(blocks: Sequence[Block], switch: LayerSwitch, stack: contextlib.ExitStack) -> None:
    """Lets the switch stop gradients at a layer's outputs. Must come after hooks that record."""

    def switched(layer: int):
        def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            out = out.view_as(out)
            out.register_hook(lambda gradient: gradient * 0 if switch.dropped == layer else gradient)
            return out

        return hook

    for block in blocks:
        for module in (attention_writer(block), mlp_writer(block)):
            stack.callback(module.register_forward_hook(switched(block.index)).remove)


def hook_outputs(blocks: Sequence[Block], seen: Activations, neurons: bool, stack: contextlib.ExitStack) -> None:
    """Records what attentions write, and the MLPs' neurons where wanted."""

    def written(module: nn.Module, args: tuple, out: Tensor) -> None:
        seen.attention_out.append(out)

    def hidden(module: nn.Module, args: tuple) -> None:
        seen.hidden.append(args[0])

    for block in blocks:
        stack.callback(attention_writer(block).register_forward_hook(written).remove)
        if neurons:
            stack.callback(mlp_parts(block).down.register_forward_pre_hook(hidden).remove)


def hook_blocks(
    blocks: Sequence[Block],
    seen: Activations,
    stack: contextlib.ExitStack,
    gradients: bool,
    entry: Tensor | None,
    entry_gradient: bool,
) -> None:
    """Records all that `Activations` always holds, and has slots be differentiable where gradients are wanted."""

    def add(handle: Any) -> None:
        stack.callback(handle.remove)

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if seen.entry is None:
            hidden = args[0] if args else kwargs["hidden_states"]
            seen.entry = hidden if entry is None else entry
            if entry_gradient:
                seen.entry = seen.entry.detach().requires_grad_()
            if seen.entry is not hidden:
                return ((seen.entry, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": seen.entry})
        return None

    add(blocks[0].layer.register_forward_pre_hook(enter, with_kwargs=True))
    for block in blocks:
        _hook_attention(block, seen, add, gradients)
        _hook_mlp(block, seen, add, gradients)


def _hook_attention(block: Block, seen: Activations, add: Callable[[Any], None], gradients: bool) -> None:
    outputs: dict[nn.Module, Tensor] = {}

    def before_layer(module: nn.Module, args: tuple, kwargs: dict) -> None:
        # The layer's own device: where it is another than the one before's, accelerate moves the stream only after this.
        seen.attention_in.append((args[0] if args else kwargs["hidden_states"]).to(linear_weight(block.output).device))

    def call(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.calls.append((args, kwargs))

    def projected(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if block.ungrouped:
            out = widen_raw(block, module, out)
        if gradients and not out.requires_grad:
            out = out.detach().requires_grad_()
        outputs[module] = out
        if len(outputs) == len(block.projections):
            seen.raw.append(tuple(outputs[part] for part in block.projections))
        return out

    def mixed(module: nn.Module, args: tuple) -> None:
        seen.mix.append(args[0])

    def summed(module: nn.Module, args: tuple, out: Tensor) -> None:
        seen.attention_sum.append(out)

    add(block.layer.register_forward_pre_hook(before_layer, with_kwargs=True))
    add(block.attention.register_forward_pre_hook(call, with_kwargs=True))
    for module in block.projections:
        add(module.register_forward_hook(projected))
    add(block.output.register_forward_pre_hook(mixed))
    if block.post_attention_norm is not None:
        add(block.output.register_forward_hook(summed))


def widen_raw(block: Block, module: nn.Module, out: Tensor) -> Tensor:
    """A projection's output with a copy of each key and value for every query head."""
    if block.layout != "separate":
        return block.join(block.widen(block.split((out,))))[0]
    if module is block.projections[0]:
        return out
    return (
        out.unflatten(-1, (block.kv_heads, block.d_head))
        .repeat_interleave(block.heads // block.kv_heads, -2)
        .flatten(-2)
    )


def _hook_mlp(block: Block, seen: Activations, add: Callable[[Any], None], gradients: bool) -> None:
    def residual(module: nn.Module, args: tuple) -> None:
        seen.mlp_in.append(args[0])

    def normed(module: nn.Module, args: tuple) -> tuple | None:
        x = args[0]
        if block.parallel:
            seen.mlp_in.append(seen.attention_in[-1])
        elif block.mlp_norm is None:
            seen.mlp_in.append(x)
        if gradients:
            # A view of its own: a parallel block's norm output also feeds the attention, whose gradient is not the MLP's.
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        seen.mlp_normed.append(x)
        return (x, *args[1:]) if gradients else None

    def out(module: nn.Module, args: tuple, value: Tensor) -> None:
        seen.mlp_out.append(value)

    if block.mlp_norm is not None and not block.parallel:
        add(block.mlp_norm.module.register_forward_pre_hook(residual))
    add(block.mlp.register_forward_pre_hook(normed))

    def raw(module: nn.Module, args: tuple, value: Tensor) -> None:
        seen.mlp_raw.append(value)

    if block.post_mlp_norm is not None:
        add(block.mlp.register_forward_hook(raw))
    add(mlp_writer(block).register_forward_hook(out))

"""A forward of the untouched model in which every value at a site passes through a visitor, parts frozen to another pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from discovery.blocks import Block, Norm
from discovery.component_model import ComponentModel
from discovery.recording import Activations

Freeze = Literal["none", "attention", "all"]
Visit = Callable[[str, int, Tensor], Tensor]
"""(site, layer, value) -> what goes on instead. Sites in the order of a layer: residual-in, attention-mix, attention-out,
residual-mid (sequential blocks with a norm before the MLP), mlp-in, mlp-raw, mlp-out; residual-in of the layer behind the
last one is what the final norm reads. Changes at residual-mid and mlp-in reach the MLP alone."""


@contextlib.contextmanager
def visiting(
    model: ComponentModel,
    blocks: Sequence[Block],
    visit: Visit,
    freeze: Freeze = "none",
    still: Collection[int] = (),
    seen: Activations | None = None,
) -> Iterator[None]:
    """Hooks for forward passes inside a `session` of the same blocks, whose key/value heads are the model's own.

    seen: the pass that things are frozen to, with patterns; one row of it serves any number. freeze: `attention` holds the
    attention patterns, `all` the norms' denominators too. still: layers whose MLP's output is held.
    """
    with contextlib.ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        if freeze == "all":
            assert seen is not None
            _freeze_norms(model, blocks, seen, add)
        for block in blocks:
            _visit_attention(block, visit, None if freeze == "none" else seen, add)
            _visit_mlp(block, visit, seen if block.index in still else None, add)

        def final(module: nn.Module, args: tuple) -> tuple:
            return (visit("residual-in", len(blocks), args[0]), *args[1:])

        add(model.hf.get_submodule(model.arch.final_norm).register_forward_pre_hook(final))
        yield


def _freeze_norms(model: ComponentModel, blocks: Sequence[Block], seen: Activations, add: Any) -> None:
    assert seen.final_in is not None
    pairs: list[tuple[Norm | None, Tensor]] = [(model.final_norm, seen.final_in)]
    for layer, block in enumerate(blocks):
        pairs += [(block.attention_norm, seen.attention_in[layer]), (block.mlp_norm, seen.mlp_in[layer])]
        if block.post_attention_norm is not None:
            pairs.append((block.post_attention_norm, seen.attention_sum[layer]))
        if block.post_mlp_norm is not None:
            pairs.append((block.post_mlp_norm, seen.mlp_raw[layer]))
    done: set[nn.Module] = set()
    for norm, stream in pairs:
        if norm is not None and norm.module not in done:  # a parallel block's norm may serve both
            done.add(norm.module)
            add(norm.module.register_forward_hook(_frozen_norm(norm, stream, model.dtype)))


def _frozen_norm(norm: Norm, stream: Tensor, dtype: torch.dtype) -> Callable[..., Tensor]:
    scale = norm.inverse_scale(norm.centre(stream.to(dtype)))

    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        value = norm.centre(args[0].to(scale)) * scale * norm.weight.to(scale)
        return (value if norm.bias is None else value + norm.bias.to(scale)).to(out.dtype)

    return hook


def _visit_attention(block: Block, visit: Visit, seen: Activations | None, add: Any) -> None:
    """seen: where its patterns come from; None: they stay live."""
    outputs: dict[nn.Module, Tensor] = {}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        value = visit("residual-in", block.index, args[0] if args else kwargs["hidden_states"])
        return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

    def projected(module: nn.Module, args: tuple, out: Tensor) -> None:
        outputs[module] = out

    def mixed(module: nn.Module, args: tuple) -> tuple:
        value = args[0]
        if seen is not None:
            values = block.split([outputs[part] for part in block.projections]).v
            values = values.repeat_interleave(block.heads // block.kv_heads, -2)
            wide = values if values.dtype == torch.float64 else values.float()
            pattern = seen.patterns[block.index].to(wide)
            value = torch.einsum("rhqk,rkhd->rqhd", pattern, wide).flatten(-2).to(value.dtype)
        return (visit("attention-mix", block.index, value), *args[1:])

    def written(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return visit("attention-out", block.index, out)

    add(block.layer.register_forward_pre_hook(enter, with_kwargs=True))
    for part in block.projections if seen is not None else ():
        add(part.register_forward_hook(projected))
    add(block.output.register_forward_pre_hook(mixed))
    writer = block.output if block.post_attention_norm is None else block.post_attention_norm.module
    add(writer.register_forward_hook(written))


def _visit_mlp(block: Block, visit: Visit, seen: Activations | None, add: Any) -> None:
    """seen: what its output is held at; None: it stays live."""
    layer = block.index

    def middle(module: nn.Module, args: tuple) -> tuple:
        return (visit("residual-mid", layer, args[0]), *args[1:])

    def read(module: nn.Module, args: tuple) -> tuple:
        return (visit("mlp-in", layer, args[0]), *args[1:])

    def raw(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if seen is not None:
            out = (seen.mlp_out if block.post_mlp_norm is None else seen.mlp_raw)[layer].expand_as(out)
        return visit("mlp-raw", layer, out)

    def written(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return visit("mlp-out", layer, out)

    if block.mlp_norm is not None and not block.parallel:
        add(block.mlp_norm.module.register_forward_pre_hook(middle))
    add(block.mlp.register_forward_pre_hook(read))
    add(block.mlp.register_forward_hook(raw))
    writer = block.mlp if block.post_mlp_norm is None else block.post_mlp_norm.module
    add(writer.register_forward_hook(written))

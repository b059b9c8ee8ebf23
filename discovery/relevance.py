"""Relevance rules as hooks: modules keep their values, and gradients see the linear map that a rule puts in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from discovery.blocks import Block, Norm, Projected
from discovery.mlp_parts import mlp_parts
from discovery.rules import Rules

# Below this share of the largest input the secant is the slope, to which it tends: their quotient would be rounding.
_SMALL = 1e-4


def hook_rules(blocks: Sequence[Block], final_norm: Norm, rules: Rules, stack: contextlib.ExitStack) -> None:
    """Has norms, activation functions and gates follow the rules until the stack closes.

    Must come before hooks that record. Raises UnsupportedModel for an MLP whose inside is not understood.
    """
    if rules.norms:
        norms = [final_norm]
        for block in blocks:
            norms += [
                norm
                for norm in (block.attention_norm, block.mlp_norm, block.post_attention_norm, block.post_mlp_norm)
                if norm is not None
            ]
        for norm in {norm.module: norm for norm in norms}.values():  # parallel blocks share one
            stack.callback(norm.module.register_forward_hook(_frozen_norm(norm)).remove)
    for block in blocks if rules.nonlinearity or rules.gates else ():
        parts = mlp_parts(block)
        if rules.nonlinearity:
            stack.callback(parts.activation.register_forward_hook(_secant).remove)
        if rules.gates and parts.gated:
            stack.callback(parts.down.register_forward_pre_hook(_halved).remove)


def hook_patterns(blocks: Sequence[Block], rules: Rules, stack: contextlib.ExitStack) -> None:
    """Has no gradient flow through queries and keys, where the rules say so. Must come after hooks that record."""
    for block in blocks if rules.attention else ():
        for module in block.projections:
            stack.callback(module.register_forward_hook(_values_alone(block)).remove)


def _with_gradient_of(value: Tensor, linear: Tensor) -> Tensor:
    """`value`, with the gradient of `linear`."""
    return value.detach() + (linear - linear.detach()).to(value.dtype)


def _frozen_norm(norm: Norm):
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        wide = x if x.dtype == torch.float64 else x.float()
        centred = norm.centre(wide)
        return _with_gradient_of(out, centred * norm.inverse_scale(centred).detach() * norm.weight.to(wide.dtype))

    return hook


def _secant(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    x = args[0]
    small = x.detach().abs() <= _SMALL * x.detach().abs().max()
    ratio = out.detach() / torch.where(small, torch.ones_like(x), x).detach()
    return torch.where(small, out, _with_gradient_of(out, x * ratio))


def _halved(module: nn.Module, args: tuple) -> tuple:
    x = args[0]
    return (_with_gradient_of(x, x * 0.5), *args[1:])


def _values_alone(block: Block):
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if block.layout == "separate":
            return out if module is block.projections[2] else out.detach()
        parts = block.split((out,))
        return block.join(Projected(parts.q.detach(), parts.k.detach(), parts.v))[0]

    return hook

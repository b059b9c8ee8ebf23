"""Recorded passes of the untouched model: what hooks see of one forward, with or without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from discovery.activations import Activations, Held, LayerSwitch, Sequences, copy_cache
from discovery.architecture import Architecture
from discovery.batch import Batch
from discovery.blocks import Block, Norm
from discovery.recording_hooks import hook_blocks, hook_held, hook_outputs, hook_switch, widen_raw
from discovery.relevance import hook_patterns, hook_rules
from discovery.rules import PLAIN, Rules


@contextlib.contextmanager
def session(model: PreTrainedModel, record: Architecture, blocks: Sequence[Block]) -> Iterator[None]:
    """Evaluation mode, frozen parameters, key/value heads ungrouped where asked; all restored on leaving, by whatever way."""
    with contextlib.ExitStack() as stack:
        training = [module for module in model.modules() if module.training]
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stack.callback(lambda: [setattr(module, "training", True) for module in training])
        stack.callback(lambda: [parameter.requires_grad_(True) for parameter in learning])
        for module in training:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        for block in blocks:
            if block.ungrouped:
                _ungroup(block, record, stack)
        yield


def _ungroup(block: Block, record: Architecture, stack: contextlib.ExitStack) -> None:
    for name, value in record.ungrouped.items():
        override(block.attention, name, 1 if value == "one" else block.heads, stack)
    if record.wide_key_norm is not None:
        norm = block.attention.get_submodule(record.wide_key_norm)
        override(norm, "forward", _wide_norm(norm, block), stack)


def _wide_norm(norm: nn.Module, block: Block) -> Callable[[Tensor], Tensor]:
    """A key norm over widened keys. With equal copies its mean square is the native one, so the full model is unchanged."""
    groups = block.heads // block.kv_heads

    def forward(keys: Tensor) -> Tensor:
        weight = cast(Tensor, norm.weight).unflatten(0, (block.kv_heads, block.d_head)).repeat_interleave(groups, 0)
        wide = keys.to(torch.float32)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + cast(float, norm.variance_epsilon))
        return (weight.flatten() * wide).to(keys.dtype)

    return forward


def override(module: object, name: str, value: object, stack: contextlib.ExitStack) -> None:
    """Set an instance attribute until the stack closes, then put back what was there (or nothing, for a class attribute)."""
    before = module.__dict__.get(name, stack)  # the stack itself marks "not set on the instance"

    def restore() -> None:
        if before is stack:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before

    stack.callback(restore)
    module.__dict__[name] = value


def record_pass(
    model: PreTrainedModel,
    record: Architecture,
    blocks: Sequence[Block],
    sequences: Sequences,
    *,
    gradients: bool = False,
    entry: Tensor | None = None,
    held: Sequence[Held] = (),
    reads: tuple[Int[Tensor, " read"], Int[Tensor, " read"]] | None = None,
    first_read: int | None = None,
    patterns: bool = False,
    rules: Rules = PLAIN,
    outputs: bool = False,
    neurons: bool = False,
    switch: LayerSwitch | None = None,
) -> Activations:
    """One forward of the model under hooks, inside a `session`.

    gradients: make the slots (projection outputs, MLP inputs, final norm input) differentiable.
    entry: replaces the residual stream before block 0. held: replaces what sublayers write in some rows.
    reads: (rows, columns from `start`) where logits are wanted; first_read: the first of the columns, where it is known
    without asking the device. rules: what gradients count as constant.
    outputs: record what attentions write too, and have the entry be differentiable; neurons: the MLPs' neurons as well.
    switch: has gradients stop at a layer's outputs.
    patterns: record attention probabilities too; the library's eager attention, which gives them, is used for the pass.
    """
    width = sequences.tokens.shape[1]
    seen = Activations(real=sequences.mask[:, -width:])
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(gradients):
        hook_rules(blocks, Norm(model.get_submodule(record.final_norm), record.norm), rules, stack)
        hook_blocks(blocks, seen, stack, gradients, entry, gradients and outputs)
        if outputs:
            hook_outputs(blocks, seen, neurons, stack)
        hook_patterns(blocks, rules, stack)
        hook_held(blocks, held, stack)
        if switch is not None:
            hook_switch(blocks, switch, stack)
        if patterns:
            _hook_patterns(model, blocks, seen, stack)

        def final(module: nn.Module, args: tuple) -> None:
            seen.final_in = args[0]

        stack.callback(model.get_submodule(record.final_norm).register_forward_pre_hook(final).remove)
        arguments: dict[str, Any] = dict(
            input_ids=sequences.tokens,
            attention_mask=sequences.mask.long(),
            position_ids=sequences.positions,
            past_key_values=copy_cache(sequences.cache),
            use_cache=False,
        )
        if reads is None:
            model.base_model(**arguments)
        else:
            first = int(reads[1].min()) if first_read is None else first_read
            logits = model(**arguments, logits_to_keep=width - first).logits
            seen.logits = logits[reads[0], reads[1] - first]
    return seen


def eager_attention(model: PreTrainedModel, stack: contextlib.ExitStack) -> None:
    """Have every attention module of the model use the library's eager kernel until the stack closes."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        if getattr(config, "_attn_implementation_internal", None) is not None:
            override(cast(Any, config), "_attn_implementation_internal", "eager", stack)


def _hook_patterns(
    model: PreTrainedModel, blocks: Sequence[Block], seen: Activations, stack: contextlib.ExitStack
) -> None:
    eager_attention(model, stack)

    def attended(module: nn.Module, args: tuple, out: tuple) -> None:
        seen.patterns.append(out[1])

    for block in blocks:
        stack.callback(block.attention.register_forward_hook(attended).remove)


@contextlib.contextmanager
def projections_widened(blocks: Sequence[Block]) -> Iterator[None]:
    """Give each query head its own keys and values (where ungrouped) without recording anything."""
    with contextlib.ExitStack() as stack:
        for block in blocks:
            for module in block.projections if block.ungrouped else ():

                def widen(module: nn.Module, args: tuple, out: Tensor, block: Block = block) -> Tensor:
                    return widen_raw(block, module, out)

                stack.callback(module.register_forward_hook(widen).remove)
        yield


def prefix_cache(model: PreTrainedModel, blocks: Sequence[Block], batch: Batch, start: int) -> DynamicCache:
    """Keys and values of the columns before `start` of the clean prompts, computed once and without gradients."""
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad(), projections_widened(blocks):
        model.base_model(
            input_ids=batch.clean[:, :start],
            attention_mask=batch.mask[:, :start].long(),
            position_ids=batch.positions[:, :start],
            past_key_values=cache,
            use_cache=True,
        )
    return cache


def replay(
    call: tuple[tuple, dict[str, Any]], hidden: Tensor, cache: DynamicCache | None, rows: int
) -> tuple[tuple, dict]:
    """Arguments of a recorded attention call for another pass: its own cache, and rows repeated for several masks."""
    args, kwargs = call
    repeats = hidden.shape[0] // rows

    def adapt(value: Any) -> Any:
        if isinstance(value, DynamicCache):
            return cache
        if isinstance(value, Tensor) and repeats > 1 and value.ndim >= 2 and value.shape[0] == rows:
            return value.repeat(repeats, *[1] * (value.ndim - 1))
        if isinstance(value, tuple):
            return tuple(adapt(item) for item in value)
        return value

    adapted = {name: adapt(value) for name, value in kwargs.items()}
    if args:
        return (hidden, *(adapt(value) for value in args[1:])), adapted
    return (), adapted | {"hidden_states": hidden}

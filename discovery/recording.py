"""Recorded passes of the untouched model: what hooks see of one forward, with or without gradients."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from discovery.architecture import Architecture
from discovery.blocks import Block, Norm
from discovery.model import Sublayer
from discovery.relevance import hook_patterns, hook_rules
from discovery.rules import PLAIN, Rules


@dataclass(frozen=True, eq=False)
class Sequences:
    """Token sequences for one pass; columns before `start` are in the cache already."""

    tokens: Int[Tensor, "row pos"]
    """Token ids from column `start` on."""
    mask: Bool[Tensor, "row total"]
    """True at real tokens, all columns."""
    positions: Int[Tensor, "row pos"]
    """Position ids from column `start` on."""
    cache: DynamicCache | None
    """Keys and values of the columns before `start`; None when there are none."""

    def repeat(self, times: int) -> Sequences:
        """The same sequences several times over, one after the other."""
        if times == 1:
            return self
        tokens, mask, positions = (part.repeat(times, 1) for part in (self.tokens, self.mask, self.positions))
        return Sequences(tokens, mask, positions, copy_cache(self.cache, times))


@dataclass(frozen=True, eq=False)
class Held:
    """What is put in the place of a sublayer's output."""

    place: Sublayer
    """The sublayer."""
    rows: slice
    """Rows of the pass."""
    value: Float[Tensor, "row pos d_model"]
    """What the residual stream receives there."""


@dataclass(eq=False)
class Activations:
    """What one forward pass did, from column `start` on. Lists have one entry per layer."""

    entry: Tensor | None = None
    """Residual stream before block 0 [row pos d_model]."""
    attention_in: list[Tensor] = field(default_factory=list)
    """Residual stream before the attention."""
    mlp_in: list[Tensor] = field(default_factory=list)
    """Residual stream before the MLP."""
    raw: list[tuple[Tensor, ...]] = field(default_factory=list)
    """Outputs of the projection modules (widened where key/value heads are ungrouped)."""
    mix: list[Tensor] = field(default_factory=list)
    """Input of the output projection: the heads' mixed values [row pos head*d_head]."""
    attention_sum: list[Tensor] = field(default_factory=list)
    """Output of the output projection, recorded where a post-norm follows."""
    mlp_normed: list[Tensor] = field(default_factory=list)
    """Input of the MLP module."""
    mlp_raw: list[Tensor] = field(default_factory=list)
    """Output of the MLP module, recorded where a post-norm follows."""
    mlp_out: list[Tensor] = field(default_factory=list)
    """What the MLP adds to the residual stream."""
    patterns: list[Tensor] = field(default_factory=list)
    """Attention probabilities [row head query key], where they were asked for."""
    final_in: Tensor | None = None
    """Residual stream before the final norm."""
    calls: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)
    """Arguments of each attention module, to call it again."""
    logits: Float[Tensor, "read vocab"] | None = None
    """Logits at the reads, where they were asked for."""
    real: Bool[Tensor, "row pos"] | None = None
    """True at tokens that are no padding."""


def copy_cache(cache: DynamicCache | None, repeats: int = 1) -> DynamicCache | None:
    """A cache that a forward pass may grow without changing the original; rows repeated for several masks."""
    if cache is None:
        return None
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]  # tensors are replaced by updates, never written into
    if repeats > 1:
        for layer in cast(list[Any], twin.layers):
            if layer.is_initialized:
                layer.keys = layer.keys.repeat(repeats, 1, 1, 1)
                layer.values = layer.values.repeat(repeats, 1, 1, 1)
    return twin


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
    patterns: bool = False,
    rules: Rules = PLAIN,
) -> Activations:
    """One forward of the model under hooks, inside a `session`.

    gradients: make the slots (projection outputs, MLP inputs, final norm input) differentiable.
    entry: replaces the residual stream before block 0. held: replaces what sublayers write in some rows.
    reads: (rows, columns from `start`) where logits are wanted. rules: what gradients count as constant.
    patterns: record attention probabilities too; the library's eager attention, which gives them, is used for the pass.
    """
    width = sequences.tokens.shape[1]
    seen = Activations(real=sequences.mask[:, -width:])
    with contextlib.ExitStack() as stack, torch.set_grad_enabled(gradients):
        hook_rules(blocks, Norm(model.get_submodule(record.final_norm), record.norm), rules, stack)
        _hook_blocks(blocks, seen, stack, gradients, entry)
        hook_patterns(blocks, rules, stack)
        _hook_held(blocks, held, stack)
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
            first = int(reads[1].min())
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


def _hook_held(blocks: Sequence[Block], held: Sequence[Held], stack: contextlib.ExitStack) -> None:
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


def _hook_blocks(
    blocks: Sequence[Block], seen: Activations, stack: contextlib.ExitStack, gradients: bool, entry: Tensor | None
) -> None:
    def add(handle: Any) -> None:
        stack.callback(handle.remove)

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if seen.entry is None:
            hidden = args[0] if args else kwargs["hidden_states"]
            seen.entry = hidden if entry is None else entry
            if entry is not None:
                return ((entry, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": entry})
        return None

    add(blocks[0].layer.register_forward_pre_hook(enter, with_kwargs=True))
    for block in blocks:
        _hook_attention(block, seen, add, gradients)
        _hook_mlp(block, seen, add, gradients)


def _hook_attention(block: Block, seen: Activations, add: Callable[[Any], None], gradients: bool) -> None:
    outputs: dict[nn.Module, Tensor] = {}

    def before_layer(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.attention_in.append(args[0] if args else kwargs["hidden_states"])

    def call(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.calls.append((args, kwargs))

    def projected(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if block.ungrouped:
            out = _widen_raw(block, module, out)
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


def _widen_raw(block: Block, module: nn.Module, out: Tensor) -> Tensor:
    if block.layout != "separate":
        return block.join(block.widen(block.split((out,))))[0]
    if module is block.projections[0]:
        return out
    return (
        out.unflatten(-1, (block.kv_heads, block.d_head))
        .repeat_interleave(block.heads // block.kv_heads, -2)
        .flatten(-2)
    )


@contextlib.contextmanager
def projections_widened(blocks: Sequence[Block]) -> Iterator[None]:
    """Give each query head its own keys and values (where ungrouped) without recording anything."""
    with contextlib.ExitStack() as stack:
        for block in blocks:
            for module in block.projections if block.ungrouped else ():

                def widen(module: nn.Module, args: tuple, out: Tensor, block: Block = block) -> Tensor:
                    return _widen_raw(block, module, out)

                stack.callback(module.register_forward_hook(widen).remove)
        yield


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

    writer = block.mlp
    if block.post_mlp_norm is not None:
        add(block.mlp.register_forward_hook(raw))
        writer = block.post_mlp_norm.module
    add(writer.register_forward_hook(out))


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

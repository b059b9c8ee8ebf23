"""Passes over one batch that see, or change, what is at a site: plain forward hooks on the untouched model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.heat_map import Site
from discovery.recording import override

Visit = Callable[[Site, int, Tensor], "Tensor | None"]
"""Called with a site, its layer and its value [row pos width]; what it gives takes the value's place."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One run's values at every site, and its logits."""

    values: Mapping[tuple[Site, int], Tensor]
    """By site and layer, [row pos width]."""
    logits: Float[Tensor, "read vocab"]
    """At the batch's reads."""
    outputs: Mapping[int, tuple] = field(default_factory=dict)
    """Layers that give a tuple: what follows the hidden state in it."""


class Passes:
    """Passes over one batch's clean prompts, or over other tokens in their places. Made inside a session."""

    def __init__(self, model: ComponentModel, batch: Batch) -> None:
        """batch: on the model's device."""
        self.model, self.batch = model, batch

    def record(self, tokens: Int[Tensor, "row pos"]) -> Seen:
        """A pass as it is."""
        values: dict[tuple[Site, int], Tensor] = {}
        outputs: dict[int, tuple] = {}

        def visit(site: Site, layer: int, value: Tensor) -> None:
            values[site, layer] = value

        def see(layer: int) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple, out: Any) -> None:
                if isinstance(out, tuple):
                    outputs[layer] = out[1:]

            return keep

        with contextlib.ExitStack() as stack, torch.no_grad():
            for block in self.model.blocks:
                stack.callback(block.layer.register_forward_hook(see(block.index)).remove)
            logits = self.forward(tokens, visit)
        return Seen(values, logits, outputs)

    def forward(
        self,
        tokens: Int[Tensor, "rows pos"],
        visit: Visit,
        first: int = 0,
        outputs: Mapping[int, tuple] | None = None,
    ) -> Float[Tensor, "reads vocab"]:
        """Logits at the reads of a pass over `tokens` (the batch's rows, once or more often), from layer `first` on.

        outputs: of the layers before that, as a recorded pass has them.
        """
        batch, rows = self.batch, len(self.batch.clean)
        copies = len(tokens) // rows
        start = int(batch.read_column.min())
        with contextlib.ExitStack() as stack:
            for block in self.model.blocks[:first]:
                rest = (outputs or {}).get(block.index)
                override(block.layer, "forward", _passing(rest), stack)
            stack.enter_context(_visiting(self.model, visit))
            logits = self.model.hf(
                input_ids=tokens,
                attention_mask=batch.mask.long().repeat(copies, 1),
                position_ids=batch.positions.repeat(copies, 1),
                use_cache=False,
                logits_to_keep=batch.clean.shape[1] - start,
            ).logits
        offsets = torch.arange(copies, device=tokens.device)[:, None] * rows
        return logits[(offsets + batch.read_row).flatten(), (batch.read_column - start).repeat(copies)]


def _passing(rest: tuple | None) -> Callable[..., Any]:
    """A layer that does nothing, giving what the real one gives beside the hidden state."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if rest is None else (hidden_states, *rest)

    return forward


@contextlib.contextmanager
def _visiting(model: ComponentModel, visit: Visit) -> Iterator[None]:
    """Calls `visit` at every site of a forward pass."""

    def entering(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            value = visit("residual", layer, args[0] if args else kwargs["hidden_states"])
            if value is None:
                return None
            return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

        return hook

    def before(site: Site, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple) -> Any:
            value = visit(site, layer, args[0])
            return None if value is None else (value, *args[1:])

        return hook

    def after(site: Site, layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> Any:
            return visit(site, layer, out)

        return hook

    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            for handle in (
                block.layer.register_forward_pre_hook(entering(block.index), with_kwargs=True),
                block.output.register_forward_pre_hook(before("head", block.index)),
                block.output.register_forward_hook(after("attention", block.index)),
                block.mlp.register_forward_hook(after("mlp", block.index)),
            ):
                stack.callback(handle.remove)
        final = model.hf.get_submodule(model.arch.final_norm)
        handle = final.register_forward_pre_hook(before("residual", len(model.blocks)))
        stack.callback(handle.remove)
        yield

"""How the queries and keys of a frozen prompt follow from the residual stream, as the library's own module computes them.

Rotary embeddings, query and key norms and scalings stay the library's: the attention module is called again with its kernel
replaced by one that looks, and with basis vectors in the place of the projections' outputs. Norms of queries and keys keep
the denominators that they had, which leaves a linear map at each position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from discovery.architecture import UnsupportedModel
from discovery.blocks import Norm, Projected
from discovery.component_model import ComponentModel
from discovery.frozen_prompt import FrozenPrompt
from discovery.recording import override, replay, session
from graphs.node import Port

# Modules that do not ask transformers' table for their kernel have it as a method: GPT-Neo, GPT-J; GPT-2 for one setting.
_OWN_KERNELS = ("_attn", "_upcast_and_reordered_attn")
_BATCH_BYTES = 64 * 2**20
_PROBE = 8.0


class _Caught(NamedTuple):
    """What reached an attention kernel."""

    query: Float[Tensor, "row head pos d_head"]
    key: Float[Tensor, "row kv_head pos d_head"]
    scaling: float | None


@dataclass(frozen=True, eq=False)
class Reader:
    """One side of a head's scores as a linear function of the residual stream before the attention, position by position."""

    slopes: Float[Tensor, "pos d_head d_head"]
    """From the projection's output to the query or key."""
    weight: Float[Tensor, "d_head d_model"]
    """The projection, the norm's weight and centring in front of it folded in."""
    own: Float[Tensor, "pos d_head"]
    """The part that no source carries: biases of projections and norms."""
    value: Float[Tensor, "pos d_head"]
    """The query or key itself."""


class ScoreMaps:
    """Queries, keys and their linear maps of one layer of a frozen prompt. Positions are the prompt's, from 0.

    A score is scale * query . key: before the mask and before a soft cap, where there is one.
    """

    def __init__(self, model: ComponentModel, frozen: FrozenPrompt, layer: int) -> None:
        """Raises UnsupportedModel where the model's attention computes its scores out of sight."""
        self._model, self._block, self._frozen = model, model.blocks[layer], frozen
        self._call = frozen.seen.calls[layer]
        attention = self._block.attention
        own = {*self._block.projections, self._block.output}
        self._norms = [m for m in attention.children() if m not in own and _is_norm(m)]
        args, kwargs = self._call
        hidden = args[0] if args else kwargs["hidden_states"]
        seen: dict[nn.Module, Tensor] = {}
        with self._watched() as (caught, stack):
            for norm in self._norms:
                stack.callback(norm.register_forward_pre_hook(lambda m, a: seen.__setitem__(m, a[0].detach())).remove)
            self._attend(hidden)
        self._frozen_norms = {norm: self._freeze(norm, x) for norm, x in seen.items()}
        query, key, scaling = caught[0]
        self.queries: Float[Tensor, "head pos d_head"] = query[0].to(model.dtype)
        """What the kernel multiplies with the keys."""
        self.keys: Float[Tensor, "kv_head pos d_head"] = key[0].to(model.dtype)
        """Its counterpart; query heads of a group share one."""
        self.scale: float = self._probe() if scaling is None else float(scaling)

    def key_head(self, head: int) -> int:
        """The key/value head, as the model has them, of a query head."""
        return head * len(self.keys) // len(self.queries)

    def scores(self, head: int, query: int) -> Float[Tensor, " key"]:
        """Scores of a query with the keys at all positions, masked or not."""
        return self.scale * self.keys[self.key_head(head)] @ self.queries[head, query]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[tuple[list[_Caught], contextlib.ExitStack]]:
        """Kernels that note what reaches them and attend to nothing."""
        caught: list[_Caught] = []

        def kernel(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> tuple:
            caught.append(_Caught(query, key, options.get("scaling")))
            return query.new_zeros(()).expand_as(query.transpose(1, 2)), None

        def own_kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> tuple:
            caught.append(_Caught(query, key, None))
            return query.new_zeros(()).expand_as(query), None

        with contextlib.ExitStack() as stack, session(self._model.hf, self._model.arch, ()), torch.no_grad():
            override(ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *_: kernel, stack)
            for name in _OWN_KERNELS:
                if hasattr(self._block.attention, name):
                    override(self._block.attention, name, own_kernel, stack)
            override(self._block.output, "forward", lambda mix: mix, stack)
            yield caught, stack
        if not caught:
            raise UnsupportedModel(
                f"model type {self._model.config.model_type!r}: its attention does not use the library's kernels, so that "
                "queries and keys cannot be seen"
            )

    def _attend(self, hidden: Tensor) -> None:
        # Nothing is repeated for the rows: what depends on positions alone broadcasts, and no kernel reads the mask.
        args, kwargs = replay(self._call, hidden, None, len(hidden))
        self._block.attention(*args, **kwargs)

    def _freeze(self, module: nn.Module, seen: Tensor) -> Callable[[Tensor], Tensor]:
        """A norm of queries or keys with the denominators that it had. It is of the kind of the model's other norms."""
        norm, dtype = Norm(module, self._model.arch.norm), self._model.dtype
        scale = norm.inverse_scale(norm.centre(seen.to(dtype)))

        def frozen(x: Tensor) -> Tensor:
            out = norm.centre(x) * scale * norm.weight.to(dtype)
            return out if norm.bias is None else out + norm.bias.to(dtype)

        with torch.no_grad():
            true = norm(seen).to(dtype)
            if not torch.allclose(frozen(seen.to(dtype)), true, rtol=0.05, atol=0.02 * float(true.abs().max())):
                kind = type(module).__name__
                raise UnsupportedModel(f"{kind} in the attention is no norm of kind {self._model.arch.norm!r}")
        return frozen

    def _probe(self) -> float:
        """The scale of a kernel that keeps it to itself: from the weights that it gives two keys."""
        attention = self._block.attention
        kernel = next(getattr(attention, name) for name in _OWN_KERNELS if hasattr(attention, name))
        key = self.queries.new_zeros((1, len(self.queries), 2, self.queries.shape[-1]))
        key[:, :, 1, 0] = 1
        with session(self._model.hf, self._model.arch, ()), torch.no_grad():
            weights = kernel(key * _PROBE, key, key)[1][0, 0, 1]
        scale = float((weights[1].double() / weights[0].double()).log()) / _PROBE
        if not 0 < scale < float("inf"):
            raise UnsupportedModel(f"layer {self._block.index}: the scale of its attention scores cannot be found out")
        return scale

    def reader(self, port: Port, head: int) -> Reader:
        """The query (port q) or key (port k) of a head at every position, as functions of the residual stream."""
        block, dtype = self._block, self._model.dtype
        slot = head if port == "q" else head * block.kv_slots // block.heads
        weight, bias = block.weight(port)[slot].detach().to(dtype), block.bias(port)
        slopes, constant = self._slopes(port, head)
        added = weight.new_zeros(len(weight)) if bias is None else bias[slot].detach().to(dtype)
        norm = block.attention_norm
        if norm is not None:
            if norm.bias is not None:
                added = added + weight @ norm.bias.detach().to(dtype)
            weight = norm.centre(weight * norm.weight.detach().to(dtype))
        value = self.queries[head] if port == "q" else self.keys[self.key_head(head)]
        return Reader(slopes, weight, slopes @ added + constant, value)

    def _slopes(self, port: Port, head: int) -> tuple[Tensor, Tensor]:
        """From projections' outputs to queries or keys: slopes [pos d_head d_head] and constants [pos d_head]."""
        heads, kv_heads, width, d_head = len(self.queries), len(self.keys), *self.queries.shape[1:]
        unit = torch.eye(d_head, dtype=self._model.dtype, device=self.queries.device)
        inputs = torch.cat([unit.new_zeros((1, d_head)), unit])
        found: list[Tensor] = []
        for some in inputs.split(max(1, _BATCH_BYTES // (4 * width * (heads + 2 * kv_heads) * d_head))):
            rows = some[:, None, None]
            key = rows.expand(-1, width, kv_heads, -1)
            raws = self._block.join(Projected(rows.expand(-1, width, heads, -1), key, torch.zeros_like(key)))
            hidden = rows.new_zeros(()).expand(len(some), width, self._frozen.embeddings.shape[1])
            with self._watched() as (caught, stack):
                for module, raw in zip(self._block.projections, raws, strict=True):
                    override(module, "forward", lambda _hidden, raw=raw: raw, stack)
                for norm, frozen in self._frozen_norms.items():
                    override(norm, "forward", frozen, stack)
                self._attend(hidden)
            found.append(caught[0].query[:, head] if port == "q" else caught[0].key[:, self.key_head(head)])
        outputs = torch.cat(found).to(self._model.dtype)
        return (outputs[1:] - outputs[0]).permute(1, 2, 0), outputs[0]


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1

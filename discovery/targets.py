"""What an attribution graph explains: the likely next tokens, differences of logits, or features."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.frozen_prompt import FrozenPrompt
from graphs.node import BadName, NodeId


class BadTarget(ValueError):
    """A target that cannot be explained."""


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to explain."""

    node: NodeId
    """Its node, at a position."""
    weight: float
    """How much it counts: a probability, or 1."""
    value: float
    """The demeaned logit, or difference of logits, before a soft cap; a feature's is known from its node (NaN here)."""
    direction: Float[Tensor, " d_model"] | None = None
    """Behind the final norm; None for a feature."""
    own: float = 0.0
    """The part of the value that no source carries: biases of the final norm and of the unembedding."""
    texts: Mapping[int, str] = field(default_factory=dict)
    """Vocabulary number -> text."""


class LogitReader:
    """Demeaned logits of one prompt's last position, and what they read."""

    def __init__(self, model: ComponentModel, frozen: FrozenPrompt) -> None:
        head = model.hf.get_submodule(model.arch.unembedding)
        weight: Tensor = head.weight  # type: ignore[assignment]
        bias = getattr(head, "bias", None)
        self._weight = weight
        self._bias = None if bias is None else bias.detach().to(model.dtype)
        self._dtype = model.dtype
        self._mean = weight.detach().to(model.dtype).mean(0)
        final = frozen.seen.final_in
        assert final is not None
        norm = model.final_norm
        stream = final[0, -1].to(model.dtype)
        self._normed = norm.centre(stream) * frozen.final_scale[-1] * norm.weight.detach().to(model.dtype)
        self._norm_bias = None if norm.bias is None else norm.bias.detach().to(model.dtype)
        self._position = len(frozen.tokens) - 1
        self._tokenizer = model.tokenizer

    def target(self, index: int, minus: int | None, weight: float) -> Target:
        """A demeaned logit, or a difference of two logits."""
        rows = self._weight.detach()
        below = self._mean if minus is None else rows[minus].to(self._dtype)
        direction = rows[index].to(self._dtype) - below
        own = 0.0 if self._norm_bias is None else float(direction @ self._norm_bias)
        if self._bias is not None:
            own += float(self._bias[index] - (self._bias.mean() if minus is None else self._bias[minus]))
        kind = "logit" if minus is None else "difference"
        node = NodeId(kind, None, index, self._position, minus)
        texts = {number: self._text(number) for number in (index, minus) if number is not None}
        return Target(node, weight, float(direction @ self._normed) + own, direction, own, texts)

    def _text(self, number: int) -> str:
        return str(number) if self._tokenizer is None else str(self._tokenizer.decode([number]))


def likely_targets(
    model: ComponentModel, frozen: FrozenPrompt, most: int = 10, probability: float = 0.95
) -> tuple[Target, ...]:
    """The most likely next tokens, up to a cumulative probability; each counts as much as its probability (conventions)."""
    reader = LogitReader(model, frozen)
    values, order = torch.softmax(frozen.logits, 0).topk(min(most, len(frozen.logits)))
    wanted = int((values.cumsum(0) < probability).sum()) + 1
    pairs = zip(order[:wanted].tolist(), values[:wanted].tolist(), strict=True)
    return tuple(reader.target(index, None, weight) for index, weight in pairs)


_LOGIT = re.compile(
    r"""logit\(\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<number>\d+))\s*\)|logit(?P<plain>\d+)"""
)


def parse_targets(model: ComponentModel, frozen: FrozenPrompt, texts: Sequence[str]) -> tuple[Target, ...]:
    """Targets as users write them: `logit(" Paris")`, `logit(312)`, `logit(" Paris") - logit(" Rome")`, `f2.31@4`.

    Logits alone count as much as their probabilities, differences and features 1. Raises BadTarget naming the text.
    """
    reader = LogitReader(model, frozen)
    return tuple(_parse(model, frozen, reader.target, text) for text in texts)


def _parse(model: ComponentModel, frozen: FrozenPrompt, make: Callable[..., Target], text: str) -> Target:
    parts = list(_LOGIT.finditer(text))
    if not parts:
        try:
            node = NodeId.parse(text.strip())
        except BadName:
            node = None
        if node is None or node.kind != "feature":
            raise BadTarget(
                f'{text!r} is no target: write logit(312), logit(" Paris") - logit(" Rome"), or a feature such as f2.31@4'
            )
        return Target(node, 1.0, float("nan"))
    between = _LOGIT.sub("", text).strip()
    if len(parts) > 2 or between != "-" * (len(parts) - 1) or (len(parts) == 2 and text.strip().startswith("-")):
        raise BadTarget(f"{text!r} is no target: one logit, or one logit - another")
    numbers = [_token(model, part, text) for part in parts]
    if len(numbers) == 2:
        if numbers[0] == numbers[1]:
            raise BadTarget(f"{text!r}: both logits are token {numbers[0]}")
        return make(numbers[0], numbers[1], 1.0)
    return make(numbers[0], None, float(torch.softmax(frozen.logits, 0)[numbers[0]]))


def _token(model: ComponentModel, part: re.Match[str], text: str) -> int:
    number = part["number"] or part["plain"]
    vocabulary: int = model.hf.get_submodule(model.arch.unembedding).weight.shape[0]  # type: ignore[union-attr,index,assignment]
    if number is not None:
        if int(number) >= vocabulary:
            raise BadTarget(f"{text!r}: the model's vocabulary ends at {vocabulary - 1}")
        return int(number)
    word = part["double"] if part["double"] is not None else part["single"]
    if model.tokenizer is None:
        raise BadTarget(f"{text!r}: this model has no tokenizer; give a vocabulary number, such as logit(312)")
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:  # type: ignore[arg-type]
        raise BadTarget(f"{text!r}: {word!r} is {len(ids)} tokens, not one (mind the space in front)")  # type: ignore[arg-type]
    return int(ids[0])  # type: ignore[index]

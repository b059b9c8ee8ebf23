"""A sequence of tokens that a causal language model reads and goes on with: key/value cache, sampling, a full context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel


class Cancelled(RuntimeError):
    """The reply is no longer wanted."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 = always the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that hold this share of the probability."""
    seed: int = 0
    """Of the draws: the same seed and the same request give the same reply."""


class TokenStream:
    """Tokens said so far, and what the model would say next. Tokens are only ever appended."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompt: Sequence[int],
        sampling: Sampling,
        most: int,
        window: int | None,
        slide: bool,
    ) -> None:
        """most: tokens that may follow the prompt. window: tokens that the model can read; None = any number.

        slide: in a full window the oldest half is forgotten; else the stream is spent.
        """
        self.model = model
        self.sampling = sampling
        self.left = most
        """Tokens that may still be said."""
        self._window = window
        self._slide = slide
        self._read = list(prompt)
        self._unread = list(prompt)
        self._cache: Any = None
        self._logits: Tensor | None = None
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def spent(self) -> bool:
        """Whether nothing more may be said."""
        return self.left <= 0 or (not self._slide and self._window is not None and len(self._read) >= self._window)

    def append(self, ids: Iterable[int]) -> None:
        """Says tokens."""
        new = list(ids)
        if new:
            self._read += new
            self._unread += new
            self.left -= len(new)
            self._logits = None

    def logits(self) -> Float[Tensor, " vocab"]:
        """The next token's logits in float32, on the CPU."""
        if self._logits is None:
            self._logits = self._forward()
        return self._logits

    def _forward(self) -> Tensor:
        if self._window is not None and len(self._read) > self._window:
            kept = self._window // 2
            self._read = [self._read[0], *self._read[len(self._read) - kept + 1 :]]
            self._unread, self._cache = list(self._read), None
        ids = torch.tensor([self._unread], device=self.model.device)
        with torch.inference_mode():
            out: Any = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True)
            self._cache = getattr(out, "past_key_values", None)
            last = out.logits[0, -1].float().cpu()
        # Without a cache the model reads everything anew.
        self._unread = [] if self._cache is not None else list(self._read)
        if not bool(torch.isfinite(last).any()) or bool(last.isnan().any()):
            raise RuntimeError("the model's logits are not numbers")
        return last

    def draw(self, allowed: Bool[np.ndarray, " vocab"] | Sequence[int] | None = None) -> int:
        """One of the allowed tokens (a mask, or ids), or of all; it is not appended."""
        logits = self.logits()
        ids = None if allowed is None else torch.as_tensor(_ids(allowed))
        chances = logits if ids is None else logits[ids]
        place = self._draw(chances)
        return place if ids is None else int(ids[place])

    def weigh(self, groups: Sequence[Sequence[int]]) -> int:
        """One of several sets of tokens, by their probability as the next token. The first, where none has any."""
        sizes = [len(group) for group in groups]
        if not any(sizes):
            return 0
        logits = self.logits()
        sums = [torch.logsumexp(logits[torch.as_tensor(list(g))], 0) if g else torch.tensor(-torch.inf) for g in groups]
        return self._draw(torch.stack(sums))

    def _draw(self, logits: Float[Tensor, " choice"]) -> int:
        if self.sampling.temperature == 0 or not bool(torch.isfinite(logits).any()):
            return int(logits.argmax())
        chances = torch.softmax(logits.double() / self.sampling.temperature, 0)
        if self.sampling.top_p < 1:
            ordered, order = chances.sort(descending=True)
            unwanted = ordered.cumsum(0) - ordered >= self.sampling.top_p
            chances[order[unwanted]] = 0
        return int(torch.multinomial(chances, 1, generator=self._generator))


def _ids(allowed: Bool[np.ndarray, " vocab"] | Sequence[int]) -> np.ndarray:
    return np.flatnonzero(allowed) if isinstance(allowed, np.ndarray) else np.array(list(allowed))

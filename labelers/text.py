"""Windows of text side by side in one array, so that a rule looks at all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of some windows, none of them empty, one window behind the other."""

    windows: tuple[tuple[str, ...], ...]
    """Texts of the tokens; hostile."""

    def __post_init__(self) -> None:
        if not all(self.windows):
            raise ValueError("a window without tokens")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens."""
        return tuple(token for window in self.windows for token in window)

    @cached_property
    def starts(self) -> Int[np.ndarray, " window"]:
        """Place of each window's first token."""
        return np.cumsum([0, *map(len, self.windows)])[:-1].astype(np.int64)

    @cached_property
    def first(self) -> Int[np.ndarray, " token"]:
        """Place of the first token of each token's window."""
        return np.repeat(self.starts, [len(window) for window in self.windows])

    @cached_property
    def numbers(self) -> dict[str, int]:
        """A number for each different token."""
        return {token: number for number, token in enumerate(dict.fromkeys(self.tokens))}

    @cached_property
    def codes(self) -> Int[np.ndarray, " token"]:
        """The number of each token."""
        return np.array([self.numbers[token] for token in self.tokens], dtype=np.int64)

    def is_one_of(self, words: Sequence[str]) -> Bool[np.ndarray, " token"]:
        """Which tokens are, exactly, one of these."""
        wanted = np.zeros(len(self.numbers) + 1, dtype=bool)
        wanted[[self.numbers.get(word, -1) for word in words]] = True
        wanted[-1] = False
        return wanted[self.codes]

    def shifted(self, mask: Bool[np.ndarray, " token"], offset: int) -> Bool[np.ndarray, " token"]:
        """Which tokens have a True of `mask` at `offset` (-1: the token before) in their own window."""
        result = np.zeros_like(mask)
        places = np.arange(len(mask)) + offset
        inside = (places >= 0) & (places < len(mask))
        inside[inside] = self.first[places[inside]] == self.first[inside]
        result[inside] = mask[places[inside]]
        return result

    def recently(self, mask: Bool[np.ndarray, " token"], reach: int) -> Bool[np.ndarray, " token"]:
        """Which tokens have a True of `mask` among the `reach` tokens before them in their own window."""
        count = np.concatenate([[0], np.cumsum(mask)])
        places = np.arange(len(mask))
        return count[places] > count[np.maximum(self.first, places - reach)]

    def any_in_window(self, masks: Bool[np.ndarray, "*mask token"]) -> Bool[np.ndarray, "*mask window"]:
        """Which windows hold a True."""
        return np.logical_or.reduceat(masks, self.starts, axis=-1)

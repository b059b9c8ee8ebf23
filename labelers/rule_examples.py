"""The windows that a rule is learned from: where a node fires, where it is silent, and how much each window counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from graphs.evidence import Context, Evidence
from labelers.rules.rule import Mask
from labelers.text import Text

FIRES = 0.25
"""A token counts as firing from this share of its window's peak on."""
POSITIVE = ("top", "spread")
_WEIGHT = {"top": 0.5}


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows in which a node fires and windows in which it does not."""

    text: Text
    """The windows."""
    values: Float[np.ndarray, " token"]
    """How strongly the node is active, without its sign; 0 in windows that are not `positive`."""
    positive: Bool[np.ndarray, " window"]
    """Windows in which it fires."""
    hard: Bool[np.ndarray, " window"]
    """Silent windows that are like the active ones."""
    once: Float[np.ndarray, " window"]
    """How much a window counts among its kind."""
    documents: Int[np.ndarray, " window"]
    """Number of each window's document."""

    @staticmethod
    def of(contexts: Sequence[Context]) -> Examples:
        """The examples that some windows give; those without tokens are left out."""
        shown = [context for context in contexts if context.tokens]
        positive = np.array([context.kind in POSITIVE for context in shown], dtype=bool)
        values = [np.abs(np.array(context.activations)) * fires for context, fires in zip(shown, positive, strict=True)]
        return Examples(
            Text(tuple(context.tokens for context in shown)),
            np.concatenate([*values, np.zeros(0)]),
            positive,
            np.array([context.kind == "hard-negative" for context in shown], dtype=bool),
            np.array([_WEIGHT.get(context.kind, 1.0) for context in shown]),
            np.array([context.document for context in shown], dtype=np.int64),
        )

    @staticmethod
    def that_explain(evidence: Evidence) -> Examples:
        """All that a rule may learn from: the explaining windows that are shown, and those beside them."""
        return Examples.of((*evidence.of("explain"), *[example.context for example in evidence.examples]))

    def some(self, wanted: Bool[np.ndarray, " window"]) -> Examples:
        """Some of the windows."""
        return Examples(
            Text(tuple(window for window, want in zip(self.text.windows, wanted) if want)),
            self.values[wanted[self.window]],
            self.positive[wanted],
            self.hard[wanted],
            self.once[wanted],
            self.documents[wanted],
        )

    @cached_property
    def window(self) -> Int[np.ndarray, " token"]:
        """Number of each token's window."""
        return np.repeat(np.arange(len(self.text.windows)), [len(window) for window in self.text.windows])

    @cached_property
    def fires(self) -> Mask:
        """Tokens at which the node fires."""
        peaks = np.maximum.reduceat(self.values, self.text.starts)
        return (self.values > 0) & (self.values >= FIRES * peaks[self.window])

    @cached_property
    def silent(self) -> Mask:
        """Tokens at which it does nothing. Between the two are weak activations."""
        return self.values == 0

    @cached_property
    def weight(self) -> Float[np.ndarray, " window"]:
        """How much each window counts: those that fire sum to 1, the silent ones too, hard ones and others each half of it."""
        result = self.once.copy()
        kinds = [self.positive, ~self.positive & self.hard, ~self.positive & ~self.hard]
        shares = [1.0, 0.5, 0.5] if kinds[1].any() and kinds[2].any() else [1.0, 1.0, 1.0]
        for kind, share in zip(kinds, shares):
            result[kind] *= share / max(result[kind].sum(), 1e-9)
        return result

    def accuracy(self, holds: Bool[np.ndarray, " window"]) -> float:
        """Balanced accuracy of saying of some windows that the node fires there; a kind that is missing counts as chance."""
        recall = (self.weight * holds)[self.positive].sum() if self.positive.any() else 0.5
        alarms = (self.weight * holds)[~self.positive].sum() if (~self.positive).any() else 0.5
        return float(recall + 1 - alarms) / 2

"""The axis of training steps that all panels of a picture share: linear, or logarithmic with a place for step 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from graphs.drawing import GREY, svg_text
from graphs.scale import Scale, tick_text

_ZERO_GAP = 0.06
"""Share of the axis between step 0 and the first other one, where the axis is logarithmic."""


@dataclass(frozen=True)
class StepAxis:
    """Where steps are, from left to right."""

    steps: tuple[float, ...]
    """Ascending."""
    left: float
    """Pixel of the left end."""
    right: float
    """Pixel of the right end."""

    def __post_init__(self) -> None:
        if not self.steps or any(a >= b for a, b in pairwise(self.steps)) or self.steps[0] < 0:
            raise ValueError("a picture over steps needs steps that ascend from 0 on")

    @property
    def log(self) -> bool:
        """Whether the axis is logarithmic: where steps above 0 span two decades or more."""
        later = [step for step in self.steps if step > 0]
        return len(later) > 2 and later[-1] >= 100 * later[0]

    @property
    def scale(self) -> Scale:
        """The part of the axis that holds the steps above 0 (of a linear axis all)."""
        shown = [step for step in self.steps if step > 0] if self.log else list(self.steps)
        gap = _ZERO_GAP * (self.right - self.left) if self.log and self.steps[0] == 0 else 0.0
        room = 0.02 * (self.right - self.left)
        low, high = (math.log10(shown[i]) if self.log else shown[i] for i in (0, -1))
        if low == high:
            low, high = low - 0.5, high + 0.5
        return Scale(low, high, self.log, self.left + room + gap, self.right - room)

    def __call__(self, step: float) -> float:
        """The pixel of a step."""
        return self.left + 0.02 * (self.right - self.left) if self.log and step == 0 else self.scale(step)

    @property
    def places(self) -> list[float]:
        """The pixels of all steps."""
        return [self(step) for step in self.steps]

    @property
    def cells(self) -> list[tuple[float, float]]:
        """Left and right end of what belongs to each step: half way to its neighbours."""
        places = self.places
        middles = [self.left, *((a + b) / 2 for a, b in pairwise(places)), self.right]
        return list(pairwise(middles))

    def grid(self, top: float, bottom: float) -> list[str]:
        """Lines at round steps."""
        return [f'<path d="M{at:.1f} {top:.1f}V{bottom:.1f}" stroke="#ececec"/>' for at, _ in self._ticks()]

    def numbers(self, bottom: float) -> list[str]:
        """Steps below a panel, and what the axis is."""
        name = "training step (log scale)" if self.log else "training step"
        parts = [f'<path d="M{at:.1f} {bottom:.1f}v4" stroke="#999999"/>' for at, _ in self._ticks()]
        parts += [svg_text(text, at, bottom + 15, 10, GREY, anchor="middle") for at, text in self._ticks()]
        return [*parts, svg_text(name, (self.left + self.right) / 2, bottom + 31, 11, anchor="middle")]

    def _ticks(self) -> list[tuple[float, str]]:
        if len(self.steps) == 1:
            return [(self(self.steps[0]), tick_text(self.steps[0]))]
        low, high = self.steps[0], self.steps[-1]
        found = [(self.scale(value), tick_text(value)) for value in self.scale.ticks(8) if low <= value <= high]
        return [(self(0.0), "0"), *found] if self.log and low == 0 else found

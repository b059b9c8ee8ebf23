"""From numbers to places in a picture: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A number's place between two pixels."""

    low: float
    """Smallest value, or its logarithm."""
    high: float
    """Largest value, or its logarithm."""
    log: bool
    """Logarithmic."""
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""

    @staticmethod
    def over(values: Sequence[float | int], log: bool, start: float, end: float) -> Scale:
        """The scale that holds all values with a little room, logarithmic only where that is possible."""
        log = log and min(values) > 0
        low, high = (math.log10(f(values)) if log else f(values) for f in (min, max))
        room = 0.04 * (high - low) or (0.1 if log else 0.05 * abs(high) or 0.5)
        return Scale(low - room, high + room, log, start, end)

    def __call__(self, value: float | int) -> float:
        """The pixel of a value."""
        inner = math.log10(value) if self.log else value
        return self.start + (inner - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round numbers within the scale."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [step * 10.0**power for power in powers for step in steps]
                found = [value for value in found if self.low <= math.log10(value) <= self.high]
                if len(found) >= 3:
                    return found
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        step = 10 ** math.floor(math.log10((high - low) / count))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
        return [float(step * place) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def tick_text(value: float | int) -> str:
    """A number beside an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

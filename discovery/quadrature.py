"""Rules of integration between the ablated and the clean value, shared by the integrated-gradient methods."""

from __future__ import annotations

from typing import Literal

import numpy as np

from discovery.model import Point

Rule = Literal["left", "right", "midpoint", "gauss-legendre"]
"""left: alpha = k/m, k = 0..m-1; right: k = 1..m; midpoint: (k + 1/2)/m; gauss-legendre: exact to degree 2m - 1."""


def quadrature(steps: int, rule: Rule) -> tuple[Point, ...]:
    """Points on [0, 1], ascending, with weights that sum to 1."""
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return tuple(Point(float((x + 1) / 2), float(w / 2)) for x, w in zip(nodes, weights))
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return tuple(Point((k + offset) / steps, 1 / steps) for k in range(steps))

"""Random numbers that depend on a seed and on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def draw(seed: int, *parts: str) -> np.random.Generator:
    """The generator of one purpose, such as the bootstrap of one test of one node."""
    digest = hashlib.sha256("/".join((str(seed), *parts)).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))

"""What a training run of transcoders depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from discovery.dictionary import DictionaryKind, TrainedActivation
from discovery.transcoder import BadTranscoder


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that a training run depends on, besides model and corpus."""

    kind: DictionaryKind = "per-layer"
    """What is trained."""
    activation: TrainedActivation = "jumprelu"
    """How features are chosen."""
    features: int | None = None
    """Features of each layer; None = 16 times the width of the residual stream."""
    k: int = 15
    """Active features of a token and layer; with jumprelu on average over training text (a few per cent more on other text)."""
    steps: int = 500
    """Batches."""
    batch: int = 2048
    """Tokens in a batch, all streams together."""
    rate: float | None = None
    """Peak of Adam's learning rate; None = 2.5 over the width of what is read (normalised, so that its
    weights are of the order of the root of that width)."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; then it falls along a cosine."""
    first_k: float = 4.0
    """At the start, k times this many features are active."""
    annealed: float = 0.5
    """Share of the steps after which k are."""
    dead_after: int = 500_000
    """Tokens after which a feature that was never active counts as dead."""
    auxiliary: float = 1 / 32
    """Weight of the dead features' loss; 0 leaves them alone."""
    streams: int = 1
    """Independent streams of activity, shared between the processes: their number must divide it."""
    buffer: int = 200_000
    """Tokens of each stream whose activity is held at a time, as far as a stream has so many."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        for name in ("k", "steps", "batch", "streams", "buffer", "dead_after"):
            if getattr(self, name) < 1:
                raise BadTranscoder(f"training: {name} must be at least 1, not {getattr(self, name)}")
        if self.features is not None and self.features <= self.k:
            raise BadTranscoder(f"training: {self.features} features are too few for {self.k} active ones")
        if self.rate is not None and not self.rate > 0:
            raise BadTranscoder(f"training: rate must be above 0, not {self.rate}")
        if self.batch % self.streams:
            raise BadTranscoder(f"training: a batch of {self.batch} tokens cannot be shared by {self.streams} streams")

    def k_at(self, step: int) -> int:
        """Active features of a token at a step."""
        left = max(0.0, 1 - step / max(1.0, self.annealed * self.steps))
        return round(self.k * self.first_k**left)

    def rate_at(self, step: int, width: int) -> float:
        """The learning rate of a step; width: of what is read."""
        peak = self.rate if self.rate is not None else 2.5 / width
        rise = max(1.0, self.warmup * self.steps)
        return peak * min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

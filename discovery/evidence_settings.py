"""How much evidence is collected of a node, and which documents explain it and which score its label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from graphs.evidence import Split

SPLITS: tuple[Split, ...] = ("explain", "score")


@dataclass(frozen=True)
class EvidenceSettings:
    """Numbers of windows and their sizes; defaults as published pipelines have them (Delphi, Neuronpedia)."""

    width: int = 24
    """Tokens of a window."""
    before: int = 15
    """Of them in front of the peak, as far as the text goes back."""
    top: int = 4
    """Windows with the largest peaks, to explain."""
    spread: int = 8
    """Windows over the quantiles of peaks, to explain."""
    scored: int = 10
    """Windows over the quantiles of peaks, to score."""
    negatives: int = 10
    """Windows without activity, to explain and to score each."""
    hard: float = 0.5
    """Share of those that are like the active ones."""
    sample: int = 64
    """Firing windows that are drawn of each node and split: what quantiles, peak tokens and following tokens are counted on.
    Rules learn from all that explain."""
    unshown: int = 100
    """Windows without activity that rules learn from, beside those that are shown."""
    pool: int = 4096
    """Windows of each split among which inactive ones are looked for, the same for all nodes."""
    busy: float = 0.1
    """Share of the tokens at which a head or an MLP, which always writes something, counts as active: those where it writes
    most, by the norm."""
    calibration: int = 16384
    """Tokens on which the norms for `busy` are measured."""
    score_share: float = 0.5
    """Share of the documents that score."""
    pass_width: int = 256
    """Most tokens of a text that the model sees at once."""
    pass_tokens: int = 2048
    """Most tokens of one forward pass: on a CPU few, so that what thousands of features do stays in its cache."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.before < self.width or self.width < 2:
            raise ValueError(f"evidence: windows of {self.width} tokens cannot have {self.before} in front of the peak")
        if min(self.top, self.spread, self.scored, self.negatives, self.sample, self.pool) < 1:
            raise ValueError("evidence: every number of windows must be at least 1")
        if self.unshown < 0:
            raise ValueError(f"evidence: the number of unshown windows must not be negative, not {self.unshown}")
        if not 0 < self.score_share < 1 or not 0 <= self.hard <= 1 or not 0 < self.busy < 1:
            raise ValueError("evidence: score_share and busy lie between 0 and 1, hard from 0 to 1")

    def split_of(self, document: int | str) -> Split:
        """What a document may be used for: a function of its number (or name) and the seed alone."""
        digest = hashlib.sha256(f"split/{self.seed}/{document}".encode("ascii")).digest()
        return "score" if int.from_bytes(digest[:7], "big") < self.score_share * (1 << 56) else "explain"

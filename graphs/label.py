"""Names of nodes, with where they come from and how well they did when they were tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphs.node import NodeId

Role = Literal["detects", "promotes", "suppresses", "moves", "mixed", "unclear"]
ROLES: tuple[Role, ...] = ("detects", "promotes", "suppresses", "moves", "mixed", "unclear")
LONGEST = 6
"""Words of a label's text at most."""


@dataclass(frozen=True)
class Score:
    """One test of a label."""

    value: float
    """Balanced accuracy, a correlation, or a share: see the test's page. 0.5 is chance for balanced accuracies."""
    low: float | None = None
    """Lower end of the bootstrap interval."""
    high: float | None = None
    """Upper end."""
    baseline: float | None = None
    """The same with shuffled labels."""
    examples: int = 0
    """Number of examples that count."""
    unparsed: int = 0
    """Replies that could not be read: not among the examples."""


@dataclass(frozen=True)
class Expectation:
    """What a label says must happen when the node is changed, and whether it did."""

    change: Literal["ablate", "swap"]
    """What is done to the node."""
    direction: Literal["down", "up", "none"]
    """What the label expects of the task's metric."""
    measured: float | None = None
    """Change of the metric as a share of the gap between clean and corrupt; None where it was not measured."""
    passed: bool | None = None
    """Whether the expectation held; None where it was not measured."""


@dataclass(frozen=True)
class Label:
    """What a node is called."""

    node: NodeId
    """The node, without a position."""
    text: str
    """At most `LONGEST` words; hostile where a language model wrote it."""
    role: Role
    """What it does."""
    labeler: str
    """`rules`, a model's name, or `hand`."""
    description: str = ""
    """A sentence or two; hostile."""
    rule: str = ""
    """Name of the rule that gave it, and for what, such as `token:Paris`."""
    cites: tuple[str, ...] = ()
    """Ids of the evidence that it rests on; all exist."""
    counter_evidence: str = ""
    """What speaks against it; hostile."""
    confidence: float | None = None
    """0 to 1, as the labeler says."""
    abstain: bool = False
    """Whether the labeler would rather not name it."""
    expects: Expectation | None = None
    """The causal test."""
    predicts: tuple[str, ...] = ()
    """Tokens that it says the node raises (of role `suppresses`: lowers), strongest first; hostile."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """By test: `precision` and `recall` of a rule, `detection`, `fuzzing`, `intruder`, `output`, ..."""

    def __post_init__(self) -> None:
        if len(self.text.split()) > LONGEST:
            raise ValueError(f"{self.node}: the label {self.text[:60]!r} has more than {LONGEST} words")

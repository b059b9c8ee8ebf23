"""What was measured of a node, for whoever names it: contexts, effects, neighbours. JSON on disk, one file a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphs.node import NodeId

ContextKind = Literal["top", "spread", "hard-negative", "negative"]
"""top: the largest peaks. spread: over the quantiles of peaks. hard-negative: inactive, but alike: a task's counterfactual, or
near in meaning. negative: drawn from the inactive ones."""
Split = Literal["explain", "score"]
"""Windows that explain a node and windows that score its label come from different documents."""


@dataclass(frozen=True)
class Context:
    """A window of a document, with what the node does at each token."""

    id: str
    """What citations name: unique within the node's evidence, such as `c3`."""
    kind: ContextKind
    """Why it is here."""
    split: Split
    """What it may be used for."""
    document: int
    """Number of the document in the corpus; a task's prompts have numbers behind the corpus's."""
    start: int
    """Position of the window's first token in its document."""
    tokens: tuple[str, ...]
    """Texts of the tokens; hostile."""
    activations: tuple[float, ...]
    """The node's activation at each token; for a head the norm of what it writes; 0 where it is inactive."""
    following: str = ""
    """Text of the token behind the peak; hostile."""
    quantile: float | None = None
    """Of a `spread` window: the share of peaks that are smaller."""

    @property
    def peak(self) -> int:
        """Place of the largest activation among the tokens."""
        return max(range(len(self.activations)), key=lambda place: abs(self.activations[place]))


@dataclass(frozen=True)
class Example:
    """A further window of a document that explains, kept short: rules learn from more windows than a prompt holds."""

    document: int
    """Number of the document in the corpus."""
    tokens: tuple[str, ...]
    """Texts of the tokens; hostile."""
    places: tuple[int, ...] = ()
    """Tokens at which the node is active, in rising order; none in a silent window."""
    values: tuple[float, ...] = ()
    """Its activations there, to four digits."""
    hard: bool = False
    """Of a silent window: whether it is like the active ones."""

    def __post_init__(self) -> None:
        if len(self.places) != len(self.values) or any(not 0 <= place < len(self.tokens) for place in self.places):
            raise ValueError(f"an example of {len(self.tokens)} tokens is active at {list(self.places)[:5]}")

    @property
    def context(self) -> Context:
        """The same window as those that are shown, without an id."""
        active = dict(zip(self.places, self.values))
        kind = "spread" if active else "hard-negative" if self.hard else "negative"
        activations = tuple(active.get(place, 0.0) for place in range(len(self.tokens)))
        return Context("", kind, "explain", self.document, 0, self.tokens, activations)


@dataclass(frozen=True)
class TokenEffect:
    """One vocabulary entry and how strongly it is meant."""

    token: str
    """Its text; hostile."""
    value: float
    """Logit per unit of activation (vocabulary projection), or in a prompt (direct logit attribution); in `Evidence.peaks`
    and `Evidence.follows` a share of windows."""


@dataclass(frozen=True)
class CausalEffect:
    """What happened to a task's metric when the node was changed in the model itself."""

    change: Literal["ablate", "swap"]
    """Set to zero (heads, MLPs: to their mean over the corrupt prompts), or to its value on the corrupt prompt."""
    task: str
    """The task."""
    metric: str
    """The metric."""
    before: float
    """Mean over pairs without the change."""
    after: float
    """With it."""
    stderr: float
    """Standard error of the difference over pairs."""
    pairs: int
    """Number of pairs."""
    gap: float | None = None
    """Mean metric of the clean prompts less that of the corrupt ones, both unchanged: the unit of effects."""


@dataclass(frozen=True)
class SteeredToken:
    """What steering a node did to one token."""

    token: str
    """Its text, as the label that predicts it has it; hostile."""
    change: float
    """Change of its logit, less the mean change over the vocabulary: mean over prompts."""
    above: tuple[float, ...]
    """For each prompt the share of the vocabulary whose logits rose less: 0.5 is chance."""


@dataclass(frozen=True)
class Steering:
    """What the model says next when a node writes more of what it writes: on held-out prompts, at every token of them."""

    multiple: float
    """So many times what is typical of it was added."""
    strength: float
    """What was added: to a feature's activation, or the length of what is added to a head's mix or an MLP's output."""
    prompts: int
    """Number of prompts; next tokens are read behind their last tokens."""
    raised: tuple[TokenEffect, ...]
    """The 10 tokens whose logits rose most, less the mean change."""
    lowered: tuple[TokenEffect, ...]
    """The 10 whose logits fell most."""
    tokens: tuple[SteeredToken, ...]
    """Tokens that labels predict: the node's own label, and others for comparison."""


@dataclass(frozen=True)
class Neighbour:
    """The other end of one of the node's strongest edges."""

    node: NodeId
    """Its name."""
    weight: float
    """The edge's weight or score, signed."""
    label: str = ""
    """What it is called so far; hostile."""


@dataclass(frozen=True)
class AttentionPair:
    """A place where a head attends."""

    id: str
    """What citations name."""
    query: tuple[str, ...]
    """Tokens up to and with the one that attends (the last few); hostile."""
    key: str
    """The token that it attends to; hostile."""
    distance: int
    """Tokens between them: 0 is itself, 1 the token before."""
    weight: float
    """Attention probability."""


@dataclass(frozen=True)
class HeadEvidence:
    """What a head does, measured on random repeats and on the task."""

    scores: Mapping[str, float]
    """previous_token, duplicate_token, induction (mean attention to the fitting token on random repeats), name_mover,
    copy_suppression, copying (share of tokens that the OV circuit raises, or lowers, most for themselves), ...: 0 to 1."""
    entropy: float
    """Mean entropy of the pattern in nats."""
    first_token: float
    """Mean attention to the first token, a head's place to rest."""
    pairs: tuple[AttentionPair, ...]
    """Strongest places on corpus and task, the first token left out."""
    ov_up: tuple[TokenEffect, ...] = ()
    """Tokens that its output raises when it attends to themselves."""
    qk: tuple[str, ...] = ()
    """What its queries look for, in words from measured token pairs; hostile."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a labeler may know of a node."""

    node: NodeId
    """The node, without a position."""
    model: str
    """The model's name."""
    contexts: tuple[Context, ...] = ()
    """Windows; for features, MLPs and neurons. Never empty for a node that fires at all."""
    examples: tuple[Example, ...] = ()
    """Further windows of the documents that explain: nobody is shown them, rules learn from them."""
    density: float | None = None
    """Share of the corpus's tokens at which it is active."""
    windows: int = 0
    """Number of windows of the corpus in which it fires."""
    documents: Mapping[Split, int] = field(default_factory=dict)
    """Number of documents that each split was drawn from."""
    peaks: tuple[TokenEffect, ...] = ()
    """The tokens that hold the peak most often, over a sample of the `explain` windows in which it fires."""
    follows: tuple[TokenEffect, ...] = ()
    """The tokens behind the peak, over the same sample."""
    promotes: tuple[TokenEffect, ...] = ()
    """Vocabulary projection of what it writes: the 10 tokens raised most."""
    suppresses: tuple[TokenEffect, ...] = ()
    """The 10 lowered most."""
    logit_attribution: tuple[TokenEffect, ...] = ()
    """Direct effect on the task's answers, by token: mean over the prompts whose right answer it is, strongest first."""
    answers: Mapping[str, float] = field(default_factory=dict)
    """Direct effect on the logits of the task's `right` and `wrong` answers (first tokens, less the mean logit): means over
    pairs."""
    causal: tuple[CausalEffect, ...] = ()
    """Interventions on the task."""
    inputs: tuple[Neighbour, ...] = ()
    """Strongest edges into it."""
    outputs: tuple[Neighbour, ...] = ()
    """Strongest edges out of it."""
    foretold: Literal["", "ablate", "swap"] = ""
    """The change of the node whose effect on the metric the weights of these edges estimate; empty: they estimate none."""
    head: HeadEvidence | None = None
    """For heads."""
    flow_share: float | None = None
    """For error nodes: share of the circuit's flow that runs through it."""
    steering: Steering | None = None
    """Measured when labels are scored, for those that predict tokens; no labeler sees it: it is what labels are tested on."""

    def of(self, split: Split) -> tuple[Context, ...]:
        """The windows of one split."""
        return tuple(context for context in self.contexts if context.split == split)

    @property
    def ids(self) -> frozenset[str]:
        """Everything that may be cited."""
        pairs = () if self.head is None else self.head.pairs
        return frozenset(item.id for item in (*self.contexts, *pairs))

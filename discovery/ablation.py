"""What a dropped edge carries instead of its source's value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

AblationKind = Literal["counterfactual", "zero", "mean", "mean-positional", "mean-span", "resample", "noise", "optimal"]
ABLATIONS: tuple[AblationKind, ...] = (
    "counterfactual",
    "zero",
    "mean",
    "mean-positional",
    "resample",
    "noise",
    "optimal",
)
"""Those that work on any prompts; mean-span asks for prompts with spans."""


@dataclass(frozen=True, eq=False)
class SourceMeans:
    """Constants for every source: means over a task's corrupt prompts, or learned ones."""

    input: Float[Tensor, "pos d_model"]
    """For the residual stream before block 0; one row per position id or span (a single row for all positions)."""
    heads: tuple[Float[Tensor, "pos head d_head"], ...]
    """Per layer: for each head's (norm-scaled) value mix, the o_proj input."""
    mlps: tuple[Float[Tensor, "pos d_model"], ...]
    """Per layer: for the MLP output as the residual stream receives it."""
    features: Mapping[int, Float[Tensor, "pos feature"]] = field(default_factory=dict)
    """Per layer with features: for the (norm-scaled) activations."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them: input, heads and MLPs by layer, features."""
        yield self.input
        yield from self.heads
        yield from self.mlps
        yield from self.features.values()


@dataclass(frozen=True, eq=False)
class Donors:
    """Prompts whose runs stand in for dropped edges, by their number of tokens."""

    by_length: Mapping[int, Int[Tensor, "prompt pos"]]
    """Different prompts of each length, in the task's order."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Gaussian noise on the embeddings of some tokens (Meng et al. 2022)."""

    deviation: float
    """Standard deviation of the noise."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens whose embeddings get it; none: those at positions where clean and corrupt prompts differ."""
    seed: int = 0
    """Of the noise."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """An ablation, ready to use. `discovery.preparation.prepare_ablation` measures or learns what it needs."""

    kind: AblationKind
    """counterfactual: the corrupt run's value; zero; mean over all positions; mean-positional: mean per position id;
    mean-span: mean per span; resample: the value in a run on another prompt of the task; noise: in a run with noise on
    some embeddings; optimal: a learned constant for each source (Li and Janson 2024)."""
    means: SourceMeans | None = None
    """Set for the mean kinds and for optimal."""
    span_names: tuple[int | str, ...] = ()
    """Set for mean-span: the spans that the rows of the means stand for."""
    donors: Donors | None = None
    """Set for resample."""
    noise: Noise | None = None
    """Set for noise."""

    @property
    def still(self) -> bool:
        """Whether the ablated values are one run of the model, so that a node with no kept input puts out its own."""
        return self.kind in ("counterfactual", "resample", "noise")

    @property
    def swaps_prompts(self) -> bool:
        """Whether that run is on other prompts."""
        return self.kind in ("counterfactual", "resample")

    @property
    def learning(self) -> bool:
        """Whether its constants are being learned, so that runs must have gradients for them."""
        return self.means is not None and any(tensor.requires_grad for tensor in self.means.tensors())


COUNTERFACTUAL = Ablation("counterfactual")
ZERO = Ablation("zero")


def needs_alignment(kind: AblationKind, noise_on_tokens: bool) -> bool:
    """Whether corrupt prompts must answer to the clean ones token by token. noise_on_tokens: whether those are named."""
    return kind == "counterfactual" or (kind == "noise" and not noise_on_tokens)

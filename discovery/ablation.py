"""What a dropped edge carries instead of its source's value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

AblationKind = Literal["counterfactual", "zero", "mean", "mean-positional"]
ABLATIONS: tuple[AblationKind, ...] = ("counterfactual", "zero", "mean", "mean-positional")


@dataclass(frozen=True, eq=False)
class SourceMeans:
    """Mean values of every source over a task's corrupt prompts."""

    input: Float[Tensor, "pos d_model"]
    """Mean of the residual stream before block 0; one row per position id (a single row for means over all positions)."""
    heads: tuple[Float[Tensor, "pos head d_head"], ...]
    """Per layer: mean of each head's (norm-scaled) value mix, the o_proj input."""
    mlps: tuple[Float[Tensor, "pos d_model"], ...]
    """Per layer: mean MLP output as the residual stream receives it."""
    features: Mapping[int, Float[Tensor, "pos feature"]] = field(default_factory=dict)
    """Per layer with features: mean (norm-scaled) activations."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """An ablation, ready to use. `discovery.loading.prepare_ablation` measures the means where they are needed."""

    kind: AblationKind
    """counterfactual: the corrupt run's value; zero; mean over all positions; mean-positional: mean per position id."""
    means: SourceMeans | None = None
    """Set for the two mean kinds."""


COUNTERFACTUAL = Ablation("counterfactual")
ZERO = Ablation("zero")

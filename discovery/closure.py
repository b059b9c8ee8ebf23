"""Closure of a local replacement model: everything that a target reads, constants included, sums to what the model has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from discovery.effect_rows import EffectRows
from discovery.replacement import LocalReplacement
from discovery.targets import Target

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


class NotClosed(ValueError):
    """A local replacement model that is not the model."""


def check_closure(replacement: LocalReplacement, targets: Sequence[Target], most: int = 64) -> float:
    """Row sums, constants included, against pre-activations and demeaned logits: the largest difference over the largest value.

    Looks at the targets and at up to `most` features, spread over all. Raises NotClosed naming the first layer where they
    differ by more than rounding of the model's dtype explains.
    """
    rows = EffectRows(replacement, targets, 1.0, constants=True)
    features = replacement.features
    chosen = np.linspace(0, len(features) - 1, min(most, len(features))).round().astype(np.int64)
    numbers = np.concatenate([np.unique(chosen), np.array(rows.logit_rows, dtype=np.int64)])
    if not len(numbers):
        return 0.0
    sums = rows.sums(numbers)
    logits = torch.tensor([target.value for target in targets if target.direction is not None]).to(sums)
    wanted = torch.cat([features.preactivation, logits])[torch.as_tensor(numbers, device=sums.device)]
    error = (sums - wanted).abs() / wanted.abs().max().clamp(min=1e-30)
    worst = float(error.max())
    tolerance = _TOLERANCE[replacement.model.hf.dtype]
    if not worst <= tolerance:
        first = int(numbers[int((~(error <= tolerance)).nonzero()[0])])
        where = f"layer {int(features.layer[first])}" if first < len(features) else "the logits"
        raise NotClosed(
            f"{replacement.model.name}: contributions do not sum to what the model computes (off by {worst:.1e} of the largest "
            f"value, first at {where}). Please report the architecture and configuration."
        )
    return worst

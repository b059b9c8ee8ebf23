"""Where learned masks start from: the order of attribution scores."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from discovery.metrics import METRICS
from discovery.model import PatchableModel
from discovery.workload import Workload

Start = Literal["none", "eap", "eap-ig", "clean-corrupted"]
_METHODS = {
    "eap": "discovery.methods.eap",
    "eap-ig": "discovery.methods.eap_ig",
    "clean-corrupted": "discovery.methods.clean_corrupted",
}


def ranks_at_start(model: PatchableModel, workload: Workload, start: Start, method: str) -> Float[Tensor, "src dst"]:
    """From -1 (the smallest |score|) to 1 (the largest), evenly by rank; 0 everywhere for `none`.

    Where the task's metric has no gradient, scores are those of the KL divergence. Raises ValueError where a method cannot
    work with the metric.
    """
    topology = model.topology
    ranks = torch.zeros(topology.possible.shape)
    if start == "none":
        return ranks
    if not workload.metric.differentiable:
        workload = replace(workload, metric=METRICS["kl"])
    if start == "eap" and workload.metric.flat_when_clean:
        raise ValueError(
            f"method {method!r}: start 'eap' scores every edge zero with metric {workload.metric.name!r}; use 'eap-ig'"
        )
    scores = importlib.import_module(_METHODS[start]).score(model, workload)
    values = np.abs(scores.values[topology.possible])
    order = np.argsort(values, kind="stable")
    spread = np.empty(len(values), np.float32)
    spread[order] = np.linspace(-1, 1, len(values)) if len(values) > 1 else 0
    ranks[torch.from_numpy(topology.possible)] = torch.from_numpy(spread)
    return ranks

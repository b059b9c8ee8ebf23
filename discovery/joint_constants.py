"""Optimal ablation's constants, to be learned together with masks."""

from __future__ import annotations

from discovery.component_model import ComponentModel
from discovery.learned_constants import LearnedConstants
from discovery.model import PatchableModel
from discovery.preparation import source_means
from discovery.workload import Workload


def constants_to_learn(model: PatchableModel, workload: Workload) -> LearnedConstants | None:
    """The workload's constants as they are, ready to be learned further; None for other ablations."""
    if workload.ablation.kind != "optimal" or workload.ablation.means is None or not isinstance(model, ComponentModel):
        return None
    spread = source_means(model, workload.batches, positional=False).spread()
    return LearnedConstants(workload.ablation.means, spread)

"""What runs of a model cost, and what is cheap enough to be done without being asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from discovery.workload import Workload
    from pipelines.inputs import Inputs

_OPERATIONS, _OPERATIONS_ON_ACCELERATOR = 2e12, 2e14


def operations(inputs: Inputs, workload: Workload, runs: int) -> float:
    """Floating-point operations of so many runs of the model on a workload's prompts: 2 for each weight and token."""
    tokens = sum(batch.clean.numel() for batch in workload.batches)
    parameters = sum(weight.numel() for weight in inputs.model.hf.parameters())
    return 2.0 * parameters * tokens * runs


def affordable(inputs: Inputs) -> float:
    """How many operations need no asking: about half a minute on two CPU cores, seconds on a data-centre GPU."""
    return _OPERATIONS if inputs.model.device.type == "cpu" else _OPERATIONS_ON_ACCELERATOR

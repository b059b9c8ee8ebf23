"""The metric of smaller and smaller circuits: many candidates at a time, then one of them becomes the circuit."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.feature_model import FeatureModel
from discovery.model import PatchableModel
from discovery.patched_metric import auto_masks_per_run, full_metric, patched_metric
from discovery.pruning_plan import changed_by
from discovery.pruning_run import PruningRun
from discovery.recording import session
from discovery.workload import Workload

# A run of circuits that all contain most of the model holds little more than a layer's width and a few slots.
_VECTORS_PER_TOKEN = 12
# What several runs against a known one may hold side by side.
_RUN_BYTES = 2**29


@runtime_checkable
class Judge(Protocol):
    """Knows the metric of a circuit, at first the whole model, and measures smaller ones."""

    @property
    def current(self) -> Float[np.ndarray, " pair"]:
        """The circuit's metric, every pair of the workload."""
        ...

    @property
    def most(self) -> int:
        """How many masks to measure in one call at most, by an estimate of memory."""
        ...

    def measure(self, masks: Bool[np.ndarray, "mask src dst"]) -> Float[np.ndarray, "mask pair"]:
        """The metric under masks that keep fewer edges than the circuit."""
        ...

    def accept(self, place: int) -> None:
        """Makes one of the masks measured last the circuit."""
        ...

    def __enter__(self) -> Judge:
        """Prepares the model; nothing can be measured before."""
        ...

    def __exit__(self, *error: object) -> None:
        """Restores the model."""
        ...


def judge_of(model: PatchableModel, workload: Workload) -> Judge:
    """The quickest judge that the model has: component models keep the circuit's run, others restart at what changes."""
    if type(model) is ComponentModel:  # not one with features or spans
        return KnownRunJudge(model, workload)
    return RestartJudge(model, workload)


def reach_of(model: PatchableModel) -> tuple[tuple[int, ...], ...] | None:
    """For each slot the sources that it changes; None where even an edge to a slot that nobody reads may matter.

    The latter: attention that is wiring, which sees every source that has a kept edge.
    """
    if isinstance(model, FeatureModel) and not model.heads:
        return None
    coupled = isinstance(model, ComponentModel) and (
        any(block.coupled for block in model.blocks) or any(layer.normed for layer in model.features.values())
    )
    return changed_by(model.topology, coupled)


class RestartJudge:
    """Every mask is a run of its own, by the model's own `run`: for any model, and what quicker ways are tested against."""

    def __init__(self, model: PatchableModel, workload: Workload) -> None:
        self._workload = workload
        # Models keep the recordings of one batch: each batch gets a view of its own, so that they are made once.
        self._models = [copy.copy(model) for _ in workload.batches]
        full = [full_metric(each, batch, workload.metric) for each, batch in zip(self._models, workload.batches)]
        self._logits = [logits for _, logits in full]
        self.current = torch.cat([values for values, _ in full]).numpy()
        self._measured = self.current[None]
        self.most = _most(workload, self._logits)

    def measure(self, masks: Bool[np.ndarray, "mask src dst"]) -> Float[np.ndarray, "mask pair"]:
        """See `Judge.measure`."""
        work, pieces = self._workload, []
        for model, batch, logits in zip(self._models, work.batches, self._logits, strict=True):
            pieces.append(patched_metric(model, batch, work.metric, masks, work.ablation, logits, len(masks)))
        self._measured = torch.cat(pieces, 1).numpy()
        return self._measured

    def accept(self, place: int) -> None:
        """See `Judge.accept`."""
        self.current = self._measured[place]

    def __enter__(self) -> RestartJudge:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class KnownRunJudge:
    """The circuit's run is kept, and a mask costs what it changes of it. See `discovery.pruning_run`."""

    def __init__(self, model: ComponentModel, workload: Workload) -> None:
        self._model, self._metric = model, workload.metric
        values = [full_metric(model, batch, workload.metric) for batch in workload.batches]
        self._batches = [batch.to(model.device) for batch in workload.batches]
        self._references = [logits if workload.metric.needs_reference else None for _, logits in values]
        self._values = [value for value, _ in values]
        self._states = [model.pruning_state(batch, workload.ablation) for batch in workload.batches]
        self._runs: list[PruningRun] = []
        self._measured: list[Tensor] = []
        largest = max((state.values[0].nbytes for state in self._states), default=1)
        room = _RUN_BYTES // (_vectors_per_token(model) * largest)
        self.most = max(1, min(_most(workload, [logits for _, logits in values]), room))

    @property
    def current(self) -> Float[np.ndarray, " pair"]:
        """See `Judge.current`."""
        return torch.cat(self._values).numpy()

    def measure(self, masks: Bool[np.ndarray, "mask src dst"]) -> Float[np.ndarray, "mask pair"]:
        """See `Judge.measure`."""
        self._runs, self._measured = [], []
        model = self._model
        with torch.no_grad():
            for place, state in enumerate(self._states):
                run = PruningRun(state, masks)
                values = self._values[place].expand(len(masks), -1)
                if run.reaches_logits:
                    logits = model.unembed(run.final_stream())
                    batch, reference = self._batches[place], self._references[place]
                    values = self._metric.compute(logits, batch, reference).cpu().double()
                self._runs.append(run)
                self._measured.append(values)
        return torch.cat(self._measured, 1).numpy()

    def accept(self, place: int) -> None:
        """See `Judge.accept`."""
        for run in self._runs:
            run.accept(place)
        self._values = [values[place] for values in self._measured]

    def __enter__(self) -> KnownRunJudge:
        self._session = session(self._model.hf, self._model.arch, self._model.blocks)
        self._session.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._session.__exit__(None, None, None)


def _vectors_per_token(model: ComponentModel) -> int:
    """What a run against a known one may hold: every source, and the slots of one stage, which are read side by side."""
    slots = Counter((slot.node.layer, slot.node.kind) for slot in model.topology.targets)
    return len(model.topology.sources) + max(slots.values())


def _most(workload: Workload, logits: list[Tensor]) -> int:
    """Of the largest batch; 1 where there is none."""
    sizes = [auto_masks_per_run(batch, each, _VECTORS_PER_TOKEN) for batch, each in zip(workload.batches, logits)]
    return min(sizes, default=1)

"""Scoring and running a batch never waits for the device: nothing that was computed there is looked at on the way.

There is no device here: tensors made from the weights, or from a batch's copy on the model's device, count as being there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from discovery.ablation import ABLATIONS, COUNTERFACTUAL
from discovery.batch import Batch
from discovery.component_model import ComponentModel
from discovery.metrics import METRICS
from discovery.model import Point
from discovery.preparation import AblationSettings, prepare_ablation
from tests.discovery.tiny_models import FAMILIES, tiny_batch, tiny_model

_READS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "_unique2", "bincount", "is_nonzero")
METRIC = METRICS["logit-diff"]
POINTS = [Point(k / 3, 1 / 3) for k in range(3)]


class HostReads(TorchDispatchMode):
    """Where the host looked at a tensor of the device, as file:line and what it did."""

    def __init__(self, model: ComponentModel) -> None:
        super().__init__()
        self.found: list[str] = []
        self._held: dict[int, Any] = {}
        for tensor in (*model.hf.parameters(), *model.hf.buffers()):
            self.take(tensor)

    def take(self, tensor: Tensor) -> None:
        """From now on this tensor is on the device."""
        storage = tensor.untyped_storage()
        self._held[storage._cdata] = storage

    def there(self, value: Any) -> bool:
        """Whether a value is a tensor on the device."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs))
        on_device = any(self.there(value) for value in given)
        if on_device:
            name = func.overloadpacket.__name__
            chosen = isinstance(args[1], list | tuple) if name in ("index", "index_put", "index_put_") else False
            if name in _READS or (chosen and any(self.there(i) and i.dtype == torch.bool for i in args[1])):
                self.note(name)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out) if on_device else ():
            if isinstance(tensor, Tensor):
                self.take(tensor)
        return out

    def note(self, what: str) -> None:
        """Remember it, by the innermost line that is not torch's or of this file."""
        frame = sys._getframe(1)
        while frame.f_back and any(
            part in frame.f_code.co_filename for part in ("/torch/", "jaxtyping", __file__, "<")
        ):
            frame = frame.f_back
        self.found.append(f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno} {what}")

    def ours(self) -> list[str]:
        """What the library does of itself left out."""
        return [line for line in self.found if line.startswith("discovery/")]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ComponentModel], HostReads]]:
    """Makes the watcher of a model; batches go to a device that is not here, and ways to the host go through the watcher."""
    current: list[HostReads] = []

    def moved(self: Batch, device: Any) -> Batch:
        copies = self.__dict__.get("copy")
        if copies is None:
            named = {f.name: getattr(self, f.name) for f in fields(self)}
            copies = replace(self, **{name: part.clone() for name, part in named.items() if isinstance(part, Tensor)})
            object.__setattr__(self, "copy", copies)
            object.__setattr__(copies, "copy", copies)
        for part in vars(copies).values() if current else ():
            if isinstance(part, Tensor):
                current[0].take(part)
        return copies

    def through(name: str) -> Callable[..., Any]:
        real = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not (current and current[0].there(self)):
                return real(self, *args, **kwargs)
            current[0].note(name)
            return real(self, *args, **kwargs).clone() if name == "cpu" else real(self, *args, **kwargs)

        return method

    monkeypatch.setattr(Batch, "to", moved)
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, through(name))

    def make(model: ComponentModel) -> HostReads:
        current[:] = [HostReads(model)]
        return current[0]

    yield make
    current.clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_host_read_while_a_batch_is_linearized_or_run(family: str, watched: Callable[..., HostReads]) -> None:
    model, batch = ComponentModel(tiny_model(family)), tiny_batch()
    model.linearize(batch, METRIC, POINTS, COUNTERFACTUAL)  # checks the batch once
    model.forget()
    masks = torch.rand(2, *model.topology.possible.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    with watched(model) as reads:
        model.linearize(batch, METRIC, POINTS, COUNTERFACTUAL)
    assert [line.split()[1] for line in reads.ours()] == ["cpu"], reads.found  # the scores, when they are done
    with watched(model) as reads:
        model.run(batch, masks, COUNTERFACTUAL)
    assert not reads.ours(), reads.found


@pytest.mark.parametrize("kind", [kind for kind in ABLATIONS if kind not in ("noise", "optimal")])
@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].differentiable])
def test_no_host_read_under_any_ablation_and_metric(metric: str, kind: Any, watched: Callable[..., HostReads]) -> None:
    model, batch = ComponentModel(tiny_model("llama")), tiny_batch()
    ablation = prepare_ablation(model, kind, [batch], AblationSettings())
    model.linearize(batch, METRICS[metric], POINTS, ablation)
    model.forget()
    with watched(model) as reads:
        model.linearize(batch, METRICS[metric], POINTS, ablation)
        model.run(batch, torch.ones(model.topology.possible.shape) * 0.5, ablation)
    found = reads.ours()
    if kind == "resample" and metric == "logit-diff":  # with drawn prompts the batch is another, and is checked too
        assert found.pop(0).startswith("discovery/metrics.py")
    assert [line.split()[1] for line in found] == ["cpu"], reads.found


def test_a_host_read_is_seen(watched: Callable[..., HostReads]) -> None:
    model = ComponentModel(tiny_model("gpt2"))
    weight = next(model.hf.parameters())
    with watched(model) as reads:
        float(weight.detach().sum())
        weight.detach()[weight.detach() > 0]
        (weight.detach()[0] + 1).tolist()
    assert [line.split()[-1] for line in reads.found] == ["_local_scalar_dense", "index", "tolist"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_never_waits() -> None:
    model, batch = ComponentModel(tiny_model("llama")), tiny_batch()
    model.hf.to(device="cuda")  # type: ignore[reportCallIssue]
    model.linearize(batch, METRIC, POINTS, COUNTERFACTUAL)
    model.forget()
    masks = (torch.rand(model.topology.possible.shape) < 0.6).cuda()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchron") as caught:  # the scores' way to the host, when they are done
            model.linearize(batch, METRIC, POINTS, COUNTERFACTUAL)
        model.run(batch, masks, COUNTERFACTUAL)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 1

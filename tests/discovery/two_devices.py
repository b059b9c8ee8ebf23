"""A second device that is not there: tensors that say they are on it, hold numbers on the CPU, and refuse to meet others.

As a program: checks that a model divided between the two scores and runs as it does whole. It changes torch for good, so
that tests start it as a process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.component_model import ComponentModel, KvHeads
from discovery.loading import check_first_batch
from discovery.metrics import METRICS
from discovery.model import Point, Sublayer
from discovery.node_effects import Fixes
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.rules import RELEVANCE
from tests.discovery.tiny_models import GROUPED, tiny_batch, tiny_model

NAME = "elsewhere"
_CROSSING = ("_to_copy", "copy_", "_copy_from")


class There(torch.Tensor):
    """A tensor of the device."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> There:
        """inner: the numbers, on the CPU."""
        shape = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=device)
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **shape)  # type: ignore[reportAttributeAccessIssue]
        made.numbers = inner
        return made

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        """See `__new__`."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class Devices(TorchDispatchMode):
    """While active, tensors can be made on the devices, and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation where its tensors are. Raises RuntimeError where they are in different places."""
    name = func.overloadpacket.__name__
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    # Numbers of the CPU, and indices there, may go with tensors of any device, as on CUDA.
    strict = [tensor for tensor in given if tensor.device.type == NAME or (tensor.ndim and not _index(func, tensor))]
    devices = {tensor.device for tensor in strict} or {tensor.device for tensor in given}
    if len(devices) > 1 and name not in _CROSSING:
        raise RuntimeError(f"{func}: tensors on {' and '.join(sorted(map(str, devices)))}")
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    target = wanted or (args[0].device if name == "copy_" else next(iter(devices), torch.device("cpu")))
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name.endswith("_") and not name.startswith("_"):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return tree_map(lambda leaf: put(leaf, torch.device(target)) if isinstance(leaf, torch.Tensor) else leaf, out)


def _index(func: Any, tensor: torch.Tensor) -> bool:
    return "index" in func.overloadpacket.__name__ and tensor.dtype in (torch.int64, torch.bool)


def _inner(value: Any) -> Any:
    return value.numbers if isinstance(value, There) else value


def put(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor as one of a device; itself for the CPU."""
    return value if device.type == "cpu" or isinstance(value, There) else There(value, device)


_make = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which makes its result past every mode."""
    return _make(data, **options) if device is None else _make(data, **options).to(device)


def divide(model: ComponentModel, devices: tuple[torch.device, torch.device]) -> None:
    """The first block and the embeddings on one device, all that follows on the other, as accelerate's hooks do it."""
    second = [block.layer for block in model.blocks[1:]]
    second += [model.hf.get_submodule(path) for path in (model.arch.final_norm, model.arch.unembedding)]
    later = {id(part) for module in second for part in module.modules()}
    for module in model.hf.modules():
        device = devices[id(module) in later]
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(put(weight.detach(), device), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = put(buffer, device)
    for module in second:
        add_hook_to_module(module, AlignDevicesHook(devices[1]))
    add_hook_to_module(model.hf, AlignDevicesHook(devices[0], io_same_device=True))


def check(family: str, devices: tuple[torch.device, torch.device]) -> None:
    """Raises where the divided model does not give what the whole one gives."""
    kv_heads: KvHeads = "query" if family in GROUPED else "native"
    batch, metric = tiny_batch(), METRICS["logit-diff"]
    points = [Point(k / 3, 1 / 3) for k in range(4)]
    places = (Sublayer("mlp", 0), Sublayer("attention", 1), Sublayer("mlp", 1))

    def results(model: ComponentModel) -> list[torch.Tensor]:
        masks = torch.rand(2, *model.topology.possible.shape, generator=torch.Generator().manual_seed(0)) < 0.6
        nodes = model.linearize_nodes(batch, metric, COUNTERFACTUAL)
        assert check_first_batch(model, batch) < 1e-4
        learned = masks.float().requires_grad_()
        logits = model.run(batch, learned, ZERO)
        metric.compute(logits, batch.to(logits.device), None).sum().backward()
        assert learned.grad is not None
        return [
            model.linearize(batch, metric, points, COUNTERFACTUAL),
            model.linearize(batch, metric, points[:2], ZERO),
            model.linearize(batch, metric, [Point(0.5, 0.5, place) for place in places], COUNTERFACTUAL),
            model.linearize(batch, metric, [Point(1.0, 1.0)], COUNTERFACTUAL, RELEVANCE),
            model.linearize_fixed(batch, metric, COUNTERFACTUAL, Fixes(qk_fix=True, grad_drop=True)),
            model.flow(batch, 0.01),
            nodes.sources,
            model.run(batch, masks, COUNTERFACTUAL),
            model.run(batch, masks, ZERO),
            model.run(batch, masks, prepare_ablation(model, "mean", [batch], AblationSettings())),
            learned.grad,
        ]

    whole = results(ComponentModel(tiny_model(family), kv_heads=kv_heads))
    with Devices():
        model = ComponentModel(tiny_model(family), kv_heads=kv_heads)
        divide(model, devices)
        divided = [_inner(value.detach()) for value in results(model)]
    for number, (one, other) in enumerate(zip(divided, whole, strict=True)):
        assert torch.allclose(one, other.detach(), rtol=1e-4, atol=1e-5 * float(other.abs().max())), number


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.tensor = _tensor
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    for each in sys.argv[1:]:
        check(each, (torch.device("cpu"), torch.device(f"{NAME}:0")))
        print(each, "is the same")

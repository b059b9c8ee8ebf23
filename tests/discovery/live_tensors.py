"""Bytes of all tensors that are made while it is watched and not yet given back: what a device's allocator would count."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts storages while it is active. Those that were there before do not count."""

    def __init__(self, before: tuple[torch.Tensor, ...] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, Any] = {}
        self._old = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name in self._known or name in self._old:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[name]

        self._known[name] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

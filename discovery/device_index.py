"""Places in tensors of a device, told to it without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at(places: Sequence[int], device: torch.device) -> Tensor | slice:
    """An index for places: a slice where they follow each other, else a tensor on the device.

    Indexing with a list would copy the list to the device and wait for that.
    """
    first = places[0] if places else 0
    if list(places) == list(range(first, first + len(places))):
        return slice(first, first + len(places))
    return torch.tensor(list(places)).to(device, non_blocking=True)

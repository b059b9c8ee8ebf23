"""The processes that torchrun started: joining them, sharing batches among them, and failing together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from discovery.batch import Batch
    from discovery.workload import Workload

_MESSAGE_BYTES = 1000
_PATIENCE = timedelta(days=1)
"""How long a process waits for the others' numbers; torchrun ends them all as soon as one of them has ended in failure."""


class OtherProcessFailed(ValueError):
    """Another process of the same run has stopped, and why."""


@contextmanager
def joined_processes(device: str) -> Iterator[tuple[int, str]]:
    """Gives this process's rank and its device (auto: a CUDA device of its own where there are any); (0, device) alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, device
        return
    cuda = torch.cuda.is_available()
    if device == "auto" and cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield torch.distributed.get_rank(), device
    finally:
        torch.distributed.destroy_process_group()


def process_count() -> int:
    """How many processes have joined; 1 alone."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


@contextmanager
def failing_together() -> Iterator[None]:
    """When one process raises inside, all do: it its own error, the others OtherProcessFailed with its message.

    Inside, processes may talk to each other by the functions of this file alone: each first hears whether all are well.
    """
    if process_count() == 1:
        yield
        return
    try:
        yield
    except OtherProcessFailed:
        raise
    except Exception as error:
        _hear(" ".join(str(error).split()) or type(error).__name__)
        raise
    wait_for_all()


def wait_for_all() -> None:
    """Returns when every process has come here. Raises OtherProcessFailed when one has stopped."""
    if process_count() == 1:
        return
    messages = _hear("")
    for rank, message in enumerate(messages):
        if message:
            raise OtherProcessFailed(f"process {rank} stopped: {message}")


def _hear(message: str) -> list[str]:
    """Every process's message; empty while it is well."""
    content = message.encode("utf-8")[:_MESSAGE_BYTES]
    mine = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
    mine[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(process_count())]
    torch.distributed.all_gather(every, mine)
    return [bytes(one.tolist()).rstrip(b"\0").decode("utf-8", errors="ignore") for one in every]


def own_batches(workload: Workload) -> list[tuple[int, Batch]]:
    """The batches that this process is to run, with their numbers: every n-th one of n processes, all of them alone."""
    every = list(enumerate(workload.batches))
    return every if process_count() == 1 else every[torch.distributed.get_rank() :: process_count()]


def summed(values: Tensor) -> Tensor:
    """The sum over processes, the same in each; `values` themselves alone. On the CPU, of any type but bool."""
    if process_count() == 1:
        return values
    wait_for_all()
    total = values.contiguous().clone()
    torch.distributed.all_reduce(total)
    return total


def smallest(value: int) -> int:
    """The smallest of the processes' numbers."""
    if process_count() == 1:
        return value
    wait_for_all()
    least = torch.tensor(value)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)


def require_same(name: str, what: str) -> None:
    """Raises OtherProcessFailed in every process when they do not all give the same name (up to 1000 bytes, a hash)."""
    if process_count() > 1:
        wait_for_all()
        if len(set(_hear(name))) > 1:
            raise OtherProcessFailed(f"the processes do not have the same {what}")

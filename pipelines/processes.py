"""A run of several processes: all do the same with shares of the pairs, and process 0 alone writes, prints and names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import RunConfig
from pipelines.fingerprint import hash_settings
from pipelines.settings import ConfigError

if TYPE_CHECKING:
    from discovery.batch import Batch
    from pipelines.inputs import Inputs

_SHARED = ("discover", "train-transcoders")
_NOT_COPIED = ("exports", "evidence", "evaluations", ".*")


def is_first() -> bool:
    """Whether this is process 0 of those that torchrun started, or the only one. Imports nothing heavy."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


def check_command(command: str) -> None:
    """Raises ConfigError where several processes were started for a command that would do the same in each."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and command not in _SHARED:
        raise ConfigError(f"{command} works in one process only: start it without torchrun")


@contextmanager
def shared_run(config: RunConfig, directory: Path) -> Iterator[Path]:
    """Joins the processes for as long as the block takes, and gives each the directory that it is to write to.

    Process 0 has `directory`, every other one a copy that is thrown away. When one fails, all do. Raises ConfigError for
    settings that only one process can work on.
    """
    from discovery.distributed import failing_together, joined_processes, process_count, require_same, wait_for_all

    with joined_processes(config.model.device) as (rank, _), failing_together():
        if process_count() > 1:
            _check(config)
        if rank == 0:
            wait_for_all()  # until it is copied
            require_same(_state(directory), "run directory: it must be one that all can read")
            yield directory
            return
        with tempfile.TemporaryDirectory(prefix="edgewise-") as place:
            copy = Path(place) / "run"
            if directory.is_dir():
                shutil.copytree(directory, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
            wait_for_all()
            require_same(_state(copy), "run directory: it must be one that all can read")
            yield copy


def _state(directory: Path) -> str:
    """A name for what a run has finished."""
    record = directory / "run.json"
    return hash_settings({"run": record.read_text(encoding="utf-8")} if record.exists() else {})


def _check(config: RunConfig) -> None:
    from pipelines.scoring import methods_of

    for line, _ in [] if config.method.file is not None else methods_of(config):
        if line.alone:
            raise ConfigError(f"method {line.name!r} works in one process only: start it without torchrun")
    if config.model.device_map is not None:
        raise ConfigError("model.device_map divides one model among devices: start it without torchrun")
    if config.ablation == "optimal":
        raise ConfigError("ablation 'optimal' is learned in one process only: start it without torchrun")


def check_shares(inputs: Inputs) -> None:
    """Raises a ValueError where processes hold different batches or graphs, or there are too few batches to share."""
    from discovery.distributed import process_count, require_same

    count, batches = process_count(), inputs.train.batches
    if count == 1:
        return
    if len(batches) < count:
        raise ConfigError(
            f"{count} processes cannot share the {len(batches)} batch(es) of the scoring split: give a smaller --batch-size"
        )
    held = [_shape(batch) for batch in (*batches, *inputs.held_out.batches)]
    require_same(hash_settings({"sources": inputs.model.topology.source_names, "batches": held}), "batches and graph")


def _shape(batch: Batch) -> list[int]:
    return [*batch.indices, *batch.clean.shape]


def shared_batch_size(size: Callable[[int], int], pairs: int) -> Callable[[int], int]:
    """`size` (of the tokens of a pair) as all processes agree on it: the smallest, and so that each has a batch of `pairs`."""
    from discovery.distributed import process_count, smallest

    count = process_count()
    return size if count == 1 else lambda tokens: smallest(min(size(tokens), -(-pairs // count)))

"""A stopped pass over a corpus on disk: one safetensors file, whole or not there at all, that says what it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from discovery.corpus_files import BadCorpus


def save_state(path: Path, tensors: Mapping[str, Tensor], batch: int, identity: str) -> None:
    """Writes the tensors; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        about = {"batch": str(batch), "identity": identity}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, about)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: Path, tensors: Mapping[str, Tensor], identity: str) -> int:
    """Puts what was saved into tensors of the same names and shapes; gives the number of batches that were done.

    Raises BadCorpus for a file that is damaged or belongs to something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            batch, saved = int(about["batch"]), {name: file.get_tensor(name) for name in tensors}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadCorpus(f"state of the evidence {path} cannot be read ({error}): delete it to start anew") from None
    if about.get("identity") != identity or any(saved[name].shape != own.shape for name, own in tensors.items()):
        raise BadCorpus(
            f"state of the evidence {path} is of another model, corpus, set of nodes or settings: delete it"
        )
    for name, own in tensors.items():
        own.copy_(saved[name])
    return batch

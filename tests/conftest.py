"""Shapes and types are checked at run time in every test; the shared data is found, or tests that need it skip."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from jaxtyping import install_import_hook, jaxtyped


def _checked_when_first_made(*, typechecker: Any) -> Callable[[Any], Any]:
    """The import hook's decorator, for functions inside functions only the first time that each is made.

    A check is compiled whenever its function is defined: hooks that are made anew for each forward pass would spend far
    longer in the compiler than in the pass.
    """

    def decorate(thing: Any) -> Any:
        if "<locals>" in thing.__qualname__ and hasattr(thing, "__code__"):
            place = (thing.__code__.co_filename, thing.__code__.co_firstlineno)
            if place in _checked:
                return thing
            _checked.add(place)
        return jaxtyped(typechecker=typechecker)(thing)

    return decorate


_checked: set[tuple[str, int]] = set()
# The hook's generated code looks the decorator up here.
jaxtyping.jaxtyped = _checked_when_first_made  # type: ignore[assignment]
# Before anything of ours is imported: the hook rewrites modules as they load.
install_import_hook(["graphs", "discovery", "labelers", "pipelines"], "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]
# Subprocesses that the tests start, and libraries that read these when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Tests run side by side: one thread each, else they fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models, tasks and published results beside the project. Where it is absent, tests skip."""
    folder = Path(os.environ.get("EDGEWISE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder}, which is not here")
    return folder

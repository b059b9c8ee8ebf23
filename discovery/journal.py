"""What a long method writes down as it goes, so that the same command goes on where it was stopped."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

_SECONDS_BETWEEN = 5.0


@runtime_checkable
class Journal(Protocol):
    """A place for one method's unfinished work; the last thing written is what is read."""

    def read(self) -> bytes | None:
        """What was written last, by this run or one before it; None where there is nothing."""
        ...

    def write(self, content: bytes) -> None:
        """Replaces what was written before."""
        ...


class ArrayJournal:
    """Numpy arrays by name in a journal, written at most every few seconds; without a journal nothing is kept."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._last = time.monotonic()

    def read(self) -> dict[str, np.ndarray]:
        """The arrays written last; none where there are none. Raises ValueError for what is no file of arrays."""
        content = None if self._journal is None else self._journal.read()
        if content is None:
            return {}
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self._journal is not None and time.monotonic() - self._last >= _SECONDS_BETWEEN

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays now."""
        if self._journal is None:
            return
        content = io.BytesIO()
        np.savez(content, **dict(arrays))  # type: ignore[arg-type]
        self._journal.write(content.getvalue())
        self._last = time.monotonic()

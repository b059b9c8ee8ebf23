"""The unfinished work of a run's step on disk, so that a stopped run goes on where it was."""

from __future__ import annotations

from pipelines.store import RunStore


class StoredJournal:
    """The unfinished work of one step of a run; see `discovery.journal`."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store = store
        self._name = name

    def read(self) -> bytes | None:
        """What was written last."""
        path = self._store.path(self._name)
        return path.read_bytes() if path.exists() else None

    def write(self, content: bytes) -> None:
        """Replaces what was written before."""
        self._store.write_bytes(self._name, content)

    def clear(self) -> None:
        """Forgets it: the step is done."""
        self._store.path(self._name).unlink(missing_ok=True)

"""Replies of language models on disk: one SQLite file, one commit per reply, so that what has been paid for stays."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
_LAYOUT = 1


class BadCache(ValueError):
    """A cache file that cannot be used; the message names it."""


def key_of(shaped_by: Mapping[str, Any]) -> str:
    """SHA-256 of everything that shapes a reply, whatever the order of its fields."""
    text = json.dumps(shaped_by, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class ReplyCache:
    """Replies by key. A reply that `put` has returned from survives the death of the process and of the machine."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises BadCache where it is no cache of ours or cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise BadCache(f"{path}: the cache of replies cannot be opened ({error}): name another file") from None
        try:
            layout = self._database.execute("PRAGMA user_version").fetchone()[0]
            if layout not in (0, _LAYOUT):
                raise BadCache(f"{path}: the cache of replies was written by another version: move it away")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA user_version={_LAYOUT}")
        except (sqlite3.Error, OSError) as error:
            raise BadCache(
                f"{path}: the cache of replies cannot be used ({error}): move it away or name another"
            ) from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply to `key`, or None. A damaged entry counts as none."""
        try:
            found = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise BadCache(f"{self.path}: the cache of replies cannot be read ({error}): move it away") from None
        if found is None:
            return None
        try:
            reply = json.loads(found[0])
        except (ValueError, RecursionError, TypeError):
            return None
        return reply if isinstance(reply, dict) else None

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keeps a reply; on disk when this returns."""
        try:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))
        except sqlite3.Error as error:
            raise BadCache(
                f"{self.path}: a reply cannot be kept ({error}): free some space, or name another file"
            ) from None

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

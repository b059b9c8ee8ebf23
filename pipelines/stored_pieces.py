"""Finished pieces of a step that is not finished, one after the other in a file of the run."""

from __future__ import annotations

import struct
import zlib

from pipelines.store import PIECES, RunStore

_HEAD = struct.Struct("<16sQI")  # name, bytes that follow, their checksum
_LARGEST = 2**32
"""Bytes that the file may grow to; what is finished after that is not kept."""


class StoredPieces:
    """Pieces by their names of 16 bytes; see `discovery.resumed_model`.

    A process may be killed while it writes: what it has not written whole is cut off when the file is next opened.
    """

    def __init__(self, store: RunStore) -> None:
        self._path = store.path(PIECES)
        self._places: dict[bytes, tuple[int, int, int]] = {}  # start, length, checksum
        self._end = 0
        if self._path.exists():
            self._find()

    def _find(self) -> None:
        whole = self._path.stat().st_size
        with self._path.open("r+b") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                name, length, checksum = _HEAD.unpack(head)
                start = self._end + _HEAD.size
                if start + length > whole:
                    break
                self._places[name] = start, length, checksum
                self._end = file.seek(start + length)
            file.truncate(self._end)

    def get(self, name: bytes) -> bytes | None:
        """The piece of that name; None where there is none, or it is not as it was written."""
        if name not in self._places:
            return None
        start, length, checksum = self._places[name]
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        return content if len(content) == length and zlib.crc32(content) == checksum else None

    def put(self, name: bytes, content: bytes) -> None:
        """Adds a piece, unless the file would grow too large."""
        start = self._end + _HEAD.size
        if start + len(content) > _LARGEST:
            return
        checksum = zlib.crc32(content)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(_HEAD.pack(name, len(content), checksum) + content)
        self._places[name], self._end = (start, len(content), checksum), start + len(content)

    def clear(self) -> None:
        """Forgets everything: the step is done."""
        self._path.unlink(missing_ok=True)
        self._places, self._end = {}, 0

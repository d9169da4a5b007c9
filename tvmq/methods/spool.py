"""Values kept between passes over the calibration data: in memory as long as they fit, then in files."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Spool"]


class Spool:
    """A list of dictionaries of arrays, of which at most ``limit`` bytes stay in memory.

    Parameters
    ----------
    limit : int
        Bytes; what does not fit goes to temporary files, which disappear with the spool.

    Notes
    -----
    Arrays that are one object in an entry are one object again when it is read: the entry is pickled as a whole.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._sizes: list[int] = []
        self._entries: list[dict[Any, Any] | Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: dict[Any, Any]) -> None:
        """Add an entry at the end."""
        self._entries.append({})
        self._sizes.append(0)
        self[len(self) - 1] = entry

    def __getitem__(self, index: int) -> dict[Any, Any]:
        entry = self._entries[index]
        return pickle.loads(entry.read_bytes()) if isinstance(entry, Path) else entry

    def __setitem__(self, index: int, entry: dict[Any, Any]) -> None:
        size = _bytes(entry)
        self.held -= self._sizes[index]
        if self.held + size <= self.limit:
            self._release(index)
            self._entries[index], self._sizes[index] = entry, size
            self.held += size
            return
        path = self._path(index)
        with path.open("wb") as file:
            pickle.dump(entry, file, protocol=5)
        self._entries[index], self._sizes[index] = path, 0

    def close(self) -> None:
        """Delete the files."""
        self._entries, self._sizes, self.held = [], [], 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _path(self, index: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tvmq-calibration-")
        return Path(self._folder.name) / f"{index}.pickle"

    def _release(self, index: int) -> None:
        entry = self._entries[index]
        if isinstance(entry, Path):
            entry.unlink()


def _bytes(entry: dict[Any, Any]) -> int:
    """Bytes of the different arrays of an entry; tuples of arrays count too."""
    arrays: dict[int, int] = {}
    waiting = list(entry.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray):
            owner = value if value.base is None else value.base
            arrays[id(owner)] = value.nbytes
        elif isinstance(value, tuple | list):
            waiting += value
    return sum(arrays.values())

"""The newest rows of figures, in one array that grows as they come, and goes round once it has grown to its limit.

A deque of small arrays would take five times the memory, and a millisecond to be made into one array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.float32]

_FIRST = 32  # rows, before it grows


class RecentRows:
    """At most `most` rows of `width` figures, float32."""

    def __init__(self, width: int, most: int) -> None:
        self._most = most
        self._rows: Rows = np.empty((min(_FIRST, most), width), np.float32)
        self._seen = 0  # since the array was last laid out anew

    def append(self, row: ArrayLike) -> None:
        rows = self._rows
        if self._seen == len(rows) < self._most:
            self._lay_out(rows, min(2 * len(rows), self._most))
            rows = self._rows
        rows[self._seen % len(rows)] = row
        self._seen += 1

    def copy(self) -> Rows:
        """All rows, the oldest first."""
        if self._seen <= len(self._rows):
            return self._rows[: self._seen].copy()
        start = self._seen % len(self._rows)
        return np.concatenate((self._rows[start:], self._rows[:start]))

    def _lay_out(self, rows: Rows, room: int) -> None:
        self._rows = np.empty((room, self._rows.shape[1]), np.float32)
        self._rows[: len(rows)] = rows
        self._seen = len(rows)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def __len__(self) -> int:
        return min(self._seen, len(self._rows))

"""What callers have called wrong, as a lookup asks about it: which entry must not answer which question any more.

Questions and entries are named by their exact keys. An entry's key is that of the question it answers, so what was
said of an entry holds for the fresh answer that replaces it, too: the two questions differ as much as before.

One wrong answer may be one odd question, and takes the entry from that question only. Two different ones say that the
entry reaches too far: from then on it answers only questions that are nearer to it than either was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Added to the similarity of the nearest question called wrong. A hundredth is the step in which thresholds are chosen,
# and twice what the same pair differs by between an int8 model and its original.
MARGIN = 0.01


class Mark(NamedTuple):
    """One line of the store's log, as far as it changes what may be served."""

    entry_key: bytes
    asked: bytes | None  # None: all that was said of the entry is forgotten
    similarity: float = 0.0


class _Record(NamedTuple):
    asked: frozenset[bytes]  # never again served by this entry
    nearest: float  # the highest similarity among them

    @property
    def boundary(self) -> float:
        """At or below this similarity the entry answers nothing; below any similarity where one voice is not enough."""
        return self.nearest + MARGIN if len(self.asked) > 1 else -2.0


class Quarantine:
    """Written by the store's thread alone. Any thread may ask: a record is replaced whole, never changed."""

    def __init__(self) -> None:
        self._records: dict[bytes, _Record] = {}

    @property
    def entries(self) -> int:
        """How many are kept from some question."""
        return len(self._records)

    def refuses(self, entry_key: bytes, asked: bytes, similarity: float) -> bool:
        """Whether this entry must not answer this question, which is as near to it as `similarity` says."""
        record = self._records.get(entry_key)
        return record is not None and (asked in record.asked or similarity <= record.boundary)

    def is_tightened(self, entry_key: bytes) -> bool:
        """Whether the entry is also kept from questions that nobody has called wrong."""
        record = self._records.get(entry_key)
        return record is not None and len(record.asked) > 1

    def apply(self, marks: Iterable[Mark]) -> None:
        """Follow the log: marks in the order of their numbers. One that was applied before changes nothing."""
        for entry_key, asked, similarity in marks:
            if asked is None:
                self._records.pop(entry_key, None)
                continue
            known = self._records.get(entry_key, _Record(frozenset(), similarity))
            self._records[entry_key] = _Record(known.asked | {asked}, max(known.nearest, similarity))

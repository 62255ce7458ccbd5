"""The entries that were used last, in memory, within a budget of bytes.

Belongs to the event loop: no lock, so that a hit never waits. What is removed from the store is dropped here before
the removal is acknowledged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from semcache.types import Entry

ENTRY_OVERHEAD_BYTES = 1500  # the objects of one entry besides its texts, answer and vector, by sys.getsizeof


class HotEntries:
    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[int, tuple[Entry, int]] = OrderedDict()  # seq -> entry, bytes; oldest use first
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0
        self.drops = 0  # calls of `drop`: who read before one must not add after it

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, seq: int) -> Entry | None:
        found = self._entries.get(seq)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(seq)
        return found[0]

    def add(self, entry: Entry) -> None:
        size = _size_bytes(entry)
        if size > self._limit_bytes or entry.seq in self._entries:  # seq numbers are never reused: it is the same entry
            return
        self._entries[entry.seq] = (entry, size)
        self.size_bytes += size
        while self.size_bytes > self._limit_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.size_bytes -= freed

    def drop(self, seqs: Iterable[int]) -> None:
        self.drops += 1
        for seq in seqs:
            found = self._entries.pop(seq, None)
            if found is not None:
                self.size_bytes -= found[1]

    def clear(self) -> None:
        self.drop(list(self._entries))


def _size_bytes(entry: Entry) -> int:
    vector = 0 if entry.vector is None else entry.vector.nbytes
    return ENTRY_OVERHEAD_BYTES + entry.answer.size_bytes + vector + 4 * len(entry.question or "")

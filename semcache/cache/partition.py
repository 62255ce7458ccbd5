"""One partition: the entries that may answer each other, and the search among them.

Young entries are plain rows, compared one by one. When there are many, they are folded in the background into lists
(lists.py), and rows gather again behind them as a tail; a search looks at both. Folding anew takes in the tail,
drops what was removed, and chooses new centroids when the partition has grown much.

Searches take no lock. They rely on this order, which every change keeps:

1. A row is written before it is counted, and a place is never used twice: a search sees whole rows only.
2. An entry leaves the index's register before its vector is overwritten. A search asks the register *after* it has
   compared, so a vector that was half overwritten under it belongs to an entry which it then drops.
3. `lists` and `rows` are published together, as one tuple.

A partition of one question is the common case (each context is its own), so it must be cheap: two small arrays, no
FAISS object.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import faiss
import numpy as np

from semcache.cache.lists import (
    PIECE_ROWS,
    Batch,
    IsLive,
    Lists,
    Matrix,
    Seqs,
    choose_centroids,
    pick_live,
    use_one_thread,
)
from semcache.types import Vector

LARGE = 1 << 18  # numbers: a megabyte


@dataclass(frozen=True, slots=True)
class Shape:
    """When a partition changes its form, in entries. Figures from loadtests/bench_index.py."""

    flat_rows: int  # more rows than this are folded into lists
    probes: int = 32  # lists read by a search: finds 0.999 of the neighbours above 0.8, from 20 k to 1 M entries
    regrow: float = 4.0  # new centroids when a partition has grown this much: its lists are then four times as long
    tail_share: int = 16  # a tail may hold one entry for this many in lists: each is then copied about as many times
    dead_share: int = 4  # rewritten when one entry in this many was removed

    @classmethod
    def for_dimensions(cls, dimensions: int) -> Shape:
        """Rows that one thread compares in 1 ms at most: 20,000 at 384 dimensions take 0.7 ms."""
        return cls(flat_rows=max(1000, 20_000 * 384 // dimensions))

    def tail_rows(self, in_lists: int) -> int:
        return min(self.flat_rows, max(self.flat_rows // 4, in_lists // self.tail_share))


class Rows:
    """Vectors in the order of their sequence numbers, compared one by one. Grows at its end; see rule 1."""

    __slots__ = ("count", "dead", "seqs", "vectors")

    def __init__(self, seqs: Seqs, vectors: Matrix) -> None:
        """`seqs` ascending; both are owned from here on."""
        self.seqs = seqs  # (capacity,)
        self.vectors = vectors  # (capacity, d), C order
        self.count = len(seqs)
        self.dead = 0

    @classmethod
    def empty(cls, dimensions: int) -> Rows:
        return cls(np.empty(0, np.int64), np.empty((0, dimensions), np.float32))

    @classmethod
    def gather(cls, batches: list[Batch], dimensions: int) -> Rows:
        """A copy of the entries of `batches`."""
        if not batches:
            return cls.empty(dimensions)
        seqs = np.concatenate([batch.seqs for batch in batches])
        order = np.argsort(seqs, kind="stable")
        return cls(seqs[order], np.concatenate([batch.vectors() for batch in batches])[order])

    def append(self, seq: int, vector: Vector) -> None:
        count = self.count
        if count == len(self.seqs):
            seqs, vectors = _room_after(count, self.vectors.shape[1])
            seqs[:count], vectors[:count] = self.seqs, self.vectors
            self.seqs, self.vectors = seqs, vectors
        self.seqs[count] = seq
        self.vectors[count] = vector
        self.count = count + 1

    def search(self, vector: Vector, k: int) -> list[tuple[float, int]]:
        """Up to `k` of the nearest (similarity, seq), best first; removed ones come with a similarity of 0."""
        count = self.count  # read before the arrays: those that follow may be longer, never shorter
        vectors, seqs = self.vectors, self.seqs
        k = min(k, count)
        if k == 0:
            return []
        use_one_thread()
        similarities, places = np.empty(k, np.float32), np.empty(k, np.int64)
        # FAISS's comparison on our own memory: an IndexFlatIP would hold a copy, and costs 2 us more a call.
        faiss.knn_inner_product(
            faiss.swig_ptr(vector),
            faiss.swig_ptr(vectors),
            vectors.shape[1],
            1,
            count,
            k,
            faiss.swig_ptr(similarities),
            faiss.swig_ptr(places),
        )
        return list(zip(similarities.tolist(), seqs[places].tolist(), strict=True))

    def remove(self, seq: int) -> bool:
        """Overwrite the vector of `seq` with zeros. False when it is not here."""
        place = int(np.searchsorted(self.seqs[: self.count], seq))
        if place == self.count or self.seqs[place] != seq:
            return False
        self.vectors[place] = 0
        self.dead += 1
        return True

    def pieces(self) -> Iterator[tuple[Seqs, Matrix]]:
        """Views of what is here now, a piece at a time."""
        count, vectors, seqs = self.count, self.vectors, self.seqs
        for start in range(0, count, PIECE_ROWS):
            stop = min(count, start + PIECE_ROWS)
            yield seqs[start:stop], vectors[start:stop]

    def batches(self, is_live: IsLive, after: int = -1, up_to: int | None = None) -> list[Batch]:
        """Live entries with a sequence number above `after`, up to and with `up_to`."""
        found = []
        for seqs, vectors in self.pieces():
            picked = pick_live(seqs, is_live)
            picked = picked[seqs[picked] > after]
            if up_to is not None:
                picked = picked[seqs[picked] <= up_to]
            if len(picked):
                found.append(Batch(seqs[picked], vectors, picked))
        return found


def _room_after(count: int, dimensions: int) -> tuple[Seqs, Matrix]:
    """Larger arrays for rows that have filled theirs.

    Large ones get pages of their own: those not yet written cost nothing, so they can double, and the system has them
    back at once when they are outgrown. From the allocator, 20,000 rows cost twice their size, most of it holes.
    """
    if count * dimensions < LARGE:
        room = count + 1 + count // 2  # one row for the many partitions that never have a second
        return np.empty(room, np.int64), np.empty((room, dimensions), np.float32)
    room = 2 * count
    pages = mmap.mmap(-1, 4 * room * dimensions)
    return np.empty(room, np.int64), np.frombuffer(pages, np.float32).reshape(room, dimensions)


class Partition:
    """Changes come from one thread at a time, under the index's writer lock; searches from any, at any time."""

    __slots__ = ("_removed", "live", "name", "view")

    def __init__(self, name: bytes, rows: Rows, lists: Lists | None = None) -> None:
        self.name = name
        self.view: tuple[Lists | None, Rows] = (lists, rows)
        self.live = rows.count + (len(lists) if lists else 0)
        self._removed: list[int] | None = None  # while folding: what was removed since it began

    def search(self, vector: Vector, k: int) -> list[tuple[float, int]]:
        """Up to `k` neighbours (similarity, seq), best first: only those with a similarity above 0.

        May hold entries that were removed during the search: the caller asks the register.
        """
        lists, rows = self.view
        found = rows.search(vector, k)
        if lists is not None:
            found = sorted(found + lists.search(vector, k), reverse=True)[:k]
        # Half-precision codes can make the same question 1.00002 similar.
        return [(min(similarity, 1.0), seq) for similarity, seq in found if similarity > 0]

    def add(self, seq: int, vector: Vector) -> None:
        self.view[1].append(seq, vector)
        self.live += 1

    def extend(self, seqs: Seqs, vectors: Matrix) -> None:
        for seq, vector in zip(seqs.tolist(), vectors, strict=True):
            self.add(seq, vector)

    def remove(self, seq: int, shape: Shape, is_live: IsLive) -> None:
        """Take out an entry of this partition that has left the register."""
        lists, rows = self.view
        if rows.remove(seq):
            if rows.dead * shape.dead_share > rows.count:
                self.view = (lists, Rows.gather(rows.batches(is_live), rows.vectors.shape[1]))
        elif lists is not None:
            lists.remove(seq)
        if self._removed is not None:
            self._removed.append(seq)
        self.live -= 1

    def is_due(self, shape: Shape) -> bool:
        """True when it should be folded, and nobody is at it."""
        lists, rows = self.view
        if self._removed is not None:
            return False
        if lists is None:
            return rows.count > shape.flat_rows
        return rows.count > shape.tail_rows(len(lists)) or lists.dead * shape.dead_share > len(lists)

    def fold(self, shape: Shape, is_live: IsLive, writing: threading.Lock, stopping: threading.Event) -> None:
        """Bring all entries into the form that fits their number. Long: seconds for 100,000 entries; for one thread.

        `writing` is held for moments only. Searches and changes go on, and those changes are taken over at the end.
        Raises Abandoned when `stopping` is set; the partition is then as it was.
        """
        with writing:
            lists, rows = self.view
            cut = int(rows.seqs[rows.count - 1]) if rows.count else -1  # later ones stay in the tail
            self._removed = []
        try:
            batches = [*(lists.batches(is_live) if lists else ()), *rows.batches(is_live, up_to=cut)]
            total = sum(len(batch.seqs) for batch in batches)
            folded = None
            # Half: so that one entry more or less does not change the form.
            if total > shape.flat_rows // 2:
                if lists is None or total > shape.regrow * lists.trained_on:
                    centroids, trained_on = choose_centroids(batches, stopping), total
                    batches = [replace(batch, home=None) for batch in batches]
                else:
                    centroids, trained_on = lists.centroids, lists.trained_on
                folded = Lists.build(centroids, batches, shape.probes, trained_on, stopping)
                batches = []
            with writing:
                _, rows = self.view  # not those from above if they were rewritten meanwhile
                young = Rows.gather([*batches, *rows.batches(is_live, after=cut)], rows.vectors.shape[1])
                for seq in self._removed:
                    if not young.remove(seq) and folded is not None:
                        folded.remove(seq)
                self.view = (folded, young)
        finally:
            self._removed = None

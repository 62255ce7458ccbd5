"""Many vectors, searched approximately: FAISS lists of near neighbours, of which a search reads only the nearest few.

`Lists` never grows. It is built whole, in the background, and then only loses entries, whose codes are overwritten
where they stand. So a search needs no lock, and there is no moment when FAISS moves memory under it.

IVF and not HNSW: 100,000 vectors are built in 2 s instead of 75 s, an entry can really be taken out, and the parts
(centroids and lists) are plain arrays that a snapshot can hold without FAISS's own file format. Codes are
half-precision floats: half the memory and bandwidth of float32, for an error of 0.00002 in a similarity. 8-bit codes
lost 0.5 % of the neighbours above 0.8. Figures from loadtests/bench_index.py.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from semcache.types import Vector

Seqs = npt.NDArray[np.int64]
Codes = npt.NDArray[np.float16]
Matrix = npt.NDArray[np.float32]
IsLive = Callable[[int], bool]

LISTS_PER_ROOT = 2.0  # lists = 2 * sqrt(n): more make training slower than quadratic, fewer make each list longer
SAMPLE_PER_LIST = 32  # training vectors for each list: with 64 recall was the same
ROUNDS = 8  # of k-means; recall no longer rises after about six
FEWEST = 4  # a centroid of one question would be that question's vector, and would outlive its erasure
PIECE_ROWS = 4096  # rows handled between two moments in which other threads may have the interpreter


class Abandoned(Exception):
    """The program stops: a build was given up."""


class _OneThread(threading.local):
    """OpenMP inside FAISS switched off, once in each thread that touches it.

    The setting belongs to the calling thread, so doing this at the start of the program would miss the threads that
    search. Left on, two searches at once fight for the cores: 16 ms instead of 0.7 ms on two cores.
    """

    def __init__(self) -> None:
        faiss.omp_set_num_threads(1)
        self.done = True


_one_thread = _OneThread()

# FAISS asks Python now and then whether Ctrl-C was pressed, and for that takes the interpreter's lock in the middle of
# a search: up to 5 ms behind a busy event loop. Signals are the main thread's business here.
faiss.InterruptCallback.clear_instance()  # type: ignore[attr-defined]


def use_one_thread() -> None:
    """Call before any FAISS work; costs 50 ns after the first time in a thread."""
    _one_thread.done  # noqa: B018  (the first access in a thread runs __init__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Vectors on their way into new lists: `rows[picked]` belong to `seqs`; `rows` is somebody's memory, not a copy."""

    seqs: Seqs
    rows: npt.NDArray[np.floating]  # float32 or float16, (m, d)
    picked: npt.NDArray[np.intp]
    home: npt.NDArray[np.int32] | None = None  # the list of each, when known already

    def vectors(self, start: int = 0, stop: int | None = None) -> Matrix:
        return np.asarray(self.rows[self.picked[start:stop]], np.float32)


class Lists:
    """Build with `Lists.build` or `fill` + `seal`; then `search` from any thread, `remove` from one at a time."""

    def __init__(self, centroids: Matrix, probes: int, trained_on: int) -> None:
        use_one_thread()
        self.centroids = centroids
        self.trained_on = trained_on  # entries there were when the centroids were chosen
        self.dead = 0
        self._dimensions = centroids.shape[1]
        self._quantizer = faiss.IndexFlatIP(self._dimensions)
        self._quantizer.add(np.ascontiguousarray(centroids))
        self._ivf = faiss.IndexIVFScalarQuantizer(
            self._quantizer,
            self._dimensions,
            len(centroids),
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,  # codes of the vectors themselves, not of their distance to the centroid
        )
        self._ivf.is_trained = True  # fp16 codes have nothing to learn, and the centroids are given
        self._ivf.nprobe = min(probes, len(centroids))
        self._lists: Any = self._ivf.invlists
        self._seqs: Seqs = np.empty(0, np.int64)  # ascending, once sealed
        self._home: npt.NDArray[np.int32] = np.empty(0, np.int32)  # the list of each of `_seqs`

    @classmethod
    def build(
        cls, centroids: Matrix, batches: Sequence[Batch], probes: int, trained_on: int, stopping: threading.Event
    ) -> Lists:
        """Sort `batches` into lists around `centroids`. Raises Abandoned when `stopping` is set."""
        lists = cls(centroids, probes, trained_on)
        homes = [batch.home if batch.home is not None else lists._assign(batch, stopping) for batch in batches]
        lists._reserve(homes)
        for batch, home in zip(batches, homes, strict=True):
            _go_on(stopping)
            for start in range(0, len(home), PIECE_ROWS):
                piece = slice(start, start + PIECE_ROWS)
                codes = np.asarray(batch.rows[batch.picked[piece]], np.float16)
                lists.fill(home[piece], batch.seqs[piece], codes)
        lists.seal()
        return lists

    def fill(self, home: npt.NDArray[np.int32], seqs: Seqs, codes: Codes) -> None:
        """Add entries, each to the list that `home` names. Only before `seal`."""
        if not len(home):
            return
        order = np.argsort(home, kind="stable")
        home, seqs, codes = home[order], np.ascontiguousarray(seqs[order]), np.ascontiguousarray(codes[order])
        bounds = [0, *(np.flatnonzero(np.diff(home)) + 1).tolist(), len(home)]
        for start, stop in itertools.pairwise(bounds):
            self._lists.add_entries(
                int(home[start]),
                stop - start,
                faiss.swig_ptr(seqs[start:stop]),
                faiss.swig_ptr(codes[start:stop].view(np.uint8)),
            )

    def seal(self) -> Seqs:
        """No more entries will come: from here on searches and removals are allowed. Return what came, ascending."""
        sizes = [self._lists.list_size(number) for number in range(self._ivf.nlist)]
        home = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        seqs = np.concatenate([self._seqs_of(number) for number in range(len(sizes))])
        order = np.argsort(seqs, kind="stable")
        self._seqs, self._home = seqs[order], home[order]
        self._ivf.ntotal = len(seqs)
        return self._seqs

    def __len__(self) -> int:
        """Entries, removed ones included."""
        return len(self._seqs)

    def search(self, vector: Vector, k: int) -> list[tuple[float, int]]:
        """Up to `k` of the nearest (similarity, seq), best first; removed entries come with a similarity of 0."""
        use_one_thread()
        similarities, seqs = self._ivf.search(vector.reshape(1, -1), k)
        return list(zip(similarities[0].tolist(), seqs[0].tolist(), strict=True))

    def remove(self, seq: int) -> bool:
        """Overwrite the code of `seq` with zeros. False when it is not here. A search may run meanwhile."""
        place = int(np.searchsorted(self._seqs, seq))
        if place == len(self._seqs) or self._seqs[place] != seq:
            return False
        number = int(self._home[place])
        codes = self._codes_of(number)
        codes[np.flatnonzero(self._seqs_of(number) == seq)] = 0
        self.dead += 1
        return True

    def pieces(self) -> Iterator[tuple[int, Seqs, Codes]]:
        """What is in each list (its number, seqs, codes), removed entries included, a piece at a time.

        Views of FAISS's own memory, valid as long as this object.
        """
        for number in range(self._ivf.nlist):
            seqs, codes = self._seqs_of(number), self._codes_of(number)
            for start in range(0, len(seqs), PIECE_ROWS):
                yield number, seqs[start : start + PIECE_ROWS], codes[start : start + PIECE_ROWS]

    def batches(self, is_live: IsLive) -> Iterator[Batch]:
        """The live entries, in batches of one list."""
        for number, seqs, codes in self.pieces():
            picked = pick_live(seqs, is_live)
            if len(picked):
                yield Batch(seqs[picked], codes, picked, np.full(len(picked), number, np.int32))

    def _assign(self, batch: Batch, stopping: threading.Event) -> npt.NDArray[np.int32]:
        home = np.empty(len(batch.seqs), np.int32)
        for start in range(0, len(home), PIECE_ROWS):
            _go_on(stopping)
            _, nearest = self._quantizer.search(batch.vectors(start, start + PIECE_ROWS), 1)
            home[start : start + PIECE_ROWS] = nearest[:, 0]
        return home

    def _reserve(self, homes: Sequence[npt.NDArray[np.int32]]) -> None:
        """Give each list the memory it will need: growing by doubling would waste up to half of it."""
        counts = sum((np.bincount(home, minlength=self._ivf.nlist) for home in homes), np.zeros(self._ivf.nlist, int))
        for number, count in enumerate(counts.tolist()):
            self._lists.resize(number, count)
            self._lists.resize(number, 0)  # keeps the memory

    def _seqs_of(self, number: int) -> Seqs:
        size = self._lists.list_size(number)
        view: Seqs = faiss.rev_swig_ptr(self._lists.get_ids(number), size) if size else np.empty(0, np.int64)
        return view

    def _codes_of(self, number: int) -> Codes:
        size = self._lists.list_size(number)
        code_bytes = 2 * self._dimensions
        if not size:
            return np.empty((0, self._dimensions), np.float16)
        view: Codes = faiss.rev_swig_ptr(self._lists.get_codes(number), size * code_bytes).view(np.float16)
        return view.reshape(size, self._dimensions)


def choose_centroids(batches: Sequence[Batch], stopping: threading.Event) -> Matrix:
    """Unit vectors around which the entries of `batches` gather: spherical k-means on a sample of them.

    Raises Abandoned when `stopping` is set.
    """
    use_one_thread()
    total = sum(len(batch.seqs) for batch in batches)
    count = round(LISTS_PER_ROOT * math.sqrt(total))
    sample = _sample(batches, total, min(total, SAMPLE_PER_LIST * count))
    count = min(count, len(sample))
    kmeans = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=1,  # one round a call, so that a program which wants to stop need not wait for all of them
        spherical=True,
        min_points_per_centroid=1,  # else FAISS prints a warning
        max_points_per_centroid=len(sample),  # the sample is drawn already
        seed=1,
    )
    centroids: Any = None
    for _ in range(ROUNDS):
        _go_on(stopping)
        kmeans.train(sample, init_centroids=centroids)
        centroids = kmeans.centroids
    _, nearest = kmeans.index.search(sample, 1)
    members = np.bincount(nearest[:, 0], minlength=count)
    kept = members >= min(FEWEST, members.max())
    return np.ascontiguousarray(centroids[kept], np.float32)


def pick_live(seqs: Seqs, is_live: IsLive) -> npt.NDArray[np.intp]:
    """The positions in `seqs` of entries that are still there."""
    return np.flatnonzero(np.fromiter(map(is_live, seqs.tolist()), bool, len(seqs)))


def _sample(batches: Sequence[Batch], total: int, count: int) -> Matrix:
    chosen = np.sort(np.random.default_rng(1).choice(total, count, replace=False))
    pieces, before = [], 0
    for batch in batches:
        first, last = np.searchsorted(chosen, (before, before + len(batch.seqs)))
        here = chosen[first:last] - before
        pieces.append(np.asarray(batch.rows[batch.picked[here]], np.float32))
        before += len(batch.seqs)
    sample: Matrix = np.concatenate(pieces)
    # An entry removed since it was picked has a zero row by now.
    return np.ascontiguousarray(sample[np.einsum("ij,ij->i", sample, sample) > 0.5])


def _go_on(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise Abandoned

"""For each row of a stream, the texts before it that are nearest: what every replay of that stream looks at.

Computed once, exactly, by blocks. A cache with a very large partition searches approximately and finds a little less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from semcache.tuning.labelled import Vectors

KEPT = 64  # neighbours of a row: of those, a replay skips the ones that its cache would not hold
BLOCK = 1024  # rows searched for at once


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest first; a row with fewer ends in places of -1."""

    places: npt.NDArray[np.int32]  # (rows, KEPT), of texts
    cosines: npt.NDArray[np.float32]  # (rows, KEPT)


def find_neighbours(
    text_of: Sequence[int],
    vectors: Vectors,
    kept: int = KEPT,
    advance: Callable[[int], None] = lambda rows: None,
) -> Neighbours:
    """`text_of`: for each row the place of its text in `vectors`; texts are numbered as they first appear."""
    texts = np.asarray(text_of, np.int64)
    rows = len(texts)
    places = np.full((rows, kept), -1, np.int32)
    cosines = np.full((rows, kept), -1, np.float32)
    seen = np.maximum.accumulate(texts) + 1 if rows else texts  # texts known once a row is over
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        asked = vectors[texts[start:stop]]
        known = index.ntotal
        before = _search(index, asked, min(kept, known))
        fresh = int(seen[stop - 1]) - known  # texts that appear in this block: each is known to the rows after it
        within = asked @ vectors[known : known + fresh].T
        first_free = np.concatenate([[known], seen[start : stop - 1]]) - known
        within[np.arange(fresh)[None, :] >= first_free[:, None]] = -2
        ids = np.concatenate([before[0], np.broadcast_to(np.arange(known, known + fresh), within.shape)], axis=1)
        near = np.concatenate([before[1], within], axis=1)
        order = _largest(near, kept)
        width = order.shape[1]
        near = np.take_along_axis(near, order, axis=1)
        cosines[start:stop, :width] = near
        places[start:stop, :width] = np.where(near > -2, np.take_along_axis(ids, order, axis=1), -1)
        index.add(vectors[known : known + fresh])
        advance(stop - start)
    return Neighbours(places, cosines)


def _search(index: faiss.IndexFlatIP, asked: Vectors, number: int) -> tuple[npt.NDArray[np.int64], Vectors]:
    if not number:
        return np.zeros((len(asked), 0), np.int64), np.zeros((len(asked), 0), np.float32)
    near, ids = index.search(np.ascontiguousarray(asked), number)
    return ids, near


def _largest(values: Vectors, number: int) -> npt.NDArray[np.int64]:
    """The places of the largest in each row, the largest first."""
    if values.shape[1] > number:
        chosen = np.argpartition(-values, number - 1, axis=1)[:, :number]
        order = np.argsort(-np.take_along_axis(values, chosen, axis=1), axis=1, kind="stable")
        return np.take_along_axis(chosen, order, axis=1)
    return np.argsort(-values, axis=1, kind="stable")

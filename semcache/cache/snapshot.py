"""What a snapshot of the index holds, and whether it may be used.

A snapshot is a shortcut past the store's log, never a second truth. It is taken while changes go on, so it is exact in
one direction only: it holds nothing that was added after `position`, and may lack what was removed since. Following the
changes above `position` makes both right. Nothing of it is used unless every block proves itself (blocks.py) and the
head names this store, this embedder and a position from which the store can still tell what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semcache.cache.blocks import Block, BlockWriter, Damaged, read_blocks
from semcache.cache.lists import IsLive, Lists, Matrix, Seqs, pick_live
from semcache.cache.partition import Partition, Rows

_KEYS_PER_BLOCK = 16_384
_BLOCK_BYTES = 4 << 20  # blocks of vectors: large enough for the disk, small enough beside the data


class Foreign(Exception):
    """A whole snapshot, but of another store, another embedder, or a position that the store cannot continue from."""


@dataclass(frozen=True, slots=True)
class Head:
    """Whose snapshot it is, and up to where."""

    store_id: str
    stamp: str  # of the embedder
    dimensions: int
    position: int  # the last change it includes


@dataclass(slots=True)
class Contents:
    """The parts of an index, as read."""

    position: int
    exact_of: dict[int, bytes] = field(default_factory=dict)
    partition_of: dict[int, bytes] = field(default_factory=dict)
    partitions: dict[bytes, Partition] = field(default_factory=dict)


def write_snapshot(
    path: Path,
    head: Head,
    seqs: Sequence[int],
    exact_of: Callable[[int], bytes | None],
    partitions: Iterable[Partition],
    is_live: IsLive,
) -> int:
    """Write the entries `seqs`, none above `head.position`, as far as they are still live. Return the file's bytes.

    Changes may go on meanwhile. Raises OSError.
    """
    with BlockWriter(path) as out:
        out.write("head", asdict(head))
        # Keys before vectors: what is still live when its vector is copied was so when its key was.
        for start in range(0, len(seqs), _KEYS_PER_BLOCK):
            _write_keys(out, seqs[start : start + _KEYS_PER_BLOCK], exact_of)
        rows = _RowsWriter(out)
        for partition in partitions:
            lists, tail = partition.view
            if lists is not None:
                out.write("lists", {"name": partition.name.hex(), "trained_on": lists.trained_on}, lists.centroids)
                _write_codes(out, lists, head.position, is_live)
            for piece_seqs, vectors in tail.pieces():
                rows.add(partition.name, *_copy_live(piece_seqs, vectors, head.position, is_live))
        rows.flush()
        out.commit()
        return out.size_bytes


def read_snapshot(path: Path, expected: Head, floor: int, probes: int) -> Contents:
    """Read a snapshot of the same store and embedder, with `floor` <= its position <= `expected.position`.

    Raises Foreign, Damaged, or OSError (FileNotFoundError: there is none).
    """
    blocks = read_blocks(path)
    try:
        contents = Contents(_check_head(next(blocks), expected, floor))
        lists: tuple[bytes, Lists] | None = None  # being filled
        for block in blocks:
            if lists is not None and block.kind != "codes":
                _add_lists(contents, *lists)
                lists = None
            if block.kind == "keys":
                _read_keys(block, contents.exact_of)
            elif block.kind == "rows":
                _read_rows(block, contents, expected.dimensions)
            elif block.kind == "lists":
                centroids = np.array(_shaped(block.arrays[0], expected.dimensions))
                lists = bytes.fromhex(block.facts["name"]), Lists(centroids, probes, block.facts["trained_on"])
            elif block.kind == "codes" and lists is not None:
                home, seqs, codes = block.arrays
                if len(home) and not 0 <= home.min() <= home.max() < len(lists[1].centroids):
                    raise Damaged("codes for a list that is not there")
                lists[1].fill(home, seqs, _shaped(codes, expected.dimensions))
            else:
                raise Damaged(f"a block of kind {block.kind!r} where none may be")
        if lists is not None:
            _add_lists(contents, *lists)
    # The digests were right, so another program version wrote something else than this one reads.
    except (StopIteration, KeyError, ValueError, TypeError, IndexError) as exc:
        raise Damaged("not laid out as this version reads it") from exc
    if not contents.partition_of.keys() <= contents.exact_of.keys():
        raise Damaged("vectors of entries that are not there")
    return contents


def _check_head(block: Block, expected: Head, floor: int) -> int:
    head = Head(**block.facts)
    if (head.stamp, head.dimensions) != (expected.stamp, expected.dimensions):
        raise Foreign("made with another embedder")
    if head.store_id != expected.store_id:
        raise Foreign("made from another store")
    if head.position > expected.position:
        raise Foreign(f"ahead of the store: at change {head.position}, and the store ends at {expected.position}")
    if head.position < floor:
        raise Foreign(f"too old: at change {head.position}, and the store knows changes from {floor} only")
    return head.position


def _write_keys(out: BlockWriter, seqs: Sequence[int], exact_of: Callable[[int], bytes | None]) -> None:
    found = [(seq, key) for seq in seqs if (key := exact_of(seq)) is not None]
    keys = [key for _, key in found]
    lengths = np.fromiter(map(len, keys), np.int32, len(keys))
    out.write(
        "keys", {}, np.array([seq for seq, _ in found], np.int64), lengths, np.frombuffer(b"".join(keys), np.uint8)
    )


def _read_keys(block: Block, exact_of: dict[int, bytes]) -> None:
    seqs, lengths, joined = block.arrays
    whole, end = joined.tobytes(), 0
    for seq, length in zip(seqs.tolist(), lengths.tolist(), strict=True):
        exact_of[seq] = whole[end : end + length]
        end += length


def _write_codes(out: BlockWriter, lists: Lists, position: int, is_live: IsLive) -> None:
    pending: list[tuple[Any, Seqs, Any]] = []
    pending_bytes = 0

    def flush() -> None:
        if pending:
            homes, seqs, codes = zip(*pending, strict=True)
            out.write("codes", {}, np.concatenate(homes), np.concatenate(seqs), np.concatenate(codes))
            pending.clear()

    for number, seqs, codes in lists.pieces():
        seqs, codes = _copy_live(seqs, codes, position, is_live)
        pending.append((np.full(len(seqs), number, np.int32), seqs, codes))
        pending_bytes += codes.nbytes
        if pending_bytes >= _BLOCK_BYTES:
            flush()
            pending_bytes = 0
    flush()


def _add_lists(contents: Contents, name: bytes, lists: Lists) -> None:
    seqs = lists.seal()
    contents.partitions[name] = Partition(name, Rows.empty(lists.centroids.shape[1]), lists)
    contents.partition_of.update(dict.fromkeys(seqs.tolist(), name))


class _RowsWriter:
    """Gathers the rows of many small partitions into blocks of some size."""

    def __init__(self, out: BlockWriter) -> None:
        self._out = out
        self._pending: list[tuple[bytes, Seqs, Matrix]] = []
        self._bytes = 0

    def add(self, name: bytes, seqs: Seqs, vectors: Matrix) -> None:
        if len(seqs):
            self._pending.append((name, seqs, vectors))
            self._bytes += vectors.nbytes
            if self._bytes >= _BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        names, seqs, vectors = zip(*self._pending, strict=True)
        facts = {"names": [name.hex() for name in names]}
        counts = np.array([len(part) for part in seqs], np.int32)
        self._out.write("rows", facts, counts, np.concatenate(seqs), np.concatenate(vectors))
        self._pending, self._bytes = [], 0


def _read_rows(block: Block, contents: Contents, dimensions: int) -> None:
    counts, seqs, vectors = block.arrays
    _shaped(vectors, dimensions)
    start = 0
    for text, count in zip(block.facts["names"], counts.tolist(), strict=True):
        name = bytes.fromhex(text)
        partition = contents.partitions.get(name)
        piece = slice(start, start + count)
        if partition is None:
            partition = Partition(name, Rows(seqs[piece].copy(), vectors[piece].copy()))
            contents.partitions[name] = partition
        else:
            partition.extend(seqs[piece], vectors[piece])
        contents.partition_of.update(dict.fromkeys(seqs[piece].tolist(), partition.name))
        start += count


def _copy_live(seqs: Seqs, rows: Any, position: int, is_live: IsLive) -> tuple[Seqs, Any]:
    """Copies of entries up to `position`. Copied first, asked after: see rule 2 in partition.py."""
    rows = rows.copy()
    picked = pick_live(seqs, is_live)
    picked = picked[seqs[picked] <= position]
    return seqs[picked], rows[picked]


def _shaped(array: Any, dimensions: int) -> Any:
    if array.ndim != 2 or array.shape[1] != dimensions:
        raise Damaged(f"vectors of shape {array.shape}, where rows of {dimensions} belong")
    return array

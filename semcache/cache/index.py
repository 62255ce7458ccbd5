"""INDEX: where an answer to a question may be found. A view of the store's numbered changes, never a second truth.

It holds the exact map (exact key -> seq) and, for each partition, the vectors of its entries. Everything in it can be
rebuilt by following the changes from 0, so a doubt about it is settled by throwing it away. Changes come in order from
one thread; lookups come from any thread, take no lock, and see an entry from the moment its change was applied until
the moment its removal was.

The *register* (seq -> exact key) says which entries are there. A search believes nothing that the register does not
have: that makes removal one atomic step, however long it takes to overwrite the vector behind it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from semcache.cache.blocks import Damaged, partial_path, sync_folder
from semcache.cache.lists import Abandoned
from semcache.cache.partition import Partition, Rows, Shape
from semcache.cache.snapshot import Contents, Foreign, Head, read_snapshot, write_snapshot
from semcache.errors import CacheFault
from semcache.types import Candidate, Change, Posting, Vector

_log = logging.getLogger(__name__)

FILE_NAME = "index.snapshot"
NICENESS = 10  # of the building thread: requests come first
NORM_SLACK = 2e-3  # of a squared length: a unit vector in half precision passes, nothing else does
_SUPERSEDED = b""  # in the register, for an entry whose exact key a newer entry has taken


class Index:
    """`dimensions` and `stamp` are the embedder's; `folder` holds the snapshot, None: there is none.

    One process at a time may save to a folder. `start` runs a thread that builds what grows; without it, everything
    works and large partitions become slow.
    """

    def __init__(self, dimensions: int, stamp: str, folder: Path | None, shape: Shape | None = None) -> None:
        self.position = 0  # the last change applied
        self._dimensions = dimensions
        self._stamp = stamp
        self._path = None if folder is None else folder / FILE_NAME
        self._shape = shape or Shape.for_dimensions(dimensions)

        # The register and its neighbours hold only atoms, so the garbage collector has nothing to walk through.
        self._exact: dict[bytes, int] = {}
        self._exact_of: dict[int, bytes] = {}  # the register
        self._partition_of: dict[int, bytes] = {}  # entries with a vector
        self._partitions: dict[bytes, Partition] = {}

        self._writing = threading.Lock()  # held while anything above changes
        self._saving = threading.Lock()  # held while the file changes
        self._building = threading.Lock()  # held while a partition is folded
        self._stopping = threading.Event()
        self._due: dict[bytes, None] = {}  # partitions to fold, in order
        self._is_due = threading.Condition()
        self._builder: threading.Thread | None = None

        self._folds = self._folds_failed = self._vectors_refused = 0
        self._fold_s = self._save_s = self._load_s = 0.0
        self._snapshots_saved = self._snapshots_damaged = self._snapshots_foreign = self._snapshot_bytes = 0

    # Looking up.

    def find_exact(self, exact: bytes) -> int | None:
        """The newest entry with this exact key."""
        return self._exact.get(exact)

    def partition_size(self, partition: bytes) -> int:
        """Entries with a vector; 0: there is nothing to compare a question with."""
        found = self._partitions.get(partition)
        return 0 if found is None else found.live

    def search(self, partition: bytes, vector: Vector, k: int) -> list[Candidate]:
        """Up to `k` nearest entries of the partition, best first. `vector`: float32, shape (d,), unit length.

        Neighbours have a similarity above 0: what is not even that near is left out. Raises CacheFault when the
        vector is not one; FAISS would answer a zero or NaN query with arbitrary entries.
        """
        if not self._is_unit(vector):
            raise CacheFault(f"not a unit vector of {self._dimensions} finite numbers")
        found = self._partitions.get(partition)
        if found is None:
            return []
        register = self._exact_of
        return [Candidate(seq, similarity) for similarity, seq in found.search(vector, k) if seq in register]

    # Following the store.

    def apply(self, changes: Sequence[Change]) -> None:
        """Follow the log. Numbers must rise; changes at or below `position` were applied before and are passed over."""
        with self._writing:
            for change in changes:
                if change.seq <= self.position:
                    continue
                # In this order a replacement leaves no moment without an answer.
                if change.added is not None:
                    self._add(change.added)
                for seq in change.removed:
                    self._remove(seq)
                self.position = change.seq

    def _add(self, posting: Posting) -> None:
        seq, vector = posting.seq, posting.vector
        if posting.partition is not None and vector is not None:
            if self._is_unit(vector):
                partition = self._partitions.get(posting.partition)
                if partition is None:
                    partition = Partition(posting.partition, Rows.empty(self._dimensions))
                    self._partitions[posting.partition] = partition
                partition.add(seq, vector)
                self._partition_of[seq] = partition.name
                self._note(partition)
            else:  # of another embedder, or damaged: it can be found by its exact key all the same
                self._vectors_refused += 1
        older = self._exact.get(posting.exact)
        if older is not None:
            self._exact_of[older] = _SUPERSEDED
        self._exact_of[seq] = posting.exact
        self._exact[posting.exact] = seq

    def _remove(self, seq: int) -> None:
        exact = self._exact_of.pop(seq, None)  # first: from here on no search returns it
        if exact is None:
            return
        if exact != _SUPERSEDED:  # else the exact key is a newer entry's
            del self._exact[exact]
        name = self._partition_of.pop(seq, None)
        if name is not None:
            partition = self._partitions[name]
            partition.remove(seq, self._shape, self._exact_of.__contains__)
            if partition.live:
                self._note(partition)
            else:
                del self._partitions[name]

    def _is_unit(self, vector: Vector) -> bool:
        if vector.dtype != np.float32 or vector.shape != (self._dimensions,) or not vector.flags.c_contiguous:
            return False
        return abs(float(vector.dot(vector)) - 1.0) <= NORM_SLACK  # false for NaN, too

    # Building what grows.

    def start(self) -> None:
        """Start the thread that folds partitions when they grow."""
        self._stopping.clear()
        self._builder = threading.Thread(target=self._build, name="semcache-index", daemon=True)
        self._builder.start()

    def close(self) -> None:
        """Stop it: within a round of k-means, about 0.1 s at 100,000 entries. Lookups go on working."""
        self._stopping.set()
        with self._is_due:
            self._is_due.notify_all()
        if self._builder is not None:
            self._builder.join()
            self._builder = None

    def fold_due(self) -> None:
        """Fold every partition that is due, in the calling thread. What the builder thread does, again and again."""
        while not self._stopping.is_set():
            with self._is_due:
                name = next(iter(self._due), None)
                if name is None:
                    return
                del self._due[name]
            partition = self._partitions.get(name)
            if partition is not None:
                self._fold(partition)

    def _note(self, partition: Partition) -> None:
        if partition.is_due(self._shape) and partition.name not in self._due:
            with self._is_due:
                self._due[partition.name] = None
                self._is_due.notify()

    def _fold(self, partition: Partition) -> None:
        started = perf_counter()
        with self._building:
            if not partition.is_due(self._shape):  # another call was faster
                return
            partition.fold(self._shape, self._exact_of.__contains__, self._writing, self._stopping)
        self._folds += 1
        self._fold_s += perf_counter() - started
        with self._writing:
            self._note(partition)  # it may have grown on meanwhile

    def _build(self) -> None:
        with suppress(OSError):  # only Linux gives threads a niceness of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._is_due:
                self._is_due.wait_for(lambda: self._due or self._stopping.is_set())
            if self._stopping.is_set():
                return
            try:
                self.fold_due()
            except Abandoned:
                return
            except Exception:  # the partition stays as it was, correct and slower; the next change to it tries again
                self._folds_failed += 1
                _log.exception("index: a partition could not be folded")

    # The snapshot.

    def load_snapshot(self, store_id: str, last_seq: int, floor_seq: int) -> bool:
        """Take over the snapshot, into an index that is empty. `position` then says up to where it went.

        False when there is none that can be used; the index is then empty and follows the changes from 0. A snapshot
        that is damaged, of another store or embedder, past `last_seq` or before `floor_seq` is deleted: it can be
        made again, and nobody would delete the questions in it later.
        """
        if self._path is None or self.position:
            return False
        started = perf_counter()
        with self._saving:
            try:
                expected = Head(store_id, self._stamp, self._dimensions, last_seq)
                contents = read_snapshot(self._path, expected, floor_seq, self._shape.probes)
            except FileNotFoundError:
                return False
            except (Damaged, Foreign, OSError) as exc:
                self._snapshots_damaged += not isinstance(exc, Foreign)
                self._snapshots_foreign += isinstance(exc, Foreign)
                _log.warning(
                    "index: the snapshot %s is not used (%s); following the store from the start", self._path, exc
                )
                with suppress(OSError):
                    self._delete_files(self._path)
                return False
        self._take_over(contents)
        self._load_s = perf_counter() - started
        return True

    def save_snapshot(self, store_id: str) -> None:
        """Write a snapshot and put it in place of the last one. Long, and not for the event loop; all else goes on.

        Raises CacheFault when the file cannot be written; the last one then still stands.
        """
        if self._path is None:
            return
        started = perf_counter()
        with self._saving:
            with self._writing:
                head = Head(store_id, self._stamp, self._dimensions, self.position)
                seqs = list(self._exact_of)
                partitions = list(self._partitions.values())
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._snapshot_bytes = write_snapshot(
                    self._path, head, seqs, self._exact_of.get, partitions, self._exact_of.__contains__
                )
            except OSError as exc:
                raise CacheFault(f"{self._path}: the index snapshot cannot be written: {exc.strerror or exc}") from exc
        self._snapshots_saved += 1
        self._save_s = perf_counter() - started

    def discard_snapshot(self) -> None:
        """Delete the snapshot, as an erasure must. Call it when the removals have been applied.

        Waits for a running `save_snapshot`, which may hold what was erased. Raises CacheFault when it cannot.
        """
        if self._path is None:
            return
        with self._saving:
            try:
                self._delete_files(self._path)
            except OSError as exc:
                raise CacheFault(f"{self._path}: the index snapshot cannot be deleted: {exc.strerror or exc}") from exc

    def _take_over(self, contents: Contents) -> None:
        with self._writing:
            self._partitions.update(contents.partitions)
            self._partition_of.update(contents.partition_of)
            self._exact_of.update(contents.exact_of)
            self._exact.update((exact, seq) for seq, exact in contents.exact_of.items() if exact != _SUPERSEDED)
            self.position = contents.position
            for partition in contents.partitions.values():
                self._note(partition)

    @staticmethod
    def _delete_files(path: Path) -> None:
        for file in (path, partial_path(path)):  # a crash may have left the second
            file.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)

    def stats(self) -> dict[str, float]:
        partitions = list(self._partitions.values())
        return {
            "position": self.position,
            "entries": len(self._exact_of),
            "vectors": len(self._partition_of),
            "partitions": len(partitions),
            "partitions_in_lists": sum(partition.view[0] is not None for partition in partitions),
            "folds_due": len(self._due),
            "folds": self._folds,
            "folds_failed": self._folds_failed,
            "fold_seconds": self._fold_s,
            "vectors_refused": self._vectors_refused,
            "snapshots_saved": self._snapshots_saved,
            "snapshots_damaged": self._snapshots_damaged,
            "snapshots_foreign": self._snapshots_foreign,
            "snapshot_bytes": self._snapshot_bytes,
            "snapshot_save_seconds": self._save_s,
            "snapshot_load_seconds": self._load_s,
        }

    def __repr__(self) -> str:
        return (
            f"<Index {len(self._exact_of)} entries, {len(self._partitions)} partitions, "
            f"at change {self.position}, {self._dimensions} dimensions>"
        )

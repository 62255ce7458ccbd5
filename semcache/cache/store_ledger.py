"""The write side of the store: what one thread does with the one connection that writes.

Every change is a transaction that first reads what other processes have written, then takes the next numbers, and once
it is durable hands all of it, in order, to whoever follows. A put is therefore checked against every purge there is,
in this process or another, at the moment that decides.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from semcache.cache import store_evidence, store_feedback
from semcache.cache import store_log as log_sql
from semcache.cache.entry_codec import EntryCodec
from semcache.cache.quarantine import Mark, Quarantine
from semcache.cache.store_evidence import ShadowCount, ShadowKey
from semcache.cache.store_file import Database
from semcache.cache.store_log import Purge, Standing
from semcache.cache.store_reserve import Reserve
from semcache.errors import StoreFault
from semcache.types import Change, Effect, Entry, Feedback, Observation, Posting, Said, Selector

log = logging.getLogger(__name__)

Apply = Callable[[Sequence[Change]], None]
T = TypeVar("T")

CATCH_UP_CHANGES = 4096  # to a step: some 10 ms, so that others get their turn
REMOVE_AT_ONCE = 500  # rows to a transaction: some 20 ms, so that puts get their turn
KEEP_TOMBSTONES = 100_000  # a follower further behind than this rebuilds; 20 bytes each
KEEP_PURGES = 10_000  # an entry whose flight began before the oldest of these is refused
LOCK_RETRY_S = 0.005
RESERVE_BYTES = 24 * 2**20  # the log's 16 MB, to be moved into the database, and a deletion of REMOVE_AT_ONCE rows
ERASE_BUSY_S = 10.0  # how long an erase waits for readers of other processes to let go of the log


@dataclass(slots=True)
class Put:
    """An entry to be kept. `since_seq`: the newest change known when its answer was asked for."""

    entry: Entry
    since_seq: int
    only_if_newer: bool = False  # than the entry that has this key now: for imports


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a put that did not fail."""

    seq: int | None  # None: purged in the meantime, or not newer
    entry: Entry | None = None  # with its number; None when it was replaced within the same transaction


class Ledger:
    """`last_seq` may be read from any thread; everything else belongs to the thread that writes."""

    def __init__(
        self,
        database: Database,
        codec: EntryCodec,
        quarantine: Quarantine,
        *,
        on_removed: Callable[[list[int]], None],
        on_erase: Callable[[], None],
        on_lost: Callable[[], None],
        on_observations: Callable[[list[Observation]], None],
    ) -> None:
        """`quarantine` is filled, and kept up with the log. `on_removed` gets the numbers of entries that are gone,
        `on_erase` hears of another process's erase, `on_lost` that the file was taken away, and `on_observations` gets
        new evidence, ours and that of others, in the order of its numbers. All are called on the writing thread.
        """
        self._database = database
        self._db = database.connection
        self._codec = codec
        self._quarantine = quarantine
        self._on_removed = on_removed
        self._on_erase = on_erase
        self._on_lost = on_lost
        self._on_observations = on_observations
        self._reserve = Reserve(database.path, RESERVE_BYTES)
        self._reserve.fill()
        self._apply: Apply | None = None
        self._embedder: str | None = None
        self.lost = False
        self.disk_full = False
        self.commits = 0
        self.foreign_changes = 0
        self.apply_faults = 0
        self._erased_elsewhere = False
        self._observed_elsewhere: list[Observation] = []
        with self._snapshot():
            self._version = self._data_version()
            self.last_seq = log_sql.newest_seq(self._db)
            self.floor_seq = log_sql.get_meta(self._db, "floor")
            self._purge_floor = log_sql.get_meta(self._db, "purge_floor")
            self._purges = log_sql.purges_kept(self._db)
            quarantine.apply(store_feedback.numbers_and_marks(self._db, 0, self.last_seq)[1])
            self.entries = log_sql.count_entries(self._db)  # an estimate once other processes write, too
        self._next = self.last_seq
        self._wait_no_longer_than(LOCK_RETRY_S)

    def put(self, puts: Sequence[Put]) -> list[Kept | StoreFault]:
        """Keep all of them in one transaction; what is wrong with one is its own outcome. Raises StoreFault."""
        outcomes: list[Kept | StoreFault] = []
        rows, lives, tombstones, replaced = [], [], [], set()
        with self._transaction() as changes:
            standing = log_sql.standing_of(self._db, [put.entry.key.exact for put in puts])
            for put in puts:
                entry = put.entry
                older = standing.get(entry.key.exact)
                if self._is_purged(put) or (put.only_if_newer and older and older.created_at >= entry.created_at):
                    outcomes.append(Kept(None))
                    continue
                seq = self._next + 1
                try:
                    row = self._codec.to_row(entry, seq)
                except (ValueError, TypeError, OverflowError) as exc:
                    outcomes.append(StoreFault(f"the entry cannot be written: {type(exc).__name__}"))
                    continue
                self._next = seq
                rows.append(row)
                lives.append((seq, entry.created_at, entry.ttl_s + entry.grace_s, entry.created_at))
                if older:
                    replaced.add(older.seq)
                    tombstones.append((seq, [older.seq]))
                standing[entry.key.exact] = Standing(seq, entry.created_at)
                changes.append(Change(seq, self._posting(entry, seq), (older.seq,) if older else ()))
                outcomes.append(Kept(seq, replace(entry, seq=seq)))
            log_sql.insert_entries(self._db, rows, lives)
            log_sql.insert_tombstones(self._db, tombstones)
            if replaced:
                log_sql.delete_entries(self._db, sorted(replaced))
        return [Kept(o.seq) if isinstance(o, Kept) and o.seq in replaced else o for o in outcomes]

    def remove(self, seqs: Sequence[int], *, with_evidence: bool = False) -> int:
        """Delete at most REMOVE_AT_ONCE entries; return how many there were. Raises StoreFault.

        `with_evidence`: and what was learned of them, which stays true when an entry merely expires.
        """
        return self._even_if_full(lambda: self._remove(seqs, with_evidence))

    def _remove(self, seqs: Sequence[int], with_evidence: bool) -> int:
        with self._transaction() as changes:
            if with_evidence:
                store_evidence.delete_of_entries(self._db, seqs)
            found, marks = self._remove_within(seqs, changes)
        self._quarantine.apply(marks)
        return len(found)

    def _remove_within(self, seqs: Sequence[int], changes: list[Change]) -> tuple[list[int], list[Mark]]:
        """Within a transaction; what was said of the entries goes with them. The marks count once it is durable."""
        forgotten = store_feedback.delete_of_entries(self._db, seqs)
        found = log_sql.delete_entries(self._db, seqs)
        if found:
            self._next += 1
            log_sql.insert_tombstones(self._db, [(self._next, found)])
            changes.append(Change(self._next, None, tuple(found)))
        for entry_key in forgotten:
            self._next += 1
            store_feedback.insert_forgotten(self._db, entry_key, self._next)
            changes.append(Change(self._next))
        return found, [Mark(entry_key, None) for entry_key in forgotten]

    def take_feedback(self, feedback: Feedback) -> Effect:
        """Record what a caller said of a hit, and do what follows from it. Raises StoreFault."""
        return self._even_if_full(lambda: self._take_feedback(feedback))

    def _take_feedback(self, feedback: Feedback) -> Effect:
        entry_key, is_wrong = feedback.entry_key, feedback.said is Said.WRONG
        marks: list[Mark] = []
        observed: list[Observation] = []
        with self._transaction() as changes:
            stands = log_sql.standing_of(self._db, [entry_key]).get(entry_key)
            # A fresh answer to a question is not the one that was wrong; but it answers no other question any better.
            if stands is None or (is_wrong and feedback.is_exact and not self._is(stands, feedback.entry_id)):
                return Effect.GONE
            if is_wrong and feedback.is_exact:
                _, marks = self._remove_within([stands.seq], changes)
            elif is_wrong:
                marks = [Mark(entry_key, feedback.asked, feedback.similarity)]
            self._next += 1
            store_feedback.insert(self._db, feedback, self._next)
            changes.append(Change(self._next))
            if not feedback.is_exact:  # of one question there is nothing to learn about pairs
                observed = self._observe([store_evidence.from_feedback(feedback)], changes)
        self._quarantine.apply(marks)
        self._tell(observed)
        if not is_wrong:
            return Effect.RECORDED
        if feedback.is_exact:
            return Effect.REMOVED
        return Effect.TIGHTENED if self._quarantine.is_tightened(entry_key) else Effect.QUARANTINED

    def _is(self, standing: Standing, entry_id: str) -> bool:
        found = self._db.execute("SELECT id FROM entries WHERE seq = ?", (standing.seq,)).fetchone()
        return bool(found == (entry_id,))

    def observe(
        self, observations: Sequence[Observation], counts: Iterable[tuple[ShadowKey, ShadowCount]] = ()
    ) -> list[Observation]:
        """Keep what comparing has shown, and add to the counters of shadow mode. Raises StoreFault."""
        with self._transaction() as changes:
            observed = self._observe(observations, changes)
            store_evidence.add_shadow(self._db, counts)
        self._tell(observed)
        return observed

    def _observe(self, observations: Sequence[Observation], changes: list[Change]) -> list[Observation]:
        """Within a transaction; to be told once it is durable."""
        numbered = store_evidence.insert(self._db, observations, self._next + 1)
        self._next += len(numbered)
        changes += [Change(observation.seq) for observation in numbered]
        return numbered

    def _tell(self, observed: list[Observation]) -> None:
        if observed:
            self._on_observations(observed)

    def age_evidence(self, now: float) -> int:
        """Forget evidence that is too old to matter; return how many observations. Raises StoreFault."""
        with self._transaction():
            return store_evidence.age(self._db, now)

    def record_purge(self, selector: Selector, *, erase: bool) -> int:
        """From here on, no entry that the selector takes is kept unless its flight began later. Return the number."""
        return self._even_if_full(lambda: self._record_purge(selector, erase=erase))

    def _record_purge(self, selector: Selector, *, erase: bool) -> int:
        with self._transaction() as changes:
            self._next += 1
            purge = Purge.of(selector, self._next, erase=erase, codec=self._codec)
            log_sql.insert_purge(self._db, purge)
            store_feedback.delete_orphans(self._db)
            store_evidence.delete_selected(self._db, selector)
            changes.append(Change(purge.seq))
        self._purges.append(purge)
        return purge.seq

    def mark_used(self, seqs: Sequence[int], used_at: float) -> None:
        with self._transaction():
            log_sql.mark_used(self._db, seqs, used_at)

    def recount(self) -> int:
        """Count the entries; between two counts `entries` is kept up from the changes. Raises StoreFault."""
        with self._faults():
            self.entries = log_sql.count_entries(self._db)
        return self.entries

    def compact(self, keep_tombstones: int, keep_purges: int) -> None:
        """Forget all but the newest tombstones and purges. Raises StoreFault."""
        with self._transaction():
            floor = max(self.floor_seq, log_sql.forget(self._db, "tombstones", keep_tombstones))
            purge_floor = max(self._purge_floor, log_sql.forget(self._db, "purges", keep_purges))
            store_feedback.trim(self._db)
            log_sql.set_meta(self._db, "floor", floor)
            log_sql.set_meta(self._db, "purge_floor", purge_floor)
        self.floor_seq, self._purge_floor = floor, purge_floor
        self._purges = [purge for purge in self._purges if purge.seq > purge_floor]

    def erase(self) -> None:
        """Leave no copy of what was deleted in any file of the database. Raises StoreFault when one may be left.

        Measured over 6 x 6,000 rows of mixed sizes: without secure_delete nearly every copy stays; with it, and the log
        cut, one or two still did, in pages that b-tree balancing had moved cells out of. Only VACUUM leaves none.
        """
        self._wait_no_longer_than(ERASE_BUSY_S)
        try:
            self._cut_log()
            self._db.execute("VACUUM")
            self._cut_log()
            self._database.forget_moved_aside()
        except (sqlite3.Error, OSError) as exc:
            raise StoreFault(f"deleted, but copies may be left in the store's files: {exc}; erase again") from exc
        finally:
            self._wait_no_longer_than(LOCK_RETRY_S)

    def make_room(self) -> None:
        """After a full disk and an eviction: give the log's space back, and fill the reserve. Raises StoreFault.

        The entries that are gone have left pages that new ones can use, even where the reserve can not be had back.
        """
        with self._faults():
            self._cut_log()
        self._reserve.fill()
        self.disk_full = False

    def sync(self) -> None:
        """Make what is committed survive a power cut, too. Raises StoreFault."""
        with self._faults():
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _even_if_full(self, write: Callable[[], T]) -> T:
        """Deleting needs room, too: on a full disk the reserve gives it, and the log once it is cut."""
        try:
            return write()
        except StoreFault:
            if not (self.disk_full and self._reserve.release()):
                raise
            with suppress(StoreFault), self._faults():
                self._cut_log()
            return write()

    def poll(self) -> None:
        """Hand on what other processes have written. Raises StoreFault."""
        self._check_in_place()
        with self._faults():
            if self._data_version() == self._version:
                return
            with self._snapshot():
                foreign = self._read_foreign()
            self._deliver(foreign)

    def follow(self, after: int, known_floor: int, apply: Apply, embedder: str) -> None:
        """Hand on the changes from `after` to now, and then each one as it is committed. Raises StoreFault."""
        with self._faults():
            missed: list[Change] = []
            with self._snapshot():
                foreign = self._read_foreign()
                while True:
                    batch = log_sql.changes_after(self._db, after, known_floor, embedder, CATCH_UP_CHANGES)
                    missed += batch.changes
                    if not batch.more:
                        break
                    after, known_floor = batch.position, max(known_floor, batch.floor)
            self._deliver(foreign)  # to the follower until now
            self._apply, self._embedder = apply, embedder
            if missed:
                apply(missed)

    @property
    def last_purge_seq(self) -> int:
        """Of the newest purge we know of. Read from any thread."""
        return self._purges[-1].seq if self._purges else self._purge_floor

    def _is_purged(self, put: Put) -> bool:
        newest = self.last_purge_seq
        if put.since_seq >= newest:  # nearly always
            return False
        if put.since_seq < self._purge_floor:
            return True
        return any(p.seq > put.since_seq and p.takes(put.entry, self._codec) for p in self._purges)

    def _posting(self, entry: Entry, seq: int) -> Posting:
        ours = entry.embedder == self._embedder and entry.vector is not None
        return Posting(seq, entry.key.exact, entry.key.partition if ours else None, entry.vector if ours else None)

    @contextmanager
    def _transaction(self) -> Iterator[list[Change]]:
        """Yields the list that this transaction's changes go into; they are handed on once they are durable."""
        self._check_in_place()
        if self._database.read_only:
            raise StoreFault("the store cannot be written: it is read-only")
        foreign: list[Change] = []
        changes: list[Change] = []
        with self._faults():
            self._begin()
            try:
                foreign = self._read_foreign()
                yield changes
                self._db.execute("COMMIT")
                self.commits += 1
            except BaseException:
                changes.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._deliver(foreign + changes)  # what others wrote counts, whatever became of ours
                self._next = self.last_seq

    def _begin(self) -> None:
        """Take the write lock.

        SQLite's own wait backs off to 100 ms between two looks, where other workers hold the lock for one or two: we
        let it wait for a few milliseconds only, again and again.
        """
        deadline = time.monotonic() + self._database.busy_s
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise

    def _wait_no_longer_than(self, busy_s: float) -> None:
        self._db.execute(f"PRAGMA busy_timeout={int(busy_s * 1000)}")

    def _read_foreign(self) -> list[Change]:
        """Everything after `last_seq`; inside a transaction, so that nothing can come between."""
        version = self._data_version()
        if version == self._version:
            return []
        changes: list[Change] = []
        position = self.last_seq
        while True:
            batch = log_sql.changes_after(self._db, position, self.floor_seq, self._embedder, CATCH_UP_CHANGES)
            changes += batch.changes
            self._purges += batch.purges
            self._quarantine.apply(batch.marks)
            self.floor_seq = batch.floor
            self._erased_elsewhere |= any(purge.erase for purge in batch.purges)
            self._observed_elsewhere += store_evidence.stretch(self._db, position, batch.position)
            position = batch.position
            if not batch.more:
                break
        self._purge_floor = log_sql.get_meta(self._db, "purge_floor")
        self._version, self._next = version, position
        self.foreign_changes += len(changes)
        return changes

    def _deliver(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        removed = [seq for change in changes for seq in change.removed]
        if removed:
            self._on_removed(removed)
        if self._apply is not None:
            try:
                self._apply(changes)
            except Exception:  # a fault of the follower must not fail the writers
                self.apply_faults += 1
                log.exception("store: the index failed to apply changes up to %d", changes[-1].seq)
        self.entries += sum(change.added is not None for change in changes) - len(removed)
        self.last_seq = changes[-1].seq
        if self._erased_elsewhere:  # only now: a snapshot of the index must not be taken before the removals are in it
            self._erased_elsewhere = False
            self._on_erase()
        observed, self._observed_elsewhere = self._observed_elsewhere, []
        self._tell(observed)

    def _data_version(self) -> int:
        """Differs from the last time when another connection has committed; our own commits do not count."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """One consistent view over several reads."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def _cut_log(self) -> None:
        (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("another program is still reading the log")

    def _check_in_place(self) -> None:
        """A file that was deleted or replaced under us gets purges we cannot see: then nothing of it may be served."""
        if not self.lost and not self._database.is_in_place():
            self.lost = True
            log.error("store: %s was deleted or replaced; it is not used until a restart", self._database.path)
            self._on_lost()
        if self.lost:
            raise StoreFault("the database file was deleted or replaced; restart to open the one that is there now")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                self.disk_full = True
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                self._database.mark_damaged()
            raise StoreFault(f"the store cannot be used: {exc}") from exc

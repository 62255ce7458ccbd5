"""The store: the numbered log of entries and tombstones that everything else is a view of.

Acknowledged means durable: a put returns once its commit survives `kill -9`, and after the follower (the index) has
heard of it. No call touches the disk on the event loop: writes go to one thread that commits them in groups, reads to a
small pool of threads with connections of their own, and `get` looks into memory only. Every entry read from disk is
checked against its seal; one that fails is dropped and counted, and was never there for the caller.

    store.py           this: the async face          hot.py             the entries used last, in memory
    store_thread.py    the thread, group commit      store_exchange.py  export and import
    store_ledger.py    its transactions              entry_codec.py     an entry as a sealed row
    store_log.py       their SQL                     store_reserve.py   room to delete on a full disk
    store_feedback.py  and that of feedback          quarantine.py      what feedback keeps from being served
    store_evidence.py  and that of evidence
    store_file.py      opening, moving aside
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import local
from typing import Any, TypeVar

from semcache.cache import store_evidence, store_exchange, store_feedback
from semcache.cache import store_log as log_sql
from semcache.cache.entry_codec import DamagedRow, EntryCodec
from semcache.cache.hot import HotEntries
from semcache.cache.quarantine import Quarantine
from semcache.cache.store_evidence import ShadowCount, ShadowKey
from semcache.cache.store_file import Database, open_database
from semcache.cache.store_ledger import (
    CATCH_UP_CHANGES,
    KEEP_PURGES,
    KEEP_TOMBSTONES,
    REMOVE_AT_ONCE,
    Apply,
    Kept,
    Ledger,
    Put,
)
from semcache.cache.store_thread import WriterThread
from semcache.config import Cache
from semcache.errors import ConfigError, StartError, StoreFault
from semcache.types import Effect, Entry, Feedback, Observation, Selector

log = logging.getLogger(__name__)

READERS = 2  # a read is 20 us of SQLite and 20 us of Python: more threads would only queue for the interpreter
BUSY_S = 2.0  # how long a write waits for another program's lock before it fails
HYSTERESIS = 50  # evict down to 1/50 below the limit, so that not every put at the limit evicts
FULL_DISK_SHARE = 20  # on a full disk, evict 1/20 of the entries
TOUCHED_LIMIT = 100_000  # uses remembered between two flushes
EXPORT_ROWS = 256  # to a read, and fewer where they are large:
EXPORT_BYTES = 8 * 2**20
IMPORT_PUTS = 256  # to a wait
IMPORT_BYTES = 8 * 2**20

T = TypeVar("T")


async def _nobody_to_tell() -> None:
    return


def _nobody_learns(observations: list[Observation]) -> None:
    return


def open_store(cache: Cache, clock: Callable[[], float] = time.time) -> SqliteStore:
    """Make the store that `cache.store` names; `open` it next. Raises ConfigError."""
    scheme, _, path = cache.store.partition(":")
    if scheme == "sqlite" and path:
        return SqliteStore(Path(path), max_entries=cache.max_entries, clock=clock)
    if cache.store == "memory:":
        return SqliteStore(":memory:", max_entries=cache.max_entries, clock=clock)
    # Only the scheme: the rest of an address may hold a password.
    raise ConfigError(f'cache.store: "{scheme}" is none of: sqlite:PATH, memory: (this version has no other store)')


class SqliteStore:
    """One of these for each process and file; several processes may share a file. `":memory:"`: nothing outlives it."""

    def __init__(
        self,
        path: Path | str,
        *,
        max_entries: int,
        key_path: Path | None = None,
        clock: Callable[[], float] = time.time,
        hot_bytes: int = 64 * 2**20,
        max_queue: int = 4096,
        max_queue_bytes: int = 64 * 2**20,
        busy_s: float = BUSY_S,
    ) -> None:
        """`key_path`: where the seal's key lies; beside the database by default, readable by this user only."""
        self._path = None if str(path) == ":memory:" else Path(path)
        self._key_path = key_path
        self._max_entries = max_entries
        self._clock = clock
        self._busy_s = busy_s
        self._hot = HotEntries(hot_bytes)
        self.quarantine = Quarantine()
        self._writer = WriterThread(max_queue, max_queue_bytes, on_kept=self._hot.add)
        self._touched: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._local = local()
        self._readers: list[sqlite3.Connection] = []
        self._pool: ThreadPoolExecutor | None = None
        # Awaited after an erase here or in another process: files made from the log (index snapshots) must go.
        self.on_erase: Callable[[], Awaitable[None]] = _nobody_to_tell
        # Called on the event loop with new evidence, ours and that of other processes, in the order of its numbers.
        self.on_observations: Callable[[list[Observation]], None] = _nobody_learns
        self.puts = 0
        self.refused = 0  # puts that failed: queue full, disk full, locked, read-only
        self.purged_puts = 0
        self.reads = 0
        self.damaged = 0

    async def open(self) -> None:
        """Raises StartError with one line when nothing can be served from here."""
        self._loop = asyncio.get_running_loop()
        self._database, self._ledger = await self._loop.run_in_executor(None, self._open)
        self._writer.start(self._ledger, self._loop)
        if self._path is not None:
            self._pool = ThreadPoolExecutor(READERS, "semcache-read")

    def _open(self) -> tuple[Database, Ledger]:
        database = open_database(self._path, key_path=self._key_path, busy_s=self._busy_s)
        self._codec = EntryCodec(database.mac_key)
        try:
            ledger = Ledger(
                database,
                self._codec,
                self.quarantine,
                on_removed=self._removed,
                on_erase=self._erased_elsewhere,
                on_lost=self._lost,
                on_observations=self._observed,
            )
        except (sqlite3.Error, StoreFault) as exc:
            database.connection.close()
            raise StartError(f"store: {self._path}: {exc}") from exc
        return database, ledger

    async def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            await self.flush_recency()
        except StoreFault as exc:
            log.warning("store: recency is not kept over the restart: %s", exc)
        await self._writer.stop()
        if self._pool is not None:
            await self._loop.run_in_executor(None, self._pool.shutdown)
        for reader in self._readers:
            reader.close()
        await self._loop.run_in_executor(None, self._database.connection.close)  # checkpoints, so it may take a while

    @property
    def id(self) -> str:
        """Changes when the database is made anew: numbers of another id mean nothing here."""
        return self._database.id

    @property
    def last_purge_seq(self) -> int:
        """Of the newest purge, here or in another process. What was fetched before it must reach nobody new."""
        return self._ledger.last_purge_seq

    @property
    def last_seq(self) -> int:
        """The newest number this process knows."""
        return self._ledger.last_seq

    @property
    def floor_seq(self) -> int:
        """Tombstones up to here are forgotten: a snapshot older than this cannot catch up and must be made anew."""
        return self._ledger.floor_seq

    async def follow(self, after: int, apply: Apply, embedder: str) -> None:
        """Return when `apply` has been given every change after `after`; it then gets each one as it is committed.

        Called in strict order and never twice at a time, on threads of the store: for a put, before it is acknowledged;
        for changes of other processes, within about 100 ms. A later call replaces the follower.
        """
        known_floor = after
        more = True
        while more:  # in steps beside the writer, so that serving goes on
            batch = await self._on_reader(
                lambda db, after=after, floor=known_floor: _step(db, after, floor, embedder, apply)  # type: ignore[misc]
            )
            after, known_floor, more = batch.position, max(known_floor, batch.floor), batch.more
        await self._writer.call(lambda: self._ledger.follow(after, known_floor, apply, embedder))

    def get(self, seq: int) -> Entry | None:
        """From memory only; never blocks."""
        return self._hot.get(seq)

    async def read(self, seq: int) -> Entry | None:
        """From disk, its seal checked; None when there is none, or it is damaged. Raises StoreFault."""
        if self._ledger.lost:
            raise StoreFault("the database file was deleted or replaced")
        self.reads += 1
        drops = self._hot.drops
        try:
            entry = await self._on_reader(lambda db: self._read(db, seq))
        except DamagedRow as exc:
            self.damaged += 1
            log.error("store: entry %d is damaged and dropped: %s", seq, exc)
            self._start(self._drop_damaged(seq))
            return None
        # Something was removed since we began: perhaps this, and then it must not come back into memory.
        if entry is not None and self._hot.drops == drops:
            self._hot.add(entry)
        return entry

    async def peek(self, seq: int) -> Entry | None:
        """As `read`, for one who only looks: nothing is kept in memory, counted or dropped. Raises StoreFault."""
        row = await self._on_reader(lambda db: log_sql.read_row(db, seq))
        with suppress(DamagedRow):
            return None if row is None else self._codec.to_entry(row)
        return None

    async def homes_of(self, question: str, but: bytes, limit: int) -> list[log_sql.Home]:
        """Where entries with this very question lie, the newest first; the one with the exact key `but` left out.

        Reads the whole table. Raises StoreFault.
        """
        return await self._on_reader(lambda db: log_sql.homes_of(db, question, but, limit))

    async def newest_writer(self, endpoint: str, tenant: str | None, model: str | None) -> tuple[str, str] | None:
        """The tenant and the model of the newest entry, of this tenant and model where they are given."""
        return await self._on_reader(lambda db: log_sql.newest_writer(db, endpoint, tenant, model))

    async def put(self, entry: Entry, since_seq: int) -> int | None:
        """Keep an entry, replacing the one that has its exact key; return its number once that is durable.

        `since_seq`: `last_seq` when its answer was asked for. None when a purge that is newer takes the entry.
        Raises StoreFault, at once when the queue is full.
        """
        return (await self._put(Put(entry, since_seq))).seq

    def touch(self, seq: int) -> None:
        """The entry was used: it leaves later. Kept in memory until `flush_recency`."""
        if len(self._touched) < TOUCHED_LIMIT:
            self._touched.add(seq)

    async def flush_recency(self) -> None:
        touched, self._touched = sorted(self._touched), set()
        if self._database.read_only:
            return
        now = self._clock()
        for some in _chunks(touched, 10 * REMOVE_AT_ONCE):
            await self._writer.call(lambda some=some: self._ledger.mark_used(some, now))  # type: ignore[misc]

    async def remove(self, seqs: Sequence[int], *, with_evidence: bool = False) -> int:
        """Return how many of them there were. Raises StoreFault."""
        removed = 0
        for some in _chunks(seqs, REMOVE_AT_ONCE):
            removed += await self._writer.call(
                lambda some=some: self._ledger.remove(some, with_evidence=with_evidence)  # type: ignore[misc]
            )
        return removed

    async def purge(self, selector: Selector, *, erase: bool = False, dry_run: bool = False) -> int:
        """Remove what the selector takes, and refuse what flights now in the air would bring of it; return how many.

        `erase`: also leave no copy in any file of the database, nor in what was moved aside, nor (through `on_erase`)
        in the snapshots of followers. Takes about a second for 100,000 entries, during which puts wait. Raises
        StoreFault; then it is not complete, and has to be called again.
        """
        if dry_run:
            last = self.last_seq + 1
            return len(await self._on_reader(lambda db: log_sql.selected_seqs(db, selector, last, self._codec)))
        before = await self._writer.call(lambda: self._ledger.record_purge(selector, erase=False))
        taken = await self._on_reader(lambda db: log_sql.selected_seqs(db, selector, before, self._codec))
        removed = await self.remove(taken, with_evidence=True)
        await self._writer.call(self._ledger.sync)  # a power cut may undo a put, but not what an operator asked for
        if erase:
            # A second record, now that the entries are gone, tells other processes to make their snapshots anew.
            await self._writer.call(lambda: self._ledger.record_purge(selector, erase=True))
            await self._writer.call(self._ledger.erase)
            await self.on_erase()
        return removed

    async def take_feedback(self, feedback: Feedback) -> Effect:
        """Record what a caller said of a hit; what follows from it holds here at once, and soon in other processes.

        Survives a power cut, like a purge. Raises StoreFault.
        """
        effect = await self._writer.call(lambda: self._ledger.take_feedback(feedback))
        await self._writer.call(self._ledger.sync)
        return effect

    async def recent_feedback(self, limit: int) -> list[dict[str, Any]]:
        """What was said last, newest first. Raises StoreFault."""
        return await self._on_reader(lambda db: store_feedback.recent(db, limit))

    async def observe(
        self, observations: Sequence[Observation], counts: Sequence[tuple[ShadowKey, ShadowCount]] = ()
    ) -> list[Observation]:
        """Keep what comparing has shown, and add to the counters of shadow mode; return the observations, numbered.

        Durable when it returns, but for a power cut. Raises StoreFault.
        """
        return await self._writer.call(lambda: self._ledger.observe(observations, counts))

    async def observations(self, limit: int) -> list[Observation]:
        """The newest evidence, newest first. Raises StoreFault."""
        return await self._on_reader(lambda db: store_evidence.recent(db, limit))

    async def shadow_counts(self) -> list[tuple[ShadowKey, ShadowCount]]:
        """The counters of shadow mode, of all processes together, the oldest hour first. Raises StoreFault."""
        return await self._on_reader(store_evidence.shadow_counts)

    async def expire(self, now: float, latest: float | None = None) -> int:
        """Remove what is past its ttl and grace, or from further in the future than it may live; return how many.

        Where the clock is in doubt, `now` is the earliest and `latest` the latest time it may be; see upkeep.py.
        """
        latest = now if latest is None else latest
        if not self._database.read_only and await self._on_reader(lambda db: store_evidence.is_due(db, now)):
            await self._writer.call(lambda: self._ledger.age_evidence(now))
        return await self.remove(await self._on_reader(lambda db: log_sql.expired_seqs(db, now, latest)))

    async def evict(self) -> int:
        """Remove the least recently used entries when there are too many, or the disk is full; return how many."""
        count = await self._writer.call(self._ledger.recount)
        disk_full = self._ledger.disk_full
        if not disk_full and count <= self._max_entries:
            return 0
        target = min(count, self._max_entries - self._max_entries // HYSTERESIS)
        if disk_full:
            target = min(target, count - count // FULL_DISK_SHARE)
        removed = await self.remove(await self._on_reader(lambda db: log_sql.least_used_seqs(db, count - target)))
        if disk_full:
            await self._writer.call(self._ledger.make_room)
        return removed

    async def compact(self, keep_tombstones: int = KEEP_TOMBSTONES, keep_purges: int = KEEP_PURGES) -> None:
        """Forget tombstones and purge records that are too old to matter. Raises StoreFault."""
        await self._writer.call(lambda: self._ledger.compact(keep_tombstones, keep_purges))

    async def export(self) -> AsyncGenerator[bytes, None]:
        """Yield lines of JSON: a header, then every entry there is when its turn comes. Damaged ones are left out."""
        yield store_exchange.header_line(self.id, self._clock())
        after = 0
        while rows := await self._on_reader(
            lambda db, after=after: log_sql.rows_after(db, after, EXPORT_ROWS, EXPORT_BYTES)  # type: ignore[misc]
        ):
            for row in rows:
                try:
                    yield store_exchange.entry_line(self._codec.to_entry(row))
                except DamagedRow as exc:
                    self.damaged += 1
                    log.error("store: entry %s is damaged and not exported: %s", row[0], exc)
            after = rows[-1][0]

    async def import_lines(self, lines: AsyncIterable[bytes] | Iterable[bytes]) -> int:
        """Keep the entries of an export unless a newer one has their key; return how many were kept.

        Raises ClientError that names the first bad line; what stands before it has been imported.
        """
        since_seq = self.last_seq
        kept, waiting, waiting_bytes = 0, list[Awaitable[Kept]](), 0
        try:
            async for entry in store_exchange.read_entries(lines):
                waiting.append(asyncio.ensure_future(self._put(Put(entry, since_seq, only_if_newer=True))))
                waiting_bytes += entry.answer.size_bytes
                if len(waiting) >= IMPORT_PUTS or waiting_bytes >= IMPORT_BYTES:
                    kept += await _count_kept(waiting)
                    waiting, waiting_bytes = [], 0
        finally:
            kept += await _count_kept(waiting)
        return kept

    def stats(self) -> dict[str, float]:
        """Levels, and counts since the start; the names end in their unit where it is not a count."""
        ledger, hot = self._ledger, self._hot
        return {
            "entries": ledger.entries,
            "quarantined": self.quarantine.entries,
            "disk_bytes": self._database.disk_bytes(),
            "last_seq": ledger.last_seq,
            "queue": self._writer.queued,
            "queue_bytes": self._writer.queued_bytes,
            "commits": ledger.commits,
            "puts": self.puts,
            "refused_puts": self.refused,
            "purged_puts": self.purged_puts,
            "reads": self.reads,
            "damaged": self.damaged,
            "foreign_changes": ledger.foreign_changes,
            "apply_faults": ledger.apply_faults,
            "poll_faults": self._writer.poll_faults,
            "hot_entries": len(hot),
            "hot_bytes": hot.size_bytes,
            "hot_hits": hot.hits,
            "hot_misses": hot.misses,
            "moved_aside": float(self._database.moved_aside is not None),
            "read_only": float(self._database.read_only),
            "lost": float(ledger.lost),
            "disk_full": float(ledger.disk_full),
        }

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path or ':memory:')!r})"

    async def _put(self, put: Put) -> Kept:
        try:
            kept = await self._writer.put(put, _queue_bytes(put.entry))
        except StoreFault:
            self.refused += 1
            raise
        if kept.seq is None:
            self.purged_puts += not put.only_if_newer
        else:
            self.puts += 1
        return kept

    def _read(self, db: sqlite3.Connection, seq: int) -> Entry | None:
        try:
            row = log_sql.read_row(db, seq)
        except sqlite3.DatabaseError as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            self._database.mark_damaged()
            raise DamagedRow(str(exc)) from exc
        return None if row is None else self._codec.to_entry(row)

    async def _on_reader(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run on a thread that has a connection to read from. Raises StoreFault."""
        if self._pool is None:  # in memory there is one connection, and it is the writer's
            return await self._writer.call(lambda: act(self._database.connection))
        return await self._loop.run_in_executor(self._pool, self._with_reader, act)

    def _with_reader(self, act: Callable[[sqlite3.Connection], T]) -> T:
        try:
            reader: sqlite3.Connection | None = getattr(self._local, "reader", None)
            if reader is None:
                reader = self._local.reader = self._database.reader()
                self._readers.append(reader)
            return act(reader)
        except sqlite3.Error as exc:
            raise StoreFault(f"the store cannot be read: {exc}") from exc

    async def _drop_damaged(self, seq: int) -> None:
        try:
            await self.remove([seq])
        except StoreFault as exc:  # it stays, and fails its seal again next time
            log.warning("store: the damaged entry %d cannot be dropped: %s", seq, exc)

    def _removed(self, seqs: list[int]) -> None:
        self._loop.call_soon_threadsafe(self._hot.drop, seqs)

    def _observed(self, observations: list[Observation]) -> None:
        self._loop.call_soon_threadsafe(lambda: self.on_observations(observations))

    def _erased_elsewhere(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._start(self._tell_erased()))

    async def _tell_erased(self) -> None:
        await self.on_erase()

    def _lost(self) -> None:
        self._loop.call_soon_threadsafe(self._hot.clear)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _step(db: sqlite3.Connection, after: int, known_floor: int, embedder: str, apply: Apply) -> log_sql.Batch:
    db.execute("BEGIN")
    try:
        batch = log_sql.changes_after(db, after, known_floor, embedder, CATCH_UP_CHANGES)
    finally:
        db.execute("COMMIT")
    if batch.changes:
        apply(batch.changes)
    return batch


def _chunks(seqs: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seqs[start : start + size] for start in range(0, len(seqs), size)]


def _queue_bytes(entry: Entry) -> int:
    return entry.answer.size_bytes + len(entry.question or "") + (0 if entry.vector is None else entry.vector.nbytes)


async def _count_kept(waiting: Sequence[Awaitable[Kept]]) -> int:
    return sum(kept.seq is not None for kept in await asyncio.gather(*waiting))

"""The thread that writes: group commit between the event loop and the ledger.

Whatever is waiting when a transaction begins is committed in it. When puts come together, commits keep a distance, so
that a larger group gathers: a transaction costs as much as four entries. A put that comes alone is committed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from semcache.cache.store_ledger import Kept, Ledger, Put
from semcache.errors import SemcacheError, StoreFault
from semcache.types import Entry

log = logging.getLogger(__name__)

GATHER_S = 0.002  # from commit to commit under load, so that a larger group gathers
GROUP_LIMIT = 512  # entries to a transaction: some 15 ms, so that other processes get the write lock
POLL_S = 0.1  # how late we learn what another process wrote, while we write nothing ourselves

T = TypeVar("T")


@dataclass(slots=True)
class _PutJob:
    put: Put
    done: asyncio.Future[Kept]
    size_bytes: int


@dataclass(slots=True)
class _CallJob:
    act: Callable[[], Any]
    done: asyncio.Future[Any]


@dataclass(slots=True)
class _StopJob:
    pass


_Settled = tuple[asyncio.Future[Any], Any]  # the value, or the exception


class WriterThread:
    """`put` and `call` belong to the event loop; the ledger and everything it calls belong to the thread."""

    def __init__(self, max_queue: int, max_queue_bytes: int, on_kept: Callable[[Entry], None]) -> None:
        """`on_kept` gets every new entry, on the event loop, in the order of their numbers."""
        self._on_kept = on_kept
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._jobs: SimpleQueue[_PutJob | _CallJob | _StopJob] = SimpleQueue()
        self._thread: Thread | None = None
        self.queued = 0  # puts not yet settled
        self.queued_bytes = 0
        self.poll_faults = 0

    def start(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = Thread(target=self._run, args=(ledger,), name="semcache-store", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finish what is queued and end the thread."""
        if self._thread is not None:
            self._jobs.put(_StopJob())
            thread, self._thread = self._thread, None
            await self._loop.run_in_executor(None, thread.join)

    def put(self, put: Put, size_bytes: int) -> asyncio.Future[Kept]:
        """Queue an entry; the future is done once the commit is durable. Raises StoreFault at once when it is full."""
        if self._thread is None:
            raise StoreFault("the store is closed")
        if self.queued >= self._max_queue or self.queued_bytes + size_bytes > self._max_queue_bytes:
            raise StoreFault("the store's queue is full")
        done: asyncio.Future[Kept] = self._loop.create_future()
        self.queued += 1
        self.queued_bytes += size_bytes
        self._jobs.put(_PutJob(put, done, size_bytes))
        return done

    def call(self, act: Callable[[], T]) -> asyncio.Future[T]:
        """Run `act` on the thread, after everything queued before it."""
        if self._thread is None:
            raise StoreFault("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_CallJob(act, done))
        return done

    def _run(self, ledger: Ledger) -> None:
        _give_way()
        gather_until = 0.0  # monotonic seconds
        going_on = True
        while going_on:
            try:
                job = self._jobs.get(timeout=POLL_S)
            except Empty:
                self._poll(ledger)
                continue
            wait_s = gather_until - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            jobs = [job]
            while len(jobs) < GROUP_LIMIT:
                try:
                    jobs.append(self._jobs.get_nowait())
                except Empty:
                    break
            going_on = self._work(ledger, jobs)
            # One at a time means somebody who asks, waits, and asks again: making that one wait longer gathers nothing.
            gather_until = time.monotonic() + GATHER_S if len(jobs) > 1 else 0.0

    def _work(self, ledger: Ledger, jobs: Sequence[_PutJob | _CallJob | _StopJob]) -> bool:
        """In order: neighbouring puts share a transaction. Return whether to go on."""
        group: list[_PutJob] = []
        for job in jobs:
            if isinstance(job, _PutJob):
                group.append(job)
                continue
            self._commit(ledger, group)
            group = []
            if isinstance(job, _StopJob):
                return False
            self._settle_later([(job.done, _outcome(job.act))], 0, 0)
        self._commit(ledger, group)
        return True

    def _commit(self, ledger: Ledger, group: list[_PutJob]) -> None:
        if not group:
            return
        outcomes = _outcome(lambda: ledger.put([job.put for job in group]))
        if isinstance(outcomes, Exception):
            outcomes = [StoreFault(str(outcomes)) for _ in group]  # each caller raises its own
        settled = [(job.done, outcome) for job, outcome in zip(group, outcomes, strict=True)]
        self._settle_later(settled, len(group), sum(job.size_bytes for job in group))

    def _poll(self, ledger: Ledger) -> None:
        try:
            ledger.poll()
        except Exception as exc:
            if not self.poll_faults:
                log.warning("store: changes of other processes cannot be read: %s", exc)
            self.poll_faults += 1

    def _settle_later(self, settled: list[_Settled], puts: int, size_bytes: int) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, settled, puts, size_bytes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("store: %d results came after the loop was closed", len(settled))

    def _settle(self, settled: list[_Settled], puts: int, size_bytes: int) -> None:
        self.queued -= puts
        self.queued_bytes -= size_bytes
        for done, outcome in settled:
            if isinstance(outcome, Kept) and outcome.entry is not None:
                self._on_kept(outcome.entry)
            if done.done():  # the caller was cancelled; what it asked for has happened all the same
                continue
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)


def _give_way() -> None:
    """Let this thread's wake-ups not interrupt the event loop where both share a core (Linux, sched(7)).

    A put would else cost two changes of thread: with this, misses on one core went from 3,400/s to 4,200/s.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # not allowed in some sandboxes
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # 0: the calling thread


def _outcome(act: Callable[[], Any]) -> Any:
    """The value, or the exception, as a StoreFault unless it is one of ours."""
    try:
        return act()
    except SemcacheError as exc:
        return exc
    except Exception as exc:  # the thread must outlive any one job
        log.exception("store: a write failed in an unforeseen way")
        fault = StoreFault(f"the store failed: {type(exc).__name__}")
        fault.__cause__ = exc
        return fault

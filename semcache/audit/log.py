"""The log as the proxy sees it: `record` queues and returns, a thread writes.

Nothing is dropped in silence. While the file cannot be written the records wait and the log complains; past QUEUE_BYTES
they are counted, and a line `lost` says how many once lines can be written again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from semcache.audit.chain import BEGINNING, Head
from semcache.audit.file import AuditFile
from semcache.audit.outcomes import events_of
from semcache.audit.record import Event, render, render_withheld
from semcache.config import Audit
from semcache.errors import SemcacheError, StartError
from semcache.types import Outcome

QUEUE_BYTES = 8 * 1024 * 1024  # some 25,000 records: a minute of the most semantic hits that one process serves
BATCH_S = 0.05  # lines are written this late, together: the disk is waited for once for all of them
RETRY_S = 1.0  # after the file could not be written
STOP_S = 5.0  # how long a stop waits for a disk that takes nothing


_OBJECT_BYTES = 150  # what a record weighs in the queue beside its text


class _Waiting(NamedTuple):
    event: Event
    record: bytes  # empty: of a tenant of another region, of which nothing is told
    size: int


class AuditLog:
    def __init__(
        self, settings: Audit, region: str | None, now: Callable[[], datetime] = partial(datetime.now, UTC)
    ) -> None:
        """`region`: of this node, where the file is unless the settings say otherwise."""
        self._settings = settings
        self._region = settings.region or region
        self._now = now
        self._file = AuditFile(Path(settings.path), int(settings.rotate), settings.keep, now)
        self._queue: deque[_Waiting] = deque()
        self._unwritten: list[_Waiting] = []  # taken from the queue by the thread, in the order of the lines to be
        # Two counters with one writer each instead of one with two: no lock between the loop and the thread.
        self._queued_bytes = 0  # counted by `record`
        self._done_bytes = 0  # counted on the thread
        self._lost_told = 0  # of `lost`, those that a line tells of
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self.written = 0
        self.withheld = 0  # records of tenants that are bound to other regions: told as a count alone
        self.lost = 0  # the queue was full, while the file could not be written
        self.faults = 0  # attempts to write that failed
        self._fault: OSError | None = None

    def start(self) -> None:
        """Raises StartError where no line could be written now."""
        path = Path(self._settings.path)
        try:
            for folder in reversed(path.parents):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise StartError(f"audit.path: the folder {path.parent} cannot be made: {exc.strerror}") from exc
        fault = self._file.append([]).fault
        if fault is not None:
            raise StartError(f"audit.path: {path} cannot be written: {fault.strerror}") from fault
        self._thread.start()

    def stop(self) -> None:
        """Write what waits and end. Blocks, for at most STOP_S; `waiting` in `stats` then tells what was given up."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def record(self, event: Event, *, regions: frozenset[str] = frozenset(), **facts: Any) -> None:
        """Queue one line. Never waits; called on one thread, that of the event loop.

        `regions`: those that the tenant or the route is bound to, empty: any. Where the file lies outside them
        nothing but the event is written, counted together with others like it.
        `question` among the facts is left out unless the settings want it.
        """
        if event is Event.HIT and not self._settings.hits:
            return
        if self._queued_bytes - self._done_bytes >= QUEUE_BYTES:
            self.lost += 1
            return
        if not self._settings.prompts:
            facts.pop("question", None)
        may_tell = not regions or self._region is None or self._region in regions
        self.withheld += not may_tell
        # Rendered here and not on the thread: a thread running Python holds the loop up for 5 ms at a time.
        record = render(event, self._now(), facts) if may_tell else b""
        was_empty = not self._queue
        size = len(record) + _OBJECT_BYTES
        self._queued_bytes += size
        self._queue.append(_Waiting(event, record, size))
        if was_empty:
            self._wake.set()

    def observe(self, outcome: Outcome, question: str | None = None) -> None:
        """Write what of a request's outcome belongs here; most requests leave nothing."""
        for event, facts in events_of(outcome, question):
            self.record(event, regions=outcome.regions, **facts)

    def complaint(self) -> str | None:
        """Why lines wait at the moment, for /readyz and the operator; None: they do not."""
        fault = self._fault
        return None if fault is None else f"audit: {self._settings.path} cannot be written: {fault.strerror or fault}"

    @property
    def head(self) -> Head:
        """The last line that this process wrote or saw: its hash, kept elsewhere, is what a forger cannot change."""
        return self._file.head

    def stats(self) -> dict[str, float]:
        return {
            "lines_written": self.written,
            "lines_waiting": len(self._queue) + len(self._unwritten),
            "lines_withheld": self.withheld,
            "lines_lost": self.lost,
            "faults": self.faults,
            "rotations": self._file.rotations,
            "head_seq": self._file.head.seq,
        }

    # On the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(RETRY_S if self._fault is not None else None)
            self._wake.clear()  # before the queue is looked at: a record after this wakes us again
            self._stopping.wait(BATCH_S)
            self._write_batch()
        self._write_batch()
        self._file.close()

    def _write_batch(self) -> None:
        """Write what waits. What cannot be written goes on waiting."""
        withheld: Counter[Event] = Counter()
        while self._queue:
            item = self._queue.popleft()
            if item.record:
                self._unwritten.append(item)
            else:
                withheld[item.event] += 1
                self._done_bytes += item.size
        time = self._now()
        own = [render_withheld(event, time, count) for event, count in withheld.items()]
        if lost := self.lost - self._lost_told:
            own.append(render(Event.LOST, time, {"lines": lost}))
            self._lost_told += lost
        self._unwritten += [_Waiting(Event.LOST, record, 0) for record in own]
        if not self._unwritten:
            return
        written, self._fault = self._file.append([item.record for item in self._unwritten])
        self.written += written
        self.faults += self._fault is not None
        self._done_bytes += sum(item.size for item in self._unwritten[:written])
        del self._unwritten[:written]


class NoAudit:
    """The log that is switched off."""

    head = BEGINNING

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def record(self, event: Event, *, regions: frozenset[str] = frozenset(), **facts: Any) -> None: ...

    def observe(self, outcome: Outcome, question: str | None = None) -> None: ...

    def complaint(self) -> str | None:
        return None

    def stats(self) -> dict[str, float]:
        names = ("lines_written", "lines_waiting", "lines_withheld", "lines_lost", "faults", "rotations", "head_seq")
        return dict.fromkeys(names, 0)


def open_audit(settings: Audit | None, region: str | None) -> AuditLog | NoAudit:
    """The log that `audit` describes. `region`: `server.region`."""
    return NoAudit() if settings is None else AuditLog(settings, region)


def record_now(
    settings: Audit | None, region: str | None, event: Event, *, regions: frozenset[str] = frozenset(), **facts: Any
) -> None:
    """Write one line and return when it is on the disk: for commands, which act beside a running proxy or without it.

    Raises SemcacheError where it cannot be written: call it before the act that it tells of.
    """
    if settings is None:
        return
    log = AuditLog(settings, region)
    log.start()
    log.record(event, regions=regions, **facts)
    log.stop()
    if fault := log.complaint():
        raise SemcacheError(fault)

"""The round that keeps the cache tidy: expire, evict, write recency down, forget old tombstones, save the index.

One background task, and a fault in one duty never stops the others or the next round. What time it is, is decided here
too: a wall clock may jump, and a jump must neither delete what is fresh nor keep anything for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

log = logging.getLogger(__name__)

INTERVAL_S = 10.0  # at 4,000 new entries a second the store then overshoots its limit by 40,000
SNAPSHOT_EVERY_S = 300.0  # a restart then has at most five minutes of changes to follow
SLACK_S = 60.0  # what NTP corrects in the ordinary way; more than that between two rounds is a jump
TRUST_AFTER_S = 3600.0  # a clock that has kept its new time for an hour is believed


class Store(Protocol):
    """What there is to look after."""

    @property
    def last_seq(self) -> int: ...

    async def flush_recency(self) -> None: ...

    async def expire(self, now: float, latest: float | None = None) -> int: ...

    async def evict(self) -> int: ...

    async def compact(self) -> None: ...


def steady_seconds() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class DoubtedClock:
    """The wall clock, checked against a steady one.

    After a jump there are two times it may be: the one it shows, and the one it was plus the time that has passed.
    Until the clock has kept its new time for TRUST_AFTER_S, only what both agree on is deleted.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall = wall
        self._steady = steady
        self._offset_s = self._last_offset_s = wall() - steady()
        self._since = steady()  # when the clock took on the offset it has now
        self.jumps = 0

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and the latest time it may be, in unix seconds."""
        shown, steady = self._wall(), self._steady()
        offset_s = shown - steady
        if abs(offset_s - self._last_offset_s) > SLACK_S:
            self._since = steady
            self.jumps += 1
            log.error(
                "upkeep: the clock jumped by %.0f s; expiry is cautious for an hour", offset_s - self._last_offset_s
            )
        self._last_offset_s = offset_s
        jumped = abs(offset_s - self._offset_s) > SLACK_S
        if not jumped or steady - self._since >= TRUST_AFTER_S:
            self._offset_s = offset_s
            return shown, shown
        passed = steady + self._offset_s
        return min(shown, passed), max(shown, passed)


class Upkeep:
    def __init__(
        self,
        store: Store,
        save_snapshot: Callable[[], None],
        *,
        leads: bool = True,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
        interval_s: float = INTERVAL_S,
        snapshot_every_s: float = SNAPSHOT_EVERY_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`save_snapshot` may block: it runs on a thread. `leads`: of the processes that share the store, this one
        looks after it; the others only write down what they used.
        """
        self._store = store
        self._save_snapshot = save_snapshot
        self._leads = leads
        self._clock = DoubtedClock(clock, steady)
        self._steady = steady
        self._interval_s = interval_s
        self._snapshot_every_s = snapshot_every_s
        self._pause = pause
        self._task: asyncio.Task[None] | None = None
        self._saved_at = steady()
        self._saved_seq = -1
        self.rounds = 0
        self.faults = 0
        self.expired = 0
        self.evicted = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def round(self) -> None:
        """Every duty once, whatever becomes of the others. Recency first: eviction goes by it."""
        duties: list[Callable[[], Awaitable[None]]] = [self._store.flush_recency]
        if self._leads:
            duties += [self._expire, self._evict, self._store.compact, self._snapshot]
        for duty in duties:
            try:
                await duty()
            except Exception as exc:
                self.faults += 1
                log.warning("upkeep: %s failed, to be tried again: %s", duty.__name__.strip("_"), exc)
        self.rounds += 1

    def stats(self) -> dict[str, float]:
        return {
            "rounds": self.rounds,
            "faults": self.faults,
            "expired": self.expired,
            "evicted": self.evicted,
            "clock_jumps": self._clock.jumps,
        }

    def __repr__(self) -> str:
        return f"Upkeep(rounds={self.rounds}, faults={self.faults})"

    async def _run(self) -> None:
        while True:
            await self._pause(self._interval_s)
            await self.round()

    async def _expire(self) -> None:
        self.expired += await self._store.expire(*self._clock.bounds())

    async def _evict(self) -> None:
        self.evicted += await self._store.evict()

    async def _snapshot(self) -> None:
        """Now and then, and only when something has changed."""
        if self._steady() - self._saved_at < self._snapshot_every_s or self._store.last_seq == self._saved_seq:
            return
        seq = self._store.last_seq
        await asyncio.to_thread(self._save_snapshot)
        self._saved_at, self._saved_seq = self._steady(), seq

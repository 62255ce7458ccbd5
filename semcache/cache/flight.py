"""COALESCE: one fetch, many waiting. A flight belongs to no client.

The one who finds no flight leads: a task of its own fetches, and leader and followers are equal from then on. A client
that leaves is one less waiting; the fetch is cancelled when nobody waits. So a leader that leaves is succeeded without
anyone noticing, and an equal request in flight never costs a second fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, Protocol, TypeVar

from semcache.errors import SemcacheError, UpstreamError


class Recording(Protocol):
    """What a fetch writes, as far as a flight cares."""

    @property
    def is_joinable(self) -> bool:
        """It can still be followed from its beginning."""

    @property
    def is_delivering(self) -> bool:
        """Its followers have been given something of it already: a stream that has begun."""

    @property
    def is_over(self) -> bool:
        """The reply has ended, well or not; the fetch may still be keeping it."""

    def fail(self, error: SemcacheError) -> None:
        """End it for all who follow it."""


R = TypeVar("R", bound=Recording)


# A client whose patience ended leaves and asks again: the SDKs after 0.4 to 0.5 s. As long as nothing of the answer had
# reached him the fetch goes on for this long, so that his second request joins it instead of paying for another.
LINGER_S = 0.75

# The pauses of the SDKs double with each try, and so does the waiting once somebody has come back. It ends here: by
# default they try three times, and more would leave an upstream at work for nobody.
LONGEST_LINGER_S = 4 * LINGER_S


class Flight(Generic[R]):
    def __init__(self, recording: R, keep: bool, linger_s: float) -> None:
        self.recording = recording
        self._keep = keep  # goes on though nobody waits: a refresh, or `on_client_gone: finish`
        self._linger_s = linger_s
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self.is_abandoned = False  # everybody left; being cancelled, so nobody may join any more

    @property
    def has_landed(self) -> bool:
        """Its task has ended, though the loop may not have come to clearing it away."""
        return self._task is not None and self._task.done()

    def start(self, fetch: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._task = asyncio.create_task(fetch)
        return self._task

    def __enter__(self) -> Flight[R]:
        self._waiting += 1
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
            self._linger_s = min(2 * self._linger_s, LONGEST_LINGER_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        if self._waiting or self._keep or self.recording.is_over:
            return
        if self.recording.is_delivering or not self._linger_s:
            self._abandon()
        else:
            self._leaving = asyncio.get_running_loop().call_later(self._linger_s, self._abandon)

    def _abandon(self) -> None:
        if self._task is not None and not self.recording.is_over:
            self.is_abandoned = True
            self._task.cancel()


class Flights(Generic[R]):
    """Those under way, by what they fetch. Counts what it saved."""

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._joinable: dict[Hashable, Flight[R]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.led = 0
        self.joined = 0

    def find(self, key: Hashable) -> Flight[R] | None:
        """The flight that already fetches this, if it can still be followed from its beginning."""
        flight = self.peek(key)
        self.joined += flight is not None
        return flight

    def peek(self, key: Hashable) -> Flight[R] | None:
        """As `find`, for one who does not join it."""
        flight = self._joinable.get(key)
        if flight is None or flight.is_abandoned or flight.has_landed or not flight.recording.is_joinable:
            return None
        return flight

    def is_under_way(self, key: Hashable) -> bool:
        return key in self._joinable

    def lead(
        self,
        key: Hashable | None,
        recording: R,
        fetch: Callable[[Flight[R]], Coroutine[Any, Any, None]],
        keep: bool = False,
    ) -> Flight[R]:
        """Start a flight. `key` None: nobody may join it."""
        # One that nobody may join has nothing to wait for.
        flight = Flight(recording, keep, self._linger_s if key is not None else 0.0)
        self.led += 1
        if key is not None:
            self._joinable[key] = flight
        task = flight.start(fetch(flight))
        self._tasks.add(task)

        def land(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            # A task that is cancelled before its first step runs none of its own clearing up.
            if not recording.is_over:
                recording.fail(UpstreamError("the fetch was cancelled before it began", status=503, code="stopping"))
            if key is not None and self._joinable.get(key) is flight:
                del self._joinable[key]

        task.add_done_callback(land)
        return flight

    async def drain(self) -> None:
        """Wait until every flight has landed; the caller sets the deadline."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def stats(self) -> dict[str, float]:
        return {"flights": len(self._tasks), "led": self.led, "joined": self.joined}

"""Active checks: each backend is asked at times whether it is there, and its Vitals are told.

    every `interval`        whatever happens, and the only thing that brings an ejected backend back
    after a quarter of it   one that holds requests and has not said a byte: it may be frozen
    at once                 after a check that was not answered, so that the next one settles it
    on demand               `look_now`, when a request failed there

So a process that is frozen under load is out after a quarter of the interval and `unhealthy_after` times the timeout,
1.7 s by default, and backends that answer are asked no oftener for it.

The rule: only silence is waited for. A check that has no answer in time counts against its backend, and is left running
while the next one is asked: an answer that comes late shows that it is busy and not dead, and one that comes when the
process thaws brings it back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Generic, Protocol, TypeVar

from multidict import CIMultiDict

from semcache import __version__
from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.health import Vitals
from semcache.backends.target import Target
from semcache.errors import UpstreamError

log = logging.getLogger(__name__)

# Checks on demand and checks of silent backends are this part of the interval apart.
_SOON = 0.25

# An interval is between this share of itself and all of it, so that checks of many backends, and of many proxies, do
# not fall together. Never longer: a return is seen within one interval.
_SHORTEST = 0.8

# Of one check by itself. `Checks` cancels it before, when others have been asked since; this is for whoever does not.
PATIENCE_S = 10.0

_ANSWER_BYTES = 1024 * 1024  # of an answer that are read, so that its connection can be used again


class Checked(Protocol):
    """A backend, for whoever checks it."""

    @property
    def vitals(self) -> Vitals: ...


B = TypeVar("B", bound=Checked)


@dataclass(slots=True)
class _Watch:
    """When one backend was asked and is to be asked again."""

    interval_s: float
    due: float
    asked_at: float = -math.inf
    settled: bool = True  # the newest check was answered, or has been counted as unanswered
    running: list[asyncio.Task[None]] = field(default_factory=list)  # oldest first


class Checks(Generic[B]):
    """One event loop's; its only clock is `clock`, in monotonic seconds."""

    def __init__(
        self,
        ask: Callable[[B], Awaitable[bool]],
        *,
        answered: Callable[[B, float], None] = lambda backend, took_s: None,
        lost: Callable[[B], None] = lambda backend: None,
        clock: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`ask`: whether the backend is well; it is cancelled when nobody waits for it any more, and anything it raises
        but TimeoutError means that it is not. `answered`: told how long a good answer took. `lost`: told of each failed
        check that finds or leaves a backend ejected: what waits there for a first byte waits in vain.
        """
        self._ask = ask
        self._on_answer = answered
        self._on_loss = lost
        self._clock = clock
        self._chance = chance
        self._watches: dict[B, _Watch] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.asked = 0
        self.failed = 0
        self.unanswered = 0
        self.faults = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        tasks = [task for watch in self._watches.values() for task in watch.running]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watches.clear()

    def adopt(self, intervals: Mapping[B, float]) -> None:
        """Check these from now on, each every so many seconds; 0: not at all. One that was checked before keeps what is
        under way."""
        old = self._watches
        now = self._clock()
        self._watches = {}
        for backend, interval_s in intervals.items():
            if interval_s <= 0:
                continue
            watch = old.pop(backend, None)
            if watch is None:
                watch = _Watch(interval_s, now + self._chance() * _SOON * interval_s)
            elif watch.interval_s != interval_s:
                watch.interval_s = interval_s
                watch.due = min(watch.due, now + interval_s)
            self._watches[backend] = watch
        for watch in old.values():
            for task in watch.running:
                task.cancel()
        self._wake.set()

    def look_now(self, backend: B) -> None:
        """Something is wrong with it: ask as soon as may be, and not much oftener than usual whoever calls this."""
        watch = self._watches.get(backend)
        if watch is not None:
            watch.due = min(watch.due, watch.asked_at + _SOON * watch.interval_s)
            self._wake.set()

    def stats(self) -> dict[str, int]:
        return {
            "backends": len(self._watches),
            "asked": self.asked,
            "failed": self.failed,
            "unanswered": self.unanswered,
            "faults": self.faults,
        }

    def sweep(self) -> float:
        """Ask whoever is due and count who is late. Returns the seconds until there may be something to do."""
        now = self._clock()
        return min((self._look_at(backend, watch, now) for backend, watch in self._watches.items()), default=math.inf)

    async def _run(self) -> None:
        while True:
            try:
                delay_s = self.sweep()
            except Exception as exc:  # without checks an ejected backend would never come back
                self.faults += 1
                log.warning("checks: a round failed, to be tried again: %s", exc)
                delay_s = 1.0
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if delay_s == math.inf else delay_s):
                    await self._wake.wait()

    def _look_at(self, backend: B, watch: _Watch, now: float) -> float:
        vitals = backend.vitals
        timeout_s = vitals.settings.timeout
        if not watch.settled:
            if now < watch.asked_at + timeout_s:
                return watch.asked_at + timeout_s - now
            watch.settled = True
            self.unanswered += 1
            if vitals.unanswered(watch.asked_at):
                self._failed(backend, watch, now, now)
        soon_s = _SOON * watch.interval_s
        silent_since = vitals.silent_since()
        due = watch.due
        if silent_since is not None and not vitals.is_ejected():
            due = min(due, max(silent_since, watch.asked_at) + soon_s)
        if now < due:
            return min(due - now, soon_s)  # by then a request may wait there
        self._begin(backend, watch, now)
        return timeout_s

    def _begin(self, backend: B, watch: _Watch, now: float) -> None:
        watch.asked_at = now
        watch.settled = False
        watch.due = now + watch.interval_s * (_SHORTEST + (1 - _SHORTEST) * self._chance())
        self.asked += 1
        while len(watch.running) >= max(2, backend.vitals.settings.unhealthy_after):
            watch.running.pop(0).cancel()
        task = asyncio.get_running_loop().create_task(self._check(backend, watch, now))
        watch.running.append(task)
        task.add_done_callback(lambda done: _forget(watch, done))

    async def _check(self, backend: B, watch: _Watch, asked_at: float) -> None:
        try:
            is_well = await self._ask(backend)
        except TimeoutError:
            return  # `sweep` counts it, at the backend's own timeout
        except Exception:  # counted as what it is for the backend: no answer that could be believed
            is_well = False
        now = self._clock()
        if watch.asked_at == asked_at:
            watch.settled = True
        backend.vitals.checked(is_well, now)
        if is_well:
            self._on_answer(backend, now - asked_at)
        else:
            self._failed(backend, watch, now, asked_at + _SOON * watch.interval_s)
        self._wake.set()

    def _failed(self, backend: B, watch: _Watch, now: float, again_at: float) -> None:
        self.failed += 1
        if backend.vitals.is_ejected():
            self._on_loss(backend)
        else:
            watch.due = min(watch.due, again_at)


def _forget(watch: _Watch, task: asyncio.Task[None]) -> None:
    with contextlib.suppress(ValueError):
        watch.running.remove(task)


async def check_over_http(fetcher: Fetcher, target: Target, path: str | None, timeout_s: float = PATIENCE_S) -> bool:
    """Whether the backend answers a GET with a status below 500.

    `path`: at the root of its host; None: `/models` below its base URL, which every server has that speaks OpenAI's or
    Anthropic's dialect, and which costs it no GPU. The backend's own key goes along. A 401, 404 or 429 comes from a
    server that is there: whose key it refuses, or how many requests a key has left, is not its health. A 503 is how
    vLLM says that its engine is dead, and SGLang and llama.cpp that their model is not loaded yet.

    Raises TimeoutError when there was no answer within `timeout_s`; longer than the `timeout` of its settings, so that
    an answer which is late for that can still come.
    """
    target = replace(
        target,
        # Connections of their own: those of requests may all be taken by requests that wait.
        pool=f"{target.pool} checks",
        connect_s=timeout_s,
        first_byte_s=timeout_s,
        between_bytes_s=timeout_s,
    )
    asked = "/v1/models"
    if path is not None:
        # To a base URL that is the whole path, /v1 adds nothing: no other path passes through a target unchanged.
        root_path, mark, query = path.partition("?")
        target, asked = replace(target, prefix=root_path), f"/v1{mark}{query}"
    headers = CIMultiDict({"User-Agent": f"semcache/{__version__} health check", "Accept": "*/*"})
    try:
        reply = await fetcher.fetch([target], UpstreamRequest("GET", asked, headers, want_recording=True))
        try:
            read_bytes = 0
            async for piece in reply.chunks():
                read_bytes += len(piece)
                if read_bytes > _ANSWER_BYTES:
                    break
        finally:
            await reply.abort()
    except UpstreamError as exc:
        if exc.status == 504:
            raise TimeoutError(exc.message) from exc
        return False
    return reply.status < 500

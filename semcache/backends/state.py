"""What is known of each backend at this moment: changed by events, read by ranking. One event loop, nothing is awaited.

A backend with several keys is several here: a key that is limited rests while the others work.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from zoneinfo import ZoneInfo

from semcache.backends.balance import Asked, expected_s
from semcache.backends.concurrency import AdaptiveLimit
from semcache.backends.ewma import PeakEwma
from semcache.backends.health import Vitals
from semcache.backends.prefix import PrefixMap
from semcache.backends.target import Target
from semcache.config import Pool
from semcache.settings.primitives import read_hours


class BackendState:
    """`target` has no model in it: which one is asked for is a request's affair."""

    __slots__ = (
        "_duty",
        "_pending",
        "failures",
        "in_flight",
        "is_drained",
        "is_lost",
        "limit",
        "prefixes",
        "requests",
        "round_trip",
        "settings",
        "target",
        "tokens",
        "ttft",
        "tunnels",
        "vitals",
        "was_alive",
        "weight",
    )

    def __init__(self, target: Target, pool: Pool) -> None:
        self.target = target
        self.vitals = Vitals(pool.health)
        self.limit = AdaptiveLimit(target.backend.max_in_flight, pool.adaptive)
        self.ttft = PeakEwma()  # seconds to the first byte of an answer, for each unit of balance.queue it had joined
        self.round_trip = PeakEwma()  # seconds to its host and back
        self.prefixes = PrefixMap(pool.prefix.remember)
        self.in_flight = 0
        self.tunnels = 0  # of those in flight: WebSockets, open for as long as their clients like
        self.tokens = 0  # of the prompts that wait for their first token, estimated
        self.requests = 0
        self.failures = 0
        self.was_alive = True  # when the operator was last told
        self.is_drained = False  # by hand, on top of what the settings say
        self.is_lost = False  # its checks have failed, and it has not answered one since
        self._pending: dict[asyncio.Timeout, None] = {}  # a set in order
        self.settings = pool
        self.adopt(target, pool)

    def adopt(self, target: Target, pool: Pool) -> None:
        """Take new settings. What is known of the backend stays, as do the requests that are under way there; a limit
        that was learned under another maximum is learned anew."""
        before = self.settings
        if (target.backend.max_in_flight, pool.adaptive) != (self.target.backend.max_in_flight, before.adaptive):
            self.limit = AdaptiveLimit(target.backend.max_in_flight, pool.adaptive)
        if pool.prefix.remember != before.prefix.remember:
            self.prefixes = PrefixMap(pool.prefix.remember)
        self.vitals.adopt(pool.health)
        self.target = target
        self.settings = pool
        self.weight = target.backend.weight
        self._duty = [read_hours(hours) for hours in target.backend.hours]

    # What ranking reads

    def share(self, now: float) -> float:
        return self.vitals.share(now)

    def ttft_s(self, now: float) -> float | None:
        """For each unit of queue: see balance.queue."""
        return self.ttft.value(now)

    def has_room(self) -> bool:
        most = self.target.backend.max_in_flight
        return self.crowd < self.limit.limit and (most is None or self.in_flight < most)

    @property
    def crowd(self) -> int:
        """Requests there that begin and end. How many of them it bears is learned, and tunnels tell nothing of that:
        counted, a few idle ones could fill a limit that was cut, and keep it from ever growing again."""
        return self.in_flight - self.tunnels

    def is_on_duty(self, unix_s: float) -> bool:
        """Whether it takes requests at this time, and has not been told to take no more."""
        if self.target.backend.drain or self.is_drained:
            return False
        if not self._duty:
            return True
        there = datetime.fromtimestamp(unix_s, ZoneInfo(self.target.backend.timezone))
        day, moment = there.weekday(), there.time()
        for days, begin, end in self._duty:
            if begin < end:
                if day in days and begin <= moment < end:
                    return True
            elif (day in days and moment >= begin) or ((day - 1) % 7 in days and moment < end):  # over midnight
                return True
        return False

    # What happens

    def begin(self, tokens: int, now: float) -> int:
        """A request takes a place; `begun` and then `finish` give it back. Returns what its end is told to `vitals`
        with."""
        self.in_flight += 1
        self.tokens += tokens
        self.requests += 1
        return self.vitals.begin(now)

    def begun(self, tokens: int) -> None:
        """Its first token has come, or it has ended without one: the prompt is read."""
        self.tokens -= tokens

    def switched(self) -> None:
        """A request has become a tunnel; `finish` is then told so."""
        self.tunnels += 1

    def finish(self, *, is_tunnel: bool = False) -> None:
        self.in_flight -= 1
        self.tunnels -= is_tunnel

    def waits(self, patience: asyncio.Timeout) -> None:
        """A request waits for its first byte under this timeout, until `waits_no_more`."""
        self._pending[patience] = None

    def waits_no_more(self, patience: asyncio.Timeout) -> None:
        self._pending.pop(patience, None)

    def give_up(self) -> None:
        """It is frozen or gone: whoever waits for a first byte need not wait any longer."""
        pending, self._pending = self._pending, {}  # each once: a timeout that is ending cannot be moved again
        for patience in pending:
            patience.reschedule(asyncio.get_running_loop().time())

    def stats(self, now: float, unix_s: float) -> dict[str, object]:
        rests_until = self.vitals.rests_until(now)
        return {
            "state": self._state(now, unix_s),
            "url": self.target.backend.url,
            "region": self.target.backend.region,
            "in_flight": self.in_flight,
            "limit": self.limit.limit,
            "requests": self.requests,
            "failures": self.failures,
            "ttft_s": expected_s(self, Asked(0), now),  # of a short request that came now
            "round_trip_s": self.round_trip.value(now),
            "rests_s": rests_until - now if rests_until else None,
        }

    def _state(self, now: float, unix_s: float) -> str:
        """For people: what the operator has said before what was observed."""
        if self.is_drained or self.target.backend.drain:
            return "drained"
        return str(self.vitals.state(now)) if self.is_on_duty(unix_s) else "off-duty"

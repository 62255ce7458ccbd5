"""The learned limit, against simulated servers: slots, a queue before them, and requests that hold one for seconds."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from statistics import mean, median

import pytest

from semcache.backends.concurrency import LEAST, NO_LIMIT, START, WINDOW_REQUESTS, WINDOW_S, AdaptiveLimit


@dataclass
class SimulatedServer:
    """`slots` requests run at once and the rest queue, first come, first served. What the limit lets through arrives
    at once, the rest waits outside, and goes away after ten seconds."""

    limit: AdaptiveLimit
    slots: int
    prefill_s: Callable[[Random, int], float] = lambda chance, tokens: 0.3 * chance.lognormvariate(0, 0.3)
    hold_s: float = 5.0  # on average: the rest of the answer
    tokens: Callable[[Random], int] = lambda chance: 500
    chance: Random = field(default_factory=lambda: Random(7))
    now: float = 0.0
    in_flight: int = 0
    running: int = 0
    queue: deque[tuple[float, int, int]] = field(default_factory=deque)
    outside: deque[float] = field(default_factory=deque)
    events: list[tuple[float, int, str, tuple[float, int, int]]] = field(default_factory=list)
    number: int = 0
    ended: list[float] = field(default_factory=list)
    ttfts: list[tuple[float, float]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    queued: list[tuple[float, int]] = field(default_factory=list)
    frozen_until: float = 0.0

    def run(self, rate_per_s: Callable[[float], float], until_s: float) -> None:
        arrives = self.now
        while self.now < until_s:
            rate = rate_per_s(arrives)
            due = arrives if rate else until_s
            if self.events and self.events[0][0] <= due:
                self.now, _, event, request = heapq.heappop(self.events)
                self._happen(event, request)
            else:
                self.now = due
                arrives = due + (self.chance.expovariate(rate) if rate else 1)
                if rate:
                    self.outside.append(self.now)
            self._admit()
            self.limits.append((self.now, self.limit.limit))
            self.queued.append((self.now, len(self.queue)))

    def _admit(self) -> None:
        while self.outside and self.outside[0] < self.now - 10:
            self.outside.popleft()
        while self.outside and self.in_flight < self.limit.limit:
            self.outside.popleft()
            self.in_flight += 1
            self.queue.append((self.now, self.in_flight, self.tokens(self.chance)))
        while self.queue and self.running < self.slots:
            request = self.queue.popleft()
            self.running += 1
            begins = max(self.now, self.frozen_until)
            self._plan(begins - self.now + self.prefill_s(self.chance, request[2]), "first byte", request)

    def _happen(self, event: str, request: tuple[float, int, int]) -> None:
        began, in_flight, tokens = request
        if event == "first byte":
            self.limit.observe(self.now - began, in_flight, self.now, tokens)
            self.ttfts.append((self.now, self.now - began))
            self._plan(self.chance.expovariate(1 / self.hold_s), "end", request)
        else:
            self.running -= 1
            self.in_flight -= 1
            self.ended.append(self.now)

    def _plan(self, after_s: float, event: str, request: tuple[float, int, int]) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + after_s, self.number, event, request))

    def settled(self, since_s: float) -> tuple[float, float, float]:
        """From then on: the mean limit, the median queue at the server, and the share of its slots that were used."""
        limit = mean(limit for at, limit in self.limits if at >= since_s)
        queue = median(queued for at, queued in self.queued if at >= since_s)
        served = sum(at >= since_s for at in self.ended) / (self.now - since_s)
        return limit, queue, served / (self.slots / (self.hold_s + 0.314))


def overload(slots: int, times: float, hold_s: float = 5.0) -> Callable[[float], float]:
    return lambda now: times * slots / (hold_s + 0.314)


def simulated(slots: int, times: float, until_s: float = 600, *, adaptive: bool = True) -> SimulatedServer:
    server = SimulatedServer(AdaptiveLimit(None, adaptive), slots)
    server.run(overload(slots, times), until_s)
    return server


@pytest.mark.parametrize("times", [1.1, 2, 10])
@pytest.mark.parametrize("slots", [1, 4, 8, 32, 128])
def test_under_overload_it_settles_where_all_slots_are_used_and_the_queue_is_short(slots: int, times: float) -> None:
    limit, queue, used = simulated(slots, times).settled(since_s=300)
    assert slots <= limit <= 1.2 * slots + 3
    assert queue <= 0.2 * slots + 2
    assert used >= 0.8


def test_without_it_the_queue_grows_as_long_as_the_overload_lasts() -> None:
    _, queue, _ = simulated(8, 2, adaptive=False).settled(since_s=300)
    assert queue > 500


@pytest.mark.parametrize("slots", [8, 128, 512])
def test_a_server_that_is_not_overloaded_loses_nothing(slots: int) -> None:
    server = simulated(slots, 0.8)
    _, queue, used = server.settled(since_s=300)
    assert queue == 0
    assert used >= 0.78
    assert all(limit > slots for at, limit in server.limits if at >= 300)


def test_a_flood_is_cut_at_once_and_not_by_halves() -> None:
    server = SimulatedServer(AdaptiveLimit(None), slots=8)
    server.run(lambda now: 200.0, until_s=1)  # and its queue takes two minutes to drain
    server.run(lambda now: 0.0, until_s=15)
    assert server.limit.limit <= 20


@pytest.mark.parametrize("slots", [8, 128])
def test_it_follows_a_server_that_grows_and_one_that_shrinks(slots: int) -> None:
    server = simulated(slots, 2, until_s=300)
    server.slots *= 4
    server.run(overload(4 * slots, 2), until_s=600)
    limit, _, used = server.settled(since_s=400)
    assert limit >= 4 * slots
    assert used >= 0.9
    server.slots //= 4
    server.run(overload(slots, 2), until_s=1200)
    limit, _, used = server.settled(since_s=800)
    assert limit <= 1.2 * slots + 3
    assert used >= 0.9


@pytest.mark.parametrize("slots", [8, 128])
def test_a_pause_of_the_server_is_forgotten_within_half_a_minute(slots: int) -> None:
    server = simulated(slots, 0.6, until_s=100)
    server.frozen_until = 120
    server.run(overload(slots, 0.6), until_s=300)
    assert min(limit for at, limit in server.limits if at > 100) >= slots / 4
    _, queue, used = server.settled(since_s=150)
    assert queue == 0
    assert used >= 0.45
    assert all(limit >= 0.6 * slots for at, limit in server.limits if at > 150)


@pytest.mark.parametrize("times", [0.6, 2])
@pytest.mark.parametrize("slots", [8, 128])
def test_a_server_that_became_slower_for_its_own_reasons_is_not_held_back(slots: int, times: float) -> None:
    server = simulated(slots, times, until_s=200)
    server.prefill_s = lambda chance, tokens: 2 * chance.lognormvariate(0, 0.3)  # a larger model, or colder caches
    server.run(overload(slots, times), until_s=600)
    _, _, used = server.settled(since_s=350)
    assert used >= min(times, 5.3 / 7.1) - 0.1
    assert server.limit.in_vain == 1


@pytest.mark.parametrize("slots", [8, 128])
def test_long_prompts_and_cached_prefixes_are_no_overload(slots: int) -> None:
    def prefill_s(chance: Random, tokens: int) -> float:
        cached = 0.1 if chance.random() < 0.4 else 1.0
        return (0.1 + tokens / 3000) * cached * chance.lognormvariate(0, 0.3)  # up to 13 s

    def tokens(chance: Random) -> int:
        return int(chance.choice([100, 500, 2000, 20_000]) * chance.uniform(0.5, 2))

    server = SimulatedServer(AdaptiveLimit(None), slots, prefill_s, tokens=tokens)
    server.run(overload(slots, 0.6), until_s=600)
    _, queue, used = server.settled(since_s=300)
    assert queue <= 1
    assert used >= 0.55


def test_a_server_that_batches_may_get_slower_before_it_is_full() -> None:
    def prefill_s(chance: Random, tokens: int) -> float:
        return (0.05 + 0.005 * server.running) * chance.lognormvariate(0, 0.3)  # 14 times as long when it is full

    server = SimulatedServer(AdaptiveLimit(None), 128, prefill_s)
    server.run(overload(128, 2), until_s=600)
    _, _, used = server.settled(since_s=300)
    assert used >= 0.85


def test_a_few_slow_requests_change_nothing() -> None:
    limit = AdaptiveLimit(100)
    for number in range(1000):
        limit.observe(30.0 if number % 3 == 0 else 0.3, in_flight=10, now=number / 5)
    assert limit.limit == 100


def test_a_first_request_that_waits_for_its_model_is_not_taken_for_what_is_usual() -> None:
    limit = AdaptiveLimit(None)
    limit.observe(60.0, in_flight=1, now=60.0)
    for number in range(30):
        limit.observe(0.3, in_flight=2, now=61.0 + number)
    for number in range(2 * WINDOW_REQUESTS):
        limit.observe(9.0, in_flight=40, now=100.0 + number)
    assert limit.limit <= 30


def test_it_grows_only_while_it_binds_and_never_past_the_most() -> None:
    limit = AdaptiveLimit(40)
    now = _slow(limit, crowd=20)
    reached = limit.limit
    assert reached < 20
    for number in range(100):
        limit.observe(0.3, in_flight=reached // 2, now=now + number)
    assert limit.limit == reached
    for number in range(1000):
        limit.observe(0.3, in_flight=limit.limit, now=now + 200 + number)
    assert limit.limit == 40


def test_requests_that_began_before_a_cut_do_not_cut_again() -> None:
    limit = AdaptiveLimit(1000)
    now = _slow(limit, crowd=64)
    reached = limit.limit
    for number in range(50):  # the rest of those that were in flight
        limit.observe(30.0, in_flight=64, now=now + number / 10)
    assert limit.limit == reached


def test_a_burst_of_refusals_is_one_sign() -> None:
    limit = AdaptiveLimit(None)
    for number in range(50):
        limit.dropped(now=100 + number / 100, in_flight=100)
    assert limit.limit == 80
    limit.dropped(now=102.0, in_flight=80)
    assert limit.limit == 64
    for number in range(100):
        limit.dropped(now=200.0 + 2 * number)
    assert limit.limit == LEAST


def test_one_at_a_time_stays_one_at_a_time() -> None:
    limit = AdaptiveLimit(1)
    limit.dropped(now=1.0)
    assert limit.limit == 1


def test_what_is_not_learned_is_as_written() -> None:
    assert AdaptiveLimit(7, adaptive=False).limit == 7
    assert AdaptiveLimit(None, adaptive=False).limit == NO_LIMIT
    assert AdaptiveLimit(7).limit == 7
    assert AdaptiveLimit(None).limit == START
    fixed = AdaptiveLimit(7, adaptive=False)
    _slow(fixed, crowd=7)
    fixed.dropped(now=1000.0)
    assert fixed.limit == 7


def _slow(limit: AdaptiveLimit, crowd: int) -> float:
    """An idle time, then a window in which everything took ten seconds; returns when that ended."""
    for number in range(30):
        limit.observe(0.3, in_flight=1, now=float(number))
    for number in range(WINDOW_REQUESTS + 1):
        limit.observe(10.0, in_flight=crowd, now=100.0 + number * WINDOW_S)
    return 100.0 + WINDOW_REQUESTS * WINDOW_S


if __name__ == "__main__":  # the table of docs/decisions.md
    print("slots  offered   limit   queued there   of its slots used")
    for slots in (1, 4, 8, 32, 128, 512):
        for times in (0.8, 1.1, 2, 10):
            limit, queue, used = simulated(slots, times).settled(since_s=300)
            print(f"{slots:5}  x {times:<5} {limit:7.1f}   {queue:12.0f}   {used:17.2f}")
    for slots in (8, 128):
        _, queue, used = simulated(slots, 2, adaptive=False).settled(since_s=300)
        print(f"{slots:5}  x 2         none   {queue:12.0f}   {used:17.2f}")

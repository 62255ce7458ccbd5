"""The named load tests: what is asked, how it arrives, and of what kind of backend.

A scenario is made to show one thing; the numbers of two scenarios are not to be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtests.workload import Workload, arriving, poisson, shop_traffic, with_streams
from semcache.demo.questions import load_groups


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    shows: str
    build: Callable[[int], Workload]  # from a seed
    concurrency: int | None = None  # None: requests come at their own times
    ttft: str = "300ms"  # of the simulated backend
    tokens_per_s: float = 100.0


def _minute(seed: int) -> Workload:
    return arriving(with_streams(shop_traffic(1500, seed=seed), 0.5, seed=seed), poisson(25, seed=seed))


def _burst(seed: int) -> Workload:
    return with_streams(shop_traffic(4000, seed=seed), 0.5, seed=seed)


def _cold(seed: int) -> Workload:
    asked = shop_traffic(900, seed=seed, zipf=0.0, wording_zipf=0.0)
    return arriving(with_streams(asked, 0.5, seed=seed), poisson(15, seed=seed))


def _traps(seed: int) -> Workload:
    look_alike = [group for group in load_groups() if group.is_trap]
    return with_streams(shop_traffic(600, seed=seed, zipf=0.0, groups=look_alike), 0.5, seed=seed)


def _short(seed: int) -> Workload:
    return arriving(with_streams(shop_traffic(120, seed=seed), 0.5, seed=seed), poisson(20, seed=seed))


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("minute", "a minute of ordinary traffic: 25 questions a second, half of them streams", _minute),
        Scenario("burst", "64 callers who never pause: what the proxy does at its limit", _burst, concurrency=64),
        Scenario("cold", "a minute in which every question is equally likely: few repeats, many misses", _cold),
        Scenario("traps", "only look-alikes, where every hit across groups is false", _traps, concurrency=4),
        Scenario("short", "six seconds, to see that everything works", _short, ttft="50ms", tokens_per_s=1000),
    )
}

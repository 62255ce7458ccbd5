"""The strategies that streams are replayed under, and how the best setting of each is found.

What a strategy leaves open, such as the threshold, is chosen on the stream itself, for it and for the reference alike:
the setting with the most hits of which at most LIMIT are false. An error bound is given nothing but the bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from loadtests.quality_replay import (
    FalseHit,
    Settings,
    Stream,
    Tally,
    false_hits,
    load_stream,
    replay,
    shuffled,
    tally,
)

WARM_UP = 500  # requests from which a bounded cache may learn before it is judged
LIMIT = 0.01  # of hits: what every strategy is tuned to
THRESHOLDS = tuple(round(0.99 - 0.01 * step, 2) for step in range(30))  # strictest first
CHANCES = (0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5)
STRIDE = 4  # places of a grid
FLOOR = 0.7  # cosine, where something else than the threshold decides
BOUNDS = (0.005, 0.01, 0.02, 0.05)


Rate = Callable[[Tally], float]


class Strategy(NamedTuple):
    """Settings of `match`, one of which is swept to find the best."""

    name: str
    match: Settings
    swept: str
    grid: Sequence[float]  # strictest first

    def at(self, value: float) -> Settings:
        return {**self.match, self.swept: value}


# The streams are questions to a service whose answers are the same for everybody and every day: its operator says so.
CANNED = {"time_bound": "serve", "personal": "serve"}
# A similarity and nothing else: no guard, nor any rule about what a question is of.
BARE = {**CANNED, "guards": []}
REFERENCE = Strategy("threshold", BARE, "threshold", THRESHOLDS)
STRATEGIES = (
    Strategy("+ guards", CANNED, "threshold", THRESHOLDS),
    Strategy("+ guards + judge", {**CANNED, "threshold": FLOOR}, "judge", CHANCES),
    Strategy("error bound, best", CANNED, "max_error", (0.005, 0.01, 0.02, 0.03, 0.05)),
)
# Milliseconds a pair, so on demand only.
RERANKED = Strategy(
    "+ guards + reranker", {**CANNED, "reranker": "shipped", "reranker_deadline": 60}, "reranker_min", CHANCES[::3]
)
BOUNDED = Strategy("error bound", CANNED, "max_error", BOUNDS)
JUDGED = frozenset({"judge"})  # settings under which the pair judge is asked


of_hits: Rate = attrgetter("false_of_hits")
of_requests: Rate = attrgetter("false_of_requests")


class Case(NamedTuple):
    """A stream in one order of arrival, by what it takes to load it: cases travel between processes."""

    file: Path
    rows: int
    vectors: Path
    order: int = 0
    judge_weights: Path | None = None  # that were trained without this stream; None: those that come with semcache

    @property
    def name(self) -> str:
        return self.file.name.removesuffix(".jsonl.gz").removeprefix("stream_")

    def load(self) -> Stream:
        return shuffled(_load(self.file, self.rows, self.vectors), self.order)


_load = lru_cache(maxsize=8)(load_stream)


class Run(NamedTuple):
    """A replay's counts, of all requests and of those after the warm-up, and its false hits."""

    whole: Tally
    warm: Tally
    false_hits: Sequence[FalseHit]


def run(case: Case, match: Settings) -> Run:
    stream = case.load()
    if case.judge_weights and not JUDGED.isdisjoint(match):
        match = {**match, "judge_weights": str(case.judge_weights)}
    replayed = asyncio.run(replay(stream, match))
    return Run(tally(stream, replayed), tally(stream, replayed, WARM_UP), false_hits(stream, replayed))


def whole(run: Run) -> Tally:
    return run.whole


def warm(run: Run) -> Tally:
    return run.warm


class Found(NamedTuple):
    value: float  # of what was swept
    run: Run


class Sweep:
    """The replays of one case under one strategy, each made once."""

    def __init__(self, strategy: Strategy, replay: Callable[[Settings], Run]) -> None:
        self._strategy = strategy
        self._replay = replay
        self._runs: dict[float, Run] = {}

    def at(self, value: float) -> Run:
        if value not in self._runs:
            self._runs[value] = self._replay(self._strategy.at(value))
        return self._runs[value]

    def best(self, rate: Rate, limit: float, part: Callable[[Run], Tally] = whole) -> Found | None:
        """The run with the most hits among those whose `rate` is within the limit; None where there is none.

        The looser the setting, the more hits and the more of them false, though few hits make that an uneven line. So
        the grid is walked in strides from its strict end until it is far off, and then searched where it turned.
        """

        def is_within(place: int) -> bool:
            return rate(part(self.at(self._strategy.grid[place]))) <= limit

        last, strides = 0, range(0, len(self._strategy.grid), STRIDE)
        for place in strides:
            if is_within(place):
                last = place
            elif place - last > 2 * STRIDE:
                break
        strict, loose = last, min(last + STRIDE, len(self._strategy.grid))
        while loose - strict > 1:
            middle = (strict + loose) // 2
            strict, loose = (middle, loose) if is_within(middle) else (strict, middle)
        within = [Found(value, run) for value, run in self._runs.items() if rate(part(run)) <= limit]
        return max(within, key=lambda found: (part(found.run).hits, found.value), default=None)


class Bounded(NamedTuple):
    order: int
    bound: float
    run: Run
    fixed: Found | None  # the best threshold whose hits were no more often false, on the same order


class Study(NamedTuple):
    """All that was found on one stream."""

    by_hits: Found | None  # the best fixed threshold with at most LIMIT of hits false
    by_requests: Found | None  # ... of requests
    strategies: Mapping[str, Found | None]
    bounded: Sequence[Bounded]


class Plan(NamedTuple):
    """What is tried on each stream."""

    strategies: Sequence[Strategy]
    bounded: Strategy | None
    orders: int  # of arrival, for the error bound


def study(case: Case, plan: Plan, make: Callable[[Case, Settings], Run]) -> Study:
    """`make` replays, in whatever process."""
    fixed = Sweep(REFERENCE, partial(make, case))
    by_hits = fixed.best(of_hits, LIMIT)
    by_requests = fixed.best(of_requests, LIMIT)
    found = {strategy.name: Sweep(strategy, partial(make, case)).best(of_hits, LIMIT) for strategy in plan.strategies}
    if plan.bounded is None:
        return Study(by_hits, by_requests, found, ())
    bounded = []
    for order in range(plan.orders):
        arriving = case._replace(order=order)
        sweep = Sweep(REFERENCE, partial(make, arriving)) if order else fixed
        for bound in plan.bounded.grid:
            run = make(arriving, plan.bounded.at(bound))
            bounded.append(Bounded(order, bound, run, _no_more_often_false(sweep, run)))
    return Study(by_hits, by_requests, found, bounded)


def _no_more_often_false(sweep: Sweep, run: Run) -> Found | None:
    return sweep.best(of_hits, run.warm.false_of_hits, warm)

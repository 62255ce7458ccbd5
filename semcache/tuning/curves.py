"""Curves: what each setting would serve, and how much of it wrongly; and which setting the evidence supports.

What is labelled is cut into two halves. The first chooses: the strategy, and how loose it may be. The second, which had
no say in that, tests it. So the interval of a recommendation is honest, though the best of many was taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semcache.shadow import Z, wilson

TRIES = 2  # strategies that the second half may test: each at 97.5 %, so both together at 95 %
HOPELESS = 0.8  # of the target: a share of false hits above that cannot be told from it by evidence worth waiting for


class Count(NamedTuple):
    """What came of one setting. Where observations stand for more than themselves, sums of their weights."""

    of: float  # requests; or for labelled pairs, the right ones
    gained: float  # requests answered from the cache; or right pairs served
    exact: float  # answered because an equal one was stored
    served: float  # served by meaning
    false: float  # of those, wrongly
    seen: float  # as many observations of equal weight would tell as much about the false share as there are

    @property
    def hit_rate(self) -> float:
        return self.gained / self.of if self.of else 0.0

    @property
    def false_rate(self) -> float:
        """Of what is served by meaning."""
        return self.false / self.served if self.served else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Of the false rate, 95 %."""
        return wilson(self.false_rate * self.seen, self.seen)


@dataclass(frozen=True, slots=True)
class Point:
    setting: float
    whole: Count
    halves: tuple[Count, Count]


@dataclass(frozen=True, slots=True)
class Recommendation:
    target: float
    strategy: str | None  # None: the evidence supports none
    setting: float | None
    checked: Count | None  # the setting on the half that had no say in it; without one, the best so far, of all
    more: int | None = None  # hits by meaning that are missing, at the rate seen so far; None: no number would do
    more_rows: int | None = None  # rows like these in which so many would come
    best: tuple[str, float] | None = None  # without a recommendation: the strategy and setting that come nearest


def recommend(curves: Mapping[str, Sequence[Point]], target: float) -> Recommendation:
    """The strategy that serves most, at the loosest setting that both halves support; or what is missing for one.

    `curves`: strictest setting first.
    """
    chosen = [
        (points[found[-1]].halves[0].gained, name, found)
        for name, points in curves.items()
        if (found := _choose(points, target))
    ]
    for _, name, places in sorted(chosen, reverse=True)[:TRIES]:
        passed = _test(curves[name], places, target)
        if passed is not None:
            point = curves[name][passed]
            return Recommendation(target, name, point.setting, point.halves[1])
    return _what_is_missing(curves, target)


def _choose(points: Sequence[Point], target: float) -> range:
    """By the first half, the places from the setting it is surest of to the loosest that was within the target.

    That it was is enough, chance or not: what is left to chance here, the second half finds out.
    """
    first = [point.halves[0] for point in points]
    within = [place for place, count in enumerate(first) if count.served and count.false_rate <= target]
    if not within:
        return range(0)
    return range(min(within, key=lambda place: first[place].interval[1]), within[-1] + 1)


def _test(points: Sequence[Point], places: range, target: float) -> int | None:
    """The loosest of these that the second half supports.

    They are tested in order, up to the first that fails: trying all and taking the best would be right less often than
    it says (fixed sequence testing, as in learn-then-test). The order is the first half's, so it is no choice here.
    """
    found = None
    for place in places:
        if points[place].halves[1].interval[1] > target:
            break
        found = place
    return found


def _what_is_missing(curves: Mapping[str, Sequence[Point]], target: float) -> Recommendation:
    """The setting that would be proven first, if hits went on as they are."""
    best: tuple[float, str, Point, float] | None = None
    for name, points in curves.items():
        for point in points:
            count = point.whole
            if not count.served or count.false_rate > HOPELESS * target:
                continue
            share = count.seen / count.of  # hits by meaning in a row
            missing = 2 * needed(count.false_rate, target) - count.seen  # half of them choose
            if best is None or missing / share < best[0]:
                best = (missing / share, name, point, missing)
    if best is None:
        tried = [(point.whole.false_rate, name, point) for name, points in curves.items() for point in points]
        served = [each for each in tried if each[2].whole.served]
        if not served:
            return Recommendation(target, None, None, None, more=math.ceil(2 * needed(0.0, target)))
        _, name, point = min(served, key=lambda each: (each[0], -each[2].whole.served))
        return Recommendation(target, None, None, point.whole, best=(name, point.setting))
    _, name, point, missing = best
    # Enough over all, and still the second half failed: a tenth more at least.
    more = max(missing, 0.1 * point.whole.seen)
    return Recommendation(
        target,
        None,
        None,
        point.whole,
        more=math.ceil(more),
        more_rows=math.ceil(more * point.whole.of / point.whole.seen),
        best=(name, point.setting),
    )


def needed(rate: float, target: float) -> float:
    """How many hits with this share of false ones, below the target, bring Wilson's upper bound down to it."""
    return Z * Z * target * (1 - target) / (target - rate) ** 2

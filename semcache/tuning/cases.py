"""Labelled pairs under one setting after another: what would be served, and how much of it wrongly.

A case is one request with the candidates that its fresh answer was held against: for a file of pairs each pair is a
case of its own, evidence of real traffic has up to four candidates for a case. The nearest that passes is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semcache.tuning.curves import Count, Point
from semcache.tuning.labelled import LabelledPairs
from semcache.tuning.playing import ENOUGH, ENOUGH_SEEN
from semcache.tuning.strategies import FLOOR, NEVER, Strategy

SEED = 7  # of the halves
STEP = 500  # pairs between two steps of the progress bar


@dataclass(frozen=True, slots=True)
class Cases:
    """Pairs, nearest first within each case."""

    pairs: LabelledPairs
    case: npt.NDArray[np.int64]  # (pairs,): to which case each belongs
    weight: npt.NDArray[np.float64]  # (pairs,): as many requests as the case stands for
    is_traffic: bool  # cases are requests; else what counts is which of the right pairs are served


def each_alone(pairs: LabelledPairs) -> Cases:
    return Cases(pairs, np.arange(len(pairs)), np.ones(len(pairs)), False)


def sweep_cases(cases: Cases, strategy: Strategy, advance: Callable[[int], None] = lambda pairs: None) -> list[Point]:
    """A point for each setting, strictest first, until too much is false."""
    numbers = _numbers(cases, strategy, advance)
    half = _halves(cases)
    points = []
    for setting in strategy.grid:
        served = _first_of_each(cases, numbers >= setting)
        point = Point(
            setting,
            _count(cases, served, np.ones(len(half), bool)),
            (_count(cases, served, half), _count(cases, served, ~half)),
        )
        points.append(point)
        if point.whole.seen >= ENOUGH_SEEN and point.whole.false_rate > ENOUGH:
            break
    return points


def _numbers(cases: Cases, strategy: Strategy, advance: Callable[[int], None]) -> npt.NDArray[np.float64]:
    """What the strategy says of each pair."""
    pairs = cases.pairs
    exact_only = strategy.words.questions.exact_only
    floor = min(FLOOR, *strategy.grid) if strategy.swept == "threshold" else strategy.floor(strategy.grid[-1])
    numbers = np.full(len(pairs), NEVER)
    triples = zip(pairs.asked.tolist(), pairs.stored.tolist(), pairs.cosine.tolist(), strict=True)
    for place, (asked, stored, cosine) in enumerate(triples):
        is_left_out = strategy.heeds_rules and (exact_only[asked] or exact_only[stored])
        if cosine >= floor and not is_left_out:
            numbers[place] = strategy.number(asked, stored, cosine)
        if place % STEP == STEP - 1:
            advance(STEP)
    advance(len(pairs) % STEP)
    return numbers


def _first_of_each(cases: Cases, passes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The places of the pairs that are served: of each case the first that passes."""
    places = np.flatnonzero(passes)
    _, first = np.unique(cases.case[places], return_index=True)
    return places[first]


def _halves(cases: Cases) -> npt.NDArray[np.bool_]:
    """For each pair, whether it belongs to the first half. Pairs about one asked question stay together."""
    asked = cases.pairs.asked
    drawn = np.random.default_rng(SEED).random(len(cases.pairs.texts)) < 0.5
    return drawn[asked]


def _count(cases: Cases, served: npt.NDArray[np.int64], within: npt.NDArray[np.bool_]) -> Count:
    served = served[within[served]]
    weight, same = cases.weight[served], cases.pairs.same[served]
    total, false = float(weight.sum()), float(weight[~same].sum())
    if cases.is_traffic:
        _, first = np.unique(cases.case[within], return_index=True)
        of, gained = float(cases.weight[within][first].sum()), total
    else:
        of, gained = float(cases.weight[within & cases.pairs.same].sum()), total - false
    # Kish's effective sample size: rare observations with large weights tell less than their number.
    seen = total * total / float((weight * weight).sum()) if len(served) else 0.0
    return Count(of, gained, 0, total, false, seen)

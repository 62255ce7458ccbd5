"""What is known of the traffic of one group, or of one tenant, and what a fit makes of it: weights and cuts.

`Evidence` belongs to the event loop. `learn` takes milliseconds and is called on a thread, with copies. Whose evidence
counts, and when it is fitted, bound.py decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from semcache.cache import calibration
from semcache.cache.calibration import Cut, Floats
from semcache.cache.recent_rows import RecentRows, Rows
from semcache.cache.witnesses import NAMES, scaled
from semcache.types import Observation, Occasion

WINDOW = 6000  # observations that a fit looks at: the newest. Traffic changes, and older ones say less
TRAFFIC = 2000  # recent would-be hits that the strata are weighed by
REFIT_AT_LEAST = 50  # new observations between two fits of a group, or
REFIT_SHARE = 50  # one for this many there are: a fit of 6,000 takes 20 ms of a thread
NEAR_TIMES = 2.0  # a hit near the cut is explored more often than `match.explore` by this factor
FAR_TIMES = 0.5  # ... and one further up by this
STEP = 0.005  # how fast explored hits move what the cut aims at
LOWEST_AIM = 0.25  # of max_error
WIDTH = len(NAMES) + 1  # of what `scaled` makes of the features
_FARTHEST = 1e6  # no feature is further from zero: what is, was damaged
_EXPLORED = (Occasion.EXPLORE, Occasion.AUDIT)


@dataclass(slots=True)
class Evidence:
    """The newest observations of a group or a tenant, and what the last fit made of them."""

    # A row: what `scaled` makes of the features, then 1 where the stored answer would have served, and 1 where it was
    # proposed.
    pairs: RecentRows = field(default_factory=lambda: RecentRows(WIDTH + 2, WINDOW))
    traffic: RecentRows = field(default_factory=lambda: RecentRows(WIDTH, TRAFFIC))
    new: int = 0
    weights: Floats | None = None
    cuts: dict[float, Cut | None] = field(default_factory=dict)  # by max_error
    aims: dict[float, float] = field(default_factory=dict)  # by max_error: the share of it that is aimed at
    is_doubted: dict[float, bool] = field(default_factory=dict)  # the tenant's cut is wrong too often here

    @property
    def is_due(self) -> bool:
        return bool(len(self.pairs)) and self.new >= max(REFIT_AT_LEAST, len(self.pairs) // REFIT_SHARE)

    def make_due(self) -> None:
        """Have it fitted soon, however little is new."""
        self.new = WINDOW

    def add(self, it: Observation, pair: Rows, bounds: Iterable[float]) -> None:
        """`pair`: its row. `bounds`: every max_error that was asked for."""
        self.pairs.append(pair)
        self.new += 1
        if it.is_proposed:
            self._aim(it, pair[:WIDTH], bounds)
        if it.is_proposed and not it.same and it.occasion in _EXPLORED:
            self.make_due()  # somebody may get such an answer now: fit at once

    def _aim(self, it: Observation, x: Rows, bounds: Iterable[float]) -> None:
        """Aim lower after an explored hit that was wrong, and a little higher after one that was right.

        Steps cancel out where hits are wrong exactly as often as allowed. Those near the cut are explored more often,
        and count less in turn. Of a bound whose cut the pair does not pass, it says nothing. Where there is no cut, no
        hit is left to explore, and every request is looked at: so caution wears off, or one bad hour would close it
        for good.
        """
        weight = STEP * (FAR_TIMES / NEAR_TIMES if it.occasion is not Occasion.AUDIT else 1.0)
        for bound in bounds:
            cut, aim = self.cuts.get(bound), self.aims.get(bound, 1.0)
            if cut is None:
                aim += weight
            elif it.occasion in _EXPLORED and self.weights is not None and x @ self.weights >= cut.score:
                aim += weight * (1 - (not it.same) / bound)
            self.aims[bound] = min(1.0, max(LOWEST_AIM, aim))

    def is_wrong_too_often(self, pairs: Rows, bound: float) -> bool:
        """Whether what the cut would let pass of other pairs is wrong more often than allowed, beyond chance."""
        cut = self.cuts.get(bound)
        if cut is None or self.weights is None:
            return False
        x, served, proposed = _apart(pairs)
        passed = served[proposed & (x @ self.weights >= cut.score)]
        return calibration.lower_rate(int(np.sum(passed == 0)), len(passed)) > bound


def as_rows(observations: Sequence[Observation], mark: float) -> Iterator[tuple[Observation, Rows]]:
    """Those with features of the kind that `mark` names, each with its row of `Evidence.pairs`; see there.

    The others are feedback, which is no fair sample of hits, or of another embedder or judge, or damaged.
    """
    fitting = [it for it in observations if len(it.features) == WIDTH and it.features[0] == mark]
    if not fitting:
        return iter(())
    features = np.array([it.features[1:] for it in fitting])
    sound = (np.abs(features) < _FARTHEST).all(axis=1)  # NaN is not
    fitting, features = list(compress(fitting, sound)), features[sound]
    told = np.array([(it.same, it.is_proposed) for it in fitting]).reshape(-1, 2)
    return zip(fitting, np.hstack((scaled(features), told), dtype=np.float32), strict=True)


def learn(
    pairs: Rows, traffic: Rows, prior: Floats, precision: float, start: Floats | None, aims: dict[float, float]
) -> tuple[Floats, dict[float, Cut | None]]:
    """The weights, and for each bound the cut that keeps what is aimed at."""
    x, served, proposed = _apart(pairs)
    begin = prior if start is None else start
    scores, weights = calibration.cross_fit(x, served, prior, precision, begin)
    # The fit learns from every pair. The bound is about candidates that would be served, so only they set the cut.
    scores, wrong = scores[proposed], served[proposed] == 0
    passing = traffic.astype(np.float64) @ weights
    return weights, {bound: calibration.choose_cut(scores, wrong, passing, aim) for bound, aim in aims.items()}


def _apart(pairs: Rows) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """The scaled features of pairs, whether the stored answers would have served (1 or 0), and which were proposed."""
    return pairs[:, :WIDTH].astype(np.float64), pairs[:, WIDTH].astype(np.float64), pairs[:, WIDTH + 1] != 0

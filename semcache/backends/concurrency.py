"""How many requests at once one backend bears, learned from how long it takes to its first byte.

The rule: a backend is held back only where that helps. The limit begins at the most and comes down when answers begin
late; where half the requests at once begin no sooner, they were not waiting for each other, and the limit goes back up.

It is a gradient limit, as Netflix's concurrency-limits (Gradient2) and Envoy's adaptive concurrency filter have it: the
new limit is the old one times (usual time / time now), and a headroom of its square root to try more. Time to first
token is a poor signal for that, and what is done about it is what differs:

    long prompts       begin late on an idle backend, too: what is usual is kept apart by prompt size
    cached prefixes    begin early however busy it is: medians decide, never the minimum
    a cold model       a few slow requests, or a pause of all, must not strangle: a window decides, and only one whose
                       requests have all begun under the limit as it is (TCP, too, cuts once a round trip)
    a flood            where ten times too many are in flight, halving takes minutes: the limit is cut from what was in
                       flight when the slow ones began, which is where the queue stood when they entered it
"""

from __future__ import annotations

from math import inf, sqrt
from statistics import median_low
from typing import NamedTuple

START = 1000  # a proxy that starts in the middle of the day must not hold back what its backends have always borne
NO_LIMIT = 1 << 30
LEAST = 2  # one that runs and one that waits: a backend with one slot never idles for a round trip

TOLERANCE = 2.0  # a first byte may take twice what is usual,
SLACK_S = 1.0  # or a second longer: few call that overload, and servers that batch get slower long before they queue

WINDOW_S = 1.0  # at least, and
WINDOW_REQUESTS = 8  # as many: a median of fewer would follow two slow ones
STEEPEST = 0.5  # cut in one window
DROP_FACTOR = 0.8  # for a refusal or a timeout
DROP_PAUSE_S = 1.0  # they come in bursts, and a burst is one sign
BINDING = 0.9  # of the limit in flight: only then does success say that there is room for more
IN_VAIN = 0.8  # half the requests at once, and still more than this of the slowness: it was not they

BATCH = 15  # requests of one size, whose median is taken
FALL = 0.3  # of the way down to a lower median
# What is usual rises no faster than this, and only while the limit does not bind: a queue that grows slowly must not
# become usual.
DOUBLES_IN_S = 600.0
FORGET_S = 60.0  # a window that has not filled in this time is of no use: what it began with is over


class AdaptiveLimit:
    """Of one backend. Times are monotonic seconds."""

    def __init__(self, most: int | None, adaptive: bool = True) -> None:
        """`most`: never more than this. Without `adaptive` it is `most`, or none."""
        self._most = most or NO_LIMIT
        self._adaptive = adaptive
        self._limit = float(min(self._most, START))
        self._since = -inf  # when it was last changed: requests that began before do not tell about it
        self._usual: dict[int, _Usual] = {}  # by prompt size
        self._window: list[_Sample] = []
        self._window_began = 0.0
        self._dropped_at = -inf
        self._decline: tuple[float, float] | None = None  # limit and slowness when it began
        self.cuts = 0
        self.in_vain = 0

    @property
    def limit(self) -> int:
        return int(self._limit) if self._adaptive else self._most

    def observe(self, ttft_s: float, in_flight: int, now: float, tokens: int = 0) -> None:
        """A first byte has come. `in_flight`: when the request began, itself included. `tokens`: of its prompt."""
        if not self._adaptive:
            return
        size = tokens.bit_length()
        usual = self._usual.get(size)
        if usual is None:
            usual = self._usual[size] = _Usual(ttft_s, now)
        usual.learn(ttft_s, now, may_rise=in_flight <= max(LEAST, self._limit / 2))
        if now - ttft_s < self._since:
            return
        if not self._window or now - self._window_began > FORGET_S:
            self._window = []
            self._window_began = now
        allowed_s = max(TOLERANCE * usual.ttft_s, usual.ttft_s + SLACK_S)
        self._window.append(_Sample(ttft_s / allowed_s, ttft_s / max(usual.ttft_s, 1e-6), in_flight))
        if len(self._window) >= WINDOW_REQUESTS and now - self._window_began >= WINDOW_S:
            window, self._window = self._window, []
            self._decide(window, now)

    def dropped(self, now: float, in_flight: int | None = None) -> None:
        """It refused a request for want of room (429, 503), or did not answer in time. `in_flight`: with that one."""
        if self._adaptive and now - self._dropped_at >= DROP_PAUSE_S:
            self._dropped_at = now
            self._cut(min(self._limit, in_flight or inf) * DROP_FACTOR, now)

    def stats(self) -> dict[str, float]:
        return {"limit": self.limit, "cuts": self.cuts, "in_vain": self.in_vain}

    def _decide(self, window: list[_Sample], now: float) -> None:
        slowness = median_low(sample.slowness for sample in window)
        crowd = median_low(sample.in_flight for sample in window)
        if slowness <= 1:
            self._decline = None
            if max(sample.in_flight for sample in window) >= BINDING * self.limit:
                self._set(self._limit + sqrt(self._limit), now)
            return
        if self._decline is None or slowness > self._decline[1] / IN_VAIN:  # it begins, or it is still getting worse
            self._decline = (crowd, slowness)
        began_at, began_slow = self._decline
        if crowd <= began_at / 2:
            if slowness > IN_VAIN * began_slow:
                self._accept(median_low(sample.ratio for sample in window))
                self._decline = None
                self.in_vain += 1
                self._set(max(self._limit, began_at), now)
                return
            self._decline = (crowd, slowness)  # it helped; the next half has to help, too
        crowd = min(crowd, self.limit)
        cut = crowd * max(STEEPEST, 1 / slowness) + sqrt(crowd)
        self._cut(min(cut, crowd - 1), now)  # where the headroom eats the cut up, too, or it would stay slow for ever

    def _accept(self, ratio: float) -> None:
        """It is slower for reasons of its own: another model, others' traffic, prompts that are cached no more."""
        for usual in self._usual.values():
            usual.ttft_s *= ratio

    def _cut(self, limit: float, now: float) -> None:
        if limit < self._limit:
            self.cuts += 1
            self._set(limit, now)

    def _set(self, limit: float, now: float) -> None:
        self._limit = min(max(limit, LEAST), self._most)
        self._since = now


class _Sample(NamedTuple):
    slowness: float  # its time to first byte, as a multiple of what is allowed
    ratio: float  # ... of what is usual
    in_flight: int


class _Usual:
    """The time to first byte that is usual for prompts of one size, while the backend is not busy."""

    __slots__ = ("_at", "_batch", "_is_first", "_may_rise", "ttft_s")

    def __init__(self, ttft_s: float, now: float) -> None:
        self.ttft_s = ttft_s
        self._at = now
        self._batch: list[float] = []
        self._may_rise = True
        self._is_first = True

    def learn(self, ttft_s: float, now: float, *, may_rise: bool) -> None:
        self._batch.append(ttft_s)
        self._may_rise &= may_rise
        if len(self._batch) < BATCH:
            return
        median_s = median_low(self._batch)
        if median_s < self.ttft_s:
            # The very first request may have waited for its model to be loaded: that is not slowly unlearned.
            self.ttft_s += (median_s - self.ttft_s) * (1.0 if self._is_first else FALL)
        elif self._may_rise:
            self.ttft_s = min(median_s, self.ttft_s * 2 ** ((now - self._at) / DOUBLES_IN_S))
        self._at, self._batch, self._may_rise, self._is_first = now, [], True, False

"""How many requests may be sent that nobody asked for: repetitions after a failure, and second requests for speed.

The rule: they are a share of what is asked. Where everything fails, every request is repeated, and a backend that
stumbles under load is given three times that load: most long outages were such storms of retries. After Finagle's
RetryBudget, and the chapter on cascading failures of "Site Reliability Engineering" (Google, 2016).
"""

from __future__ import annotations

from collections import deque

LEAST_PER_S = 1.0  # or a request now and then could never be repeated: a fifth of one is none
SLICES = 20  # of the window, so that what was asked leaves it little by little


class Budget:
    """Of one route, retries or hedges. At most `share` of what was asked within the window, or the floor's worth."""

    def __init__(self, share: float, least_per_s: float = LEAST_PER_S, window_s: float = 10.0) -> None:
        """`share`: 0 takes the floor away, too: nothing is ever repeated."""
        self._share = share
        self._floor = least_per_s * window_s if share > 0 else 0.0
        self._window_s = window_s
        self._slices: deque[list[float]] = deque()  # (began, asked, taken), oldest first
        self._asked = 0.0
        self._taken = 0.0
        self.refused = 0

    def asked(self, now: float) -> None:
        """A caller's own request has come."""
        self._slice(now)[1] += 1
        self._asked += 1

    def take(self, now: float) -> bool:
        """Whether one more may be sent; if so, it counts."""
        current = self._slice(now)
        if self._taken + 1 > max(self._floor, self._share * self._asked):
            self.refused += 1
            return False
        current[2] += 1
        self._taken += 1
        return True

    def stats(self) -> dict[str, float]:
        return {"asked": self._asked, "taken": self._taken, "refused": self.refused}

    def _slice(self, now: float) -> list[float]:
        while self._slices and self._slices[0][0] <= now - self._window_s:
            _, asked, taken = self._slices.popleft()
            self._asked -= asked
            self._taken -= taken
        if not self._slices or now - self._slices[-1][0] >= self._window_s / SLICES:
            self._slices.append([now, 0, 0])
        return self._slices[-1]

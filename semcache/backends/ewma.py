"""How slow a backend has been of late, in one number that believes bad news at once and good news slowly.

It is the peak EWMA of Finagle's load balancer: one slow answer raises it to that answer, quick ones lower it over
`decay_s`, and so does silence. A backend that nobody asks because it was slow once is therefore asked again.
"""

from __future__ import annotations

from math import exp


class PeakEwma:
    def __init__(self, decay_s: float = 10.0) -> None:
        self._decay_s = decay_s  # after this long, what was observed counts for 1/e
        self._value_s: float | None = None
        self._observed_at = 0.0

    def observe(self, value_s: float, now: float) -> None:
        if self._value_s is None or value_s >= self._value_s:
            self._value_s = value_s
        else:
            kept = self._kept(now)
            self._value_s = self._value_s * kept + value_s * (1 - kept)
        self._observed_at = max(now, self._observed_at)

    def value(self, now: float) -> float | None:
        """None: nothing was observed. Falls towards 0 for as long as nothing new is."""
        return None if self._value_s is None else self._value_s * self._kept(now)

    def _kept(self, now: float) -> float:
        return exp(min(self._observed_at - now, 0.0) / self._decay_s)

    def __repr__(self) -> str:
        return f"PeakEwma(value_s={self._value_s}, observed_at={self._observed_at})"

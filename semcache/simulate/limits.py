"""So many requests a minute of each key, and the headers in which vendors tell of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Headers = dict[str, str]


class RateLimit:
    """So many requests a minute of each key: a bucket that fills steadily, as vendors describe theirs."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float]) -> None:
        self._size = requests_per_minute
        self._refill_per_s = requests_per_minute / 60
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # key -> (requests left, at which time)

    def take(self, key: str) -> tuple[bool, float, float]:
        """Take one request. Return whether there was one, what is left, and the seconds until the bucket is full."""
        now = self._clock()
        left, at = self._left.get(key, (float(self._size), now))
        left = min(self._size, left + (now - at) * self._refill_per_s)
        allowed = left >= 1
        left -= allowed
        self._left[key] = (left, now)
        return allowed, left, (self._size - left) / self._refill_per_s

    def headers(self, path: str, allowed: bool, left: float, full_in_s: float) -> Headers:
        """In the form of the vendor whose path it is; a refused caller is told when one request will be free."""
        if path.startswith("/v1/messages"):
            full_at = datetime.now(UTC) + timedelta(seconds=full_in_s)
            told = {
                "anthropic-ratelimit-requests-limit": str(self._size),
                "anthropic-ratelimit-requests-remaining": str(int(left)),
                "anthropic-ratelimit-requests-reset": full_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        else:
            told = {
                "x-ratelimit-limit-requests": str(self._size),
                "x-ratelimit-remaining-requests": str(int(left)),
                "x-ratelimit-reset-requests": duration_text(full_in_s),
            }
        if not allowed:
            told["retry-after"] = str(math.ceil((1 - left) / self._refill_per_s))
        return told


def duration_text(seconds: float) -> str:
    """As OpenAI writes it: `850ms`, `2.5s`, `1m12s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60) if seconds >= 60 else (0, seconds)
    return f"{minutes}m{rest}s" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + "s"

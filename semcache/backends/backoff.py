"""How long to wait before a request is repeated: "Exponential Backoff and Jitter" (AWS, 2015), with full jitter.

tenacity has the same as `wait_random_exponential`, which wants a RetryCallState made up for it and takes its chance
from a global generator: more code than the formula, which is one line.
"""

from __future__ import annotations

from random import Random

CAP_S = 2.0  # a caller is waiting for his first byte meanwhile


def pause_s(attempt: int, base_s: float, chance: Random) -> float:
    """Anything from 0 to `base_s`, doubled with each repetition; `attempt`: 1 for the first.

    From zero on, and not around the middle: requests that failed together must not come back together.
    """
    return chance.uniform(0.0, min(CAP_S, base_s * 2.0 ** min(attempt - 1, 30)))

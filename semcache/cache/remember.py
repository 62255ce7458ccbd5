"""What guards have read in a question is kept, as a popular stored question is compared again and again.

Any thread may read: what is kept is never changed afterwards, and the worst of two threads that read one question at
the same time is that both do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

KEPT = 4096  # questions; a reading of one takes one to three KB
LONG = 500  # characters; longer ones are rare, and 4096 of them could take a GB
KEPT_LONG = 128  # enough that all guards of one lookup read a long question once


def remember(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read`, which must be pure, with its results for recent questions kept."""
    kept = lru_cache(maxsize=KEPT)(read)
    kept_long = lru_cache(maxsize=KEPT_LONG)(read)

    @wraps(read)
    def recall(question: str) -> T:
        return kept(question) if len(question) <= LONG else kept_long(question)

    return recall

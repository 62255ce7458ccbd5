"""What guards have read in a question is kept, as a popular stored question is compared again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

KEPT = 4096  # questions; a reading of one takes one to three KB
LONGEST = 500  # characters; longer ones are rare, are asked again rarely, and 4096 of them could take a GB


def remember(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read`, which must be pure, with its results for recent questions kept."""
    kept = lru_cache(maxsize=KEPT)(read)

    @wraps(read)
    def recall(question: str) -> T:
        return kept(question) if len(question) <= LONGEST else read(question)

    return recall

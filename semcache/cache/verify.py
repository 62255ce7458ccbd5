"""VERIFY: from candidates to a match. Doubt about an answer is a miss.

Near enough is a matter of numbers (the threshold); meaning the same is a matter of words (the guards). Both must agree.
The nearest candidate that passes both is the match; when none passes, the reason is the one that stopped the nearest.
"""

from __future__ import annotations

from semcache.cache.guards import find_veto
from semcache.cache.policy import Ruling
from semcache.types import Candidate, Entry, Reason


def is_near_enough(candidate: Candidate, ruling: Ruling) -> bool:
    return candidate.similarity >= ruling.threshold


def find_objection(question: str, entry: Entry, ruling: Ruling) -> Reason | None:
    """Why `entry`, already near enough, must not answer `question`; None when it may."""
    if entry.question is None:
        return Reason.NO_ENTRY
    return find_veto(question, entry.question, ruling.guards)

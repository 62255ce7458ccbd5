"""Watching for a model being copied: a key that asks very many different questions and hardly any of them twice.

So do those who train a model of their own on the answers of another (Tramèr and others, "Stealing machine learning
models via prediction APIs", 2016; MITRE ATLAS AML.T0024.002). So does a key with which a busy service asks for all of
its users: the limit is for keys whose normal rate is known.

Questions are counted, not kept: a bit for each in a bitmap of one hour (linear counting; Whang and others, 1990), which
is right within some 3 %. The hour slides: the one before counts for the part of it that is still within 60 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cachetools import LRUCache

from semcache.config import Guardrails
from semcache.guardrails.suspicion import Action, Check, Suspicion

WINDOW_S = 3600.0
REPEATED_SHARE = 0.1  # of a key's requests; people ask the same things, and in caches' traffic 0.3 to 0.7 of them
_BITS_PER_QUESTION = 16  # of the limit; of new questions 6 in 100 then fall on a bit that is set, and pass for known
_MOST_BITS = 8 * 1024 * 1024  # 1 MB for one key, whatever its limit; still right within a few percent at 30 million
_MEMORY_BYTES = 64 * 1024 * 1024  # of all keys; the one that was silent for longest is forgotten first


class ExtractionWatch:
    """One for a process: several workers each see their share of a key's requests, and the limit is each one's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds that never go back."""
        self._clock = clock
        self._counts: LRUCache[tuple[str, str, int], _Count] = LRUCache(_MEMORY_BYTES, getsizeof=_size)

    def seen(self, tenant: str, key: str, exact: bytes, settings: Guardrails) -> Suspicion | None:
        """Count one request, `exact` being the digest of what it asks (Key.exact); say whether the rate is suspicious.

        A question that was asked in this hour already never is: its answer tells nothing new.
        """
        if settings.extraction == "off":
            return None
        limit = settings.extraction_per_hour
        now = self._clock()
        try:
            count = self._counts[tenant, key, limit]
        except KeyError:
            count = self._counts[tenant, key, limit] = _Count(limit, now)
        count.move_to(now)
        if count.knows(exact):
            count.repeat()
            return None
        is_too_many = count.different() >= limit and count.repeated_share() < REPEATED_SHARE
        # What is refused does not count: else it would be known when it is asked again.
        if not is_too_many or settings.extraction != "refuse":
            count.add(exact)
        if not is_too_many:
            return None
        reason = f"this key asked more than {limit} different questions within an hour, and hardly any of them twice"
        return Suspicion(Check.EXTRACTION, "many-questions", Action(settings.extraction), reason)

    def stats(self) -> dict[str, float]:
        return {"keys": len(self._counts)}


class _Count:
    """What one key asked in this hour, and how much in the hour before."""

    __slots__ = ("_before", "_begun", "_bits", "_length", "_now", "_requests", "_requests_before", "_set")

    def __init__(self, limit: int, now: float) -> None:
        self._length = min(max(1024, _BITS_PER_QUESTION * limit + 7 & ~7), _MOST_BITS)
        self._bits = bytearray(self._length // 8)
        self._set = 0  # bits
        self._requests = 0
        self._begun = self._now = now
        self._before = 0.0  # different questions of the hour before
        self._requests_before = 0

    @property
    def size_bytes(self) -> int:
        return len(self._bits) + 400

    def move_to(self, now: float) -> None:
        self._now = now
        if now - self._begun >= WINDOW_S:
            self._begin(now)

    def knows(self, exact: bytes) -> bool:
        """Whether its question was asked in this hour already; of 100 new ones up to 6 pass for such."""
        byte, bit = self._place(exact)
        return bool(self._bits[byte] >> bit & 1)

    def repeat(self) -> None:
        """Count a request whose question is known."""
        self._requests += 1

    def add(self, exact: bytes) -> None:
        byte, bit = self._place(exact)
        self._requests += 1
        self._set += not self._bits[byte] >> bit & 1
        self._bits[byte] |= 1 << bit

    def _place(self, exact: bytes) -> tuple[int, int]:
        return divmod(int.from_bytes(exact[:8], "little") % self._length, 8)

    def different(self) -> float:
        """Different questions within the last hour, about: one asked in both of its halves may count twice."""
        return self._in_this_hour() + self._left() * self._before

    def repeated_share(self) -> float:
        requests = self._requests + self._left() * self._requests_before
        return 1 - min(1.0, self.different() / max(1.0, requests))

    def _in_this_hour(self) -> float:
        # Two questions may have one bit: that many are behind the bits that are set.
        free = max(1, self._length - self._set)
        return -self._length * math.log(free / self._length)

    def _left(self) -> float:
        """The part of the hour before that lies within the last 60 minutes."""
        return 1 - (self._now - self._begun) / WINDOW_S

    def _begin(self, now: float) -> None:
        is_next = now - self._begun < 2 * WINDOW_S
        self._before = self._in_this_hour() if is_next else 0.0
        self._requests_before = self._requests if is_next else 0
        self._begun = self._begun + WINDOW_S if is_next else now
        self._bits = bytearray(len(self._bits))
        self._set = self._requests = 0


def _size(count: _Count) -> int:
    return count.size_bytes

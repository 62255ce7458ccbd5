"""PLANTING: whose answers may be given to whom, where answers are shared, and how many one tenant may have kept.

An answer that one tenant's request brought is given to others at once by default (`cache.min_uses: 1`). With a larger
number it must have been vouched for first: so many different tenants, its writer among them, have each asked the very
same question, got an answer of their own from the upstream, and these answers agree. Nothing that its writer does alone
proves anything: he may use his own entry, and fetch it anew until it says what he wants, as often as he likes.

The vouchers lie in the entry, so they survive restarts, reach other processes, and are exported with it. An answer that
agrees with the one it replaces takes over its vouchers; one that does not begins with its own writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from cachetools import LRUCache

from semcache.cache.compare import Cuts, compare_texts, compare_vectors, embed_answer
from semcache.cache.policy import Ruling
from semcache.errors import CacheFault
from semcache.types import Entry, Vector


class Embeds(Protocol):
    async def embed(self, text: str, then: Callable[[Vector], Vector]) -> Vector: ...


MOST_VOUCHERS = 16  # kept in an entry, and the most that `cache.min_uses` may ask for
SPAN_S = 60.0  # of the allowance: a tenant may use it up at once
TENANTS = 100_000  # remembered, some 150 bytes each; the one that wrote longest ago is forgotten, and begins anew


def may_be_given(entry: Entry, ruling: Ruling) -> bool:
    """Whether this asker may get this entry's answer: it is his own, he has vouched for it, or enough others have."""
    vouchers = entry.vouchers
    return (
        len(vouchers) >= ruling.min_uses
        or ruling.asker in vouchers
        or entry.writer == ruling.asker  # entries of before there were vouchers have none
    )


async def say_the_same(fresh: str, stored: str, embedder: Embeds, cuts: Cuts) -> bool:
    """Whether two answers to one question agree. A doubt is a no: then nobody vouches for anybody.

    Answers in other words take the embedder some milliseconds.
    """

    async def embed(piece: str) -> Vector:
        return await embedder.embed(piece, lambda vector: vector)

    texts = await asyncio.to_thread(compare_texts, fresh, stored)
    if isinstance(texts, bool):
        return texts
    try:
        vectors = [await embed_answer(text, embed) for text in texts]
    except CacheFault:
        return False
    if vectors[0] is None or vectors[1] is None:
        return False
    similarity = float(vectors[0] @ vectors[1])
    return await asyncio.to_thread(compare_vectors, texts, similarity, cuts) is True


def vouchers_of(writer: str, replaced: Entry | None, agrees: bool) -> tuple[str, ...]:
    """The tenants that vouch for an answer just fetched for `writer`, in the order in which they came.

    `replaced`: what stands under the same key. `agrees`: it says the same.
    """
    if replaced is None or not agrees:
        return (writer,)
    known = replaced.vouchers or (replaced.writer,)
    if writer in known or len(known) >= MOST_VOUCHERS:
        return known
    return (*known, writer)


class InsertLimits:
    """How many answers each tenant may still have kept: so many a minute, in this process.

    The generic cell rate algorithm: of each tenant one time is known, at which he will have used nothing. Every answer
    kept moves it on by its share of the minute; it may not lie further ahead than that. So routes with different
    allowances draw on the same minute, each by its own measure.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: in seconds. One that jumps back costs a tenant no more than a minute."""
        self._clock = clock
        self._unused_at: LRUCache[str, float] = LRUCache(TENANTS)

    def take(self, tenant: str, wanted: int, per_minute: int | None) -> int:
        """How many of `wanted` answers may be kept now; they count from here on. `per_minute` None: all."""
        if per_minute is None:
            return wanted
        now = self._clock()
        unused_at = min(max(self._unused_at.get(tenant, now), now), now + SPAN_S)
        cost_s = SPAN_S / per_minute
        # A thousandth of an answer of patience: sums of floats may come out a little below what they stand for.
        granted = min(wanted, int((now + SPAN_S - unused_at) / cost_s + 0.001))
        self._unused_at[tenant] = unused_at + granted * cost_s
        return granted

    def __len__(self) -> int:
        return len(self._unused_at)

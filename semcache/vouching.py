"""VOUCH: who says the same as a stored answer, before other tenants are given it (`cache.min_uses`).

A tenant vouches by fetching an answer of his own that agrees with the one that stands (what follows from that is
in cache/provenance.py). Doubt is no voucher.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from semcache.cache.compare import Cuts
from semcache.cache.lookup import Embedder, Lookup
from semcache.cache.provenance import say_the_same, vouchers_of
from semcache.errors import CacheFault
from semcache.planning import Plan
from semcache.types import Answer, Entry
from semcache.wire.dialect import SpokenDialect


class Vouching:
    def __init__(self, lookup: Lookup, embedder: Embedder) -> None:
        self._lookup = lookup
        self._embedder = embedder

    async def vouch(self, plan: Plan, entry: Entry) -> Entry:
        """The entry, about to be stored, with the tenants that vouch for its answer: they fetched one that says the
        same.
        """
        try:
            standing = await self._lookup.standing(entry.key)
        except CacheFault:  # then nobody else is known to
            standing = None
        agrees = standing is not None and await self._say_the_same(plan, entry.answer, standing.answer)
        return replace(entry, vouchers=vouchers_of(entry.writer, standing, agrees))

    async def _say_the_same(self, plan: Plan, fresh: Answer, stored: Answer) -> bool:
        if fresh.parts == stored.parts:
            return True
        dialect = plan.dialect
        if not isinstance(dialect, SpokenDialect):  # vectors, transcripts
            return False
        # On a thread: an answer of a megabyte takes some 30 ms to read.
        said, said_before = await asyncio.to_thread(lambda: (dialect.spoken(fresh), dialect.spoken(stored)))
        if said is None or said_before is None:
            return False
        if not plan.ruling.may_embed:  # and equal parts are all that tells
            return False
        match = plan.route.match
        return await say_the_same(said, said_before, self._embedder, Cuts(match.answers_alike, match.answers_differ))

"""STORE: the write gates, and then the entry.

The rule: what is kept is what the upstream gave, whole, for the request that was made; a doubt about any of it keeps
nothing. Storing never fails a request: whoever asked has the answer, and what went wrong is counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Protocol

from cachetools import TTLCache

from semcache.cache.conversation import NO_PAST, Past, read_past
from semcache.cache.lookup import Embedder, Lookup
from semcache.cache.policy import Ruling
from semcache.cache.provenance import InsertLimits
from semcache.errors import CacheFault, TooLong
from semcache.planning import Plan
from semcache.status_headers import replayed_before
from semcache.types import Answer, Ask, Entry, Key, Unstorable, Vector
from semcache.usage.estimates import estimate_aside
from semcache.vouching import Vouching
from semcache.wire.dialect import BatchDialect, Reading
from semcache.wire.recording import Recording

log = logging.getLogger(__name__)

LEARNED_S = 60.0  # how long a request whose answer could not be kept runs without waiting for others
PUTS_AT_ONCE = 256  # of one batch: two of the largest, put at once, would fill the store's queue and lose their rest


class Store(Protocol):
    """Where entries go."""

    async def put(self, entry: Entry, since_seq: int) -> int | None: ...


class Keeping:
    def __init__(
        self, lookup: Lookup, embedder: Embedder, store: Store, clock: Callable[[], float], faults: Counter[str]
    ) -> None:
        """`clock`: unix seconds. `faults`: where failures of the cache are counted, by their type."""
        self._embedder = embedder
        self._store = store
        self._clock = clock
        self._inserts = InsertLimits(clock)
        self._vouching = Vouching(lookup, embedder)
        self._learned: TTLCache[bytes, Unstorable] = TTLCache(10_000, LEARNED_S, timer=monotonic)
        self._faults = faults
        self.stored = 0
        self.unstorable: Counter[Unstorable] = Counter()

    def why_never(self, exact: bytes) -> Unstorable | None:
        """Why answers to this key were found not to be storable, a short while ago; None where they were not."""
        return self._learned.get(exact)

    async def keep(
        self,
        plan: Plan,
        ruling: Ruling,
        vector: Vector | None,
        since_seq: int,
        recording: Recording,
        reading: Reading,
    ) -> bool:
        """Store the answer if every gate is open. True once it is durable.

        `vector`: of the question, where it was looked up by meaning. `since_seq`: the store's last change before the
        fetch began; a purge after it wins.
        """
        plan = plan.of_model(recording.model)  # a fallback's answer is that model's, and no other's
        why_not = reading.unstorable
        if why_not is None and (not ruling.may_store or _forbids_storing(recording.headers) or reading.answer is None):
            why_not = Unstorable.REFUSED
        replayed = replayed_before(recording.headers)
        if why_not is None and replayed is not None and not replayed.is_exact:  # of another question, and a guess here
            why_not = Unstorable.REFUSED
        if why_not is None:
            assert reading.answer is not None
            try:
                why_not = await self._store_answer(plan, ruling, vector, recording, reading.answer, since_seq)
            except Exception as exc:  # whoever asked gets the answer all the same
                self._count_fault(exc)
                why_not = Unstorable.STORE_FAULT
        recording.unstorable = why_not
        if why_not is None:
            self._learned.pop(plan.key.exact, None)
            self.stored += 1
            return True
        self.unstorable[why_not] += 1
        if why_not in _LASTING:
            self._learned[plan.key.exact] = why_not
        return False

    async def _store_answer(
        self, plan: Plan, ruling: Ruling, vector: Vector | None, recording: Recording, answer: Answer, since_seq: int
    ) -> Unstorable | None:
        wanted = len(plan.items) or 1
        granted = self._inserts.take(plan.tenant.id, wanted, plan.route.cache.inserts_per_minute)
        if not granted:
            return Unstorable.INSERT_LIMIT
        if vector is None and ruling.exact_only is None and plan.key.partition is not None:
            vector = await self._embed(plan.ask)
        past = NO_PAST
        if vector is not None and ruling.compares_turns:
            try:
                past = await read_past(plan.ask, ruling, self._embedder)
            except (TooLong, CacheFault):
                vector = None  # who cannot be told from others by the turns before is for equal requests only
        try:
            if plan.items:
                assert isinstance(plan.dialect, BatchDialect)
                answers = plan.dialect.take_apart(answer, [item.ask for item in plan.items])
                entries = [
                    self._entry(plan, ruling, recording, item.ask, item.key, answer, None, NO_PAST)
                    for item, answer in zip(plan.items[:granted], answers, strict=False)
                ]
            else:
                answer = await _counted(plan.ask, answer)
                entries = [self._entry(plan, ruling, recording, plan.ask, plan.key, answer, vector, past)]
        except CacheFault:
            return Unstorable.MALFORMED
        if ruling.min_uses > 1:
            entries = [await self._vouching.vouch(plan, entry) for entry in entries]
        is_purged = False
        try:
            for start in range(0, len(entries), PUTS_AT_ONCE):
                some = entries[start : start + PUTS_AT_ONCE]
                numbers = await asyncio.gather(*(self._store.put(entry, since_seq) for entry in some))
                is_purged = is_purged or None in numbers
        except CacheFault as fault:  # what is stored already of a batch stays: each item is whole
            self._count_fault(fault)
            return Unstorable.STORE_FAULT
        return Unstorable.PURGED if is_purged else Unstorable.INSERT_LIMIT if granted < wanted else None

    def _entry(
        self,
        plan: Plan,
        ruling: Ruling,
        recording: Recording,
        ask: Ask,
        key: Key,
        answer: Answer,
        vector: Vector | None,
        past: Past,
    ) -> Entry:
        replayed = replayed_before(recording.headers)
        return Entry(
            id=os.urandom(10).hex(),
            scope=plan.scope,
            key=key if vector is not None else Key(key.exact, None),
            question=ask.question,
            vector=vector,
            embedder=self._embedder.stamp if vector is not None else None,
            answer=answer,
            created_at=self._clock() - (0.0 if replayed is None else replayed.age_s),
            ttl_s=ruling.ttl_s,
            grace_s=max(ruling.grace_s, ruling.stale_if_error_s),
            user=ask.user,
            writer=plan.tenant.id,
            request_id=recording.request_id,
            backend=recording.backend or "",
            region=recording.region,
            turns=past.texts,
            turns_vector=past.vector,
        )

    async def _embed(self, ask: Ask) -> Vector | None:
        """The vector of a question that was not looked up by meaning (no-cache, a refresh). None: exact tier only."""
        try:
            return await self._embedder.embed(ask.question or "", lambda vector: vector)
        except (TooLong, CacheFault):
            return None

    def _count_fault(self, exc: Exception) -> None:
        """Whether somebody has foreseen it or not."""
        self._faults[type(exc).__name__] += 1
        if not isinstance(exc, CacheFault):
            log.error("storing an answer failed unexpectedly: %s", type(exc).__name__)

    def stats(self) -> dict[str, float]:
        return {
            "learned": len(self._learned),
            "stored": self.stored,
            **{f"unstorable_{reason}": count for reason, count in self.unstorable.items()},
        }


# Answers to the same request will most likely be refused again for these.
_LASTING = frozenset({Unstorable.FINISH, Unstorable.TOOL_CALLS, Unstorable.TOO_LARGE, Unstorable.EMPTY})


async def _counted(ask: Ask, answer: Answer) -> Answer:
    """With its tokens, where the upstream told none: a replay avoids what the fetch was billed. No client sees them."""
    return answer if answer.usage is not None else replace(answer, usage=await estimate_aside(ask, answer.parts))


def _forbids_storing(headers: Mapping[str, str]) -> bool:
    """An upstream's `Cache-Control: no-store` is obeyed. Its `no-cache` and `private` are not: they speak of shared
    HTTP caches, and vendors send them with every answer; who shares is decided by scope here.
    """
    return any("no-store" in value.lower() for name, value in headers.items() if name.lower() == "cache-control")

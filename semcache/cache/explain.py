"""EXPLAIN: what a lookup would find for a request, and what everybody who had a say thinks of each candidate.

The finding is the lookup's own: the same code runs on a store that only looks, so what is told here and what a request
meets cannot drift apart. Beside it stand more candidates than a lookup reads, those below the threshold too, and every
guard's word on each, not only the first veto. Nothing is touched, stored or fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from semcache.cache.bound import Decision, Opinion, group_of
from semcache.cache.context_view import without_secrets
from semcache.cache.conversation import past_similarity
from semcache.cache.guards import GUARDS
from semcache.cache.lookup import Embedder, Index, Lookup
from semcache.cache.policy import Ruling
from semcache.cache.store_log import Home
from semcache.cache.verify import Asked, judge_age, probability_of
from semcache.errors import CacheFault, TooLong
from semcache.types import Ask, Candidate, Entry, Finding, Key, Reason, Scope

SHOWN_CANDIDATES = 10
SHOWN_HOMES = 10


class SizedIndex(Index, Protocol):
    def partition_size(self, partition: bytes) -> int: ...


class Store(Protocol):
    """The store, for one who only looks."""

    async def peek(self, seq: int) -> Entry | None: ...

    async def homes_of(self, question: str, but: bytes, limit: int) -> list[Home]: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored answer, without the answer."""

    entry: str  # its id, as in `Semcache-Entry`; for `purge`
    question: str | None
    freshness: str  # "fresh", "stale" (in its grace), "too old"
    age_s: float
    ttl_left_s: float  # negative: past it
    writer: str  # the tenant whose request brought it
    request: str  # that request's id; empty: not known
    backend: str  # that answered it; empty: not known
    vouchers: tuple[str, ...]  # tenants that fetched the same, where cache.min_uses asks for some


@dataclass(frozen=True, slots=True)
class GuardWord:
    guard: str  # the setting's name
    vetoes: bool | None  # None: this version has no such guard, so it says nothing
    reason: Reason | None = None  # of a veto


@dataclass(frozen=True, slots=True)
class Neighbour:
    similarity: float
    is_near_enough: bool  # the threshold's word
    turns_similarity: float | None  # of the turns before, where they need not be equal
    guards: tuple[GuardWord, ...]
    judged: float | None  # the pair judge's probability that its answer serves; None: no route asks the judge
    weighed: Decision | None  # what the error bound makes of it; None: the threshold decides
    objection: Reason | None  # what verification as a whole says of it, feedback included, were it near enough
    is_looked_at: bool  # among the `match.neighbours` nearest: a lookup reads no others
    stored: Stored

    @property
    def vetoes(self) -> tuple[GuardWord, ...]:
        return tuple(word for word in self.guards if word.vetoes)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Entries with the very same question that this request may not be answered from."""

    scope: Scope
    # Members of the scope that differ; where none does "embedder", "context", or of a personal one "context or user".
    differs: tuple[str, ...]
    entries: int
    newest_age_s: float


@dataclass(frozen=True, slots=True)
class Evidence:
    finding: Finding  # the lookup's own
    exact: Stored | None
    partition_entries: int | None  # with a vector; None: there is no semantic tier for this request
    neighbours: tuple[Neighbour, ...]  # nearest first
    elsewhere: tuple[Elsewhere, ...]  # where there is no match
    items_stored: tuple[bool, ...] = ()  # of a batch
    fault: str | None = None  # a part of the cache failed: nothing may be concluded
    opinion: Opinion | None = None  # what the evidence supports; None: no error bound is set


class Explainer:
    def __init__(
        self, lookup: Lookup, index: SizedIndex, store: Store, embedder: Embedder, clock: Callable[[], float]
    ) -> None:
        """`lookup`: the one that requests meet."""
        self._lookup = lookup.looking_on(_Onlooker(store))
        self._index = index
        self._store = store
        self._embedder = embedder
        self._clock = clock

    async def gather(self, ask: Ask, scope: Scope, key: Key, ruling: Ruling, items: Sequence[Key] = ()) -> Evidence:
        """`items`: the keys of a batch's items, which are looked up one by one and exactly."""
        partition_entries = None if key.partition is None else self._index.partition_size(key.partition)
        try:
            if items:
                return await self._gather_batch(ruling, items)
            finding = await self._lookup.find(ask, key, ruling, {})
            exact = await self._find_exact(key, ruling)
            elsewhere = (
                () if finding.match or ask.question is None else await self._elsewhere(ask.question, scope, key, ruling)
            )
        except CacheFault as fault:
            return Evidence(Finding(None, Reason.CACHE_FAULT), None, partition_entries, (), (), fault=fault.message)
        try:
            neighbours = await self._neighbours(ask, scope, key, ruling)
        except TooLong:  # and so the finding says
            neighbours = ()
        except CacheFault as fault:  # an exact hit needs none of this
            return Evidence(finding, exact, partition_entries, (), elsewhere, fault=fault.message)
        return Evidence(finding, exact, partition_entries, neighbours, elsewhere, opinion=self._opinion(scope, ruling))

    def _opinion(self, scope: Scope, ruling: Ruling) -> Opinion | None:
        limits = ruling.limits
        return None if limits is None else self._lookup.verifier.bound.opinion(group_of(scope), limits.max_error)

    async def _gather_batch(self, ruling: Ruling, items: Sequence[Key]) -> Evidence:
        found = [await self._lookup.find_exact(item, ruling) for item in items]
        missing = next((finding for finding in found if finding.match is None), None)
        oldest = min((finding for finding in found if finding.match), key=_ttl_left_s, default=None)
        return Evidence(
            missing or oldest or found[0], None, None, (), (), tuple(finding.match is not None for finding in found)
        )

    async def _find_exact(self, key: Key, ruling: Ruling) -> Stored | None:
        seq = self._index.find_exact(key.exact)
        entry = None if seq is None else await self._store.peek(seq)
        return None if entry is None else self._describe(entry, ruling)

    async def _neighbours(self, ask: Ask, scope: Scope, key: Key, ruling: Ruling) -> tuple[Neighbour, ...]:
        partition = key.partition
        if partition is None or ask.question is None or ruling.exact_only is not None:
            return ()
        if not self._index.partition_size(partition):
            return ()
        past = await self._lookup.read_past(ask, ruling)
        wanted = max(SHOWN_CANDIDATES, ruling.searched)
        vector, candidates = await self._embedder.embed(
            ask.question, lambda vector: (vector, self._index.search(partition, vector, wanted))
        )
        asked = Asked(ask.question, vector, past, key)
        near = []
        for candidate in candidates:
            entry = await self._store.peek(candidate.seq)
            if entry is not None:
                near.append((candidate, entry))
        return tuple(
            self._judge(asked, place, near, ruling, scope) for place in range(min(len(near), SHOWN_CANDIDATES))
        )

    def _judge(
        self, asked: Asked, place: int, near: Sequence[tuple[Candidate, Entry]], ruling: Ruling, scope: Scope
    ) -> Neighbour:
        candidate, entry = near[place]
        verifier, limits = self._lookup.verifier, ruling.limits
        heard = [each for each in near[: ruling.searched] if each[0].similarity >= ruling.floor]
        weighed = None
        if limits is not None and place < len(heard):
            features = verifier.weigh(asked, candidate, entry, heard)
            weighed = verifier.bound.preview(group_of(scope), features[1:], limits)
        asks_judge = (ruling.judge is not None or limits is not None) and verifier.has_judge
        return Neighbour(
            similarity=candidate.similarity,
            is_near_enough=candidate.similarity >= ruling.threshold,
            turns_similarity=round(past_similarity(asked.past, entry), 6) if ruling.compares_turns else None,
            guards=hear_guards(asked.question, entry.question or "", ruling.guards),
            judged=probability_of(verifier.judge_odds(asked, entry)) if asks_judge else None,
            weighed=weighed,
            objection=verifier.find_objection(asked, candidate, entry, ruling) or (weighed.reason if weighed else None),
            is_looked_at=place < ruling.neighbours,
            stored=self._describe(entry, ruling),
        )

    async def _elsewhere(self, question: str, scope: Scope, key: Key, ruling: Ruling) -> tuple[Elsewhere, ...]:
        now = self._clock()
        # One more than is shown: the request's own partition may be among them.
        homes = await self._store.homes_of(question, key.exact, SHOWN_HOMES + 1)
        others = [home for home in homes if home.partition is None or home.partition != key.partition]
        return tuple(
            Elsewhere(home.scope, self._differences(home, scope, ruling), home.entries, max(0.0, now - home.newest_at))
            for home in others[:SHOWN_HOMES]
        )

    def _differences(self, home: Home, scope: Scope, ruling: Ruling) -> tuple[str, ...]:
        fields = ("tenant", "namespace", "dialect", "endpoint", "model")
        differs = tuple(name for name in fields if getattr(home.scope, name) != getattr(scope, name))
        if not differs and home.embedder not in (None, self._embedder.stamp):
            return ("embedder",)
        return differs or ("context or user" if ruling.personal else "context",)

    def _describe(self, entry: Entry, ruling: Ruling) -> Stored:
        left_s, age_s, too_old = judge_age(entry, ruling, self._clock())
        freshness = "too old" if too_old else "stale" if left_s <= 0 else "fresh"
        question = None if entry.question is None else without_secrets(entry.question)
        return Stored(
            entry.id,
            question,
            freshness,
            round(age_s, 3),
            round(left_s, 3),
            entry.writer,
            entry.request_id,
            entry.backend,
            entry.vouchers,
        )


def hear_guards(asked: str, stored: str, guards: Sequence[str]) -> tuple[GuardWord, ...]:
    """Every guard's word, in the order of the setting."""
    words = []
    for name in guards:
        if name not in GUARDS:
            words.append(GuardWord(name, None))
            continue
        vetoes, reason = GUARDS[name]
        does_veto = bool(vetoes(asked, stored))
        words.append(GuardWord(name, does_veto, reason if does_veto else None))
    return tuple(words)


def _ttl_left_s(finding: Finding) -> float:
    return finding.match.ttl_left_s if finding.match else 0.0


class _Onlooker:
    """The store for a lookup that leaves no trace: nothing comes from memory, for asking it there would be a use."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, seq: int) -> Entry | None:
        return None

    async def read(self, seq: int) -> Entry | None:
        return await self._store.peek(seq)

    def touch(self, seq: int) -> None: ...

"""LOOKUP: the exact tier, then the semantic one: embed, search, and hand what is near to VERIFY (verify.py).

The exact tier is a dict and a memory of recent entries, so most exact hits never leave the event loop. The semantic
tier hands over to an embedding thread once, which also searches. An entry is believed only after the store has read
and checked it; an entry that is gone or expired by then was never there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol, TypeVar

from semcache.cache.conversation import NO_PAST, Past, read_past
from semcache.cache.guards import prepare
from semcache.cache.policy import Ruling
from semcache.cache.verify import Asked, Entries, Verifier
from semcache.errors import TooLong
from semcache.types import Ask, Candidate, Entry, Finding, Key, Match, Reason, Tier, Vector

T = TypeVar("T")


class Embedder(Protocol):
    @property
    def stamp(self) -> str: ...

    async def embed(self, text: str, then: Callable[[Vector], T]) -> T: ...


class Index(Protocol):
    def find_exact(self, exact: bytes) -> int | None: ...

    def search(self, partition: bytes, vector: Vector, k: int) -> list[Candidate]: ...


class Lookup:
    def __init__(self, index: Index, embedder: Embedder, verifier: Verifier) -> None:
        self._index = index
        self._embedder = embedder
        self.verifier = verifier

    def looking_on(self, entries: Entries) -> Lookup:
        """The same lookup on another view of the store, for one who only looks: nothing is learned or explored."""
        return Lookup(self._index, self._embedder, self.verifier.looking_on(entries))

    def find_in_memory(self, key: Key, ruling: Ruling) -> Match | None:
        """The exact tier without waiting. None says nothing about entries that are on disk only."""
        seq = self._index.find_exact(key.exact)
        entry = None if seq is None else self.verifier.in_memory(seq)
        if entry is None:
            return None
        match = self.verifier.match(entry, Tier.EXACT, 1.0, ruling)
        return match if isinstance(match, Match) else None

    async def find(self, ask: Ask, key: Key, ruling: Ruling, phases_ms: dict[str, float]) -> Finding:
        """Look in both tiers, as far as `ruling` allows. Times are added to `phases_ms`.

        Raises CacheFault when a part of the cache fails; nothing may then be concluded about what is stored.
        """
        exact = await self.find_exact(key, ruling)
        if exact.match is not None:
            return exact
        if key.partition is None or ruling.exact_only is not None or ask.question is None:
            return exact._replace(reason=_first(exact.reason, ruling.exact_only or Reason.EXACT_ONLY))
        semantic = await self._find_semantic(ask, key, ruling, phases_ms)
        if semantic.match is None:
            return semantic._replace(reason=_first(exact.reason, semantic.reason or Reason.NO_ENTRY))
        return semantic

    async def find_exact(self, key: Key, ruling: Ruling) -> Finding:
        seq = self._index.find_exact(key.exact)
        entry = None if seq is None else await self.verifier.read(seq)
        if entry is None:
            return Finding(None, Reason.NO_ENTRY)
        match = self.verifier.match(entry, Tier.EXACT, 1.0, ruling)
        return Finding(match) if isinstance(match, Match) else Finding(None, match)

    async def _find_semantic(self, ask: Ask, key: Key, ruling: Ruling, phases_ms: dict[str, float]) -> Finding:
        question, partition = ask.question, key.partition
        assert question is not None and partition is not None
        begun = perf_counter()
        search_ms = 0.0

        def search(vector: Vector) -> tuple[Vector, Sequence[Candidate]]:  # runs on the embedding thread
            nonlocal search_ms
            started = perf_counter()
            candidates = self._index.search(partition, vector, ruling.searched)
            if candidates and candidates[0].similarity >= ruling.floor:
                prepare(question, ruling.guards)
            search_ms = (perf_counter() - started) * 1000
            return vector, candidates

        try:
            vector, candidates = await self._embedder.embed(question, search)
        except TooLong:
            return Finding(None, Reason.TOO_LONG)
        phases_ms["embed"] = round(
            (perf_counter() - begun) * 1000 - search_ms, 3
        )  # the wait for a free session is part of it
        phases_ms["search"] = round(search_ms, 3)
        if not candidates:
            return Finding(None, Reason.NO_ENTRY, vector=vector)
        try:  # nothing is compared with what is not near enough itself, and embedding turns takes longer than all else
            is_near = candidates[0].similarity >= ruling.floor
            past = await self.read_past(ask, ruling) if is_near else NO_PAST
        except TooLong:
            return Finding(None, Reason.TOO_LONG, vector=vector)
        begun = perf_counter()
        finding = await self.verifier.verify(Asked(question, vector, past, key), candidates, ruling)
        phases_ms["verify"] = round((perf_counter() - begun) * 1000, 3)
        return finding._replace(best_similarity=candidates[0].similarity, vector=vector)

    async def read_past(self, ask: Ask, ruling: Ruling) -> Past:
        """The turns before the question, where they need not be equal. Raises TooLong and CacheFault."""
        return await read_past(ask, ruling, self._embedder) if ruling.compares_turns else NO_PAST

    async def standing(self, key: Key) -> Entry | None:
        """The entry that has this exact key now, whatever its age and whoever asks. Raises CacheFault."""
        seq = self._index.find_exact(key.exact)
        return None if seq is None else await self.verifier.read(seq)

    async def still_answers(self, match: Match, key: Key) -> bool:
        """Whether a match that was found a while ago is neither gone nor called wrong since. Raises CacheFault."""
        entry = match.entry
        if self.verifier.is_called_wrong(match, key):
            return False
        standing = await self.standing(entry.key)
        return standing is not None and standing.id == entry.id


def _first(exact: Reason | None, later: Reason) -> Reason:
    """The exact tier's word counts when it found something that was only too old, or not this caller's to have."""
    return exact if exact in (Reason.MAX_AGE, Reason.EXPIRED, Reason.UNPROVEN) else later

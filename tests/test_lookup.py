"""The lookup against a store and an index of its own: what is served, what is too old, and what was never there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from semcache.cache.lookup import Lookup
from semcache.cache.policy import Directives, Ruling, rule, tighten
from semcache.cache.verify import Verifier
from semcache.config import Cache
from semcache.config import Match as MatchSettings
from semcache.errors import EmbedderFault
from semcache.types import Answer, Ask, Candidate, Entry, Form, Key, Reason, Scope, Tier, Traits, Vector
from tests.fakes import Clock, WordsEmbedder

PARCEL = "Where are parcels sorted right after pickup please"
PATH = "/v1/chat/completions"
ASK = Ask("openai", "chat/completions", PATH, "m", PARCEL, b"{}", False, False, None, Traits(), b"")
KEY = Key(b"exact", b"partition")


class Shelf:
    """Entries and their index in one. `on_disk`: not in memory, so they have to be read."""

    def __init__(self, embedder: WordsEmbedder) -> None:
        self._embedder = embedder
        self.entries: dict[int, Entry] = {}
        self.on_disk: set[int] = set()
        self.touched: list[int] = []

    def add(self, question: str, *, age_s: float = 0.0, exact: bytes = b"other", grace_s: float = 30.0) -> Entry:
        seq = len(self.entries) + 1
        self.entries[seq] = Entry(
            id=f"entry-{seq}",
            scope=Scope("t", "", "openai", "chat/completions", "m"),
            key=Key(exact, b"partition"),
            question=question,
            vector=self._embedder.vector(question),
            embedder=self._embedder.stamp,
            answer=Answer("openai", Form.JSON, (b"{}",)),
            created_at=Clock().now - age_s,
            ttl_s=60.0,
            grace_s=grace_s,
            seq=seq,
        )
        return self.entries[seq]

    def find_exact(self, exact: bytes) -> int | None:
        return next((seq for seq, entry in self.entries.items() if entry.key.exact == exact), None)

    def search(self, partition: bytes, vector: Vector, k: int) -> list[Candidate]:
        near = [Candidate(seq, float(entry.vector @ vector)) for seq, entry in self.entries.items()]  # type: ignore[operator]
        return sorted(near, key=lambda candidate: -candidate.similarity)[:k]

    def get(self, seq: int) -> Entry | None:
        return None if seq in self.on_disk else self.entries.get(seq)

    async def read(self, seq: int) -> Entry | None:
        return self.entries.get(seq)

    def touch(self, seq: int) -> None:
        self.touched.append(seq)


@pytest.fixture
def embedder() -> WordsEmbedder:
    return WordsEmbedder()


@pytest.fixture
def shelf(embedder: WordsEmbedder) -> Shelf:
    return Shelf(embedder)


@pytest.fixture
def lookup(shelf: Shelf, embedder: WordsEmbedder) -> Lookup:
    return Lookup(shelf, embedder, Verifier(shelf, Clock()))


def ruling(**asked: object) -> Ruling:
    return tighten(rule(ASK, Cache(ttl=60, grace=30), MatchSettings()), Directives(**asked))  # type: ignore[arg-type]


async def find(lookup: Lookup, ruled: Ruling | None = None) -> tuple[str | None, Reason | None]:
    finding = await lookup.find(ASK, KEY, ruled or ruling(), {})
    return (finding.match.entry.id if finding.match else None), finding.reason


async def test_an_exact_hit_costs_no_embedding(lookup: Lookup, shelf: Shelf, embedder: WordsEmbedder) -> None:
    shelf.add(PARCEL, exact=b"exact")
    finding = await lookup.find(ASK, KEY, ruling(), {})
    assert finding.match is not None
    assert finding.match.tier is Tier.EXACT
    assert embedder.embedded == []
    assert shelf.touched == [1]


async def test_an_entry_on_disk_is_found_by_waiting_only(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL, exact=b"exact")
    shelf.on_disk.add(1)
    assert lookup.find_in_memory(KEY, ruling()) is None
    assert await find(lookup) == ("entry-1", None)


async def test_an_equal_question_stored_while_this_one_was_embedded_is_an_exact_hit(
    lookup: Lookup, shelf: Shelf, embedder: WordsEmbedder
) -> None:
    embedder.gate = asyncio.Event()
    finding = asyncio.create_task(lookup.find(ASK, KEY, ruling(), {}))
    await asyncio.sleep(0)
    shelf.add(PARCEL, exact=b"exact")
    embedder.gate.set()
    match = (await finding).match
    assert match is not None and match.tier is Tier.EXACT


async def test_the_second_candidate_may_pass_where_a_guard_vetoed_the_first(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL + " 7")
    shelf.add("Where are parcels sorted right after pickup")
    assert await find(lookup) == ("entry-2", None)


async def test_the_reason_is_what_stopped_the_nearest(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL + " 7")
    shelf.add("How do I change my password?")
    assert await find(lookup) == (None, Reason.GUARD_NUMBER)


async def test_a_fresh_answer_is_preferred_to_a_nearer_stale_one(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL, age_s=70)
    shelf.add("Where are parcels sorted right after pickup")
    assert await find(lookup) == ("entry-2", None)


async def test_a_stale_answer_is_served_when_nothing_fresh_is_near(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL, age_s=70)
    finding = await lookup.find(ASK, KEY, ruling(), {})
    assert finding.match is not None
    assert finding.match.is_stale


@pytest.mark.parametrize(
    ("age_s", "asked", "reason"),
    [
        (91, {}, Reason.EXPIRED),
        (70, {"max_stale_s": 5.0}, Reason.EXPIRED),
        (70, {"max_stale_s": 500.0}, None),
        (50, {"max_age_s": 40.0}, Reason.MAX_AGE),
        (50, {"ttl_s": 10.0}, Reason.EXPIRED),
        (-60, {}, None),  # from the future: some clock was wrong, so it is stale at once
    ],
)
async def test_age_is_judged_for_operator_and_caller(
    lookup: Lookup, shelf: Shelf, age_s: float, asked: dict[str, float], reason: Reason | None
) -> None:
    shelf.add(PARCEL, exact=b"exact", age_s=age_s)
    match, why = await find(lookup, ruling(exact_only=True, **asked))
    assert (why if match is None else None) is reason


async def test_a_grace_made_shorter_counts_for_what_is_stored_already(lookup: Lookup, shelf: Shelf) -> None:
    shelf.add(PARCEL, exact=b"exact", age_s=70, grace_s=600)
    assert await find(lookup, replace(ruling(), grace_s=0.0, exact_only=Reason.EXACT_ONLY)) == (None, Reason.EXPIRED)


async def test_a_faulty_embedder_is_no_finding(lookup: Lookup, embedder: WordsEmbedder) -> None:
    embedder.fault = RuntimeError("broken")
    with pytest.raises(EmbedderFault):
        await find(lookup)


@pytest.mark.parametrize("personal, found", [("exact", None), ("private", None), ("serve", "entry-1")])
async def test_what_was_stored_of_somebody_before_it_was_told_apart_answers_nobody_by_meaning(
    lookup: Lookup, shelf: Shelf, personal: str, found: str | None
) -> None:
    shelf.add(PARCEL + " ann.miller@mailbox.org")
    settings = MatchSettings(personal=personal, guards=(), threshold=0.7)  # type: ignore[arg-type]
    ruled = rule(ASK, Cache(ttl=60, grace=30), settings)
    assert await find(lookup, ruled) == (found, None if found else Reason.PERSONAL)

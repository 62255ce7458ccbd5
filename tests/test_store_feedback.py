"""Feedback in the store: it is numbered in the log, follows the entry it is about, and leaves with it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache import store_feedback
from semcache.cache.quarantine import MARGIN, Mark, Quarantine
from semcache.cache.store import SqliteStore
from semcache.types import Change, Effect, Entry, Feedback, Said, Selector
from tests.entries import NOW, STAMP, digest, make_entry
from tests.fakes import Clock
from tests.harness import until

OpenStore = Callable[..., Awaitable[SqliteStore]]
PARCEL = make_entry("where is my parcel?")
ASKED = digest("where is my letter?")


@pytest.fixture
async def open_at(tmp_path: Path) -> AsyncIterator[OpenStore]:
    opened: list[SqliteStore] = []

    async def opener(path: Path | str = tmp_path / "s.db") -> SqliteStore:
        store = SqliteStore(path, max_entries=1000, clock=Clock())
        await store.open()
        opened.append(store)
        return store

    yield opener
    for store in opened:
        await store.close()


@pytest.fixture(params=["file", "memory"])
async def store(open_at: OpenStore, tmp_path: Path, request: pytest.FixtureRequest) -> SqliteStore:
    return await open_at(":memory:" if request.param == "memory" else tmp_path / "s.db")


async def put(store: SqliteStore, entry: Entry = PARCEL) -> Entry:
    assert await store.put(entry, store.last_seq) is not None
    return entry


def word(entry: Entry = PARCEL, asked: bytes = ASKED, said: Said = Said.WRONG, similarity: float = 0.93) -> Feedback:
    return Feedback(said, entry.id, entry.key.exact, asked, similarity, "shop", "request", NOW)


def is_refused(store: SqliteStore, asked: bytes = ASKED, similarity: float = 0.93) -> bool:
    return store.quarantine.refuses(PARCEL.key.exact, asked, similarity)


async def test_a_quarantine_holds_for_one_question_until_a_second_one_says_so(store: SqliteStore) -> None:
    await put(store)
    assert await store.take_feedback(word()) is Effect.QUARANTINED
    assert is_refused(store) and not is_refused(store, digest("another"))
    assert await store.take_feedback(word(asked=digest("second"), similarity=0.95)) is Effect.TIGHTENED
    assert is_refused(store, digest("another"), 0.955)
    assert not is_refused(store, digest("another"), 0.95 + MARGIN + 0.001)


async def test_no_word_is_kept_on_an_entry_that_is_gone(store: SqliteStore) -> None:
    for said in Said:
        assert await store.take_feedback(word(said=said)) is Effect.GONE
    assert (await store.recent_feedback(10), store.quarantine.entries) == ([], 0)


async def test_the_successor_of_an_entry_takes_its_quarantine_over(store: SqliteStore) -> None:
    await put(store)
    await store.take_feedback(word())
    await put(store, make_entry("where is my parcel?", created_at=NOW + 5))
    assert is_refused(store)


@pytest.mark.parametrize("leaves", ["purge", "erase", "expire", "remove"])
async def test_a_quarantine_leaves_with_its_entry(store: SqliteStore, leaves: str) -> None:
    await put(store)
    await put(store, make_entry("another"))
    await store.take_feedback(word())
    if leaves == "expire":
        await store.expire(NOW + 10**6)
    elif leaves == "remove":
        await store.remove(range(1, store.last_seq + 1))
    else:
        await store.purge(Selector(text="where is my parcel?"), erase=leaves == "erase")
    assert not is_refused(store)
    assert await store.recent_feedback(10) == []


async def test_an_exact_wrong_removes_that_answer_and_no_later_one(store: SqliteStore) -> None:
    old = await put(store)
    fresh = await put(store, make_entry("where is my parcel?", created_at=NOW + 5))
    assert fresh.id != old.id
    assert await store.take_feedback(word(old, asked=old.key.exact)) is Effect.GONE
    assert await store.take_feedback(word(fresh, asked=fresh.key.exact)) is Effect.REMOVED
    assert (store.stats()["entries"], store.quarantine.entries) == (0, 0)
    (row,) = await store.recent_feedback(10)
    assert (row["verdict"], row["tier"]) == ("wrong", "exact")


async def test_words_are_counted_and_a_pair_is_one_row(store: SqliteStore) -> None:
    await put(store)
    for said in (Said.RIGHT, Said.WRONG, Said.RIGHT):
        await store.take_feedback(word(said=said))
    right, wrong = await store.recent_feedback(10)
    assert (right["times"], wrong["times"]) == (2, 1)
    assert (right["entry_wrong"], right["entry_right"]) == (1, 2)
    assert len(await store.recent_feedback(1)) == 1


async def test_feedback_reaches_another_process_in_the_order_of_the_log(open_at: OpenStore) -> None:
    first, second = await open_at(), await open_at()
    changes: list[Change] = []
    await second.follow(0, changes.extend, STAMP)
    await put(first)
    await first.take_feedback(word())
    await first.take_feedback(word(asked=digest("second")))
    await until(lambda: second.last_seq == first.last_seq)
    assert is_refused(second) and second.quarantine.is_tightened(PARCEL.key.exact)
    await first.remove([1])
    await put(first)
    await until(lambda: second.last_seq == first.last_seq)
    assert not is_refused(second)
    assert [change.seq for change in changes] == list(range(1, first.last_seq + 1))


async def test_numbers_are_never_given_twice(open_at: OpenStore) -> None:
    store = await open_at()
    await put(store)
    await store.take_feedback(word())
    newest = store.last_seq
    await store.close()
    again = await open_at()
    assert again.last_seq == newest and is_refused(again)
    await again.remove([1])
    await again.compact(keep_tombstones=0, keep_purges=0)
    newest = again.last_seq
    await again.close()
    assert (await open_at()).last_seq == newest


async def test_only_words_that_keep_nothing_back_are_forgotten_by_number(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at()
    await put(store)
    await store.take_feedback(word())
    for number in range(5):
        await store.take_feedback(word(asked=digest(str(number)), said=Said.RIGHT))
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        store_feedback.trim(db, keep=2)
        db.commit()
    assert [row["verdict"] for row in await store.recent_feedback(10)] == ["right", "right", "wrong"]


async def test_a_file_of_before_feedback_is_brought_up_to_date(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at()
    await put(store)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        db.executescript("DROP TABLE IF EXISTS evidence; DROP TABLE IF EXISTS shadow; DROP TABLE feedback")
        db.executescript("ALTER TABLE entries DROP COLUMN more; PRAGMA user_version = 1")
    again = await open_at()
    assert again.stats()["entries"] == 1
    assert await again.take_feedback(word()) is Effect.QUARANTINED


KEYS = st.sampled_from([b"a", b"b", b"c"])
MARKS = st.lists(st.builds(Mark, KEYS, KEYS | st.none(), st.floats(0.5, 1.0)), max_size=12)


@given(MARKS)
def test_following_the_marks_twice_is_following_them_once(marks: list[Mark]) -> None:
    once, twice = Quarantine(), Quarantine()
    once.apply(marks)
    twice.apply(marks)
    twice.apply(marks)
    probes = [
        (key, asked, similarity) for key in (b"a", b"b", b"c") for asked in (b"a", b"x") for similarity in (0.6, 0.99)
    ]
    assert [once.refuses(*probe) for probe in probes] == [twice.refuses(*probe) for probe in probes]


@given(st.lists(st.floats(0.5, 1.0), min_size=2, max_size=6))
def test_a_boundary_lies_above_every_question_called_wrong(similarities: list[float]) -> None:
    quarantine = Quarantine()
    quarantine.apply(Mark(b"entry", bytes([number]), each) for number, each in enumerate(similarities))
    assert all(quarantine.refuses(b"entry", b"new", each) for each in similarities)
    assert not quarantine.refuses(b"entry", b"new", max(similarities) + MARGIN + 1e-6)
    assert not quarantine.refuses(b"other", b"new", 0.0)

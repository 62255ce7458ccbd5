"""Evidence in the store: numbered, followed by other processes, kept over a restart, and gone with age or a purge."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.cache import store_evidence
from semcache.cache.store import SqliteStore
from semcache.cache.store_evidence import HOUR_S, KEEP_S, ShadowCount, ShadowKey
from semcache.cache.store_file import MIGRATIONS
from semcache.types import Feedback, How, Observation, Occasion, Said, Selector
from tests.entries import NOW, STAMP, digest, make_entry
from tests.fakes import Clock
from tests.harness import until

OpenStore = Callable[..., Awaitable[SqliteStore]]
PARCEL = make_entry("where is my parcel?")
SEEN = Observation(
    group=b"g" * 16,
    route=1,
    asked=digest("where is my letter?"),
    entry_key=PARCEL.key.exact,
    entry_id=PARCEL.id,
    similarity=0.93,
    features=(0.5, -1.0, 0.25),
    probability=0.75,
    same=False,
    how=How.EMBEDDING,
    occasion=Occasion.SHADOW,
    share=0.5,
    is_proposed=True,
    at=NOW,
)
OTHER = replace(SEEN, asked=digest("a"), entry_key=digest("b"), entry_id="other", probability=None, features=())


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


async def put(store: SqliteStore) -> None:
    assert await store.put(PARCEL, store.last_seq) is not None


def unnumbered(observations: list[Observation]) -> list[Observation]:
    return [replace(observation, seq=0) for observation in observations]


async def test_evidence_comes_back_as_it_was_kept_newest_first(store: SqliteStore) -> None:
    first, second = await store.observe([SEEN, OTHER])
    assert 0 < first.seq < second.seq == store.last_seq
    assert await store.observations(10) == [second, first]
    assert unnumbered(await store.observations(1)) == [OTHER]


async def test_a_large_batch_keeps_its_order(store: SqliteStore) -> None:
    many = [replace(SEEN, similarity=place / 100) for place in range(100)]
    await store.observe(many)
    assert unnumbered(await store.observations(1000)) == many[::-1]


async def test_evidence_and_numbers_outlive_a_restart(open_at: OpenStore) -> None:
    store = await open_at()
    (kept,) = await store.observe([SEEN])
    await store.close()
    again = await open_at()
    assert await again.observations(10) == [kept]
    (next_one,) = await again.observe([OTHER])
    assert next_one.seq > kept.seq


async def test_new_evidence_is_told_here_and_in_another_process(open_at: OpenStore) -> None:
    first, second = await open_at(), await open_at()
    here: list[Observation] = []
    there: list[Observation] = []
    first.on_observations, second.on_observations = here.extend, there.extend
    await second.follow(0, lambda changes: None, STAMP)
    await first.observe([SEEN])
    await first.observe([OTHER])
    await until(lambda: len(here) == len(there) == 2)
    assert here == there
    assert unnumbered(here) == [SEEN, OTHER]


async def test_a_word_of_a_caller_is_evidence_without_features(store: SqliteStore) -> None:
    await put(store)
    told: list[Observation] = []
    store.on_observations = told.extend
    asked = digest("where is my letter?")
    await store.take_feedback(Feedback(Said.RIGHT, PARCEL.id, PARCEL.key.exact, asked, 0.93, "shop", "r", NOW))
    (seen,) = await store.observations(10)
    assert (seen.same, seen.how, seen.occasion, seen.group, seen.features) == (
        True,
        How.FEEDBACK,
        Occasion.FEEDBACK,
        b"",
        (),
    )
    await until(lambda: told == [seen])


async def test_a_word_on_an_exact_hit_says_nothing_about_pairs(store: SqliteStore) -> None:
    await put(store)
    key = PARCEL.key.exact
    await store.take_feedback(Feedback(Said.RIGHT, PARCEL.id, key, key, 1.0, "shop", "r", NOW))
    assert await store.observations(10) == []


@pytest.mark.parametrize(
    "selector", [Selector(text="where is my parcel?"), Selector(entry=PARCEL.id), Selector(tenant="shop")]
)
async def test_a_purge_takes_what_was_learned_of_the_entry(store: SqliteStore, selector: Selector) -> None:
    await put(store)
    asked_it = replace(OTHER, asked=PARCEL.key.exact)  # the same question, held against another entry
    await store.observe([SEEN, OTHER, asked_it])
    assert await store.purge(selector) == 1
    assert unnumbered(await store.observations(10)) == [OTHER]


async def test_a_purge_by_id_or_of_everything_takes_evidence_of_entries_that_are_gone(store: SqliteStore) -> None:
    await store.observe([SEEN, OTHER], [(ShadowKey(1, 0, "s", "guards", 90), ShadowCount(requests=1))])
    await store.purge(Selector(entry="other"))
    assert unnumbered(await store.observations(10)) == [SEEN]
    await store.purge(Selector())
    assert (await store.observations(10), await store.shadow_counts()) == ([], [])


async def test_what_was_learned_of_an_entry_outlives_its_expiry(store: SqliteStore) -> None:
    await put(store)
    await store.observe([SEEN])
    assert await store.expire(NOW + 10 * HOUR_S) == 1
    assert unnumbered(await store.observations(10)) == [SEEN]


async def test_old_evidence_is_forgotten_but_for_the_newest_number(store: SqliteStore) -> None:
    old = replace(SEEN, at=NOW - KEEP_S - 1)
    hour = int(NOW // HOUR_S)
    counts = [(ShadowKey(hour - back, 0, "s", "guards", 90), ShadowCount(requests=1)) for back in (0, 24 * 31)]
    await store.observe([old, OTHER, replace(old, entry_id="newest")], counts)
    last_seq = store.last_seq
    await store.expire(NOW)
    assert [seen.entry_id for seen in await store.observations(10)] == ["newest", "other"]
    assert [key.hour for key, _ in await store.shadow_counts()] == [hour]
    (seen,) = await store.observe([SEEN])
    assert seen.seq == last_seq + 1


def test_too_much_evidence_leaves_oldest_first() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        script = next(script for script in MIGRATIONS if "evidence" in script)
        db.execute("CREATE TABLE entries (seq)")
        db.executescript(script)
        store_evidence.insert(db, [SEEN] * 10, 1)
        assert store_evidence.age(db, NOW, keep_rows=4) == 6
        assert [seen.seq for seen in store_evidence.recent(db, 10)] == [10, 9, 8, 7]


async def test_the_counters_of_two_processes_add_up(open_at: OpenStore) -> None:
    first, second = await open_at(), await open_at()
    key = ShadowKey(7, 0, "s", "guards", 93)
    await first.observe([], [(key, ShadowCount(3, 1, 1, 10, 20, 0.5, 1, 2.0))])
    await second.observe([], [(key, ShadowCount(1, 1, 0, 1, 2, 0.25, 0, 0.5))])
    assert await first.shadow_counts() == [(key, ShadowCount(4, 2, 1, 11, 22, 0.75, 1, 2.5))]


async def test_a_damaged_row_says_nothing(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at()
    await store.observe([SEEN, OTHER])
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as db:
        db.execute("UPDATE evidence SET how = 'guessed', features = x'0102' WHERE seq = 1")
    assert unnumbered(await store.observations(10)) == [OTHER]


async def test_a_file_of_before_evidence_keeps_its_entries(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at()
    await put(store)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(entries)")]
        later = "ALTER TABLE entries DROP COLUMN more;" if "more" in columns else ""
        db.executescript(f"DROP TABLE evidence; DROP TABLE shadow; {later} PRAGMA user_version = 2")
    again = await open_at()
    assert again.stats()["entries"] == 1
    await again.observe([SEEN])
    assert unnumbered(await again.observations(10)) == [SEEN]

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semcache.cache.store import SqliteStore, open_store
from semcache.config import Cache
from semcache.errors import ConfigError, StoreFault
from semcache.types import Change, Entry, Posting, Selector
from tests.entries import NOW, STAMP, belongs, entry_id, make_entry
from tests.fakes import Clock

OpenStore = Callable[..., Awaitable[SqliteStore]]


class View:
    """A follower: what the index would know, and the order in which it heard of it."""

    def __init__(self) -> None:
        self.live: dict[int, Posting] = {}
        self.seqs: list[int] = []
        self.changes: list[Change] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.changes.append(change)
            self.seqs.append(change.seq)
            if change.added:
                self.live[change.added.seq] = change.added
            for seq in change.removed:
                self.live.pop(seq, None)
        self._loop.call_soon_threadsafe(self._news.set)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self._news.clear()
                if not holds():
                    await self._news.wait()

    @property
    def is_ordered(self) -> bool:
        return self.seqs == sorted(set(self.seqs))


@pytest.fixture
async def open_at(tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens stores on one file; closes them at the end."""
    opened: list[SqliteStore] = []

    async def opener(path: Path | str = tmp_path / "s.db", **options: object) -> SqliteStore:
        store = SqliteStore(path, **{"max_entries": 1000, "clock": Clock(), **options})  # type: ignore[arg-type]
        await store.open()
        opened.append(store)
        return store

    yield opener
    for store in opened:
        await store.close()


@pytest.fixture(params=["file", "memory"])
async def store(open_at: OpenStore, tmp_path: Path, request: pytest.FixtureRequest) -> SqliteStore:
    return await open_at(":memory:" if request.param == "memory" else tmp_path / "s.db")


async def put(store: SqliteStore, entry: Entry) -> int:
    seq = await store.put(entry, store.last_seq)
    assert seq is not None
    return seq


# Putting and reading


async def test_what_was_put_is_read_from_memory_and_from_disk(store: SqliteStore) -> None:
    entry = make_entry("where is my parcel?")
    seq = await put(store, entry)
    for found in (store.get(seq), await store.read(seq)):
        assert found is not None
        assert found.seq == seq and found.vector is not None and belongs(found)
        assert replace(found, vector=None) == replace(entry, seq=seq, vector=None)


async def test_a_store_forgets_nothing_when_it_is_opened_again(open_at: OpenStore) -> None:
    first = await open_at()
    seqs = [await put(first, make_entry(f"q{i}")) for i in range(5)]
    identity = first.id
    await first.close()
    again = await open_at()
    assert (again.id, again.last_seq) == (identity, seqs[-1])
    assert again.get(seqs[0]) is None, "memory is empty after a start"
    assert [(await again.read(seq)).question for seq in seqs] == [f"q{i}" for i in range(5)]  # type: ignore[union-attr]
    assert again.get(seqs[0]) is not None, "what was read is hot"


async def test_an_entry_replaces_the_one_with_its_exact_key(store: SqliteStore) -> None:
    view = View()
    await store.follow(0, view.apply, STAMP)
    old = await put(store, make_entry("q"))
    new = await put(store, make_entry("q", created_at=NOW + 1))
    other_scope = await put(store, make_entry("q", tenant="rival"))
    assert set(view.live) == {new, other_scope}
    assert store.get(old) is None and await store.read(old) is None
    assert store.stats()["entries"] == 2


async def test_equal_keys_in_one_commit_leave_the_last(store: SqliteStore) -> None:
    view = View()
    await store.follow(0, view.apply, STAMP)
    seqs = await asyncio.gather(*(store.put(make_entry("q", created_at=NOW + i), 0) for i in range(20)))
    assert set(view.live) == {seqs[-1]}
    assert [await store.read(seq) is not None for seq in seqs if seq] == [False] * 19 + [True]
    assert view.is_ordered


async def test_puts_that_wait_together_share_a_commit(store: SqliteStore) -> None:
    seqs = await asyncio.gather(*(store.put(make_entry(f"q{i}"), 0) for i in range(300)))
    assert len(set(seqs)) == 300
    assert store.stats()["commits"] < 30


async def test_one_entry_that_cannot_be_written_fails_alone(store: SqliteStore) -> None:
    results = await asyncio.gather(
        store.put(make_entry("good"), 0),
        store.put(replace(make_entry("bad"), question="\ud800"), 0),
        store.put(replace(make_entry("timeless"), created_at=float("nan")), 0),
        store.put(make_entry("also good"), 0),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [int, StoreFault, StoreFault, int]
    assert store.stats()["refused_puts"] == 2


async def test_a_full_queue_refuses_at_once(open_at: OpenStore) -> None:
    store = await open_at(max_queue=2)
    gate, entered = threading.Event(), threading.Event()
    view = View()

    def slow(changes: Sequence[Change]) -> None:
        entered.set()
        gate.wait(10)
        view.apply(changes)

    await store.follow(0, slow, STAMP)
    first = asyncio.ensure_future(store.put(make_entry("q1"), 0))
    second = asyncio.ensure_future(store.put(make_entry("q2"), 0))
    await asyncio.to_thread(entered.wait, 10)
    with pytest.raises(StoreFault, match="full"):
        await store.put(make_entry("q3"), 0)
    assert not first.done(), "nothing is acknowledged before the follower has heard of it"
    gate.set()
    assert None not in await asyncio.gather(first, second)
    assert len(view.live) == 2


async def test_a_queue_is_bounded_in_bytes_too(open_at: OpenStore) -> None:
    store = await open_at(max_queue_bytes=10_000)
    with pytest.raises(StoreFault, match="full"):
        await store.put(make_entry("q", padding=20_000), 0)
    await put(store, make_entry("q"))
    assert store.stats()["queue_bytes"] == 0


async def test_a_cancelled_caller_neither_stops_the_others_nor_gets_their_result(store: SqliteStore) -> None:
    seqs = await asyncio.gather(*(put(store, make_entry(f"q{i}")) for i in range(50)))
    tasks = [asyncio.ensure_future(store.read(seq)) for seq in seqs] + [
        asyncio.ensure_future(store.put(make_entry(f"more {i}"), 0)) for i in range(50)
    ]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for seq, found in zip(seqs, results, strict=False):
        assert isinstance(found, asyncio.CancelledError) or (isinstance(found, Entry) and found.seq == seq)
    assert (await put(store, make_entry("after"))) == store.last_seq
    assert store.stats()["queue"] == 0


async def test_hot_memory_stays_within_its_bytes_and_keeps_what_is_used(open_at: OpenStore) -> None:
    store = await open_at(hot_bytes=30_000)
    kept = await put(store, make_entry("kept"))
    for i in range(100):
        await put(store, make_entry(f"q{i}", padding=500))
        assert store.get(kept) is not None
    assert 0 < store.stats()["hot_bytes"] <= 30_000
    too_large = await put(store, make_entry("large", padding=40_000))
    assert store.get(too_large) is None and await store.read(too_large) is not None


# Following


async def test_a_follower_hears_of_everything_once_and_in_order(store: SqliteStore) -> None:
    seqs = [await put(store, make_entry(f"q{i}")) for i in range(10)]
    await store.remove(seqs[:3])
    view = View()
    await store.follow(0, view.apply, STAMP)
    assert set(view.live) == set(seqs[3:])
    more = await put(store, make_entry("more"))
    await store.remove([seqs[3], 999])
    assert set(view.live) == {*seqs[4:], more}
    assert view.is_ordered and view.seqs[-1] == store.last_seq


async def test_a_follower_takes_up_where_it_was(store: SqliteStore) -> None:
    early = View()
    await store.follow(0, early.apply, STAMP)
    seqs = [await put(store, make_entry(f"q{i}")) for i in range(5)]
    at = store.last_seq
    await store.follow(at, lambda changes: None, STAMP)
    await put(store, make_entry("q0", created_at=NOW + 1))
    await store.remove(seqs[1:2])
    await store.purge(Selector(text="q2"))
    late = View()
    late.live.update(early.live)
    await store.follow(at, late.apply, STAMP)
    assert set(late.live) == {seqs[3], seqs[4], at + 1}
    assert late.is_ordered and late.seqs[0] > at


async def test_an_entry_of_another_embedder_is_exact_only(store: SqliteStore) -> None:
    seqs = [await put(store, make_entry(f"q-{stamp}", embedder=stamp)) for stamp in (STAMP, "other-8", None)]
    for catches_up in (True, False):
        view = View()
        await store.follow(0 if catches_up else store.last_seq, view.apply, STAMP)
        if not catches_up:
            seqs = [await put(store, make_entry(f"again-{s}", embedder=s)) for s in (STAMP, "other-8", None)]
        ours, others, exact = (view.live[seq] for seq in seqs)
        assert ours.vector is not None and ours.partition is not None
        assert (others.vector, others.partition) == (None, None) == (exact.vector, exact.partition)
        assert len({ours.exact, others.exact, exact.exact}) == 3


async def test_a_follower_that_fails_does_not_fail_the_writers(store: SqliteStore) -> None:
    def broken(_: Sequence[Change]) -> None:
        raise RuntimeError("no index")

    await store.follow(0, broken, STAMP)
    await put(store, make_entry("q"))
    assert store.stats()["apply_faults"] == 1


async def test_numbers_are_never_used_twice(open_at: OpenStore) -> None:
    store = await open_at()
    seen = [await put(store, make_entry(f"q{i}")) for i in range(3)]
    for _ in range(3):
        await store.remove(seen)
        await store.purge(Selector())
        await store.close()
        store = await open_at()
        fresh = await put(store, make_entry("fresh"))
        assert fresh > max(seen)
        seen.append(fresh)


async def test_a_follower_behind_the_forgotten_tombstones_still_ends_up_right(open_at: OpenStore) -> None:
    store = await open_at()
    view = View()
    await store.follow(0, view.apply, STAMP)
    seqs = [await put(store, make_entry(f"q{i}")) for i in range(10)]
    at, known = store.last_seq, dict(view.live)
    for seq in seqs[:6]:
        await store.remove([seq])
    await store.compact(keep_tombstones=2)
    assert at < store.floor_seq < store.last_seq
    behind = View()
    behind.live.update(known)
    await store.follow(at, behind.apply, STAMP)
    fresh = View()
    await store.follow(0, fresh.apply, STAMP)
    assert set(behind.live) == set(fresh.live) == set(seqs[6:])
    assert behind.is_ordered and fresh.is_ordered
    floor = store.floor_seq
    await store.close()
    assert (await open_at()).floor_seq == floor


# Several processes on one file: each store has its own connections, as a process would


async def test_two_stores_on_one_file_see_each_others_changes_in_one_order(open_at: OpenStore) -> None:
    one, two = await open_at(), await open_at()
    views = View(), View()
    await one.follow(0, views[0].apply, STAMP)
    await two.follow(0, views[1].apply, STAMP)

    async def write(store: SqliteStore, name: str) -> None:
        for i in range(60):
            seq = await put(store, make_entry(f"{name} {i % 20}", created_at=NOW + i))
            if i % 7 == 0:
                await store.remove([seq])

    await asyncio.gather(write(one, "one"), write(two, "two"), write(two, "one"))
    last = max(one.last_seq, two.last_seq)
    for view in views:
        await view.until(lambda view=view: view.seqs[-1] == last)  # type: ignore[misc]
        assert view.is_ordered
    assert views[0].live.keys() == views[1].live.keys()
    for seq in views[0].live:
        for store in (one, two):
            found = await store.read(seq)
            assert found is not None and belongs(found)


async def test_a_purge_in_one_store_beats_a_flight_in_another(open_at: OpenStore) -> None:
    one, two = await open_at(), await open_at()
    since = two.last_seq
    assert await one.purge(Selector(tenant="shop")) == 0
    assert await two.put(make_entry("q"), since) is None, "even before the other store has heard of the purge"
    assert await two.put(make_entry("q", tenant="rival"), since) is not None
    assert await two.put(make_entry("q"), two.last_seq) is not None


async def test_an_entry_removed_in_one_store_leaves_the_memory_of_the_other(open_at: OpenStore) -> None:
    one, two = await open_at(), await open_at()
    view = View()
    seq = await put(one, make_entry("q"))
    await two.follow(0, view.apply, STAMP)
    assert await two.read(seq) is not None and two.get(seq) is not None
    await one.purge(Selector(text="q"))
    await view.until(lambda: seq not in view.live)
    assert two.get(seq) is None and await two.read(seq) is None


async def test_a_locked_database_fails_puts_and_still_answers(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at(busy_s=0.05)
    seq = await put(store, make_entry("q"))
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFault, match="locked"):
            await store.put(make_entry("q2"), 0)
        assert await store.read(seq) is not None
        other.execute("ROLLBACK")
    assert store.stats()["refused_puts"] == 1
    await put(store, make_entry("q2"))


# Leaving


@pytest.mark.parametrize(
    "selector, taken",
    [
        (Selector(), "abcdefg"),
        (Selector(tenant="rival"), "f"),
        (Selector(tenant="shop"), "abcde"),
        (Selector(namespace="docs"), "eg"),
        (Selector(model="gpt-*"), "abefg"),
        (Selector(model="claude-[34]"), "c"),
        (Selector(user="u1"), "b"),
        (Selector(text="  q a\n"), "a"),
        (Selector(text="q"), ""),
        (Selector(text="q\ud800"), ""),
        (Selector(user="u\ud800"), ""),
        (Selector(tenant="shop", model="gpt-*", namespace="faq"), "ab"),
        (Selector(entry=entry_id("q d")), "d"),
        (Selector(tenant="' OR 1=1 --"), ""),
        (Selector(writer="rival"), "fg"),
        (Selector(writer="helper"), "g"),
        (Selector(writer="rival", namespace="docs"), "g"),
        (Selector(writer="r\ud800"), ""),
    ],
    ids=str,
)
async def test_a_purge_takes_what_it_names_and_no_more(store: SqliteStore, selector: Selector, taken: str) -> None:
    entries = {
        "a": make_entry("q a"),
        "b": make_entry("q b", user="u1"),
        "c": make_entry("q c", model="claude-3"),
        "d": make_entry("q d", model="llama", embedder=None),
        "e": make_entry("q e", namespace="docs"),
        "f": make_entry("q f", tenant="rival"),
        # Shared: what one tenant brought, and another vouches for.
        "g": replace(make_entry("q g", tenant="", namespace="docs"), writer="rival", vouchers=("rival", "helper")),
    }
    since = store.last_seq
    seqs = {name: await put(store, entry) for name, entry in entries.items()}
    assert await store.purge(selector, dry_run=True) == len(taken)
    assert [name for name, seq in seqs.items() if await store.read(seq) is None] == []
    assert await store.purge(selector) == len(taken)
    assert [name for name, seq in seqs.items() if await store.read(seq) is None] == list(taken)
    assert [name for name, seq in seqs.items() if store.get(seq) is None] == list(taken)
    # The same rule holds for answers that were asked for before it.
    assert [name for name, entry in entries.items() if await store.put(entry, since) is None] == list(taken)


async def test_a_purge_holds_after_a_restart_and_after_its_record_is_forgotten(open_at: OpenStore) -> None:
    store = await open_at()
    await put(store, make_entry("q"))
    since = store.last_seq
    await store.purge(Selector(text="q"))
    await store.close()
    store = await open_at()
    assert await store.put(make_entry("q"), since) is None
    assert await store.put(make_entry("q2"), since) is not None
    await store.compact(keep_purges=0)
    assert await store.put(make_entry("anything"), since) is None, "what can no longer be known is refused"
    assert await store.put(make_entry("anything"), store.last_seq) is not None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
async def test_no_purge_is_ever_overtaken_by_a_put(seed: int) -> None:
    """Flights begin, purges happen and puts arrive in any order; nothing asked for before a purge is there after it."""
    rng = random.Random(seed)
    store = SqliteStore(":memory:", max_entries=1000, clock=Clock())
    await store.open()
    view = View()
    await store.follow(0, view.apply, STAMP)
    flights: list[tuple[int, Entry]] = []
    acknowledged = 0  # number of purges acknowledged
    begun_after: dict[str, int] = {}  # entry id -> purges acknowledged when its flight began

    async def check() -> None:
        for seq in list(view.live):
            found = await store.read(seq)
            assert found is None or begun_after[found.id] >= acknowledged

    jobs: list[Awaitable[object]] = []
    for i in range(60):
        match rng.randrange(4):
            case 0 | 1:
                entry = make_entry(f"q{i}")
                begun_after[entry.id] = acknowledged
                flights.append((store.last_seq, entry))
            case 2 if flights:
                since, entry = flights.pop(rng.randrange(len(flights)))
                jobs.append(asyncio.ensure_future(store.put(entry, since)))
            case _ if rng.random() < 0.4:
                await store.purge(Selector(tenant="shop"))
                acknowledged += 1
                await check()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*jobs)
    await check()
    await store.close()


async def test_expiry_takes_what_is_past_its_grace_and_nothing_else(store: SqliteStore) -> None:
    fresh = await put(store, make_entry("fresh", ttl_s=100, grace_s=10))
    stale = await put(store, make_entry("stale", created_at=NOW - 105, ttl_s=100, grace_s=10))
    gone = await put(store, make_entry("gone", created_at=NOW - 110, ttl_s=100, grace_s=10))
    assert await store.expire(NOW) == 1
    assert [await store.read(seq) is not None for seq in (fresh, stale, gone)] == [True, True, False]


async def test_an_entry_from_further_in_the_future_than_it_may_live_is_no_longer_kept(store: SqliteStore) -> None:
    tomorrow = await put(store, make_entry("tomorrow", created_at=NOW + 50, ttl_s=100, grace_s=10))
    in_ten_years = await put(store, make_entry("2036", created_at=NOW + 3e8, ttl_s=100, grace_s=10))
    assert await store.expire(NOW, latest=NOW + 4e8) == 0, "while it may be that late"
    assert await store.expire(NOW) == 1
    assert await store.read(tomorrow) is not None and await store.read(in_ten_years) is None


async def test_eviction_takes_the_least_recently_used_and_some_more(open_at: OpenStore) -> None:
    clock = Clock()
    store = await open_at(max_entries=100, clock=clock)
    seqs = [await put(store, make_entry(f"q{i}", created_at=NOW + i)) for i in range(100)]
    assert await store.evict() == 0
    used = seqs[:10]
    for seq in used:
        store.touch(seq)
    clock.advance(1000)
    await store.flush_recency()
    seqs.append(await put(store, make_entry("one too many", created_at=clock.now)))
    assert await store.evict() == 3  # down to 98
    left = [seq for seq in seqs if await store.read(seq) is not None]
    assert left == used + seqs[13:]
    assert store.stats()["entries"] == 98


async def test_recency_survives_a_restart(open_at: OpenStore) -> None:
    clock = Clock()
    store = await open_at(max_entries=2, clock=clock)
    first, second = [await put(store, make_entry(q)) for q in ("first", "second")]
    clock.advance(10)
    store.touch(first)
    await store.close()
    store = await open_at(max_entries=2, clock=clock)
    third = await put(store, make_entry("third", created_at=clock.now))
    assert await store.evict() == 1
    assert [await store.read(seq) is not None for seq in (first, second, third)] == [True, False, True]


async def test_eviction_expiry_purge_and_reads_race_without_an_error(open_at: OpenStore) -> None:
    store = await open_at(max_entries=20, hot_bytes=20_000)
    rng = random.Random(5)

    async def one(i: int) -> None:
        seq = await store.put(make_entry(f"q{rng.randrange(40)}", ttl_s=rng.choice([0.0, 3600.0]), grace_s=0), 0)
        store.touch(rng.randrange(1, 200))
        match rng.randrange(6):
            case 0:
                await store.evict()
            case 1:
                await store.expire(NOW)
            case 2:
                await store.purge(Selector(text=f"q{rng.randrange(40)}"))
            case 3:
                await store.flush_recency()
        found = await store.read(seq or 1)
        assert found is None or (belongs(found) and found.seq == (seq or 1))

    await asyncio.gather(*(one(i) for i in range(200)))
    view = View()
    await store.follow(0, view.apply, STAMP)
    for seq in view.live:
        assert await store.read(seq) is not None
    assert store.stats()["entries"] == len(view.live)


# Erasing


@pytest.mark.parametrize("seed", range(3))
async def test_an_erased_text_is_in_no_file(open_at: OpenStore, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    canary = b"CANARY-of-user-7"
    (tmp_path / "s.db.aside-earlier").write_bytes(canary)
    store = await open_at(max_entries=10_000)
    told = asyncio.Event()

    async def tell() -> None:
        told.set()

    store.on_erase = tell

    def entry(i: int) -> Entry:
        user = "CANARY-of-user-7" if rng.random() < 0.4 else None
        text = user or "somebody else"
        plain = make_entry(f"{text} asks {i % 900}", user=user, created_at=NOW + i, padding=rng.choice([10, 900, 9000]))
        return replace(plain, answer=replace(plain.answer, parts=(text.encode() + b" x" * rng.choice([5, 3000]),)))

    await asyncio.gather(*(store.put(entry(i), 0) for i in range(1200)))
    files = {path for path in tmp_path.iterdir() if canary in path.read_bytes()}
    assert tmp_path / "s.db.aside-earlier" in files and len(files) >= 2
    entries = store.stats()["entries"]
    removed = await store.purge(Selector(user="CANARY-of-user-7"), erase=True)
    assert 0 < removed < entries == removed + store.stats()["entries"]
    assert told.is_set()
    left = [path.name for path in tmp_path.iterdir() if canary in path.read_bytes()]
    assert left == []
    await put(store, make_entry("afterwards"))


async def test_an_erase_by_question_leaves_the_question_nowhere(open_at: OpenStore, tmp_path: Path) -> None:
    store = await open_at()
    question = "CANARY what is my balance?"
    await put(store, make_entry(question))
    assert await store.purge(Selector(text=question), erase=True) == 1
    await store.close()
    assert [path.name for path in tmp_path.iterdir() if b"CANARY" in path.read_bytes()] == []


async def test_other_processes_are_told_of_an_erase_after_the_removals(open_at: OpenStore) -> None:
    one, two = await open_at(), await open_at()
    seq = await put(one, make_entry("q"))
    view, told = View(), asyncio.Event()
    await two.follow(0, view.apply, STAMP)
    seen: list[bool] = []

    async def tell() -> None:
        seen.append(seq in view.live)
        told.set()

    two.on_erase = tell
    await one.purge(Selector(text="q"))
    await view.until(lambda: seq not in view.live)
    assert not told.is_set(), "a plain purge is no erase"
    await one.purge(Selector(), erase=True)
    async with asyncio.timeout(10):
        await told.wait()
    assert seen == [False]


# What is configured


async def test_the_store_is_made_as_configured(tmp_path: Path) -> None:
    store = open_store(Cache(store=f"sqlite:{tmp_path}/deep/er/s.db", max_entries=7))
    await store.open()
    assert (tmp_path / "deep/er/s.db").exists()
    await store.close()
    assert "memory" in repr(open_store(Cache(store="memory:")))
    for wrong in ("redis://host", "sqlite:", "memory", "s.db"):
        with pytest.raises(ConfigError, match="cache.store"):
            open_store(unchecked(wrong))


def unchecked(store: str) -> Cache:
    """As from a config that was made without its validators."""
    return Cache.model_construct(store=store)


def test_a_refusal_does_not_show_the_password_in_an_address() -> None:
    with pytest.raises(ConfigError, match='"redis"') as refused:
        open_store(unchecked("redis://:hunter2@host"))
    assert "hunter2" not in refused.value.message


async def test_a_closed_store_refuses_instead_of_hanging(open_at: OpenStore) -> None:
    store = await open_at()
    await store.close()
    with pytest.raises(StoreFault, match="closed"):
        await store.put(make_entry("q"), 0)

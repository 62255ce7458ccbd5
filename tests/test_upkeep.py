from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from semcache.cache.store import SqliteStore
from semcache.cache.upkeep import DoubtedClock, Upkeep
from semcache.errors import StoreFault
from tests.entries import NOW, make_entry
from tests.fakes import Clock

YEARS_S = 365 * 86400.0


class Diary:
    """A store that writes down what was asked of it, and fails as told."""

    def __init__(self) -> None:
        self.last_seq = 1
        self.asked: list[str] = []
        self.bounds: tuple[float, float | None] = (0, None)
        self.failing: set[str] = set()

    async def flush_recency(self) -> None:
        self._note("flush")

    async def expire(self, now: float, latest: float | None = None) -> int:
        self.bounds = (now, latest)
        self._note("expire")
        return 2

    async def evict(self) -> int:
        self._note("evict")
        return 3

    async def compact(self) -> None:
        self._note("compact")

    def save(self) -> None:
        self._note("snapshot")

    def _note(self, name: str) -> None:
        self.asked.append(name)
        if name in self.failing:
            raise StoreFault("told to fail")


def upkeep_of(diary: Diary, **options: Any) -> Upkeep:
    settings = {"clock": Clock(), "steady": Clock(0.0), "snapshot_every_s": 0.0, **options}
    return Upkeep(diary, diary.save, **settings)


async def test_a_round_does_every_duty_in_order() -> None:
    diary = Diary()
    upkeep = upkeep_of(diary)
    await upkeep.round()
    assert diary.asked == ["flush", "expire", "evict", "compact", "snapshot"]
    assert diary.bounds == (NOW, NOW)
    assert upkeep.stats() == {"rounds": 1, "faults": 0, "expired": 2, "evicted": 3, "clock_jumps": 0}


async def test_who_does_not_lead_only_writes_down_what_was_used() -> None:
    diary = Diary()
    await upkeep_of(diary, leads=False).round()
    assert diary.asked == ["flush"]


@pytest.mark.parametrize("failing", ["flush", "expire", "evict", "compact", "snapshot"])
async def test_a_duty_that_fails_is_counted_and_stops_no_other(failing: str) -> None:
    diary = Diary()
    diary.failing = {failing}
    upkeep = upkeep_of(diary)
    await upkeep.round()
    assert len(diary.asked) == 5 and upkeep.stats()["faults"] == 1
    diary.failing = set()
    await upkeep.round()
    assert upkeep.stats()["faults"] == 1 and upkeep.stats()["rounds"] == 2


async def test_a_snapshot_is_saved_now_and_then_and_only_after_changes() -> None:
    diary, steady = Diary(), Clock(0.0)
    upkeep = upkeep_of(diary, steady=steady, snapshot_every_s=300.0)
    await upkeep.round()
    assert "snapshot" not in diary.asked
    for advance, changed, saved in [(301, True, 1), (301, False, 1), (10, True, 2), (10, True, 2)]:
        steady.advance(advance)
        diary.last_seq += changed
        await upkeep.round()
        assert diary.asked.count("snapshot") == saved


async def test_rounds_go_on_until_it_is_stopped() -> None:
    diary = Diary()
    diary.failing = {"flush", "expire", "evict", "compact", "snapshot"}
    pauses: list[float] = []
    enough = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 5:
            enough.set()
            await asyncio.Event().wait()

    upkeep = upkeep_of(diary, interval_s=7.0, pause=pause)
    upkeep.start()
    await enough.wait()
    await upkeep.stop()
    await upkeep.stop()
    assert upkeep.stats()["rounds"] == 5 and pauses == [7.0] * 6


# The clock


class Clocks:
    """A wall clock and a steady one; `pass_` moves both, `jump` only the wall."""

    def __init__(self) -> None:
        self.wall, self.steady = Clock(), Clock(1000.0)
        self.doubted = DoubtedClock(self.wall, self.steady)

    def pass_(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.steady.advance(seconds)

    def jump(self, seconds: float) -> None:
        self.wall.advance(seconds)


def test_a_clock_that_just_runs_is_believed() -> None:
    clocks = Clocks()
    for _ in range(100):
        clocks.pass_(3600)
        clocks.jump(1.5)  # NTP at work
        assert clocks.doubted.bounds() == (clocks.wall.now, clocks.wall.now)
    assert clocks.doubted.jumps == 0


@pytest.mark.parametrize("jump_s", [10 * YEARS_S, -86400.0])
def test_a_jump_is_doubted_for_an_hour_and_then_believed(jump_s: float) -> None:
    clocks = Clocks()
    clocks.jump(jump_s)
    for _ in range(6):
        clocks.pass_(599)
        expected = sorted([clocks.wall.now, clocks.wall.now - jump_s])
        assert clocks.doubted.bounds() == pytest.approx(tuple(expected))
    clocks.pass_(700)
    assert clocks.doubted.bounds() == (clocks.wall.now, clocks.wall.now)
    assert clocks.doubted.jumps == 1


def test_a_jump_that_is_taken_back_leaves_nothing_behind() -> None:
    clocks = Clocks()
    clocks.jump(10 * YEARS_S)
    clocks.doubted.bounds()
    clocks.pass_(60)
    clocks.jump(-10 * YEARS_S)
    assert clocks.doubted.bounds() == (clocks.wall.now, clocks.wall.now)


async def test_ten_years_forth_and_back_expire_nothing_fresh_and_keep_nothing_for_ever(tmp_path: Path) -> None:
    """The whole of it, on a real store."""
    clocks = Clocks()
    store = SqliteStore(tmp_path / "s.db", max_entries=100, clock=clocks.wall)
    await store.open()
    upkeep = Upkeep(store, lambda: None, clock=clocks.wall, steady=clocks.steady)

    async def put(question: str) -> int | None:
        return await store.put(make_entry(question, created_at=clocks.wall.now, ttl_s=7200, grace_s=0), store.last_seq)

    before = await put("before")
    clocks.jump(10 * YEARS_S)
    await upkeep.round()
    during = await put("during")
    clocks.pass_(600)
    await upkeep.round()
    clocks.jump(-10 * YEARS_S - 86400)
    await upkeep.round()
    after = await put("after")

    async def left() -> list[bool]:
        return [await store.read(seq) is not None for seq in (before, during, after) if seq]

    assert await left() == [True, False, True], "on neither clock it is ten years later now"
    for _ in range(5):
        clocks.pass_(600)
        await upkeep.round()
    assert await left() == [True, False, True], "both are within their two hours"
    for _ in range(15):
        clocks.pass_(600)
        await upkeep.round()
    assert await left() == [False, False, False], "nothing is immortal"
    await store.close()

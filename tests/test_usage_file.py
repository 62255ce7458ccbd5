"""Usage on disk: sums that are never lost, whatever is folded or fails, whoever writes, and what reports say."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.usage_day import START, Day
from semcache import config
from semcache.access.quota import Quotas
from semcache.errors import ClientError, StartError, StoreFault
from semcache.types import Outcome, Usage, Verdict
from semcache.usage import Fetched, Ledger, PriceList, Purpose, Source, Spent
from semcache.usage.flushing import Flushing
from semcache.usage.ledger import Facets
from semcache.usage.report import Query, read_query, read_report
from semcache.usage.rollups import FIGURES, UsageFile, usage_path
from tests.fakes import Clock

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0


@contextmanager
def opened(path: Path, keep_minutes_s: float = 2 * DAY, keep_hours_s: float = 90 * DAY) -> Iterator[UsageFile]:
    file = UsageFile(path, keep_minutes_s, keep_hours_s)
    file.open()
    try:
        yield file
    finally:
        file.close()


def facets(tenant: str = "shop", source: Source = Source.FETCHED, purpose: Purpose = Purpose.REQUEST) -> Facets:
    return Facets(tenant, "k1", "m", "gpu-1", "eu", source, purpose)


def sums(path: Path) -> dict[str, tuple[int, ...]]:
    """By tenant, over all times."""
    figures = ", ".join(f"SUM({name})" for name in FIGURES)
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(f"SELECT tenant, {figures} FROM spans JOIN facets ON id = facets GROUP BY tenant")
        return {tenant: tuple(rest) for tenant, *rest in found}


def spans(path: Path) -> Counter[int]:
    with closing(sqlite3.connect(path)) as database:
        return Counter(seconds for (seconds,) in database.execute("SELECT seconds FROM spans"))


# Rows and folding


def test_rows_of_the_same_minute_add_up_whoever_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with opened(path) as one, opened(path) as two:
        for file in (one, two, one):
            file.write([(int(NOW), {facets(): Spent(1, 10, 5, 20, 30, 1, 0)})], [], [])
    assert sums(path) == {"shop": (3, 30, 15, 60, 90, 3, 0)}
    assert spans(path) == {60: 1}


writes = st.tuples(
    st.integers(0, 200 * 24 * 60), st.sampled_from(["a", "b"]), st.integers(0, 1000), st.integers(0, 10**12)
)
folds = st.integers(0, 220 * 24 * 60)


@settings(max_examples=40, deadline=None)
@given(st.lists(writes | folds, max_size=40))
def test_no_sum_is_ever_lost_by_folding(steps: list[Any]) -> None:
    told: dict[str, list[int]] = {}
    with TemporaryDirectory() as folder, opened(Path(folder) / "u") as file:
        for step in steps:
            if isinstance(step, int):
                file.fold(NOW + step * 60)
                continue
            minute, tenant, tokens, nano = step
            file.write([(int(NOW) + minute * 60, {facets(tenant): Spent(1, tokens, 0, 0, nano)})], [], [])
            so_far = told.setdefault(tenant, [0, 0, 0])
            told[tenant] = [so_far[0] + 1, so_far[1] + tokens, so_far[2] + nano]
        found = {tenant: [row[0], row[1], row[4]] for tenant, row in sums(file.path).items()}
    assert found == told


def test_minutes_become_hours_and_hours_days_once_they_are_old(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with opened(path) as file:
        for minute in range(120):
            file.write([(int(NOW) + 60 * minute, {facets(): Spent(1)})], [], [])
        file.fold(NOW + 2 * DAY)
        assert spans(path) == {60: 120}  # the first hour is not over two days ago
        file.fold(NOW + 2 * DAY + HOUR)
        assert spans(path) == {60: 60, 3600: 1}
        file.fold(NOW + 95 * DAY)
        assert spans(path) == {86400: 1}


def test_a_minute_that_arrives_late_joins_its_hour(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with opened(path) as file:
        for _ in range(2):
            file.write([(int(NOW), {facets(): Spent(1)})], [], [])
            file.fold(NOW + 4 * DAY)
    assert spans(path) == {3600: 1} and sums(path)["shop"][0] == 2


# Files that are none


def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "u"
    path.write_bytes(b"this is no database, but it may be somebody's" * 100)
    with opened(path) as file:
        file.write([(int(NOW), {facets(): Spent(1)})], [], [])
    assert sums(path)["shop"][0] == 1
    assert len(list(tmp_path.glob("u.aside-*"))) == 1


async def test_a_file_of_which_only_the_inside_is_damaged_does_not_stop_a_start_either(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with opened(path) as file:
        file.write([], [((f"tenant t{number}", "day", int(NOW)), (1, 1, 1)) for number in range(2000)], [])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\0" * (len(whole) - 4096))
    flushing = Flushing(UsageFile(path, DAY, DAY), a_ledger(Clock(NOW)), Quotas(), 3600)
    await flushing.start()
    await flushing.stop()
    assert len(list(tmp_path.glob("u.aside-*"))) == 1


def test_a_database_of_something_else_is_left_alone_and_the_start_refused(tmp_path: Path) -> None:
    path = tmp_path / "u"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE precious (x)")
    with pytest.raises(StartError, match=r"usage\.path"):
        UsageFile(path, DAY, DAY).open()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"usage: .*file/u: .*; see usage\.path"):
        UsageFile(tmp_path / "file" / "u", DAY, DAY).open()


def test_only_its_owner_can_read_who_asked_for_how_much(tmp_path: Path) -> None:
    with opened(tmp_path / "u"):
        assert (tmp_path / "u").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "usage, store, expected",
    [
        ("auto", "sqlite:./var/semcache.db", Path("var/semcache.db.usage")),
        ("auto", "memory:", None),
        ("off", "sqlite:./var/semcache.db", None),
        ("/data/usage.db", "memory:", Path("/data/usage.db")),
    ],
)
def test_the_file_lies_beside_the_store_unless_it_is_said_otherwise(
    usage: str, store: str, expected: Path | None
) -> None:
    assert usage_path(config.build({"usage": {"path": usage}, "cache": {"store": store}})) == expected


# Written now and then


def a_ledger(clock: Clock) -> Ledger:
    return Ledger(PriceList(prices=()), bills_by_fetch=True, clock=clock)


def fetched(tokens: int = 1) -> Fetched:
    return Fetched("shop", "k1", "m", "gpu-1", "eu", Usage(tokens, 0))


async def test_what_is_counted_is_written_at_the_stop_at_the_latest(tmp_path: Path) -> None:
    clock = Clock(NOW)
    ledger = a_ledger(clock)
    flushing = Flushing(UsageFile(tmp_path / "u", DAY, DAY), ledger, Quotas(clock), 3600, clock)
    await flushing.start()
    ledger.fetched(fetched(7))
    await flushing.stop()
    assert sums(tmp_path / "u") == {"shop": (1, 7, 0, 0, 0, 0, 1)}


async def test_while_the_file_cannot_be_written_nothing_is_lost(tmp_path: Path) -> None:
    clock = Clock(NOW)
    ledger, quotas = a_ledger(clock), Quotas(clock)
    limits = [("tenant shop", config.Limits(requests_per_day=100))]

    class Full(UsageFile):
        is_full = True

        def write(self, *args: Any) -> Any:
            if self.is_full:
                raise sqlite3.OperationalError("database or disk is full")
            return super().write(*args)

    file = Full(tmp_path / "u", DAY, DAY)
    flushing = Flushing(file, ledger, quotas, 3600, clock)
    await flushing.start()
    for _ in range(3):
        ledger.fetched(fetched())
        quotas.reserve(limits, 0, clock())
        await flushing.flush()
        clock.advance(60)
    assert flushing.stats()["faults"] == 3
    file.is_full = False
    await flushing.stop()
    assert sums(tmp_path / "u")["shop"][:2] == (3, 3)
    with opened(tmp_path / "u") as again:
        assert {place[1]: counts[0] for place, counts in again.quotas(clock()).items() if place[1] != "minute"} == {
            "day": 3,
            "month": 3,
        }


async def test_a_file_that_was_deleted_is_begun_again(tmp_path: Path) -> None:
    clock = Clock(NOW)
    ledger = a_ledger(clock)
    flushing = Flushing(UsageFile(tmp_path / "u", DAY, DAY), ledger, Quotas(clock), 3600, clock)
    await flushing.start()
    for file in tmp_path.iterdir():
        file.unlink()
    ledger.fetched(fetched())
    await flushing.stop()
    assert sums(tmp_path / "u")["shop"][0] == 1


async def test_limits_outlive_a_restart_and_hold_for_all_workers(tmp_path: Path) -> None:
    clock = Clock(NOW)
    limits = [("tenant shop", config.Limits(usd_per_month=1, requests_per_day=3))]

    async def a_worker() -> tuple[Quotas, Flushing]:
        quotas = Quotas(clock)
        flushing = Flushing(UsageFile(tmp_path / "u", DAY, DAY), a_ledger(clock), quotas, 3600, clock)
        await flushing.start()
        return quotas, flushing

    (one, first), (two, second) = await a_worker(), await a_worker()
    for quotas, flushing in ((one, first), (two, second), (one, first)):
        quotas.reserve(limits, 0, clock())
        await flushing.flush()
    await second.flush()
    with pytest.raises(ClientError, match="3 requests a day"):
        two.reserve(limits, 0, clock())
    await first.stop()
    await second.stop()
    again, third = await a_worker()
    with pytest.raises(ClientError, match="3 requests a day"):
        again.reserve(limits, 0, clock())
    await third.stop()


async def test_without_a_file_limits_hold_in_this_process_and_nothing_piles_up() -> None:
    clock = Clock(NOW)
    ledger, quotas = a_ledger(clock), Quotas(clock)
    limits = [("tenant shop", config.Limits(requests_per_day=2))]
    flushing = Flushing(None, ledger, quotas, 3600, clock)
    await flushing.start()
    for _ in range(2):
        ledger.fetched(fetched())
        quotas.reserve(limits, 0, clock())
        await flushing.flush()
    with pytest.raises(ClientError):
        quotas.reserve(limits, 0, clock())
    await flushing.stop()
    assert ledger.take() == []


# Reports


async def test_a_day_adds_up_however_it_is_told_apart(tmp_path: Path) -> None:
    day = Day(tmp_path / "u")
    await day.play()
    whole = await asyncio.to_thread(read_report, tmp_path / "u", Query())
    stats = day.ledger.stats()
    total = whole["total"]
    assert len(whole["rows"]) == 1 and whole["rows"][0]["day"] == "2026-11-20"
    assert total["billed_usd"] == day.billed_nano / 1e9 == stats["billed_usd"]
    for name in ("avoided_usd", "own_usd", "saved_usd"):
        assert total[name] == stats[name]
    assert total["own_usd"] > 0 < total["estimated"] and 0.2 < total["hits"] / total["requests"] < 0.8
    for by in (("hour", "tenant"), ("minute",), ("tenant", "key", "model"), ("backend", "region"), ("purpose",)):
        report = read_report(tmp_path / "u", Query(by))
        assert report["total"] == total
        for name in ("requests", "fetches", "billed_tokens", "avoided_tokens"):
            assert sum(row[name] for row in report["rows"]) == total[name]


async def test_a_report_is_of_whom_and_when_it_was_asked_for(tmp_path: Path) -> None:
    await Day(tmp_path / "u").play()
    query = read_query(
        {
            "by": "hour,model",
            "tenant": "bank",
            "model": "gpt*",
            "since": "2026-11-20T09:00",
            "until": "2026-11-20T11:00",
        },
        START,
    )
    rows = read_report(tmp_path / "u", query)["rows"]
    assert [(row["hour"], row["model"]) for row in rows] == [
        ("2026-11-20 09:00", "gpt-4o-mini"),
        ("2026-11-20 10:00", "gpt-4o-mini"),
    ]


def test_times_may_be_told_from_now_back() -> None:
    assert read_query({"since": "7d", "until": "90m"}, NOW) == Query(since=NOW - 7 * DAY, until=NOW - 1.5 * HOUR)


@pytest.mark.parametrize(
    "asked, complaint",
    [
        ({"by": "weekday"}, "there are minute, hour, day, tenant"),
        ({"by": "hour,day"}, "one of minute, hour, day"),
        ({"since": "yesterday"}, "write 7d, 24h"),
        ({"until": "2026-13-01"}, "is no time"),
        ({"tenants": "x"}, "tenants: there are by"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_what_does(asked: dict[str, str], complaint: str) -> None:
    with pytest.raises(ClientError, match=complaint):
        read_query(asked, NOW)


def test_a_file_that_cannot_be_read_is_a_clear_fault(tmp_path: Path) -> None:
    (tmp_path / "u").write_bytes(b"nothing" * 1000)
    with pytest.raises(StoreFault, match="cannot be read"):
        read_report(tmp_path / "u", Query())


async def test_an_answered_request_is_counted_as_one_and_its_fetch_is_another_figure(tmp_path: Path) -> None:
    clock = Clock(NOW)
    ledger = a_ledger(clock)
    flushing = Flushing(UsageFile(tmp_path / "u", DAY, DAY), ledger, Quotas(clock), 3600, clock)
    await flushing.start()
    for verdict in (Verdict.MISS, Verdict.COALESCED, Verdict.HIT, Verdict.REFUSED):
        ledger.observe(Outcome("r", 0.0, verdict=verdict, status=200, model="m", usage=Usage(10, 5)))
    ledger.fetched(fetched(15))
    ledger.fetched(fetched(15)._replace(purpose=Purpose.REFRESH))
    await flushing.stop()
    total = read_report(tmp_path / "u", Query())["total"]
    assert (total["requests"], total["hits"], total["fetches"]) == (3, 2, 2)
    assert (total["billed_tokens"], total["replayed_tokens"], total["shared_tokens"]) == (30, 15, 15)

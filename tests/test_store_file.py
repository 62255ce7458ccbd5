"""Opening: what is taken, what is moved aside and kept, and what is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.cache.store import SqliteStore
from semcache.errors import StartError, StoreFault
from semcache.types import Selector
from tests.entries import STAMP, belongs, make_entry
from tests.fakes import Clock


def store_at(path: Path, **options: object) -> SqliteStore:
    return SqliteStore(path, **{"max_entries": 1000, "clock": Clock(), **options})  # type: ignore[arg-type]


async def fill(path: Path, entries: int = 3) -> str:
    store = store_at(path)
    await store.open()
    for i in range(entries):
        await store.put(make_entry(f"q{i}"), 0)
    identity = store.id
    await store.close()
    return identity


def aside(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if ".aside-" in file.name)


@pytest.mark.parametrize(
    "content",
    [b"", b"SQLite format 3\x00" + b"\x07" * 5000, b"not a database at all " * 500, b"\x80\x04\x95pickle"],
    ids=["zero bytes", "damaged header", "another file", "short"],
)
async def test_a_file_that_is_no_database_is_kept_aside_and_an_empty_one_started(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)
    store = store_at(path)
    await store.open()
    assert await store.put(make_entry("q"), 0) == 1
    assert store.stats()["moved_aside"] == 1
    assert "moved to" in caplog.text
    await store.close()
    assert [file.read_bytes() for file in aside(path)] == [content]
    again = store_at(path)
    await again.open()
    assert again.stats()["moved_aside"] == 0 and again.last_seq == 1
    await again.close()


async def test_another_programs_database_is_kept_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.execute("INSERT INTO recipes VALUES ('soup')")
    await fill(path)
    (kept,) = aside(path)
    with closing(sqlite3.connect(kept)) as other:
        assert other.execute("SELECT name FROM recipes").fetchone() == ("soup",)


async def test_a_damaged_page_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first = await fill(path, 200)
    with path.open("r+b") as file:
        file.seek(8192 * 5)
        file.write(b"\xff" * 8192)
    assert await fill(path) != first
    assert len(aside(path)) == 1


async def test_a_lost_key_means_a_new_start_and_no_unverified_answer(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first = await fill(path)
    (tmp_path / "s.db.key").unlink()
    assert await fill(path) != first
    assert len(aside(path)) == 1


async def test_the_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    await fill(tmp_path / "s.db")
    assert stat.S_IMODE((tmp_path / "s.db.key").stat().st_mode) == 0o600
    store = store_at(tmp_path / "t.db", key_path=tmp_path / "elsewhere.key")
    await store.open()
    await store.close()
    assert len((tmp_path / "elsewhere.key").read_bytes()) == 32
    assert not (tmp_path / "t.db.key").exists()


async def test_what_was_asked_and_answered_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "made" / "for us" / "s.db"
    before = os.umask(0)
    try:
        store = store_at(path)
        await store.open()
        await store.put(make_entry("q"), 0)
        found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir() if file.stat().st_size}
        await store.close()
    finally:
        os.umask(before)
    assert {"s.db", "s.db-wal", "s.db-shm", "s.db.key"} <= found.keys()
    assert set(found.values()) == {0o600}
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]


async def test_a_log_without_its_database_is_not_replayed_into_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.with_name("s.db-wal").write_bytes(b"left over")
    await fill(path)
    assert [file.name.endswith("-wal") for file in aside(path)] == [True]


async def test_entries_of_before_their_origin_was_kept_are_read_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("DROP TABLE IF EXISTS evidence; DROP TABLE IF EXISTS shadow")
        db.execute("ALTER TABLE entries DROP COLUMN more")  # rows without it are sealed as schema 2 sealed them
        db.execute("PRAGMA user_version = 2")
    store = store_at(path)
    await store.open()
    old = [await store.read(seq) for seq in (1, 2, 3)]
    assert all(entry is not None and belongs(entry) and entry.vouchers == () for entry in old)
    known = replace(make_entry("q0"), vouchers=("shop", "rival"), request_id="r-1", backend="gpu")
    seq = await store.put(known, store.last_seq)
    assert seq is not None
    fresh = await store.peek(seq)
    assert fresh is not None
    assert (fresh.vouchers, fresh.request_id, fresh.backend) == (("shop", "rival"), "r-1", "gpu")
    assert await store.read(1) is None and store.stats()["damaged"] == 0
    await store.close()


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StartError, match="newer semcache"):
        await store_at(path).open()
    assert path.read_bytes() == before and aside(path) == []


async def test_a_start_that_died_before_the_first_table_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {0x53454D43}")
    await fill(path)
    assert aside(path) == []


@pytest.mark.parametrize("name", ["", "file/s.db"], ids=["a folder", "a folder that is a file"])
async def test_a_place_that_cannot_hold_a_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError) as refused:
        await store_at(tmp_path / name).open()
    assert str(tmp_path) in refused.value.message and "\n" not in refused.value.message


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in the folder can be written, by root neither."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.iterdir())}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


async def test_a_read_only_folder_still_answers() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await fill(folder / "s.db")
        with read_only(folder):
            store = store_at(folder / "s.db")
            await store.open()
            assert store.stats()["read_only"] == 1
            seen: list[int] = []
            await store.follow(0, lambda changes: seen.extend(change.seq for change in changes), STAMP)
            assert seen == [1, 2, 3]
            found = await store.read(2)
            assert found is not None and belongs(found)
            store.touch(2)
            for refused in (store.put(make_entry("q"), 0), store.purge(Selector()), store.remove([1])):
                with pytest.raises(StoreFault, match="read-only"):
                    await refused
            assert store.stats()["refused_puts"] == 1
            await store.close()
        assert await fill(folder / "s.db")  # whole, and writable again
        assert aside(folder / "s.db") == []


async def test_a_file_taken_away_while_open_serves_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = store_at(path)
    await store.open()
    seq = await store.put(make_entry("q"), 0)
    assert seq is not None and store.get(seq) is not None
    path.unlink()
    with pytest.raises(StoreFault, match="deleted or replaced"):
        await store.put(make_entry("q2"), 0)
    assert store.get(seq) is None, "a purge of the new file would not reach the old one's answers"
    with pytest.raises(StoreFault):
        await store.read(seq)
    assert store.stats()["lost"] == 1
    await store.close()

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from semcache.cache.store import SqliteStore
from semcache.cache.store_log import rows_after
from semcache.errors import ClientError
from semcache.types import Answer, Entry, Form, Usage
from tests.entries import NOW, STAMP, make_entry
from tests.fakes import Clock


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
    pair = tuple(SqliteStore(tmp_path / name, max_entries=1000, clock=Clock()) for name in ("a.db", "b.db"))
    for store in pair:
        await store.open()
    yield pair[0], pair[1]
    for store in pair:
        await store.close()


async def exported(store: SqliteStore) -> list[bytes]:
    return [line async for line in store.export()]


async def contents(store: SqliteStore) -> dict[str, Entry]:
    """By id, with the vector as bytes so that entries can be compared."""
    seqs: list[int] = []
    await store.follow(0, lambda changes: seqs.extend(c.added.seq for c in changes if c.added), STAMP)
    found = [entry for seq in seqs if (entry := await store.read(seq))]

    def as_bytes(vector: Any) -> Any:
        return None if vector is None else vector.tobytes()

    def comparable(entry: Entry) -> Entry:
        vectors: dict[str, Any] = {"vector": entry.vector, "turns_vector": entry.turns_vector}
        return replace(entry, seq=0, **{name: as_bytes(each) for name, each in vectors.items()})

    return {entry.id: comparable(entry) for entry in found}


ENTRIES = [
    make_entry("where is my parcel?", user="u1"),
    make_entry("¿dónde está mi paquete? 📦", tenant="rival"),
    make_entry("exact only", embedder=None),
    replace(make_entry("no question"), question=None),
    replace(
        make_entry("streamed"),
        answer=Answer("openai", Form.STREAM, (b'{"delta":"a"}', b'{"delta":"b"}'), (0, 40), Usage(1, 2)),
    ),
    replace(make_entry("estimated"), answer=Answer("openai", Form.JSON, (b"{}",), (), Usage(9, 2, 8, True))),
    replace(make_entry("shared"), writer="shop", vouchers=("shop", "rival"), request_id="r-1", backend="gpu-1"),
    replace(make_entry("and there?"), turns=("In Rome?", "Yes."), turns_vector=np.array([0.6, 0.8], np.float32)),
    replace(make_entry("not utf-8"), answer=Answer("openai", Form.JSON, (b"\xff\xfe",))),
]


async def test_an_export_imported_elsewhere_is_the_same_store(stores: tuple[SqliteStore, SqliteStore]) -> None:
    one, two = stores
    for entry in ENTRIES:
        await one.put(entry, 0)
    lines = await exported(one)
    assert json.loads(lines[0])["semcache_export"] == 1
    assert len(lines) == 1 + len(ENTRIES) and all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    vector = np.frombuffer(base64.b64decode(json.loads(lines[1])["vector"]), "<f4")
    assert np.array_equal(vector, ENTRIES[0].vector)  # type: ignore[arg-type]
    assert await two.import_lines(lines) == len(ENTRIES)
    assert await contents(two) == await contents(one)
    assert len(await contents(two)) == len(ENTRIES)


async def test_importing_twice_keeps_what_is_newer(stores: tuple[SqliteStore, SqliteStore]) -> None:
    one, two = stores
    await one.put(make_entry("q1"), 0)
    await one.put(make_entry("q2", created_at=NOW + 5), 0)
    lines = await exported(one)
    await two.put(make_entry("q1", created_at=NOW + 1), 0)
    await two.put(make_entry("q2", created_at=NOW + 1), 0)
    assert await two.import_lines(lines) == 1
    assert await two.import_lines(lines) == 0
    assert {e.question: e.created_at for e in (await contents(two)).values()} == {"q1": NOW + 1, "q2": NOW + 5}


async def test_many_entries_come_through_in_both_directions(stores: tuple[SqliteStore, SqliteStore]) -> None:
    one, two = stores
    await asyncio.gather(*(one.put(make_entry(f"q{i}"), 0) for i in range(700)))
    lines = await exported(one)
    assert len(lines) == 701

    async def stream() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    assert await two.import_lines(stream()) == 700


async def test_a_read_takes_large_entries_a_few_at_a_time(
    stores: tuple[SqliteStore, SqliteStore], tmp_path: Path
) -> None:
    store = stores[0]
    for number in range(24):
        await store.put(make_entry(f"q{number}", padding=2**20), 0)
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        one_read = rows_after(db, 0, 256, 8 * 2**20)
        assert [row[0] for row in one_read] == list(range(1, 9))
        assert [row[0] for row in rows_after(db, 8, 4, 8 * 2**20)] == [9, 10, 11, 12]
        assert [row[0] for row in rows_after(db, 20, 256, 1)] == [21]
        assert rows_after(db, 24, 256, 1) == []
    assert len(await exported(store)) == 25


async def test_a_row_damaged_past_recognition_is_left_out_of_an_export(
    stores: tuple[SqliteStore, SqliteStore], tmp_path: Path
) -> None:
    for number in range(3):
        await stores[0].put(make_entry(f"q{number}"), 0)
    with closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute("UPDATE entries SET answer = 7, question = NULL WHERE seq = 2")
    assert [json.loads(line)["question"] for line in (await exported(stores[0]))[1:]] == ["q0", "q2"]
    assert stores[0].stats()["damaged"] == 1


def _line(**changes: Any) -> bytes:
    vector = np.array([0.6, 0.8], "<f4").tobytes()
    good = {
        "id": "x",
        "tenant": "t",
        "namespace": "n",
        "dialect": "openai",
        "endpoint": "chat/completions",
        "model": "m",
        "exact": base64.b64encode(b"e" * 32).decode(),
        "partition": base64.b64encode(b"p" * 32).decode(),
        "embedder": "s",
        "question": "q",
        "vector": base64.b64encode(vector).decode(),
        "user": None,
        "writer": "t",
        "created_at": NOW,
        "ttl_s": 60,
        "grace_s": 0,
        "answer_dialect": "openai",
        "form": "json",
        "parts": ["{}"],
        "offsets_ms": [],
        "usage": [1, 2],
    }
    merged = {**good, **changes}
    return json.dumps({k: v for k, v in merged.items() if v is not ...}).encode()


def _vector(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


HEADER = b'{"semcache_export":1}'


async def test_a_good_line_is_taken(stores: tuple[SqliteStore, SqliteStore]) -> None:
    assert (
        await stores[0].import_lines([HEADER, _line(), b"\n", _line(exact=base64.b64encode(b"f" * 32).decode())]) == 2
    )


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"[]",
        b"\xff",
        _line(surprise=1),
        _line(id=...),
        _line(id=""),
        _line(id="x\r\nSet-Cookie: a=b"),
        _line(id="x\n"),
        _line(id="two words"),
        _line(id="caf\u00e9"),
        _line(id="x" * 65),
        _line(exact="AAAA"),
        _line(exact="not base64!"),
        _line(partition="AAAA"),
        _line(vector=None),
        _line(vector=None, embedder=None),
        _line(embedder=None),
        _line(vector="AAA="),
        _line(vector=_vector(float("nan"), 1)),
        _line(vector=_vector(0, 0)),
        _line(vector=_vector(3e38, 3e38)),
        _line(created_at="now"),
        _line(created_at=-1),
        _line(ttl_s=-1),
        _line(ttl_s=float("inf")),
        _line(grace_s=True),
        _line(form="xml"),
        _line(parts=[]),
        _line(parts=["{}", "{}"]),
        _line(parts=[1]),
        _line(parts=...),
        _line(parts_base64=["AAAA"]),
        _line(offsets_ms=[1, 2]),
        _line(offsets_ms=[-1]),
        _line(usage=[1]),
        _line(usage=[-1, 2]),
        _line(question="\ud800"),
        _line(vouchers="shop"),
        _line(turns=["hello"]),
        _line(turns_vector=_vector(0.6, 0.8)),
        _line(turns=["hello"], turns_vector=_vector(6, 8)),
        _line(vouchers=["shop"] * 65),
    ],
    ids=lambda bad: f"{bad[:12].decode('latin-1')} {crc32(bad)}",
)
async def test_a_bad_line_is_named_and_what_stands_before_it_is_kept(
    stores: tuple[SqliteStore, SqliteStore], bad: bytes
) -> None:
    store = stores[0]
    with pytest.raises(ClientError, match=r"^line 3: ") as refused:
        await store.import_lines([HEADER, _line(), bad, _line()])
    assert refused.value.status == 400
    assert store.stats()["puts"] == 1


@pytest.mark.parametrize("lines", [[], [b""], [_line()], [b'{"semcache_export":2}'], [b'{"semcache_export":"1"}']])
async def test_what_does_not_begin_with_our_header_is_refused(
    stores: tuple[SqliteStore, SqliteStore], lines: list[bytes]
) -> None:
    with pytest.raises(ClientError, match=r"^line 1: "):
        await stores[0].import_lines(lines)

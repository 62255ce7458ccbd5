"""The change log in SQL: every statement that reads or writes entries, tombstones and purges (feedback: next door).

Functions of a connection, without threads or policy. One counter numbers them all, and evidence; it is the largest
number in any of the tables or the floor, so it is never reused. Lists of numbers travel as one JSON parameter and rows
in batches: sqlite3 gives up the interpreter's lock at every step, and a busy event loop takes milliseconds to hand it
back, so a write of a hundred rows must be a few steps and not a hundred.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from semcache.cache import store_evidence, store_feedback
from semcache.cache.entry_codec import COLUMNS, EntryCodec, Row, vector_from
from semcache.cache.quarantine import Mark
from semcache.types import Change, Entry, Posting, Scope, Selector, Vector

_BATCHES = (64, 16, 4, 1)  # rows to a statement: few sizes, so that each is compiled once
_ROW = f"({', '.join('?' * len(COLUMNS))})"
_INSERT_ENTRIES = {n: f"INSERT INTO entries VALUES {', '.join([_ROW] * n)}" for n in _BATCHES}
_INSERT_LIVES = {n: f"INSERT INTO life VALUES {', '.join(['(?, ?, ?, ?)'] * n)}" for n in _BATCHES}
_INSERT_TOMBSTONES = {n: f"INSERT INTO tombstones VALUES {', '.join(['(?, ?)'] * n)}" for n in _BATCHES}
_STANDING = {
    n: f"SELECT exact_key, seq, created_at FROM entries WHERE exact_key IN ({', '.join('?' * n)})" for n in _BATCHES
}
_LISTED = "(SELECT value FROM json_each(?))"


class Standing(NamedTuple):
    """The entry that a key has now."""

    seq: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Purge:
    """A purge as it is recorded: it refuses entries of flights that began before it.

    Holds keyed digests of what it selects, so that an erase by question or user does not write them down again. Globs
    of model names are kept as they are.
    """

    seq: int
    erase: bool
    model: str | None
    digests: dict[str, str]  # field of Selector -> hex

    @classmethod
    def of(cls, selector: Selector, seq: int, *, erase: bool, codec: EntryCodec) -> Purge:
        named = {f.name: getattr(selector, f.name) for f in fields(selector) if f.name != "model"}
        if named["text"] is not None:
            named["text"] = named["text"].strip()
        return cls(seq, erase, selector.model, {k: codec.digest(v).hex() for k, v in named.items() if v is not None})

    def takes(self, entry: Entry, codec: EntryCodec) -> bool:
        if self.model is not None and not fnmatchcase(entry.scope.model, self.model):
            return False
        values = {
            "entry": entry.id,
            "tenant": entry.scope.tenant,
            "namespace": entry.scope.namespace,
            "user": entry.user,
            "text": None if entry.question is None else entry.question.strip(),
        }
        for name, digest in self.digests.items():
            if name == "writer":
                if not any(codec.digest(each).hex() == digest for each in {entry.writer, *entry.vouchers}):
                    return False
                continue
            value = values[name]
            if value is None or codec.digest(value).hex() != digest:
                return False
        return True


class Batch(NamedTuple):
    """A stretch of the log."""

    changes: list[Change]
    purges: list[Purge]
    marks: list[Mark]
    position: int  # everything up to here is in it
    more: bool  # whether the log goes on after it
    floor: int  # tombstones up to here have been forgotten


def newest_seq(db: sqlite3.Connection) -> int:
    (newest,) = db.execute(
        "SELECT max(ifnull((SELECT max(seq) FROM entries), 0), ifnull((SELECT max(seq) FROM tombstones), 0),"
        " ifnull((SELECT max(seq) FROM purges), 0), ifnull((SELECT max(seq) FROM feedback), 0),"
        " ifnull((SELECT max(seq) FROM evidence), 0),"
        " ifnull((SELECT value FROM meta WHERE name = 'floor'), 0))"
    ).fetchone()
    return int(newest)


def count_entries(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT count(*) FROM life").fetchone()
    return int(count)


def changes_after(db: sqlite3.Connection, after: int, known_floor: int, embedder: str | None, limit: int) -> Batch:
    """Return at most about `limit` changes that follow `after`, in order. Needs a transaction around it.

    Entries with another embedder's stamp are exact-only postings, and their vectors are not even read.
    `known_floor`: the floor when this follower began, or when it last came here. If tombstones it has not seen were
    forgotten since then, the first change also removes every number that no longer names an entry.
    """
    rows = db.execute(
        "SELECT seq, exact_key, CASE WHEN embedder = ?1 THEN partition_key END, CASE WHEN embedder = ?1 THEN vector END"
        " FROM entries WHERE seq > ?2 ORDER BY seq LIMIT ?3",
        (embedder, after, limit),
    ).fetchall()
    more = len(rows) == limit
    position = rows[-1][0] if more else max(after, newest_seq(db))
    merged = {}
    for seq, exact, partition, blob in rows:
        vector = None if blob is None else _vector_or_none(blob)
        merged[seq] = Change(seq, Posting(seq, exact, None if vector is None else partition, vector))
    for seq, text in db.execute("SELECT seq, removed FROM tombstones WHERE seq > ? AND seq <= ?", (after, position)):
        found = merged.get(seq)
        merged[seq] = Change(seq, found.added if found else None, _seqs_or_none(text))
    stretch = db.execute("SELECT seq, selector, erase FROM purges WHERE seq > ? AND seq <= ?", (after, position))
    purges = [_purge_from(row) for row in stretch]
    for purge in purges:
        merged.setdefault(purge.seq, Change(purge.seq))
    numbers, marks = store_feedback.numbers_and_marks(db, after, position)
    for seq in numbers + store_evidence.numbers(db, after, position):
        merged.setdefault(seq, Change(seq))
    if position > after:
        merged.setdefault(position, Change(position))  # what stood here is gone, but the position is reached
    changes = [merged[seq] for seq in sorted(merged)]
    floor = get_meta(db, "floor")
    if after and changes and floor > max(after, known_floor):
        first = changes[0]
        changes[0] = Change(first.seq, first.added, _missing_seqs(db, after) + first.removed)
    return Batch(changes, purges, marks, position, more, floor)


def standing_of(db: sqlite3.Connection, exact_keys: Sequence[bytes]) -> dict[bytes, Standing]:
    standing = {}
    for statement, keys in _batched(_STANDING, exact_keys):
        for exact, seq, created_at in db.execute(statement, keys):
            standing[exact] = Standing(seq, created_at)
    return standing


Life = tuple[int, float, float, float]  # seq, created_at, ttl + grace, used_at


def insert_entries(db: sqlite3.Connection, rows: Sequence[Row], lives: Sequence[Life]) -> None:
    for statement, batch in _batched(_INSERT_ENTRIES, rows):
        db.execute(statement, list(chain.from_iterable(batch)))
    for statement, pairs in _batched(_INSERT_LIVES, lives):
        db.execute(statement, list(chain.from_iterable(pairs)))


def delete_entries(db: sqlite3.Connection, seqs: Sequence[int]) -> list[int]:
    """Delete those that are there, and return them. The caller writes the tombstone."""
    listed = json.dumps(list(seqs))
    found = [seq for (seq,) in db.execute(f"SELECT seq FROM entries WHERE seq IN {_LISTED}", (listed,))]
    db.execute(f"DELETE FROM entries WHERE seq IN {_LISTED}", (listed,))
    db.execute(f"DELETE FROM life WHERE seq IN {_LISTED}", (listed,))
    return found


def insert_tombstones(db: sqlite3.Connection, tombstones: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Each: its number, and the numbers of the entries that are gone."""
    for statement, batch in _batched(_INSERT_TOMBSTONES, tombstones):
        db.execute(statement, [value for seq, removed in batch for value in (seq, json.dumps(list(removed)))])


def insert_purge(db: sqlite3.Connection, purge: Purge) -> None:
    selector = json.dumps({"model": purge.model, **purge.digests})
    db.execute("INSERT INTO purges VALUES (?, ?, ?)", (purge.seq, selector, purge.erase))


def purges_kept(db: sqlite3.Connection) -> list[Purge]:
    return [_purge_from(row) for row in db.execute("SELECT seq, selector, erase FROM purges ORDER BY seq")]


def forget(db: sqlite3.Connection, table: str, keep: int) -> int:
    """Delete all but the newest `keep` rows of `tombstones` or `purges`; return the largest number deleted, or 0."""
    found = db.execute(f"SELECT seq FROM {table} ORDER BY seq DESC LIMIT 1 OFFSET ?", (keep,)).fetchone()
    if not found:
        return 0
    db.execute(f"DELETE FROM {table} WHERE seq <= ?", found)
    return int(found[0])


def set_meta(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def get_meta(db: sqlite3.Connection, name: str) -> int:
    found = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else 0


def mark_used(db: sqlite3.Connection, seqs: Iterable[int], used_at: float) -> None:
    db.execute(f"UPDATE life SET used_at = ? WHERE seq IN {_LISTED}", (used_at, json.dumps(list(seqs))))


def read_row(db: sqlite3.Connection, seq: int) -> Row | None:
    row: Row | None = db.execute("SELECT * FROM entries WHERE seq = ?", (seq,)).fetchone()
    return row


def rows_after(db: sqlite3.Connection, after: int, limit: int, limit_bytes: int) -> list[Row]:
    """Return the next rows: at most `limit`, and no more once they come to `limit_bytes`; one if there is any.

    Rows are fetched one at a time: SQLite makes the next only when it is asked for.
    """
    rows: list[Row] = []
    size_bytes = 0
    with closing(db.execute("SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))) as cursor:
        for row in cursor:
            rows.append(row)
            # Not only the answer, and by what is there: in a damaged row any column may be anything.
            size_bytes += sum(len(value) for value in row if isinstance(value, (bytes, str)))
            if size_bytes >= limit_bytes:
                break
    return rows


def selected_seqs(db: sqlite3.Connection, selector: Selector, before: int, codec: EntryCodec) -> list[int]:
    """Numbers below `before` of the entries that a purge takes."""
    columns = {"entry": "id", "tenant": "tenant", "namespace": "namespace", "user": "user"}
    where: list[str] = ["seq < ?"]
    values: list[Any] = [before]
    for field, column in columns.items():
        value = getattr(selector, field)
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    # Glob and strip are Python's, here and in Purge.takes: SQL's differ in brackets, in blanks and after a NUL.
    brought = "writer, more" if selector.writer is not None else "NULL, NULL"  # `more` lies behind the answer
    try:
        rows = db.execute(f"SELECT seq, model, question, {brought} FROM entries WHERE {' AND '.join(where)}", values)
    except UnicodeEncodeError:  # a lone surrogate: no entry with such a text can be written
        return []
    text = None if selector.text is None else selector.text.strip()
    return [
        seq
        for seq, model, question, writer, more in rows
        if (selector.model is None or fnmatchcase(model, selector.model))
        and (selector.writer is None or selector.writer in {writer, *codec.vouchers_in(more)})
        and (text is None or (question is not None and question.strip() == text))
    ]


class Home(NamedTuple):
    """A partition that holds a question. Read without its seal: for telling, never for serving."""

    scope: Scope
    partition: bytes | None
    embedder: str | None
    entries: int
    newest_at: float  # unix seconds


def homes_of(db: sqlite3.Connection, question: str, but: bytes, limit: int) -> list[Home]:
    """Where entries with this very question lie, those with the newest first; the exact key `but` does not count."""
    try:
        rows = db.execute(
            "SELECT tenant, namespace, dialect, endpoint, model, partition_key, embedder, count(*), max(created_at)"
            " FROM entries WHERE question = ? AND exact_key <> ?"
            " GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 9 DESC LIMIT ?",
            (question, but, limit),
        )
    except UnicodeEncodeError:  # a lone surrogate: no entry with such a text can be written
        return []
    return [Home(Scope(*row[:5]), *row[5:]) for row in rows]


def newest_writer(
    db: sqlite3.Connection, endpoint: str, tenant: str | None, model: str | None
) -> tuple[str, str] | None:
    """The writer and the model of the newest entry of an endpoint, of these where they are given."""
    found: tuple[str, str] | None = db.execute(
        "SELECT writer, model FROM entries WHERE endpoint = ?1 AND (?2 IS NULL OR writer = ?2)"
        " AND (?3 IS NULL OR model = ?3) ORDER BY seq DESC LIMIT 1",
        (endpoint, tenant, model),
    ).fetchone()
    return found


def expired_seqs(db: sqlite3.Connection, earliest: float, latest: float) -> list[int]:
    """Entries past ttl and grace at `earliest`, and those from further after `latest` than they may live at all."""
    past = "SELECT seq FROM life WHERE created_at + life_s <= ? OR created_at > ? + life_s"
    return [seq for (seq,) in db.execute(past, (earliest, latest))]


def least_used_seqs(db: sqlite3.Connection, count: int) -> list[int]:
    return [seq for (seq,) in db.execute("SELECT seq FROM life ORDER BY used_at, seq LIMIT ?", (count,))]


def _batched(statements: dict[int, str], items: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    start = 0
    for size, statement in statements.items():
        while len(items) - start >= size:
            yield statement, items[start : start + size]
            start += size


def _missing_seqs(db: sqlite3.Connection, upto: int) -> tuple[int, ...]:
    """All numbers up to `upto` that name no entry."""
    live = np.fromiter((seq for (seq,) in db.execute("SELECT seq FROM entries WHERE seq <= ?", (upto,))), np.int64)
    return tuple(np.setdiff1d(np.arange(1, upto + 1), live, assume_unique=True).tolist())


def _vector_or_none(blob: object) -> Vector | None:
    """Not verified here: a damaged vector can only lead to an entry that then fails its seal."""
    try:
        return vector_from(blob) if isinstance(blob, bytes) and blob else None
    except ValueError:
        return None


def _seqs_or_none(text: object) -> tuple[int, ...]:
    """A damaged tombstone removes nothing from the view; the entries are gone from the table all the same."""
    try:
        return tuple(int(seq) for seq in json.loads(text))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ()


def _purge_from(row: tuple[int, str, int]) -> Purge:
    """A record that cannot be read purges everything older: doubt is a miss."""
    seq, text, erase = row
    try:
        digests = {str(name): str(value) for name, value in json.loads(text).items() if value is not None}
    except (TypeError, ValueError, AttributeError):
        digests = {}
    return Purge(seq, bool(erase), digests.pop("model", None), digests)

"""Feedback in SQL: who said what of which hit, numbered like everything else in the log.

A row is a pair of questions (the one asked, and the one that the entry answers), what was said of it, and how often. It
holds keys and ids, never a text. A row that is said again moves to the end of the log, so that other processes see it.
Rows leave with the entry they are about; `forgotten` rows are what tells the other processes of that.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from semcache.cache.quarantine import Mark
from semcache.types import Feedback, Said, Tier

KEEP_REMARKS = 10_000  # rows that keep nothing from being served: right answers, removed entries, what was forgotten

_FORGOTTEN = "forgotten"
_QUARANTINES = "said = 'wrong' AND asked <> entry_key"  # an entry that was wrong for its own question is removed
_SAY = """
    INSERT INTO feedback (seq, entry_key, asked, said, similarity, times, entry_id, tenant, request, at)
    VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?)
    ON CONFLICT (entry_key, asked, said) DO UPDATE SET
        seq = excluded.seq, similarity = max(similarity, excluded.similarity), times = times + 1,
        entry_id = excluded.entry_id, tenant = excluded.tenant, request = excluded.request, at = excluded.at
"""
_RECENT = """
    SELECT at, said, entry_id, request, tenant, asked = entry_key, similarity, times,
        (SELECT ifnull(sum(times), 0) FROM feedback AS same WHERE same.entry_key = it.entry_key AND said = 'wrong'),
        (SELECT ifnull(sum(times), 0) FROM feedback AS same WHERE same.entry_key = it.entry_key AND said = 'right')
    FROM feedback AS it WHERE said <> 'forgotten' ORDER BY seq DESC LIMIT ?
"""


def insert(db: sqlite3.Connection, feedback: Feedback, seq: int) -> None:
    it = feedback
    row = (seq, it.entry_key, it.asked, it.said, it.similarity, it.entry_id, it.tenant, it.request_id, it.at)
    db.execute(_SAY, row)


def delete_of_entries(db: sqlite3.Connection, seqs: Sequence[int]) -> list[bytes]:
    """Delete what was said of these entries, which must still be there; return the keys of those with a quarantine."""
    if not db.execute("SELECT EXISTS (SELECT 1 FROM feedback)").fetchone()[0]:  # nearly always
        return []
    gone = db.execute(
        "DELETE FROM feedback WHERE said <> 'forgotten' AND entry_key IN (SELECT exact_key FROM entries WHERE seq IN"
        " (SELECT value FROM json_each(?))) RETURNING entry_key, said, asked",
        (json.dumps(list(seqs)),),
    ).fetchall()
    return sorted({key for key, said, asked in gone if said == Said.WRONG and asked != key})


def insert_forgotten(db: sqlite3.Connection, entry_key: bytes, seq: int) -> None:
    db.execute(_SAY, (seq, entry_key, b"", _FORGOTTEN, 0.0, "", "", "", 0.0))


def delete_orphans(db: sqlite3.Connection) -> None:
    """Delete what was said of entries that are gone. It kept nothing from being served."""
    db.execute(
        "DELETE FROM feedback WHERE said <> 'forgotten'"
        " AND NOT EXISTS (SELECT 1 FROM entries WHERE exact_key = feedback.entry_key)"
    )


def trim(db: sqlite3.Connection, keep: int = KEEP_REMARKS) -> None:
    """Delete the oldest rows but those that keep something from being served: these stay as long as the entry."""
    db.execute(
        f"DELETE FROM feedback WHERE NOT ({_QUARANTINES}) AND seq <="
        f" (SELECT seq FROM feedback WHERE NOT ({_QUARANTINES}) ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        (keep,),
    )


def numbers_and_marks(db: sqlite3.Connection, after: int, upto: int) -> tuple[list[int], list[Mark]]:
    """The numbers of all rows in a stretch of the log, and what those among them mean that decide what is served."""
    numbers, marks = [], []
    rows = db.execute(
        "SELECT seq, said, entry_key, asked, similarity FROM feedback WHERE seq > ? AND seq <= ? ORDER BY seq",
        (after, upto),
    )
    for seq, said, entry_key, asked, similarity in rows:
        numbers.append(seq)
        if said == _FORGOTTEN:
            marks.append(Mark(entry_key, None))
        elif said == Said.WRONG and asked != entry_key and isinstance(similarity, float):
            marks.append(Mark(entry_key, asked, similarity))
    return numbers, marks


def recent(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    """What was said last, newest first, as the operator reads it; the last two count all that was said of the entry."""
    names = ("at", "verdict", "entry", "request", "tenant", "tier", "similarity", "times", "entry_wrong", "entry_right")
    rows = []
    for at, said, entry_id, request, tenant, is_exact, *figures in db.execute(_RECENT, (limit,)):
        tier = Tier.EXACT if is_exact else Tier.SEMANTIC
        rows.append(dict(zip(names, (at, said, entry_id, request, tenant, tier, *figures), strict=True)))
    return rows

"""Evidence in SQL: how fresh answers compared with stored ones, numbered like everything else in the log.

A row is one observation: keys, figures and what they led to, never a text. Rows outlive the entry they are about, for
what was learned stays true when an answer expires; they leave with age, and with what an operator purges. Beside them,
unnumbered, are the counters of shadow mode, one row for each hour and hundredth of similarity.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from semcache.types import Feedback, How, Observation, Occasion, Said, Selector

KEEP_S = 30 * 86400.0  # traffic and models change: what is older says little of today
KEEP_ROWS = 200_000  # some 80 MB, with 30 features to a row
HOUR_S = 3600
UNKNOWN_ROUTE = -1  # of feedback: the word comes later, with the keys of the hit alone

_COLUMNS = (
    "seq, grp, route, asked, entry_key, entry_id, similarity, features, probability, same, how, occasion, share,"
    " proposed, at"
)
_BATCHES = (64, 16, 4, 1)  # rows to a statement, as in store_log.py
_INSERT = {n: f"INSERT INTO evidence VALUES {', '.join(['(' + ', '.join('?' * 15) + ')'] * n)}" for n in _BATCHES}
_LISTED = "(SELECT value FROM json_each(?))"


def insert(db: sqlite3.Connection, observations: Sequence[Observation], seq: int) -> list[Observation]:
    """Keep them, numbered from `seq` on; return them with their numbers."""
    numbered = [replace(observation, seq=seq + place) for place, observation in enumerate(observations)]
    start = 0
    for size, statement in _INSERT.items():
        while len(numbered) - start >= size:
            db.execute(statement, list(chain.from_iterable(map(_row, numbered[start : start + size]))))
            start += size
    return numbered


def numbers(db: sqlite3.Connection, after: int, upto: int) -> list[int]:
    """The numbers of all rows in a stretch of the log."""
    rows = db.execute("SELECT seq FROM evidence WHERE seq > ? AND seq <= ? ORDER BY seq", (after, upto))
    return [seq for (seq,) in rows]


def stretch(db: sqlite3.Connection, after: int, upto: int) -> list[Observation]:
    """The observations of a stretch of the log, in order."""
    return _read(db.execute(f"SELECT {_COLUMNS} FROM evidence WHERE seq > ? AND seq <= ? ORDER BY seq", (after, upto)))


def recent(db: sqlite3.Connection, limit: int) -> list[Observation]:
    """The newest observations, newest first."""
    return _read(db.execute(f"SELECT {_COLUMNS} FROM evidence ORDER BY seq DESC LIMIT ?", (limit,)))


def delete_of_entries(db: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Delete what is known of these entries, which must still be there, and of their questions; return how much."""
    if not _has_rows(db):
        return 0
    keys = "(SELECT exact_key FROM entries WHERE seq IN (SELECT value FROM json_each(?1)))"
    listed = json.dumps(list(seqs))
    return db.execute(f"DELETE FROM evidence WHERE entry_key IN {keys} OR asked IN {keys}", (listed,)).rowcount


def delete_selected(db: sqlite3.Connection, selector: Selector) -> int:
    """Delete what a purge takes of entries that are gone already, as far as rows can tell: by id, or everything."""
    if selector == Selector():
        return db.execute("DELETE FROM evidence").rowcount + db.execute("DELETE FROM shadow").rowcount
    if selector == Selector(entry=selector.entry):
        try:
            return db.execute("DELETE FROM evidence WHERE entry_id = ?", (selector.entry,)).rowcount
        except UnicodeEncodeError:  # a lone surrogate: no entry has such an id
            return 0
    return 0


def is_due(db: sqlite3.Connection, now: float) -> bool:
    """Whether `age` would find anything to delete. Looks at the oldest row and the count alone."""
    oldest = db.execute("SELECT at FROM evidence ORDER BY seq LIMIT 1").fetchone()
    hour = db.execute("SELECT hour FROM shadow ORDER BY hour LIMIT 1").fetchone()
    if (oldest and oldest[0] < now - KEEP_S) or (hour and hour[0] < (now - KEEP_S) // HOUR_S):
        return True
    # Numbers are shared with all of the log, so their span is at least the count: counting is seldom needed.
    least, most = db.execute("SELECT ifnull(min(seq), 0), ifnull(max(seq), 0) FROM evidence").fetchone()
    return bool(most - least >= KEEP_ROWS and _count(db) > KEEP_ROWS)


def age(db: sqlite3.Connection, now: float, keep_rows: int = KEEP_ROWS) -> int:
    """Delete what is older than KEEP_S or beyond `keep_rows`; return how many observations. The newest always stays:
    its number must not be given again."""
    (newest,) = db.execute("SELECT ifnull(max(seq), 0) FROM evidence").fetchone()
    found = db.execute("SELECT seq FROM evidence ORDER BY seq DESC LIMIT 1 OFFSET ?", (keep_rows,)).fetchone()
    beyond = found[0] if found else 0
    gone = db.execute("DELETE FROM evidence WHERE seq < ? AND (seq <= ? OR at < ?)", (newest, beyond, now - KEEP_S))
    db.execute("DELETE FROM shadow WHERE hour < ?", ((now - KEEP_S) // HOUR_S,))
    return gone.rowcount


def from_feedback(feedback: Feedback) -> Observation:
    """A caller's word as evidence. Of the pair only its keys and its similarity are known by then."""
    return Observation(
        group=b"",
        route=UNKNOWN_ROUTE,
        asked=feedback.asked,
        entry_key=feedback.entry_key,
        entry_id=feedback.entry_id,
        similarity=feedback.similarity,
        features=(),
        probability=None,
        same=feedback.said is Said.RIGHT,
        how=How.FEEDBACK,
        occasion=Occasion.FEEDBACK,
        share=1.0,
        is_proposed=True,
        at=feedback.at,
    )


# The counters of shadow mode


@dataclass(frozen=True, slots=True)
class ShadowKey:
    """What is counted together. Another setting (guards, embedder, models of the route) is never mixed in."""

    hour: int  # unix time in hours
    route: int  # the place of the route in the configuration
    setting: str  # a digest of what similarities and vetoes depend on
    strategy: str  # what decides: see semcache/shadow.py
    bucket: int  # hundredths of the similarity of the candidate that decides, rounded down; -1: there is none


@dataclass(slots=True)
class ShadowCount:
    """Requests of one key, and what was spent on them. All but the first three are of requests, compared or not."""

    requests: int = 0
    same: int = 0  # the stored answer said what the fresh one says
    different: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0  # requests whose model has no price, or whose answer had no token counts
    fetch_s: float = 0.0

    def add(self, other: ShadowCount) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_FIGURES = tuple(ShadowCount.__slots__)
_ADD_SHADOW = (
    f"INSERT INTO shadow VALUES ({', '.join('?' * (5 + len(_FIGURES)))})"
    " ON CONFLICT (hour, route, setting, strategy, bucket) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _FIGURES)
)


def add_shadow(db: sqlite3.Connection, counts: Iterable[tuple[ShadowKey, ShadowCount]]) -> None:
    rows = []
    for key, count in counts:
        figures = [getattr(count, name) for name in _FIGURES]
        rows.append((key.hour, key.route, key.setting, key.strategy, key.bucket, *figures))
    db.executemany(_ADD_SHADOW, rows)


def shadow_counts(db: sqlite3.Connection) -> list[tuple[ShadowKey, ShadowCount]]:
    """All of them, the oldest hour first."""
    rows = db.execute(f"SELECT hour, route, setting, strategy, bucket, {', '.join(_FIGURES)} FROM shadow ORDER BY hour")
    return [(ShadowKey(*row[:5]), ShadowCount(*row[5:])) for row in rows]


# Rows


def _row(it: Observation) -> tuple[Any, ...]:
    features = np.asarray(it.features, np.float32).tobytes()
    pair = (it.asked, it.entry_key, it.entry_id, it.similarity, features, it.probability)
    return (it.seq, it.group, it.route, *pair, it.same, it.how, it.occasion, it.share, it.is_proposed, it.at)


def _read(rows: Iterable[tuple[Any, ...]]) -> list[Observation]:
    """A row that is damaged says nothing."""
    observations = []
    for seq, group, route, asked, key, entry_id, similarity, features, probability, *rest in rows:
        same, how, occasion, share, proposed, at = rest
        try:
            observation = Observation(
                group=bytes(group),
                route=int(route),
                asked=bytes(asked),
                entry_key=bytes(key),
                entry_id=str(entry_id),
                similarity=float(similarity),
                features=tuple(np.frombuffer(features, np.float32).tolist()),
                probability=None if probability is None else float(probability),
                same=bool(same),
                how=How(how),
                occasion=Occasion(occasion),
                share=float(share),
                is_proposed=bool(proposed),
                at=float(at),
                seq=seq,
            )
        except (TypeError, ValueError):
            continue
        observations.append(observation)
    return observations


def _has_rows(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM evidence)").fetchone()[0])


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM evidence").fetchone()[0])

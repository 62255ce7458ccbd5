"""The file that usage is kept in: sums by minute, later by hour, in the end by day. SQLite, shared by all workers.

A row says how long a span it sums up, when that began, and what it is about; writing adds to it. Folding minutes into
an hour adds them up and removes them in one transaction, so every sum is there once at every moment, whoever reads. The
same file holds what quotas have counted, for limits that all workers share and a restart does not forget.

Everything here waits for the disk: call it on a thread. Raises sqlite3.Error, but where it says otherwise.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semcache.config import Config
from semcache.errors import StartError
from semcache.usage.ledger import Facets, Minute, Spent

log = logging.getLogger(__name__)

APPLICATION_ID = 0x53454D55  # "SEMU": PRAGMA application_id
VERSION = 1
BUSY_S = 5.0  # a write waits so long for another worker's
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
FIGURES = ("requests", "prompt", "cached", "completion", "nano_usd", "estimated", "unpriced")
FACETS = ("tenant", "key", "model", "backend", "region", "source", "purpose")

_KEPT_S = {"minute": 600, "day": 3 * DAY_S, "month": 70 * DAY_S}  # of quotas: past their window they count no more

_SCHEMA = f"""
CREATE TABLE facets (
    id INTEGER PRIMARY KEY, {", ".join(f"{name} TEXT NOT NULL" for name in FACETS)}, UNIQUE ({", ".join(FACETS)})
);
CREATE TABLE spans (
    seconds INTEGER NOT NULL, at INTEGER NOT NULL, facets INTEGER NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in FIGURES)}, PRIMARY KEY (seconds, at, facets)
) WITHOUT ROWID;
CREATE TABLE quotas (
    subject TEXT NOT NULL, period TEXT NOT NULL, at INTEGER NOT NULL,
    requests INTEGER NOT NULL, tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL, PRIMARY KEY (subject, period, at)
) WITHOUT ROWID;
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={VERSION};
"""
_ADDING = ", ".join(f"{name} = {name} + excluded.{name}" for name in FIGURES)
_ADD = f"INSERT INTO spans VALUES (?, ?, ?, {', '.join('?' for _ in FIGURES)}) ON CONFLICT DO UPDATE SET {_ADDING}"
_FOLD = f"""
INSERT INTO spans SELECT :into, at / :into * :into, facets, {", ".join(f"SUM({name})" for name in FIGURES)}
FROM spans WHERE seconds = :of AND at < :before GROUP BY at / :into, facets
ON CONFLICT DO UPDATE SET {_ADDING}
"""
_ADD_QUOTA = """
INSERT INTO quotas VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
requests = requests + excluded.requests, tokens = MAX(0, tokens + excluded.tokens),
nano_usd = nano_usd + excluded.nano_usd
"""

Place = tuple[str, str, int]  # of a quota: subject, period, and its first second
Counts = tuple[int, int, int]  # requests, tokens, nano-dollars


def usage_path(config: Config) -> Path | None:
    """Where the settings put the file; None: nowhere."""
    asked = config.usage.path
    if asked == "off":
        return None
    if asked != "auto":
        return Path(asked.removeprefix("sqlite:"))
    scheme, _, path = config.cache.store.partition(":")
    return Path(f"{path}.usage") if scheme == "sqlite" and path else None


class UsageFile:
    def __init__(self, path: Path, keep_minutes_s: float, keep_hours_s: float) -> None:
        self.path = path
        self._keep_minutes_s = keep_minutes_s
        self._keep_hours_s = keep_hours_s
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._ids: dict[Facets, int] = {}

    def open(self) -> None:
        """Open or create. A damaged file is moved aside, for it must not stop a proxy. Raises StartError."""
        try:
            self._connect()
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):
                raise StartError(f"usage: {self.path}: cannot be opened: {exc}; see usage.path") from exc
            aside = self.path.with_name(f"{self.path.name}.aside-{int(time.time())}")
            try:
                os.replace(self.path, aside)
                self._connect()
            except (OSError, sqlite3.Error) as again:
                raise StartError(f"usage: {self.path}: cannot be read: {exc}; see usage.path") from again
            log.error("usage: %s is damaged (%s): moved to %s, and begun anew", self.path, exc, aside.name)
        except OSError as exc:
            raise StartError(f"usage: {self.path}: {exc.strerror or exc}; see usage.path") from exc

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def write(
        self, minutes: Sequence[Minute], news: Iterable[tuple[Place, Counts]], wanted: Iterable[Place]
    ) -> dict[Place, Counts]:
        """Add what came in, all or nothing, and return the totals of the quotas that are `wanted`."""
        with self._transaction() as database:
            for start, rows in minutes:
                database.executemany(
                    _ADD,
                    [
                        (MINUTE_S, start, self._id_of(database, facets), *_figures(spent))
                        for facets, spent in rows.items()
                    ],
                )
            database.executemany(_ADD_QUOTA, [(*place, *counts) for place, counts in news])
            found = {}
            for place in wanted:
                row = database.execute(
                    "SELECT requests, tokens, nano_usd FROM quotas WHERE subject = ? AND period = ? AND at = ?", place
                ).fetchone()
                if row is not None:
                    found[place] = row
        return found

    def quotas(self, now: float) -> dict[Place, Counts]:
        """Everything that may still count."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM quotas").fetchall()
        return {row[:3]: row[3:] for row in rows if row[2] > now - _KEPT_S.get(row[1], 0)}

    def fold(self, now: float) -> None:
        """Add minutes up to hours and hours to days, where they are old enough, in whole ones."""
        with self._transaction() as database:
            for of, into, keep_s in ((MINUTE_S, HOUR_S, self._keep_minutes_s), (HOUR_S, DAY_S, self._keep_hours_s)):
                before = int((now - keep_s) // into) * into
                database.execute(_FOLD, {"of": of, "into": into, "before": before})
                database.execute("DELETE FROM spans WHERE seconds = ? AND at < ?", (of, before))
            for period, kept_s in _KEPT_S.items():
                database.execute("DELETE FROM quotas WHERE period = ? AND at < ?", (period, now - kept_s))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._database is None or not self._is_in_place():
            self.close()
            self._connect()
        database = self._database
        assert database is not None
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            self._ids.clear()  # some may be of rows that are not there after all
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _is_in_place(self) -> bool:
        """Whether the path still names the file that is open: not deleted, not replaced by a restore."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def _connect(self) -> None:
        """Raises OSError, StartError for a file of a later version."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # it tells who asks for how much
        database = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("BEGIN IMMEDIATE")  # workers that start together make the tables once
            is_new = not database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if is_new:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
            database.execute("COMMIT")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID or version > VERSION:
                raise StartError(
                    f"usage: {self.path} is no usage file of this version of semcache; name another in usage.path"
                )
            database.execute("SELECT MAX(tokens) FROM quotas")  # all of what is read next, so that damage shows here
        except BaseException:
            database.close()
            raise
        self._database, self._inode = database, self.path.stat().st_ino
        self._ids.clear()

    def _id_of(self, database: sqlite3.Connection, facets: Facets) -> int:
        known = self._ids.get(facets)
        if known is None:
            database.execute(f"INSERT OR IGNORE INTO facets ({', '.join(FACETS)}) VALUES (?, ?, ?, ?, ?, ?, ?)", facets)
            same = " AND ".join(f"{name} = ?" for name in FACETS)
            known = self._ids[facets] = int(
                database.execute(f"SELECT id FROM facets WHERE {same}", facets).fetchone()[0]
            )
        return known


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, for reports, beside workers that write."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    database.execute("PRAGMA query_only=1")
    return database


def _figures(spent: Spent) -> tuple[int, ...]:
    return (
        spent.requests,
        spent.prompt_tokens,
        spent.cached_tokens,
        spent.completion_tokens,
        spent.nano_usd,
        spent.estimated,
        spent.unpriced,
    )

"""The database file: how it is opened, what shape it has, and what happens to one that cannot be used.

A file that is damaged, empty or not ours is moved aside, kept, and an empty database started: a cache that has lost
its entries is slow, a cache that refuses to start is an outage. A file from a newer version is left untouched and the
start refused, since it is whole. All of this happens under a lock file, so that two processes starting together
neither create nor move aside each other's file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from semcache.errors import StartError

log = logging.getLogger(__name__)

APPLICATION_ID = 0x53454D43  # "SEMC": PRAGMA application_id
PAGE_BYTES = 8192  # an entry is about 2.7 KB: 4 KB pages would hold one each and make the file half as large again
WAL_PAGES = 2048  # 16 MB between checkpoints: their fsync then costs less than the inserts
READER_BUSY_S = 0.1  # readers never wait for the writer in WAL mode, only for a program that locked the whole file
CHECKED_BYTES = 512 * 2**20  # files up to this are checked page by page at every start (about 0.5 s per GB from memory)

# One script a version; user_version counts those that have run.
#   entries     one sealed row each, see entry_codec.py
#   life        what upkeep needs of an entry, in narrow rows: expiry and eviction never scan the answers
#   tombstones  seq numbers that are gone; shares the seq of the entry that replaced them, or has its own
#   purges      what was purged, as keyed digests: the record must not keep the very text that was erased
#   feedback    what callers said of hits, see store_feedback.py
#   evidence    how fresh answers compared with stored ones, and `shadow`: counters, see store_evidence.py
#   more        of an entry: where it came from, and what else came later, see entry_codec.py
MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, exact_key BLOB NOT NULL, partition_key BLOB, embedder TEXT, vector BLOB,
        id TEXT NOT NULL, tenant TEXT NOT NULL, namespace TEXT NOT NULL, dialect TEXT NOT NULL, endpoint TEXT NOT NULL,
        model TEXT NOT NULL, question TEXT, user TEXT, writer TEXT NOT NULL,
        created_at REAL NOT NULL, ttl_s REAL NOT NULL, grace_s REAL NOT NULL, answer BLOB NOT NULL, seal BLOB NOT NULL
    );
    CREATE INDEX entries_exact ON entries (exact_key);
    CREATE TABLE life (seq INTEGER PRIMARY KEY, created_at REAL NOT NULL, life_s REAL NOT NULL, used_at REAL NOT NULL);
    CREATE TABLE tombstones (seq INTEGER PRIMARY KEY, removed TEXT NOT NULL);
    CREATE TABLE purges (seq INTEGER PRIMARY KEY, selector TEXT NOT NULL, erase INTEGER NOT NULL);
    """,
    """
    CREATE TABLE feedback (
        seq INTEGER PRIMARY KEY, entry_key BLOB NOT NULL, asked BLOB NOT NULL, said TEXT NOT NULL,
        similarity REAL NOT NULL, times INTEGER NOT NULL, entry_id TEXT NOT NULL, tenant TEXT NOT NULL,
        request TEXT NOT NULL, at REAL NOT NULL, UNIQUE (entry_key, asked, said)
    );
    """,
    """
    ALTER TABLE entries ADD COLUMN more BLOB;
    CREATE TABLE IF NOT EXISTS evidence (
        seq INTEGER PRIMARY KEY, grp BLOB NOT NULL, route INTEGER NOT NULL, asked BLOB NOT NULL,
        entry_key BLOB NOT NULL, entry_id TEXT NOT NULL, similarity REAL NOT NULL, features BLOB NOT NULL,
        probability REAL, same INTEGER NOT NULL, how TEXT NOT NULL, occasion TEXT NOT NULL, share REAL NOT NULL,
        proposed INTEGER NOT NULL, at REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS evidence_entry ON evidence (entry_key);
    CREATE INDEX IF NOT EXISTS evidence_asked ON evidence (asked);
    CREATE TABLE IF NOT EXISTS shadow (
        hour INTEGER, route INTEGER, setting TEXT, strategy TEXT, bucket INTEGER, requests INTEGER, same INTEGER,
        different INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, unpriced INTEGER, fetch_s REAL,
        PRIMARY KEY (hour, route, setting, strategy, bucket)
    ) WITHOUT ROWID;
    """,
)


class _Unusable(Exception):
    """The file is not a database of ours that can be read."""


@dataclass(slots=True)
class Database:
    path: Path | None  # None: in memory
    connection: sqlite3.Connection  # the one that writes
    id: str  # random, new with every new database
    mac_key: bytes
    read_only: bool
    uri: str
    busy_s: float  # how long a write waits for another program's lock
    moved_aside: Path | None = None  # where a file that could not be used was put
    _inode: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._inode = self.path.stat().st_ino

    def reader(self) -> sqlite3.Connection:
        """A connection of its own for a reading thread. Raises sqlite3.Error."""
        uri = self.uri if "?" in self.uri else f"{self.uri}?mode=ro"
        connection = _connect(uri, READER_BUSY_S)
        connection.execute("PRAGMA query_only=1")
        return connection

    def is_in_place(self) -> bool:
        """Whether the path still names the file that is open: not deleted, not replaced by a restore."""
        if self.path is None:
            return True
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def disk_bytes(self) -> int:
        """The file and its log; 0 in memory."""
        if self.path is None:
            return 0
        total = 0
        for name in (self.path, beside(self.path, "-wal")):
            with suppress(OSError):
                total += name.stat().st_size
        return total

    def mark_damaged(self) -> None:
        """Have the next start look at every page, however large the file, and move it aside if one is bad."""
        if self.path is not None:
            with suppress(OSError):
                beside(self.path, ".damaged").touch()

    def forget_moved_aside(self) -> int:
        """Delete what was ever moved aside here; for an erase, since those files cannot be searched row by row."""
        if self.path is None:
            return 0
        old = list(self.path.parent.glob(f"{_glob_escape(self.path.name)}.aside-*"))
        for file in old:
            log.warning("store: erase deletes %s, which was moved aside earlier", file)
            file.unlink(missing_ok=True)
        return len(old)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def open_database(path: Path | None, *, key_path: Path | None, busy_s: float) -> Database:
    """Open or create. `busy_s`: how long a write waits for another program's lock. Raises StartError with one line."""
    if path is None:
        connection = _connect(":memory:", busy_s)
        return _prepare(connection, None, secrets.token_bytes(32), read_only=False, uri=":memory:", busy_s=busy_s)
    if path.is_dir():
        raise StartError(f"store: {path} is a folder; name a file in it, such as {path / 'semcache.db'}")
    try:
        _make_folder(path.parent)
    except OSError as exc:
        raise StartError(f"store: the folder {path.parent} cannot be made: {exc.strerror}") from exc
    with _only_starter(path):
        key = _load_key(key_path or beside(path, ".key"))
        try:
            return _open(path, key, busy_s)
        except _Unusable as exc:
            aside = _move_aside(path)
            log.error("store: %s %s; it was moved to %s and an empty one started", path, exc, aside)
        try:
            database = _open(path, key, busy_s)
        except _Unusable as exc:
            raise StartError(f"store: {path}: a new database {exc}") from exc
        database.moved_aside = aside
        return database


def _open(path: Path, key: bytes, busy_s: float) -> Database:
    existed = path.exists()
    wal = beside(path, "-wal")
    if existed and path.stat().st_size == 0:
        raise _Unusable("is empty")
    if not existed and wal.exists():
        raise _Unusable("is gone but its log is there")
    if not existed:
        _create(path)
    uri = path.absolute().as_uri()
    connection = _connect(uri, busy_s)
    try:
        try:
            read_only = existed and not _is_writable(connection)
        except sqlite3.OperationalError as exc:
            # In a folder we may not write, even reading needs a shared-memory file that cannot be made. `immutable`
            # does without; it does not see the log, so an unfinished one must not be ignored: it may hold a purge.
            if _code(exc) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY} or not os.access(path, os.R_OK):
                raise
            if wal.exists() and wal.stat().st_size:
                raise StartError(f"store: {path} has an unfinished log and its folder cannot be written") from exc
            connection.close()
            uri, read_only = f"{uri}?immutable=1", True
            connection = _connect(uri, busy_s)
        return _prepare(connection, path, key, read_only=read_only, uri=uri, busy_s=busy_s, existed=existed)
    except sqlite3.DatabaseError as exc:
        connection.close()
        if _code(exc) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise _Unusable(f"cannot be read ({exc})") from exc
        remedy = "; is another program using it?" if _code(exc) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} else ""
        raise StartError(f"store: {path}: {exc}{remedy}") from exc
    except BaseException:
        connection.close()
        raise


def _make_folder(folder: Path) -> None:
    """Folders that are there already keep the mode that somebody gave them. Raises OSError."""
    for part in (*reversed(folder.parents), folder):  # one by one: `parents=True` gives the mode to the last only
        part.mkdir(mode=0o700, exist_ok=True)


def _create(path: Path) -> None:
    """An empty file for SQLite to fill, since SQLite itself would let everybody read it. Raises StartError.

    The log and the shared memory beside it get its mode.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise StartError(f"store: {path} cannot be created: {exc.strerror}") from exc


def _prepare(
    connection: sqlite3.Connection,
    path: Path | None,
    key: bytes,
    *,
    read_only: bool,
    uri: str,
    busy_s: float,
    existed: bool = False,
) -> Database:
    """Check whose database it is, bring it to our version, and read its identity."""
    if existed:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise _Unusable("is not a semcache database")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StartError(
            f"store: {path} was written by a newer semcache (schema {version}, this one knows {len(MIGRATIONS)}); "
            "use that version, or name another file"
        )
    if existed and path is not None:
        _check_pages(connection, path)
    if read_only:
        if version < len(MIGRATIONS):
            raise StartError(f"store: {path} has the older schema {version} and cannot be written to migrate it")
    else:
        _migrate(connection, version)
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    identity = meta.get("id")
    if not isinstance(identity, str) and not read_only:
        identity = secrets.token_hex(16)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("id", identity), ("key_check", _key_check(key, identity))]
        )
        connection.execute("COMMIT")
    elif not isinstance(identity, str) or meta.get("key_check") != _key_check(key, identity):
        if read_only:
            raise StartError(f"store: {path} was sealed with another key, so nothing in it can be trusted")
        raise _Unusable("was sealed with another key")
    return Database(path, connection, identity, key, read_only, uri, busy_s)


def _connect(uri: str, busy_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=uri.startswith("file:"), timeout=busy_s, isolation_level=None, check_same_thread=False
    )
    # Damage can make a text invalid UTF-8. That must reach the seal check as a wrong text, not as an exception that
    # ends a scan over a thousand good rows.
    connection.text_factory = lambda raw: str(raw, "utf-8", "replace")
    return connection


def _is_writable(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as exc:
        if _code(exc) == sqlite3.SQLITE_BUSY:  # another process is writing: so can we, later
            return True
        if exc.sqlite_errorcode != sqlite3.SQLITE_READONLY:
            raise
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return False
    return True


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    mark = beside(path, ".damaged")
    if mark.exists() or path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _Unusable("is damaged")
        with suppress(OSError):
            mark.unlink(missing_ok=True)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of effect in a new file only
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; power loss may take the tail
    connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten; measured to cost nothing here
    connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        statements = [statement for statement in script.split(";") if statement.strip()]
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def _only_starter(path: Path) -> Iterator[None]:
    try:
        lock = os.open(beside(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # a folder we cannot write: nothing can be created or moved aside there either
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _load_key(path: Path) -> bytes:
    """32 random bytes that only this user can read. A missing or unusable key is replaced: what it sealed is lost."""
    with suppress(OSError):
        key = path.read_bytes()
        if len(key) == 32:
            return key
    key = secrets.token_bytes(32)
    fresh = beside(path, ".new")
    with suppress(OSError):  # a folder we cannot write: the database there is then found to have another key
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
    return key


def _move_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = beside(path, f".aside-{stamp}-{secrets.token_hex(3)}")
    try:
        for suffix in ("", "-wal", "-shm"):
            if beside(path, suffix).exists():
                beside(path, suffix).rename(beside(aside, suffix))
        beside(path, ".damaged").unlink(missing_ok=True)
    except OSError as exc:
        raise StartError(f"store: {path} cannot be used, and cannot be moved aside: {exc.strerror}") from exc
    return aside


def _key_check(key: bytes, identity: str) -> bytes:
    return blake2b(identity.encode("utf-8", "surrogatepass"), key=key, digest_size=16, person=b"semcache key").digest()


def _code(exc: sqlite3.Error) -> int:
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _glob_escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)

"""The file of virtual keys: SQLite, one sealed row a key, shared by all processes that know the pepper.

A key's row is a JSON text under an HMAC, so that whoever can write to the file without knowing the pepper can neither
make a key nor give one another tenant; a row with a wrong seal counts as no key. Unlike the cache's, this file is
never moved aside or made anew when it cannot be used: an empty one would lock everybody out.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from semcache.access.keys import VirtualKey, digest_under
from semcache.errors import SemcacheError, StartError

log = logging.getLogger(__name__)

APPLICATION_ID = 0x534B4559  # "SKEY": PRAGMA application_id
SCHEMA = 1  # PRAGMA user_version
BUSY_S = 5.0  # a writer waits for another; readers of a WAL file wait for nobody

# `meta.changes` counts what was written to `keys`: a note in `uses` must not have every process read all keys again.
_SCHEMA = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE keys (id TEXT PRIMARY KEY, facts TEXT NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE uses (id TEXT PRIMARY KEY, day TEXT NOT NULL) WITHOUT ROWID;
"""


class KeyFileFault(SemcacheError):
    """The file could not be read or written just now."""

    status = 503


class KeyFile:
    """Its methods wait for a disk: call them on a thread. One thread at a time may call `read`."""

    def __init__(self, path: str, pepper: bytes) -> None:
        self.path = Path(path)
        self._pepper = pepper
        self.digest = digest_under(pepper)
        self._reader: sqlite3.Connection | None = None
        self._inode = 0
        self._version = -1  # data_version as of the last read
        self._changes = -1
        self._rows: dict[str, tuple[tuple[str, str, bytes], VirtualKey]] = {}

    def open(self) -> None:
        """Make the file if there is none; check that it can be used. Raises StartError."""
        try:
            if not self.path.exists():
                self._create()
            with suppress(OSError):  # it is somebody else's; its rows are sealed all the same
                self.path.chmod(0o600)
            self._reopen()
        except (OSError, sqlite3.Error) as exc:
            raise StartError(f"keys.path: {self.path} cannot be used: {_reason(exc)}") from exc

    def _reopen(self) -> None:
        self.close()
        self._inode = self.path.stat().st_ino
        self._reader = self._connect()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._version = self._changes = -1

    def read(self) -> Mapping[str, VirtualKey] | None:
        """All keys by id; None where nothing has changed since the last call. Raises KeyFileFault."""
        try:
            if self._reader is None or self.path.stat().st_ino != self._inode:  # a backup was put in its place
                self._reopen()
            assert self._reader is not None
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return None
            with _transaction(self._reader, "BEGIN"):
                (changes,) = self._reader.execute("SELECT value FROM meta WHERE name = 'changes'").fetchone()
                is_same = changes == self._changes
                rows = [] if is_same else self._reader.execute("SELECT id, facts, seal FROM keys").fetchall()
        except StartError as exc:
            raise KeyFileFault(exc.message) from exc
        except (OSError, sqlite3.Error, TypeError) as exc:
            self.close()
            raise KeyFileFault(f"{self.path} cannot be read: {_reason(exc)}") from exc
        self._version, self._changes = version, changes
        if is_same:
            return None
        self._rows = {row[0]: (row, key) for row in rows if (key := self._reread(row)) is not None}
        return {key_id: key for key_id, (_, key) in self._rows.items()}

    def last_used(self) -> Mapping[str, str]:
        """The day, as 2026-11-21, on which each key was last used. Raises KeyFileFault."""
        with self._connected() as connection:
            return dict(connection.execute("SELECT id, day FROM uses").fetchall())

    def note_uses(self, days: Mapping[str, str]) -> None:
        """Raises KeyFileFault."""
        with self._connected() as connection, _transaction(connection):
            connection.executemany(
                "INSERT INTO uses VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET day = max(day, excluded.day)",
                days.items(),
            )

    def all(self) -> list[VirtualKey]:
        """Raises KeyFileFault."""
        with self._connected() as connection:
            return self._unsealed(connection.execute("SELECT id, facts, seal FROM keys").fetchall())

    @contextmanager
    def changing(self) -> Iterator[Changing]:
        """Read and write keys while nobody else writes; all of it is kept, or none. Raises KeyFileFault."""
        with self._connected() as connection, _transaction(connection):
            yield Changing(self, connection)
            connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'changes'")

    # Opening and sealing

    def _create(self) -> None:
        """Made under another name and then put in place whole: of two processes that start together one is first."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new-{secrets.token_hex(6)}")
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_SCHEMA)
                salt = secrets.token_hex(16)
                facts = [("salt", salt), ("check", self._check(salt)), ("changes", 0)]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", facts)
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={SCHEMA}")
            with suppress(FileExistsError):
                os.link(fresh, self.path)
        finally:
            fresh.unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        """Raises StartError for a file that is none of ours, or of another pepper."""
        # Never made here: a file that vanished is a fault, and an empty one in its place would refuse everybody.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=FULL")  # a key that was revoked stays so when the power fails
            connection.execute("PRAGMA secure_delete=ON")
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION_ID:
                raise StartError(f"keys.path: {self.path} is no file of keys; name another, or move it away")
            if schema != SCHEMA:
                raise StartError(f"keys.path: {self.path} was written by another semcache (schema {schema})")
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            if not hmac.compare_digest(str(meta.get("check")), self._check(str(meta.get("salt")))):
                raise StartError(
                    f"keys.pepper: {self.path} was made with another one, so no key in it can be checked; "
                    "set the one it was made with, or move the file away and make new keys"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own: its changes are then seen by the one that reads, as those of other processes."""
        try:
            with closing(self._connect()) as connection:
                yield connection
        except StartError as exc:
            raise KeyFileFault(exc.message) from exc
        except (OSError, sqlite3.Error) as exc:
            raise KeyFileFault(f"{self.path} cannot be used: {_reason(exc)}") from exc

    def seal(self, facts: str) -> bytes:
        return hmac.digest(self._pepper, b"semcache key row\0" + facts.encode(), sha256)

    def _check(self, salt: str) -> str:
        return hmac.digest(self._pepper, b"semcache keys check\0" + salt.encode(), sha256).hex()

    def _unsealed(self, rows: Iterable[tuple[str, str, bytes]]) -> list[VirtualKey]:
        return [key for row in rows if (key := self._unseal(*row)) is not None]

    def _reread(self, row: tuple[str, str, bytes]) -> VirtualKey | None:
        """Of ten thousand keys one has changed: reading all takes 0.2 s of the processor, comparing them 20 ms."""
        before = self._rows.get(row[0])
        return before[1] if before is not None and before[0] == row else self._unseal(*row)

    def _unseal(self, key_id: str, facts: str, seal: bytes) -> VirtualKey | None:
        try:
            if not hmac.compare_digest(seal, self.seal(facts)):
                raise ValueError("its seal is wrong")
            key = VirtualKey.model_validate_json(facts)
            if key.id != key_id:
                raise ValueError("it stands under another id")
        except (ValidationError, ValueError, TypeError, AttributeError) as exc:
            why = "it cannot be read" if isinstance(exc, ValidationError) else exc
            log.error("keys: one row of %s counts as no key: %s", self.path, why)
            return None
        return key


class Changing:
    """Keys in the midst of a change."""

    def __init__(self, file: KeyFile, connection: sqlite3.Connection) -> None:
        self._file = file
        self._connection = connection

    def find(self, key_id: str) -> VirtualKey | None:
        row = self._connection.execute("SELECT id, facts, seal FROM keys WHERE id = ?", (key_id,)).fetchone()
        return None if row is None else self._file._unseal(*row)

    def add(self, key: VirtualKey) -> None:
        """Raises sqlite3.IntegrityError where the id is taken."""
        self._write("INSERT", key)

    def put(self, key: VirtualKey) -> None:
        self._write("REPLACE", key)

    def _write(self, how: str, key: VirtualKey) -> None:
        facts = key.model_dump_json()
        self._connection.execute(f"{how} INTO keys VALUES (?, ?, ?)", (key.id, facts, self._file.seal(facts)))


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)

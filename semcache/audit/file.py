"""Appending to the chain, from several processes at once, and beginning new files without breaking it.

Whoever appends holds a lock (flock, on a file beside the log), looks whether another process wrote since, and reads the
end again if so. A line that a crash has cut is closed with a line that says so. Everything here may block: it belongs
on a thread.

Files: `audit.jsonl` is written to. When it is full it gets the number of its first line after its name and keeps that
name for good, so that what was copied to a safe place is still called the same: `audit.jsonl.000000000001`.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from semcache.audit.chain import BEGINNING, Head, links, read_head, seal
from semcache.audit.record import Event, render

BLOCK_BYTES = 256 * 1024  # written at once; a file grows past `rotate` by at most as much
_READ_BYTES = 64 * 1024
_ARCHIVED = re.compile(r"\.(\d{12,18})")


class Appended(NamedTuple):
    """How many of the records are in the file, and what kept the others out."""

    written: int
    fault: OSError | None = None


class _End(NamedTuple):
    """What a file ends with."""

    head: Head  # of its last line that is whole; BEGINNING: none is
    torn: bytes  # what stands after it and is no line


class AuditFile:
    def __init__(self, path: Path, rotate_bytes: int, keep: int | None, now: Callable[[], datetime]) -> None:
        """`keep`: files in all, the one that is written to among them; None: every one."""
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._now = now
        self._lock = -1
        self._fd = -1
        self._size = -1  # of the file as we left it; another size means that somebody else wrote. -1: look again
        self.head = BEGINNING  # the last line that we know of
        self.rotations = 0

    def append(self, records: Sequence[bytes]) -> Appended:
        """Write records (see record.py) as the next lines, and have them on the disk on return.

        What could not be written is for the caller to try again. No record only looks whether there could be one.
        """
        places: list[int] = []  # the number of each record's line, once it has one
        try:
            with self._locked():
                try:
                    self._find_end()
                    for block in _blocks(records):
                        self._rotate_before(sum(map(len, block)))
                        self._write(block, places)
                    if records:
                        os.fdatasync(self._fd)
                except OSError as fault:
                    return Appended(self._count_written(places), fault)
        except OSError as fault:  # the lock
            return Appended(0, fault)
        return Appended(len(records))

    def close(self) -> None:
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = self._size = -1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock < 0:
            self._lock = os.open(lock_path(self._path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _find_end(self) -> None:
        """Open the file anew if it was rotated, read its end if another process wrote, close a line that was cut."""
        if self._is_as_we_left_it():
            return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        is_new = not self._path.exists()
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if is_new:
            _sync_folder(self._path)
        end = read_end(self._fd)
        # A file that ends before the line we know of was cut or taken away. We go on from what we know, so that the
        # missing lines show as missing.
        self._know(end.head if end.head.seq else self._archived_head())
        self._size = os.fstat(self._fd).st_size
        if end.torn:
            self._close_torn(end.torn)

    def _is_as_we_left_it(self) -> bool:
        if self._fd < 0 or self._size < 0:
            return False
        with suppress(FileNotFoundError):
            ours, there = os.fstat(self._fd), os.stat(self._path)
            return os.path.samestat(ours, there) and there.st_size == self._size
        return False

    def _know(self, head: Head) -> None:
        if head.seq > self.head.seq:
            self.head = head

    def _archived_head(self) -> Head:
        files = archives(self._path)
        if not files:
            return BEGINNING
        fd = os.open(files[-1], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_end(fd).head
        finally:
            os.close(fd)

    def _close_torn(self, torn: bytes) -> None:
        whole = read_head(torn)
        if whole is not None and links(torn, self.head):  # cut just before its newline
            self._put(b"\n", whole)
            return
        ended = torn.endswith(b"\n")  # a crash has cut a line like the one that we are about to write
        torn = torn.removesuffix(b"\n")
        facts = {"bytes": len(torn), "sha256": sha256(torn).hexdigest()}  # so that nobody changes it from now on
        line, head = seal(self.head, render(Event.TORN, self._now(), facts))
        self._put(line if ended else b"\n" + line, head)

    def _write(self, records: Sequence[bytes], places: list[int]) -> None:
        head = self.head
        lines = []
        for record in records:
            line, head = seal(head, record)
            lines.append(line)
            places.append(head.seq)
        self._put(b"".join(lines), head)

    def _put(self, block: bytes, head: Head) -> None:
        view = memoryview(block)
        size = self._size
        self._size = -1  # until it is known to be right
        while view:
            view = view[os.write(self._fd, view) :]
        self._size = size + len(block)
        self.head = head

    def _count_written(self, places: Sequence[int]) -> int:
        """How many of the lines that were begun are whole in the file. The lock is still ours."""
        self._size = -1
        if self._fd < 0:
            return 0
        with suppress(OSError):
            self._know(read_end(self._fd).head)
        return sum(place <= self.head.seq for place in places)

    # Rotation

    def _rotate_before(self, more_bytes: int) -> None:
        if self._size == 0 or self._size + more_bytes <= self._rotate_bytes:
            return
        archived = self._path.with_name(f"{self._path.name}.{_first_seq(self._fd, self.head):012d}")
        if archived.exists():  # somebody put it there; a log that grows is better than one that is written over
            return
        os.fdatasync(self._fd)
        os.rename(self._path, archived)
        os.close(self._fd)
        self._fd = self._size = -1
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0
        self.rotations += 1
        self._remove_old()
        _sync_folder(self._path)

    def _remove_old(self) -> None:
        files = archives(self._path)
        old = files[: max(0, len(files) + 1 - self._keep)] if self._keep is not None else []
        if not old:
            return
        kept = files[len(old) :]
        through = _number(kept[0]) - 1 if kept else self.head.seq
        # First the line, then the files: a crash between leaves a file too many, not a chain that begins anyhow.
        self._write([render(Event.REMOVED, self._now(), {"files": len(old), "through": through})], [])
        os.fdatasync(self._fd)
        for file in old:
            file.unlink(missing_ok=True)


def lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def archives(path: Path) -> list[Path]:
    """The full files of a log, oldest first."""
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    found = [name for name in names if name.startswith(path.name) and _ARCHIVED.fullmatch(name, len(path.name))]
    return sorted((path.with_name(name) for name in found), key=_number)


def read_end(fd: int) -> _End:
    """Read backwards to the last line whose hash is right."""
    size = os.fstat(fd).st_size
    window = _READ_BYTES
    while True:
        start = max(0, size - window)
        tail = os.pread(fd, size - start, start)
        lines = tail.split(b"\n")
        for place in range(len(lines) - 2, 0 if start else -1, -1):  # the first one may begin further up
            if head := read_head(lines[place]):
                return _End(head, b"\n".join(lines[place + 1 :]))
        if start == 0:
            return _End(BEGINNING, tail)
        window *= 16


def _first_seq(fd: int, head: Head) -> int:
    found = re.match(rb'\{"seq":(\d{1,18}),', os.pread(fd, 64, 0))
    return int(found[1]) if found else head.seq


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _blocks(records: Sequence[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for record in records:
        if block and size + len(record) > BLOCK_BYTES:
            yield block
            block, size = [], 0
        block.append(record)
        size += len(record)
    if block:
        yield block


def _sync_folder(path: Path) -> None:
    """A new name is on the disk once its folder is."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

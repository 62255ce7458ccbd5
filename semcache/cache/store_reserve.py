"""Disk space set aside for deleting: on a full disk SQLite cannot even delete, since its log grows first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FREE_FACTOR = 2  # the reserve is taken only where this many times as much is free, so that it fills no disk itself


class Reserve:
    """A file of real blocks beside the database; without a path there is no disk, and never a reserve."""

    def __init__(self, database: Path | None, size_bytes: int) -> None:
        self._path = None if database is None else database.with_name(database.name + ".reserve")
        self._size_bytes = size_bytes

    def fill(self) -> bool:
        """Set the space aside if there is plenty; return whether it is there now."""
        if self._path is None:
            return True
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size == self._size_bytes:
                return True
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < FREE_FACTOR * self._size_bytes:
                return False
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
            return True
        return False

    def release(self) -> bool:
        """Give the space back to the disk; return whether there was any."""
        if self._path is None:
            return False
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

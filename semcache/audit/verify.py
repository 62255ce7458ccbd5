"""Checking a chain: every line of every file, in order, up to the first that is not what it should be."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from semcache.audit.chain import BEGINNING, Head, links, looks_whole, previous, read_head
from semcache.audit.file import archives, lock_path
from semcache.audit.record import Event
from semcache.errors import SemcacheError


class Break(NamedTuple):
    """The first place where the chain does not hold."""

    file: Path
    line: int  # from 1
    why: str


@dataclass(slots=True)
class Report:
    files: list[Path] = field(default_factory=list)
    lines: int = 0  # that hold
    begins: int = 0  # the number of the first line that is there
    first_time: str = ""
    last_time: str = ""
    head: Head = BEGINNING
    torn: int = 0  # lines that crashes have cut, each with a line after it that says so
    is_cut: bool = False  # the end is such a line, and nothing has been written since
    lost: int = 0  # records that the log itself says it could not write
    removed_through: int = 0  # the last line that was removed by `audit.keep`, as a line says
    broken: Break | None = None


def verify(path: Path, head: str | None = None) -> Report:
    """Check the files of a log. It may be written to meanwhile: what is added after the start is not looked at.

    `head`: the hash of a line that must be in it, as printed by an earlier run.
    Raises SemcacheError for files that cannot be read.
    """
    report = Report()
    walk = _Walk(report, head)
    try:
        with ExitStack() as stack:
            for file, opened, size in _open_all(path, stack):
                report.files.append(file)
                if not walk.read(file, _lines(opened, size)):
                    return report
    except OSError as exc:
        raise SemcacheError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc
    walk.end()
    return report


class _Walk:
    """The state between two lines."""

    def __init__(self, report: Report, wanted: str | None) -> None:
        self._report = report
        self._wanted = wanted.lower() if wanted else None
        self._cut = b""  # lines that do not hold and look as if a crash had cut them
        self._cut_at: tuple[Path, int] | None = None
        self._last: tuple[Path, int] | None = None

    def read(self, file: Path, lines: Iterator[bytes]) -> bool:
        """Read one file; False where the chain breaks in it."""
        for number, raw in enumerate(lines, 1):
            line = raw.removesuffix(b"\n")
            head = read_head(line)
            if why := self._follow(line, head) if head is not None else self._set_aside(file, number, raw):
                self._report.broken = Break(*(self._cut_at or (file, number)), why)
                return False
            self._last = (file, number)
        return True

    def end(self) -> None:
        """What can only be said once all lines were read."""
        report = self._report
        report.is_cut = bool(self._cut)
        place = (report.files[0], 1)
        if self._cut_at is not None and self._cut.endswith(b"\n"):  # a line that a crash has cut does not end
            report.broken = Break(*self._cut_at, "it is no line of this log: it was changed")
        elif report.begins > 1 and report.removed_through < report.begins - 1:
            why = f"the lines before number {report.begins} are missing, and no line says that they were removed"
            report.broken = Break(*place, why)
        elif self._wanted is not None:
            report.broken = Break(*(self._last or place), "no line has the hash given with --head: the end was cut off")

    def _set_aside(self, file: Path, number: int, raw: bytes) -> str:
        """Keep what may be a line that a crash has cut until the line that says so; or say why it is none."""
        line = raw.removesuffix(b"\n")
        if looks_whole(line):
            return "its hash is not that of its text: the line was changed"
        if not raw.endswith(b"\n") and read_head(line[:-1]) is not None:
            return "the byte that ends the line was changed"
        self._cut += raw
        self._cut_at = self._cut_at or (file, number)
        return ""

    def _follow(self, line: bytes, head: Head) -> str:
        """Take a line with a right hash; or say why it cannot follow the one before."""
        report = self._report
        if report.lines == 0 and head.seq > 1 and not self._cut:
            report.begins = head.seq  # older files are gone; `end` looks whether a line says so
        elif not links(line, report.head):
            return self._why_not(line, head)
        elif head.seq != report.head.seq + 1:
            return f"its number is {head.seq}, after {report.head.seq}"
        event = line[line.find(b'"event":"') + 9 :][:9]
        if self._cut and not event.startswith(b'torn"'):
            return "it does not hold, and the line after it does not say that it was cut"
        if event.startswith((b'torn"', b'lost"', b'removed"')) and not self._note(orjson.loads(line)):
            return "it does not hold, and is not what the line after it says was cut"
        if report.lines == 0:
            report.begins, report.first_time = head.seq, _time(line)
        report.lines += 1
        report.last_time = _time(line)
        report.head = head
        if self._wanted is not None and head.hash == self._wanted:
            self._wanted = None
        return ""

    def _why_not(self, line: bytes, head: Head) -> str:
        expected = self._report.head.seq + 1
        if head.seq == expected:
            return f"it does not follow the line before it, which was changed or written anew (it names {_short(line)})"
        if head.seq > expected:
            return f"lines {expected} to {head.seq - 1} are missing before it"
        return f"its number is {head.seq}, where {expected} is due: it is a copy, or was moved"

    def _note(self, record: dict[str, Any]) -> bool:
        """Take down what the log says of itself; False where that is not so."""
        report = self._report
        match record["event"]:
            case Event.LOST:
                report.lost += record["lines"]
            case Event.REMOVED:
                report.removed_through = max(report.removed_through, record["through"])
            case Event.TORN:
                cut = self._cut.removesuffix(b"\n")
                if record["bytes"] != len(cut) or record["sha256"] != sha256(cut).hexdigest():
                    return False
                report.torn += 1
                self._cut, self._cut_at = b"", None
        return True


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is JSON, oldest first, checked or not. Raises SemcacheError for files that cannot be read."""
    try:
        with ExitStack() as stack:
            for _, opened, size in _open_all(path, stack):
                for line in _lines(opened, size):
                    try:
                        record = orjson.loads(line)
                    except ValueError:
                        continue
                    if isinstance(record, dict):
                        yield record
    except OSError as exc:
        raise SemcacheError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from exc


def since(record: dict[str, Any], start: datetime) -> bool:
    try:
        return datetime.fromisoformat(record["time"]) >= start
    except (KeyError, TypeError, ValueError):
        return False


def _open_all(path: Path, stack: ExitStack) -> list[tuple[Path, BinaryIO, int]]:
    """The files of a log, oldest first, with their sizes at one moment between two writes."""
    with ExitStack() as held:
        try:
            lock = held.enter_context(open(lock_path(path), "rb"))
        except OSError:
            pass  # a copy somewhere else, or somebody who may only read
        else:
            fcntl.flock(lock, fcntl.LOCK_SH)
        files = archives(path)
        if path.exists() or not files:  # a log without any file is an error
            files.append(path)
        opened = [(file, stack.enter_context(open(file, "rb"))) for file in files]
        return [(file, source, os.fstat(source.fileno()).st_size) for file, source in opened]


def _lines(source: BinaryIO, size: int) -> Iterator[bytes]:
    for line in source:
        yield line[:size]
        size -= len(line)
        if size <= 0:
            return


def _time(line: bytes) -> str:
    at = line.find(b'"time":"') + 8
    return line[at : line.find(b'"', at)].decode()


def _short(line: bytes) -> str:
    return previous(line)[:12] or "none"

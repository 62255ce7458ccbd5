"""The request log: one JSON line a request, written by a thread of its own.

No request waits for the log. Lines go into a bounded queue, and what does not fit is dropped and counted; a pipe that
nobody reads, a full disk or a slow one cost lines, never time. Questions are not in it unless the operator asked.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import orjson

from semcache.config import Server
from semcache.errors import StartError
from semcache.types import Outcome

QUEUE_BYTES = 8 * 1024 * 1024  # some 15,000 lines: half a second of the fastest hits
BATCH_S = 0.05  # lines are written this late, together: a thread woken for each would take the loop's turn each time
CUT = 200  # characters of a text that a caller chose, such as the model's name
CUT_QUESTION = 4000
STOP_S = 2.0  # how long a stop waits for a sink that takes nothing


class RequestLog:
    """Writes to a file descriptor (1: stdout), or to a path that may be rotated away at any time.

    `log_prompts`: only then is the question that `write` is given put into the line. `is_shared`: other workers write
    to the same sink; a pipe keeps lines whole only in writes of up to PIPE_BUF.
    """

    def __init__(
        self,
        sink: int | str = 1,
        log_prompts: bool = False,
        is_shared: bool = False,
        now: Callable[[], datetime] = partial(datetime.now, UTC),
        region: str | None = None,
    ) -> None:
        self._region = region
        self._path = sink if isinstance(sink, str) else None
        self._fd = sink if isinstance(sink, int) else -1
        self._log_prompts = log_prompts
        self._block_bytes = select.PIPE_BUF if is_shared else QUEUE_BYTES
        self._now = now
        self._lines: deque[bytes] = deque()
        # Two counters with one writer each instead of one with two: no lock between the loop and the thread.
        self._queued_bytes = 0  # counted on the event loop
        self._done_bytes = 0  # counted on the thread
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._mid_line = False  # a line was cut by an error
        self.written = 0
        self.dropped = 0  # the queue was full
        self.lost = 0  # the sink refused
        self.withheld = 0  # of requests bound to regions that the sink is outside of

    def start(self) -> None:
        """Raises StartError where no line could ever be written."""
        if self._path is not None:
            _make_room(Path(self._path))
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued and end. Blocks, for at most STOP_S: a sink that is stuck keeps its lines."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def write(self, outcome: Outcome, question: str | None = None) -> None:
        """Queue the line of one request, or drop it. One bound to regions that we are outside of has none."""
        if outcome.regions and self._region is not None and self._region not in outcome.regions:
            self.withheld += 1
            return
        if self._queued_bytes - self._done_bytes >= QUEUE_BYTES:
            self.dropped += 1
            return
        # Serialised here and not on the thread: a thread running Python holds the loop up for 5 ms at a time, and what
        # is left for it now, one join and one write, runs in C.
        line = render_line(outcome, self._now(), question if self._log_prompts else None)
        was_empty = not self._lines
        self._queued_bytes += len(line)
        self._lines.append(line)
        if was_empty:
            self._wake.set()

    def stats(self) -> dict[str, float]:
        return {
            "lines_written": self.written,
            "lines_dropped": self.dropped,
            "lines_lost": self.lost,
            "lines_withheld": self.withheld,
            "queue_bytes": self._queued_bytes - self._done_bytes,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()  # before the queue is emptied: a line after this wakes us again
            self._stopping.wait(BATCH_S)
            self._write_batch()
        self._write_batch()
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)

    def _write_batch(self) -> None:
        block: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines.popleft()
            if block and size + len(line) > self._block_bytes:
                self._write_block(block)
                block, size = [], 0
            block.append(line)
            size += len(line)
        if block:
            self._write_block(block)

    def _write_block(self, lines: list[bytes]) -> None:
        block = b"".join(lines)
        try:
            self._reopen_if_rotated()
            self._write_all(b"\n" + block if self._mid_line else block)
            self.written += len(lines)
        except OSError:  # disk full, pipe closed, folder gone: the next block tries again
            self.lost += len(lines)
        finally:
            self._done_bytes += len(block)

    def _write_all(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
                self._mid_line = len(view) > 0
            except BlockingIOError:  # stdout was made non-blocking by whoever started us
                select.select([], [self._fd], [])

    def _reopen_if_rotated(self) -> None:
        """Follow the path: a log that was renamed or removed is left, and a new file begun under the name."""
        if self._path is None:
            return
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                    return
            os.close(self._fd)
            self._fd = -1
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _make_room(path: Path) -> None:
    """Make the folders, readable by us only. The file is not opened: it may be a pipe that waits for its reader."""
    try:
        for folder in reversed(path.parents):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise StartError(f"server.request_log: the folder {path.parent} cannot be made: {exc.strerror}") from exc
    if path.is_dir():
        raise StartError(f"server.request_log: {path} is a folder; name a file in it, such as {path / 'requests.log'}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise StartError(f"server.request_log: {path} cannot be written")


def render_line(outcome: Outcome, time: datetime, question: str | None = None) -> bytes:
    """Return the line of a request, newline included: ASCII, and no control character but the newline at its end."""
    usage = outcome.usage
    line: dict[str, object] = {
        "time": time,
        "request_id": outcome.request_id,
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "tier": outcome.tier,
        "similarity": outcome.similarity,
        "entry": outcome.entry_id,
        "status": outcome.status,
        "fwd_status": outcome.fwd_status,
        "stored": outcome.stored,
        "unstorable": outcome.unstorable,
        "tenant": outcome.tenant,
        "key": outcome.key,
        "namespace": outcome.namespace[:CUT],
        "model": outcome.model[:CUT],
        "endpoint": outcome.endpoint,
        "stream": outcome.stream,
        "route": outcome.route,
        "backend": outcome.backend,
        "region": outcome.region,
        "attempts": outcome.attempts,
        "phases_ms": outcome.phases_ms,
        "ttfb_ms": outcome.ttfb_ms,
        "total_ms": outcome.total_ms,
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "bytes_out": outcome.bytes_out,
        "truncated": outcome.truncated,
        "error": outcome.error,
    }
    if outcome.feedback is not None:
        line["feedback"] = outcome.feedback
    if outcome.flags:
        line["flags"] = outcome.flags
    if question is not None:
        line["question"] = question[:CUT_QUESTION]
    try:
        text = orjson.dumps(line, option=_OPTIONS)
    except TypeError:  # half a surrogate pair, which is no UTF-8; or an integer past 64 bits
        text = b"\x80"
    if text.isascii() and b"\x7f" not in text:
        return text
    # Other scripts, and among them what a terminal obeys though JSON allows it: C1 controls, text direction marks.
    plain = json.dumps({**line, "time": time.isoformat()}, separators=(",", ":"), ensure_ascii=True)
    return plain.replace("\x7f", "\\u007f").encode() + b"\n"


_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


class NoLog:
    """The log that is switched off."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def write(self, outcome: Outcome, question: str | None = None) -> None: ...

    def stats(self) -> dict[str, float]:
        return dict.fromkeys(("lines_written", "lines_dropped", "lines_lost", "lines_withheld", "queue_bytes"), 0)


def open_log(settings: Server) -> RequestLog | NoLog:
    """The log that `server.request_log` names."""
    if settings.request_log == "off":
        return NoLog()
    sink = 1 if settings.request_log == "stdout" else settings.request_log
    region = settings.request_log_region or settings.region
    return RequestLog(sink, settings.log_prompts, is_shared=settings.workers > 1, region=region)

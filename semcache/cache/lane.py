"""A lane: threads that take work off one queue, in order.

Handing over costs what it must: a C queue in one direction and one wake-up of the event loop in the other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Generic, TypeVar

W = TypeVar("W")

log = logging.getLogger(__name__)

PARTING_S = 1.0  # threads of a stopped lane get this long; one that hangs in an engine dies with the process


class Lane(Generic[W]):
    """`serve` gets 1 to `batch` pieces at a time, on `threads` threads at once; a batch waits `max_wait_s` to fill.

    A thread takes at most its share of what waits, so that no thread is idle while another has a batch.

    `serve` must not raise; should it all the same, the pieces are lost (their callers have deadlines) and the lane
    goes on.
    """

    def __init__(
        self, name: str, serve: Callable[[list[W]], None], threads: int = 1, batch: int = 1, max_wait_s: float = 0.0
    ) -> None:
        self._serve = serve
        self._batch = batch
        self._max_wait_s = max_wait_s
        self._queue: SimpleQueue[W | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, work: W) -> None:
        self._queue.put(work)

    @property
    def depth(self) -> int:
        """Pieces waiting; those being served not counted."""
        return self._queue.qsize()

    def stop(self) -> None:
        """Let what is queued be served, and end. Blocks up to PARTING_S."""
        for _ in self._threads:
            self._queue.put(None)
        until = monotonic() + PARTING_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - monotonic()))

    def _run(self) -> None:
        while (work := self._take()) is not None:
            try:
                self._serve(work)
            except Exception:  # the top of a background loop: a lane that ended would stop its part of the cache
                log.exception("a lane dropped its work")
            del work  # else it, and the caller's whole request, would live until the next question

    def _take(self) -> list[W] | None:
        first = self._queue.get()
        if first is None:
            return None
        taken = [first]
        share = self._batch if self._max_wait_s else min(self._batch, 1 + self._queue.qsize() // len(self._threads))
        until = monotonic() + self._max_wait_s
        while len(taken) < share:
            try:
                more = self._queue.get(timeout=max(0.0, until - monotonic()))
            except Empty:
                break
            if more is None:
                self._queue.put(None)  # ours to see again, after this batch
                break
            taken.append(more)
        return taken

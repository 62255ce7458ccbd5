"""Writing usage down now and then, off the event loop. A fault of the file costs nothing but time: what could not be
written is written later, and no request knows of it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeVar

from semcache.errors import StartError
from semcache.usage.ledger import Ledger
from semcache.usage.rollups import Counts, Place, UsageFile

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

QUOTAS_S = 1.0  # limits that workers share are known to all of them after this
FOLD_S = 600.0


class Quotas(Protocol):
    """What limits have counted, of which workers tell each other through the file."""

    def take(self) -> tuple[Sequence[tuple[Place, Counts]], Sequence[Place]]: ...

    def learn(self, totals: Mapping[Place, Counts]) -> None: ...

    def give_back(self) -> None: ...


class Flushing:
    """Takes what the ledger and the quotas have, and writes it; where there is no file, it is let go."""

    def __init__(
        self,
        file: UsageFile | None,
        ledger: Ledger,
        quotas: Quotas,
        flush_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._ledger = ledger
        self._quotas = quotas
        self._flush_s = flush_s
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # one round at a time: what was taken is written, or given back, before the next
        self._folded = 0.0
        self.faults = 0
        self.written = 0
        self._is_failing = False
        self._is_stopped = False

    async def start(self) -> None:
        """Open the file and learn what limits have counted before. Raises StartError."""
        if self._file is not None:
            await self._aside(self._file.open)
            try:
                self._quotas.learn(await self._aside(lambda file: file.quotas(self._clock()), self._file))
            except sqlite3.Error as exc:
                raise StartError(f"usage: {self._file.path}: cannot be read: {exc}; see usage.path") from exc
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write the last of it. Does nothing twice."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self.flush()
        if self._file is not None:
            await self._aside(self._file.close)
        self._thread.shutdown(wait=False)

    async def flush(self, with_usage: bool = True) -> None:
        """One round. Raises nothing."""
        async with self._turn:
            minutes = self._ledger.take() if with_usage else []
            news, wanted = self._quotas.take()
            file = self._file
            if file is None or not (minutes or news or wanted):
                self._quotas.learn({})
                return
            try:
                totals = await self._aside(file.write, minutes, news, wanted)
            except Exception as exc:
                self._fail(exc)
                self._ledger.give_back(minutes)
                self._quotas.give_back()
                return
            self._quotas.learn(totals)
            self.written += sum(len(rows) for _, rows in minutes)
            self._is_failing = False

    def stats(self) -> dict[str, float]:
        return {"faults": self.faults, "rows_written": self.written}

    async def _run(self) -> None:
        due = 0.0
        while True:
            waited_s = min(self._flush_s, QUOTAS_S)
            await asyncio.sleep(waited_s)
            due += waited_s
            is_due = due >= self._flush_s
            due = 0.0 if is_due else due
            await asyncio.shield(self.flush(is_due))  # a stop waits for the round that is under way
            await self._fold()

    async def _fold(self) -> None:
        now = self._clock()
        if self._file is None or abs(now - self._folded) < FOLD_S:
            return
        self._folded = now
        try:
            await self._aside(self._file.fold, now)
        except Exception as exc:
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self.faults += 1
        if not self._is_failing:  # once for each time that it begins
            log.error("usage could not be written, and is kept for later: %s: %s", type(exc).__name__, exc)
        self._is_failing = True

    async def _aside(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

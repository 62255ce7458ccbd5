"""A cache on a thread of its own, with an event loop of its own: for programs that ask from any thread and any loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from semcache.inprocess import Cache

T = TypeVar("T")
Act = Callable[[Cache], Coroutine[Any, Any, T]]


class ThreadedCache:
    """Open from its making until `close`, or until the program ends."""

    def __init__(self, cache: Cache) -> None:
        """Returns when the cache is open, which takes as long as its model takes to load. Raises StartError."""
        self._cache = cache
        self._is_closed = False
        self._closing = asyncio.Event()
        self._opened: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="semcache-cache", daemon=True)
        self._thread.start()
        self._loop = self._opened.result()
        # When atexit's turn comes no thread may start work any more, and closing takes some.
        getattr(threading, "_register_atexit", atexit.register)(self.close)

    def wait(self, act: Act[T], timeout_s: float | None = None) -> T:
        """Run `act` with the cache, on its thread, and wait for it here.

        Raises what it raises, RuntimeError for a cache that is closed, TimeoutError.
        """
        future = self._start(act)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    async def run(self, act: Act[T], timeout_s: float | None = None) -> T:
        """The same, without keeping the event loop that waits from other things."""
        return await asyncio.wait_for(asyncio.wrap_future(self._start(act)), timeout_s)

    def close(self) -> None:
        """What is under way ends in a RuntimeError. Does nothing twice."""
        if not self._is_closed and self._thread.is_alive():
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _start(self, act: Act[T]) -> Future[T]:
        if self._is_closed or not self._thread.is_alive():  # a forked child has the object and not the thread
            raise RuntimeError("the cache is closed, or was opened by a process that this one was forked from")
        return asyncio.run_coroutine_threadsafe(act(self._cache), self._loop)

    async def _live(self) -> None:
        try:
            async with self._cache:
                self._opened.set_result(asyncio.get_running_loop())
                await self._closing.wait()
        except Exception as exc:
            if self._opened.done():
                raise
            self._opened.set_exception(exc)
        # Those that are under way hear of it from the cache: cancelled, they would look as if their callers had been.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

"""A race of two attempts: the second starts when the first is slow, and whoever begins to answer first is taken.

Hedged requests are from Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013). Who may start a second is the
caller's decision, under a budget: without one, hedging doubles the load exactly when everything is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def race(
    first: Coroutine[Any, Any, T],
    after_s: float,
    start_rival: Callable[[], Coroutine[Any, Any, T] | None],
    is_good: Callable[[T], bool],
    drop: Callable[[T], Awaitable[None]],
) -> T:
    """Return the first good result, or the last one where none is good; what one raises, the race raises.

    `start_rival` is asked once, after `after_s` without a result; None: no rival. The loser is cancelled, and what it
    may have brought nevertheless goes to `drop`.
    """
    runners = [asyncio.ensure_future(first)]
    taken: asyncio.Future[T] | None = None
    try:
        await asyncio.wait(runners, timeout=after_s)
        if not runners[0].done() and (rival := start_rival()) is not None:
            runners.append(asyncio.ensure_future(rival))
        running = set(runners)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for runner in runners:
                if runner in done:
                    taken = runner
                    if is_good(runner.result()):
                        return runner.result()
        assert taken is not None
        return taken.result()
    finally:
        for runner in runners:
            if runner is not taken:
                runner.cancel()
        for result in await asyncio.gather(*(r for r in runners if r is not taken), return_exceptions=True):
            if not isinstance(result, BaseException):
                await drop(result)

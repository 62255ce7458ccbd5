"""A race of two attempts: the second starts when the first is slow, and whoever begins to answer first is taken.

Hedged requests are from Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013). Who may start a second is the
caller's decision, under a budget: without one, hedging doubles the load exactly when everything is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
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

    `start_rival` is asked once, after `after_s` without a result; None: no rival. The loser is cancelled and has ended
    before this returns; what it may have brought nevertheless goes to `drop`, as does the winner's when the race is
    cancelled.
    """
    runners = [asyncio.ensure_future(first)]
    left: Sequence[asyncio.Future[T]] = runners  # those that are to be let go should the race be cancelled
    taken: asyncio.Future[T] | None = None
    try:
        await asyncio.wait(runners, timeout=after_s)
        if not runners[0].done() and (rival := start_rival()) is not None:
            runners.append(asyncio.ensure_future(rival))
        running = set(runners)
        while running and not (taken is not None and is_good(taken.result())):
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for runner in runners:
                if runner in done and not (taken is not None and is_good(taken.result())):
                    taken = runner
        assert taken is not None
        losers, left = [runner for runner in runners if runner is not taken], [taken]
        await _let_go(losers, drop)
        return taken.result()
    except BaseException:
        await _let_go(left, drop)
        raise


async def _let_go(runners: Sequence[asyncio.Future[T]], drop: Callable[[T], Awaitable[None]]) -> None:
    """Cancel these and wait for their end. Goes on to its own end though it be cancelled."""

    async def clear() -> None:
        for result in await asyncio.gather(*runners, return_exceptions=True):
            if not isinstance(result, BaseException):
                await drop(result)

    for runner in runners:
        runner.cancel()
    if runners:
        await asyncio.shield(clear())

"""How a replay takes its time: each event leaves when it is due, whatever sending the one before has cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol


class Timer(Protocol):
    """Time as it passes. Tests have one of their own, and so need not wait."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None: ...


class RealTime:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def paced(events: Sequence[bytes], due_s: Sequence[float], timer: Timer) -> AsyncIterator[bytes]:
    """Give each event when it is due, in seconds since the first."""
    begun = timer.now()
    for event, due in zip(events, due_s, strict=True):
        await timer.sleep(max(0.0, begun + due - timer.now()))
        yield event

"""An event loop whose time passes only while nothing else can happen: deadlines and pauses cost no test any time."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Hasty(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Does not wait: what the loop would have slept has passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again: a test waits for what nobody does")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` begins at 0. For what runs in one process and waits for no socket."""

    def __init__(self) -> None:
        self._hasty = _Hasty()
        super().__init__(self._hasty)

    def time(self) -> float:
        return self._hasty.now

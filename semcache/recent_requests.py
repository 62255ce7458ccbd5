"""The latest requests, in memory, to be asked for by their ids: what the request log knows of them, and no prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from time import time
from typing import Any, Protocol

import orjson

from semcache.request_log import render_line
from semcache.types import Outcome

KEPT = 1000  # of one worker: about a megabyte, and at 50 requests a second the last 20 seconds


class Log(Protocol):
    def write(self, outcome: Outcome, question: str | None = None) -> None: ...


class RecentRequests:
    """Stands before the request log: whatever is written to it is remembered here too."""

    def __init__(self, log: Log, kept: int = KEPT, now: Callable[[], float] = time) -> None:
        """`now`: unix seconds."""
        self._log = log
        self._now = now
        self._latest: deque[tuple[float, Outcome]] = deque(maxlen=kept)

    def write(self, outcome: Outcome, question: str | None = None) -> None:
        # Where prompts are logged the outcome holds one. It is for the log's file, whose life the operator rules.
        kept = outcome if outcome.question is None else replace(outcome, question=None)
        self._latest.append((self._now(), kept))
        self._log.write(outcome, question)

    def find(self, request_id: str) -> list[tuple[Outcome, dict[str, Any]]]:
        """Those with this id, and their lines in the log, newest first: a caller may use an id of its own again."""
        return [
            (outcome, orjson.loads(render_line(outcome, datetime.fromtimestamp(then, UTC))))
            for then, outcome in reversed(self._latest)
            if outcome.request_id == request_id
        ]

"""Requests that wait for a backend of one pool: who goes first, how long, and who is turned away.

The rule: nobody waits while there is a place for him, and nobody is overtaken by a newcomer who wants the same. A place
is never handed over: whoever has a turn looks for one himself, and a turn that is not used goes to the next in order.

    order      interactive before batch, oldest first; one turn in BATCH_TURN is the oldest batch request's
    full       the newest batch request makes room for an interactive one; else whoever comes is refused
    late       whoever has waited for his deadline is refused
"""

from __future__ import annotations

import asyncio
import random
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from time import monotonic
from typing import Literal

from semcache.errors import Overloaded
from semcache.settings.routing import Queue

Priority = Literal["interactive", "batch"]

# Of the turns that are given while both kinds wait, one in so many is batch's. Without it a busy day would starve batch
# for ever; with it interactive requests lose an eighth of the places, and only while they queue.
BATCH_TURN = 8

TICK_S = 0.25  # between looks for places that nobody has announced

RATE_WINDOW_S = 10.0  # over which the rate of service is counted, for Retry-After
MAX_RETRY_AFTER_S = 60.0  # the SDKs do not believe more: openai-python and anthropic-sdk-python then take their own


class Turn:
    """A request's right to look for a place before everybody who came later. Given back to `wait` if there was none."""

    __slots__ = ("can_go", "due", "future", "looked", "number", "priority", "room")

    def __init__(
        self, room: WaitingRoom, number: int, priority: Priority, due: float, can_go: Callable[[], bool] | None
    ) -> None:
        self.room = room
        self.number = number  # in the order of coming
        self.priority = priority
        self.due = due  # loop time
        self.can_go = can_go
        self.looked = 0  # the last round in which it was called
        self.future: asyncio.Future[None] | None = None  # while it waits

    def __lt__(self, other: Turn) -> bool:
        return self.number < other.number

    def could_go(self) -> bool:
        if self.future is not None and self.future.done():  # cancelled, and has not run since
            return False
        return self.can_go is None or self.can_go()


class WaitingRoom:
    """Of one pool, in one event loop; no locks.

    A pool's backends may differ, in models or regions, so that the place which is free suits the third in order only.
    Each waiter says with `can_go` whether there is a place for him now: a turn then goes to the first one who can use
    it, and places are found which nobody has announced. Without `can_go` all should want the same: a `wake` is one
    turn, and whoever finds no place passes it on.

    In each round, which begins with a `wake`, everybody looks once at most: or those who find nothing would call each
    other for ever.
    """

    def __init__(
        self,
        settings: Queue,
        clock: Callable[[], float] = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock`: monotonic seconds, for the rate of service. `chance`: 0 to 1."""
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._interactive: list[Turn] = []  # oldest first
        self._batch: list[Turn] = []
        self._called: set[Turn] = set()  # have a turn, and have not run since
        self._numbers = 0
        self._round = 1
        self._tick: asyncio.TimerHandle | None = None
        self._since_batch = 0  # turns given to interactive requests past a batch request
        self._served: deque[float] = deque(maxlen=1024)
        self._opened = clock()
        self.entered = 0
        self.shed = 0  # batch requests that made room
        self.refused = 0  # found it full
        self.late = 0

    def adopt(self, settings: Queue) -> None:
        """For whoever comes from now on; those who wait keep their places and their deadlines."""
        self._settings = settings

    @property
    def waiting(self) -> int:
        return len(self._interactive) + len(self._batch)

    def may_pass(self, priority: Priority, turn: Turn | None = None) -> bool:
        """Whether nobody waits who goes before a newcomer of this priority, or who asks has a turn here."""
        if turn is not None and turn.room is self:
            return True
        if self._called:  # a place is as good as taken; in a moment it is known
            return False
        before = self._interactive if priority == "interactive" else chain(self._interactive, self._batch)
        return not any(waiter.could_go() for waiter in before)

    async def wait(
        self,
        priority: Priority,
        deadline_s: float | None = None,
        *,
        turn: Turn | None = None,
        can_go: Callable[[], bool] | None = None,
    ) -> Turn:
        """Return when it is this one's turn to look for a place, which it does before it awaits anything else.

        `deadline_s`: instead of the setting's. `turn`: the one it had, if it found no place: it keeps its position and
        its deadline, and the turn goes to the next. `can_go`: whether there is a place for it now, asked often.

        Raises Overloaded: when the room is full, past the deadline, or when it is shed.
        """
        loop = asyncio.get_running_loop()
        is_back = turn is not None and turn.room is self
        if turn is None or not is_back:
            turn = self._enter(priority, loop.time(), deadline_s, can_go)
        elif self._served:
            self._served.pop()  # it was none
        turn.future = loop.create_future()
        insort(self._line(turn.priority), turn)
        if is_back:
            self._call_next()
        loop.call_soon(self._call_able)  # a place may have come while it decided to wait
        if self._tick is None:
            self._tick = loop.call_later(TICK_S, self._on_tick)
        timer = loop.call_at(turn.due, self._expire, turn)
        try:
            await turn.future
        except asyncio.CancelledError:
            if turn.future.done() and not turn.future.cancelled():
                turn.future.exception()  # it was refused in the same moment, and nobody will hear of it
            self._leave(turn)
            if turn in self._called:
                self._called.discard(turn)
                self._call_next()  # the turn it had been given goes on
            raise
        finally:
            timer.cancel()
            turn.future = None
            # It may find its place elsewhere, or there were two: whoever else can go is called when it has looked.
            loop.call_soon(self._call_able)
        self._called.discard(turn)
        return turn

    def wake(self) -> None:
        """A place is free, or may be: the first in order who can use it gets a turn."""
        self._round += 1
        self._call_next()

    def retry_after_s(self) -> float:
        """When there will be a place, judged by how fast the line moves; spread, for all who are told are told the
        same and would come back as one."""
        now = self._clock()
        while self._served and self._served[0] < now - RATE_WINDOW_S:
            self._served.popleft()
        counted_s = max(1.0, min(RATE_WINDOW_S, now - self._opened))
        rate_per_s = len(self._served) / counted_s
        expected_s = (self.waiting + 1) / rate_per_s if rate_per_s else self._settings.deadline
        return min(MAX_RETRY_AFTER_S, max(1.0, expected_s) * (1 + self._chance() / 2))

    def stats(self) -> dict[str, float]:
        return {
            "waiting": self.waiting,
            "waiting_batch": len(self._batch),
            "entered": self.entered,
            "shed": self.shed,
            "refused": self.refused,
            "late": self.late,
        }

    # Coming

    def _enter(
        self, priority: Priority, now: float, deadline_s: float | None, can_go: Callable[[], bool] | None
    ) -> Turn:
        deadline_s = self._settings.deadline if deadline_s is None else deadline_s
        if self.waiting + len(self._called) >= self._settings.size and not self._make_room(priority):
            self.refused += 1
            raise self._overloaded("all backends are busy, and as many requests as may are waiting for them")
        self.entered += 1
        self._numbers += 1
        return Turn(self, self._numbers, priority, now + deadline_s, can_go)

    def _make_room(self, priority: Priority) -> bool:
        if priority == "batch" or not self._batch:
            return False
        newest = self._batch[-1]  # it has waited least, and those before it are nearer to their places
        self.shed += 1
        self._refuse(newest, "all backends are busy, and requests of higher priority need the room in the queue")
        return True

    # Going

    def _call_next(self) -> None:
        """Give a turn to the first in order who could go and has not looked in this round."""
        for turn in self._in_order():
            if turn.looked < self._round and turn.could_go():
                self._call(turn)
                return

    def _call_able(self) -> None:
        """Give a turn to the first who says himself that there is a place, unless somebody is about to look."""
        if self._called:
            return
        for turn in self._in_order():
            if turn.can_go is not None and turn.looked < self._round and turn.could_go():
                self._call(turn)
                return

    def _on_tick(self) -> None:
        """Places come with time, too, and nobody wakes us for them: a limited key's rest ends, a breaker half opens."""
        self._tick = None
        if self.waiting:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)
            self.wake()

    def _in_order(self) -> Iterator[Turn]:
        """Read only until somebody is called: that changes the lines."""
        if self._since_batch + 1 >= BATCH_TURN and self._batch:
            return chain(self._batch[:1], self._interactive, self._batch[1:])
        return chain(self._interactive, self._batch)

    def _call(self, turn: Turn) -> None:
        if turn.priority == "batch":
            self._since_batch = 0
        elif self._batch:
            self._since_batch += 1
        turn.looked = self._round
        self._leave(turn)
        self._called.add(turn)
        self._served.append(self._clock())
        assert turn.future is not None
        turn.future.set_result(None)

    def _expire(self, turn: Turn) -> None:
        if turn in self._called:
            return  # it has its turn already
        self.late += 1
        self._refuse(turn, "all backends are busy, and no place became free in time")

    def _refuse(self, turn: Turn, message: str) -> None:
        error = self._overloaded(message)
        self._leave(turn)
        if turn.future is not None and not turn.future.done():
            turn.future.set_exception(error)

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message, retry_after_s=self.retry_after_s())

    def _leave(self, turn: Turn) -> None:
        line = self._line(turn.priority)
        if turn in line:
            line.remove(turn)

    def _line(self, priority: Priority) -> list[Turn]:
        return self._interactive if priority == "interactive" else self._batch

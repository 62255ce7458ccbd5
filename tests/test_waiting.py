from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.backends.waiting import BATCH_TURN, TICK_S, Priority, Turn, WaitingRoom
from semcache.config import Queue
from semcache.errors import Overloaded

T = TypeVar("T")


class _Skipping(selectors.SelectSelector):
    """Instead of waiting, lets so much time pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits for somebody"
        self.now += timeout
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def simulated(story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(story())


def now() -> float:
    return asyncio.get_running_loop().time()


def room(size: int = 200, deadline_s: float = 10.0) -> WaitingRoom:
    return WaitingRoom(Queue(size=size, deadline=deadline_s), now, lambda: 0.0)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Backends:
    """Places, each good for one kind of request, with a waiting room before them: what a dispatcher does."""

    def __init__(self, places: dict[str, int], room: WaitingRoom) -> None:
        self.free = dict(places)
        self.room = room
        self.served: list[object] = []

    async def serve(
        self, name: object, kind: str = "a", priority: Priority = "interactive", *, tells: bool = True
    ) -> None:
        turn: Turn | None = None
        while not (self.room.may_pass(priority, turn) and self.free[kind]):
            can_go = (lambda: self.free[kind] > 0) if tells else None
            turn = await self.room.wait(priority, turn=turn, can_go=can_go)
        self.free[kind] -= 1
        self.served.append(name)

    def release(self, kind: str = "a") -> None:
        self.free[kind] += 1
        self.room.wake()


def starting(backends: Backends, *names: str, **how: Any) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(backends.serve(name, **how)) for name in names]


@pytest.mark.parametrize("tells", [True, False])
def test_interactive_goes_before_batch_and_the_oldest_first(tells: bool) -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0}, room())
        starting(backends, "b1", "b2", priority="batch", tells=tells)
        starting(backends, "i1", "i2", tells=tells)
        await settle()
        for _ in range(4):
            backends.release()
            await settle()
        return backends.served

    assert simulated(story) == ["i1", "i2", "b1", "b2"]


@pytest.mark.parametrize("tells", [True, False])
def test_batch_gets_one_turn_in_eight_while_interactive_requests_wait_too(tells: bool) -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0}, room())
        starting(backends, *(f"b{n}" for n in range(3)), priority="batch", tells=tells)
        starting(backends, *(f"i{n}" for n in range(40)), tells=tells)
        await settle()
        for _ in range(3 * BATCH_TURN):
            backends.release()
            await settle()
        return backends.served

    served = [str(name) for name in simulated(story)]
    assert [place for place, name in enumerate(served, 1) if name[0] == "b"] == [8, 16, 24]


def test_a_newcomer_does_not_overtake_those_who_wait_for_the_same() -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0}, room())
        starting(backends, "old")
        await settle()
        backends.release()  # the place is free, and the one who waits has not run yet
        starting(backends, "new")
        await settle()
        return backends.served

    assert simulated(story) == ["old"]


def test_a_newcomer_passes_those_who_wait_for_something_else() -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0, "b": 1}, room())
        starting(backends, "wants a")
        await settle()
        starting(backends, "wants b", kind="b")
        await settle()
        return backends.served

    assert simulated(story) == ["wants b"]


@pytest.mark.parametrize("tells", [True, False])
def test_a_place_that_suits_only_the_third_goes_to_the_third(tells: bool) -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0, "b": 0}, room())
        starting(backends, "first", "second", tells=tells)
        starting(backends, "third", kind="b", tells=tells)
        starting(backends, "fourth", tells=tells)
        await settle()
        backends.release("b")
        await settle()
        backends.release("a")
        await settle()
        return backends.served

    assert simulated(story) == ["third", "first"]


@pytest.mark.parametrize("tells", [True, False])
def test_one_who_is_cancelled_with_a_turn_in_hand_passes_it_on(tells: bool) -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0}, room())
        first, _ = starting(backends, "first", "second", tells=tells)
        await settle()
        backends.release()
        first.cancel()
        await settle()
        return backends.served

    assert simulated(story) == ["second"]


def test_one_who_is_cancelled_before_the_turn_is_not_given_it() -> None:
    async def story() -> list[object]:
        backends = Backends({"a": 0}, room())
        first, _ = starting(backends, "first", "second", tells=False)
        await settle()
        first.cancel()
        backends.release()
        await settle()
        return backends.served

    assert simulated(story) == ["second"]


def test_a_place_that_comes_by_itself_is_found_within_a_tick() -> None:
    async def story() -> tuple[list[object], float]:
        backends = Backends({"a": 0}, room())
        tasks = starting(backends, "patient")
        await asyncio.sleep(3.1)
        backends.free["a"] += 1  # a limited key's rest is over: nobody wakes anybody
        await asyncio.gather(*tasks)
        return backends.served, now()

    served, at = simulated(story)
    assert served == ["patient"]
    assert at <= 3.1 + TICK_S


def test_who_waits_too_long_is_refused_and_told_when_to_come_back() -> None:
    async def story() -> tuple[Overloaded, float]:
        waiting = room(deadline_s=10)
        with pytest.raises(Overloaded) as refused:
            await waiting.wait("interactive", can_go=lambda: False)
        assert (waiting.waiting, waiting.stats()["late"]) == (0, 1)
        return refused.value, now()

    error, at = simulated(story)
    assert (error.status, error.code, at) == (503, "overloaded", 10.0)
    assert error.headers == {"Retry-After": "10"}


def test_a_turn_that_was_no_use_keeps_position_and_deadline() -> None:
    async def story() -> float:
        waiting = room(deadline_s=10)
        turn = await waiting.wait("interactive", can_go=lambda: 6.0 <= now() < 6.2)
        later = asyncio.create_task(waiting.wait("interactive", can_go=lambda: False))
        await settle()
        with pytest.raises(Overloaded):
            await waiting.wait("interactive", turn=turn)
        assert not later.done()
        later.cancel()
        return now()

    assert simulated(story) == 10.0


def test_a_full_room_sheds_the_newest_batch_request_before_it_refuses_an_interactive_one() -> None:
    async def story() -> None:
        backends = Backends({"a": 0}, room(size=3))
        old, new = starting(backends, "b1", "b2", priority="batch")
        starting(backends, "i1")
        await settle()
        (late_batch,) = starting(backends, "b3", priority="batch")
        starting(backends, "i2")
        await settle()
        assert isinstance(new.exception(), Overloaded)
        assert isinstance(late_batch.exception(), Overloaded)
        assert not old.done()
        starting(backends, "i3")
        (too_many,) = starting(backends, "i4")
        await settle()
        assert isinstance(old.exception(), Overloaded)
        assert isinstance(too_many.exception(), Overloaded)
        assert backends.room.stats() == {
            "waiting": 3, "waiting_batch": 0, "entered": 5, "shed": 2, "refused": 2, "late": 0,
        }  # fmt: skip

    simulated(story)


def test_a_room_without_seats_refuses_at_once() -> None:
    async def story() -> float:
        with pytest.raises(Overloaded):
            await room(size=0).wait("interactive")
        return now()

    assert simulated(story) == 0.0


def test_retry_after_follows_the_rate_of_service() -> None:
    async def story() -> list[str]:
        backends = Backends({"a": 0}, room(size=20, deadline_s=1000))
        found = []
        for pause_s in (0.5, 2.0):
            for number in range(40):  # as many come as are served, and there are always twenty waiting
                while backends.room.waiting < 20:
                    starting(backends, str(number))
                    await settle()
                await asyncio.sleep(pause_s)
                backends.release()
                await settle()
            starting(backends, "one more")
            await settle()
            with pytest.raises(Overloaded) as refused:
                await backends.room.wait("interactive")
            found.append(refused.value.headers["Retry-After"])
        return found

    fast, slow = map(int, simulated(story))
    assert 10 <= fast <= 12  # 21 at two a second
    assert 35 <= slow <= 53  # ... at one in two seconds: of those, four to six fall into the ten that are counted


Event = tuple[str, int]


@settings(max_examples=300, deadline=None)
@given(
    tells=st.booleans(),
    events=st.lists(
        st.tuples(
            st.sampled_from(["interactive", "batch", "release a", "release b", "cancel", "run", "pass 0.1 s"]),
            st.integers(0, 9),
        ),
        max_size=60,
    ),
)
def test_nobody_waits_while_there_is_a_place_for_him(tells: bool, events: list[Event]) -> None:
    async def story() -> None:
        backends = Backends({"a": 1, "b": 1}, room(size=6, deadline_s=5))
        tasks: dict[str, list[tuple[str, asyncio.Task[None]]]] = {"interactive": [], "batch": []}
        for number, (event, choice) in enumerate(events):
            kind = "ab"[choice % 2] if tells else "a"  # without a word on it, all have to want the same
            if event in ("interactive", "batch"):
                task = asyncio.create_task(backends.serve(number, kind, event, tells=tells))  # type: ignore[arg-type]
                tasks[event].append((kind, task))
            elif event.startswith("release"):
                backends.release(event[-1] if tells else "a")
            elif event == "cancel":
                flat = [task for line in tasks.values() for _, task in line]
                if flat:
                    flat[choice % len(flat)].cancel()
            elif event == "run":
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.1)
            assert backends.room.waiting <= 6
        await asyncio.sleep(TICK_S + 0.01)
        await settle()
        for line in tasks.values():
            for kind, task in line:
                assert task.done() or not backends.free[kind], f"one who wants {kind} waits, and there is a place"
        await asyncio.sleep(6)
        everybody = [task for line in tasks.values() for _, task in line]
        assert all(task.done() for task in everybody)
        for task in everybody:
            assert task.cancelled() or isinstance(task.exception(), Overloaded | None)
        assert backends.room.waiting == 0
        # With the last one gone, nothing is left that would run for ever.
        assert backends.room._tick is None
        taken = 2 + sum(event.startswith("release") for event, _ in events) - sum(backends.free.values())
        assert taken == len(backends.served)

    simulated(story)

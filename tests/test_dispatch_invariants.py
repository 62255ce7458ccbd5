"""What holds of the dispatcher whatever happens, and in whatever order: played against a fetcher that does as told."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from multidict import CIMultiDict

from semcache.backends.dispatch import Answering, Dispatcher, Needs
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.routing import find_way
from semcache.backends.target import Target
from semcache.config import Hedge, Pool, PoolChoice, Retry
from semcache.errors import ClientError, SemcacheError, UpstreamError
from tests.virtual_time import VirtualLoop

ATTEMPTS = 3
LIMIT = 2


@dataclass(eq=False)
class FakeReply:
    status: int
    headers: CIMultiDict[str]
    begins: asyncio.Future[None]
    whole: bool = True
    is_aborted: bool = False
    is_empty: bool = False

    async def first(self) -> None:
        try:
            await asyncio.shield(self.begins)
        except BaseException:  # cut, or cancelled: the connection is closed
            self.is_aborted = True
            raise

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"fine"

    async def abort(self) -> None:
        self.is_aborted = True


@dataclass(eq=False)
class Sending:
    """One attempt, as the backend sees it."""

    number: int  # of the request
    target: Target
    answer: asyncio.Future[FakeReply]
    reply: FakeReply | None = None
    is_over: bool = False


class FakeFetcher:
    """In the place of connections: each attempt waits until it is told how it ends."""

    def __init__(self) -> None:
        self.sent: list[Sending] = []

    @property
    def running(self) -> list[Sending]:
        return [sending for sending in self.sent if not sending.is_over]

    async def send(self, target: Target, request: UpstreamRequest) -> FakeReply:
        answer = asyncio.get_running_loop().create_future()
        sending = Sending(int(request.path_and_query.rpartition("/")[2]), target, answer)
        self.sent.append(sending)
        try:
            sending.reply = await answer
            return sending.reply
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # a connection is closed, and that takes a turn of the loop
            await asyncio.sleep(0)
            raise
        finally:
            sending.is_over = sending.reply is None

    def under_way(self, name: str) -> int:
        """Requests that the backend has on its hands: unanswered, or with an answer that was not let go."""
        return sum(
            not sending.is_over and (sending.reply is None or not sending.reply.is_aborted)
            for sending in self.sent
            if sending.target.name == name
        )


@dataclass(eq=False)
class Asker:
    number: int
    task: asyncio.Task[Answering]
    is_hedged: bool
    sent_when_answered: int | None = None
    turned: set[str] = field(default_factory=set)


def pools(weight: float = 1.0, size: int = 3, limit: int = LIMIT, **more: Any) -> dict[str, Pool]:
    def pool(name: str, **settings: Any) -> Pool:
        backends = [
            {"url": f"http://{name}-{number}.test/v1", "max_in_flight": limit, "weight": weight, "api_key": "k"}
            for number in range(2)
        ]
        health = {"failures": 2, "open": 5, "successes": 1}
        queue = {"size": size, "deadline": 3}
        return Pool.model_validate({"backends": backends, "health": health, "queue": queue, **settings})

    return {"near": pool("near", **more), "far": pool("far", balance="prefix")}


TURNS = st.integers(0, 5)  # of the loop, until the next thing happens: everything may meet everything


class Anything(RuleBasedStateMachine):
    @initialize(overflow=st.sampled_from([None, 0, 1]), seed=st.integers(0, 9))
    def begin(self, overflow: int | None, seed: int) -> None:
        self.loop = VirtualLoop()
        self.fetcher = FakeFetcher()
        self.more: dict[str, Any] = {"overflow": {"queue": overflow}}
        self.pools = pools(**self.more)
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(str(context)))
        self.faults: list[str] = []
        self.askers: list[Asker] = []
        self.answers: list[Answering] = []
        self.was_reloaded = False
        self.states: set[Any] = set()
        self.dispatcher = Dispatcher(
            self.pools,
            self.fetcher,  # type: ignore[arg-type]
            clock=self.loop.time,
            chance=Random(seed),
        )
        self.note_states()

    def note_states(self) -> None:
        fleet = self.dispatcher.fleet
        for pool in [fleet.pool(name) for name in ("near", "far")]:
            self.states |= {*pool.states.values(), *pool.former.values()}

    def turn(self, turns: int, happens: Callable[[], object] = lambda: None) -> None:
        async def play() -> None:
            happens()
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(play())

    # What callers do

    @rule(
        is_hedged=st.booleans(),
        is_repeatable=st.booleans(),
        is_batch=st.booleans(),
        way=st.sampled_from([("near",), ("near", "far"), ("far", "near")]),
        turns=TURNS,
    )
    def ask(self, is_hedged: bool, is_repeatable: bool, is_batch: bool, way: tuple[str, ...], turns: int) -> None:
        number = len(self.askers)
        request = UpstreamRequest("POST", f"/v1/{number}", CIMultiDict(), b'{"messages": 1}' * 80, want_recording=True)
        needs = Needs(
            route="r",
            retry=Retry(attempts=ATTEMPTS, budget=1.0),
            hedge=Hedge(after=0.5, budget=1.0) if is_hedged else None,
            priority="batch" if is_batch else "interactive",
            is_repeatable=is_repeatable,
            prompt=request.body if isinstance(request.body, bytes) else b"",
            is_stream=True,
        )
        found = find_way([PoolChoice(pool=name) for name in way], self.pools, "openai", frozenset(), "m")

        async def fetch() -> Answering:
            answer = await self.dispatcher.fetch(found, request, needs)
            asker.sent_when_answered = len(self.fetcher.sent)
            self.answers.append(answer)
            return answer

        asker = Asker(number, self.loop.create_task(fetch()), is_hedged)
        self.askers.append(asker)
        self.turn(turns)

    @rule(which=st.integers(0, 50), twice=st.booleans(), turns=TURNS)
    def hang_up(self, which: int, twice: bool, turns: int) -> None:
        waiting = [asker for asker in self.askers if not asker.task.done()]
        if waiting:
            asker = waiting[which % len(waiting)]
            asker.task.cancel()
            if twice:
                self.turn(1)
                asker.task.cancel()
        self.turn(turns)

    @rule(which=st.integers(0, 50), turns=TURNS)
    def read_to_the_end(self, which: int, turns: int) -> None:
        if self.answers:
            answer = self.answers.pop(which % len(self.answers))
            self.loop.run_until_complete(answer.abort())
        self.turn(turns)

    # What backends do

    @rule(
        which=st.integers(0, 50),
        status=st.sampled_from([200, 200, 200, 400, 429, 500, 503]),
        begins=st.booleans(),
        rests=st.booleans(),
        turns=TURNS,
    )
    def answer(self, which: int, status: int, begins: bool, rests: bool, turns: int) -> None:
        sending = self.one_that_waits(which)
        if sending is not None:
            headers = CIMultiDict({"retry-after": "2"} if rests else {})
            reply = FakeReply(status, headers, self.loop.create_future())
            if begins:
                reply.begins.set_result(None)
            sending.answer.set_result(reply)
        self.turn(turns)

    @rule(which=st.integers(0, 50), is_cut=st.booleans(), turns=TURNS)
    def begin_the_body(self, which: int, is_cut: bool, turns: int) -> None:
        replies = [s.reply for s in self.fetcher.running if s.reply is not None and not s.reply.begins.done()]
        if replies:
            begins = replies[which % len(replies)].begins
            if is_cut:
                begins.set_exception(UpstreamError("cut", sent=True))
                begins.exception()
            else:
                begins.set_result(None)
        self.turn(turns)

    @rule(which=st.integers(0, 50), status=st.sampled_from([502, 504]), sent=st.booleans(), turns=TURNS)
    def fail(self, which: int, status: int, sent: bool, turns: int) -> None:
        sending = self.one_that_waits(which)
        if sending is not None:
            sending.answer.set_exception(UpstreamError("gone", status=status, sent=sent))
        self.turn(turns)

    @rule(which=st.integers(0, 50), turns=TURNS)
    def refuse_to_forward(self, which: int, turns: int) -> None:
        sending = self.one_that_waits(which)
        if sending is not None:
            sending.answer.set_exception(ClientError("no such path"))
        self.turn(turns)

    @rule(name=st.sampled_from(["near[0]", "near[1]", "far[0]", "far[1]"]), turns=TURNS)
    def freeze(self, name: str, turns: int) -> None:
        self.turn(turns, lambda: self.dispatcher.fleet.give_up(name))

    @rule(name=st.sampled_from(["near[0]", "near[1]", "far[0]"]), is_well=st.booleans(), turns=TURNS)
    def check(self, name: str, is_well: bool, turns: int) -> None:
        pool = self.dispatcher.fleet.pool(name.partition("[")[0])
        self.turn(turns, lambda: pool.states[name].vitals.checked(is_well, self.loop.time()))

    # What else happens

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.6, 2.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(
        weight=st.sampled_from([1.0, 2.0]),
        size=st.sampled_from([1, 3]),
        limit=st.sampled_from([1, LIMIT]),
        is_far_gone=st.booleans(),
        turns=TURNS,
    )
    def reload(self, weight: float, size: int, limit: int, is_far_gone: bool, turns: int) -> None:
        self.was_reloaded = self.was_reloaded or limit < LIMIT
        self.pools = pools(weight, size, limit, **self.more)
        kept = {name: pool for name, pool in self.pools.items() if not (is_far_gone and name == "far")}
        self.turn(0, lambda: self.dispatcher.adopt(kept))
        self.note_states()
        self.turn(turns)

    def one_that_waits(self, which: int) -> Sending | None:
        waiting = [sending for sending in self.fetcher.running if not sending.answer.done()]
        return waiting[which % len(waiting)] if waiting else None

    # What always holds

    @invariant()
    def no_backend_has_more_than_it_bears(self) -> None:
        for name in ("near[0]", "near[1]", "far[0]", "far[1]"):
            if not self.was_reloaded:
                assert self.fetcher.under_way(name) <= LIMIT, name

    @invariant()
    def no_backend_is_asked_twice_for_one_request(self) -> None:
        asked: dict[int, Counter[str]] = defaultdict(Counter)
        for sending in self.fetcher.sent:
            asked[sending.number][sending.target.name] += 1
        for asker in self.askers:
            names = asked[asker.number]
            assert all(count == 1 for count in names.values()), names
            assert len(names) <= ATTEMPTS + asker.is_hedged * ATTEMPTS

    @invariant()
    def nobody_is_asked_for_an_answer_that_has_begun(self) -> None:
        for asker in self.askers:
            if asker.sent_when_answered is not None:
                later = self.fetcher.sent[asker.sent_when_answered :]
                assert all(sending.number != asker.number for sending in later)

    @invariant()
    def nothing_goes_wrong_where_nobody_looks(self) -> None:
        assert not self.faults

    def teardown(self) -> None:
        """Everybody answers, and what was taken has been given back."""
        if not hasattr(self, "loop"):
            return
        try:
            for _ in range(200):
                if all(asker.task.done() for asker in self.askers):
                    break
                for sending in self.fetcher.running:
                    if not sending.answer.done():
                        reply = FakeReply(200, CIMultiDict(), self.loop.create_future())
                        sending.answer.set_result(reply)
                    if sending.reply is not None and not sending.reply.begins.done():
                        sending.reply.begins.set_result(None)
                self.loop.run_until_complete(asyncio.sleep(0.3))
                while self.answers:
                    self.loop.run_until_complete(self.answers.pop().abort())
            assert all(asker.task.done() for asker in self.askers), "a request never ends"
            while self.answers:
                self.loop.run_until_complete(self.answers.pop().abort())
            self.turn(20)
            for asker in self.askers:
                error = None if asker.task.cancelled() else asker.task.exception()
                assert error is None or isinstance(error, SemcacheError), repr(error)
            for state in self.states:
                assert (state.in_flight, state.tokens) == (0, 0), state.target.name
                assert state.vitals.silent_since() is None, f"{state.target.name}: a request has begun and never ended"
            for sending in self.fetcher.sent:
                assert sending.is_over or (sending.reply is not None and sending.reply.is_aborted)
            for name in ("near", "far"):
                assert self.dispatcher.fleet.pool(name).room.waiting == 0
            assert not self.faults
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.turn(3)
            self.loop.close()


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

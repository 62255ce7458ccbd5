"""DISPATCH: send a request to the best backend that may take it, and go on to the next while nothing has come back.

    fleet.py     what is known of the backends: health, load, speed
    placing.py   which of them is asked, and where to wait for a place
    fetch        attempts down the ranking, within the route's retry budget
    _try         one attempt, and what it tells about the backend

The rule: nobody is asked twice for what may have had an effect there, and nothing is repeated once a byte of an answer
has been handed over. A backend that stops answering its checks loses the requests that wait for their first byte: they
go to the next one, as if it had refused them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from time import monotonic, time
from typing import Any, NamedTuple

from semcache.backends.backoff import pause_s
from semcache.backends.balance import queue
from semcache.backends.budget import Budget
from semcache.backends.fetch import Fetcher, Reply, UpstreamRequest
from semcache.backends.fleet import Fleet
from semcache.backends.hedging import race
from semcache.backends.placing import Place, Placing, Search
from semcache.backends.rate_headers import rest_s
from semcache.backends.routing import Way
from semcache.backends.state import BackendState
from semcache.backends.target import Target
from semcache.backends.waiting import Priority
from semcache.config import Hedge, Pool, Retry, Route
from semcache.errors import UpstreamError

OVERLOAD_STATUSES = frozenset({429, 503, 529})  # it refused, and did nothing
FAILURE_STATUSES = frozenset({500, 502, 503, 504, 529})
_SPEAKING = ("application/json", "text/event-stream", "application/x-ndjson")
FAILOVER_STATUSES = FAILURE_STATUSES | OVERLOAD_STATUSES


class Needs(NamedTuple):
    """What a dispatch must know of a request, besides what is sent."""

    route: str  # its name: of the budgets
    retry: Retry = Retry()
    hedge: Hedge | None = None
    priority: Priority = "interactive"
    is_nearest_first: bool = False
    is_repeatable: bool = True  # asking twice does no harm at the upstream
    is_optional: bool = False  # a stored answer will do instead: nobody is asked in panic
    model: str | None = None  # as the caller names it; None: no model is
    is_stream: bool = False
    prompt: bytes = b""  # as it is sent; its beginning says which KV cache may know it
    fit: Callable[[UpstreamRequest, Target], UpstreamRequest] = lambda request, target: request  # for a backend's model


class Lost(NamedTuple):
    """A backend that was left before it had answered, for a faster one or because nobody waits any more: its work is
    billed, and thrown away."""

    target: Target
    model: str | None  # that was asked for there; None: the one that the request names


class Answering:
    """A reply that is under way. As fetch.Reply, and it holds its place at the backend until `abort`."""

    __slots__ = ("_on_end", "attempts", "headers", "model", "reply", "status", "target")

    def __init__(self, reply: Reply, target: Target, model: str | None, on_end: Callable[[], None]) -> None:
        """`model`: whose answer it is; None: of the model that was asked for."""
        self.reply = reply
        self.model = model
        self.status = reply.status
        self.headers = reply.headers
        self.target = target
        self.attempts = 1
        self._on_end: Callable[[], None] | None = on_end

    @property
    def backend(self) -> str:
        return self.target.name

    @property
    def whole(self) -> bool:
        return self.reply.whole

    def chunks(self) -> AsyncIterator[bytes]:
        return self.reply.chunks()

    async def abort(self) -> None:
        """Harmless after the end, and to be called then too: it gives the place back."""
        if self._on_end is not None:
            self._on_end()
            self._on_end = None
        await self.reply.abort()


@dataclass(slots=True)
class _Call:
    """One request on its way."""

    request: UpstreamRequest
    needs: Needs
    search: Search
    attempts: int = 0
    lost: list[Lost] = field(default_factory=list)


class _Began(NamedTuple):
    """What an attempt met."""

    at: float  # monotonic seconds
    crowd: int  # requests there, itself included
    joined: float  # the same with prompts that were still to be read: see balance.queue


class Dispatcher:
    def __init__(
        self,
        pools: Mapping[str, Pool],
        fetcher: Fetcher,
        routes: Sequence[Route] = (),
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
        chance: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        record: Callable[[str, Mapping[str, object]], None] = lambda event, facts: None,
    ) -> None:
        """`clock`: monotonic seconds. `wall`: unix seconds. `record`: see Fleet."""
        self.fleet = Fleet(fetcher, clock, wall, record)
        self._fetcher = fetcher
        self._clock = clock
        self._wall = wall
        self._chance = chance or Random()
        self._placing = Placing(self.fleet, self._chance)
        self._sleep = sleep
        self._retries: dict[str, Budget] = {}
        self._hedges: dict[str, Budget] = {}
        self.requests = 0
        self.failovers = 0
        self.hedges = 0
        self.over_budget = 0
        self.adopt(pools, routes)

    def adopt(self, pools: Mapping[str, Pool], routes: Sequence[Route] = ()) -> None:
        """Take new settings at once. What is known of a backend lives on where nothing that it depends on has changed;
        requests under way end where they are."""
        self._retries.clear()
        self._hedges.clear()
        self.fleet.adopt(pools, routes)

    async def fetch(
        self, way: Way, request: UpstreamRequest, needs: Needs, lost: list[Lost] | None = None
    ) -> Answering:
        """Return the first answer that begins, from the best backend that gives one.

        An answer of any status: where all that were asked failed, it is the last one's error. `lost`: takes those that
        were asked and left, also where this is cancelled, which gives the place back. Raises ClientError for a request
        that must not be forwarded; Overloaded when there is no place for it; UpstreamError of the backend that was
        tried last.
        """
        self.requests += 1
        way = self.fleet.narrow(way, needs.model)
        search = Search(way, needs.priority, needs.is_nearest_first, needs.prompt, needs.model, needs.is_optional)
        call = _Call(request, needs, search, lost=[] if lost is None else lost)
        budget = self._budget(self._retries, needs.route, needs.retry.budget)
        budget.asked(self._clock())
        found = await self._ask(call, await self._placing.place(search))
        while self._may_go_on(call, found) and self._placing.is_anybody_left(search):
            if not budget.take(self._clock()):
                self.over_budget += 1
                break
            if isinstance(found, Answering):
                await found.abort()
            place = await self._placing.place(search)  # where one has died, the others may be full
            self.failovers += 1
            found = await self._ask(call, place, pause=call.attempts > 1)
        if isinstance(found, UpstreamError):
            raise found
        found.attempts = call.attempts
        return found

    def stats(self) -> dict[str, float]:
        return {
            "requests": self.requests,
            "failovers": self.failovers,
            "hedges": self.hedges,
            "overflows": self._placing.overflows,
            "over_budget": self.over_budget,
            "refused": self._placing.refused,
            **self.fleet.stats(),
        }

    # One attempt

    async def _ask(self, call: _Call, place: Place, pause: bool = False) -> Answering | UpstreamError:
        """Ask one backend, or two where the first is slow to begin and the route wants that."""
        hedge = call.needs.hedge
        if hedge is None or not call.needs.is_repeatable:
            return await self._try(call, place, pause)
        budget = self._budget(self._hedges, call.needs.route, hedge.budget)
        budget.asked(self._clock())

        def start_rival() -> Coroutine[Any, Any, Answering | UpstreamError] | None:
            other = self._placing.pick(call.search)
            if other is None:
                return None
            if not budget.take(self._clock()):
                self._leave(other, call)
                return None
            self.hedges += 1
            return self._try(call, other)

        async def drop(found: Answering | UpstreamError) -> None:
            if isinstance(found, Answering):
                if _has_begun(found):
                    call.lost.append(Lost(found.target, found.model))
                await found.abort()

        return await race(self._try(call, place, pause), hedge.after, start_rival, _has_begun, drop)

    async def _try(self, call: _Call, place: Place, pause: bool = False) -> Answering | UpstreamError:
        """Ask one backend; an UpstreamError is returned, everything else raised. The place is given back, or goes with
        the answer."""
        state, target, asked, model, spell = place
        call.attempts += 1
        call.search.tried.add(target.name)
        vitals = state.vitals
        sent = asyncio.Event()
        if asked.chunks:
            state.prefixes.insert(asked.chunks)
        try:
            if pause:
                await self._sleep(pause_s(call.attempts - 1, call.needs.retry.backoff, self._chance))
            begun, crowd, joined = self._clock(), state.crowd, queue(state.in_flight, state.tokens)
            reply = await self._first_byte(call, state, target, sent)
        except UpstreamError as error:
            now = self._clock()
            vitals.failed(now, spell)
            state.failures += 1
            self.fleet.notice(state)
            self.fleet.look_now(state)
            if error.status == 504:
                state.limit.dropped(now, crowd)
                if _is_held(call.request):
                    state.ttft.observe((now - begun) / joined, now)
            self._placing.give_back(place)
            return error
        except BaseException as exc:  # cancelled, or nothing that may be forwarded: no word on the backend
            if isinstance(exc, asyncio.CancelledError) and sent.is_set():
                call.lost.append(Lost(target, model))
            vitals.ended(self._clock(), spell)
            self._placing.give_back(place)
            raise
        finally:
            state.begun(call.search.tokens)
        self._learn_from(call, place, reply, _Began(begun, crowd, joined))
        is_tunnel = reply.status == 101
        if is_tunnel:
            state.switched()
        return Answering(reply, target, model, lambda: self._placing.give_back(place, is_tunnel=is_tunnel))

    def _learn_from(self, call: _Call, place: Place, reply: Reply, began: _Began) -> None:
        """What an answer tells about the backend."""
        state, vitals, now = place.state, place.state.vitals, self._clock()
        # A caller's own key that is passed through is limited for him alone. A busy server is busy for everybody; but
        # where there is no other, what it says to each is better than what we could say for it.
        has_others = len(call.search.way.targets) > 1
        is_for_all = place.target.api_key or (has_others and reply.status in (503, 529))
        rest = rest_s(reply.status, reply.headers, self._wall()) if is_for_all else None
        if rest is not None:
            vitals.rest(now + rest)
        if reply.status in OVERLOAD_STATUSES:
            state.limit.dropped(now, began.crowd)
        if reply.status in FAILURE_STATUSES and rest is None:
            state.failures += 1
            vitals.failed(now, place.spell)
        elif reply.status >= 400:
            vitals.ended(now, place.spell)
        else:
            vitals.succeeded(now, place.spell)
            if _is_held(call.request):  # else it took as long as the client took to send it
                state.ttft.observe((now - began.at) / began.joined, now)
            if call.needs.is_stream:  # a JSON answer's first byte is its last: that tells of its length, not of a queue
                state.limit.observe(now - began.at, began.crowd, now, call.search.tokens)
        self.fleet.notice(state)

    async def _first_byte(self, call: _Call, state: BackendState, target: Target, sent: asyncio.Event) -> Reply:
        """`sent`: set when the request goes out. Raises UpstreamError, also for a backend that is given up while we
        wait."""
        request = replace(call.needs.fit(call.request, target), on_sent=sent.set)
        patience = asyncio.timeout(None)
        try:
            async with patience:
                state.waits(patience)
                try:
                    reply = await self._fetcher.send(target, request)
                    if reply.status == 401 and target.api_key:  # vendors quote a part of the key in what they say
                        await reply.abort()
                        message = f"{target.name} refuses the key that is configured for it"
                        raise UpstreamError(message, code="upstream_key_refused")
                    if request.want_recording:
                        await reply.first()
                        if reply.is_empty and _should_say_something(reply):
                            raise UpstreamError(f"{target.name} ended its answer before it began", sent=True)
                    return reply
                finally:
                    state.waits_no_more(patience)
        except TimeoutError as exc:
            message = f"{target.name} stopped answering its health checks"
            raise UpstreamError(message, status=504, code="upstream_timeout", sent=True) from exc

    def _leave(self, place: Place, call: _Call) -> None:
        """A place that was taken and is not needed."""
        place.state.vitals.ended(self._clock(), place.spell)
        place.state.begun(call.search.tokens)
        self._placing.give_back(place)

    # Whether to go on

    def _may_go_on(self, call: _Call, found: Answering | UpstreamError) -> bool:
        if call.attempts >= call.needs.retry.attempts:
            return False
        if isinstance(found, UpstreamError):
            return call.needs.is_repeatable or not found.sent
        if found.status in OVERLOAD_STATUSES:
            return _is_held(call.request)  # a body that was streamed out is gone
        return found.status in FAILURE_STATUSES and call.needs.is_repeatable

    def _budget(self, budgets: dict[str, Budget], route: str, share: float) -> Budget:
        budget = budgets.get(route)
        if budget is None:
            budget = budgets[route] = Budget(share)
        return budget


def _has_begun(found: Answering | UpstreamError) -> bool:
    return isinstance(found, Answering) and found.status not in FAILOVER_STATUSES


def _should_say_something(reply: Reply) -> bool:
    """A model's answer in JSON or events has a body, or its backend has died. The subtitles of silence have none."""
    return reply.status == 200 and reply.headers.get("Content-Type", "").lower().startswith(_SPEAKING)


def _is_held(request: UpstreamRequest) -> bool:
    return isinstance(request.body, bytes)

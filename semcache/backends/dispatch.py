"""DISPATCH: send a request to the best backend that may take it, and go on to the next while nothing has come back.

    _pick      who is alive, on duty, has room and is ranked first, pool after pool in order of preference
    _place     ... or a turn in the queue of the first pool that is merely full
    _try       one attempt, from its first byte to what it tells about the backend
    fetch      attempts down the ranking, within the route's retry budget

The rule: nobody is asked twice for what may have had an effect there, and nothing is repeated once a byte of an answer
has been handed over. A backend that stops answering its checks loses the requests that wait for their first byte: they
go to the next one, as if it had refused them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic, time
from typing import Any, NamedTuple

from semcache.backends.backoff import pause_s
from semcache.backends.balance import Asked, rank
from semcache.backends.budget import Budget
from semcache.backends.checks import Checks, check_over_http
from semcache.backends.fetch import Fetcher, Reply, UpstreamRequest
from semcache.backends.health import choose
from semcache.backends.hedging import race
from semcache.backends.model_lists import ModelLists
from semcache.backends.prefix import chain
from semcache.backends.rate_headers import rest_s
from semcache.backends.routing import BYTES_PER_TOKEN, Option, Way
from semcache.backends.state import BackendState
from semcache.backends.target import Target, targets_of
from semcache.backends.waiting import Priority, Turn, WaitingRoom
from semcache.config import Hedge, Pool, Retry, Route
from semcache.errors import Overloaded, UpstreamError

OVERLOAD_STATUSES = frozenset({429, 503, 529})  # it refused, and did nothing
FAILURE_STATUSES = frozenset({500, 502, 503, 504, 529})
GONE_S = 60.0  # a pool that a reload has taken away serves requests that were planned before, as long as this
CHECK_S = 2.0  # between checks, where the settings leave it to us
FAILOVER_STATUSES = FAILURE_STATUSES | OVERLOAD_STATUSES

_BELIEVED = (True, False)  # who is asked first: those that look well; then, in panic, also those that do not


class Needs(NamedTuple):
    """What a dispatch must know of a request, besides what is sent."""

    route: str  # its name: of the budgets
    retry: Retry = Retry()
    hedge: Hedge | None = None
    priority: Priority = "interactive"
    is_nearest_first: bool = False
    is_repeatable: bool = True  # asking twice does no harm at the upstream
    model: str | None = None  # as the caller names it; None: no model is
    is_stream: bool = False
    prompt: bytes = b""  # as it is sent; its beginning says which KV cache may know it
    fit: Callable[[UpstreamRequest, Target], UpstreamRequest] = lambda request, target: request  # for a backend's model


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

    way: Way
    request: UpstreamRequest
    needs: Needs
    tokens: int
    tried: set[str] = field(default_factory=set)
    attempts: int = 0
    chunks: dict[int, tuple[int, ...]] = field(default_factory=dict)  # chunk size -> hashes of the prompt

    def asked(self, pool: Pool) -> Asked:
        if pool.balance != "prefix":
            return Asked(self.tokens, ())
        size = pool.prefix.chunk
        if size not in self.chunks:
            self.chunks[size] = chain(self.needs.prompt, size)
        return Asked(self.tokens, self.chunks[size])


class _Place(NamedTuple):
    """A place at a backend, taken."""

    state: BackendState
    target: Target
    asked: Asked
    model: str | None  # whose answer this will be; None: of the model that was asked for
    spell: int  # what the end of the request is told to the backend's vitals with


class _PoolState:
    def __init__(self, name: str, settings: Pool, before: _PoolState | None = None) -> None:
        """`before`: what it was until now; what is known of backends lives on where they are the same."""
        self.settings = settings
        self.states: dict[str, BackendState] = {}  # by the target's name
        self.former: dict[str, BackendState] = {}  # those of before, for requests that were planned then
        self.room = WaitingRoom(settings.queue)
        known = {}
        if before is not None:
            self.former = before.states
            known = {_identity(state.target, state.settings): state for state in before.states.values()}
            if before.settings.queue == settings.queue:
                self.room = before.room
        for target in targets_of(name, settings):
            state = known.pop(_identity(target, settings), None) or BackendState(target, settings)
            state.adopt(target, settings)
            self.states[target.name] = state

    def find(self, target: Target) -> BackendState | None:
        return self.states.get(target.name) or self.former.get(target.name)


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
    ) -> None:
        """`clock`: monotonic seconds. `wall`: unix seconds."""
        self._fetcher = fetcher
        self._clock = clock
        self._wall = wall
        self._chance = chance or Random()
        self._sleep = sleep
        self._pools: dict[str, _PoolState] = {}
        self._gone: dict[str, tuple[_PoolState, float]] = {}  # pool, until when
        self._checks = Checks(self._check, answered=self._answered, lost=self._lost, clock=clock)
        self._lists = ModelLists(fetcher)
        self._asking: asyncio.Task[None] | None = None
        self._retries: dict[str, Budget] = {}
        self._hedges: dict[str, Budget] = {}
        self.requests = 0
        self.failovers = 0
        self.hedges = 0
        self.overflows = 0
        self.over_budget = 0
        self.refused = 0
        self.adopt(pools, routes)

    def start(self) -> None:
        """Begin to ask the backends whether they are well, and which models they serve. The fetcher has started."""
        self._checks.start()
        self._asking = asyncio.create_task(self._lists.run())

    async def stop(self) -> None:
        await self._checks.stop()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def adopt(self, pools: Mapping[str, Pool], routes: Sequence[Route] = ()) -> None:
        """Take new settings at once. What is known of a backend lives on where nothing that it depends on has changed;
        requests under way end where they are."""
        old, self._pools = self._pools, {}
        self._retries.clear()
        self._hedges.clear()
        for name, settings in pools.items():
            self._pools[name] = _PoolState(name, settings, old.get(name))
        now = self._clock()
        gone = {name: (pool, now + GONE_S) for name, pool in old.items() if name not in pools}
        self._gone = {**{name: kept for name, kept in self._gone.items() if kept[1] > now}, **gone}
        states = [state for pool in self._pools.values() for state in pool.states.values()]
        self._checks.adopt({state: _interval_s(state, routes) for state in states})
        self._lists.watch(state.target for state in states)

    def _has(self, name: str) -> bool:
        return name in self._pools or name in self._gone

    def _pool(self, name: str) -> _PoolState:
        """Also one that a reload has taken away a moment ago: requests that were planned before it are under way."""
        return self._pools.get(name) or self._gone[name][0]

    def give_up(self, name: str) -> None:
        """A backend does not answer its checks: requests that wait for their first byte there go to the next one."""
        for pool in self._pools.values():
            if name in pool.states:
                pool.states[name].give_up()

    async def fetch(self, way: Way, request: UpstreamRequest, needs: Needs) -> Answering:
        """Return the first answer that begins, from the best backend that gives one.

        An answer of any status: where all that were asked failed, it is the last one's error. Cancelling gives the
        place back. Raises ClientError for a request that must not be forwarded; Overloaded when there is no place for
        it; UpstreamError of the backend that was tried last.
        """
        self.requests += 1
        call = _Call(self._lists.narrow(way, needs.model), request, needs, len(needs.prompt) // BYTES_PER_TOKEN)
        budget = self._budget(self._retries, needs.route, needs.retry.budget)
        budget.asked(self._clock())
        found = await self._ask(call, await self._place(call))
        while self._may_go_on(call, found):
            place = self._pick(call)
            if place is None:
                break
            if not budget.take(self._clock()):
                self.over_budget += 1
                self._leave(place, call)
                break
            self.failovers += 1
            if isinstance(found, Answering):
                await found.abort()
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
            "overflows": self.overflows,
            "over_budget": self.over_budget,
            "refused": self.refused,
            **{f"checks_{name}": count for name, count in self._checks.stats().items()},
        }

    def pools(self) -> Mapping[str, Mapping[str, object]]:
        """Each pool's queue and backends, as they are now."""
        now = self._clock()
        return {
            name: {
                "queue": pool.room.stats(),
                "backends": {target: state.stats(now) for target, state in pool.states.items()},
            }
            for name, pool in self._pools.items()
        }

    # Whether they are there

    async def _check(self, state: BackendState) -> bool:
        health = state.settings.health
        return await check_over_http(self._fetcher, state.target, health.path, health.timeout)

    def _answered(self, state: BackendState, took_s: float) -> None:
        state.round_trip.observe(took_s, self._clock())
        if state.is_lost:  # it has been started again: its KV cache is empty, and perhaps it has other models
            state.is_lost = False
            state.prefixes.forget()
            self._lists.returned(state.target.name)

    def _lost(self, state: BackendState) -> None:
        state.is_lost = True
        state.give_up()

    # Who is asked

    def _pick(self, call: _Call, turn: Turn | None = None) -> _Place | None:
        """Take a place at the backend that is ranked first, of the first pool that has one. None: nobody has.

        `turn`: the right to look before those who came later.
        """
        now = self._clock()
        options = self._in_order(call, now)
        for believed in _BELIEVED:
            for number, option in enumerate(options):
                pool = self._pool(option.pool)
                if not pool.room.may_pass(call.needs.priority, turn):
                    continue
                free = [state for state in self._able(call, option, believed, now) if state.has_room()]
                if not free:
                    continue
                later = options[number + 1 :]
                if self._is_slow(pool, free, now) and any(self._has_place(call, other) for other in later):
                    self.overflows += 1
                    continue
                asked = call.asked(pool.settings)
                best = next(iter(rank(pool.settings.balance, free, asked, pool.settings.prefix, now, self._chance)))
                spell = best.begin(call.tokens, now)
                target = next(target for target in option.targets if target.name == best.target.name)
                return _Place(best, target, asked, option.model, spell)
        return None

    async def _place(self, call: _Call) -> _Place:
        """Take a place, or wait for one. Raises Overloaded where there is none, or none in time."""
        turn: Turn | None = None
        while (place := self._pick(call, turn)) is None:
            turn = await self._wait(call, turn)
        return place

    async def _wait(self, call: _Call, turn: Turn | None) -> Turn:
        """Wait for a turn to look again, in the first pool that is merely full and lets one more wait."""
        now = self._clock()
        full = [
            option for option in self._in_order(call, now) if any(self._able(call, option, b, now) for b in _BELIEVED)
        ]
        refusal: Overloaded | None = None
        for number, option in enumerate(full):
            pool = self._pool(option.pool)
            limit = pool.settings.overflow.queue
            is_last = number + 1 == len(full)  # then its queue is where to wait, however long it is
            if turn is None and not is_last and (limit is None or pool.room.waiting >= limit):
                continue
            try:
                return await pool.room.wait(
                    call.needs.priority, turn=turn, can_go=partial(self._has_place, call, option)
                )
            except Overloaded as exc:
                refusal = exc
                turn = None
        self.refused += 1
        raise refusal or self._nobody(call, now)

    def _able(self, call: _Call, option: Option, believed: bool, now: float) -> Sequence[BackendState]:
        """Backends of an option that may be asked now, with or without room. `believed`: only those that look well."""
        pool, wall = self._pool(option.pool), self._wall()
        known = (pool.find(target) for target in option.targets if target.name not in call.tried)
        states = [state for state in known if state is not None and state.is_on_duty(wall)]
        if believed:
            return [state for state in states if state.vitals.may_take(now)]
        in_panic = choose([state.vitals for state in states], pool.settings.health, now)
        return [state for state in states if state.vitals in in_panic]

    def _has_place(self, call: _Call, option: Option) -> bool:
        now = self._clock()
        return any(state.has_room() for state in self._able(call, option, True, now))

    def _is_slow(self, pool: _PoolState, free: Sequence[BackendState], now: float) -> bool:
        """Whether even the quickest of these is expected to begin later than the pool's overflow says."""
        limit_s = pool.settings.overflow.ttft
        if limit_s is None:
            return False
        expected = [state.ttft_s(now) for state in free]
        return all(ttft_s is not None and ttft_s > limit_s for ttft_s in expected)

    def _in_order(self, call: _Call, now: float) -> Sequence[Option]:
        options = [option for option in call.way.options if self._has(option.pool)]
        if not call.needs.is_nearest_first or len(options) < 2:
            return options

        def distance_s(option: Option) -> float:
            """Of the nearest backend; what has not been measured comes last."""
            states = self._pool(option.pool).states.values()
            return min((s.round_trip.value(now) or float("inf") for s in states), default=float("inf"))

        return sorted(options, key=distance_s)  # stable: equals stay as they are written

    def _nobody(self, call: _Call, now: float) -> Overloaded:
        """Nobody may be asked now: resting, off duty, draining, or gone."""
        rests = [
            state.vitals.rests_until(now) - now
            for option in call.way.options
            if self._has(option.pool)
            for state in self._pool(option.pool).states.values()
            if state.vitals.rests_until(now) > now
        ]
        return Overloaded("no backend takes requests now", retry_after_s=min(rests, default=1.0))

    # One attempt

    async def _ask(self, call: _Call, place: _Place, pause: bool = False) -> Answering | UpstreamError:
        """Ask one backend, or two where the first is slow to begin and the route wants that."""
        hedge = call.needs.hedge
        if hedge is None or not call.needs.is_repeatable:
            return await self._try(call, place, pause)
        budget = self._budget(self._hedges, call.needs.route, hedge.budget)
        budget.asked(self._clock())

        def start_rival() -> Coroutine[Any, Any, Answering | UpstreamError] | None:
            other = self._pick(call)
            if other is None:
                return None
            if not budget.take(self._clock()):
                self._leave(other, call)
                return None
            self.hedges += 1
            return self._try(call, other)

        return await race(self._try(call, place, pause), hedge.after, start_rival, _has_begun, _drop)

    async def _try(self, call: _Call, place: _Place, pause: bool = False) -> Answering | UpstreamError:
        """Ask one backend; an UpstreamError is returned, everything else raised. The place is given back, or goes with
        the answer."""
        state, target, asked, model, spell = place
        call.attempts += 1
        call.tried.add(target.name)
        vitals = state.vitals
        if asked.chunks:
            state.prefixes.insert(asked.chunks)
        try:
            if pause:
                await self._sleep(pause_s(call.attempts - 1, call.needs.retry.backoff, self._chance))
            begun, crowd = self._clock(), state.in_flight
            reply = await self._first_byte(call, state, target)
        except UpstreamError as error:
            now = self._clock()
            vitals.failed(now, spell)
            state.failures += 1
            self._checks.look_now(state)
            if error.status == 504:
                state.limit.dropped(now)
            self._give_back(state, call.tokens)
            return error
        except BaseException:  # cancelled, or nothing that may be forwarded: no word on the backend
            vitals.ended(self._clock(), spell)
            self._give_back(state, call.tokens)
            raise
        self._learn_from(call, place, reply, begun, crowd)
        return Answering(reply, target, model, lambda: self._give_back(state, call.tokens))

    def _learn_from(self, call: _Call, place: _Place, reply: Reply, begun: float, crowd: int) -> None:
        """What an answer tells about the backend. `crowd`: requests there when it began."""
        state, vitals, now = place.state, place.state.vitals, self._clock()
        # A caller's own key that is passed through is limited for him alone; a busy server is busy for everybody.
        is_for_all = place.target.api_key or reply.status in (503, 529)
        rest = rest_s(reply.status, reply.headers, self._wall()) if is_for_all else None
        if rest is not None:
            vitals.rest(now + rest)
        if reply.status in OVERLOAD_STATUSES:
            state.limit.dropped(now)
        if reply.status in FAILURE_STATUSES and rest is None:
            state.failures += 1
            vitals.failed(now, place.spell)
        elif reply.status >= 400:
            vitals.ended(now, place.spell)
        else:
            vitals.succeeded(now, place.spell)
            state.ttft.observe(now - begun, now)
            if call.needs.is_stream:  # a JSON answer's first byte is its last: that tells of its length, not of a queue
                state.limit.observe(now - begun, crowd, now, call.tokens)

    async def _first_byte(self, call: _Call, state: BackendState, target: Target) -> Reply:
        """Raises UpstreamError, also for a backend that is given up while we wait."""
        request = call.needs.fit(call.request, target)
        patience = asyncio.timeout(None)
        try:
            async with patience:
                state.waits(patience)
                try:
                    reply = await self._fetcher.send(target, request)
                    if request.want_recording:
                        await reply.first()
                    return reply
                finally:
                    state.waits_no_more(patience)
        except TimeoutError as exc:
            message = f"{target.name} stopped answering its health checks"
            raise UpstreamError(message, status=504, code="upstream_timeout", sent=True) from exc

    def _leave(self, place: _Place, call: _Call) -> None:
        """A place that was taken and is not needed."""
        place.state.vitals.ended(self._clock(), place.spell)
        self._give_back(place.state, call.tokens)

    def _give_back(self, state: BackendState, tokens: int) -> None:
        state.finish(tokens)
        if self._has(state.target.pool):
            self._pool(state.target.pool).room.wake()

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


def _interval_s(state: BackendState, routes: Sequence[Route]) -> float:
    """Between active checks. Where it is not said, only those are checked that a request could go past."""
    said = state.settings.health.interval
    if said is not None:
        return said
    name = state.target.pool
    ways = [*(route.pools for route in routes), *(arm.pools for route in routes for arm in route.split)]
    has_other = any(len(choices) > 1 and name in (choice.pool for choice in choices) for choices in ways)
    return CHECK_S if has_other or len(tuple(targets_of(name, state.settings))) > 1 else 0.0


def _identity(target: Target, pool: Pool) -> tuple[object, ...]:
    """What has to be the same for what is known of a backend to hold on."""
    backend = target.backend
    return (
        (target.name, backend.url, target.api_key, backend.dialect, backend.proxy, backend.max_in_flight),
        (pool.health, pool.adaptive, pool.prefix.remember),
    )


def _has_begun(found: Answering | UpstreamError) -> bool:
    return isinstance(found, Answering) and found.status not in FAILOVER_STATUSES


async def _drop(found: Answering | UpstreamError) -> None:
    if isinstance(found, Answering):
        await found.abort()


def _is_held(request: UpstreamRequest) -> bool:
    return isinstance(request.body, bytes)

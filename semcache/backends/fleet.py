"""The fleet: all pools, and what is known of each of their backends. Settings come and go; what is known stays.

Whether a backend may be asked at this moment is decided here; which of them is, in placing.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic, time

from semcache.backends.checks import Checks, check_over_http
from semcache.backends.fetch import Fetcher
from semcache.backends.health import choose
from semcache.backends.model_lists import ModelLists
from semcache.backends.routing import Option, Way
from semcache.backends.state import BackendState
from semcache.backends.target import Target, targets_of
from semcache.backends.waiting import WaitingRoom
from semcache.config import Pool, Route

log = logging.getLogger(__name__)

GONE_S = 60.0  # a pool that a reload has taken away serves requests that were planned before, as long as this
CHECK_S = 2.0  # between checks, where the settings leave it to us


class PoolState:
    def __init__(self, name: str, settings: Pool, before: PoolState | None = None) -> None:
        """`before`: what it was until now; what is known of backends lives on where they are the same."""
        self.settings = settings
        self.states: dict[str, BackendState] = {}  # by the target's name
        self.former: dict[str, BackendState] = {}  # those of before, by their names then: for requests planned then
        self.room: WaitingRoom = WaitingRoom(settings.queue) if before is None else before.room
        self.room.adopt(settings.queue)
        self.is_in_panic: bool = before is not None and before.is_in_panic  # when the operator was last told
        if before is not None:
            self.former = before.states
        known = list(self.former.values())
        for target in targets_of(name, settings):
            state = next((state for state in known if _is_same(state.target, target)), None)
            if state is None:
                state = BackendState(target, settings)
            else:
                known.remove(state)
                state.adopt(target, settings)
            self.states[target.name] = state

    def find(self, target: Target) -> BackendState | None:
        """What is known of a target, also of one that was aimed at before a reload: its name may be another's now."""
        for states in (self.states, self.former):
            state = states.get(target.name)
            if state is not None and _is_same(state.target, target):
                return state
        return None


class Fleet:
    def __init__(
        self,
        fetcher: Fetcher,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
        record: Callable[[str, Mapping[str, object]], None] = lambda event, facts: None,
    ) -> None:
        """`clock`: monotonic seconds. `wall`: unix seconds. `record`: told of backends that go and come back
        ("breaker"), and of pools of which none looks alive ("panic")."""
        self.clock = clock
        self.wall = wall
        self._record = record
        self._fetcher = fetcher
        self._pools: dict[str, PoolState] = {}
        self._gone: dict[str, tuple[PoolState, float]] = {}  # pool, until when
        self._checks = Checks(self._check, answered=self._answered, lost=self._lost, clock=clock)
        self.look_now = self._checks.look_now
        self._lists = ModelLists(fetcher)
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask the backends whether they are well, and which models they serve. The fetcher has started."""
        self._checks.start()
        self._asking = asyncio.create_task(self._lists.run())

    async def stop(self) -> None:
        await self._checks.stop()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def adopt(self, pools: Mapping[str, Pool], routes: Sequence[Route]) -> None:
        """Take new settings at once. Requests under way end where they are."""
        old, now = self._pools, self.clock()
        gone = {name: kept for name, kept in self._gone.items() if kept[1] > now}
        known = {**{name: pool for name, (pool, _) in gone.items()}, **old}  # one that comes back is what it was
        self._pools = {name: PoolState(name, settings, known.get(name)) for name, settings in pools.items()}
        gone |= {name: (pool, now + GONE_S) for name, pool in old.items()}
        self._gone = {name: kept for name, kept in gone.items() if name not in pools}
        states = [state for pool in self._pools.values() for state in pool.states.values()]
        self._checks.adopt({state: _interval_s(state, routes) for state in states})
        self._lists.watch(state.target for state in states)

    def wake(self, name: str) -> None:
        """A place has become free in a pool. Those who wait in another one may want it, too."""
        if name in self._pools:
            self._pools[name].room.wake()
        for pool in (*self._pools.values(), *(gone for gone, _ in self._gone.values())):
            if pool.room.waiting and pool is not self._pools.get(name):
                pool.room.wake()

    # What is known

    def has(self, name: str) -> bool:
        return name in self._pools or name in self._gone

    def pool(self, name: str) -> PoolState:
        """Also one that a reload has taken away a moment ago: requests that were planned before it are under way."""
        return self._pools.get(name) or self._gone[name][0]

    def narrow(self, way: Way, model: str | None) -> Way:
        """The way without backends that are known not to have the model. Raises ClientError 404 where all are."""
        return self._lists.narrow(way, model)

    async def list_models(
        self,
        targets: Sequence[Target],
        vendor: str,
        is_allowed: Callable[[str], bool],
        headers: Mapping[str, str],
        pass_key: bool,
        aliases: Iterable[str],
    ) -> bytes:
        """One list of all their models; see ModelLists.merged."""
        return await self._lists.merged(targets, vendor, is_allowed, headers, pass_key, aliases)

    def well(self, option: Option, tried: set[str]) -> list[BackendState]:
        """Backends of an option, less those tried, that may be asked now, with or without room.

        Where fewer are well than the settings call believable, those count as well that are said not to be.
        """
        now = self.clock()
        able = [state for state in self._on_duty(option, tried) if state.vitals.may_take(now)]
        return self.in_panic(option, tried) if able and self.pool(option.pool).settings.health.panic else able

    def in_panic(self, option: Option, tried: set[str]) -> list[BackendState]:
        """The same where health may not be believed: see health.choose."""
        states = self._on_duty(option, tried)
        if not states:
            return []
        chosen = choose([state.vitals for state in states], self.pool(option.pool).settings.health, self.clock())
        return [state for state in states if state.vitals in chosen]

    def distance_s(self, option: Option) -> float:
        """The measured round trip to the nearest backend of a pool; infinite before the first measurement."""
        now = self.clock()
        trips = [state.round_trip.value(now) for state in self.pool(option.pool).states.values()]
        return min((trip for trip in trips if trip is not None), default=float("inf"))

    def rests_s(self, options: Sequence[Option]) -> float | None:
        """How long until the first of those that rest may be asked again; None: none rests."""
        now = self.clock()
        states = [state for option in options for state in self.pool(option.pool).states.values()]
        rests = [until - now for state in states if (until := state.vitals.rests_until(now))]
        return min(rests, default=None)

    def _on_duty(self, option: Option, tried: set[str]) -> list[BackendState]:
        if not self.has(option.pool):  # it has been gone for so long that it is forgotten
            return []
        pool, wall = self.pool(option.pool), self.wall()
        known = [pool.find(target) for target in option.targets if target.name not in tried]
        return [state for state in known if state is not None and state.is_on_duty(wall)]

    def give_up(self, name: str) -> None:
        """A backend does not answer its checks: requests that wait for their first byte there go to the next one."""
        for pool in self._pools.values():
            if name in pool.states:
                self._lost(pool.states[name])

    # Whether they are there

    async def _check(self, state: BackendState) -> bool:
        health = state.settings.health
        return await check_over_http(self._fetcher, state.target, health.path)

    def _answered(self, state: BackendState, took_s: float) -> None:
        state.round_trip.observe(took_s, self.clock())
        if state.is_lost:  # it has been started again: its KV cache is empty, and perhaps it has other models
            state.is_lost = False
            state.prefixes.forget()
            self._lists.returned(state.target.name)
        self.notice(state)

    def _lost(self, state: BackendState) -> None:
        state.is_lost = True
        state.give_up()
        self.notice(state)

    def notice(self, state: BackendState) -> None:
        """Tell the operator of a backend that has gone or is back, once for each change. Called after whatever may have
        been one."""
        is_alive = state.vitals.looks_alive()
        if is_alive is state.was_alive:
            return
        state.was_alive = is_alive
        name, url = state.target.name, state.target.backend.url
        if is_alive:
            log.warning("backend %s (%s) is back", name, url)
            self._record("breaker", {"backend": name, "state": "well"})
        else:
            why = "it fails its checks" if state.vitals.is_ejected() else "requests in a row have failed there"
            log.warning("backend %s (%s) is out: %s", name, url, why)
            self._record("breaker", {"backend": name, "state": str(state.vitals.state(self.clock()))})
        pool = self._pools.get(state.target.pool)
        if pool is not None:
            self._notice_panic(state.target.pool, pool)

    def _notice_panic(self, name: str, pool: PoolState) -> None:
        alive = sum(state.was_alive for state in pool.states.values())
        is_in_panic = alive == 0 or alive < pool.settings.health.panic * len(pool.states)
        if is_in_panic is pool.is_in_panic:
            return
        pool.is_in_panic = is_in_panic
        if is_in_panic:
            seen = "no backend looks alive" if not alive else f"only {alive} of {len(pool.states)} backends look alive"
            log.warning("pool %s: %s; requests go to later pools, and all of these are tried after them", name, seen)
        self._record("panic", {"pool": name, "state": "begins" if is_in_panic else "ends", "alive": alive})

    # By hand

    def drain(self, name: str, is_drained: bool) -> Sequence[BackendState]:
        """Send nothing new to a backend, or do again. `name`: its own, with all its keys, or that of a pool. Returns
        those it was; empty: nothing is called that."""
        found = []
        for pool_name, pool in self._pools.items():
            for own, state in pool.states.items():
                if name in (pool_name, own) or own.startswith(f"{name}#"):
                    state.is_drained = is_drained
                    found.append(state)
            pool.room.wake()
        return found

    def takes_requests(self, pool: str) -> bool:
        """Whether any backend of it is on duty at this moment."""
        wall = self.wall()
        return any(state.is_on_duty(wall) for state in self._pools[pool].states.values())

    def pools(self) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
        """Each pool's queue and backends, as they are now."""
        now, wall = self.clock(), self.wall()
        return {
            name: {
                "queue": pool.room.stats(),
                "backends": {target: state.stats(now, wall) for target, state in pool.states.items()},
            }
            for name, pool in self._pools.items()
        }

    def stats(self) -> dict[str, float]:
        return {f"checks_{name}": count for name, count in self._checks.stats().items()}


def _interval_s(state: BackendState, routes: Sequence[Route]) -> float:
    """Between active checks. Where it is not said, only those are checked that a request could go past."""
    said = state.settings.health.interval
    if said is not None:
        return said
    own = state.target
    lists = [*(route.pools for route in routes), *(arm.pools for route in routes for arm in route.split)]
    has_other = any(len(choices) > 1 and own.pool in (choice.pool for choice in choices) for choices in lists)
    like_it = [t for t in targets_of(own.pool, state.settings) if t.backend.dialect == own.backend.dialect]
    return CHECK_S if has_other or len(like_it) > 1 else 0.0


def _is_same(one: Target, other: Target) -> bool:
    """Whether what is known of one holds of the other. Its name does not matter: it tells its place in the list."""
    if one.backend is other.backend and one.name == other.name:
        return True
    return _identity(one) == _identity(other)


def _identity(target: Target) -> tuple[object, ...]:
    return target.pool, target.backend.url, target.api_key, target.backend.dialect, target.backend.proxy

"""The dispatcher before backends of known capacity, in virtual time: floods, herds, outages and returns."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

from multidict import CIMultiDict

from semcache.backends.dispatch import Dispatcher, Needs
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.routing import find_way
from semcache.backends.target import Target
from semcache.config import Pool, PoolChoice, Retry
from semcache.errors import Overloaded, UpstreamError
from tests.virtual_time import VirtualLoop

REQUEST = UpstreamRequest("POST", "/v1/chat/completions", CIMultiDict(), b'{"messages": []}', want_recording=True)


class Reply:
    status = 200
    headers: CIMultiDict[str] = CIMultiDict()
    whole = True
    is_empty = False

    async def first(self) -> None: ...

    async def abort(self) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"fine"


class Servers:
    """Each answers so many requests at once, and takes as long for each; others wait there, unseen."""

    def __init__(self, slots: int, takes_s: float) -> None:
        self.slots, self.takes_s = slots, takes_s
        self.down: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # held at once
        self._held: Counter[str] = Counter()
        self._free: dict[str, asyncio.Semaphore] = {}

    async def send(self, target: Target, request: UpstreamRequest) -> Reply:
        name = target.name
        self.requests[name] += 1
        if name in self.down:
            raise UpstreamError("refused")
        self._held[name] += 1
        self.most[name] = max(self.most[name], self._held[name])
        try:
            async with self._free.setdefault(name, asyncio.Semaphore(self.slots)):
                await asyncio.sleep(self.takes_s)
        finally:
            self._held[name] -= 1
        return Reply()


class Stage:
    def __init__(self, servers: Servers, **pool: Any) -> None:
        self.servers = servers
        self.pools = {"p": Pool.model_validate(pool)}
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(
            self.pools,
            servers,  # type: ignore[arg-type]
            clock=loop.time,
            chance=Random(5),
        )
        self.way = find_way([PoolChoice(pool="p")], self.pools, "openai", frozenset(), "m")
        self.seen: Counter[str] = Counter()
        self.told_s: list[int] = []

    async def ask(self, needs: Needs = Needs(route="r", is_stream=True)) -> None:
        try:
            answer = await self.dispatcher.fetch(self.way, REQUEST, needs)
            await answer.abort()
            self.seen["served"] += 1
        except Overloaded as error:
            self.told_s.append(int(error.headers["Retry-After"]))
            self.seen["overloaded"] += 1
        except UpstreamError:
            self.seen["failed"] += 1

    async def flood(self, per_s: float, seconds: float, needs: Needs = Needs(route="r", is_stream=True)) -> None:
        """Requests that come whether others have been answered or not."""
        async with asyncio.TaskGroup() as asking:
            for _ in range(int(per_s * seconds)):
                asking.create_task(self.ask(needs))
                await asyncio.sleep(1 / per_s)


def backends(number: int, **more: Any) -> list[dict[str, Any]]:
    return [{"url": f"http://gpu-{place}.test/v1", **more} for place in range(number)]


def play(story: Any) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()


def test_twice_what_a_backend_bears_is_cut_to_what_it_bears_and_the_rest_is_told_at_once() -> None:
    async def story() -> None:
        stage = Stage(Servers(slots=8, takes_s=0.5), backends=backends(1), queue={"size": 20, "deadline": "2s"})
        await stage.flood(per_s=8, seconds=30)  # half of what it bears: nothing is held back
        assert stage.seen == {"served": 240}
        await stage.flood(per_s=32, seconds=120)
        stage.seen.clear()
        stage.servers.most.clear()
        await stage.flood(per_s=32, seconds=120)
        state = stage.dispatcher.fleet.pool("p").states["p[0]"]
        assert 8 <= state.limit.limit <= 40, state.limit.stats()
        assert stage.servers.most["p[0]"] <= 48, "no queue of hundreds behind the backend's door"
        assert stage.seen["served"] >= 0.9 * 16 * 120
        assert stage.seen["failed"] == 0

    play(story)


def test_a_herd_of_two_thousand_leaves_nothing_behind() -> None:
    async def story() -> None:
        servers = Servers(slots=2, takes_s=1.0)
        stage = Stage(servers, backends=backends(1, max_in_flight=2), queue={"size": 3, "deadline": "10s"})
        sizes = []
        tracemalloc.start()
        for _ in range(4):
            stage.seen.clear()
            async with asyncio.TaskGroup() as asking:
                for _ in range(2000):
                    asking.create_task(stage.ask())
            assert stage.seen == {"served": 5, "overloaded": 1995}
            assert all(1 <= told_s <= 60 for told_s in stage.told_s)
            stage.told_s.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert servers.most["p[0]"] == 2
        assert sizes[-1] - sizes[1] < 20_000
        state = stage.dispatcher.fleet.pool("p").states["p[0]"]
        assert (state.in_flight, state.tokens, stage.dispatcher.fleet.pool("p").room.waiting) == (0, 0, 0)

    play(story)


def test_in_a_full_outage_no_more_than_a_fifth_is_added_and_a_return_is_found() -> None:
    async def story() -> None:
        servers = Servers(slots=100, takes_s=0.05)
        health = {"open": "5s", "failures": 5, "successes": 2, "slow_start": "20s"}
        stage = Stage(servers, backends=backends(3), health=health)
        needs = Needs(route="r", retry=Retry(), is_stream=True)
        servers.down = {"p[0]", "p[1]", "p[2]"}
        await stage.flood(per_s=20, seconds=60, needs=needs)
        assert stage.seen == {"failed": 1200}
        assert 1200 <= servers.requests.total() <= 1.2 * 1200 + 10, "a fifth, and what the budget begins with"
        states = stage.dispatcher.fleet.pool("p").states
        assert not any(state.vitals.looks_alive() for state in states.values())
        servers.down = set()
        stage.seen.clear()
        await stage.flood(per_s=20, seconds=30, needs=needs)
        assert stage.seen == {"served": 600}
        assert all(state.vitals.looks_alive() for state in states.values())

    play(story)


def test_a_backend_that_is_back_is_given_little_first_and_its_part_later() -> None:
    async def story() -> None:
        servers = Servers(slots=100, takes_s=0.5)
        health = {"open": "5s", "failures": 3, "successes": 2, "slow_start": "20s"}
        stage = Stage(servers, backends=backends(3), health=health)
        servers.down = {"p[0]"}
        needs = Needs(route="r", retry=Retry(), is_stream=True)
        await stage.flood(per_s=40, seconds=10, needs=needs)
        assert stage.seen == {"served": 400}, "callers notice nothing"
        assert servers.requests["p[0]"] <= 6, "three to find out, and a trial now and then"
        servers.down = set()
        state = stage.dispatcher.fleet.pool("p").states["p[0]"]
        while not state.vitals.looks_alive():
            await stage.flood(per_s=40, seconds=0.5, needs=needs)
        shares = []
        for _ in range(6):
            before = servers.requests.copy()
            await stage.flood(per_s=40, seconds=5, needs=needs)
            shares.append((servers.requests["p[0]"] - before["p[0]"]) / 200)
        assert shares[0] < 0.15 < 0.29 < shares[-1], shares
        assert shares[0] < shares[1] < shares[3], shares

    play(story)


def test_where_one_pool_is_dead_and_the_next_one_full_requests_wait_rather_than_fail() -> None:
    async def story() -> None:
        servers = Servers(slots=2, takes_s=0.5)
        health = {"open": "30s", "failures": 3}
        queue = {"size": 50, "deadline": "20s"}
        stage = Stage(servers, backends=backends(2), health=health)
        far = {"backends": backends(1, max_in_flight=2), "health": health, "queue": queue}
        stage.pools["far"] = Pool.model_validate(far)
        stage.dispatcher.adopt(stage.pools)
        stage.way = find_way([PoolChoice(pool="p"), PoolChoice(pool="far")], stage.pools, "openai", frozenset(), "m")
        servers.down = {"p[0]", "p[1]"}
        needs = Needs(route="r", retry=Retry(budget=1.0), is_stream=True)
        await stage.flood(per_s=2, seconds=10, needs=needs)
        stage.seen.clear()
        before = servers.requests.copy()
        async with asyncio.TaskGroup() as asking:
            for _ in range(20):
                asking.create_task(stage.ask(needs))
        assert stage.seen == {"served": 20}
        assert servers.requests["far[0]"] - before["far[0]"] == 20

    play(story)


def test_who_waits_in_a_later_pool_takes_the_place_that_comes_free_in_an_earlier_one() -> None:
    async def story() -> None:
        servers = Servers(slots=1, takes_s=1.0)
        stage = Stage(servers, backends=backends(1, max_in_flight=1))
        slow = {"backends": backends(1, max_in_flight=1), "queue": {"size": 5, "deadline": "60s"}}
        stage.pools["far"] = Pool.model_validate(slow)
        stage.dispatcher.adopt(stage.pools)
        stage.way = find_way([PoolChoice(pool="p"), PoolChoice(pool="far")], stage.pools, "openai", frozenset(), "m")
        near, far = [await stage.dispatcher.fetch(stage.way, REQUEST, Needs(route="r")) for _ in range(2)]
        assert (near.backend, far.backend) == ("p[0]", "far[0]")
        waiting = asyncio.create_task(stage.dispatcher.fetch(stage.way, REQUEST, Needs(route="r")))
        await asyncio.sleep(0.01)
        begun = asyncio.get_running_loop().time()
        await near.abort()
        third = await waiting
        assert (third.backend, asyncio.get_running_loop().time() - begun) == ("p[0]", 1.0)
        for answer in (far, third):
            await answer.abort()

    play(story)

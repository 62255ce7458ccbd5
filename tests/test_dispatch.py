"""Who is asked, who is asked next, and who waits: the dispatcher before real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from multidict import CIMultiDict

from semcache.backends.dispatch import Answering, Dispatcher, Needs
from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.routing import Way, find_way
from semcache.config import Hedge, Pool, PoolChoice, Retry
from semcache.errors import Overloaded, UpstreamError
from tests.fakes import Clock
from tests.harness import until
from tests.scripted_upstream import Expect, ScriptedUpstream, Send, Step, Wait, WaitForClose, answer

REQUEST = UpstreamRequest("POST", "/v1/chat/completions", CIMultiDict(), b'{"model": "m"}', want_recording=True)
PATIENT = Needs(route="r", retry=Retry(budget=1.0, backoff=0))


def status(number: int, *fields: str) -> list[list[Step]]:
    return [[Expect(), answer(b"sorry", *fields, status=f"{number} Trouble")]]


SWITCHED = Send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
HANDSHAKE = replace(REQUEST, method="GET", body=b"", want_recording=False, switches=True)

OK: list[list[Step]] = [[Expect(), answer(b"fine")] * 20]


class Stage:
    """Upstreams in pools, in the order they were given, and a dispatcher before them."""

    def __init__(self, fetcher: Fetcher, pools: dict[str, Pool], wall: Clock) -> None:
        self.fetcher = fetcher
        self.pools = pools
        self.dispatcher = Dispatcher(pools, fetcher, wall=wall, chance=Random(7))
        self.wall = wall

    def way(self, *names: str) -> Way:
        return find_way([PoolChoice(pool=name) for name in names], self.pools, "openai", frozenset(), "m")

    async def ask(self, needs: Needs = PATIENT, request: UpstreamRequest = REQUEST) -> Answering:
        return await self.dispatcher.fetch(self.way(), request, needs)

    async def read(self, needs: Needs = PATIENT) -> tuple[int, str, int]:
        reply = await self.ask(needs)
        async for _ in reply.chunks():
            pass
        await reply.abort()
        return reply.status, reply.backend, reply.attempts

    def backend(self, name: str) -> dict[str, Any]:
        pool: Any = self.dispatcher.fleet.pools()[name.partition("[")[0]]
        found: dict[str, Any] = pool["backends"][name]
        return found


@asynccontextmanager
async def stage(*upstreams: ScriptedUpstream | int, **settings: Any) -> AsyncIterator[Stage]:
    """One pool `p`, whose backends are tried in the order given: their weights say so. A number is a port."""
    ports = [upstream if isinstance(upstream, int) else upstream.port for upstream in upstreams]
    of_backends = settings.pop("backends", [{}] * len(ports))
    backends = [
        {"url": f"http://127.0.0.1:{port}/v1", "weight": 1000.0 ** (len(ports) - place), **more}
        for place, (port, more) in enumerate(zip(ports, of_backends, strict=True))
    ]
    async with staged({"p": {"backends": backends, **settings}}) as staged_here:
        yield staged_here


@asynccontextmanager
async def staged(pools: dict[str, Any]) -> AsyncIterator[Stage]:
    fetcher = Fetcher()
    await fetcher.start()
    try:
        yield Stage(fetcher, {name: Pool.model_validate(pool) for name, pool in pools.items()}, Clock())
    finally:
        await fetcher.close()


@pytest.fixture
async def nobody() -> int:
    """A port that refuses connections."""
    async with ScriptedUpstream(OK) as gone:
        return gone.port


# Going on to the next


async def test_a_backend_that_refuses_connections_costs_the_client_nothing(nobody: int) -> None:
    async with ScriptedUpstream(OK) as well, stage(nobody, well) as here:
        assert await here.read() == (200, "p[1]", 2)
        assert here.dispatcher.stats()["failovers"] == 1


@pytest.mark.parametrize("number", [429, 500, 502, 503, 504, 529])
async def test_a_failure_goes_on_to_the_next(number: int) -> None:
    async with ScriptedUpstream(status(number)) as bad, ScriptedUpstream(OK) as well, stage(bad, well) as here:
        assert await here.read() == (200, "p[1]", 2)


@pytest.mark.parametrize("number", [400, 401, 404, 422])
async def test_the_callers_own_error_is_his_answer(number: int) -> None:
    async with ScriptedUpstream(status(number)) as strict, ScriptedUpstream(OK) as well, stage(strict, well) as here:
        assert await here.read() == (number, "p[0]", 1)
        assert well.connections == 0


async def test_what_a_vendor_says_of_our_own_key_is_for_us_alone() -> None:
    said = [[Expect(), answer(b"Incorrect API key provided: sk-op***key", status="401 Unauthorized")]]
    keys = [{"api_key": "sk-operators-key"}, {"api_key": "another"}]
    async with (
        ScriptedUpstream(said) as strict,
        ScriptedUpstream(OK) as well,
        stage(strict, well, backends=keys) as here,
    ):
        assert await here.read() == (200, "p[1]", 2), "the next key may be good"
    async with ScriptedUpstream(said) as strict, stage(strict, backends=keys[:1]) as here:
        with pytest.raises(UpstreamError, match=r"p\[0\] refuses the key that is configured for it") as refused:
            await here.read()
        assert refused.value.status == 502


async def test_where_all_fail_the_last_one_has_the_word(nobody: int) -> None:
    async with ScriptedUpstream(status(500)) as bad, ScriptedUpstream(status(503)) as full, stage(bad, full) as here:
        assert await here.read() == (503, "p[1]", 2)
    async with ScriptedUpstream(status(500)) as bad, stage(bad, nobody) as here:
        with pytest.raises(UpstreamError, match="refuses connections"):
            await here.read()


async def test_what_may_have_had_an_effect_is_not_asked_twice() -> None:
    once = PATIENT._replace(is_repeatable=False)
    async with ScriptedUpstream(status(500)) as bad, ScriptedUpstream(OK) as well, stage(bad, well) as here:
        assert await here.read(once) == (500, "p[0]", 1)
    async with ScriptedUpstream(status(503)) as full, ScriptedUpstream(OK) as well, stage(full, well) as here:
        assert await here.read(once) == (200, "p[1]", 2), "a server that refuses has done nothing"


async def test_no_more_is_repeated_than_the_budget_gives(nobody: int) -> None:
    needs = PATIENT._replace(retry=Retry(budget=0.0))
    async with ScriptedUpstream(OK) as well, stage(nobody, well) as here:
        came = await asyncio.gather(*(here.read(needs) for _ in range(200)), return_exceptions=True)
        failures = sum(isinstance(one, UpstreamError) for one in came)
        assert here.dispatcher.stats()["over_budget"] == failures > 0
        assert here.backend("p[1]")["in_flight"] == 0, "a place that was taken for it is given back"


async def test_no_backend_is_asked_more_often_than_the_route_says(nobody: int) -> None:
    needs = PATIENT._replace(retry=Retry(attempts=2, budget=1.0, backoff=0))
    async with ScriptedUpstream(OK) as well, stage(nobody, nobody, well) as here:
        with pytest.raises(UpstreamError):
            await here.read(needs)
        assert well.connections == 0


# Taking it away from who does not answer


async def test_a_request_that_waits_at_a_frozen_backend_is_taken_to_the_next() -> None:
    silent: list[list[Step]] = [[Expect(), WaitForClose()]]
    async with ScriptedUpstream(silent) as frozen, ScriptedUpstream(OK) as well, stage(frozen, well) as here:
        reading = asyncio.create_task(here.read())
        await until(lambda: frozen.requests)
        here.dispatcher.fleet.give_up("p[0]")
        assert await reading == (200, "p[1]", 2)
        await frozen.closed.wait()


async def test_a_stream_that_has_begun_is_left_alone() -> None:
    more = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbe"
    async with ScriptedUpstream([[Expect(), Send(head), Wait(more), Send(b"gu")]]) as slow, stage(slow) as here:
        reply = await here.ask()
        here.dispatcher.fleet.give_up("p[0]")
        more.set()
        assert b"".join([piece async for piece in reply.chunks()]) == b"begu"
        await reply.abort()


# Hedging


async def test_a_slow_start_is_raced_by_a_second_backend_and_the_loser_is_let_go() -> None:
    needs = PATIENT._replace(hedge=Hedge(after=0.01, budget=1.0))
    silent: list[list[Step]] = [[Expect(), WaitForClose()]]
    async with ScriptedUpstream(silent) as slow, ScriptedUpstream(OK) as quick, stage(slow, quick) as here:
        assert await here.read(needs) == (200, "p[1]", 2)
        await slow.closed.wait()
        assert here.dispatcher.stats()["hedges"] == 1
        assert (here.backend("p[0]")["in_flight"], here.backend("p[0]")["failures"]) == (0, 0)


async def test_a_hedge_that_fails_leaves_the_first_its_time() -> None:
    needs = PATIENT._replace(hedge=Hedge(after=0.01, budget=1.0))
    go = asyncio.Event()
    async with (
        ScriptedUpstream([[Expect(), Wait(go), answer(b"late")]]) as slow,
        ScriptedUpstream(status(500)) as bad,
        stage(slow, bad) as here,
    ):
        reading = asyncio.create_task(here.read(needs))
        await until(lambda: here.backend("p[1]")["failures"])
        go.set()
        assert await reading == (200, "p[0]", 2)


async def test_a_quick_answer_is_never_raced() -> None:
    needs = PATIENT._replace(hedge=Hedge(after=5, budget=1.0))
    async with ScriptedUpstream(OK) as first, ScriptedUpstream(OK) as second, stage(first, second) as here:
        assert await here.read(needs) == (200, "p[0]", 1)
        assert second.connections == 0


# Full


async def test_a_full_pool_overflows_to_the_next_and_a_queue_is_used_where_it_is_asked_for() -> None:
    async with ScriptedUpstream(OK) as near, ScriptedUpstream(OK) as far:
        local = {"backends": [{"url": f"http://127.0.0.1:{near.port}", "max_in_flight": 1}]}
        cloud = {"backends": [{"url": f"http://127.0.0.1:{far.port}"}]}
        async with staged({"local": local, "cloud": cloud}) as here:
            first = await here.ask()
            assert (first.backend, (await here.read())[1]) == ("local[0]", "cloud[0]")
            await first.abort()
        async with staged({"local": {**local, "overflow": {"queue": 1}}, "cloud": cloud}) as here:
            first = await here.ask()
            waiting = asyncio.create_task(here.read())
            await until(lambda: here.dispatcher.fleet.pools()["local"]["queue"]["waiting"])  # type: ignore[index]
            assert (await here.read())[1] == "cloud[0]", "one may wait, and one does"
            await first.abort()
            assert (await waiting)[1] == "local[0]"


async def test_who_has_waited_long_enough_in_one_pool_goes_on_to_the_next() -> None:
    async with ScriptedUpstream(OK) as near, ScriptedUpstream(OK) as far:
        at_once = {"overflow": {"queue": 5}, "queue": {"deadline": 0.01}}
        local = {"backends": [{"url": f"http://127.0.0.1:{near.port}", "max_in_flight": 1}], **at_once}
        cloud = {"backends": [{"url": f"http://127.0.0.1:{far.port}"}]}
        async with staged({"local": local, "cloud": cloud}) as here:
            first = await here.ask()
            assert (await here.read())[1] == "cloud[0]"
            await first.abort()


async def test_who_waits_gets_the_place_that_becomes_free() -> None:
    async with ScriptedUpstream(OK) as only, stage(only, backends=[{"max_in_flight": 1}]) as here:
        first = await here.ask()
        waiting = asyncio.create_task(here.read())
        await until(lambda: here.dispatcher.fleet.pools()["p"]["queue"]["waiting"])  # type: ignore[index]
        await first.abort()
        assert await waiting == (200, "p[0]", 1)


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async with ScriptedUpstream(OK) as only, stage(only, backends=[{"max_in_flight": 1}], queue={"size": 0}) as here:
        first = await here.ask()
        with pytest.raises(Overloaded) as refused:
            await here.ask()
        assert (refused.value.status, int(refused.value.headers["Retry-After"]) >= 1) == (503, True)
        await first.abort()
        assert (await here.read())[0] == 200


async def test_a_request_that_is_given_up_gives_its_place_back() -> None:
    silent: list[list[Step]] = [[Expect(), WaitForClose()], [Expect(), answer(b"fine")]]
    async with ScriptedUpstream(silent) as only, stage(only, backends=[{"max_in_flight": 1}]) as here:
        asking = asyncio.create_task(here.ask())
        await until(lambda: only.requests)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await here.read())[0] == 200
        assert here.backend("p[0]")["in_flight"] == 0


async def test_a_client_that_uploads_slowly_does_not_make_its_backend_look_slow() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        clock.advance(300)
        yield b"}"

    clock = Clock()
    async with ScriptedUpstream(OK) as only, stage(only) as here:
        here.dispatcher = Dispatcher(here.pools, here.fetcher, clock=clock, chance=Random(7))
        upload = replace(REQUEST, body=pieces(), length=2, want_recording=False)
        reply = await here.ask(PATIENT, upload)
        await reply.abort()
        assert here.backend("p[0]")["ttft_s"] is None


async def test_tunnels_that_stay_open_do_not_keep_others_from_a_backend_that_stumbles() -> None:
    """Its limit is learned from requests that end: tunnels would fill it for hours."""
    opened: list[Step] = [Expect(), SWITCHED, WaitForClose()]
    stumbles: list[Step] = [*status(503)[0], *OK[0]]
    async with ScriptedUpstream([opened, opened, opened, stumbles]) as only, stage(only) as here:
        tunnels = [await here.ask(PATIENT, HANDSHAKE) for _ in range(3)]
        assert [tunnel.status for tunnel in tunnels] == [101] * 3
        assert (await here.read())[0] == 503
        assert (await here.read())[0] == 200
        assert here.backend("p[0]")["in_flight"] == 3
        for tunnel in tunnels:
            await tunnel.abort()
        assert here.backend("p[0]")["in_flight"] == 0


async def test_tunnels_count_for_the_limit_that_the_operator_has_set() -> None:
    opened: list[Step] = [Expect(), SWITCHED, WaitForClose()]
    settings = {"backends": [{"max_in_flight": 1}], "queue": {"size": 1, "deadline": "10ms"}}
    async with ScriptedUpstream([opened, *OK]) as only, stage(only, **settings) as here:
        tunnel = await here.ask(PATIENT, HANDSHAKE)
        with pytest.raises(Overloaded):
            await here.read()
        await tunnel.abort()
        assert (await here.read())[0] == 200


# Who may be asked


async def test_a_limited_key_rests_while_the_next_one_works() -> None:
    limited = status(429, "Retry-After: 60")
    keys = [{"api_key": "k1"}, {"api_key": "k2"}]
    async with ScriptedUpstream(limited) as one, ScriptedUpstream(OK) as two, stage(one, two, backends=keys) as here:
        assert [await here.read() for _ in range(3)] == [(200, "p[1]", 2), (200, "p[1]", 1), (200, "p[1]", 1)]
        assert here.backend("p[0]")["state"] == "resting"


async def test_a_callers_own_limit_is_nobody_elses() -> None:
    limited = [[Expect(), answer(b"slow down", "Retry-After: 60", status="429 Too Many")], [Expect(), answer(b"fine")]]
    async with ScriptedUpstream(limited) as only, stage(only) as here:  # no key of ours: the caller's is passed on
        assert (await here.read())[0] == 429
        assert here.backend("p[0]")["state"] == "well"


async def test_backends_work_in_their_hours_of_their_own_zone() -> None:
    night = {"hours": ["22:00-06:00"], "timezone": "Europe/Berlin"}
    async with (
        ScriptedUpstream(OK) as gpu,
        ScriptedUpstream(OK) as cloud,
        stage(gpu, cloud, backends=[night, {}]) as here,
    ):
        here.wall.now = 1_796_000_400.0  # 2026-11-29 23:00 UTC, midnight in Berlin
        assert (await here.read())[1] == "p[0]"
        here.wall.advance(12 * 3600)
        assert (await here.read())[1] == "p[1]"


async def test_a_draining_backend_gets_nothing_new() -> None:
    async with ScriptedUpstream(OK) as one, ScriptedUpstream(OK) as two:
        async with stage(one, two, backends=[{"drain": True}, {}]) as here:
            assert (await here.read())[1] == "p[1]"
        async with stage(one, backends=[{"drain": True}]) as here:
            with pytest.raises(Overloaded):
                await here.read()


# Reload


async def test_what_is_known_of_a_backend_outlives_a_reload_that_does_not_touch_it(nobody: int) -> None:
    async with ScriptedUpstream(OK) as well, stage(nobody, well) as here:
        await here.read()
        assert here.backend("p[0]")["failures"] == 1
        pool = here.pools["p"]
        lighter = pool.backends[0].model_copy(update={"weight": 5.0})
        here.dispatcher.adopt({"p": pool.model_copy(update={"backends": (lighter, pool.backends[1])})})
        assert here.backend("p[0]")["failures"] == 1
        moved = lighter.model_copy(update={"url": "http://127.0.0.1:1/v1"})
        here.dispatcher.adopt({"p": pool.model_copy(update={"backends": (moved, pool.backends[1])})})
        assert here.backend("p[0]")["failures"] == 0, "it is another backend"


async def test_a_request_under_way_ends_where_it_is_and_gives_its_place_back_after_a_reload() -> None:
    async with ScriptedUpstream(OK) as only, stage(only) as here:
        reply = await here.ask()
        here.dispatcher.adopt(here.pools)
        assert here.backend("p[0]")["in_flight"] == 1
        here.dispatcher.adopt({})
        assert b"".join([piece async for piece in reply.chunks()]) == b"fine"
        await reply.abort()
        assert (await here.read())[0] == 200, "a request that was planned before the pool was taken away"

"""Which route a request takes, and what of a request changes it, through the real proxy; and reloads in the middle."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from semcache import config
from semcache.backends.state import BackendState
from semcache.backends.target import targets_of
from semcache.config import Pool
from tests.fakes import ModelServer
from tests.harness import Proxy, Reply, running_proxy, until

TWO = """
pools:
  a: {{backends: [{{url: "{a}", region: eu}}], health: {{interval: 0}}}}
  b: {{backends: [{{url: "{b}", region: us}}], health: {{interval: 0}}}}
"""


def backend_of(reply: Reply, a: ModelServer, b: ModelServer, before: tuple[int, int]) -> str:
    return {(1, 0): "a", (0, 1): "b", (0, 0): "-"}[(a.requests - before[0], b.requests - before[1])]


class Asker:
    """Tells which backend each request reached; "-": none."""

    def __init__(self, proxy: Proxy, a: ModelServer, b: ModelServer) -> None:
        self.proxy, self.a, self.b = proxy, a, b

    async def __call__(self, question: str, **more: Any) -> str:
        before = (self.a.requests, self.b.requests)
        reply = await self.proxy.ask(question, **more)
        return backend_of(reply, self.a, self.b, before)


ROUTES = (
    TWO
    + """
tenants:
  - {{name: shop, keys: [sk-shop]}}
  - {{name: bank, keys: [sk-bank], regions: [us]}}
  - {{name: press, keys: [sk-press], models: [small], routes: [beta]}}
routes:
  - {{name: beta, headers: {{X-Stage: "beta*"}}, pools: [b]}}
  - {{name: long, prompt: {{min: 200}}, pools: [b]}}
  - {{name: bound, tenant_regions: [us], pools: [b]}}
  - {{name: lists, paths: ["/v1/batches"], pools: [b]}}
  - {{name: rest, pools: [a]}}
"""
)


async def test_header_size_and_bound_tenants_choose_the_route_and_equal_bytes_are_planned_for_each(
    tmp_path: Path,
) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        async with running_proxy(tmp_path, ROUTES.format(a=a.url, b=b.url)) as proxy:
            ask = Asker(proxy, a, b)
            asked = {"key": "sk-shop", "headers": {"Cache-Control": "no-cache"}}
            assert await ask("What is a monad?", **asked) == "a"
            beta = {"Cache-Control": "no-cache", "x-stage": "BETA"}
            assert await ask("What is a monad?", key="sk-shop", headers=beta) == "a", "globs heed the case"
            beta["x-stage"] = "beta-2"
            assert await ask("What is a monad?", key="sk-shop", headers=beta) == "b"
            assert await ask("What is a monad?", **asked) == "a", "the plan of equal bytes is not another route's"
            assert await ask("monad " * 200, **asked) == "b"
            assert await ask("What is a monad?", key="sk-bank") == "b"
            async with aiohttp.ClientSession(headers={"Authorization": "Bearer sk-shop"}) as session:
                for path, server in (("batches", b), ("files", a)):
                    async with session.get(f"{proxy.url}/{path}") as response:
                        assert response.status == 200
                    assert server.paths[-1] == f"/v1/{path}"


async def test_a_key_for_some_models_and_routes_is_refused_the_others_in_the_callers_dialect(tmp_path: Path) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        async with running_proxy(tmp_path, ROUTES.format(a=a.url, b=b.url)) as proxy:
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await proxy.ask("What is a monad?", key="sk-press", model="big")
            assert refused.value.code == "model_not_allowed"
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await proxy.ask("What is a monad?", key="sk-press")
            assert refused.value.code == "route_not_allowed"
            url = proxy.url.removesuffix("/v1")
            async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-press", max_retries=0) as client:
                with pytest.raises(anthropic.PermissionDeniedError) as denied:
                    await client.messages.create(model="big", max_tokens=9, messages=[{"role": "user", "content": "?"}])
                assert denied.value.body["type"] == "error"  # type: ignore[index]
            assert (await proxy.ask("?", key="sk-press", headers={"X-Stage": "beta"})).verdict == "miss"
            assert a.requests == 0


# Experiments


SPLIT = (
    TWO
    + """
routes:
  - split:
      - {{name: old, weight: 1, pools: [a]}}
      - {{name: new, weight: 1, pools: [b], model: {model}}}
    sticky: {sticky}
"""
)


async def test_a_user_stays_on_his_side(tmp_path: Path) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        settings = SPLIT.format(a=a.url, b=b.url, model="small", sticky="user")
        async with running_proxy(tmp_path, settings) as proxy:
            ask = Asker(proxy, a, b)
            sides = {}
            for user in range(20):
                seen = {await ask(f"question {number} of {user}?", user=f"u{user}") for number in range(3)}
                assert len(seen) == 1
                sides[user] = seen.pop()
            assert set(sides.values()) == {"a", "b"}


async def test_a_session_stays_on_its_side_as_it_grows(tmp_path: Path) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        settings = SPLIT.format(a=a.url, b=b.url, model="small", sticky="session")
        async with running_proxy(tmp_path, settings) as proxy:
            ask = Asker(proxy, a, b)
            sides = Counter[str]()
            for number in range(12):
                first = {"role": "user", "content": f"Tell me about city {number}"}
                grown = [first, {"role": "assistant", "content": "Gladly."}, {"role": "user", "content": "And then?"}]
                side = await ask([first])  # type: ignore[arg-type]
                assert await ask(grown) == side  # type: ignore[arg-type]
                sides[side] += 1
            assert len(sides) == 2


async def test_equal_requests_go_the_same_way_however_they_are_written_and_streamed(tmp_path: Path) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        settings = SPLIT.format(a=a.url, b=b.url, model="canary", sticky="request")
        async with running_proxy(tmp_path, settings) as proxy:
            sides = Counter[str]()
            for number in range(12):
                before = a.requests
                assert (await proxy.ask(f"How tall is tower {number}?")).verdict == "miss"
                sides["a" if a.requests > before else "b"] += 1
                assert (await proxy.ask(f"How tall is tower {number}?", stream=True)).verdict == "hit"
                assert (await proxy.ask(f"How tall is tower {number}?", user="another")).verdict == "hit"
            assert len(sides) == 2


async def test_a_side_with_a_model_of_its_own_has_entries_of_its_own(tmp_path: Path) -> None:
    async with ModelServer().running() as a, ModelServer().running() as b:
        settings = SPLIT.format(a=a.url, b=b.url, model="canary", sticky='"header:X-Side"')
        async with running_proxy(tmp_path, settings) as proxy:
            ask = Asker(proxy, a, b)
            side_of: dict[str, str] = {}
            for number in range(20):
                headers = {"X-Side": f"s{number}", "Cache-Control": "no-cache"}
                side_of.setdefault(await ask("What is a monad?", headers=headers), f"s{number}")
            assert set(side_of) == {"a", "b"}
            texts = {
                side: (await proxy.ask("What is a monad?", headers={"X-Side": value}))
                for side, value in side_of.items()
            }
            assert {reply.verdict for reply in texts.values()} == {"hit"}
            assert {body["model"] for body in a.bodies} == {"small"}
            assert {body["model"] for body in b.bodies} == {"canary"}
            assert {side: reply.answer.model for side, reply in texts.items()} == {"a": "small", "b": "canary"}


# Hours


@pytest.mark.parametrize(
    "hours, unix_s, is_open",
    [
        # Europe/Berlin, 2027-03-28: at 01:00 UTC the clocks go from 02:00 to 03:00.
        ("01:00-02:30", 1806195540, True),  # 00:59 UTC, 01:59 there
        ("01:00-02:30", 1806195660, False),  # a minute after: 03:01 there
        ("02:00-03:00", 1806195540, False),
        ("02:00-03:00", 1806195660, False),  # an hour that does not come on this day
        ("22:00-06:00", 1806195660, True),
        ("22:00-06:00", 1806206340, True),  # 03:59 UTC, 05:59 there
        ("22:00-06:00", 1806206460, False),  # 04:01 UTC, 06:01 there
        # 2027-10-31: at 01:00 UTC they go back from 03:00 to 02:00, and the hour comes twice.
        ("02:00-03:00", 1824942600, True),  # 00:30 UTC
        ("02:00-03:00", 1824946200, True),  # 01:30 UTC
        ("02:00-03:00", 1824949800, False),  # 02:30 UTC, 03:30 there
    ],
)
def test_hours_are_those_on_the_wall_where_the_backend_stands(hours: str, unix_s: float, is_open: bool) -> None:
    backend = {"url": "http://h/v1", "hours": [hours], "timezone": "Europe/Berlin"}
    pool = Pool.model_validate({"backends": [backend]})
    state = BackendState(next(targets_of("p", pool)), pool)
    assert state.is_on_duty(unix_s) is is_open


# What backends say they have


async def test_a_backend_that_has_another_model_now_is_asked_for_it_after_a_reload(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        settings = f'pools: {{p: {{backends: [{{url: "{model.url}", models: [small]}}]}}}}'
        async with running_proxy(tmp_path, settings) as proxy:
            with pytest.raises(openai.NotFoundError) as refused:
                await proxy.ask("What is a monad?", model="big")
            assert refused.value.code == "model_not_found"
            proxy.app._adopt(_again(proxy, settings.replace("[small]", "[small, big]")))
            assert (await proxy.ask("What is a monad?", model="big")).verdict == "miss"


# Reload


def _again(proxy: Proxy, settings: str) -> config.Config:
    store = {"store": proxy.app.config.cache.store}
    return config.parse(settings, {}, options={"port": 0, "admin_port": 0, "request_log": "off", **store})


FULL = """
pools:
  {name}:
    backends: [{{url: "{url}", max_in_flight: {limit}}}{more}]
    queue: {{size: 20, deadline: 10s}}
    health: {{interval: 0}}
"""


def state_of(proxy: Proxy, name: str) -> dict[str, Any]:
    pools: Any = proxy.app.dispatcher.fleet.pools()
    found: dict[str, Any] = pools[name.partition("[")[0]]["backends"][name]
    return found


async def test_a_stream_goes_on_to_its_end_when_its_pool_is_renamed_and_who_waits_is_served(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        model.gate = asyncio.Event()
        settings = FULL.format(name="p", url=model.url, limit=1, more="")
        async with running_proxy(tmp_path, settings) as proxy:
            streaming = asyncio.create_task(proxy.ask("Where is my parcel?", stream=True))
            await until(lambda: model.requests == 1)
            waiting = [asyncio.create_task(proxy.ask(f"How tall is tower {n}?")) for n in range(3)]
            await until(lambda: proxy.app.dispatcher.fleet.pool("p").room.waiting == 3)
            proxy.app._adopt(_again(proxy, settings.replace("  p:", "  renamed:")))
            assert (state_of(proxy, "renamed[0]")["in_flight"], proxy.app.dispatcher.fleet.pool("p").room.waiting) == (
                0,
                3,
            )
            model.gate.set()
            assert (await streaming).text.strip() == "answer 1 to: Where is my parcel?"
            assert [reply.verdict for reply in await asyncio.gather(*waiting)] == ["miss"] * 3
            assert (await proxy.ask("When does the library open?")).verdict == "miss"
            assert state_of(proxy, "renamed[0]")["requests"] == 1


async def test_a_smaller_limit_counts_what_runs_already_and_what_is_known_lives_on(tmp_path: Path) -> None:
    async with ModelServer().running() as model, ModelServer().running() as other:
        model.gate = asyncio.Event()
        settings = FULL.format(name="p", url=model.url, limit=4, more="")
        async with running_proxy(tmp_path, settings) as proxy:
            asking = [asyncio.create_task(proxy.ask(f"How tall is tower {number}?")) for number in range(6)]
            await until(lambda: model.requests == 4 and proxy.app.dispatcher.fleet.pool("p").room.waiting == 2)
            proxy.app._adopt(_again(proxy, FULL.format(name="p", url=model.url, limit=1, more="")))
            assert (state_of(proxy, "p[0]")["in_flight"], state_of(proxy, "p[0]")["limit"]) == (4, 1)
            # Another one before it in the list: it is p[1] now, and is known all the same.
            first = f'{{url: "{other.url}", drain: true}}, {{url: "{model.url}"'
            moved = FULL.format(name="p", url=model.url, limit=1, more="").replace(f'{{url: "{model.url}"', first)
            proxy.app._adopt(_again(proxy, moved))
            assert (state_of(proxy, "p[1]")["in_flight"], state_of(proxy, "p[1]")["requests"]) == (4, 4)
            await asyncio.sleep(0)
            assert model.requests == 4, "none more than the new limit lets"
            model.gate.set()
            assert [reply.verdict for reply in await asyncio.gather(*asking)] == ["miss"] * 6
            await until(lambda: state_of(proxy, "p[1]")["in_flight"] == 0)
            assert state_of(proxy, "p[1]")["requests"] == 6


# Overload


async def test_of_fifty_five_are_served_and_the_others_told_to_come_back_while_hits_go_on(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        settings = FULL.format(name="p", url=model.url, limit=2, more="").replace("size: 20", "size: 3")
        async with running_proxy(tmp_path, settings) as proxy:
            await proxy.ask("What is a monad?")
            model.gate = asyncio.Event()
            asking = [asyncio.create_task(proxy.ask(f"How tall is tower {number}?")) for number in range(50)]
            await until(lambda: sum(task.done() for task in asking) == 45)
            for _ in range(20):
                assert (await proxy.ask("What is a monad?")).verdict == "hit"
            model.gate.set()
            came = await asyncio.gather(*asking, return_exceptions=True)
            refused = [error for error in came if isinstance(error, openai.InternalServerError)]
            assert (len(refused), {error.code for error in refused}) == (45, {"overloaded"})
            assert all(1 <= int(error.response.headers["Retry-After"]) <= 60 for error in refused)
            assert model.requests == 6


async def test_the_sdks_come_back_by_themselves_when_they_are_told_to(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        settings = FULL.format(name="p", url=model.url, limit=1, more="").replace("size: 20", "size: 0")
        settings = settings.replace("deadline: 10s", "deadline: 1s")
        async with running_proxy(tmp_path, settings) as proxy:
            model.gate = asyncio.Event()
            first = asyncio.create_task(proxy.ask("What is a monad?"))
            await until(lambda: model.requests == 1)
            client = proxy.client.with_options(max_retries=3)
            second = asyncio.create_task(
                client.chat.completions.create(model="small", messages=[{"role": "user", "content": "How tall?"}])
            )
            await until(lambda: proxy.app.dispatcher.stats()["refused"])
            model.gate.set()
            assert (await first).verdict == "miss"
            assert "How tall?" in ((await second).choices[0].message.content or "")


async def test_batch_waits_behind_all_others(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        settings = FULL.format(name="p", url=model.url, limit=1, more="")
        settings += "routes: [{headers: {X-Batch: '*'}, priority: batch}, {}]"
        async with running_proxy(tmp_path, settings) as proxy:
            model.gate = asyncio.Event()
            asking = [asyncio.create_task(proxy.ask("What is a monad?"))]
            await until(lambda: model.requests == 1)
            for number in range(6):
                headers = {"X-Batch": "yes"} if number < 3 else {}
                asking.append(asyncio.create_task(proxy.ask(f"How tall is tower {number}?", headers=headers)))
                await until(lambda: proxy.app.dispatcher.fleet.pool("p").room.waiting == len(asking) - 1)
            model.gate.set()
            await asyncio.gather(*asking)
            order = [body["messages"][0]["content"][-2] for body in model.bodies[1:]]
            assert order == ["3", "4", "5", "0", "1", "2"]

"""Usage after real traffic: what upstreams billed, what hits spared, what the cache cost, and who is told of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from semcache.app import App
from semcache.config import parse
from semcache.usage import NANO, Spent
from tests.fakes import Clock, ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.test_embedder import D, EmbeddingServer

PRICED = "price: {input: 100, output: 200, cached_input: 10}"  # dollars per million tokens
A_MISS = (11 * 100 + 22 * 200) / 1e6  # what the model server bills
TENANTS = "tenants: [{name: shop, keys: [sk-shop]}, {name: bank, keys: [sk-bank]}]"


async def report(proxy: Proxy, query: str) -> dict[str, Any]:
    """As a dashboard asks for it."""
    await proxy.landed()
    await proxy.app.meter.drain()
    await proxy.app.flushing.flush()
    url = f"http://127.0.0.1:{proxy.app.admin_port}/semcache/usage?{query}"
    async with aiohttp.ClientSession() as http, http.get(url) as reply:
        assert reply.status == 200
        found: dict[str, Any] = await reply.json()
        return found


def by(found: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    names = found["by"]
    return {tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]: row for row in found["rows"]}


def fetched(proxy: Proxy) -> Spent:
    (spent,) = (spent for (_, source), spent in proxy.app.ledger.totals.items() if source == "fetched")
    return spent


async def test_billed_is_what_upstreams_billed_and_avoided_what_hits_spared(tmp_path: Path) -> None:
    backend = ModelServer()
    async with backend.running() as model:
        pools = f"pools: {{near: {{backends: [{{url: '{model.url}', region: eu, {PRICED}}}]}}}}"
        settings = f"{pools}\n{TENANTS}\ncache: {{ttl: 1h, grace: 1h}}"
        async with running_proxy(tmp_path, settings) as proxy:
            backend.gate = asyncio.Event()
            crowd = [asyncio.create_task(proxy.ask("What is a monad?", key="sk-shop")) for _ in range(3)]
            await until(lambda: proxy.app.pipeline.flights.stats()["joined"] == 2)
            backend.gate.set()
            await asyncio.gather(*crowd)
            await proxy.landed()
            for _ in range(4):
                assert (await proxy.ask("What is a monad?", key="sk-shop", stream=True)).verdict == "hit"
            await proxy.ask("What is a monad?", key="sk-bank", model="large", stream=True)
            await proxy.landed()
            proxy.clock.advance(5000)
            assert (await proxy.ask("What is a monad?", key="sk-shop")).verdict == "stale"
            await proxy.landed()

            found = await report(proxy, "by=tenant")
            shop, bank, total = by(found)["shop"], by(found)["bank"], found["total"]
            assert (shop["requests"], shop["hits"], shop["fetches"]) == (8, 7, 2), "with the refresh of a stale answer"
            assert (shop["billed_tokens"], shop["replayed_tokens"], shop["shared_tokens"]) == (66, 5 * 33, 2 * 33)
            assert shop["billed_usd"] == pytest.approx(2 * A_MISS)
            assert shop["avoided_usd"] == pytest.approx(7 * A_MISS)
            assert shop["own_usd"] == pytest.approx(A_MISS), "the refresh"
            assert shop["saved_usd"] == pytest.approx(6 * A_MISS)
            assert (bank["requests"], bank["hits"], bank["avoided_usd"]) == (1, 0, 0)
            assert total["billed_tokens"] == model.requests * 33 == 99

            rows = by(await report(proxy, "by=model,backend,region,purpose&tenant=shop"))
            assert rows["small", "near[0]", "eu", "refresh"]["billed_usd"] == pytest.approx(A_MISS)
            assert rows["small", "near[0]", "eu", "request"]["fetches"] == 1
            assert set(by(await report(proxy, "by=model"))) == {"small", "large"}

            config = tmp_path / "semcache.yaml"
            config.write_text(f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\n")
            program = "import sys; from semcache.cli import main; main(sys.argv[1:])"
            words = ("usage", "-c", str(config), "--by", "tenant", "--json")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, *words, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert json.loads(out) == await report(proxy, "by=tenant")


async def test_a_fallbacks_answer_is_billed_as_the_fallbacks(tmp_path: Path) -> None:
    broken, fallback = ModelServer(), ModelServer()
    broken.status = 500
    async with broken.running() as first, fallback.running() as second:
        settings = f"""
pools:
  own: {{backends: [{{url: '{first.url}'}}], health: {{interval: 0s}}}}
  cloud: {{backends: [{{url: '{second.url}', region: us, {PRICED}}}], health: {{interval: 0s}}}}
routes: [{{pools: [own, {{pool: cloud, model: big}}]}}]"""
        async with running_proxy(tmp_path, settings) as proxy:
            assert (await proxy.ask("What is a monad?")).verdict == "miss"
            rows = by(await report(proxy, "by=model,backend,region"))
            assert rows["big", "cloud[0]", "us"]["billed_usd"] == pytest.approx(A_MISS)
            assert sum(row["fetches"] for row in rows.values()) == 1, "an error costs nothing"


async def test_what_the_upstream_had_cached_is_priced_as_such(tmp_path: Path) -> None:
    backend = ModelServer()
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900}}
    backend.extra = {"usage": usage}
    async with backend.running() as model:
        pools = f"pools: {{near: {{backends: [{{url: '{model.url}', {PRICED}}}]}}}}"
        async with running_proxy(tmp_path, pools) as proxy:
            await proxy.ask("What is a monad?")
            await proxy.landed()
            await proxy.ask("What is a monad?")
            total = (await report(proxy, "by=day"))["total"]
            cost = (100 * 100 + 900 * 10 + 10 * 200) / 1e6
            assert (total["billed_cached_tokens"], total["billed_usd"]) == (900, pytest.approx(cost))
            assert total["avoided_usd"] == pytest.approx(cost)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_an_upstream_does_not_tell_is_estimated_for_the_books_and_not_for_clients(
    tmp_path: Path, stream: bool
) -> None:
    backend = ModelServer()
    backend.extra = {"usage": None}
    async with backend.running() as model:
        pools = f"pools: {{near: {{backends: [{{url: '{model.url}', stream_usage: false, {PRICED}}}]}}}}"
        async with running_proxy(tmp_path, pools) as proxy:
            miss = await proxy.ask("Why is the sea salty and the lake is not?", stream=stream)
            await proxy.landed()
            hits = [await proxy.ask("Why is the sea salty and the lake is not?", stream=stream) for _ in range(2)]
            other = await proxy.ask("Why is the sea salty and the lake is not?", stream=not stream)
            assert [reply.verdict for reply in (miss, *hits, other)] == ["miss", "hit", "hit", "hit"]
            for reply in (miss, *hits):
                assert reply.usage is None
            assert other.usage is None or other.usage.total_tokens == 0, "nothing is invented"
            total = (await report(proxy, "by=day"))["total"]
            assert (total["estimated"], total["unpriced"]) == (4, 0)
            assert total["billed_tokens"] > 20
            assert total["replayed_tokens"] == pytest.approx(3 * total["billed_tokens"], rel=0.2)
            assert total["avoided_usd"] == pytest.approx(3 * total["billed_usd"], rel=0.2)


async def test_a_model_without_a_price_counts_its_tokens_and_says_so(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask("What is a monad?")
        total = (await report(proxy, "by=day"))["total"]
        assert (total["unpriced"], total["billed_tokens"], total["billed_usd"]) == (1, 33, 0)


async def test_a_judge_is_billed_as_the_caches_own_cost(tmp_path: Path) -> None:
    """Two questions that are near, with answers that differ: only a judge model can say whether they agree."""
    backend, judge = ModelServer(), ModelServer()
    judge.answer = "yes"
    async with backend.running() as model, judge.running() as wise:
        settings = f"""
pools:
  near: {{backends: [{{url: '{model.url}'}}]}}
  judges: {{backends: [{{url: '{wise.url}', region: eu, {PRICED}}}]}}
routes: [{{pools: [near]}}]
match: {{guards: [], mode: shadow, answers_alike: 0.999, answers_differ: 0.01,
  answers_judge: {{pool: judges, model: wise, per_hour: 9, deadline: 10s}}}}
tenants: [{{name: shop, keys: [sk-test], limits: {{tokens_per_day: 10000}}}}]"""
        async with running_proxy(tmp_path, settings) as proxy:
            stored = "how long does a parcel to the north take on average in the autumn please tell me"
            for question, pace in ((stored, "gently"), (f"{stored} thanks", "slowly")):
                backend.answer = f"It takes some days as a rule and goes {pace} if nothing goes wrong at all"
                await proxy.ask(question)
                await proxy.landed()
                await proxy.app.core.learning.idle()
            assert judge.requests == 1
            row = by(await report(proxy, "by=purpose"))["judge"]
            assert (row["billed_usd"], row["own_usd"]) == (pytest.approx(A_MISS), pytest.approx(A_MISS))
            assert by(await report(proxy, "by=tenant,model"))["shop", "wise"]["fetches"] == 1
            charged = proxy.app.quotas._subjects["tenant shop"].day.used(1)
            assert charged == 2 * 33, "the operator asks the judge, and no limit of a caller pays for it"


async def test_vectors_of_a_remote_model_are_billed_and_its_time_is_not(tmp_path: Path) -> None:
    async with EmbeddingServer().running() as server, ModelServer().running() as model:
        settings = parse(
            f"embedder: {{engine: openai, url: '{server.url}', model: text-embedding-3-small, dimensions: {D}}}",
            {},
            options={"port": 0, "admin_port": 0, "store": f"sqlite:{tmp_path}/c.db", "upstream": model.url},
        )
        app = App(settings, clock=Clock())
        await app.start()
        await app.caught_up()
        try:
            body = {"model": "small", "messages": [{"role": "user", "content": "What is a monad?"}]}
            url = f"http://127.0.0.1:{app.port}/v1/chat/completions"
            async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
                assert reply.status == 200
            spent = app.ledger.totals["text-embedding-3-small", "fetched"]
            assert spent.requests == 1 and spent.prompt_tokens > 0
            assert app.ledger.stats()["own_usd"] == pytest.approx(spent.nano_usd / NANO)
        finally:
            await app.stop()


async def test_the_log_names_who_asked_what_answered_and_where(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    async with ModelServer().running() as model:
        pools = f"pools: {{near: {{backends: [{{url: '{model.url}', region: eu}}]}}}}"
        async with running_proxy(tmp_path, f"{pools}\n{TENANTS}", options={"request_log": str(log)}) as proxy:
            await proxy.ask("What is a monad?", key="sk-shop")
    (line,) = map(json.loads, log.read_text().splitlines())
    told = {"tenant": "shop", "key": "", "model": "small", "backend": "near[0]", "region": "eu", "verdict": "miss"}
    assert line.items() >= told.items()


async def test_the_slower_of_two_that_were_asked_at_once_is_billed_for_its_prompt(tmp_path: Path) -> None:
    slow, quick = ModelServer(), ModelServer()
    slow.gate = asyncio.Event()
    async with slow.running() as first, quick.running() as second:
        settings = f"""
pools:
  own: {{backends: [{{url: '{first.url}', {PRICED}}}], health: {{interval: 0s}}}}
  other: {{backends: [{{url: '{second.url}', {PRICED}}}], health: {{interval: 0s}}}}
routes: [{{pools: [own, other], hedge: {{after: 20ms, budget: 1.0}}}}]
tenants: [{{name: shop, keys: [sk-test], limits: {{tokens_per_day: 10000}}}}]"""
        async with running_proxy(tmp_path, settings) as proxy:
            await proxy.ask("Why is the sea salty and the lake is not?")
            rows = by(await report(proxy, "by=backend,purpose"))
            lost = rows["own[0]", "hedge"]
            assert (lost["fetches"], lost["estimated"], lost["own_usd"]) == (1, 1, 0)
            assert 5 < lost["billed_tokens"] < 30
            assert rows["other[0]", "request"]["billed_tokens"] == 33
            charged = proxy.app.quotas._subjects["tenant shop"].day.used(1)
            assert charged == 33 + lost["billed_tokens"]

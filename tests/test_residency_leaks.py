"""Ways by which a request that is bound to regions could leave them: each was open once, or nearly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from semcache.answer_judge import PoolJudge
from semcache.app import App
from semcache.backends.fetch import Fetcher
from semcache.config import parse
from semcache.errors import ClientError
from semcache.planning import Planner
from semcache.types import Tenant
from semcache.wire import find_address
from tests.fakes import Clock, ModelServer, WordsEmbedder
from tests.harness import Proxy, running_proxy

SECRET = "a secret of both ends"
QUESTION = "How is a parcel sent?"
WORDS, OTHER_WORDS = "The parcel is on its way to you.", "It was handed to a courier, who will ring the bell."
FAR_EMBEDDER = 'embedder: {engine: openai, url: "http://embedder.example/v1", region: us}\n'


def pools(server: ModelServer, region: str = "eu", more: str = "") -> str:
    return f'pools: {{site: {{backends: [{{url: "{server.url}", region: {region}{more}}}]}}}}\n'


@asynccontextmanager
async def facing(folder: Path, settings: str) -> AsyncIterator[tuple[Proxy, ModelServer]]:
    """A proxy in front of one model server in `eu`."""
    async with ModelServer().running() as server, running_proxy(folder, pools(server) + settings) as proxy:
        yield proxy, server


async def test_what_a_route_binds_stays_bound_behind_the_next_semcache(tmp_path: Path) -> None:
    # The line said the tenant's regions alone, so the inner node sent what the route had bound to anywhere.
    (tmp_path / "inner").mkdir()
    (tmp_path / "edge").mkdir()
    clock = Clock()
    async with ModelServer().running() as american:
        inner = f'chain: {{secret: "{SECRET}", accept: true}}\nserver: {{region: eu}}\n' + pools(american, "us")
        async with running_proxy(tmp_path / "inner", inner, clock=clock) as second:
            edge = f'chain: {{secret: "{SECRET}"}}\nserver: {{region: eu}}\nroutes: [{{regions: [eu]}}]\n'
            edge += f'pools: {{site: {{backends: [{{url: "{second.url}", region: eu, chain: true}}]}}}}\n'
            edge += "tenants: [{name: shop, keys: [sk-test]}]\n"
            async with running_proxy(tmp_path / "edge", edge, clock=clock) as first:
                for path in ("chat/completions", "images/generations"):  # understood, and passed through
                    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
                    status, answer = await post(f"{first.url}/{path}", "sk-test", body)
                    assert (status, answer["error"]["code"]) == (403, "region_not_allowed")
                assert american.paths == []


async def test_answers_are_not_embedded_elsewhere_to_find_who_vouches(tmp_path: Path) -> None:
    # The second tenant's answer differs in words, and both were sent to the embedder to be compared.
    settings = (
        FAR_EMBEDDER + "server: {region: eu}\ncache: {sharing: all, min_uses: 2}\n"
        "tenants: [{name: ann, keys: [sk-ann], regions: [eu]}, {name: bob, keys: [sk-bob], regions: [eu]}]\n"
    )
    async with facing(tmp_path, settings) as (proxy, server):
        for key, server.answer in (("sk-ann", WORDS), ("sk-bob", OTHER_WORDS)):
            await proxy.ask(QUESTION, key=key)
            await proxy.landed()
        assert proxy.embedder.embedded == []


async def test_answers_are_not_embedded_elsewhere_to_learn_from_them(tmp_path: Path) -> None:
    # In shadow mode an equal request is forwarded, and its answer held against the stored one by their vectors.
    settings = (
        FAR_EMBEDDER + "server: {region: eu}\nmatch: {mode: shadow}\n"
        "tenants: [{name: ann, keys: [sk-ann], regions: [eu]}]\n"
    )
    async with facing(tmp_path, settings) as (proxy, server):
        for server.answer in (WORDS, OTHER_WORDS):
            await proxy.ask(QUESTION, key="sk-ann")
            await proxy.landed()
        await proxy.app.core.learning.idle()
        assert proxy.embedder.embedded == []
        assert proxy.app.core.learning.stats()["unsure"] == 1


async def test_questions_of_the_unbound_are_embedded_as_ever(tmp_path: Path) -> None:
    async with facing(tmp_path, FAR_EMBEDDER + "server: {region: eu}\n") as (proxy, _):
        await proxy.ask(QUESTION)
        assert proxy.embedder.embedded == [QUESTION]


async def test_answers_go_to_no_judge_behind_a_semcache_that_is_not_told_whose_they_are() -> None:
    async with ModelServer().running() as server:
        config = parse(
            pools(server, more=", chain: true") + f"chain: {{secret: '{SECRET}'}}\n"
            "match: {answers_judge: {pool: site, model: wise}}\n"
        )
        address = find_address("/v1/chat/completions")
        assert address is not None
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": QUESTION}]}).encode()
        fetcher = Fetcher()
        await fetcher.start()
        try:
            judge = PoolJudge(config.pools, fetcher)
            for regions, asked in ((frozenset({"eu"}), 0), (frozenset(), 1)):
                plan = Planner(config, "words").plan(address, {}, body, Tenant("shop", regions), "")
                settings = plan.route.match.answers_judge
                assert settings is not None
                assert await judge.same(settings, plan, "It is free.", "It costs nothing.") is None
                assert server.requests == asked
        finally:
            await fetcher.close()


async def test_a_word_on_a_hit_is_not_kept_in_a_store_outside(tmp_path: Path) -> None:
    settings = (
        "server: {region: eu}\ncache: {region: us}\n"
        "tenants: [{name: ann, keys: [sk-ann], regions: [eu]}, {name: bob, keys: [sk-bob]}]\n"
    )
    async with facing(tmp_path, settings) as (proxy, _):
        word = {"entry": "8b3e6f2c9d1a47f0b6e2", "request": "5f0c9a31c2a4d0ee0000002a", "verdict": "wrong"}
        url = f"{proxy.url}/semcache/feedback"
        status, answer = await post(url, "sk-ann", word)
        assert (status, answer["error"]["code"]) == (403, "region_not_allowed")
        assert (await post(url, "sk-bob", word))[0] == 404


@pytest.mark.parametrize("path", ["chat/completions", "images/generations"])
async def test_a_log_outside_is_told_nothing_of_what_a_route_refuses(tmp_path: Path, path: str) -> None:
    # Its tenant is bound to nothing; that the route is was known, and forgotten with the refusal.
    settings = (
        f'server: {{region: us, request_log: "{tmp_path}/log"}}\n'
        "tenants: [{name: shop, keys: [sk-test]}]\nroutes: [{regions: [eu]}]\n"
    )
    async with ModelServer().running() as server:
        config = parse(pools(server) + settings, {}, options={"port": 0, "admin_port": 0, "store": "memory:"})
        app = App(config, embedder=WordsEmbedder())  # type: ignore[arg-type]
        await app.start()
        try:
            body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
            status, answer = await post(f"http://127.0.0.1:{app.port}/v1/{path}", "sk-test", body)
            assert (status, answer["error"]["code"]) == (403, "region_not_allowed")
        finally:
            await app.stop()
    assert not (tmp_path / "log").exists()
    assert server.paths == []


def test_a_refusal_names_the_regions_it_keeps() -> None:
    config = parse("server: {region: us}\nroutes: [{regions: [eu]}]\n")
    address = find_address("/v1/chat/completions")
    assert address is not None
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": QUESTION}]}).encode()
    with pytest.raises(ClientError) as refused:
        Planner(config, "words").plan(address, {}, body, Tenant("shop"), "")
    assert "may use eu only, and this node is in us" in refused.value.message


async def test_what_a_route_binds_asks_no_backend_outside_for_its_models(tmp_path: Path) -> None:
    # The list is of all that a tenant may use, and with the question for it his header fields went to all of them.
    async with ModelServer().running() as european, ModelServer().running() as american:
        settings = (
            "server: {region: eu}\ntenants: [{name: shop, keys: [sk-test]}, {name: free, keys: [sk-free]}]\n"
            "routes: [{tenants: [shop], regions: [eu]}, {models: ['*']}]\npools:\n"
            f'  here: {{backends: [{{url: "{european.url}", region: eu, models: ["a"]}}]}}\n'
            f'  there: {{backends: [{{url: "{american.url}", region: us, models: ["b"]}}]}}\n'
        )
        async with running_proxy(tmp_path, settings) as proxy, aiohttp.ClientSession() as http:
            for key, known in (("sk-test", ["a"]), ("sk-free", ["a", "b"])):
                headers = {"Authorization": f"Bearer {key}", "X-Patient": "1" if key == "sk-test" else "none"}
                async with http.get(f"{proxy.url}/models", headers=headers) as response:
                    listed = json.loads(await response.read())
                assert sorted(model["id"] for model in listed["data"]) == known
        assert all(headers.get("X-Patient") != "1" for headers in american.headers)


async def post(url: str, key: str, body: object) -> tuple[int, dict[str, dict[str, object]]]:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
        return response.status, json.loads(await response.read())

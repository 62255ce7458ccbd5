"""Every fetch is billed once, whoever waited for it: all ways to fetch, and a model server that writes its own bill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.test_embeddings import Embeds
from tests.test_usage_live import report

PARCEL = "Where are parcels sorted before delivery please"
PARCEL_AGAIN = "Where are parcels sorted before delivery"
KEY = {"Authorization": "Bearer sk-test"}
A_FETCH = 33  # tokens of a chat answer, as ModelServer tells them


class Till(Embeds):
    """Writes down what it bills: an answer that it gave to its end, by the tokens that it told."""

    def __init__(self) -> None:
        super().__init__()
        self.billed = 0

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        of_its_kind = Embeds if request.path.endswith("/embeddings") else ModelServer
        reply = await of_its_kind._handle(self, request)
        if reply.status == 200 and self.cut_after_events is None:
            body = reply.body if isinstance(reply, web.Response) else None
            told = json.loads(body) if isinstance(body, bytes) else {"usage": {"total_tokens": A_FETCH}}
            self.billed += told.get("usage", {"total_tokens": 0})["total_tokens"]
        return reply


Scene = Callable[[Any, Till], Awaitable[None]]


async def a_miss_and_two_hits(proxy: Proxy, till: Till) -> None:
    await proxy.ask(PARCEL)
    await proxy.landed()
    assert (await proxy.ask(PARCEL)).verdict == "hit"
    assert (await proxy.ask(PARCEL_AGAIN, stream=True)).verdict == "hit"


async def followers(proxy: Proxy, till: Till) -> None:
    till.gate = asyncio.Event()
    crowd = [asyncio.create_task(proxy.ask(PARCEL)) for _ in range(4)]
    await until(lambda: proxy.app.pipeline.flights.stats()["joined"] == 3)
    till.gate.set()
    await asyncio.gather(*crowd)


async def stale_by_the_same_words(proxy: Proxy, till: Till) -> None:
    await proxy.ask(PARCEL)
    await proxy.landed()
    proxy.clock.advance(60)
    assert (await proxy.ask(PARCEL)).verdict == "stale"


async def stale_by_other_words(proxy: Proxy, till: Till) -> None:
    await proxy.ask(PARCEL)
    await proxy.landed()
    proxy.clock.advance(60)
    assert (await proxy.ask(PARCEL_AGAIN)).verdict == "stale"


async def not_from_the_cache(proxy: Proxy, till: Till) -> None:
    for _ in range(2):
        await proxy.ask(PARCEL, headers={"Cache-Control": "no-cache"})
        await proxy.ask(PARCEL, headers={"Cache-Control": "no-store"}, stream=True)


async def a_failure_and_the_next_backend(proxy: Proxy, till: Till) -> None:
    proxy.backend.status = 500
    await proxy.ask(PARCEL, model="fails-first")


async def a_cut_stream(proxy: Proxy, till: Till) -> None:
    till.cut_after_events = 3
    with pytest.raises(openai.APIError):
        await proxy.ask(PARCEL, stream=True)


async def a_client_that_leaves(proxy: Proxy, till: Till) -> None:
    till.gate = asyncio.Event()
    body = {"model": "small", "stream": True, "messages": [{"role": "user", "content": PARCEL}]}
    async with aiohttp.ClientSession() as http:
        reply = await http.post(f"{proxy.url}/chat/completions", json=body, headers=KEY)
        await reply.content.readany()
        reply.close()
    await till.gone.wait()


async def a_client_that_leaves_before_anything_came(proxy: Proxy, till: Till) -> None:
    till.gate = asyncio.Event()
    leaving = asyncio.create_task(proxy.ask(PARCEL))
    await until(lambda: till.requests)
    leaving.cancel()
    await till.gone.wait()


async def a_backend_that_was_left_before_it_was_reached(proxy: Proxy, till: Till) -> None:
    """All connections to the first are taken, so that nothing goes out, and the second is asked for speed."""
    proxy.backend.gate = asyncio.Event()
    holding = asyncio.create_task(proxy.ask("Who holds the only connection?", model="first-only"))
    await until(lambda: proxy.backend.requests)
    await proxy.ask(PARCEL, model="hedged")
    assert proxy.backend.requests == 1
    proxy.backend.gate.set()
    await holding


async def a_client_that_leaves_others(proxy: Proxy, till: Till) -> None:
    till.gate = asyncio.Event()
    leaving = asyncio.create_task(proxy.ask(PARCEL))
    await until(lambda: till.requests)
    staying = asyncio.create_task(proxy.ask(PARCEL))
    await until(lambda: proxy.app.pipeline.flights.stats()["joined"])
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    till.gate.set()
    assert (await staying).verdict == "coalesced"


async def a_batch_of_which_some_is_stored(proxy: Proxy, till: Till) -> None:
    await proxy.client.embeddings.create(model="e", input=["one", "two words"], encoding_format="float")
    await proxy.landed()
    await proxy.client.embeddings.create(model="e", input=["one", "three more words"], encoding_format="float")
    await proxy.landed()
    await proxy.client.embeddings.create(model="e", input=["one", "three more words"], encoding_format="float")


async def what_passes_through(proxy: Proxy, till: Till) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{proxy.url}/moderations", json={"input": "x"}, headers=KEY) as reply:
            assert reply.status == 200


SETTINGS = """
pools:
  near: {{backends: [{{url: '{till}'}}], health: {{interval: 0s}}}}
  first: {{backends: [{{url: '{fails}'}}], max_connections: 1, health: {{interval: 0s}}}}
routes:
  - {{models: [first-only], pools: [first]}}
  - {{models: [hedged], pools: [first, near], hedge: {{after: 20ms, budget: 1.0}}}}
  - {{models: [fails-first], pools: [first, near]}}
  - {{pools: [near]}}
tenants: [{{name: shop, keys: [sk-test], limits: {{tokens_per_day: 1000000}}}}]
cache: {{ttl: 10s, grace: 1h}}
match: {{threshold: 0.8, guards: []}}
"""

# What is played, how many fetches are billed, how many of them are estimated, how many tokens were spared.
SCENES: list[tuple[Scene, int, int, int]] = [
    (a_miss_and_two_hits, 1, 0, 2 * A_FETCH),
    (followers, 1, 0, 3 * A_FETCH),
    (stale_by_the_same_words, 2, 0, A_FETCH),
    (stale_by_other_words, 2, 0, A_FETCH),
    (not_from_the_cache, 4, 0, 0),
    (a_failure_and_the_next_backend, 1, 0, 0),
    (a_cut_stream, 1, 1, 0),
    (a_client_that_leaves, 1, 1, 0),
    (a_client_that_leaves_before_anything_came, 1, 1, 0),
    (a_client_that_leaves_others, 1, 0, A_FETCH),
    (a_backend_that_was_left_before_it_was_reached, 2, 0, 0),
    (a_batch_of_which_some_is_stored, 2, 0, 12 // 3 + 16),  # the share of one of three words in the first bill
    (what_passes_through, 0, 0, 0),
]


@pytest.mark.parametrize(
    ("scene", "fetches", "estimated", "spared"), SCENES, ids=lambda it: getattr(it, "__name__", None)
)
async def test_each_fetch_is_billed_once(
    tmp_path: Path, scene: Scene, fetches: int, estimated: int, spared: int
) -> None:
    till, other = Till(), Till()
    async with till.running() as model, other.running() as fails:
        settings = SETTINGS.format(till=model.url, fails=fails.url)
        async with running_proxy(tmp_path, settings, backend=fails) as proxy:
            await scene(proxy, till)
            total = (await report(proxy, "by=tenant"))["total"]
            assert (total["fetches"], total["estimated"]) == (fetches, estimated)
            if not estimated:
                assert total["billed_tokens"] == till.billed + other.billed
            assert total["replayed_tokens"] + total["shared_tokens"] == spared
            assert proxy.app.quotas._subjects["tenant shop"].day.used(1) == total["billed_tokens"], "and so are limits"

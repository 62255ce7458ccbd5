"""Limits through the whole proxy, with the vendors' own clients: who is let in, who is told to wait, and who pays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from yarl import URL

from semcache import config
from semcache.access.key_file import KeyFile
from semcache.access.locksmith import Locksmith, NewKey
from semcache.config import Limits, TenantSettings
from tests.fakes import Clock, ModelServer
from tests.front_doors import Vendors
from tests.harness import Proxy, running_proxy, until

OURS = ("x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-")
A_QUESTION = 33  # tokens that the model server bills: 11 and 22


def limited(limits: str, more: str = "") -> str:
    return f"{more}\ntenants: [{{name: shop, keys: [sk-shop], limits: {{{limits}}}}}, {{name: bank, keys: [sk-bank]}}]"


async def ask(proxy: Proxy, question: str, **more: Any) -> Any:
    return await proxy.ask(question, **{"key": "sk-shop", **more})


async def test_one_request_too_many_is_a_rate_limit_error_to_both_sdks(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, limited("requests_per_minute: 2"), backend=Vendors()) as proxy:
        client = anthropic.AsyncAnthropic(base_url=proxy.url.removesuffix("/v1"), api_key="sk-shop", max_retries=0)
        await ask(proxy, "What is a monad?")
        async with client:
            hello: Any = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}
            await client.messages.create(**hello)
            with pytest.raises(anthropic.RateLimitError) as refused:
                await client.messages.create(**hello)
        assert refused.value.type == "rate_limit_error"
        with pytest.raises(openai.RateLimitError) as said:
            await ask(proxy, "What is a functor?")
        assert (said.value.code, proxy.backend.requests) == ("rate_limit_exceeded", 2)
        for response in (refused.value.response, said.value.response):
            assert 1 <= int(response.headers["Retry-After"]) <= 120
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert "sk-shop" not in said.value.response.text
        proxy.clock.advance(120)
        assert (await ask(proxy, "What is a functor?")).verdict == "miss"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_every_reply_tells_what_is_left_and_no_upstreams_figures_are_among_it(
    tmp_path: Path, stream: bool
) -> None:
    backend = ModelServer()
    backend.response_headers = {
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-limit-input-images": "50",
        "anthropic-ratelimit-tokens-remaining": "7",
    }
    limits = "requests_per_minute: 10, tokens_per_day: 1000"
    async with running_proxy(tmp_path, limited(limits), backend=backend) as proxy:
        miss = await ask(proxy, "What is a monad?", stream=stream)
        await proxy.landed()
        hit = await ask(proxy, "What is a monad?", stream=stream)
        assert (miss.verdict, hit.verdict) == ("miss", "hit")
        for reply, left in ((miss, 9), (hit, 8)):
            fields = {name for name in reply.headers if "ratelimit" in name}
            assert fields == {name + unit for name in OURS for unit in ("requests", "tokens")}
            assert reply.headers["x-ratelimit-limit-requests"] == "10"
            assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
        free = await proxy.ask("What is a monad?", key="sk-bank", stream=stream)
        assert free.headers["x-ratelimit-remaining-requests"] == "9999", "nobody limits him but the upstream"


async def test_what_passes_through_counts_as_a_request_and_tells_what_is_left(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, limited("requests_per_minute: 2"), backend=Vendors()) as proxy:
        client = proxy.client.with_options(api_key="sk-shop")
        for left in ("1", "0"):
            reply = await client.moderations.with_raw_response.create(input="is this nice?")
            assert reply.headers["x-ratelimit-remaining-requests"] == left
        with pytest.raises(openai.RateLimitError) as refused:
            await client.moderations.create(input="is this nice?")
        assert refused.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            await ask(proxy, "What is a monad?")


async def test_an_upstreams_error_tells_what_is_left_too(tmp_path: Path) -> None:
    backend = ModelServer()
    async with running_proxy(
        tmp_path, limited("requests_per_minute: 9, tokens_per_minute: 5000"), backend=backend
    ) as proxy:
        backend.status, backend.error_headers = 400, {"x-ratelimit-remaining-tokens": "1"}
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(proxy, "What is a monad?")
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "8"
        await proxy.landed()
        backend.status = 200
        assert (await ask(proxy, "Another?")).headers["x-ratelimit-remaining-requests"] == "7"
        used = proxy.app.quotas.take()[0]
        assert {counts[1] for (_, period, _), counts in used if period == "minute"} == {A_QUESTION}, (
            "errors cost nothing"
        )


async def test_our_own_errors_tell_what_is_left_too(tmp_path: Path) -> None:
    pools = "pools: {dead: {backends: [{url: 'http://127.0.0.1:9/v1'}], health: {interval: 0s}}}"
    async with running_proxy(tmp_path, limited("requests_per_minute: 9", pools)) as proxy:
        with pytest.raises(openai.InternalServerError) as failed:
            await ask(proxy, "What is a monad?")
        assert failed.value.response.headers["x-ratelimit-remaining-requests"] == "8"


async def test_tokens_count_where_they_are_billed_and_nowhere_else(tmp_path: Path) -> None:
    backend = ModelServer()
    async with running_proxy(tmp_path, limited("tokens_per_day: 100000"), backend=backend) as proxy:

        def used() -> int:
            subject = proxy.app.quotas._subjects["tenant shop"]
            return subject.day.used(1)

        backend.gate = asyncio.Event()
        crowd = [asyncio.create_task(ask(proxy, "What is a monad?")) for _ in range(5)]
        await until(lambda: proxy.app.pipeline.flights.stats()["joined"] == 4)
        backend.gate.set()
        assert sorted(reply.verdict for reply in await asyncio.gather(*crowd)) == ["coalesced"] * 4 + ["miss"]
        await proxy.landed()
        assert used() == A_QUESTION, "whoever joins another's fetch pays nothing"
        for _ in range(3):
            assert (await ask(proxy, "What is a monad?")).verdict == "hit"
        assert (used(), backend.requests) == (A_QUESTION, 1), "nor does whoever gets what is stored"


async def test_a_refresh_of_a_stale_answer_is_charged(tmp_path: Path) -> None:
    settings = limited("tokens_per_day: 100000", "cache: {ttl: 10s, grace: 1h}")
    async with running_proxy(tmp_path, settings) as proxy:
        await ask(proxy, "What is a monad?")
        await proxy.landed()
        proxy.clock.advance(60)
        assert (await ask(proxy, "What is a monad?")).verdict == "stale"
        await proxy.landed()
        assert proxy.app.quotas._subjects["tenant shop"].day.used(1) == 2 * A_QUESTION


async def test_a_spent_budget_still_gets_what_is_stored(tmp_path: Path) -> None:
    price = "{input: 1000000, output: 1000000}"  # a dollar a token
    async with ModelServer().running() as model:
        pools = f"pools: {{local: {{backends: [{{url: '{model.url}', price: {price}}}]}}}}"
        async with running_proxy(tmp_path, limited("usd_per_month: 20", pools)) as proxy:
            assert (await ask(proxy, "What is a monad?")).verdict == "miss"
            await proxy.landed()
            for stream in (False, True):
                assert (await ask(proxy, "What is a monad?", stream=stream)).verdict == "hit"
            with pytest.raises(openai.RateLimitError) as spent:
                await ask(proxy, "What is a functor?")
            assert spent.value.code == "insufficient_quota"
            assert spent.value.response.headers["x-should-retry"] == "false"
            assert int(spent.value.response.headers["Retry-After"]) > 3600
            with pytest.raises(openai.RateLimitError):
                await ask(proxy, "What is a functor?", stream=True)
            with pytest.raises(openai.RateLimitError):
                await proxy.client.with_options(api_key="sk-shop").moderations.create(input="is this nice?")
            assert model.requests == 1
            proxy.clock.advance(32 * 86400)
            assert (await ask(proxy, "What is a functor?")).verdict == "miss", "a new month"


async def test_a_client_that_hangs_up_in_a_stream_pays_for_what_came(tmp_path: Path) -> None:
    backend = ModelServer()
    settings = limited("tokens_per_day: 100000", "cache: {on_client_gone: cancel}")
    async with running_proxy(tmp_path, settings, backend=backend) as proxy:
        backend.gate = asyncio.Event()
        backend.answer = "many words " * 20
        client = proxy.client.with_options(api_key="sk-shop")
        question: Any = {"role": "user", "content": "Tell me a long story about the sea, please."}
        async with await client.chat.completions.create(model="small", messages=[question], stream=True) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        await backend.gone.wait()
        await proxy.landed()
        await proxy.app.meter.drain()
        (spent,) = proxy.app.ledger.totals.values()
        assert (spent.estimated, spent.requests) == (1, 1)
        assert spent.prompt_tokens >= 10
        assert 1 <= spent.completion_tokens < 20, "of twenty, only what had come"
        charged = proxy.app.quotas._subjects["tenant shop"].day.used(1)
        assert charged == spent.prompt_tokens + spent.completion_tokens


async def test_two_proxies_with_one_file_count_together(tmp_path: Path) -> None:
    clock = Clock()
    usage = f"usage: {{path: {tmp_path}/usage.db, flush: 20ms}}"
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    settings = limited("requests_per_day: 10", usage)
    async with running_proxy(one, settings, clock=clock) as here, running_proxy(other, settings, clock=clock) as there:
        for number in range(5):
            await ask(here, f"Question {number}?")
            await ask(there, f"Question {number}?")
            await here.app.flushing.flush()
            await there.app.flushing.flush()
        await here.app.flushing.flush()
        for proxy in (here, there):
            with pytest.raises(openai.RateLimitError):
                await ask(proxy, "One more?")


async def test_what_was_used_survives_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    settings = limited("requests_per_day: 2, requests_per_minute: 100", "cache: {ttl: 7d}")
    async with running_proxy(tmp_path, settings, clock=clock) as proxy:
        await ask(proxy, "What is a monad?")
        await ask(proxy, "What is a functor?")
    async with running_proxy(tmp_path, settings, clock=clock) as proxy:
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(proxy, "What is a monad?")
        assert "2 requests a day" in refused.value.message
        clock.advance(86400)
        assert (await ask(proxy, "What is a monad?")).verdict == "hit"


async def test_a_tenants_limits_and_a_keys_hold_both(tmp_path: Path) -> None:
    pepper = "a pepper of this test that is long enough"
    keys = f"keys: {{path: {tmp_path}/keys.db, pepper: {pepper}, refresh: 100ms}}"
    async with running_proxy(tmp_path, limited("requests_per_day: 5", keys)) as proxy:
        file = KeyFile(f"{tmp_path}/keys.db", pepper.encode())
        smith = Locksmith(file, lambda: [TenantSettings(name="shop")], proxy.clock)
        narrow, wide = (smith.create(NewKey(tenant="shop", limits=Limits(requests_per_day=most))) for most in (2, 100))
        await until_known(proxy, narrow.text, wide.text)
        first = await ask(proxy, "What is a monad?", key=narrow.text)
        assert first.headers["x-ratelimit-limit-requests"] == "2", "of two limits the one of which less is left"
        await ask(proxy, "What is a monad?", key=narrow.text)
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(proxy, "What is a monad?", key=narrow.text)
        assert f"key {narrow.key.id}" in refused.value.message
        for left in ("2", "1", "0"):
            reply = await ask(proxy, "What is a monad?", key=wide.text)
            assert reply.headers["x-ratelimit-remaining-requests"] == left
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(proxy, "What is a monad?", key=wide.text)
        assert "tenant shop" in refused.value.message


async def until_known(proxy: Proxy, *keys: str) -> None:
    """A question to a path that is refused costs nothing, and tells whether the key is known."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(5):
        for key in keys:
            headers = {"Authorization": f"Bearer {key}"}
            while True:
                async with session.post(f"{proxy.url}/chat/completions", data=b"", headers=headers) as reply:
                    if reply.status != 401:
                        break
                await asyncio.sleep(0.01)


async def test_limits_of_a_reload_count_from_the_next_request_on(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, limited("requests_per_day: 2")) as proxy:
        await ask(proxy, "What is a monad?")
        await ask(proxy, "What is a monad?")
        with pytest.raises(openai.RateLimitError):
            await ask(proxy, "What is a monad?")
        take(proxy, limited("requests_per_day: 3"))
        reply = await ask(proxy, "What is a monad?")
        assert reply.headers["x-ratelimit-remaining-requests"] == "0", "what was used before stays used"
        with pytest.raises(openai.RateLimitError):
            await ask(proxy, "What is a monad?")


async def test_a_tenant_that_a_reload_has_removed_is_no_longer_known(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, limited("requests_per_day: 9")) as proxy:
        assert (await ask(proxy, "What is a monad?")).verdict == "miss"
        await proxy.landed()
        assert (await ask(proxy, "What is a monad?")).verdict == "hit"
        take(proxy, "tenants: [{name: bank, keys: [sk-bank]}]")
        with pytest.raises(openai.AuthenticationError):
            await ask(proxy, "What is a monad?")
        assert (await proxy.ask("What is a monad?", key="sk-bank")).verdict == "miss"


async def test_models_that_a_reload_takes_from_a_tenant_are_refused_at_once(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, limited("requests_per_day: 9")) as proxy:
        assert (await ask(proxy, "What is a monad?")).verdict == "miss"
        await proxy.landed()
        take(proxy, "tenants: [{name: shop, keys: [sk-shop], models: [large]}]")
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await ask(proxy, "What is a monad?")
        assert refused.value.code == "model_not_allowed"


def take(proxy: Proxy, text: str) -> None:
    """As reload.py does, once it has found nothing wrong with a file."""
    options = {"upstream": proxy.backend.url, "store": proxy.app.config.cache.store, "port": 0, "admin_port": 0}
    proxy.app._adopt(config.parse(text, {}, options=options))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/%63ompletions",
        "/v1/chat/%2563ompletions",
        "/v1/chat%2Fcompletions",
        "/v1//chat/completions",
        "/v1/files/../chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/Completions",
        "/v1/chat/completions;a=b",
        "/v1/chat/completions%3Fa",
    ],
)
async def test_no_spelling_of_a_path_leads_around_what_a_request_has_to_pass(tmp_path: Path, path: str) -> None:
    async with running_proxy(tmp_path, limited("tokens_per_day: 1000"), backend=ModelServer()) as proxy:
        body = {"model": "small", "messages": [{"role": "user", "content": "What is a monad?"}]}
        url = URL(proxy.url.removesuffix("/v1") + path, encoded=True)
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer sk-shop"}) as session:
            async with session.post(url, json=body) as reply:
                assert (reply.status, proxy.backend.requests) == (404, 0)
                assert "/v1/chat/completions" in (await reply.json())["error"]["message"]

"""The story of a request, told from the client's side: what is asked, what comes back, and what it cost upstream.

When the order of events in pipeline.py changes, it changes here too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx2
import openai
import pytest

from semcache.types import Selector
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until

PARCEL = "Where are parcels sorted before delivery please"
PARCEL_AGAIN = "Where are parcels sorted before delivery"


@pytest.fixture
async def proxy(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with running_proxy(tmp_path) as running:
        yield running


async def test_a_question_is_fetched_once_and_then_answered_from_the_store(proxy: Proxy) -> None:
    first = await proxy.ask(PARCEL)
    assert first.cache_status == "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"
    second = await proxy.ask(PARCEL)
    assert second.cache_status == "semcache; hit; ttl=86400; detail=exact"
    assert second.text == first.text == f"answer 1 to: {PARCEL}"
    assert proxy.backend.requests == 1


async def test_the_same_question_in_other_words_gets_the_stored_answer(proxy: Proxy) -> None:
    first = await proxy.ask(PARCEL)
    again = await proxy.ask(PARCEL_AGAIN)
    assert again.verdict == "hit"
    assert again.detail.startswith("semantic/0.9")
    assert again.text == first.text
    assert again.headers["semcache-entry"]
    assert again.headers["age"] == "0"
    assert proxy.backend.requests == 1


async def test_another_question_is_another_fetch(proxy: Proxy) -> None:
    await proxy.ask(PARCEL)
    other = await proxy.ask("How do I change my password please?")
    assert (other.verdict, other.detail) == ("miss", "below-threshold")
    assert proxy.backend.requests == 2


async def test_a_changed_number_is_vetoed(proxy: Proxy) -> None:
    await proxy.ask("How long does delivery of order 1001 to my house take on average")
    twin = await proxy.ask("How long does delivery of order 1002 to my house take on average")
    assert (twin.verdict, twin.detail) == ("miss", "guard-number")
    assert twin.text.startswith("answer 2")


@pytest.mark.parametrize("recorded_as_stream", [True, False])
@pytest.mark.parametrize("played_as_stream", [True, False])
async def test_one_entry_serves_both_forms(proxy: Proxy, recorded_as_stream: bool, played_as_stream: bool) -> None:
    first = await proxy.ask(PARCEL, stream=recorded_as_stream)
    await proxy.landed()
    second = await proxy.ask(PARCEL, stream=played_as_stream)
    assert second.verdict == "hit"
    assert second.text.strip() == first.text.strip()
    assert proxy.backend.requests == 1


async def test_a_hit_carries_an_identity_of_its_own(proxy: Proxy) -> None:
    await proxy.ask(PARCEL)
    one, two = (await proxy.ask(PARCEL)).answer, (await proxy.ask(PARCEL)).answer
    assert len({"chatcmpl-up1", one.id, two.id}) == 3
    assert one.created == int(proxy.clock.now)
    assert one.usage.prompt_tokens == 11


async def test_an_original_identity_is_kept_where_the_operator_says_so(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "cache: {identity: original}") as proxy:
        await proxy.ask(PARCEL)
        assert (await proxy.ask(PARCEL)).answer.id == "chatcmpl-up1"


async def test_the_usage_chunk_comes_to_those_who_asked(proxy: Proxy) -> None:
    miss = await proxy.ask(PARCEL, stream=True)
    assert miss.usage is None
    assert all(chunk.choices for chunk in miss.answer)
    await proxy.landed()
    hit = await proxy.ask(PARCEL, stream=True, stream_options={"include_usage": True})
    assert hit.verdict == "hit"
    assert hit.usage.total_tokens == 33
    assert [chunk for chunk in hit.answer if not chunk.choices] == [hit.answer[-1]]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "large"},
        {"temperature": 0.5},
        {"seed": 7},
        {"max_tokens": 5},
        {"extra_body": {"top_k": 3}},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
    ],
)
async def test_the_context_must_be_equal(proxy: Proxy, change: dict[str, object]) -> None:
    await proxy.ask(PARCEL)
    assert (await proxy.ask(PARCEL, **change)).verdict == "miss"
    assert (await proxy.ask(PARCEL_AGAIN, **change)).text.startswith("answer 2"), "the near one in the same context"


async def test_another_system_prompt_or_history_is_another_context(proxy: Proxy) -> None:
    last = {"role": "user", "content": "And in the evening?"}
    for before in ("Is the shop open?", "Is the pool open?"):
        reply = await proxy.ask(
            [{"role": "user", "content": before}, {"role": "assistant", "content": "Until noon."}, last]
        )
        assert reply.verdict == "miss"
    assert (await proxy.ask([{"role": "system", "content": "Be brief."}, last])).verdict == "miss"
    assert (await proxy.ask([last])).verdict == "miss"


async def test_tenants_never_share_and_nothing_tells_of_the_other(proxy: Proxy) -> None:
    await proxy.ask(PARCEL, key="sk-one")
    stranger = await proxy.ask(PARCEL, key="sk-two")
    assert stranger.cache_status == "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"
    assert proxy.backend.requests == 2


async def test_a_burst_of_equal_questions_costs_one_fetch(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(PARCEL, stream=number % 2 == 0)) for number in range(50)]
    await until(lambda: proxy.app.pipeline.flights.joined == 49)
    proxy.backend.gate.set()
    replies = await asyncio.gather(*asking)
    assert proxy.backend.requests == 1
    assert Counter(reply.verdict for reply in replies) == {"miss": 1, "coalesced": 49}
    assert {reply.text.strip() for reply in replies} == {f"answer 1 to: {PARCEL}"}


async def test_a_burst_may_begin_while_the_question_is_still_being_embedded(proxy: Proxy) -> None:
    proxy.embedder.gate = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(PARCEL)) for _ in range(10)]
    await asyncio.sleep(0)
    proxy.embedder.gate.set()
    await asyncio.gather(*asking)
    assert proxy.backend.requests == 1


async def test_a_leader_that_leaves_is_succeeded(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    leader = asyncio.create_task(proxy.ask(PARCEL, stream=True))
    await until(lambda: proxy.backend.requests)
    follower = asyncio.create_task(proxy.ask(PARCEL, stream=True))
    await until(lambda: proxy.app.pipeline.flights.joined)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    proxy.backend.gate.set()
    assert (await follower).text.startswith("answer 1")
    await proxy.landed()
    assert (await proxy.ask(PARCEL)).verdict == "hit"
    assert (proxy.backend.requests, proxy.backend.cancelled) == (1, 0)


async def test_a_fetch_nobody_waits_for_is_cancelled_upstream(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    alone = asyncio.create_task(proxy.ask(PARCEL, stream=True))
    await until(lambda: proxy.backend.requests)
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    async with asyncio.timeout(1):
        await proxy.backend.gone.wait()
    proxy.backend.gate.set()
    assert (await proxy.ask(PARCEL)).verdict == "miss"


async def test_an_operator_may_have_abandoned_fetches_finished(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "cache: {on_client_gone: finish}") as proxy:
        proxy.backend.gate = asyncio.Event()
        alone = asyncio.create_task(proxy.ask(PARCEL))
        await until(lambda: proxy.backend.requests)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        proxy.backend.gate.set()
        await proxy.app.pipeline.flights.drain()
        assert (await proxy.ask(PARCEL)).verdict == "hit"


async def test_in_its_grace_an_answer_is_served_stale_while_one_refresh_runs(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "cache: {ttl: 60s, grace: 30s}") as proxy:
        await proxy.ask(PARCEL)
        proxy.clock.advance(70)
        proxy.backend.gate = asyncio.Event()
        stale = [await proxy.ask(PARCEL) for _ in range(5)]
        assert [reply.cache_status for reply in stale] == ["semcache; hit; ttl=-10; detail=stale"] * 5
        assert {reply.text for reply in stale} == {f"answer 1 to: {PARCEL}"}
        proxy.backend.gate.set()
        await proxy.app.pipeline.flights.drain()
        fresh = await proxy.ask(PARCEL)
        assert (fresh.verdict, fresh.text) == ("hit", f"answer 2 to: {PARCEL}")
        assert proxy.backend.requests == 2


async def test_only_if_cached_takes_a_stale_answer_without_a_refresh(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "cache: {ttl: 60s, grace: 30s}") as proxy:
        await proxy.ask(PARCEL)
        proxy.clock.advance(70)
        assert (await proxy.ask(PARCEL, headers={"Cache-Control": "only-if-cached"})).verdict == "stale"
        await proxy.landed()
        assert proxy.backend.requests == 1


async def test_past_its_grace_an_answer_is_gone(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "cache: {ttl: 60s, grace: 30s}") as proxy:
        await proxy.ask(PARCEL)
        proxy.clock.advance(91)
        reply = await proxy.ask(PARCEL)
        assert reply.cache_status == "semcache; fwd=stale; fwd-status=200; stored; detail=expired"
        assert reply.text.startswith("answer 2")


async def test_the_callers_cache_control(proxy: Proxy) -> None:
    async def ask(cache_control: str) -> str:
        reply = await proxy.ask(PARCEL, headers={"Cache-Control": cache_control})
        return f"{reply.verdict} {reply.detail}"

    assert await ask("no-store") == "bypass no-store"
    assert await ask("no-cache") == "miss no-cache"  # not looked up, but stored
    assert await ask("only-if-cached") == "hit exact"
    proxy.clock.advance(100)
    assert await ask("max-age=200") == "hit exact"
    assert await ask("max-age=50") == "miss max-age"
    assert proxy.backend.requests == 3


async def test_only_if_cached_costs_nothing_upstream(proxy: Proxy) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await proxy.ask(PARCEL, headers={"Cache-Control": "only-if-cached"})
    assert caught.value.status_code == 504
    assert caught.value.response.headers["cache-status"] == "semcache; detail=no-entry"
    assert proxy.backend.requests == 0


async def test_the_exact_tier_can_be_asked_for(proxy: Proxy) -> None:
    await proxy.ask(PARCEL)
    strict = await proxy.ask(PARCEL_AGAIN, headers={"Semcache-Control": "tier=exact"})
    assert (strict.verdict, strict.detail) == ("miss", "exact-only")
    assert (await proxy.ask(PARCEL_AGAIN, headers={"Semcache-Control": "similarity=0.99"})).verdict == "hit", "exactly"


async def test_namespaces_part_what_one_tenant_asks(proxy: Proxy) -> None:
    await proxy.ask(PARCEL, headers={"Semcache-Control": "namespace=docs"})
    assert (await proxy.ask(PARCEL, headers={"Semcache-Control": "namespace=blog"})).verdict == "miss"
    assert (await proxy.ask(PARCEL, headers={"Semcache-Control": "namespace=docs"})).verdict == "hit"


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "tool_calls", None, "brand_new"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_did_not_end_well_is_relayed_and_not_kept(
    proxy: Proxy, finish_reason: str | None, stream: bool
) -> None:
    proxy.backend.finish_reason = finish_reason
    assert (await proxy.ask(PARCEL, stream=stream)).text.startswith("answer 1")
    await proxy.landed()
    again = await proxy.ask(PARCEL, stream=stream)
    assert again.verdict in ("miss", "bypass")
    assert again.text.startswith("answer 2")


async def test_what_is_known_never_to_be_storable_does_not_queue(proxy: Proxy) -> None:
    proxy.backend.finish_reason = "length"
    await proxy.ask(PARCEL)
    proxy.backend.gate = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(PARCEL)) for _ in range(5)]
    await until(lambda: proxy.backend.requests == 6)
    proxy.backend.gate.set()
    assert {reply.detail for reply in await asyncio.gather(*asking)} == {"learned"}


async def test_an_error_of_the_upstream_passes_byte_for_byte(proxy: Proxy) -> None:
    proxy.backend.status = 429
    with pytest.raises(openai.RateLimitError) as caught:
        await proxy.ask(PARCEL)
    assert caught.value.response.content == proxy.backend.error_body
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.response.headers["x-request-id"] == "req-upstream"
    proxy.backend.status = 200
    assert (await proxy.ask(PARCEL)).verdict == "miss"


@pytest.mark.parametrize("events", range(8))
async def test_a_truncated_stream_is_visibly_truncated_and_not_kept(proxy: Proxy, events: int) -> None:
    proxy.backend.cut_after_events = events
    with pytest.raises((openai.APIError, httpx2.TransportError)):
        await proxy.ask(PARCEL, stream=True)
    proxy.backend.cut_after_events = None
    assert (await proxy.ask(PARCEL)).verdict == "miss"


async def test_a_dead_backend_is_a_502_and_the_cache_still_answers(tmp_path: Path) -> None:
    backend = ModelServer()
    async with running_proxy(tmp_path, backend=backend) as proxy:
        await proxy.ask(PARCEL)
    pool = "pools: {dead: {backends: [{url: 'http://127.0.0.1:9/v1'}]}}"
    async with running_proxy(tmp_path, pool) as proxy:
        assert (await proxy.ask(PARCEL)).verdict == "hit"
        with pytest.raises(openai.InternalServerError) as caught:
            await proxy.ask("Something never asked before")
        assert caught.value.status_code == 502
        assert "dead[0]" in caught.value.message


async def test_a_faulty_embedder_costs_no_request(proxy: Proxy) -> None:
    proxy.embedder.fault = RuntimeError("out of memory")
    reply = await proxy.ask(PARCEL)
    assert (reply.verdict, reply.detail) == ("bypass", "cache-fault")
    assert reply.text.startswith("answer 1")
    assert (await proxy.ask(PARCEL)).detail == "exact", "the exact tier needs no embedder"


async def test_a_question_longer_than_the_window_matches_exactly_or_not_at_all(proxy: Proxy) -> None:
    long = "word " * 300
    first = await proxy.ask(long + "a")
    assert (first.verdict, first.detail) == ("miss", "too-long")
    assert (await proxy.ask(long + "b")).verdict == "miss"
    assert (await proxy.ask(long + "a")).detail == "exact"


async def test_a_restart_keeps_the_answers_in_both_tiers(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask(PARCEL)
    async with running_proxy(tmp_path) as proxy:
        assert (await proxy.ask(PARCEL)).detail == "exact"
        assert (await proxy.ask(PARCEL_AGAIN)).detail.startswith("semantic/")
        assert proxy.backend.requests == 0


async def test_shadow_mode_forwards_everything_and_says_what_it_would_have_done(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {mode: shadow}") as proxy:
        await proxy.ask(PARCEL)
        shadow = await proxy.ask(PARCEL)
        assert (shadow.verdict, shadow.detail) == ("miss", "exploring")
        assert proxy.backend.requests == 2


async def test_other_paths_pass_through_untouched(proxy: Proxy) -> None:
    models = await proxy.client.models.with_raw_response.list()
    assert models.headers["cache-status"] == "semcache; fwd=bypass; fwd-status=200; detail=endpoint"
    assert proxy.backend.paths == ["/v1/models"]
    raw = await proxy.client.post("/fine_tuning/jobs?limit=3&x=%2F", cast_to=dict[str, object], body={"a": 1})
    assert raw["path"] == "/v1/fine_tuning/jobs?limit=3&x=%2F"


async def test_a_base_url_works_without_v1(proxy: Proxy) -> None:
    client = proxy.client.with_options(base_url=proxy.url.removesuffix("/v1"))
    raw = await client.models.with_raw_response.list()
    assert raw.headers["cache-status"].endswith("detail=endpoint")
    assert proxy.backend.paths == ["/v1/models"]
    with pytest.raises(openai.NotFoundError):
        await client.get("/metrics", cast_to=object)


MESSAGE = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": PARCEL}]}


async def test_a_key_goes_to_the_vendor_whose_path_it_is(tmp_path: Path) -> None:
    anthropic = ModelServer()
    async with anthropic.running(), ModelServer().running() as other:
        settings = f"""
        pools:
          openai: {{backends: [{{url: '{other.url}'}}]}}
          anthropic: {{backends: [{{url: '{anthropic.url}', dialect: anthropic}}]}}
        """
        async with running_proxy(tmp_path, settings) as proxy:
            await proxy.client.get("/threads/t1/messages", cast_to=object)
            assert (other.paths, anthropic.paths) == (["/v1/threads/t1/messages"], [])
            await proxy.client.post("/messages", cast_to=object, body=MESSAGE)
            assert anthropic.paths == ["/v1/messages"]


async def test_behind_one_server_every_path_is_that_servers(proxy: Proxy) -> None:
    await proxy.client.post("/messages", cast_to=object, body=MESSAGE)
    assert proxy.backend.paths == ["/v1/messages"]


async def test_nobody_who_asks_after_a_purge_joins_a_fetch_from_before_it(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    before = asyncio.create_task(proxy.ask(PARCEL))
    await until(lambda: proxy.backend.requests == 1)
    await proxy.app.store.purge(Selector(text=PARCEL))
    after = asyncio.create_task(proxy.ask(PARCEL))
    await until(lambda: proxy.backend.requests == 2)
    proxy.backend.gate.set()
    assert (await before).text.startswith("answer 1")
    assert (await after).text.startswith("answer 2")
    assert (await proxy.ask(PARCEL)).text.startswith("answer 2"), "the first was not stored"


async def test_the_callers_key_is_passed_through_or_replaced(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask(PARCEL, key="sk-mine")
        assert proxy.backend.headers[-1]["Authorization"] == "Bearer sk-mine"
    backend = ModelServer()
    async with backend.running():
        settings = f"""
        pools: {{own: {{backends: [{{url: '{backend.url}', api_key: sk-operator}}]}}}}
        tenants: [{{name: shop, keys: [sk-shop]}}]
        """
        async with running_proxy(tmp_path / "other", settings) as proxy:
            await proxy.ask(PARCEL, key="sk-shop")
            assert backend.headers[-1]["Authorization"] == "Bearer sk-operator"
            with pytest.raises(openai.AuthenticationError):
                await proxy.ask(PARCEL, key="sk-unknown")
            assert len(backend.headers) == 1

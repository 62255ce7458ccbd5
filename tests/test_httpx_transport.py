"""The SDKs on a client with the cache in it, before a real model server: they notice nothing but the speed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI

from semcache import Cache
from semcache.httpx_transport import CachedTransport
from semcache.simulate import Simulator
from tests.fakes import ModelServer, WordsEmbedder
from tests.scripted_upstream import Close, Expect, ScriptedUpstream, Send

PARCEL = "Where is the parcel that I ordered last week?"
PARCEL_REWORDED = "Where is the parcel that I ordered last week, please?"


@asynccontextmanager
async def opened(settings: Any = None, **options: Any) -> AsyncIterator[Cache]:
    async with Cache(settings or {"match": {"threshold": 0.8}}, **{"embedder": WordsEmbedder(), **options}) as cache:
        yield cache


def openai_client(cache: Cache, url: str, key: str = "sk-test", **options: Any) -> openai.AsyncOpenAI:
    client = httpx2.AsyncClient(transport=CachedTransport(cache, **options))
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=client)


async def say(client: openai.AsyncOpenAI, text: str = PARCEL, **body: Any) -> tuple[str, str]:
    """What the model says, and the Cache-Status."""
    raw = await client.chat.completions.with_raw_response.create(
        model="small", messages=[{"role": "user", "content": text}], **body
    )
    answer = raw.parse()
    if body.get("stream"):
        words = [chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices]
        return "".join(words), raw.headers["cache-status"]
    return answer.choices[0].message.content, raw.headers["cache-status"]


async def landed(cache: Cache) -> None:
    """Until what streams brought is stored: their readers have their end before that."""
    while cache.stats()["pipeline"]["flights"]:
        await asyncio.sleep(0)


async def test_openais_sdk_gets_misses_hits_and_semantic_hits() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        assert await say(client) == (
            f"answer 1 to: {PARCEL}",
            "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry",
        )
        text, status = await say(client)
        assert (text, status) == (f"answer 1 to: {PARCEL}", "semcache; hit; ttl=86399; detail=exact")
        text, status = await say(client, PARCEL_REWORDED)
        assert text == f"answer 1 to: {PARCEL}" and "detail=semantic/0.9" in status
        assert server.requests == 1


async def test_a_stream_is_kept_and_played_in_both_forms() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        first, status = await say(client, stream=True)
        assert (first.strip(), status) == (
            f"answer 1 to: {PARCEL}",
            "semcache; fwd=miss; fwd-status=200; detail=no-entry",
        )
        await landed(cache)
        assert server.bodies[0]["stream_options"] == {"include_usage": True}
        again, status = await say(client, stream=True)
        assert again == first and "; hit;" in status
        whole, status = await say(client)
        assert whole == first and "; hit;" in status
        raw = await client.chat.completions.with_raw_response.create(
            model="small", messages=[{"role": "user", "content": PARCEL}]
        )
        assert raw.headers["semcache-entry"] and raw.parse().usage.total_tokens == 33


async def test_a_stream_arrives_as_it_is_written() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        server.gate = asyncio.Event()
        stream = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": PARCEL}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                server.gate.set()  # the rest is only sent now
        assert server.cancelled == 0


async def test_who_leaves_a_stream_ends_it_upstream() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        server.gate = asyncio.Event()
        stream = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": PARCEL}], stream=True
        )
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(server.gone.wait(), 10)
        assert cache.stats()["pipeline"]["stored"] == 0


async def test_equal_requests_at_the_same_time_are_one() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        server.gate = asyncio.Event()
        asking = [asyncio.create_task(say(client)) for _ in range(20)]
        while cache.stats()["pipeline"]["joined"] != 19:
            await asyncio.sleep(0)
        server.gate.set()
        replies = await asyncio.gather(*asking)
        assert server.requests == 1
        assert sum("collapsed" in status for _, status in replies) == 19


async def test_another_key_host_system_or_setting_is_never_answered() -> None:
    async with opened({"match": {"threshold": 0.1}}) as cache, ModelServer().running() as server:
        async with openai_client(cache, server.url) as client, openai_client(cache, server.url, "sk-other") as other:
            async with openai_client(cache, server.url.replace("127.0.0.1", "localhost")) as elsewhere:
                await say(client)
                await say(other)
                await say(elsewhere)
                await say(client, temperature=0.5)
                raw = [{"role": "system", "content": "Be rude."}, {"role": "user", "content": PARCEL}]
                await client.chat.completions.create(model="small", messages=raw)
                assert server.requests == 5


async def test_the_callers_wishes_stay_in_the_program() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        wishes = {"Cache-Control": "no-store", "Semcache-Control": "namespace=docs"}
        for _ in range(2):
            _, status = await say(client, extra_headers=wishes)
            assert "fwd=bypass; fwd-status=200; detail=no-store" in status
        assert not {"cache-control", "semcache-control"} & {name.lower() for name in server.headers[0]}
        assert server.headers[0]["Authorization"] == "Bearer sk-test"


async def test_refusals_are_the_sdks_own_exceptions() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await say(client.with_options(max_retries=5), extra_headers={"Cache-Control": "only-if-cached"})
        assert (caught.value.status_code, caught.value.code) == (504, "not_cached")
        with pytest.raises(openai.BadRequestError, match="Semcache-Control"):
            await say(client, extra_headers={"Semcache-Control": "similarity=high"})
        assert server.requests == 0


async def test_the_upstreams_errors_are_the_sdks_own_exceptions() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        server.status = 429
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            await say(client)
        assert caught.value.response.headers["retry-after"] == "7"
        server.status, server.cut_after_events = 200, 3
        with pytest.raises(openai.APIError):
            await say(client, stream=True)
        server.cut_after_events = None
        assert "fwd=miss" in (await say(client, stream=True))[1]


async def test_a_server_that_is_not_there_and_one_that_is_slow_are_told_apart() -> None:
    async with opened() as cache, ModelServer().running() as server:
        async with openai_client(cache, "http://127.0.0.1:9/v1") as client:
            with pytest.raises(openai.APIConnectionError) as caught:
                await say(client)
            assert isinstance(caught.value.__cause__, httpx2.ConnectError)
        server.gate = asyncio.Event()
        async with openai_client(cache, server.url) as client:
            with pytest.raises(openai.APITimeoutError):
                await say(client, timeout=0.05)


async def test_an_answer_that_may_be_cut_is_not_taken_for_whole() -> None:
    """It ends with its connection, in the middle of a JSON body: the SDK would take the half for the whole."""
    half = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"id": "1", "choi'
    async with opened() as cache, ScriptedUpstream([[Expect(), Send(half), Close()]]) as upstream:
        async with openai_client(cache, f"http://127.0.0.1:{upstream.port}/v1") as client:
            with pytest.raises(openai.APIConnectionError):
                await say(client, stream=True)


async def test_faults_of_the_cache_cost_nothing_but_hits() -> None:
    embedder = WordsEmbedder()
    embedder.fault = RuntimeError("no model")
    async with opened(embedder=embedder) as cache, ModelServer().running() as server:
        async with openai_client(cache, server.url) as client:
            assert "fwd=bypass" in (await say(client))[1]
            assert "; hit;" in (await say(client))[1]
            assert "fwd=bypass" in (await say(client, PARCEL_REWORDED))[1]


async def test_what_has_no_dialect_passes_through_untouched() -> None:
    async with opened() as cache, ModelServer().running() as server, openai_client(cache, server.url) as client:
        raw = await client.models.with_raw_response.list()
        assert "cache-status" not in raw.headers
        moderated: Any = await client.post("/moderations", body={"input": "x"}, cast_to=object)
        assert moderated["bytes"] == len(b'{"input":"x"}')
        assert cache.stats()["pipeline"]["led"] == 0


async def test_embeddings_are_fetched_only_where_they_are_not_known() -> None:
    async with opened() as cache, Simulator() as server, openai_client(cache, server.url) as client:
        both = await client.embeddings.create(model="e", input=["one", "two"])
        raw = await client.embeddings.with_raw_response.create(model="e", input=["two", "three"])
        assert "detail=partial" in raw.headers["cache-status"]
        assert raw.parse().data[0].embedding == both.data[1].embedding


async def test_responses_and_anthropics_messages_are_hits_too() -> None:
    async with opened() as cache, Simulator() as server, openai_client(cache, server.url) as client:
        texts = [(await client.responses.create(model="m", input=PARCEL, store=False)).output_text for _ in range(2)]
        assert texts[0] == texts[1] and server.counters.requests == 1
        http = httpx2.AsyncClient(transport=CachedTransport(cache))
        async with anthropic.AsyncAnthropic(base_url=server.root, api_key="k", http_client=http) as claude:
            asked: Any = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": PARCEL}]}
            whole = await claude.messages.create(**asked)
            async with claude.messages.stream(**asked) as stream:
                played = await stream.get_final_message()
            assert played.content[0].text == whole.content[0].text and server.counters.requests == 2
            status = stream.response.headers["cache-status"]
            assert "; hit;" in status and stream.response.headers["request-id"]


@pytest.mark.parametrize(
    "base",
    ["", "/v1", "/api/v1", "/openai/v1", "/inference/v1"],
)
async def test_any_base_url_will_do(base: str) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        message = {"role": "assistant", "content": "Here."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx2.Response(200, json={"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]})

    async with opened() as cache:
        async with openai_client(cache, f"http://host.test{base}", transport=httpx2.MockTransport(answer)) as client:
            statuses = [(await say(client))[1] for _ in range(2)]
            assert "fwd=miss" in statuses[0] and "; hit;" in statuses[1]


async def test_clients_of_httpx_are_served_too() -> None:
    async with opened() as cache, ModelServer().running() as server:
        async with httpx.AsyncClient(transport=CachedTransport(cache)) as client:
            for stream, seen in ((True, "fwd=miss"), (True, "; hit;"), (False, "; hit;")):
                asked = {"model": "m", "messages": [{"role": "user", "content": PARCEL}], "stream": stream}
                reply = await client.post(f"{server.url}/chat/completions", json=asked)
                assert seen in reply.headers["cache-status"]
                await landed(cache)
            assert json.loads(reply.content)["choices"][0]["message"]["content"].startswith("answer 1")


async def test_another_event_loop_is_told_to_open_a_cache_of_its_own() -> None:
    async with opened() as cache, ModelServer().running() as server:

        async def elsewhere() -> None:
            async with openai_client(cache, server.url) as client:
                await say(client)

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_langchains_streams_are_played_too() -> None:
    """Its own cache is not asked for them."""
    async with opened() as cache, ModelServer().running() as server:
        async with httpx2.AsyncClient(transport=CachedTransport(cache)) as client:
            model = ChatOpenAI(base_url=server.url, api_key="sk-test", model="small", http_async_client=client)
            texts = []
            for question in (PARCEL, PARCEL_REWORDED):
                texts.append("".join([chunk.text async for chunk in model.astream(question)]))
                await landed(cache)
            assert texts[0] == texts[1] and server.requests == 1

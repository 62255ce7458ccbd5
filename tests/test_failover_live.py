"""Backends that die, freeze, lie and come back, behind the real proxy: what clients see, and what is stored."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from tests.fakes import Clock, ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import Expect, Reset, ScriptedUpstream, Send, Step, Wait, WaitForClose, answer, chunked

SILENT: list[list[Step]] = [[Expect(), WaitForClose()]]
SORRY: list[list[Step]] = [[Expect(), answer(b'{"error": {"message": "down"}}', status="503 Unavailable")] * 50]


def url_of(upstream: ScriptedUpstream | ModelServer) -> str:
    return upstream.url if isinstance(upstream, ModelServer) else f"http://127.0.0.1:{upstream.port}/v1"


def one_pool(*upstreams: ScriptedUpstream | ModelServer, route: str = "{}", more: str = "") -> str:
    """Tried in the order given; no checks, as a script plays to requests alone."""
    backends = [
        f'{{url: "{url_of(upstream)}", weight: {1000.0 ** (len(upstreams) - place)}}}'
        for place, upstream in enumerate(upstreams)
    ]
    return f"""
pools: {{p: {{backends: [{", ".join(backends)}], health: {{interval: 0}}, {more}}}}}
routes: [{route}]
"""


def pools_of(proxy: Proxy) -> dict[str, Any]:
    found: Any = proxy.app.dispatcher.fleet.pools()
    return dict(found)


def is_idle(proxy: Proxy) -> bool:
    backends = [state for pool in pools_of(proxy).values() for state in pool["backends"].values()]
    return all(state["in_flight"] == 0 for state in backends)


@asynccontextmanager
async def models(number: int = 1) -> AsyncIterator[list[ModelServer]]:
    servers = [ModelServer() for _ in range(number)]
    async with _all(servers):
        yield servers


@asynccontextmanager
async def _all(servers: list[ModelServer]) -> AsyncIterator[None]:
    if not servers:
        yield
        return
    async with servers[0].running(), _all(servers[1:]):
        yield


# Before the first byte


@pytest.mark.parametrize("stream", [False, True])
async def test_fifty_who_ask_the_same_fail_over_once(tmp_path: Path, stream: bool) -> None:
    go = asyncio.Event()
    async with models() as [well], ScriptedUpstream([[Expect(), Wait(go), Reset()]]) as dying:
        async with running_proxy(tmp_path, one_pool(dying, well)) as proxy:
            asking = [asyncio.create_task(proxy.ask("What is a monad?", stream=stream)) for _ in range(50)]
            await until(lambda: dying.requests and proxy.app.pipeline.flights.joined == 49)
            go.set()
            replies = await asyncio.gather(*asking)
            assert Counter(reply.verdict for reply in replies) == {"miss": 1, "coalesced": 49}
            assert {reply.text.strip() for reply in replies} == {"answer 1 to: What is a monad?"}
            assert (len(dying.requests), well.requests) == (1, 1)
            assert proxy.app.dispatcher.failovers == 1
            await proxy.landed()
            assert (await proxy.ask("What is a monad?")).verdict == "hit"
            await until(lambda: is_idle(proxy))


async def test_a_client_that_leaves_during_a_failover_leaves_nothing_behind(tmp_path: Path) -> None:
    async with models() as [slow], ScriptedUpstream(SORRY) as down:
        slow.gate = asyncio.Event()
        async with running_proxy(tmp_path, one_pool(down, slow)) as proxy:
            asking = asyncio.create_task(proxy.ask("What is a monad?"))
            await until(lambda: slow.requests)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await slow.gone.wait()
            await until(lambda: is_idle(proxy) and proxy.app.pipeline.flights.stats()["flights"] == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_200_that_ends_without_a_byte_is_no_answer(tmp_path: Path, stream: bool) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    empty = [
        Send(f"{head}Content-Length: 0\r\n\r\n".encode()),
        Send(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()),
    ]
    for number, end in enumerate(empty):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with models() as [well], ScriptedUpstream([[Expect(), end]]) as hollow:
            async with running_proxy(folder, one_pool(hollow, well)) as proxy:
                assert (await proxy.ask("What is a monad?", stream=stream)).text.startswith("answer 1")
                assert len(hollow.requests) == 1


async def test_headers_and_then_silence_go_on_to_the_next_after_first_byte(tmp_path: Path) -> None:
    head = Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    async with models() as [well], ScriptedUpstream([[Expect(), head, WaitForClose()]]) as mute:
        async with running_proxy(tmp_path, one_pool(mute, well, more="first_byte: 50ms")) as proxy:
            assert (await proxy.ask("What is a monad?", stream=True)).text.startswith("answer 1")
            await mute.closed.wait()
            await until(lambda: is_idle(proxy))


async def test_an_error_in_a_200_is_handed_on_and_never_kept(tmp_path: Path) -> None:
    body = b'{"error": {"message": "the engine is dead", "type": "server_error", "code": 500}}'
    async with ScriptedUpstream([[Expect(), answer(body, "Content-Type: application/json")] * 2]) as lying:
        async with running_proxy(tmp_path, one_pool(lying)) as proxy, aiohttp.ClientSession() as session:
            asked = {"model": "small", "messages": [{"role": "user", "content": "What is a monad?"}]}
            for _ in range(2):
                async with session.post(f"{proxy.url}/chat/completions", json=asked) as response:
                    assert (response.status, await response.read()) == (200, body)
            assert len(lying.requests) == 2


async def test_who_failed_waits_for_a_backend_that_is_well_but_full(tmp_path: Path) -> None:
    async with models() as [well], ScriptedUpstream([[Expect(), Reset()]]) as dead:
        settings = f"""
pools:
  p:
    backends: [{{url: "{url_of(dead)}", weight: 1000}}, {{url: "{well.url}", max_in_flight: 1}}]
    health: {{interval: 0}}
"""
        well.gate = asyncio.Event()
        async with running_proxy(tmp_path, settings) as proxy:
            asking = [asyncio.create_task(proxy.ask(f"How tall is tower {number}?")) for number in range(4)]
            await until(lambda: pools_of(proxy)["p"]["queue"]["waiting"] == 3)
            well.gate.set()
            assert [reply.verdict for reply in await asyncio.gather(*asking)] == ["miss"] * 4


# After the first byte


async def test_a_stream_that_breaks_is_visibly_broken_for_the_openai_sdk_and_not_begun_anew(tmp_path: Path) -> None:
    async with models(2) as [first, second]:
        first.cut_after_events = 3
        async with running_proxy(tmp_path, one_pool(first, second)) as proxy:
            with pytest.raises((openai.APIError, openai.APIConnectionError)):
                await proxy.ask("What is a monad?", stream=True)
            assert (first.requests, second.requests) == (1, 0)
            await proxy.landed()
            assert proxy.app.pipeline.stored == 0
            await until(lambda: is_idle(proxy))


async def test_a_stream_that_breaks_is_visibly_broken_for_the_anthropic_sdk(tmp_path: Path) -> None:
    begin = {"id": "msg_1", "type": "message", "role": "assistant", "model": "small", "content": []}
    begin |= {"stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 1}}
    events = [
        {"type": "message_start", "message": begin},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Four"}},
    ]
    pieces = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    cut = chunked(*pieces, end=False)
    head = Send(cut.raw.replace(b"Transfer", b"Content-Type: text/event-stream\r\nTransfer", 1))
    read = asyncio.Event()
    async with ScriptedUpstream([[Expect(), head, Wait(read), Reset()]]) as dying, ScriptedUpstream(SORRY) as other:
        async with running_proxy(tmp_path, one_pool(dying, other)) as proxy:
            async with anthropic.AsyncAnthropic(
                base_url=proxy.url.removesuffix("/v1"), api_key="k", max_retries=0
            ) as client:
                said = ""
                with pytest.raises((anthropic.APIError, anthropic.APIConnectionError)):
                    async with client.messages.stream(
                        model="small", max_tokens=9, messages=[{"role": "user", "content": "How long?"}]
                    ) as stream:
                        async for text in stream.text_stream:
                            said += text
                            read.set()
                assert said == "Four"
                assert other.requests == []


# To another model


TO_ANOTHER = """
pools:
  a: {{backends: [{{url: "{a}"}}], health: {{interval: 0}}}}
  b: {{backends: [{{url: "{b}"}}], health: {{interval: 0}}}}
routes:
  - models: [other]
    pools: [b]
  - pools: {pools}
"""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallbacks_answer_belongs_to_the_fallbacks_model(tmp_path: Path, stream: bool) -> None:
    async with models(2) as [a, b]:
        a.status, a.error_headers = 503, {}
        settings = TO_ANOTHER.format(a=a.url, b=b.url, pools="[a, {pool: b, model: other}]")
        async with running_proxy(tmp_path, settings) as proxy:
            question = "Where is the parcel that I ordered last week?"
            first = await proxy.ask(question, stream=stream)
            assert (first.verdict, b.bodies[0]["model"]) == ("miss", "other")
            await proxy.landed()
            assert (await proxy.ask(question, model="other")).verdict == "hit"
            near = await proxy.ask("Where is the parcel I ordered last week?", model="other")
            assert (near.verdict, near.text.strip()) == ("hit", first.text.strip())
            a.status = 200
            own = await proxy.ask(question)
            assert (own.verdict, len(a.bodies), a.bodies[-1]["model"]) == ("miss", 2, "small")
            assert (await proxy.ask(question)).text == own.text
            assert (await proxy.ask(question, model="other")).text.strip() == first.text.strip()


async def test_the_answer_of_the_model_that_was_named_is_not_kept_under_the_preferred_one(tmp_path: Path) -> None:
    async with models(2) as [a, b]:
        a.status, a.error_headers = 503, {}
        settings = TO_ANOTHER.format(a=a.url, b=b.url, pools="[{pool: a, model: big}, b]")
        async with running_proxy(tmp_path, settings) as proxy:
            assert (await proxy.ask("What is a monad?")).text == "answer 1 to: What is a monad?"
            assert (a.bodies[0]["model"], b.bodies[0]["model"]) == ("big", "small")
            a.status = 200
            again = await proxy.ask("What is a monad?")
            assert (again.verdict, len(a.bodies), a.bodies[-1]["model"]) == ("miss", 2, "big"), (
                "the small one's answer is not big's"
            )
            assert (await proxy.ask("What is a monad?")).verdict == "hit"


DIALECTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "responses": (
        "openai",
        "/v1/responses",
        {"model": "small", "input": "How long?", "store": False},
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "other",
            "output": [
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "Four days.", "annotations": []}],
                }
            ],
            "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        },
    ),
    "messages": (
        "anthropic",
        "/v1/messages",
        {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "How long?"}]},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "other",
            "content": [{"type": "text", "text": "Four days."}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 2},
        },
    ),
    "ollama": (
        "ollama",
        "/api/chat",
        {"model": "small", "stream": False, "messages": [{"role": "user", "content": "How long?"}]},
        {
            "model": "other",
            "created_at": "2026-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": "Four days."},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 3,
            "eval_count": 2,
        },
    ),
    "azure": (
        "azure",
        "/openai/deployments/small/chat/completions?api-version=2024-10-21",
        {"messages": [{"role": "user", "content": "How long?"}]},
        {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "other",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Four days."}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        },
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_fallback_to_another_model_in_every_dialect(tmp_path: Path, name: str) -> None:
    dialect, path, asked, answered = DIALECTS[name]
    own = {**answered, "model": "small"}
    said = answer(json.dumps(answered).encode(), "Content-Type: application/json")
    said_itself = answer(json.dumps(own).encode(), "Content-Type: application/json")
    down = SORRY[0][:2]
    async with ScriptedUpstream([[*down, Expect(), said_itself]]) as a, ScriptedUpstream([[Expect(), said] * 3]) as b:
        settings = f"""
pools:
  a: {{backends: [{{url: "http://127.0.0.1:{a.port}", dialect: {dialect}}}], health: {{interval: 0}}}}
  b: {{backends: [{{url: "http://127.0.0.1:{b.port}", dialect: {dialect}}}], health: {{interval: 0}}}}
routes: [{{models: [other], pools: [b]}}, {{pools: [a, {{pool: b, model: other}}]}}]
"""
        async with running_proxy(tmp_path, settings) as proxy, aiohttp.ClientSession() as session:

            async def ask(model: str) -> tuple[int, str]:
                url = proxy.url.removesuffix("/v1") + path.replace("small", model)
                body = {**asked, "model": model} if "model" in asked else asked
                async with session.post(url, json=body) as response:
                    assert b"Four days." in await response.read()
                    return response.status, response.headers["Cache-Status"]

            status, told = await ask("small")
            assert (status, "hit" in told) == (200, False)
            [sent] = b.requests
            assert "other" in (sent.line if dialect == "azure" else sent.body.decode())
            assert "hit" in (await ask("other"))[1]
            assert "hit" not in (await ask("small"))[1], "the first model is back, and asked itself"
            assert "hit" in (await ask("small"))[1]
            assert (len(a.requests), len(b.requests)) == (2, 1)


async def test_a_routes_alias_and_a_backends_own_name_go_over_with_a_failover(tmp_path: Path) -> None:
    async with models(2) as [a, b]:
        a.status = 500
        settings = f"""
pools:
  p:
    backends:
      - {{url: "{a.url}", weight: 1000, models: {{llama: llama-a}}}}
      - {{url: "{b.url}", models: {{llama: llama-b}}}}
    health: {{interval: 0}}
routes: [{{models: [default], model: llama}}, {{models: [llama]}}]
"""
        async with running_proxy(tmp_path, settings) as proxy:
            assert (await proxy.ask("What is a monad?", model="default")).verdict == "miss"
            assert (a.bodies[0]["model"], b.bodies[0]["model"]) == ("llama-a", "llama-b")
            assert (await proxy.ask("What is a monad?", model="llama")).verdict == "hit", "the alias is the same model"


# A full outage


async def test_in_a_full_outage_backends_get_a_fifth_more_than_was_asked_and_come_back(tmp_path: Path) -> None:
    async with models(2) as [a, b]:
        a.status = b.status = 500
        a.error_headers = b.error_headers = {}
        async with running_proxy(tmp_path, one_pool(a, b, more="")) as proxy:

            async def ask(number: int) -> int:
                try:
                    await proxy.ask(f"How tall is tower {number}?")
                except openai.InternalServerError as error:
                    return error.status_code
                return 200

            seen = Counter([await ask(number) for number in range(150)])
            assert set(seen) == {500}
            assert a.requests + b.requests <= 1.2 * 150
            states = {state["state"] for state in pools_of(proxy)["p"]["backends"].values()}
            assert states <= {"open", "half-open"}
            a.status = b.status = 200
            assert Counter([await ask(number) for number in range(150, 160)]) == {200: 10}, "in panic all are tried"
            states = {state["state"] for state in pools_of(proxy)["p"]["backends"].values()}
            assert "well" in states


# Hedging


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hedge_is_one_answer_and_one_entry_and_costs_a_prompt_more(tmp_path: Path, stream: bool) -> None:
    async with models() as [quick], ScriptedUpstream(SILENT) as slow:
        route = "{hedge: {after: 20ms, budget: 1.0}}"
        async with running_proxy(tmp_path, one_pool(slow, quick, route=route)) as proxy:
            replies = await asyncio.gather(*(proxy.ask("What is a monad?", stream=stream) for _ in range(10)))
            assert Counter(reply.verdict for reply in replies) == {"miss": 1, "coalesced": 9}
            await slow.closed.wait()
            await proxy.landed()
            assert (proxy.app.pipeline.stored, proxy.app.dispatcher.hedges, quick.requests) == (1, 1, 1)
            await until(lambda: is_idle(proxy))
            await proxy.app.meter.drain()
            (spent,) = (spent for (_, source), spent in proxy.app.ledger.totals.items() if source == "fetched")
            assert (spent.requests, spent.estimated, spent.completion_tokens) == (2, 1, 22)


async def test_a_hedge_of_which_both_fail_is_an_error_and_gives_all_places_back(tmp_path: Path) -> None:
    go = asyncio.Event()
    late: list[list[Step]] = [[Expect(), Wait(go), answer(b"{}", status="500 Oops")]]
    async with ScriptedUpstream(late) as one, ScriptedUpstream(late) as other:
        route = "{hedge: {after: 10ms, budget: 1.0}, retry: {attempts: 2}}"
        async with running_proxy(tmp_path, one_pool(one, other, route=route)) as proxy:
            asking = asyncio.create_task(proxy.ask("What is a monad?"))
            await until(lambda: one.requests and other.requests)
            go.set()
            with pytest.raises(openai.InternalServerError):
                await asking
            await until(lambda: is_idle(proxy))


# Stale answers for want of a backend

STALE = "{cache: {ttl: 60s, grace: 10s, stale_if_error: 1h}}"


async def test_with_all_backends_down_an_old_answer_is_given_within_stale_if_error_and_no_longer(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with models() as [model]:
        async with running_proxy(tmp_path, one_pool(model, route=STALE), clock=clock) as proxy:
            fresh = await proxy.ask("What is a monad?")
            model.status = 503
            model.error_headers = {}
            clock.advance(600)
            for stream in (False, True):
                old = await proxy.ask("What is a monad?", stream=stream)
                assert (old.verdict, old.text.strip()) == ("stale", fresh.text.strip())
                assert "; ttl=-540" in old.cache_status
            assert model.requests == 3, "one attempt for each, and no refresh besides"
            with pytest.raises(openai.InternalServerError):
                await proxy.ask("What is a monad?", headers={"Cache-Control": "max-stale=100"})
            with pytest.raises(openai.InternalServerError) as refused:
                await proxy.ask("What is a monad?", headers={"Cache-Control": "only-if-cached"})
            assert refused.value.code == "not_cached"
            model.status = 400
            with pytest.raises(openai.BadRequestError):
                await proxy.ask("What is a monad?")
            model.status = 503
            clock.advance(3600)
            with pytest.raises(openai.InternalServerError):
                await proxy.ask("What is a monad?")


async def test_with_the_breaker_open_an_old_answer_costs_the_backend_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with models() as [model]:
        async with running_proxy(tmp_path, one_pool(model, route=STALE), clock=clock) as proxy:
            await proxy.ask("What is a monad?")
            model.status = 500
            clock.advance(600)
            for number in range(5):
                with pytest.raises(openai.InternalServerError):
                    await proxy.ask(f"How tall is tower {number}?")
            assert pools_of(proxy)["p"]["backends"]["p[0]"]["state"] == "open"
            before = model.requests
            for _ in range(20):
                assert (await proxy.ask("What is a monad?")).verdict == "stale"
            assert model.requests == before
            clock.advance(-540)  # within its grace it is given at once, and the refresh asks nobody either
            for _ in range(20):
                assert (await proxy.ask("What is a monad?")).verdict in ("hit", "stale")
            await proxy.landed()
            assert model.requests == before

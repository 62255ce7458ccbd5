"""Ollama's own client in front of the real proxy: but for the time saved it must not notice that there is one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from aiohttp import web

from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy
from tests.recordings_ollama import CALLS, STOP, Json, added_up, dumps

ASKED = [{"role": "user", "content": "How long does a parcel take?"}]
NEAR = [{"role": "user", "content": "How long does a parcel really take?"}]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
OTHERS: dict[str, Json] = {
    "/api/tags": {"models": [{"name": "tiny", "model": "tiny", "size": 1}]},
    "/api/ps": {"models": []},
    "/api/show": {"model_info": {"general.parameter_count": 7}, "capabilities": ["completion"]},
    "/api/version": {"version": "0.12.6"},
    "/api/pull": {"status": "success"},
}


class OllamaServer(ModelServer):
    """Answers "answer 3 to: ..." in words, a line each; with tools it calls one, and thinks when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.error_body = b'{"error":"try again later"}'
        self.done_reason = "stop"
        self.closes = False  # delimit streams by the connection's end
        self.error_line: str | None = None  # the stream breaks with this after two lines

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        if request.path in OTHERS:
            return web.json_response(OTHERS[request.path])
        body = json.loads(await request.read())
        self.bodies.append(body)
        if self.status != 200:
            return web.Response(
                body=self.error_body, status=self.status, headers=self.error_headers, content_type="application/json"
            )
        endpoint = request.path.removeprefix("/api/")
        if not body.get("messages") and not body.get("prompt"):
            loaded = {"model": body["model"], "response": "", "done": True, "done_reason": "load"}
            return web.json_response({**loaded, "message": {"role": "assistant", "content": ""}})
        lines = [*self._lines(endpoint, body)]
        if body.get("stream") is False:
            return web.Response(body=dumps(added_up(endpoint, lines)), content_type="application/json", charset="utf-8")
        return await self._stream_lines(request, lines)

    def _lines(self, endpoint: str, body: Json) -> Iterator[Json]:
        asked = body["messages"][-1]["content"] if endpoint == "chat" else body["prompt"]
        text = f"answer {len(self.bodies)} to: {asked}"
        if body.get("format"):
            text = json.dumps({"answer": text})
        said: list[Json] = [{"thinking": word} for word in ("Hm, ", "so.") if body.get("think")]
        if body.get("tools"):
            said.append({"tool_calls": CALLS})
        else:
            said += [{"content": word + " "} for word in text.split(" ")]
        for one in said:
            yield self._line(endpoint, body, one, {"done": False})
        state = {"context": [1, 2]} if endpoint == "generate" else {}
        yield self._line(endpoint, body, {}, {"done": True, **STOP, "done_reason": self.done_reason, **state})

    def _line(self, endpoint: str, body: Json, said: Json, rest: Json) -> Json:
        head = {"model": body["model"], "created_at": "2026-03-04T05:06:07.089Z"}
        if endpoint == "chat":
            return {**head, "message": {"role": "assistant", "content": "", **said}, **rest}
        said = {"content": "", **said}
        return {**head, "response": said.pop("content"), **said, **rest}

    async def _stream_lines(self, request: web.Request, lines: list[Json]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        if self.closes:
            response.force_close()
            response.headers["Connection"] = "close"
        await response.prepare(request)
        for number, line in enumerate(lines):
            if number == 2 and self.error_line:
                await response.write(dumps({"error": self.error_line}) + b"\n")
                break
            if number == self.cut_after_events:
                assert request.transport is not None
                await response.write(dumps(line)[:10])
                request.transport.close()
                return response
            await response.write(dumps(line) + b"\n")
            if self.gate is not None and number == 1:
                await self.gate.wait()
        await response.write_eof()
        return response


@asynccontextmanager
async def proxied(folder: Path, settings: str = "", **headers: str) -> AsyncIterator[tuple[Proxy, OllamaServer, Any]]:
    """A proxy before one Ollama, and Ollama's client before the proxy."""
    server = OllamaServer()
    async with running_proxy(folder, settings, backend=server) as proxy:
        async with client_of(proxy, **headers) as client:
            yield proxy, server, client


def client_of(proxy: Proxy, **headers: str) -> ollama.AsyncClient:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ollama.AsyncClient(host=proxy.url.removesuffix("/v1"), headers=named, trust_env=False)


async def text_of(answer: Any) -> str:
    if isinstance(answer, ollama.ChatResponse):
        return answer.message.content or ""
    if isinstance(answer, ollama.GenerateResponse):
        return answer.response or ""
    return "".join([await text_of(part) async for part in answer])


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("other", [False, True])
async def test_a_chat_is_answered_once_in_either_form(tmp_path: Path, form: bool, other: bool) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        first = await text_of(await client.chat("tiny", ASKED, stream=form))
        await proxy.landed()
        assert await text_of(await client.chat("tiny", ASKED, stream=other)) == first
        assert first.strip() == f"answer 1 to: {ASKED[0]['content']}"
        assert await text_of(await client.chat("tiny", NEAR, stream=other)) == first  # the same question
        assert server.requests == 1


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("other", [False, True])
async def test_a_completion_is_answered_once_in_either_form(tmp_path: Path, form: bool, other: bool) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        first = await text_of(await client.generate("tiny", "One?", stream=form))
        await proxy.landed()
        assert await text_of(await client.generate("tiny", "One?", stream=other)) == first
        assert first.strip() == "answer 1 to: One?"
        assert server.requests == 1
        if not other:
            assert (await client.generate("tiny", "One?")).context == [1, 2]


async def test_the_plain_client_too(tmp_path: Path) -> None:
    def ask(host: str) -> list[str]:
        with ollama.Client(host=host, trust_env=False) as client:
            whole = [client.chat("tiny", ASKED).message.content, client.generate("tiny", "One?").response]
            parts = client.chat("tiny", ASKED, stream=True)
            return [text or "" for text in (*whole, "".join(part.message.content or "" for part in parts))]

    async with proxied(tmp_path) as (proxy, server, _):
        chat, generate, streamed = await asyncio.to_thread(ask, proxy.url.removesuffix("/v1"))
        assert chat == streamed != generate
        assert server.requests == 2


async def test_a_hit_has_every_member_and_a_time_of_its_own(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        miss = [part async for part in await client.chat("tiny", ASKED, stream=True, think=True)]
        await proxy.landed()
        hit = [part async for part in await client.chat("tiny", ASKED, stream=True, think=True)]
        assert {part.created_at for part in hit} == {"2027-01-15T08:00:00Z"}
        assert [part.model_copy(update={"created_at": None}) for part in hit] == [
            part.model_copy(update={"created_at": None}) for part in miss
        ]
        whole = await client.chat("tiny", ASKED, think=True)
        assert whole.message.thinking == "Hm, so."
        assert (whole.done_reason, whole.eval_count) == ("stop", STOP["eval_count"])
        assert server.requests == 1


async def test_what_is_streamed_says_what_it_is(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, _, _client), httpx.AsyncClient(trust_env=False) as http:
        url = proxy.url.removesuffix("/v1") + "/api/chat"
        for detail in ("miss", "hit"):
            stream = await http.post(url, json={"model": "tiny", "messages": ASKED})  # a stream comes unasked
            assert stream.headers["content-type"].startswith("application/x-ndjson")
            assert detail in stream.headers["cache-status"]
            await proxy.landed()
        body = await http.post(url, json={"model": "tiny", "messages": ASKED, "stream": False, "keep_alive": "1h"})
        assert body.headers["content-type"] == "application/json; charset=utf-8"
        assert "hit" in body.headers["cache-status"]


async def test_followers_in_the_other_form_share_a_fetch(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        server.gate = asyncio.Event()
        asked = [asyncio.ensure_future(client.chat("tiny", ASKED, stream=stream)) for stream in (True, False, True)]
        stream, body, other = asked
        first = await anext(await stream)
        async with asyncio.timeout(10):
            while server.requests < 1 or not other.done():
                await asyncio.sleep(0)
        server.gate.set()
        rest = await text_of(await stream)
        text = (first.message.content or "") + rest
        assert await text_of(await body) == text
        assert await text_of(await other) == text
        assert server.requests == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"think": True},
        {"format": "json"},
        {"format": {"type": "object", "properties": {"answer": {"type": "string"}}}},
        {"options": {"seed": 7}},
    ],
)
async def test_what_is_asked_otherwise_is_another_answer(tmp_path: Path, asked: dict[str, Any]) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        plain = await client.chat("tiny", ASKED)
        special = await client.chat("tiny", ASKED, **asked)
        assert special.message != plain.message
        assert (await client.chat("tiny", ASKED, **asked)).message == special.message
        await proxy.landed()
        assert server.requests == 2
        if "format" in asked:
            assert json.loads(special.message.content or "")["answer"].startswith("answer 2")


async def test_tool_calls_are_kept_where_that_is_allowed(tmp_path: Path) -> None:
    for folder, settings, requests in (("no", "", 2), ("yes", "cache: {store_tools: true}", 1)):
        (tmp_path / folder).mkdir()
        async with proxied(tmp_path / folder, settings) as (proxy, server, client):
            for stream in (True, False):
                answer = await client.chat("tiny", ASKED, tools=[TOOL], stream=stream)
                parts = [part async for part in answer] if stream else [answer]
                calls = [call for part in parts for call in part.message.tool_calls or ()]
                assert [call.function.name for call in calls] == ["find_parcel", "now"]
                assert calls[0].function.arguments == {"number": 12, "city": "Ålesund"}
                await proxy.landed()
            assert server.requests == requests


async def test_loading_a_model_always_reaches_the_server(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        for _ in range(2):
            assert (await client.generate("tiny")).done_reason == "load"
            assert (await client.chat("tiny", [], keep_alive=0)).done_reason == "load"
            assert [part.done_reason async for part in await client.chat("tiny", [], stream=True)] == ["load"]
        assert server.requests == 6


async def test_an_answer_cut_at_its_length_is_not_kept(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.done_reason = "length"
        for _ in range(2):
            assert (await client.chat("tiny", ASKED)).done_reason == "length"
            await proxy.landed()
        assert server.requests == 2


@pytest.mark.parametrize(
    ("wish", "requests"),
    [("no-store", 2), ("no-cache", 2), ("max-age=1", 2), ("max-age=100", 1), ("only-if-cached", 1)],
)
async def test_wishes_about_the_cache_are_heard(tmp_path: Path, wish: str, requests: int) -> None:
    async with proxied(tmp_path) as (proxy, server, client), client_of(proxy, cache_control=wish) as wishing:
        await client.chat("tiny", ASKED)
        proxy.clock.advance(10)
        await wishing.chat("tiny", ASKED)
        assert server.requests == requests


async def test_the_other_paths_pass_through(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        assert [model.model for model in (await client.list()).models] == ["tiny"]
        assert list((await client.ps()).models) == []
        assert (await client.show("tiny")).capabilities == ["completion"]
        assert server.paths == ["/api/tags", "/api/ps", "/api/show"]
        with pytest.raises(ollama.ResponseError) as caught:  # nobody has said that there is an Ollama
            await client.pull("tiny")
        assert caught.value.status_code == 404
        assert "dialect: ollama" in caught.value.error
        assert len(server.paths) == 3


async def test_a_backend_that_is_an_ollama_gets_everything(tmp_path: Path) -> None:
    server = OllamaServer()
    async with server.running():
        root = server.url.removesuffix("/v1")
        for number, url in enumerate((root, root + "/api")):
            settings = f'pools: {{near: {{backends: [{{url: "{url}", dialect: ollama}}]}}}}'
            (tmp_path / str(number)).mkdir()
            async with running_proxy(tmp_path / str(number), settings) as proxy, client_of(proxy) as client:
                assert (await client.pull("tiny")).status == "success"
                assert await text_of(await client.generate("tiny", "One?", stream=True))
        assert server.paths == ["/api/pull", "/api/generate"] * 2


# Errors


async def failure(client: Any, **asked: Any) -> ollama.ResponseError:
    """What the client raises, however it asks."""
    raised = []
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            await text_of(await client.chat("tiny", ASKED, stream=stream, **asked))
        raised.append(caught.value)
    assert raised[0].status_code == raised[1].status_code
    assert raised[0].error == raised[1].error
    return raised[0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_an_error_of_the_server_is_relayed_as_it_is(tmp_path: Path, status: int) -> None:
    async with proxied(tmp_path) as (_, server, client):
        server.status = status
        error = await failure(client)
        assert (error.status_code, error.error) == (status, "try again later")


@pytest.mark.parametrize(
    ("settings", "headers", "status", "message"),
    [
        ("", {"semcache_control": "tier=7"}, 400, "Semcache-Control: the value of `tier` is not allowed"),
        ("tenants: [{name: shop, keys: [secret]}]", {"authorization": "Bearer wrong"}, 401, ""),
        ('routes: [{models: ["large"]}]', {}, 404, "no route serves the model 'tiny'"),
        ("server: {max_body: 50}", {}, 413, ""),
        ("", {"content_encoding": "br"}, 415, ""),
        ("", {"cache_control": "only-if-cached"}, 504, ""),
    ],
)
async def test_a_refusal_is_an_error_of_ollamas_own_kind(
    tmp_path: Path, settings: str, headers: dict[str, str], status: int, message: str
) -> None:
    async with proxied(tmp_path, settings, **headers) as (_, server, client):
        error = await failure(client)
        assert error.status_code == status
        assert error.error.startswith(message)
        assert not error.error.startswith("{")  # the message alone
        assert server.requests == 0


async def test_bad_requests_are_told_what_is_wrong(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, _), httpx.AsyncClient(trust_env=False) as http:
        url = proxy.url.removesuffix("/v1") + "/api/generate"
        reply = await http.post(url, content=b'{"model":"tiny","prompt":["x"]}')
        assert (reply.status_code, reply.json()) == (
            400,
            {"error": "Invalid 'prompt': expected a string, got an array."},
        )
        reply = await http.post(url, content=b'{"model":')
        assert reply.status_code == 400
        assert set(reply.json()) == {"error"}
        assert server.requests == 0


async def test_a_server_that_is_not_there_is_a_502(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        settings = f'pools: {{near: {{backends: [{{url: "http://127.0.0.1:{port}", dialect: ollama}}]}}}}'
        async with running_proxy(tmp_path, settings) as proxy, client_of(proxy) as client:
            assert (await failure(client)).status_code == 502


async def test_a_server_that_says_nothing_is_a_504(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        backends = f'backends: [{{url: "http://127.0.0.1:{port}", dialect: ollama}}]'
        settings = f"pools: {{near: {{first_byte: 0.2, {backends}}}}}"
        async with running_proxy(tmp_path, settings) as proxy, client_of(proxy) as client:
            assert (await failure(client)).status_code == 504


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("after", [1, 3])
async def test_a_stream_that_was_cut_raises_and_is_not_kept(tmp_path: Path, closes: bool, after: int) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.cut_after_events, server.closes = after, closes
        parts = []
        with pytest.raises(ollama.ResponseError):
            async for part in await client.chat("tiny", ASKED, stream=True):
                parts.append(part)
        assert len(parts) == after
        await proxy.landed()
        server.cut_after_events = None
        assert (await client.chat("tiny", ASKED)).message.content.startswith("answer 2")
        assert server.requests == 2


async def test_an_error_inside_a_stream_raises_and_is_not_kept(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.error_line = "the model runner has gone"
        with pytest.raises(ollama.ResponseError, match="the model runner has gone"):
            await text_of(await client.chat("tiny", ASKED, stream=True))
        await proxy.landed()
        server.error_line = None
        assert (await client.chat("tiny", ASKED)).message.content.startswith("answer 2")

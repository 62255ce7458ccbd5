"""Anthropic's own SDK in front of the real proxy: but for the time saved it must not notice that there is one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from aiohttp import web

from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.recordings_anthropic import Json, added_up, call, dumps, framed, message, text, thought

ASKED: Any = [{"role": "user", "content": "How long does a parcel take?"}]
NEAR: Any = [{"role": "user", "content": "How long does a parcel really take?"}]
TOOL: Any = {"name": "track", "description": "Find a parcel.", "input_schema": {"type": "object", "properties": {}}}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search"}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
OTHERS: dict[str, Json] = {
    "/v1/messages/count_tokens": {"input_tokens": 14},
    "/v1/messages/batches": {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"canceled": 0, "errored": 0, "expired": 0, "processing": 1, "succeeded": 0},
        "created_at": "2026-08-01T00:00:00Z",
        "expires_at": "2026-08-02T00:00:00Z",
    },
}


class MessagesServer(ModelServer):
    """Answers "answer 3 to: ..." in words; with tools it calls one until there is a result, and thinks when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.error_body = b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"},"request_id":"r"}'
        self.error_headers = {"retry-after": "7", "request-id": "req_vendor", "x-should-retry": "false"}
        self.stop_reason = "end_turn"
        self.error_event: Json | None = None  # the stream breaks with this after three events

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.path in OTHERS:
            return web.json_response(OTHERS[request.path])
        body = json.loads(await request.read())
        self.bodies.append(body)
        if self.status != 200:
            return web.Response(
                body=self.error_body, status=self.status, headers=self.error_headers, content_type="application/json"
            )
        events = self._said(body)
        ids = {"request-id": f"req_{len(self.bodies)}"}
        if body.get("stream"):
            return await self._stream_events(request, events, ids)
        if self.gate is not None:
            await self.gate.wait()
        stream = b"".join(framed(event) for event in events)
        return web.Response(body=dumps(added_up(stream)), content_type="application/json", headers=ids)

    def _said(self, body: Json) -> tuple[Json, ...]:
        last = body["messages"][-1]["content"]
        answer = text(*(f"{word} " for word in f"answer {len(self.bodies)} to: {_words_of(last)}".split(" ")))
        blocks = [thought("Hm, ", "so.")] if body.get("thinking") else []
        has_result = isinstance(last, list) and any(block["type"] == "tool_result" for block in last)
        calls = any("input_schema" in tool for tool in body.get("tools") or ()) and not has_result
        if calls:
            blocks.append(call("", '{"number"', ": 12}", number=len(self.bodies)))
        else:
            blocks.append(answer)
        start = {"id": f"msg_{len(self.bodies)}", "model": body["model"]}
        return message(*blocks, stop="tool_use" if calls else self.stop_reason, start=start)

    async def _stream_events(
        self, request: web.Request, events: tuple[Json, ...], ids: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **ids})
        await response.prepare(request)
        for number, event in enumerate(events):
            if number == 3 and self.error_event:
                await response.write(framed(self.error_event))
                break
            if number == self.cut_after_events:
                assert request.transport is not None
                await response.write(framed(event)[:20])
                request.transport.close()
                return response
            await response.write(framed(event))
            if number == 1:
                await response.write(framed({"type": "ping"}))
            if self.gate is not None and number == 2:
                await self.gate.wait()
        await response.write_eof()
        return response


def _words_of(content: Any) -> str:
    return content if isinstance(content, str) else " ".join(block.get("text", block["type"]) for block in content)


@asynccontextmanager
async def proxied(
    folder: Path, settings: str = "", **headers: str
) -> AsyncIterator[tuple[Proxy, MessagesServer, anthropic.AsyncAnthropic]]:
    """A proxy before one vendor, and the vendor's client before the proxy."""
    server = MessagesServer()
    async with running_proxy(folder, settings, backend=server) as proxy, client_of(proxy, **headers) as client:
        yield proxy, server, client


def client_of(proxy: Proxy, key: str = "k", **headers: str) -> anthropic.AsyncAnthropic:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    base = proxy.url.removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=base, api_key=key, default_headers=named, max_retries=0)


async def ask(client: Any, *, stream: bool = False, messages: Any = ASKED, **more: Any) -> Json:
    """What the SDK makes of the answer, however it is asked for."""
    asked = {"model": "claude", "max_tokens": 99, "messages": messages, **more}
    if not stream:
        made = await client.messages.create(**asked)
    else:
        async with client.messages.stream(**asked) as reader:
            made = await reader.get_final_message()
    return {name: value for name, value in made.to_dict(mode="json").items() if name != "parsed_output"}


def text_of(answer: Json) -> str:
    return "".join(block.get("text", "") for block in answer["content"])


def but_id(answer: Json) -> Json:
    return {name: value for name, value in answer.items() if name != "id" and value is not None}


# Missed, and hit


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("other", [False, True])
async def test_a_message_is_fetched_once_for_either_form(
    tmp_path: Path, form: bool, other: bool, thinking: bool
) -> None:
    more = {"thinking": THINKING} if thinking else {}
    async with proxied(tmp_path) as (proxy, server, client):
        first = await ask(client, stream=form, **more)
        await proxy.landed()
        again = await ask(client, stream=other, **more)
        assert but_id(again) == but_id(first)
        assert text_of(first).strip() == f"answer 1 to: {ASKED[0]['content']}"
        assert (first["id"], again["id"][:4]) == ("msg_1", "msg_")
        assert again["id"] != first["id"]
        near = await ask(client, stream=other, messages=NEAR, **more)
        assert but_id(near) == but_id(first)  # the same question
        assert server.requests == 1
        if thinking:
            assert first["content"][0] == {"type": "thinking", "thinking": "Hm, so.", "signature": "EqQBCgIYAhIM/+=="}


async def test_the_plain_client_too(tmp_path: Path) -> None:
    def ask_plainly(base: str) -> list[Any]:
        with anthropic.Anthropic(base_url=base, api_key="k", max_retries=0) as client:
            whole = client.messages.create(model="claude", max_tokens=99, messages=ASKED)
            with client.messages.stream(model="claude", max_tokens=99, messages=ASKED) as stream:
                pieces = list(stream.text_stream)
                streamed = stream.get_final_message()
            beta = client.beta.messages.create(model="claude", max_tokens=99, messages=ASKED, betas=["x-2026-01-01"])
            assert "".join(pieces) == streamed.content[0].text  # type: ignore[union-attr]
            assert len(pieces) > 5
            return [answer.content[0].text for answer in (whole, streamed, beta)]  # type: ignore[union-attr]

    async with proxied(tmp_path) as (proxy, server, _):
        whole, streamed, beta = await asyncio.to_thread(ask_plainly, proxy.url.removesuffix("/v1"))
        assert whole == streamed != beta
        assert server.paths == ["/v1/messages"] * 2
        assert server.headers[1]["anthropic-beta"] == "x-2026-01-01"


async def test_events_as_they_come_are_the_same_from_a_fetch_and_from_the_store(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        seen = []
        for _ in range(2):
            events = await client.messages.create(model="claude", max_tokens=99, messages=ASKED, stream=True)
            seen.append([event.to_dict() async for event in events])
            await proxy.landed()
        (start, *rest), (started, *again) = seen
        assert rest == again
        assert but_id(start["message"]) == but_id(started["message"])  # type: ignore[arg-type]
        assert server.requests == 1


async def test_headers_tell_what_it_is_and_whose(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, _, client):
        for stream, kind in ((False, "application/json"), (True, "text/event-stream; charset=utf-8")):
            raw = await client.messages.with_raw_response.create(
                model="claude", max_tokens=99, messages=ASKED, stream=stream
            )
            assert raw.headers["content-type"] == kind
            assert raw.headers["cache-status"].startswith("semcache; hit" if stream else "semcache; fwd=miss")
            assert (raw.headers.get("request-id") == "req_1") is not stream
            await proxy.landed()


async def test_followers_in_the_other_form_share_a_fetch(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        server.gate = asyncio.Event()
        asked = [asyncio.ensure_future(ask(client, stream=stream)) for stream in (True, False, True)]
        await until(lambda: server.requests == 1)
        for _ in range(1000):  # whoever wants to fetch for himself has had the time to
            await asyncio.sleep(0)
        server.gate.set()
        first, second, third = await asyncio.gather(*asked)
        assert but_id(first) == but_id(second) == but_id(third)
        assert server.requests == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"thinking": THINKING},
        {"system": "Be brief."},
        {"max_tokens": 98},
        {"extra_headers": {"anthropic-beta": "x-2026-01-01"}},
        {"extra_headers": {"anthropic-version": "2099-01-01"}},
        {"extra_query": {"beta": "true"}},
        {"extra_body": {"of_tomorrow": 1}},
    ],
)
async def test_what_is_asked_otherwise_is_another_answer(tmp_path: Path, asked: dict[str, Any]) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        plain = await ask(client)
        special = await ask(client, **asked)
        assert text_of(special) != text_of(plain)
        assert text_of(await ask(client, **asked)) == text_of(special)
        await proxy.landed()
        assert server.requests == 2


async def test_hints_and_the_end_user_change_nothing(tmp_path: Path) -> None:
    def of(user: str, **hint: Any) -> Json:
        block = {"type": "text", "text": "Where is the parcel?", **hint}
        return {
            "messages": [{"role": "user", "content": [block]}],
            "system": [{"type": "text", "text": "Be brief.", **hint}],
            "metadata": {"user_id": user},
        }

    async with proxied(tmp_path) as (_, server, client):
        first = await ask(client, **of("u-1"))
        hint = {"cache_control": {"type": "ephemeral"}}
        assert but_id(await ask(client, **of("u-2", **hint), **hint)) == but_id(first)
        assert server.requests == 1
        await ask(client, messages=ASKED)
        assert server.bodies[0]["metadata"] == {"user_id": "u-1"}


async def test_a_client_that_leaves_out_the_version_is_judged_upstream(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, _), httpx.AsyncClient(trust_env=False) as http:
        body = {"model": "claude", "max_tokens": 99, "messages": ASKED}
        reply = await http.post(f"{proxy.url}/messages", json=body, headers={"x-api-key": "k"})
        assert (reply.status_code, server.requests) == (200, 1)
        assert "anthropic-version" not in server.headers[0]


# Tools


@anthropic.beta_async_tool(name="track", description="Find a parcel.")
async def track(number: int) -> str:
    return f"parcel {number} is in Oslo"


@pytest.mark.parametrize(("settings", "requests"), [("", 4), ("cache: {store_tools: true}", 2)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_of_tools_is_replayed_where_that_is_allowed(
    tmp_path: Path, settings: str, requests: int, stream: bool
) -> None:
    async with proxied(tmp_path, settings) as (proxy, server, client):
        told = []
        for _ in range(2):
            runner: Any = client.beta.messages.tool_runner(
                model="claude", max_tokens=99, messages=list(ASKED), tools=[track], thread=False, stream=stream
            )
            if stream:
                async for part in runner:
                    last = await part.get_final_message()
            else:
                last = await runner.until_done()
            told.append(last.content[0].text)
            await proxy.landed()
        results = [body["messages"][-1]["content"] for body in server.bodies if len(body["messages"]) > 1]
        assert results[0][0]["content"] in ("parcel 12 is in Oslo", [{"type": "text", "text": "parcel 12 is in Oslo"}])
        assert server.requests == requests
        assert (told[0] == told[1]) is (requests == 2)


async def test_a_conversation_that_the_vendor_holds_is_never_answered_from_the_store(tmp_path: Path) -> None:
    async with proxied(tmp_path, "cache: {store_tools: true}") as (proxy, server, client):
        for _ in range(2):
            raw = await client.beta.messages.with_raw_response.create(
                model="claude", max_tokens=99, messages=ASKED, thread={"type": "create"}
            )
            assert raw.headers["cache-status"] == "semcache; fwd=bypass; fwd-status=200; detail=state"
            await proxy.landed()
        assert server.requests == 2


@pytest.mark.parametrize("tools", [[SEARCH], [TOOL, SEARCH]])
async def test_what_the_vendors_own_tools_brought_is_never_kept(tmp_path: Path, tools: list[Any]) -> None:
    async with proxied(tmp_path, "cache: {store_tools: true}") as (proxy, server, client):
        for _ in range(2):
            await ask(client, tools=tools)
            await proxy.landed()
        assert server.requests == 2


@pytest.mark.parametrize(
    "stop", ["max_tokens", "refusal", "pause_turn", "model_context_window_exceeded", "tired", None]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_did_not_end_by_itself_is_not_kept(tmp_path: Path, stop: Any, stream: bool) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.stop_reason = stop
        for _ in range(2):
            assert (await ask(client, stream=stream)).get("stop_reason") == stop
            await proxy.landed()
        assert server.requests == 2


# Wishes, and paths that pass through


@pytest.mark.parametrize(
    ("wish", "requests"),
    [("no-store", 2), ("no-cache", 2), ("max-age=1", 2), ("max-age=100", 1), ("only-if-cached", 1)],
)
async def test_wishes_about_the_cache_are_heard(tmp_path: Path, wish: str, requests: int) -> None:
    async with proxied(tmp_path) as (proxy, server, client), client_of(proxy, cache_control=wish) as wishing:
        await ask(client)
        proxy.clock.advance(10)
        await ask(wishing)
        assert server.requests == requests


async def test_counting_and_batches_pass_through(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        for _ in range(2):
            counted = await client.messages.with_raw_response.count_tokens(model="claude", messages=ASKED)
            assert counted.headers["cache-status"] == "semcache; fwd=bypass; fwd-status=200; detail=endpoint"
            assert (await counted.parse()).input_tokens == 14
        batch = await client.messages.batches.create(
            requests=[{"custom_id": "a", "params": {"model": "claude", "max_tokens": 9, "messages": ASKED}}]
        )
        assert batch.processing_status == "in_progress"
        assert server.paths == ["/v1/messages/count_tokens"] * 2 + ["/v1/messages/batches"]
        assert {headers["authorization"] for headers in server.headers} == {"Bearer k"}


# Errors


async def failure(client: anthropic.AsyncAnthropic, **asked: Any) -> anthropic.APIStatusError:
    """What the SDK raises, however it asks."""
    raised: list[anthropic.APIStatusError] = []
    for stream in (False, True):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask(client, stream=stream, **asked)
        raised.append(caught.value)
    one, other = raised
    assert (type(one), one.status_code, one.type, one.api_message) == (
        type(other),
        other.status_code,
        other.type,
        other.api_message,
    )
    return one


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (413, anthropic.APIStatusError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_an_error_of_the_vendor_is_relayed_byte_for_byte(
    tmp_path: Path, status: int, kind: type[anthropic.APIStatusError]
) -> None:
    async with proxied(tmp_path) as (_, server, client):
        server.status = status
        error = await failure(client)
        assert isinstance(error, kind)
        assert error.response.content == server.error_body
        assert (error.status_code, error.api_message, error.request_id) == (status, "slow down", "req_vendor")
        assert (error.response.headers["retry-after"], error.response.headers["x-should-retry"]) == ("7", "false")


@pytest.mark.parametrize(
    ("settings", "headers", "raised", "status", "kind", "told"),
    [
        (
            "",
            {"semcache_control": "tier=7"},
            anthropic.BadRequestError,
            400,
            "invalid_request_error",
            "Semcache-Control: the value of `tier` is not allowed",
        ),
        (
            "tenants: [{name: shop, keys: [secret]}]",
            {},
            anthropic.AuthenticationError,
            401,
            "authentication_error",
            "key",
        ),
        (
            "tenants: [{name: shop, keys: [k], namespaces: [faq]}]",
            {"semcache_control": "namespace=other"},
            anthropic.PermissionDeniedError,
            403,
            "permission_error",
            'this key may not use the namespace "other"',
        ),
        (
            'routes: [{models: ["large"]}]',
            {},
            anthropic.NotFoundError,
            404,
            "not_found_error",
            "no route serves the model 'claude'",
        ),
        ("server: {max_body: 50}", {}, anthropic.APIStatusError, 413, "request_too_large", "larger than 50 bytes"),
        ("", {"content_encoding": "br"}, anthropic.APIStatusError, 415, "invalid_request_error", ""),
        (
            "",
            {"cache_control": "only-if-cached"},
            anthropic.InternalServerError,
            504,
            "timeout_error",
            "nothing stored answers this",
        ),
    ],
)
async def test_a_refusal_is_an_error_of_the_vendors_own_kind(
    tmp_path: Path,
    settings: str,
    headers: dict[str, str],
    raised: type[anthropic.APIStatusError],
    status: int,
    kind: str,
    told: str,
) -> None:
    async with proxied(tmp_path, settings, **headers) as (_, server, client):
        error = await failure(client)
        assert isinstance(error, raised)
        body: Any = error.body
        assert (error.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
        assert told in body["error"]["message"]
        assert server.requests == 0


async def test_a_bad_request_is_told_what_is_wrong(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, server, client):
        for asked, told in [
            ({"messages": []}, "Invalid 'messages': the array is empty."),
            ({"messages": "x"}, "Invalid 'messages': expected an array of objects, got a string."),
            ({"model": ""}, "Invalid 'model': expected a non-empty string, got a string."),
            ({"extra_body": {"stream": 5}}, "Invalid 'stream': expected a boolean, got a number."),
        ]:
            error = await failure(client, **asked)
            assert isinstance(error, anthropic.BadRequestError)
            assert (error.api_message, error.type) == (told, "invalid_request_error")
        assert server.requests == 0


async def test_a_vendor_that_is_not_there_is_a_502(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        settings = f'pools: {{far: {{backends: [{{url: "http://127.0.0.1:{port}", dialect: anthropic}}]}}}}'
        async with running_proxy(tmp_path, settings) as proxy, client_of(proxy) as client:
            error = await failure(client)
            assert (type(error), error.status_code, error.type) == (anthropic.InternalServerError, 502, "api_error")


async def test_a_vendor_that_says_nothing_is_a_504(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        backends = f'backends: [{{url: "http://127.0.0.1:{port}", dialect: anthropic}}]'
        settings = f"pools: {{far: {{first_byte: 0.2, {backends}}}}}"
        async with running_proxy(tmp_path, settings) as proxy, client_of(proxy) as client:
            error = await failure(client)
            assert isinstance(error, anthropic.InternalServerError)
            assert (error.status_code, error.type) == (504, "timeout_error")


@pytest.mark.parametrize("after", [1, 3, 12])
async def test_a_stream_that_was_cut_raises_and_is_not_kept(tmp_path: Path, after: int) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.cut_after_events = after
        with pytest.raises(anthropic.APIError) as caught:
            await ask(client, stream=True)
        assert "broke off" in str(caught.value) or isinstance(caught.value, anthropic.APIStatusError)
        await proxy.landed()
        server.cut_after_events = None
        assert text_of(await ask(client)).startswith("answer 2")
        assert server.requests == 2


async def test_an_error_inside_a_stream_raises_and_is_not_kept(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (proxy, server, client):
        server.error_event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask(client, stream=True)
        assert (caught.value.type, caught.value.api_message) == ("overloaded_error", "Overloaded")
        await proxy.landed()
        server.error_event = None
        assert text_of(await ask(client)).startswith("answer 2")

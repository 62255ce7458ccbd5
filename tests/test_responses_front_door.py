"""The Responses API through the whole proxy, asked by the official SDK and answered by a server on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio import gather
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from pydantic import BaseModel

from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.recordings_responses import RESPONSE, Item, Recording, call, message, refusal, search, text, thoughts

QUESTION = "How many working days does a parcel of the usual size take from Bergen to Oslo?"
NEAR = "How many working days does a parcel of the normal size take from Bergen to Oslo?"
CUT = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


class ResponsesServer(ModelServer):
    """Answers with the items it is told to, else with a text that says which call it is to which question."""

    def __init__(self) -> None:
        super().__init__()
        self.items: tuple[Item, ...] | None = None
        self.ending: dict[str, Any] = {}
        self.methods: list[str] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.methods.append(f"{request.method} {request.raw_path}")
        if not (request.method == "POST" and request.path.endswith("/responses")):
            return await super()._handle(request)
        body = json.loads(await request.read())
        self.bodies.append(body)
        number = len(self.bodies)
        if self.status != 200:
            return web.Response(
                body=self.error_body, status=self.status, headers=self.error_headers, content_type="application/json"
            )
        recording = self._recording(body, number)
        if not body.get("stream"):
            if self.gate is not None:
                await self.gate.wait()
            return web.json_response(recording.body_value, headers=self.response_headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **self.response_headers})
        await response.prepare(request)
        for at, event in enumerate(recording.stream.removesuffix(b"\n\n").split(b"\n\n")):
            if self.cut_after_events == at:
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(event + b"\n\n")
            if self.gate is not None and at == 1:
                await self.gate.wait()
        await response.write_eof()
        return response

    def _recording(self, body: dict[str, Any], number: int) -> Recording:
        given = body.get("input")
        items = self.items
        if items is None:
            if (body.get("text") or {}).get("format", {}).get("type") == "json_schema":
                said = text('{"days"', f":{number}", "}")
            else:
                said = text(f"answer {number}", " to: ", given if isinstance(given, str) else json.dumps(given))
            items = (thoughts(("Hm, ", "well."), id=f"rs_{number}"), message(said, id=f"msg_{number}"))
        echo = {k: body.get(k) for k in ("user", "safety_identifier", "prompt_cache_key", "instructions")}
        echo |= {"metadata": body.get("metadata") or {}, "store": body.get("store", True), "model": body["model"]}
        response = {**RESPONSE, "id": f"resp_up{number}", **echo, "tools": body.get("tools") or [], **self.ending}
        return Recording("live", items, response=response, padding=True)


@dataclass
class Front:
    proxy: Proxy
    server: ResponsesServer

    @property
    def client(self) -> openai.AsyncOpenAI:
        return self.proxy.client

    async def ask(self, given: Any = QUESTION, *, headers: dict[str, str] | None = None, **more: Any) -> Seen:
        """One request; what it showed."""
        await self.proxy.landed()
        raw = await self.client.responses.with_raw_response.create(
            input=given, model="small", extra_headers=headers or {}, **more
        )
        answer = raw.parse()
        if not more.get("stream"):
            return Seen(dict(raw.headers), answer)
        events = [event async for event in answer]
        assert events[-1].type in ("response.completed", "response.incomplete")
        texts = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert texts == events[-1].response.output_text
        return Seen(dict(raw.headers), events[-1].response, events)


@dataclass
class Seen:
    headers: dict[str, str]
    response: Any
    events: list[Any] | None = None

    @property
    def text(self) -> str:
        return str(self.response.output_text)

    @property
    def status(self) -> str:
        """The end of our Cache-Status: "hit", "miss", "bypass state"."""
        told = self.headers["cache-status"]
        detail = re.search(r"detail=([\w-]+)", told)
        if "; hit" in told:
            return "hit"
        fwd = re.search(r"fwd=(\w+)", told)
        assert fwd is not None
        return fwd[1] if fwd[1] == "miss" or not detail else f"{fwd[1]} {detail[1]}"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    server = ResponsesServer()
    async with running_proxy(tmp_path, backend=server) as proxy:
        yield Front(proxy, server)


# Hits


@pytest.mark.parametrize("given", [QUESTION, [{"role": "user", "content": QUESTION}]])
@pytest.mark.parametrize("recorded_as_stream", [False, True])
async def test_one_entry_serves_both_forms(front: Front, given: Any, recorded_as_stream: bool) -> None:
    first = await front.ask(given, stream=recorded_as_stream)
    whole, streamed = await front.ask(given), await front.ask(given, stream=True)
    assert [seen.status for seen in (first, whole, streamed)] == ["miss", "hit", "hit"]
    assert front.server.requests == 1
    assert first.response.to_dict() == whole.response.to_dict() == streamed.response.to_dict()
    assert whole.response.output[0].summary[0].text == "Hm, well."
    assert streamed.events is not None
    assert [event.sequence_number for event in streamed.events] == list(range(len(streamed.events)))
    assert not any("obfuscation" in event.to_dict() for event in streamed.events)


async def test_the_same_question_in_other_words_gets_the_stored_answer(front: Front) -> None:
    first = await front.ask()
    near = await front.ask(NEAR)
    assert "detail=semantic/" in near.headers["cache-status"]
    assert near.text == first.text
    assert (await front.ask("Where do penguins live in winter?")).status == "miss"


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": "Be brief."},
        {"temperature": 0.5},
        {"max_output_tokens": 900},
        {"reasoning": {"effort": "low"}},
        {"store": False},
        {"include": ["reasoning.encrypted_content"]},
    ],
)
async def test_the_context_must_be_equal(front: Front, change: Any) -> None:
    await front.ask()
    assert (await front.ask(**change)).status == "miss"
    assert (await front.ask(**change)).status == "hit"


class Days(BaseModel):
    days: int


def sync_round(url: str) -> list[Any]:
    with openai.OpenAI(base_url=url, api_key="sk-sync", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "small", "input": QUESTION}
        seen: list[Any] = [client.responses.create(**asked).output_text]
        seen.append(
            "".join(e.delta for e in client.responses.create(**asked, stream=True) if "output_text.delta" in e.type)
        )
        with client.responses.stream(**asked) as stream:
            seen.append([event.type for event in stream][-1])
            seen.append(stream.get_final_response().output_text)
        parsed = client.responses.parse(**asked, text_format=Days)
        seen.append(parsed.output_parsed)
        with client.responses.stream(**asked, text_format=Days) as stream:
            seen.append(stream.get_final_response().output_parsed)
        raw = client.responses.with_raw_response.parse(**asked, text_format=Days)
        seen += [raw.parse().output_parsed, "; hit" in raw.headers["cache-status"]]
        return seen


async def test_every_way_of_the_sync_client_works_unchanged(front: Front) -> None:
    for _ in range(2):
        seen = await asyncio.to_thread(sync_round, front.proxy.url)
        said = f"answer 1 to: {QUESTION}"
        assert seen[:4] == [said, said, "response.completed", said]
        assert seen[4:] == [Days(days=2), Days(days=2), Days(days=2), True]
        await front.proxy.landed()
    assert front.server.requests == 2


async def test_every_way_of_the_async_client_works_unchanged(front: Front) -> None:
    for expected in ("miss", "hit"):
        raw = await front.client.responses.with_raw_response.parse(model="small", input=QUESTION, text_format=Days)
        assert f"{expected}" in raw.headers["cache-status"]
        assert raw.parse().output_parsed == Days(days=1)
        async with front.client.responses.stream(model="small", input=QUESTION, text_format=Days) as stream:
            kinds = {event.type async for event in stream}
            assert (await stream.get_final_response()).output_parsed == Days(days=1)
        assert {"response.created", "response.output_text.delta", "response.output_item.done"} <= kinds
    assert front.server.requests == 1


@pytest.mark.parametrize("path", ["/openai/v1", "/v1", ""])
async def test_every_base_url_is_served(front: Front, path: str) -> None:
    base = front.proxy.url.removesuffix("/v1") + path
    async with openai.AsyncOpenAI(base_url=base, api_key="sk-test", max_retries=0) as client:
        for expected in ("fwd=miss", "hit"):
            raw = await client.responses.with_raw_response.create(model="small", input=QUESTION)
            assert expected in raw.headers["cache-status"]


async def test_azures_client_is_served_by_its_path_with_a_version(front: Front) -> None:
    base = front.proxy.url.removesuffix("/v1")
    client = openai.AsyncAzureOpenAI(azure_endpoint=base, api_key="k", api_version="2025-04-01-preview", max_retries=0)
    async with client:
        for expected in ("fwd=miss", "hit"):
            raw = await client.responses.with_raw_response.create(model="small", input=QUESTION)
            assert expected in raw.headers["cache-status"]


# Identity and state


async def test_a_response_kept_at_the_upstream_is_shown_under_its_own_id(front: Front) -> None:
    ids = {(await front.ask(stream=stream)).response.id for stream in (False, True, False)}
    assert ids == {"resp_up1"}


async def test_a_response_that_nobody_keeps_has_a_fresh_id_each_time(front: Front) -> None:
    seen = [await front.ask(store=False, stream=stream) for stream in (False, True, False, True)]
    assert [s.status for s in seen] == ["miss", "hit", "hit", "hit"]
    assert len({s.response.id for s in seen}) == 4
    for hit in seen[1:]:
        assert hit.response.created_at == hit.response.completed_at == front.proxy.clock.now
        for event in hit.events or ():
            assert getattr(event, "response", hit.response).id == hit.response.id


@pytest.mark.parametrize(
    "state",
    [
        {"store": True},
        {"previous_response_id": "resp_up1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"prompt": {"id": "pmpt_1"}},
        {"given": [{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": QUESTION}]},
    ],
)
async def test_what_is_held_at_the_upstream_goes_there_every_time(front: Front, state: Any) -> None:
    for number in (1, 2):
        for stream in (False, True):
            seen = await front.ask(stream=stream, **state)
            assert seen.status == "bypass state"
        assert front.server.requests == 2 * number
    assert "answer 4" in seen.text


async def test_what_is_below_the_endpoint_passes_through(front: Front) -> None:
    responses = front.client.responses.with_raw_response
    replies: list[Any] = [
        await responses.retrieve("resp_up1"),
        await responses.delete("resp_up1"),
        await responses.cancel("resp_up1"),
        await responses.input_items.list("resp_up1"),
        await responses.input_tokens.count(model="small", input="x"),
        await responses.compact(model="small", input="x"),
    ]
    assert all("fwd=bypass; " in reply.headers["cache-status"] for reply in replies)
    assert all("detail=endpoint" in reply.headers["cache-status"] for reply in replies)
    assert front.server.methods == [
        "GET /v1/responses/resp_up1",
        "DELETE /v1/responses/resp_up1",
        "POST /v1/responses/resp_up1/cancel",
        "GET /v1/responses/resp_up1/input_items",
        "POST /v1/responses/input_tokens",
        "POST /v1/responses/compact",
    ]


async def test_a_hit_repeats_the_callers_own_request(front: Front) -> None:
    await front.ask(metadata={"trace": "ann-1"}, user="ann", prompt_cache_key="k-ann")
    for stream in (False, True):
        mine = await front.ask(metadata={"trace": "bob-1"}, safety_identifier="bob", stream=stream)
        assert mine.status == "hit"
        for response in [getattr(e, "response", mine.response) for e in mine.events or ()] + [mine.response]:
            assert response.metadata == {"trace": "bob-1"}
            assert (response.user, response.safety_identifier, response.prompt_cache_key) == (None, "bob", None)
        bare = await front.ask(stream=stream)
        assert (bare.status, bare.response.metadata, bare.response.user) == ("hit", {}, None)


# Flights


@pytest.mark.parametrize("leads_as_stream", [False, True])
async def test_who_waits_in_the_other_form_gets_the_same_answer(front: Front, leads_as_stream: bool) -> None:
    front.server.gate = asyncio.Event()
    leader = asyncio.create_task(front.ask(stream=leads_as_stream))
    await until(lambda: front.server.requests)
    flights = front.proxy.app.pipeline.flights
    others = [asyncio.create_task(follow(front, stream, number)) for number, stream in enumerate([False, True] * 3)]
    await until(lambda: flights.joined == 6)
    front.server.gate.set()
    first, *seen = await gather(leader, *others)
    assert front.server.requests == 1
    assert {s.text for s in seen} == {first.text}
    assert [s.response.metadata for s in seen] == [{"number": str(number)} for number in range(6)]
    assert all("collapsed" in s.headers["cache-status"] for s in seen)
    assert first.response.metadata == {}


async def follow(front: Front, stream: bool, number: int) -> Seen:
    """As `ask`, without waiting for what is under way."""
    asked: dict[str, Any] = {"model": "small", "input": QUESTION, "metadata": {"number": str(number)}}
    raw = await front.client.responses.with_raw_response.create(**asked, stream=stream)
    answer: Any = raw.parse()
    if not stream:
        return Seen(dict(raw.headers), answer)
    events = [event async for event in answer]
    return Seen(dict(raw.headers), events[-1].response, events)


# What is not kept


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("items", "ending"),
    [
        ((message(refusal("I cannot.")),), {}),
        ((search(), message(text("Four days."))), {}),
        ((call('{"a":1}'),), {}),
        ((message(text("Four"), status="incomplete"),), CUT),
        ((), {}),
        ((message(text(" ")),), {}),
    ],
)
async def test_what_is_no_good_answer_is_relayed_and_not_kept(
    front: Front, items: tuple[Item, ...], ending: Any, stream: bool
) -> None:
    front.server.items, front.server.ending = items, ending
    first, second = await front.ask(stream=stream), await front.ask(stream=stream)
    assert front.server.requests == 2
    assert first.response.output == second.response.output


async def test_what_the_vendors_tools_bring_is_never_kept(front: Front) -> None:
    for _ in range(2):
        assert (await front.ask(tools=[{"type": "web_search"}])).status == "miss"
    assert front.server.requests == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_kept_where_the_route_allows_it(tmp_path: Path, stream: bool) -> None:
    server = ResponsesServer()
    tools: Any = [{"type": "function", "name": "find_parcel", "parameters": {"type": "object"}, "strict": False}]
    async with running_proxy(tmp_path, "cache: {store_tools: true}", backend=server) as proxy:
        front = Front(proxy, server)
        server.items = (call('{"number":', " 12}"),)
        await front.ask(tools=tools, stream=stream)
        for form in (False, True):
            again = await front.ask(tools=tools, stream=form)
            assert again.status == "hit"
            assert again.response.output[0].arguments == '{"number": 12}'
        assert (await front.ask(NEAR, tools=tools)).status == "miss"


# The caller's wishes


async def test_the_callers_cache_control(front: Front) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await front.ask(headers={"Cache-Control": "only-if-cached"})
    assert caught.value.status_code == 504
    assert front.server.requests == 0
    await front.ask(headers={"Cache-Control": "no-store"})
    assert (await front.ask()).status == "miss"
    assert (await front.ask(headers={"Cache-Control": "only-if-cached"}, stream=True)).status == "hit"
    assert (await front.ask(headers={"Cache-Control": "no-cache"})).status == "request no-cache"
    front.proxy.clock.advance(60)
    assert (await front.ask(headers={"Cache-Control": "max-age=10"})).status == "request max-age"
    assert (await front.ask(headers={"Cache-Control": "max-age=10"})).status == "hit"
    assert front.server.requests == 4


# Errors


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_upstream_passes_byte_for_byte(front: Front, stream: bool) -> None:
    front.server.status = 429
    with pytest.raises(openai.RateLimitError) as caught:
        await front.ask(stream=stream)
    assert caught.value.response.content == front.server.error_body
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_truncated_stream_raises_and_is_not_kept(front: Front) -> None:
    for events in (0, 1, 4, 9, 14, 17):
        front.server.cut_after_events = events
        with pytest.raises((openai.APIError, httpx.HTTPError, openai.APIConnectionError)):
            await front.ask(stream=True)
    front.server.cut_after_events = None
    assert (await front.ask()).status == "miss"
    assert front.server.requests == 7


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": 7}, "Invalid 'input': expected a string or an array of objects, got a number."),
        ({"input": ["x"]}, "Invalid 'input[0]': expected an object, got a string."),
        ({"input": "x", "model": None}, "Invalid 'model': expected a non-empty string, got null."),
        ({"input": "x", "stream": "yes"}, "Invalid 'stream': expected a boolean, got a string."),
    ],
)
async def test_a_bad_request_raises_with_the_members_name(front: Front, body: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        await front.client.responses.create(**{"model": "small", **body})
    assert caught.value.param == next(
        name for name in ("input[0]", "input", "model", "stream") if f"'{name}'" in message
    )
    assert front.server.requests == 0


async def test_refusals_raise_what_the_sdk_has_for_them(tmp_path: Path) -> None:
    settings = """
        server: {max_body: 64KB}
        tenants: [{name: shop, keys: [sk-test]}]
        pools: {gone: {backends: [{url: "http://127.0.0.1:9/v1"}]}}
        routes: [{models: [small], pools: [gone]}]
    """
    async with running_proxy(tmp_path, settings) as proxy:
        responses = proxy.client.responses
        with pytest.raises(openai.AuthenticationError):
            await proxy.client.with_options(api_key="sk-other").responses.create(model="small", input="x")
        with pytest.raises(openai.APIStatusError) as caught:
            await responses.create(model="small", input="x" * 70_000)
        assert caught.value.status_code == 413
        with pytest.raises(openai.APIStatusError) as caught:
            await responses.create(model="small", input="x", extra_headers={"Content-Encoding": "br"})
        assert caught.value.status_code == 415
        with pytest.raises(openai.NotFoundError, match="large"):
            await responses.create(model="large", input="x")
        with pytest.raises(openai.InternalServerError) as refused:
            await responses.create(model="small", input="x")
        assert refused.value.status_code == 502

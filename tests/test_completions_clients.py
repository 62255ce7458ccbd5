"""Legacy completions through the front door, asked with the vendor's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.azure_server import AzureServer
from tests.harness import Proxy, running_proxy, until
from tests.recordings_completions import RECORDINGS
from tests.scripted_upstream import Close, Expect, ScriptedUpstream, Send, answer

PROMPT = "A parcel to the north of the country usually takes"


@dataclass
class Front:
    proxy: Proxy
    server: AzureServer

    async def ask(self, *, stream: bool = False, **more: Any) -> tuple[str, str, Any]:
        """What a user of the SDK gets: the text, the Cache-Status, and the last thing parsed."""
        asked = {"model": "m", "prompt": PROMPT, "stream": stream, **more}
        raw = await self.proxy.client.completions.with_raw_response.create(**asked)
        told: Any = raw.parse()
        status = raw.headers["cache-status"]
        if not stream:
            return told.choices[0].text, status, told
        chunks = [chunk async for chunk in told]
        return "".join(c.choices[0].text for c in chunks if c.choices), status, chunks


@asynccontextmanager
async def front(folder: Path) -> AsyncIterator[Front]:
    async with AzureServer().running() as server:
        async with running_proxy(folder, f"pools: {{p: {{backends: [{{url: '{server.url}/v1'}}]}}}}") as proxy:
            yield Front(proxy, server)


@pytest.mark.parametrize("first", [True, False])
async def test_a_hit_comes_in_either_form_whichever_was_recorded(tmp_path: Path, first: bool) -> None:
    async with front(tmp_path) as here:
        text, status, _ = await here.ask(stream=first)
        assert "fwd=miss" in status
        await here.proxy.landed()
        for stream in (first, not first):
            again, status, told = await here.ask(stream=stream)
            assert (again, "detail=exact" in status) == (text, True)
            whole = told[-1] if stream else told
            assert (whole.object, whole.choices[0].finish_reason) == ("text_completion", "stop")
            assert whole.id.startswith("cmpl-")
        assert here.server.targets == ["/v1/completions"]


async def test_usage_comes_to_those_who_ask(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        for _ in range(2):  # a miss and a hit
            _, _, told = await here.ask(stream=True, stream_options={"include_usage": True})
            assert [(bool(c.choices), c.usage.total_tokens) for c in told if c.usage] == [(False, 13)]
            await here.proxy.landed()
        assert not any(c.usage for c in (await here.ask(stream=True))[2])
        assert (await here.ask())[2].usage.completion_tokens == 4
        assert len(here.server.targets) == 1


async def test_a_near_prompt_is_answered_unless_its_letters_show_in_the_answer(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        for more in ({}, {"echo": True}, {"logprobs": 1}, {"suffix": "days."}):
            await here.ask(**more)
            await here.proxy.landed()
            _, status, _ = await here.ask(prompt=PROMPT + " about", **more)
            assert ("semantic" in status) == (not more)
        assert len(here.server.targets) == 7


@pytest.mark.parametrize("stream", [True, False])
async def test_equal_requests_at_once_cost_one_fetch_in_whatever_form(tmp_path: Path, stream: bool) -> None:
    async with front(tmp_path) as here:
        here.server.gate = asyncio.Event()
        asking = [asyncio.create_task(here.ask(stream=stream if i else not stream)) for i in range(5)]
        await until(lambda: here.proxy.app.pipeline.flights.joined == 4)
        here.server.gate.set()
        assert {text for text, _, _ in await asyncio.gather(*asking)} == {"answer 1"}
        assert len(here.server.targets) == 1


@pytest.mark.parametrize(
    ("wish", "detail", "fetches"),
    [
        ("no-store", "no-store", 2),
        ("no-cache", "no-cache", 2),
        ("max-age=0", "max-age", 2),
        ("max-age=600", "exact", 1),
        ("only-if-cached", "exact", 1),
    ],
)
async def test_what_the_caller_may_ask_of_the_cache(tmp_path: Path, wish: str, detail: str, fetches: int) -> None:
    async with front(tmp_path) as here:
        await here.ask()
        await here.proxy.landed()
        here.proxy.clock.advance(60)
        _, status, _ = await here.ask(stream=True, extra_headers={"Cache-Control": wish})
        assert f"detail={detail}" in status
        assert len(here.server.targets) == fetches


async def test_nothing_is_fetched_for_who_wants_only_what_is_stored(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        with pytest.raises(openai.InternalServerError) as missing:
            await here.ask(extra_headers={"Cache-Control": "only-if-cached"})
        assert (missing.value.status_code, missing.value.code) == (504, "not_cached")
        assert here.server.targets == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_an_error_of_the_upstream_is_relayed_byte_for_byte_and_typed(
    tmp_path: Path, status: int, raised: type[openai.APIStatusError], stream: bool
) -> None:
    async with front(tmp_path) as here:
        here.server.error = (status, {"message": "No, \u00e9.", "type": "t", "param": None, "code": "c"})
        with pytest.raises(raised, match="No, \u00e9") as found:
            await here.ask(stream=stream)
        assert found.value.response.content == json.dumps({"error": here.server.error[1]}).encode()


async def test_our_own_refusals_raise_what_the_vendors_would(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        with pytest.raises(openai.BadRequestError, match="Invalid 'prompt'") as refused:
            await here.ask(prompt=[])
        assert refused.value.param == "prompt"
        with pytest.raises(openai.BadRequestError, match="Semcache-Control"):
            await here.ask(extra_headers={"Semcache-Control": "colour=blue"})
        with pytest.raises(openai.APIStatusError, match="ncoding") as coded:
            await here.ask(extra_headers={"Content-Encoding": "x-own"})
        assert coded.value.status_code == 415
        assert here.server.targets == []
    async with running_proxy(tmp_path, "pools: {p: {backends: [{url: 'http://127.0.0.1:9/v1'}]}}") as proxy:
        with pytest.raises(openai.InternalServerError) as unreachable:
            await proxy.client.completions.create(model="m", prompt=PROMPT)
        assert unreachable.value.status_code == 502


HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
STREAM = RECORDINGS[1].stream


@pytest.mark.parametrize("at", [1, 40, STREAM.index(b"\n\n") + 1, STREAM.index(b"\n\n") + 2, len(STREAM) - 14])
async def test_a_stream_cut_on_the_way_raises_and_is_not_stored(tmp_path: Path, at: int) -> None:
    cut = Send(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (at, STREAM[:at]))
    whole = answer(STREAM, "Content-Type: text/event-stream")
    async with ScriptedUpstream([[Expect(), cut, Close()], [Expect(), whole]]) as upstream:
        settings = f"pools: {{p: {{backends: [{{url: 'http://127.0.0.1:{upstream.port}/v1'}}]}}}}"
        async with running_proxy(tmp_path, settings) as proxy:
            here = Front(proxy, AzureServer())
            with pytest.raises(openai.APIError):
                await here.ask(stream=True)
            await proxy.landed()
            text, status, _ = await here.ask(stream=True)
            assert (text, "fwd=miss" in status) == (" four days.", True)

"""Every dialect that streams, on a stage: what is asked, what the upstream says, and how the vendor's client hears it.

The upstream sends a stream event by event, waiting with each until it is told to, and a fake timer says when that was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
from aiohttp import web

from tests import (
    recordings_anthropic,
    recordings_chat,
    recordings_completions,
    recordings_ollama,
    recordings_responses,
)
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy

Json = dict[str, Any]
Fields = dict[str, str]
Pieces = Callable[[str, Json, Fields], Awaitable[list[str]]]  # the proxy's URL, the request, more header fields

QUESTION = "How long does a parcel take?"
ASKED: list[Json] = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Part:
    """One dialect: a request, and the same answer to it in both forms."""

    name: str
    path: str
    request: Json
    stream: bytes  # as the upstream sends it, and as it should come out again
    body: bytes
    hear: Pieces  # the text of a stream, in the pieces in which the vendor's own client gives it
    tokens: int  # that the upstream counts in the answer
    wrong: type[Exception]  # what that client raises for a 400
    cut: tuple[type[Exception], ...]  # and for a stream that breaks off
    mark: bytes = b"\n\n"  # the end of an event

    @property
    def events(self) -> list[bytes]:
        return [event + self.mark for event in self.stream.removesuffix(self.mark).split(self.mark)]

    def asking(self, stream: bool) -> Json:
        usage = {"stream_options": {"include_usage": True}} if stream and self.name in ("chat", "completions") else {}
        return {**self.request, "stream": stream, **usage}

    def read(self, raw: bytes) -> list[Json]:
        """The JSON objects of a reply: one, or one for each event."""
        lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if not line.startswith(b"event:")]
        return [json.loads(line) for line in lines if line and line != b"[DONE]"]


# What the vendors' clients hear


async def _chat(url: str, asked: Json, fields: Fields) -> list[str]:
    async with _openai(url) as client:
        stream = await client.chat.completions.create(**asked, extra_headers=fields)
        return [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]


async def _completions(url: str, asked: Json, fields: Fields) -> list[str]:
    async with _openai(url) as client:
        stream = await client.completions.create(**asked, extra_headers=fields)
        return [chunk.choices[0].text async for chunk in stream if chunk.choices]


async def _responses(url: str, asked: Json, fields: Fields) -> list[str]:
    async with _openai(url) as client:
        stream = await client.responses.create(**asked, extra_headers=fields)
        return [event.delta async for event in stream if event.type == "response.output_text.delta"]


async def _messages(url: str, asked: Json, fields: Fields) -> list[str]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", max_retries=0) as client:
        stream = await client.messages.create(**asked, extra_headers=fields)
        return [event.delta.text async for event in stream if event.type == "content_block_delta"]


async def _ollama(url: str, asked: Json, fields: Fields) -> list[str]:
    async with ollama.AsyncClient(host=url, headers={"Authorization": "Bearer sk-test", **fields}) as client:
        return [line.message.content or "" async for line in await client.chat(**asked)]


def _openai(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0)


# The parts

_CHAT = recordings_chat.Recording("", (*recordings_chat.TEXT, recordings_chat.USAGE_CHUNK))
_CHAT_BODY = recordings_chat.completion({"role": "assistant", "content": "Four days."}, usage=recordings_chat.USAGE)
_SAYS = recordings_completions.says
_COMPLETION = recordings_completions.Recording(
    "", (_SAYS(" four"), _SAYS(" days"), _SAYS("."), recordings_completions.END, recordings_completions.USAGE_CHUNK)
)
_RESPONSE = recordings_responses.Recording("", (recordings_responses.message(recordings_responses.FOUR),))
_MESSAGE = recordings_anthropic.Recording("", recordings_anthropic.message(recordings_anthropic.SAID))
_OLLAMA = next(each for each in recordings_ollama.RECORDINGS if each.name == "chat: text")

PARTS = (
    Part(
        "chat",
        "/v1/chat/completions",
        {"model": "tiny", "messages": ASKED},
        _CHAT.reply,
        json.dumps(_CHAT_BODY).encode(),
        _chat,
        recordings_chat.USAGE["completion_tokens"],
        openai.BadRequestError,
        (openai.APIError,),
    ),
    Part(
        "completions",
        "/v1/completions",
        {"model": "tiny", "prompt": recordings_completions.PROMPT},
        _COMPLETION.stream,
        _COMPLETION.body,
        _completions,
        recordings_completions.USAGE["completion_tokens"],
        openai.BadRequestError,
        (openai.APIError,),
    ),
    Part(
        "responses",
        "/v1/responses",
        {"model": "tiny", "input": QUESTION},
        _RESPONSE.stream,
        _RESPONSE.body,
        _responses,
        recordings_responses.USAGE["output_tokens"],
        openai.BadRequestError,
        (openai.APIError,),
    ),
    Part(
        "messages",
        "/v1/messages",
        {"model": "tiny", "max_tokens": 99, "messages": ASKED},
        _MESSAGE.stream,
        _MESSAGE.body,
        _messages,
        recordings_anthropic.TOTALS["output_tokens"],
        anthropic.BadRequestError,
        (anthropic.APIError,),
    ),
    Part(
        "ollama",
        "/api/chat",
        {"model": "tiny", "messages": ASKED},
        _OLLAMA.stream,
        _OLLAMA.body,
        _ollama,
        recordings_ollama.FIGURES["eval_count"],
        ollama.ResponseError,
        (ollama.ResponseError,),
        mark=b"\n",
    ),
)


class Ticks:
    """A timer that does not wait: sleeping lets its time pass at once, or when somebody lets it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []  # what was asked for, but nothing
        self.gate: asyncio.Semaphore | None = None  # set: each sleep waits to be let through
        self.asleep = 0
        self.cancelled = 0

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        if self.gate is not None:
            self.asleep += 1
            try:
                await self.gate.acquire()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.asleep -= 1
        self.now_s += seconds


class StageServer(ModelServer):
    """Says a part's answer. `pauses_s`: of the fake timer, before each event of a stream; None: no event waits."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__()
        self.ticks = ticks
        self.pauses_s: list[float] | None = None
        self.may_send = asyncio.Semaphore(0)  # one event each, where there are pauses

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        part = next(part for part in PARTS if part.path == request.path)
        body = json.loads(await request.read())
        self.bodies.append(body)
        if not body["stream"]:
            return web.Response(body=part.body, content_type="application/json")
        media_type = "application/x-ndjson" if part.mark == b"\n" else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": media_type})
        await response.prepare(request)
        pauses_s = self.pauses_s
        for number, event in enumerate(part.events):
            if pauses_s is not None:
                await self.may_send.acquire()
                self.ticks.now_s += pauses_s[number]
            await response.write(event)
        await response.write_eof()
        return response


@dataclass
class Heard:
    """A reply, cut as it came."""

    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)

    @property
    def raw(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def is_hit(self) -> bool:
        return "; hit" in self.headers["Cache-Status"]


@dataclass
class Stage:
    proxy: Proxy
    server: StageServer
    ticks: Ticks
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.proxy.url.removesuffix("/v1")

    async def ask(
        self,
        part: Part,
        *,
        stream: bool,
        key: str = "sk-test",
        control: str = "",
        on_chunk: Callable[[], object] = lambda: None,
        **more: Any,
    ) -> Heard:
        """One request, read in the chunks in which the proxy sends them. `control`: of Semcache-Control."""
        fields = {"Authorization": f"Bearer {key}"} | ({"Semcache-Control": control} if control else {})
        asked = {**part.asking(stream), **more}
        async with self.http.post(self.url + part.path, json=asked, headers=fields) as response:
            assert response.status == 200, await response.text()
            heard = Heard(dict(response.headers))
            chunk = b""
            async for data, is_end in response.content.iter_chunks():
                chunk += data
                if is_end:
                    heard.chunks.append(chunk)
                    chunk = b""
                    on_chunk()
            if chunk:
                heard.chunks.append(chunk)
        await self.proxy.landed()
        return heard

    async def record(self, part: Part, pauses_s: list[float]) -> Heard:
        """Have a stream stored whose events came after these pauses; each is sent when the one before has arrived."""
        self.server.pauses_s = pauses_s
        self.server.may_send.release()
        heard = await self.ask(part, stream=True, on_chunk=self.server.may_send.release)
        self.server.pauses_s = None
        self.server.may_send = asyncio.Semaphore(0)
        return heard

    async def hear(self, part: Part, control: str = "", **more: Any) -> list[str]:
        """The text that the vendor's own client shows, in its pieces."""
        fields = {"Semcache-Control": control} if control else {}
        return [piece for piece in await part.hear(self.url, {**part.asking(True), **more}, fields) if piece]


@asynccontextmanager
async def staged(folder: Path, settings: str = "") -> AsyncIterator[Stage]:
    ticks = Ticks()
    server = StageServer(ticks)
    async with (
        running_proxy(folder, settings, backend=server, timer=ticks) as proxy,
        aiohttp.ClientSession() as http,
    ):
        yield Stage(proxy, server, ticks, http)

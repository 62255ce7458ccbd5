"""Stand-ins that come in through constructors: a clock, an embedder of words, and a model server that does as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from aiohttp import web

from semcache.errors import EmbedderFault, TooLong
from semcache.types import Vector

T = TypeVar("T")


class Clock:
    """Unix seconds that pass when told."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class WordsEmbedder:
    """Embeds a text as the sum of its words' random directions: texts that share most words are near."""

    dimensions = 128
    stamp = "words-128"
    window_words = 200

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None  # set to hold every embedding until the event is set

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def stats(self) -> dict[str, float]:
        return dict.fromkeys(("remembered", "late", "refused", "queue_depth"), 0) | {"texts": len(self.embedded)}

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise EmbedderFault(str(self.fault)) from self.fault
        if len(text.split()) > self.window_words:
            raise TooLong("the question is longer than the window")
        self.embedded.append(text)
        return then(self.vector(text))

    def vector(self, text: str) -> Vector:
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split() or [""]
        total = sum(self._direction(word) for word in words)
        return np.asarray(total / np.linalg.norm(total), dtype=np.float32)

    def _direction(self, word: str) -> Any:
        seed = int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        return np.random.default_rng(seed).standard_normal(self.dimensions)


class ModelServer:
    """An OpenAI-shaped server on a real socket, which counts, waits and misbehaves on demand.

    Answers tell which question and which call they came from: "answer 3 to: Where is my parcel?".
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.gate: asyncio.Event | None = None  # set to hold answers after the head, until the event is set
        self.cancelled = 0  # answers whose client went away
        self.gone = asyncio.Event()  # set with the first of those
        self.status = 200
        self.error_body = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": null}}'
        self.error_headers = {"Retry-After": "7", "x-request-id": "req-upstream"}
        self.finish_reason: str | None = "stop"
        self.cut_after_events: int | None = None  # the connection breaks after so many events
        self.response_headers: dict[str, str] = {}
        self.answer: str | None = None  # said to whatever is asked, instead
        self.extra: dict[str, Any] = {}  # more fields of the answer's top level
        self.url = ""

    @property
    def requests(self) -> int:
        return len(self.bodies)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ModelServer]:
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            if self.gate is not None:
                self.gate.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        self.headers.append(dict(request.headers))
        if request.path != "/v1/chat/completions":
            raw = await request.read()
            return web.json_response({"path": request.raw_path, "method": request.method, "bytes": len(raw)})
        body = json.loads(await request.read())
        self.bodies.append(body)
        number = len(self.bodies)
        if self.status != 200:
            return web.Response(
                body=self.error_body, status=self.status, headers=self.error_headers, content_type="application/json"
            )
        try:
            content = body["messages"][-1].get("content")
            text = f"answer {number} to: {content if isinstance(content, str) else json.dumps(content)}"
            text = self.answer or text
            if body.get("stream"):
                return await self._stream(request, body, text)
            if self.gate is not None:
                await self.gate.wait()
            return self._whole(body, text)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.gone.set()
            raise

    def _whole(self, body: dict[str, Any], text: str) -> web.Response:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish_reason}
            for i in range(body.get("n") or 1)
        ]
        answer = {
            "id": f"chatcmpl-up{len(self.bodies)}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33},
            **self.extra,
        }
        return web.json_response(answer, headers=self.response_headers)

    async def _stream(self, request: web.Request, body: dict[str, Any], text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **self.response_headers})
        await response.prepare(request)
        for number, event in enumerate(self._events(body, text)):
            if self.cut_after_events == number:
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(f"data: {event}\n\n".encode())
            if self.gate is not None and number == 1:
                await self.gate.wait()
        await response.write_eof()
        return response

    def _events(self, body: dict[str, Any], text: str) -> list[str]:
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        head = {"id": f"chatcmpl-up{len(self.bodies)}", "object": "chat.completion.chunk", "created": 1_700_000_000}
        head |= {"model": body["model"], **self.extra}

        def chunk(choices: list[dict[str, Any]], usage: Any = None) -> str:
            return json.dumps({**head, "choices": choices, **({"usage": usage} if wants_usage else {})})

        def delta(content: dict[str, Any], finish: str | None = None) -> str:
            return chunk([{"index": 0, "delta": content, "finish_reason": finish}])

        events = [delta({"role": "assistant", "content": ""})]
        events += [delta({"content": word}) for word in text.split(" ") for word in (word + " ",)]
        events.append(delta({}, self.finish_reason))
        if wants_usage:
            events.append(chunk([], {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}))
        return [*events, "[DONE]"]

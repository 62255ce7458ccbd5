"""A server of chats and texts as Azure OpenAI answers them, on a real socket: OpenAI's way and a little more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

SAFE = {"hate": {"filtered": False, "severity": "safe"}}
NO_HEAD = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


@dataclass
class AzureServer:
    """Answers as Azure OpenAI does: a filter's report before a chat's stream, errors with a code of digits."""

    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    error: tuple[int, dict[str, Any]] | None = None
    gate: asyncio.Event | None = None  # set to hold answers until the event is set
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AzureServer]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.targets.append(request.raw_path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.read())
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            status, error = self.error
            headers = {"x-ms-region": "West Europe", "Retry-After": "7", "x-should-retry": "false"}
            return web.json_response({"error": error}, status=status, headers=headers)
        if not request.path.endswith("/completions"):
            return web.json_response({"object": "list", "data": [], "text": "heard", "id": "file-1"})
        body = json.loads(self.bodies[-1])
        is_chat = request.path.endswith("/chat/completions")
        text = f"answer {len(self.targets)}"
        if not body.get("stream"):
            return web.json_response(_body(is_chat, text))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        wants_usage = (body.get("stream_options") or {}).get("include_usage")
        for chunk in _chunks(is_chat, text, bool(wants_usage)):
            await response.write(b"data: %b\n\n" % json.dumps(chunk).encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def _head(is_chat: bool, is_chunk: bool) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if is_chunk else "chat.completion") if is_chat else "text_completion"
    return {"id": "chatcmpl-az", "object": kind, "created": 1_700_000_000, "model": "gpt-4o-2024-11-20"}


def _body(is_chat: bool, text: str) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "stop", "content_filter_results": SAFE}
    return {
        **_head(is_chat, False),
        "choices": [choice],
        "usage": USAGE,
        "prompt_filter_results": [{"prompt_index": 0}],
    }


def _chunks(is_chat: bool, text: str, wants_usage: bool) -> list[dict[str, Any]]:
    def chunk(said: str, finish: str | None = None) -> dict[str, Any]:
        own = {"delta": {"content": said} if said else {}} if is_chat else {"text": said}
        choice = {"index": 0, **own, "finish_reason": finish, "content_filter_results": SAFE}
        return {**_head(is_chat, True), "choices": [choice]}

    report = {**NO_HEAD, "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]}
    usage = [{**_head(is_chat, True), "choices": [], "usage": USAGE}] if wants_usage else []
    return [report, *(chunk(piece) for piece in text.partition(" ")), chunk("", "stop"), *usage]

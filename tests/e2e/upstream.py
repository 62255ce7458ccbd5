"""One server that plays every vendor on a real socket, counts what reaches it, and fails on demand.

It answers what the vendors' SDKs and descriptions say. A question that holds "fail with status 429" gets that status
with the vendor's own body, whatever the API.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.e2e import vendor_anthropic, vendor_ollama, vendor_openai, vendor_responses
from tests.e2e.answers import Asked, Said, say

FAIL = re.compile(r"fail with status (\d{3})", re.IGNORECASE)
_AZURE = re.compile(r"/openai/(?:deployments/(?P<name>[^/]+)|v1)/(?P<rest>.+)")

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """A request as it came, with what tells whose it was."""

    path: str  # as asked, with its query
    endpoint: str
    key: str
    texts: tuple[str, ...]  # the question, or the inputs of an embedding
    body: Body
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """How a vendor's path is read, answered whole and answered as a stream."""

    read: Callable[[Body], Asked]
    whole: Callable[[Body, Said, int], Any]
    stream: Callable[[Body, Said, int], Iterator[bytes]]
    required: tuple[str, ...] = ("model",)
    streams_by_default: bool = False
    content_type: str = "text/event-stream; charset=utf-8"


_ENDPOINTS: Mapping[str, Endpoint] = {
    "v1/chat/completions": Endpoint(
        vendor_openai.read_chat, vendor_openai.chat, vendor_openai.chat_stream, ("model", "messages")
    ),
    "v1/completions": Endpoint(
        vendor_openai.read_completion, vendor_openai.completion, vendor_openai.completion_stream, ("model", "prompt")
    ),
    "v1/responses": Endpoint(vendor_responses.read, vendor_responses.whole, vendor_responses.stream),
    "v1/messages": Endpoint(
        vendor_anthropic.read, vendor_anthropic.whole, vendor_anthropic.stream, ("model", "messages", "max_tokens")
    ),
    "v1/messages/count_tokens": Endpoint(
        vendor_anthropic.read,
        lambda body, *_: vendor_anthropic.count(body),
        vendor_anthropic.stream,
        ("model", "messages"),
    ),
    "api/chat": Endpoint(
        vendor_ollama.read,
        lambda body, said, _: vendor_ollama.chat(body, said),
        lambda body, said, _: vendor_ollama.chat_stream(body, said),
        streams_by_default=True,
        content_type="application/x-ndjson",
    ),
    "api/generate": Endpoint(
        vendor_ollama.read,
        lambda body, said, _: vendor_ollama.generate(body, said),
        lambda body, said, _: vendor_ollama.generate_stream(body, said),
        streams_by_default=True,
        content_type="application/x-ndjson",
    ),
}
_EMBEDDINGS: Mapping[str, Callable[[Body, int], Any]] = {
    "v1/embeddings": vendor_openai.embeddings,
    "api/embed": vendor_ollama.embed,
}
_GETS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "v1/models": vendor_openai.models,
    "api/tags": vendor_ollama.tags,
    "api/version": lambda: {"version": "0.12.6"},
}


class Upstream:
    """`async with Upstream().running() as upstream:`; then `upstream.url` is known, without `/v1`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.url = ""

    def count(self, key: str, *texts: str) -> int:
        """Requests under this key that asked for one of these texts."""
        return len(self.about(key, *texts))

    def about(self, key: str, *texts: str) -> list[Call]:
        return [
            call
            for call in self.calls
            if call.key == key and any(text in asked for text in texts for asked in call.texts)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Upstream]:
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, deployment = request.path.lstrip("/"), None
        if azure := _AZURE.fullmatch(request.path):
            path, deployment = f"v1/{azure['rest']}", azure["name"]
        if request.method == "GET" and path in _GETS:
            return web.json_response(_GETS[path]())
        try:
            body = json.loads(await request.read())
        except ValueError:
            return self._fail(path, 400, "We could not parse the JSON body of your request.")
        if deployment is not None:  # the path names the model, the body need not
            body["model"] = body.get("model") or deployment
        endpoint = _ENDPOINTS.get(path)
        if endpoint is None and path not in _EMBEDDINGS:
            return self._fail(path, 404, f"Invalid URL ({request.method} /{path})")
        missing = [name for name in (endpoint.required if endpoint else ("model", "input")) if name not in body]
        if missing:
            return self._fail(path, 400, f"{missing[0]}: Field required")
        asked = endpoint.read(body) if endpoint else None
        texts = (asked.question,) if asked else tuple(map(str, vendor_openai.inputs_of(body)))
        self.calls.append(Call(request.raw_path, path, _key(request), texts, body, dict(request.headers)))
        number = len(self.calls)
        if found := FAIL.search(" ".join(texts)):
            return self._fail(path, int(found[1]), f"Call {number} failed as asked.")
        if endpoint is None:
            return self._json(_EMBEDDINGS[path](body, number), number)
        assert asked is not None
        said = say(asked, number)
        if not body.get("stream", endpoint.streams_by_default):
            return self._json(endpoint.whole(body, said, number), number)
        response = web.StreamResponse(
            headers={"Content-Type": endpoint.content_type, **_ids(number), "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        for piece in endpoint.stream(body, said, number):
            await response.write(piece)
        await response.write_eof()
        return response

    def _json(self, made: Any, number: int) -> web.Response:
        tree = (
            made
            if isinstance(made, dict)
            else made.model_dump(mode="json", exclude_unset=True, by_alias=True, warnings=False)
        )
        return web.json_response(tree, headers=_ids(number))

    def _fail(self, path: str, status: int, message: str) -> web.Response:
        number = len(self.calls)
        body: dict[str, Any]
        if path.startswith("api/"):
            body = vendor_ollama.error(message)
        elif path.startswith("v1/messages"):
            body = vendor_anthropic.error(status, message, number)
        else:
            body = vendor_openai.error(status, message)
        return web.json_response(body, status=status, headers=_ids(number))


def _key(request: web.Request) -> str:
    """Where the SDKs put the caller's key."""
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bearer or request.headers.get("x-api-key") or request.headers.get("api-key") or ""


def _ids(number: int) -> dict[str, str]:
    return {"x-request-id": f"req_{number:06d}", "request-id": f"req_{number:06d}"}

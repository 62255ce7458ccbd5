"""Every dialect by the same few words: how a question is asked in it, what answers it, and what its SDK makes of that.

What is true of all dialects is tested over this table, with the vendors' own clients as judges.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import anthropic
import httpx
import httpx2
import ollama
import openai
from aiohttp import web

from tests import recordings_anthropic, recordings_responses
from tests.fakes import ModelServer

Json = dict[str, Any]

BROKEN = (
    openai.OpenAIError,
    anthropic.AnthropicError,
    ollama.ResponseError,
    ollama.RequestError,
    httpx2.TransportError,
    httpx.TransportError,
    ConnectionError,
    json.JSONDecodeError,  # by OpenAI's SDK, of a body that ends too early
)


class Unended(Exception):
    """A stream without its end: an SDK says nothing of that where a user sees it for himself."""


@dataclass(frozen=True)
class Door:
    """One dialect. `root`: the proxy's address, without /v1."""

    name: str
    path: str
    ask: Callable[[Door, str, str, str, bool, Json], Awaitable[str]]
    request: Callable[[str, bool], Json]
    body: Callable[[str, str], Json]  # text, id
    pieces: Callable[[str, str], list[bytes]] | None = None  # of a stream; None: there is none
    stream_type: str = "text/event-stream"
    key_header: str = "Authorization"

    def whole(self, text: str, id: str = "id-1") -> bytes:
        return json.dumps(self.body(text, id)).encode()

    def events(self, text: str, id: str = "id-1") -> list[bytes]:
        assert self.pieces is not None
        return self.pieces(text, id)

    def question(self, body: Json) -> str:
        if "messages" in body:
            return str(body["messages"][-1]["content"])
        asked = body.get("input", body.get("prompt"))
        return asked if isinstance(asked, str) else json.dumps(asked)

    async def through_sdk(self, root: str, question: str, *, key: str = "sk-test", stream: bool, **options: Any) -> str:
        """What a user of the vendor's client gets. `options`: of the client. Raises one of BROKEN, or Unended."""
        return await self.ask(self, root, key, question, stream, dict(options))

    def key(self, key: str) -> dict[str, str]:
        return {self.key_header: f"Bearer {key}" if self.key_header == "Authorization" else key}


@dataclass
class Raw:
    status: int
    headers: Any
    body: bytes


async def post(door: Door, root: str, body: bytes, key: str = "sk-test", **fields: str) -> Raw:
    """Through a client that takes everything as it comes."""
    headers = {"Content-Type": "application/json", **door.key(key)}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(root + door.path, data=body, headers=headers, allow_redirects=False) as reply,
    ):
        return Raw(reply.status, reply.headers, await reply.read())


# What SDKs make of it


def _openai(root: str, key: str, options: Json) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{root}/v1", api_key=key, **{"max_retries": 0, **options})


def _azure(root: str, key: str, options: Json) -> openai.AsyncAzureOpenAI:
    own = {"max_retries": 0, "api_version": "2024-10-21", **options}
    return openai.AsyncAzureOpenAI(azure_endpoint=root, api_key=key, **own)


async def _ask_chat(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    make = _azure if door.name == "azure" else _openai
    async with make(root, key, options) as client:
        answer: Any = await client.chat.completions.create(**door.request(question, stream))
        if not stream:
            return str(answer.choices[0].message.content)
        chunks = [chunk async for chunk in answer]
    if not any(choice.finish_reason for chunk in chunks for choice in chunk.choices):
        raise Unended
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def _ask_completions(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    async with _openai(root, key, options) as client:
        answer: Any = await client.completions.create(**door.request(question, stream))
        if not stream:
            return str(answer.choices[0].text)
        chunks = [chunk async for chunk in answer]
    if not any(choice.finish_reason for chunk in chunks for choice in chunk.choices):
        raise Unended
    return "".join(choice.text for chunk in chunks for choice in chunk.choices)


async def _ask_responses(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    async with _openai(root, key, options) as client:
        answer: Any = await client.responses.create(**door.request(question, stream))
        if not stream:
            return str(answer.output_text)
        events = [event async for event in answer]
    if not events or events[-1].type != "response.completed":
        raise Unended
    return str(events[-1].response.output_text)


async def _ask_embeddings(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    async with _openai(root, key, options) as client:
        answer = await client.embeddings.create(**door.request(question, stream), encoding_format="float")
    return json.dumps(answer.data[0].embedding)


async def _ask_messages(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    async with anthropic.AsyncAnthropic(base_url=root, api_key=key, **{"max_retries": 0, **options}) as client:
        answer: Any = await client.messages.create(**door.request(question, stream))
        if not stream:
            return str(answer.content[0].text)
        events = [event async for event in answer]
    if not events or events[-1].type != "message_stop":
        raise Unended
    return "".join(event.delta.text for event in events if event.type == "content_block_delta")


async def _ask_ollama(door: Door, root: str, key: str, question: str, stream: bool, options: Json) -> str:
    headers = {**door.key(key), **options.pop("default_headers", {})}
    async with ollama.AsyncClient(host=root, headers=headers, trust_env=False, **options) as client:
        ask: Any = client.chat if door.name == "ollama" else client.generate
        answer: Any = await ask(**door.request(question, stream))
        if not stream:
            return _ollama_text(answer)
        lines = [line async for line in answer]
    if not lines or not lines[-1].done:
        raise Unended
    return "".join(map(_ollama_text, lines))


def _ollama_text(line: Any) -> str:
    return str((line.message.content if hasattr(line, "message") else line.response) or "")


# Requests and answers


def _messages_request(question: str, stream: bool) -> Json:
    return {"model": "small", "messages": [{"role": "user", "content": question}], "stream": stream}


def _chat_body(text: str, id: str) -> Json:
    message = {"role": "assistant", "content": text}
    return {
        "id": id,
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def _sse(*chunks: Json) -> list[bytes]:
    return [*(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks), b"data: [DONE]\n\n"]


def _chat_pieces(text: str, id: str) -> list[bytes]:
    head = {"id": id, "object": "chat.completion.chunk", "created": 1, "model": "small"}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    said = [chunk({"content": piece}) for piece in _words(text)]
    return _sse(chunk({"role": "assistant", "content": ""}), *said, chunk({}, "stop"))


def _completion_body(text: str, id: str) -> Json:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return {"id": id, "object": "text_completion", "created": 1, "model": "small", "choices": [choice]}


def _completion_pieces(text: str, id: str) -> list[bytes]:
    head = {"id": id, "object": "text_completion", "created": 1, "model": "small"}

    def chunk(said: str, finish: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "text": said, "finish_reason": finish, "logprobs": None}]}

    return _sse(*map(chunk, _words(text)), chunk("", "stop"))


def _response(text: str, id: str) -> recordings_responses.Recording:
    message = recordings_responses.message(recordings_responses.text(*_words(text)), id=f"msg_{id}")
    return recordings_responses.Recording("live", (message,), response={**recordings_responses.RESPONSE, "id": id})


def _message_events(text: str, id: str) -> tuple[Json, ...]:
    return recordings_anthropic.message(recordings_anthropic.text(*_words(text)), start={"id": id})


def _message_body(text: str, id: str) -> Json:
    head: Json = _message_events(text, id)[0]["message"]
    said = [{"type": "text", "text": text}]
    return {**head, "content": said, "stop_reason": "end_turn", "usage": recordings_anthropic.TOTALS}


_OLLAMA_HEAD = {"model": "small", "created_at": "2026-03-04T05:06:07.089Z"}
_OLLAMA_END = {"done": True, "done_reason": "stop", "total_duration": 9, "prompt_eval_count": 3, "eval_count": 2}


def _ollama_line(name: str, text: str) -> Json:
    said = {"message": {"role": "assistant", "content": text}} if name == "ollama" else {"response": text}
    return {**_OLLAMA_HEAD, **said}


def _ollama_body(name: str) -> Callable[[str, str], Json]:
    return lambda text, id: {**_ollama_line(name, text), **_OLLAMA_END}


def _ollama_pieces(name: str) -> Callable[[str, str], list[bytes]]:
    def pieces(text: str, id: str) -> list[bytes]:
        lines = [{**_ollama_line(name, word), "done": False} for word in _words(text)]
        lines.append({**_ollama_line(name, ""), **_OLLAMA_END})
        return [json.dumps(line).encode() + b"\n" for line in lines]

    return pieces


def _embeddings_body(text: str, id: str) -> Json:
    """A text's vector is the numbers of its first characters, so that it can be told whose it is."""
    vector = [float(ord(character)) for character in text[:24]]
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return {"object": "list", "data": data, "model": "small", "usage": {"prompt_tokens": 4, "total_tokens": 4}}


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


DOORS = (
    Door("chat", "/v1/chat/completions", _ask_chat, _messages_request, _chat_body, _chat_pieces),
    Door(
        "completions",
        "/v1/completions",
        _ask_completions,
        lambda question, stream: {"model": "small", "prompt": question, "stream": stream},
        _completion_body,
        _completion_pieces,
    ),
    Door(
        "responses",
        "/v1/responses",
        _ask_responses,
        lambda question, stream: {"model": "small", "input": question, "stream": stream},
        lambda text, id: _response(text, id).body_value,
        lambda text, id: [event + b"\n\n" for event in _response(text, id).stream.removesuffix(b"\n\n").split(b"\n\n")],
    ),
    Door(
        "embeddings",
        "/v1/embeddings",
        _ask_embeddings,
        lambda question, stream: {"model": "small", "input": question},
        _embeddings_body,
    ),
    Door(
        "messages",
        "/v1/messages",
        _ask_messages,
        lambda question, stream: {**_messages_request(question, stream), "max_tokens": 99},
        _message_body,
        lambda text, id: [recordings_anthropic.framed(event) for event in _message_events(text, id)],
        key_header="x-api-key",
    ),
    Door(
        "ollama",
        "/api/chat",
        _ask_ollama,
        _messages_request,
        _ollama_body("ollama"),
        _ollama_pieces("ollama"),
        "application/x-ndjson",
    ),
    Door(
        "generate",
        "/api/generate",
        _ask_ollama,
        lambda question, stream: {"model": "small", "prompt": question, "stream": stream},
        _ollama_body("generate"),
        _ollama_pieces("generate"),
        "application/x-ndjson",
    ),
    Door(
        "azure",
        "/openai/deployments/small/chat/completions?api-version=2024-10-21",
        _ask_chat,
        _messages_request,
        _chat_body,
        _chat_pieces,
        key_header="api-key",
    ),
)
BY_PATH = {door.path.partition("?")[0]: door for door in DOORS}
FORMS = [(door, stream) for door in DOORS for stream in (False, True) if door.pieces or not stream]


def form_id(value: Any) -> str | None:
    return value.name if isinstance(value, Door) else {True: "stream", False: "json"}.get(value)


class Vendors(ModelServer):
    """Answers in every dialect "answer 2 for sk-a to: ...", with the caller's key in its ids and fields too."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()  # a request has arrived
        self.holds_heads = False  # the gate holds a stream's head too

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        door = BY_PATH.get(request.path)
        if door is None:
            return await super()._handle(request)
        self.paths.append(request.raw_path)
        self.headers.append(dict(request.headers))
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.begun.set()
        key = request.headers.get(door.key_header, "").removeprefix("Bearer ")
        text = f"answer {len(self.bodies)} for {key} to: {door.question(body)}"
        told = {"x-ratelimit-remaining-requests": f"left-{key}", "x-request-id": f"req-{key}", "X-Canary": key}
        told |= {"request-id": f"req-{key}", "Set-Cookie": f"session={key}", "openai-organization": f"org-{key}"}
        try:
            if self.status != 200:
                error = f'{{"error": {{"message": "slow down, {key}"}}}}'.encode()
                if self.gate is not None:
                    await self.gate.wait()
                return web.Response(
                    body=error, status=self.status, headers={**told, **self.error_headers}, content_type=JSON_TYPE
                )
            if self.gate is not None and self.holds_heads:
                await self.gate.wait()
            if body.get("stream") and door.pieces is not None:
                return await self._tell(request, door, text, f"id-{key}", told)
            if self.gate is not None:
                await self.gate.wait()
            return web.Response(body=door.whole(text, f"id-{key}"), headers=told, content_type=JSON_TYPE)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.gone.set()
            raise

    async def _tell(self, request: web.Request, door: Door, text: str, id: str, told: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": door.stream_type, **told})
        await response.prepare(request)
        for number, event in enumerate(door.events(text, id)):
            await response.write(event)
            if self.gate is not None and number == 1:
                await self.gate.wait()
        await response.write_eof()
        return response


JSON_TYPE = "application/json"

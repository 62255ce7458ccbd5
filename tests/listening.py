"""A listener on a real socket whose deadlines pass by hand, and clients that send raw bytes, with h11 as the judge."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
from aiohttp import web

from semcache import config
from semcache.errors import SemcacheError
from semcache.listening.listener import Listener, read_body, whole_response
from tests.harness import until

__all__ = ["CHUNKED", "GET", "HOST", "JSON", "Client", "Seconds", "Serving", "page", "post", "serving", "until"]

JSON = [("Content-Type", "application/json")]
HOST = b"Host: proxy\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Seconds:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Client:
    """A socket, and h11's opinion of what arrives on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    parser: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, method: str = "GET") -> Reply:
        """Read one response, interim ones too. Raises h11.RemoteProtocolError when it is cut."""
        if self.parser.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self.parser.start_next_cycle()
        if self.parser.our_state is h11.IDLE:  # h11 has to know what was asked to read a HEAD's answer
            self.parser.send(h11.Request(method=method, target="/", headers=[("Host", "proxy")]))
            self.parser.send(h11.EndOfMessage())
        reply = None
        while True:
            event = self.parser.next_event()
            if event is h11.NEED_DATA:
                self.parser.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.InformationalResponse):
                return Reply(event.status_code, {})
            elif isinstance(event, h11.Response):
                reply = Reply(event.status_code, {k.decode(): v.decode() for k, v in event.headers})
            elif isinstance(event, h11.Data):
                assert reply is not None
                reply.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert reply is not None
                return reply
            else:
                raise EOFError(event)

    async def ask(self, data: bytes = GET) -> Reply:
        self.write(data)
        return await self.reply("HEAD" if data.startswith(b"HEAD") else "GET")

    async def rest(self) -> bytes:
        """All that comes until the other side ends."""
        return self.parser.trailing_data[0] + await self.reader.read()


@dataclass
class Serving:
    listener: Listener
    port: int
    clock: Seconds
    seen: list[str]
    trust: ssl.SSLContext | None = None  # speak TLS, and believe these certificates
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes = GET) -> Reply:
        return await (await self.connect()).ask(data)

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.listener.sweep()


def page(path: str, error: SemcacheError) -> tuple[bytes, str]:
    return f"{error.status} on {path}: {error.message}".encode(), "text/plain"


@asynccontextmanager
async def serving(
    handler: Handler | None = None, trust: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[Serving]:
    """A listener whose deadlines pass by hand. Without a handler it echoes method, path and body."""
    limits = config.Server(**settings)
    clock = Seconds()
    seen: list[str] = []

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(f"{request.method} {request.raw_path}")
        body = await read_body(request, limits)
        return whole_response(request, 200, JSON, f"{request.method} {request.raw_path} ".encode() + body)

    async def counted(request: web.BaseRequest) -> web.StreamResponse:
        assert handler is not None
        seen.append(f"{request.method} {request.raw_path}")
        return await handler(request)

    listener = Listener(echo if handler is None else counted, limits, page, clock)
    serving = Serving(listener, await listener.start("127.0.0.1", 0), clock, seen, trust)
    try:
        yield serving
    finally:
        for client in serving.clients:
            client.writer.close()
        await listener.drain(0.1)
        assert listener.stats()["connections"] == 0
        assert listener.stats()["requests"] == 0


def post(body: bytes = b"", fields: bytes = b"", path: bytes = b"/v1/x", version: bytes = b"1.1") -> bytes:
    return b"POST %b HTTP/%b\r\n%b%b\r\n%b" % (path, version, HOST, fields, body)

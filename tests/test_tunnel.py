"""WebSocket through the real proxy: the official SDK and `websockets` as clients, a real WebSocket server or a script
as backend, and raw bytes where a client would be too polite."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
import trustme
from multidict import CIMultiDict, CIMultiDictProxy
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from semcache import config
from semcache.app import App
from semcache.errors import ClientError
from semcache.tunnel import (
    EARLY_BYTES,
    End,
    refuse_another_sites_page,
    relay,
    switching,
    with_offered_key,
    without_offered_keys,
)
from tests.fakes import Clock, WordsEmbedder
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import (
    Close,
    ExpectHead,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    Wait,
    WaitForClose,
    answer,
)

pytestmark = pytest.mark.both_loops

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Region: eu\r\n\r\n"
HELD_BYTES = 256 * 1024  # at most, each way
ASKS = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


def handshake(*fields: str, line: str = "GET /v1/realtime?model=gpt-realtime HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: proxy", *(fields or ASKS), "", ""]).encode()


@dataclass
class RealtimeServer:
    """Speaks WebSocket, greets, and sends back what it is sent."""

    requests: list[Request] = field(default_factory=list)
    refuse_with: int = 0
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RealtimeServer]:
        server = await serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=self._judge,
            select_subprotocol=lambda _, offered: Subprotocol("realtime") if "realtime" in offered else None,
            max_size=None,
        )
        async with server:
            self.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/v1"
            yield self

    def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        return connection.respond(self.refuse_with, "no such thing\n") if self.refuse_with else None  # type: ignore[arg-type]

    async def _talk(self, connection: ServerConnection) -> None:
        await connection.send('{"type": "session.created", "event_id": "e1", "session": {}}')
        async for message in connection:
            await connection.send(message)


def pools(*urls: str, more: str = "", **fields: str) -> str:
    own = "".join(f", {name}: {value}" for name, value in fields.items())
    backends = ", ".join(f"{{url: '{url}'{own}}}" for url in urls)
    return f"pools: {{it: {{{more} backends: [{backends}]}}}}\n"


@asynccontextmanager
async def speaking(folder: Path, settings: str = "", **fields: str) -> AsyncIterator[tuple[Proxy, RealtimeServer]]:
    """A proxy in front of a real WebSocket server."""
    async with RealtimeServer().running() as server:
        async with running_proxy(folder, pools(server.url, **fields) + settings) as proxy:
            yield proxy, server


@asynccontextmanager
async def facing(
    folder: Path, *scripts: Sequence[Step], settings: str = "", pool: str = ""
) -> AsyncIterator[tuple[Proxy, ScriptedUpstream]]:
    """A proxy in front of a script."""
    async with ScriptedUpstream(scripts) as upstream:
        made = pools(f"http://127.0.0.1:{upstream.port}/v1", more=pool)
        async with running_proxy(folder, made + settings) as proxy:
            yield proxy, upstream


@dataclass
class Raw:
    """A client with nothing between it and the socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()


@asynccontextmanager
async def raw(proxy: Proxy, data: bytes = b"") -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.app.port)
    try:
        writer.write(data)
        yield Raw(reader, writer)
    finally:
        writer.close()


def web_socket_url(proxy: Proxy) -> str:
    return proxy.url.replace("http:", "ws:")


def ends_of(proxy: Proxy) -> End:
    """The client's end of the one tunnel that is open."""
    [connection] = proxy.app.listener._connections
    assert connection._tunnel is not None
    return connection._tunnel


def slots_in_use(proxy: Proxy, limit: int) -> int:
    [pool] = proxy.app.fetcher._pools.values()
    return limit - pool._slots._value


# The SDK, which needs nothing but its base URL


async def test_a_realtime_session_of_the_sdk_passes(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (proxy, server):
        async with proxy.client.realtime.connect(
            model="gpt-realtime", extra_query={"x": "%2F"}, extra_headers={"X-Note": "a"}
        ) as session:
            assert (await session.recv()).type == "session.created"
            await session.send({"type": "input_audio_buffer.append", "audio": "QUJD" * 500_000})
            assert json.loads(await session.recv_bytes())["audio"] == "QUJD" * 500_000
            reply = session._connection.response
            assert reply is not None
            assert reply.headers["Cache-Status"] == "semcache; fwd=bypass; fwd-status=101; detail=endpoint"
            assert reply.headers["X-Request-Id"]
        [asked] = server.requests
        assert asked.path == "/v1/realtime?model=gpt-realtime&x=%252F"
        assert asked.headers.get_all("Authorization") == ["Bearer sk-test"]
        assert (asked.headers["X-Note"], asked.headers["Via"]) == ("a", f"1.1 {proxy.app.node}")
        assert asked.headers["Host"] in server.url


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK's own
async def test_the_sdk_that_blocks_passes_too(tmp_path: Path) -> None:
    def talk(url: str) -> str:
        client = openai.OpenAI(base_url=url, api_key="sk-test")
        with client.realtime.connect(model="gpt-realtime") as session:
            session.recv()
            session.send({"type": "response.create"})
            return json.loads(session.recv_bytes())["type"]  # type: ignore[no-any-return]

    async with speaking(tmp_path) as (proxy, _):
        assert await asyncio.to_thread(talk, proxy.url) == "response.create"


async def test_responses_over_websocket_pass(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (proxy, server):
        async with proxy.client.responses.connect() as session:
            await session.recv_bytes()
            await session.send({"type": "response.create", "model": "small", "input": "hello"})  # type: ignore[misc]
            assert json.loads(await session.recv_bytes())["input"] == "hello"
        assert server.requests[0].path == "/v1/responses"


async def test_a_base_url_without_a_version_works(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (proxy, server):
        url = f"ws://127.0.0.1:{proxy.app.port}/realtime?model=gpt-realtime"
        async with connect(url) as session:
            await session.recv()
        assert server.requests[0].path == "/v1/realtime?model=gpt-realtime"


async def test_the_line_of_the_log_tells_the_whole_session(tmp_path: Path) -> None:
    async with RealtimeServer().running() as server:
        log = tmp_path / "requests.log"
        options = {"port": 0, "admin_port": 0, "store": f"sqlite:{tmp_path}/cache.db", "request_log": str(log)}
        app = App(
            config.parse(pools(server.url), {}, options=options),  # type: ignore[arg-type]
            embedder=WordsEmbedder(),  # type: ignore[arg-type]
            clock=Clock(),
        )
        await app.start()
        key = "openai-insecure-api-key.sk-of-a-browser"
        protocols = [Subprotocol("realtime"), Subprotocol(key)]
        url = f"ws://127.0.0.1:{app.port}/v1/realtime?model=m"
        async with connect(url, subprotocols=protocols, compression=None) as session:
            await session.recv()
            await session.send(b"x" * 10_000)
            await session.recv()
        await app.stop()
        [line] = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert (line["verdict"], line["reason"], line["status"], line["truncated"]) == (
            "bypass",
            "endpoint",
            101,
            False,
        )
        assert 10_000 < line["bytes_out"] < 10_200
        assert b"sk-of-a-browser" not in log.read_bytes()


# Who may, and where it goes


TENANTS = "tenants: [{name: shop, keys: [sk-shop]}]\n"


async def test_an_unknown_caller_is_refused_before_anything_goes_upstream(tmp_path: Path) -> None:
    async with speaking(tmp_path, TENANTS) as (proxy, server):
        with pytest.raises(InvalidStatus) as refused:
            async with proxy.client.realtime.connect(model="gpt-realtime"):
                pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
        assert server.requests == []


@pytest.mark.parametrize(
    "settings, own_key, seen",
    [
        pytest.param("", "", "realtime, openai-insecure-api-key.sk-shop, v1", id="the callers key passes"),
        pytest.param("", "sk-operator", "realtime, v1", id="the operators key replaces it"),
        pytest.param(TENANTS, "", "realtime, v1", id="the callers key is one of ours"),
    ],
)
async def test_a_browsers_key_goes_where_any_callers_key_goes(
    tmp_path: Path, settings: str, own_key: str, seen: str
) -> None:
    async with speaking(tmp_path, settings, api_key=f"'{own_key}'") as (proxy, server):
        offered = [Subprotocol(name) for name in ("realtime", "openai-insecure-api-key.sk-shop", "v1")]
        async with connect(f"{web_socket_url(proxy)}/realtime", subprotocols=offered) as session:
            assert session.subprotocol == "realtime"
        [asked] = server.requests
        assert asked.headers["Sec-WebSocket-Protocol"] == seen
        assert asked.headers.get("Authorization") == (f"Bearer {own_key}" if own_key else None)


async def test_a_browsers_key_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    async with speaking(tmp_path, TENANTS) as (proxy, server):
        for offered in (["realtime"], ["openai-insecure-api-key.sk-other"]):
            with pytest.raises(InvalidStatus, match="401"):
                async with connect(
                    f"{web_socket_url(proxy)}/realtime", subprotocols=[Subprotocol(name) for name in offered]
                ):
                    pass
        assert server.requests == []


async def test_the_model_in_the_query_picks_the_route(tmp_path: Path) -> None:
    async with RealtimeServer().running() as voice, RealtimeServer().running() as text:
        settings = f"""
        pools: {{voice: {{backends: [{{url: '{voice.url}'}}]}}, text: {{backends: [{{url: '{text.url}'}}]}}}}
        routes: [{{models: ["gpt-realtime*"], pools: [voice]}}, {{models: ["*"], pools: [text]}}]
        """
        async with running_proxy(tmp_path, settings) as proxy:
            for model in ("gpt-realtime", "gpt-realtime-mini", "other"):
                async with proxy.client.realtime.connect(model=model) as session:
                    await session.recv_bytes()
        assert (len(voice.requests), len(text.requests)) == (2, 1)


async def test_a_tunnel_that_leads_back_here_is_cut(tmp_path: Path) -> None:
    async with facing(tmp_path, [WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake(*ASKS, f"Via: 1.1 {proxy.app.node}")) as client:
            assert (await client.head()).startswith("HTTP/1.1 508 ")
        assert upstream.connections == 0


# Refusals, and what is no handshake


@pytest.mark.parametrize("status", [400, 403, 426, 429, 503])
async def test_a_backend_that_refuses_is_relayed(tmp_path: Path, status: int) -> None:
    async with speaking(tmp_path) as (proxy, server):
        server.refuse_with = status
        with pytest.raises(InvalidStatus) as refused:
            async with proxy.client.realtime.connect(model="gpt-realtime"):
                pass
        assert (refused.value.response.status_code, refused.value.response.body) == (status, b"no such thing\n")
        assert "Via" not in refused.value.response.headers


async def test_bytes_behind_a_refused_handshake_are_no_request(tmp_path: Path) -> None:
    asked = asyncio.Event()
    script = [ExpectHead(), Wait(asked), answer(b"no", status="403 Forbidden")]
    async with facing(tmp_path, script) as (proxy, upstream):
        smuggled = b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n\r\n"
        async with raw(proxy, handshake() + smuggled) as client:
            await until(lambda: upstream.requests)
            client.writer.write(smuggled)
            asked.set()
            reply = await client.reader.read()
            assert reply.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"\r\nConnection: close\r\n" in reply
            assert reply.count(b"HTTP/1.1 ") == 1
        assert [request.line for request in upstream.requests] == ["GET /v1/realtime?model=gpt-realtime HTTP/1.1"]


async def test_bytes_behind_a_granted_handshake_go_through(tmp_path: Path) -> None:
    asked = asyncio.Event()
    script = [ExpectHead(), Wait(asked), Send(SWITCHED + b"early"), WaitForClose()]
    async with facing(tmp_path, script) as (proxy, upstream):
        async with raw(proxy, handshake() + b"a" * 100) as client:
            await until(lambda: upstream.requests)
            client.writer.write(b"b" * 4 * EARLY_BYTES)
            asked.set()
            head = await client.head()
            assert head.startswith("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
            assert "X-Region: eu\r\n" in head
            assert await client.reader.readexactly(5) == b"early"
            client.writer.write_eof()
            await upstream.closed.wait()


@pytest.mark.parametrize(
    "line, fields",
    [
        ("GET /v1/models HTTP/1.1", ["Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}"]),
        ("GET /v1/models HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket"]),
        ("GET /v1/models HTTP/1.0", ASKS),
        ("GET /v1/models HTTP/1.1", [*ASKS, "Content-Length: 2"]),
        ("GET /v1/models HTTP/1.1", ["Connection: Upgrade", "Upgrade: h2c", f"Sec-WebSocket-Key: {KEY}"]),
        ("GET /v1/models HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket, h2c", f"Sec-WebSocket-Key: {KEY}"]),
        ("GET /v1/models HTTP/1.1", [*ASKS, "Upgrade: h2c"]),
        ("POST /v1/files HTTP/1.1", [*ASKS, "Content-Length: 2"]),
        ("POST /v1/files HTTP/1.1", [*ASKS, "Transfer-Encoding: chunked"]),
        ("POST /v1/files HTTP/1.1", ASKS),
    ],
)
async def test_what_only_looks_like_a_handshake_is_an_ordinary_request(
    tmp_path: Path, line: str, fields: list[str]
) -> None:
    async with facing(tmp_path, [ExpectHead(), answer(b"plain"), WaitForClose()]) as (proxy, upstream):
        body = b"hi" if "Content-Length: 2" in fields else b""
        body = b"2\r\nhi\r\n0\r\n\r\n" if "Transfer-Encoding: chunked" in fields else body
        async with raw(proxy, handshake(*fields, line=line) + body) as client:
            head = await client.head()
            assert head.startswith("HTTP/1.1 200 OK\r\n")
        [asked] = upstream.requests
        assert asked.all("upgrade") == asked.all("connection") == []


@pytest.mark.parametrize(
    "protocol, body, is_late",
    [
        ("h2c", b"", False),
        ("h2c", b"hi", False),
        ("h2c", b"hi", True),
        ("websocket", b"", False),
        ("websocket", b"", True),
        ("websocket", b"hi", False),
        ("websocket", b"hi", True),
    ],
)
async def test_nothing_behind_a_declined_upgrade_is_read_from_its_middle(
    tmp_path: Path, protocol: str, body: bytes, is_late: bool
) -> None:
    """The parser passes over the bytes behind such a request in its segment. What a later segment holds would else be
    read as a request: here the body of one."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n\r\n"
    cover = b"POST /v1/files HTTP/1.1\r\nHost: proxy\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    fields = ["Connection: Upgrade", f"Upgrade: {protocol}", f"Content-Length: {len(body)}"]
    first = handshake(*fields, line="POST /v1/batches HTTP/1.1")
    script = [ExpectHead(), answer(b"plain")]
    async with facing(tmp_path, [*script, *script, *script]) as (proxy, upstream):
        async with raw(proxy, first if is_late else first + body + cover) as client:
            await until(lambda: proxy.app.listener.requests)
            client.writer.write(body + cover if is_late else b"")
            await client.head()
            client.writer.write(hidden)
            rest = await client.reader.read()
            assert b"HTTP/1.1" not in rest
        assert [request.line for request in upstream.requests] == ["POST /v1/batches HTTP/1.1"]


async def test_an_upgrade_nobody_speaks_does_not_cost_the_connection(tmp_path: Path) -> None:
    """Java's client asks for h2c with its first request on every connection."""
    script = [ExpectHead(), answer(b"plain")]
    async with facing(tmp_path, [*script, *script]) as (proxy, upstream):
        fields = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"]
        async with raw(proxy, handshake(*fields, line="GET /v1/models HTTP/1.1")) as client:
            for _ in range(2):
                assert (await client.head()).startswith("HTTP/1.1 200 OK\r\n")
                assert await client.reader.readexactly(5) == b"plain"
                client.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n\r\n")
        assert len(upstream.requests) >= 2


@pytest.mark.parametrize(
    "raw_answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_a_switch_to_something_else_is_a_502(tmp_path: Path, raw_answer: bytes) -> None:
    async with facing(tmp_path, [ExpectHead(), Send(raw_answer), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            assert (await client.head()).startswith("HTTP/1.1 502 ")
        await upstream.closed.wait()


async def test_a_switch_that_was_not_asked_for_is_a_502(tmp_path: Path) -> None:
    async with facing(tmp_path, [ExpectHead(), Send(SWITCHED), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n\r\n") as client:
            assert (await client.head()).startswith("HTTP/1.1 502 ")
        await upstream.closed.wait()


async def test_a_switch_that_arrives_in_two_pieces_is_one(tmp_path: Path) -> None:
    whole = b"HTTP/1.1 100 Continue\r\n\r\n" + SWITCHED + b"early"
    for cut in range(1, len(whole), 3):
        split = asyncio.Event()
        script = [ExpectHead(), Send(whole[:cut]), Wait(split), Send(whole[cut:]), Close()]
        async with facing(tmp_path, script) as (proxy, upstream):
            async with raw(proxy, handshake()) as client:
                await until(lambda upstream=upstream: upstream.requests)
                split.set()
                assert "101 Switching" in await client.head()
                assert await client.reader.read() == b"early"


# How a tunnel ends


async def test_an_end_on_one_side_is_an_end_on_the_other_and_no_more(tmp_path: Path) -> None:
    heard = asyncio.Event()
    script = [ExpectHead(), Send(SWITCHED), WaitForClose(), Send(b"last words"), Wait(heard), Close()]
    async with facing(tmp_path, script) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            await client.head()
            client.writer.write_eof()
            await upstream.closed.wait()
            assert await client.reader.readexactly(10) == b"last words"
            heard.set()
            assert await client.reader.read() == b""
            await until(lambda: proxy.app.listener.stats()["connections"] == 0)
            await until(lambda: slots_in_use(proxy, 1000) == 0)


async def test_the_backends_end_comes_first_in_peace(tmp_path: Path) -> None:
    async with facing(tmp_path, [ExpectHead(), Send(SWITCHED + b"bye"), Close(), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            await client.head()
            assert await client.reader.read() == b"bye"
            client.writer.write(b"thanks")
            client.writer.write_eof()
            await upstream.closed.wait()
            await until(lambda: proxy.app.listener.stats()["connections"] == 0)


async def test_a_reset_of_the_backend_reaches_the_client(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with facing(tmp_path, [ExpectHead(), Send(SWITCHED), Wait(gate), Reset()]) as (proxy, _):
        async with raw(proxy, handshake()) as client:
            await client.head()
            gate.set()
            with pytest.raises(ConnectionResetError):
                await client.reader.read()


async def test_a_reset_of_the_client_reaches_the_backend(tmp_path: Path) -> None:
    async with facing(tmp_path, [ExpectHead(), Send(SWITCHED), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            await client.head()
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            await upstream.closed.wait()
            await until(lambda: slots_in_use(proxy, 1000) == 0)
            await until(lambda: proxy.app.listener.stats()["connections"] == 0)


async def test_a_client_that_leaves_before_the_answer_takes_the_handshake_with_it(tmp_path: Path) -> None:
    async with facing(tmp_path, [ExpectHead(), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake()):
            await until(lambda: upstream.requests)
        await upstream.closed.wait()
        await until(lambda: slots_in_use(proxy, 1000) == 0)


async def test_the_close_of_a_session_is_seen_by_both_sides(tmp_path: Path) -> None:
    async with speaking(tmp_path) as (proxy, _):
        async with connect(f"{web_socket_url(proxy)}/realtime") as session:
            await session.recv()
            await session.close(4001, "enough")
            with pytest.raises(ConnectionClosedOK if session.close_code == 1000 else ConnectionClosedError):
                await session.recv()
            assert (session.close_code, session.close_reason) == (4001, "enough")
        await until(lambda: proxy.app.listener.stats()["connections"] == 0)


async def test_open_tunnels_end_when_the_drain_is_over(tmp_path: Path) -> None:
    async with speaking(tmp_path, "server: {drain: 50ms}\n") as (proxy, _):
        async with connect(f"{web_socket_url(proxy)}/realtime") as session:
            await session.recv()
            stopping = asyncio.create_task(proxy.app.stop())
            await until(lambda: proxy.app.listener.draining)
            await session.send("still here")
            assert await session.recv() == "still here"
            await stopping
            with pytest.raises(ConnectionClosedError):
                await session.recv()


async def test_a_tunnel_takes_one_of_the_backends_connections(tmp_path: Path) -> None:
    script = [ExpectHead(), Send(SWITCHED), WaitForClose()]
    async with facing(tmp_path, script, pool="max_connections: 1, connect: 50ms,") as (proxy, upstream):
        async with raw(proxy, handshake()) as first:
            await first.head()
            assert slots_in_use(proxy, 1) == 1
            async with raw(proxy, handshake()) as second:
                assert (await second.head()).startswith("HTTP/1.1 504 ")
        await upstream.closed.wait()
        await until(lambda: slots_in_use(proxy, 1) == 0)
        async with raw(proxy, handshake()) as third:
            assert "101 Switching" in await third.head()


# What a tunnel holds


async def test_a_client_that_does_not_read_leaves_the_backend_unread(tmp_path: Path) -> None:
    flood = Send(SWITCHED + b"x" * 64 * 1024 * 1024)
    async with facing(tmp_path, [ExpectHead(), flood]) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            await client.head()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: ends_of(proxy).transport.get_write_buffer_size() > 0)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert ends_of(proxy).transport.get_write_buffer_size() <= HELD_BYTES
            assert not upstream.finished.is_set()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await client.reader.readexactly(64 * 1024 * 1024)) == 64 * 1024 * 1024
            await upstream.finished.wait()


async def test_a_backend_that_does_not_read_leaves_the_client_unread(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with facing(tmp_path, [ExpectHead(), Send(SWITCHED), Wait(gate), WaitForClose()]) as (proxy, upstream):
        async with raw(proxy, handshake()) as client:
            await client.head()
            client.writer.write(b"x" * 64 * 1024 * 1024)
            far = ends_of(proxy)._peer
            assert far is not None
            await until(lambda: far.transport.get_write_buffer_size() > 0)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert 0 < far.transport.get_write_buffer_size() <= HELD_BYTES
            gate.set()
            client.writer.write_eof()
            await upstream.closed.wait()
            assert far.sent_bytes == 64 * 1024 * 1024


# The relay by itself


class EndProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.end = End(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self.end.received(data)

    def eof_received(self) -> bool:
        return self.end.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.lost(exc)

    def pause_writing(self) -> None:
        self.end.full()

    def resume_writing(self) -> None:
        self.end.free()


async def a_pair() -> tuple[End, asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, protocol = await asyncio.get_running_loop().create_connection(EndProtocol, sock=ours)
    return protocol.end, *await asyncio.open_connection(sock=theirs)


@pytest.mark.parametrize("ended, limits", [(False, (0.05, 60.0)), (True, (60.0, 0.05))])
async def test_a_silence_ends_a_tunnel_and_half_a_tunnel_sooner(ended: bool, limits: tuple[float, float]) -> None:
    near, _, near_writer = await a_pair()
    far, far_reader, far_writer = await a_pair()
    running = asyncio.create_task(relay(near, far, *limits))
    near_writer.write(b"hello")
    assert await far_reader.readexactly(5) == b"hello"
    if ended:
        near_writer.write_eof()
    async with asyncio.timeout(5):
        assert not await running
        assert await far_reader.read() == b""
    near.abort()
    for writer in (near_writer, far_writer):
        writer.close()


async def test_what_happened_before_the_relay_began_is_passed_on() -> None:
    near, _, near_writer = await a_pair()
    far, far_reader, far_writer = await a_pair()
    near_writer.write(b"all there is")
    near_writer.close()
    await until(lambda: near.is_lost)
    assert await relay(near, far)
    assert await far_reader.read() == b"all there is"
    far_writer.close()


# What is decided without a socket


def test_a_line_break_in_a_field_is_no_field_of_its_own() -> None:
    assert switching([("X", "1")]).endswith(b"\r\nX: 1\r\n\r\n")
    for value in ("1\r\nY: 2", "1\nY: 2", "1\r", "1\0"):
        with pytest.raises(ValueError):
            switching([("X", value)])


@pytest.mark.parametrize(
    "origin, is_foreign",
    [
        (None, False),
        ("http://Localhost:8080", False),
        ("https://localhost:8080", False),
        ("http://localhost", True),
        ("http://evil.example", True),
        ("http://localhost:8080.evil.example", True),
        ("null", True),
        ("", True),
    ],
)
def test_a_page_of_another_site_is_told_from_our_own(origin: str | None, is_foreign: bool) -> None:
    fields = CIMultiDict({"Host": "localhost:8080"} | ({} if origin is None else {"Origin": origin}))
    if is_foreign:
        with pytest.raises(ClientError) as refused:
            refuse_another_sites_page(fields)
        assert refused.value.status == 403
    else:
        refuse_another_sites_page(fields)


async def test_a_page_of_another_site_cannot_spend_the_operators_key(tmp_path: Path) -> None:
    async with speaking(tmp_path, api_key="sk-operator") as (proxy, server):
        page = [*ASKS, "Origin: http://evil.example"]
        async with raw(proxy, handshake(*page)) as client:
            assert (await client.head()).startswith("HTTP/1.1 403 ")
        assert server.requests == []
        async with raw(proxy, handshake(*page, "Authorization: Bearer sk-of-its-own")) as client:
            assert "101 Switching" in await client.head()


def test_every_key_that_a_browser_offers_counts() -> None:
    def told(*fields: tuple[str, str]) -> list[str]:
        return list(with_offered_key(CIMultiDictProxy(CIMultiDict(fields))).getall("Authorization", []))

    assert told(("Sec-WebSocket-Protocol", "realtime, openai-beta.realtime-v1")) == []
    assert told(("Sec-WebSocket-Protocol", "realtime,openai-insecure-api-key.a")) == ["Bearer a"]
    assert told(
        ("Authorization", "Bearer b"),
        ("sec-websocket-protocol", "OpenAI-Insecure-API-Key.A , x"),
        ("sec-websocket-protocol", "openai-insecure-api-key.c"),
    ) == ["Bearer b", "Bearer A", "Bearer c"]


def test_a_list_of_subprotocols_loses_its_keys_and_nothing_else() -> None:
    assert without_offered_keys("realtime, openai-insecure-api-key.a,openai-beta.realtime-v1") == (
        "realtime, openai-beta.realtime-v1"
    )
    assert without_offered_keys("OPENAI-INSECURE-API-KEY.a") == ""


# Over TLS


@pytest.mark.timeout(10)  # it once stood still until the client's next ping, 20 s later
async def test_a_session_over_tls_is_carried_both_ways_and_ends_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    settings = f"server: {{tls: {{certificate: '{certificate}', key: '{key}'}}}}\n"
    async with speaking(tmp_path, settings) as (proxy, _):
        url = f"wss://127.0.0.1:{proxy.app.port}/v1/realtime?model=gpt-realtime"
        async with connect(url, ssl=trusting, max_size=None) as session:
            assert "session.created" in str(await session.recv())
            for said in ("hello", "x" * 3_000_000):
                await session.send(said)
                assert await session.recv() == said
        await until(lambda: not proxy.app.listener.stats()["connections"])
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []

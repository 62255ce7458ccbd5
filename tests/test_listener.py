"""Raw bytes on a real socket: what is served, what is refused, how a connection ends. h11 judges what comes back."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any

import h11
import pytest
from aiohttp import web

from semcache import config
from semcache.errors import ClientError, SemcacheError, StartError
from semcache.listening.client_connection import LINGER_S, Connection
from semcache.listening.listener import LINES_PER_S, SURPLUS, Listener, Sender, read_body, stream_body, whole_response
from tests.listening import CHUNKED, GET, HOST, JSON, Client, page, post, serving, until

SECRET = b"sk-do-not-repeat"

pytestmark = pytest.mark.both_loops

BAD = {
    "http 0.9": (b"GET /v1/models\r\n", 400),
    "http 0.9 by name": (b"GET /v1/models HTTP/0.9\r\n\r\n", 400),
    "http 1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "http 2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "unknown method": (b"FROB / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "connect": (b"CONNECT proxy:1 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "trace": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "long uri": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "uri not ascii": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "long field": (post(fields=b"X-Long: " + b"a" * 9000 + b"\r\n"), 431),
    "129 fields": (post(fields=b"".join(b"X-%d: 1\r\n" % n for n in range(129))), 431),
    "long head": (post(fields=b"".join(b"X-%d: %b\r\n" % (n, b"a" * 8000) for n in range(20)))[:-2], 431),
    "field not utf-8": (post(fields=b"X-Name: \xff\r\n"), 400),
    "control character": (post(fields=b"Authorization: %b\x01\r\n" % SECRET), 400),
    "nul": (post(fields=b"Authorization: %b\x00\r\n" % SECRET), 400),
    "space before colon": (post(fields=b"Authorization : %b\r\n" % SECRET), 400),
    "folded field": (post(fields=b"X: 1\r\n %b\r\n" % SECRET), 400),
    "bare line feed": (b"GET / HTTP/1.1\nHost: proxy\n\n", 400),
    "length and coding": (post(b"0\r\n\r\n", b"Content-Length: 3\r\n" + CHUNKED), 400),
    "coding and length": (post(b"0\r\n\r\n", CHUNKED + b"Content-Length: 3\r\n"), 400),
    "two lengths": (post(b"abc", b"Content-Length: 3\r\nContent-Length: 3\r\n"), 400),
    "list of lengths": (post(b"abc", b"Content-Length: 3, 3\r\n"), 400),
    "signed length": (post(b"abc", b"Content-Length: +3\r\n"), 400),
    "negative length": (post(b"abc", b"Content-Length: -3\r\n"), 400),
    "endless length": (post(b"abc", b"Content-Length: %b\r\n" % (b"9" * 400)), 400),
    "two codings": (post(b"0\r\n\r\n", CHUNKED + CHUNKED), 400),
    "no coding at all": (post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked\r\n"), 400),
    "unknown coding": (post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    "chunks in http 1.0": (post(b"0\r\n\r\n", CHUNKED, version=b"1.0"), 400),
    "bad chunk size": (post(b"0x3\r\nabc\r\n0\r\n\r\n", CHUNKED), 400),
    "long chunk extension": (post(b"1;x=%b\r\na\r\n0\r\n\r\n" % (b"y" * 20_000), CHUNKED), 400),
    "long extension of the last chunk": (post(b"1\r\na\r\n0;x=%b\r\n\r\n" % (b"y" * 20_000), CHUNKED), 400),
    "endless trailers": (post(b"0\r\n" + b"X: %b\r\n" % (b"y" * 4000) * 6, CHUNKED), 400),
}


@pytest.mark.parametrize("name", BAD)
async def test_bytes_that_are_refused_close_the_connection(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data, status = BAD[name]
    async with serving() as server:
        client = await server.connect()
        reply = await client.ask(data + GET)  # what follows must never be taken for a request
        assert reply.status == status
        assert reply.headers["connection"] == "close"
        assert SECRET not in reply.body and b"\x01" not in reply.body
        assert await client.rest() == b""
        assert not [seen for seen in server.seen if "models" in seen]
        assert SECRET.decode() not in caplog.text


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


SHORT = {name: case for name, case in BAD.items() if len(case[0]) < 200}


@pytest.mark.parametrize("name", SHORT)
async def test_where_the_bytes_are_split_changes_nothing(name: str) -> None:
    data, status = SHORT[name]
    served: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        body = await read_body(request, listener.settings)
        served.append(request.path)
        return whole_response(request, 200, JSON, body)

    listener = Listener(handler, config.Server(), page)
    loop = asyncio.get_running_loop()
    data += GET
    for cut in range(1, len(data)):
        connection, wire = Connection(listener, loop), Wire()
        connection.connection_made(wire)
        connection.data_received(data[:cut])
        connection.data_received(data[cut:])
        await until(lambda connection=connection: connection._task is None)
        assert wire.written.startswith(b"HTTP/1.1 %d " % status), (cut, wire.written)
        assert wire.written.count(b"Content-Length: ") == 1
        connection.connection_lost(None)
    assert served == []


GOOD = {
    "plain": (GET, "GET /v1/models", b"", False),
    "query": (b"GET /v1/models?limit=2 HTTP/1.1\r\n" + HOST + b"\r\n", "GET /v1/models?limit=2", b"", False),
    "line breaks before": (b"\r\n\r\n" + GET, "GET /v1/models", b"", False),
    "asked to close": (b"GET /x HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", "GET /x", b"", True),
    "http 1.0": (b"GET /x HTTP/1.0\r\n\r\n", "GET /x", b"", True),
    "http 1.0, asked to stay": (b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /x", b"", True),
    "a proxy's form": (b"GET http://elsewhere/v1/x?a=1 HTTP/1.1\r\n" + HOST + b"\r\n", "GET /v1/x?a=1", b"", False),
    "a proxy's form, no path": (b"GET http://elsewhere HTTP/1.1\r\n" + HOST + b"\r\n", "GET /", b"", False),
    "options": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "OPTIONS *", b"", False),
    "length": (post(b"abc", b"Content-Length: 3\r\n"), "POST /v1/x", b"abc", False),
    "length zero": (post(b"", b"Content-Length: 0\r\n"), "POST /v1/x", b"", False),
    "line break after a body": (post(b"abc\r\n", b"Content-Length: 3\r\n"), "POST /v1/x", b"abc", False),
    "chunks": (post(b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX: 1\r\n\r\n", CHUNKED), "POST /v1/x", b"abc", False),
    "coding in capitals": (post(b"0\r\n\r\n", b"Transfer-Encoding: CHUNKED\r\n"), "POST /v1/x", b"", False),
    "many small chunks": (post(b"1\r\na\r\n" * 9000 + b"0\r\n\r\n", CHUNKED), "POST /v1/x", b"a" * 9000, False),
    "field in utf-8": (post(fields=b"X-Name: \xc3\xa9\r\n"), "POST /v1/x", b"", False),
    "128 fields": (post(fields=b"".join(b"X-%d: 1\r\n" % n for n in range(127))), "POST /v1/x", b"", False),
    "identity": (post(b"a", b"Content-Length: 1\r\nContent-Encoding: identity\r\n"), "POST /v1/x", b"a", False),
    "another protocol declined": (
        post(fields=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        "POST /v1/x",
        b"",
        False,
    ),
    "websocket declined": (post(fields=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), "POST /v1/x", b"", True),
}


@pytest.mark.parametrize("name", GOOD)
async def test_requests_that_are_served(name: str) -> None:
    data, seen, body, closes = GOOD[name]
    async with serving() as server:
        client = await server.connect()
        reply = await client.ask(data)
        assert reply.status == 200
        assert reply.body == f"{seen} ".encode() + body
        assert reply.headers.get("connection") == ("close" if closes else None)
        assert "date" in reply.headers
        if closes:
            assert await client.rest() == b""
        else:
            assert (await client.ask()).status == 200


async def test_pipelined_requests_are_answered_in_order_however_many_come_in_one_segment() -> None:
    async with serving() as server:
        client = await server.connect()
        client.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: p\r\n\r\n" % n for n in range(120)))
        for n in range(120):
            assert (await client.reply()).body == b"GET /%d " % n
        client.write(b"".join(post(b"%03d" % n, b"Content-Length: 3\r\n", b"/%d" % n) for n in range(300)))
        for n in range(300):
            assert (await client.reply()).body == b"POST /%d %03d" % (n, n)


async def test_garbage_after_a_request_is_refused_after_its_answer() -> None:
    gate = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return whole_response(request, 200, JSON, b"{}")

    async with serving(handler) as server:
        client = await server.connect()
        client.write(GET)
        await until(lambda: server.seen)
        client.write(b"GET /v1/messages?x HTTP/1.1\r\n" + HOST + b"X : %b\r\n\r\n" % SECRET)
        client.write(GET)
        await until(lambda: server.listener._connections.copy().pop()._deaf)
        gate.set()
        assert (await client.reply()).status == 200
        refusal = await client.reply()
        assert (refusal.status, refusal.body) == (400, b"400 on /v1/messages: the request is not well-formed HTTP/1.1")
        assert await client.rest() == b""
        assert len(server.seen) == 1


async def test_garbage_behind_a_body_that_comes_late_does_not_spoil_it() -> None:
    async with serving() as server:
        client = await server.connect()
        client.write(post(b"ab", b"Content-Length: 4\r\n"))
        await until(lambda: server.seen)
        client.write(b"cd\0" + GET)
        assert (await client.reply()).body == b"POST /v1/x abcd"
        assert (await client.reply()).status == 400
        assert await client.rest() == b""
        assert len(server.seen) == 1


async def test_a_long_chunk_extension_behind_another_body_is_seen() -> None:
    async with serving() as server:
        client = await server.connect()
        extended = post(b"1;x=%b\r\na\r\n0\r\n\r\n" % (b"y" * 20_000), CHUNKED)
        assert (await client.ask(post(b"a" * 5000, b"Content-Length: 5000\r\n") + extended)).status == 200
        assert (await client.reply()).status == 400


async def test_a_body_that_looks_like_a_request_stays_a_body() -> None:
    async with serving() as server:
        client = await server.connect()
        reply = await client.ask(post(GET, b"Content-Length: %d\r\n" % len(GET)))
        assert reply.body == b"POST /v1/x " + GET
        client.write(post(b"%x\r\n%b\r\n0\r\n\r\n" % (len(GET), GET), CHUNKED))
        assert (await client.reply()).body == b"POST /v1/x " + GET
        assert server.seen == ["POST /v1/x"] * 2


async def test_a_refusal_has_the_form_of_the_path_when_the_path_can_be_seen() -> None:
    async with serving() as server:
        fields = b"".join(b"X-%d: 1\r\n" % n for n in range(129))
        reply = await server.ask(post(fields=fields, path=b"/v1/messages"))
        assert reply.body.startswith(b"431 on /v1/messages: ")
        assert (await server.ask(b"\x00\x01\x02")).body.startswith(b"400 on : ")


async def test_broken_chunks_reach_the_handler_as_its_client_s_error() -> None:
    caught: list[SemcacheError] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await read_body(request, config.Server())
        except ClientError as error:
            caught.append(error)
            raise
        raise AssertionError

    async with serving(handler) as server:
        client = await server.connect()
        client.write(post(b"3\r\nabc\r\n", CHUNKED))
        await until(lambda: server.seen)
        client.write(b"zz\r\n" + GET)
        assert (await client.reply()).status == 400
        assert await client.rest() == b""
        assert [error.status for error in caught] == [400]


# Time


async def test_a_head_has_to_be_complete_by_an_absolute_deadline() -> None:
    async with serving(header_timeout=10, keepalive=75) as server:
        client = await server.connect()
        assert (await client.ask()).status == 200
        server.pass_time(60)
        client.write(b"POST /v1/messages HT")
        await until(lambda: all(c._fruitless for c in server.listener._connections))
        for _ in range(9):
            server.pass_time(1)
            client.write(b"T")  # a byte now and then buys no time
        server.pass_time(2)
        reply = await client.reply()
        assert (reply.status, reply.body[:20]) == (408, b"408 on /v1/messages:")
        assert await client.rest() == b""


async def test_a_connection_that_never_asks_is_closed_without_a_word() -> None:
    async with serving(header_timeout=10) as server:
        client = await server.connect()
        await until(lambda: server.listener._connections)
        server.pass_time(9)
        assert server.listener.stats()["connections"] == 1
        server.pass_time(2)
        assert await client.rest() == b""


async def test_an_idle_connection_is_kept_for_as_long_as_the_settings_say() -> None:
    async with serving(keepalive=75) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.ask()).status == 200
            await until(lambda: all(c._task is None for c in server.listener._connections))
            server.pass_time(74)
        assert server.listener.stats()["connections"] == 1
        server.pass_time(2)
        assert await client.rest() == b""


async def test_a_request_that_takes_long_to_answer_meets_no_deadline_of_ours() -> None:
    gate = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return whole_response(request, 200, JSON, b"{}")

    async with serving(handler) as server:
        client = await server.connect()
        client.write(GET)
        await until(lambda: server.seen)
        server.pass_time(3600)
        gate.set()
        assert (await client.reply()).status == 200


async def test_a_body_has_to_arrive_by_an_absolute_deadline() -> None:
    async with serving(body_timeout=0.05) as server:
        client = await server.connect()
        reply = await client.ask(post(b"abc", b"Content-Length: 1000000000\r\n", version=b"1.1")[:-3])
        assert reply.status == 413  # a length that is refused buys no time either
        client = await server.connect()
        reply = await client.ask(post(b"abc", b"Content-Length: 4\r\n"))
        assert (reply.status, reply.headers["connection"]) == (408, "close")


async def test_half_open_connections_do_not_disturb_a_healthy_one() -> None:
    async with serving(header_timeout=10) as server:
        clients = [await server.connect() for _ in range(500)]
        for client in clients:
            client.write(b"POST /v1/chat/completions HTTP/1.1\r\nHo")
        await until(lambda: sum(c._fruitless > 0 for c in server.listener._connections) == 500)
        healthy = await server.connect()
        for _ in range(20):
            assert (await healthy.ask()).status == 200
        await until(lambda: all(c._task is None for c in server.listener._connections))
        server.pass_time(11)
        assert [(await client.reply()).status for client in clients] == [408] * 500
        assert (await healthy.ask()).status == 200
        assert server.listener.stats()["refused_head_timeout"] == 500


# Bodies


async def test_a_body_is_refused_by_its_length_before_it_is_asked_for() -> None:
    async with serving(max_body=100) as server:
        client = await server.connect()
        reply = await client.ask(post(fields=b"Content-Length: 101\r\nExpect: 100-continue\r\n"))
        assert (reply.status, reply.headers["connection"]) == (413, "close")


async def test_a_client_that_waits_for_leave_gets_it_once_the_checks_have_passed() -> None:
    async with serving(max_body=100) as server:
        client = await server.connect()
        assert (await client.ask(post(fields=b"Content-Length: 3\r\nExpect: 100-Continue\r\n"))).status == 100
        client.write(b"abc")
        assert (await client.reply()).body == b"POST /v1/x abc"
        reply = await client.ask(post(fields=b"Content-Length: 3\r\nExpect: a-miracle\r\n"))
        assert (reply.status, reply.headers["connection"]) == (417, "close")


@pytest.mark.parametrize("fields", [b"a-miracle", b"100-continue, a-miracle", b"100-continue\r\nExpect: a-miracle"])
async def test_an_expectation_that_cannot_be_met_is_refused_though_its_body_is_here(fields: bytes) -> None:
    async with serving() as server:
        reply = await server.ask(post(b"abc", b"Content-Length: 3\r\nExpect: %b\r\n" % fields))
        assert reply.status == 417


async def test_a_client_of_http_1_0_is_never_told_to_go_on() -> None:
    async with serving() as server:
        client = await server.connect()
        client.write(post(fields=b"Content-Length: 3\r\nExpect: 100-continue\r\n", version=b"1.0"))
        await until(lambda: server.seen)
        client.write(b"abc")
        assert (await client.reply()).body == b"POST /v1/x abc"


async def test_a_body_that_comes_with_its_head_is_not_asked_for() -> None:
    async with serving() as server:
        reply = await server.ask(post(b"abc", b"Content-Length: 3\r\nExpect: 100-continue\r\n"))
        assert (reply.status, reply.body) == (200, b"POST /v1/x abc")


async def test_a_client_that_got_leave_and_sends_nothing_is_told_so() -> None:
    async with serving(body_timeout=0.05) as server:
        client = await server.connect()
        assert (await client.ask(post(fields=b"Content-Length: 3\r\nExpect: 100-continue\r\n"))).status == 100
        assert (await client.reply()).status == 408


async def test_a_client_that_waits_for_leave_is_refused_without_it() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        raise ClientError("who are you?", status=401, headers={"WWW-Authenticate": "Bearer"})

    async with serving(handler) as server:
        client = await server.connect()
        reply = await client.ask(post(fields=b"Content-Length: 3\r\nExpect: 100-continue\r\n"))
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert await client.rest() == b""


async def test_a_chunked_body_is_counted_while_it_comes_and_the_refusal_arrives_while_it_is_still_sent() -> None:
    async with serving(max_body=100_000) as server:
        client = await server.connect()
        client.write(post(fields=CHUNKED))
        chunk = b"%x\r\n%b\r\n" % (50_000, b"a" * 50_000)
        reading = asyncio.create_task(client.reply())
        for _ in range(60):  # 3 MB, most of it after the refusal
            client.write(chunk)
            await client.writer.drain()
        reply = await reading
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert await client.rest() == b""


async def test_a_client_that_keeps_sending_after_its_last_response_is_cut() -> None:
    async with serving(max_body=10) as server:
        client = await server.connect()
        assert (await client.ask(post(fields=b"Content-Length: 11\r\n"))).status == 413
        await until(lambda: all(c._task is None for c in server.listener._connections))
        server.pass_time(LINGER_S + 1)
        await until(lambda: server.listener.stats()["connections"] == 0)


async def test_a_large_body_is_read_whole() -> None:
    body = bytes(range(256)) * 4096 * 3
    async with serving() as server:
        client = await server.connect()
        assert (await client.ask(post(body, b"Content-Length: %d\r\n" % len(body)))).body == b"POST /v1/x " + body
        pieces = b"".join(b"%x\r\n%b\r\n" % (1000, body[at : at + 1000]) for at in range(0, 1_000_000, 1000))
        client.write(post(pieces + b"0\r\n\r\n", CHUNKED))
        assert (await client.reply()).body == b"POST /v1/x " + body[:1_000_000]


async def test_a_streamed_body_holds_the_sender_back_while_nobody_reads() -> None:
    gate = asyncio.Event()
    received = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal received
        await gate.wait()
        assert request.content.total_bytes < 1024 * 1024
        async for piece in stream_body(request, config.Server()):
            received += len(piece)
        return whole_response(request, 200, JSON, b"{}")

    async with serving(handler) as server:
        client = await server.connect()
        client.write(post(fields=b"Content-Length: %d\r\n" % (20 << 20)))
        client.write(b"a" * (20 << 20))
        await until(lambda: any(c._reading_paused for c in server.listener._connections))
        gate.set()
        assert (await client.reply()).status == 200
        assert received == 20 << 20


# Answers


async def test_head_and_statuses_without_a_body_have_none() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/sender":
            sender = Sender(request, 200, JSON)
            await sender.send(b"not for HEAD")
            return await sender.end()
        return whole_response(request, int(request.path[1:]), JSON, b"{}" if request.method == "HEAD" else b"")

    async with serving(handler) as server:
        client = await server.connect()
        reply = await client.ask(b"HEAD /200 HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (reply.status, reply.headers["content-length"], reply.body) == (200, "2", b"")
        assert (await client.ask(b"HEAD /sender HTTP/1.1\r\n" + HOST + b"\r\n")).body == b""
        for status in (204, 304):
            reply = await client.ask(b"GET /%d HTTP/1.1\r\n" % status + HOST + b"\r\n")
            assert (reply.status, reply.body) == (status, b"")
            assert "content-length" not in reply.headers and "transfer-encoding" not in reply.headers


async def test_a_complete_stream_is_chunked_where_chunks_are_known() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, [("Content-Type", "text/event-stream")], b"data: 1\n\n", is_stream=True)

    async with serving(handler) as server:
        reply = await server.ask()
        assert (reply.headers["transfer-encoding"], reply.body) == ("chunked", b"data: 1\n\n")
        reply = await server.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert (reply.headers["content-length"], reply.body) == ("9", b"data: 1\n\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_stream_goes_out_as_it_comes(version: bytes) -> None:
    steps: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, [("Content-Type", "text/event-stream")])
        while piece := await steps.get():
            await sender.send(piece)
        return await sender.end()

    async with serving(handler) as server:
        client = await server.connect()
        client.write(b"GET / HTTP/%b\r\n" % version + HOST + b"\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")  # before the first piece is there
        assert (b"chunked" in head, b"Connection: close" in head) == (version == b"1.1", version == b"1.0")
        for piece in (b"data: 1\n\n", b"data: 2\n\n"):
            steps.put_nowait(piece)
            await client.reader.readuntil(piece)
        steps.put_nowait(b"")
        if version == b"1.0":
            assert await client.reader.read() == b""
        else:
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
            client.write(GET)
            await client.reader.readuntil(b"200 OK")
            steps.put_nowait(b"")


async def test_large_pieces_and_large_answers_arrive_whole() -> None:
    body = bytes(range(256)) * 8000

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/whole":
            return whole_response(request, 200, JSON, body)
        if request.path == "/stream":
            return whole_response(request, 200, JSON, body, is_stream=True)
        sender = Sender(request, 200, JSON)
        await sender.send(body)
        return await sender.end()

    async with serving(handler) as server:
        client = await server.connect()
        for path in (b"/whole", b"/stream", b"/sender", b"/whole"):
            assert (await client.ask(b"GET %b HTTP/1.1\r\n" % path + HOST + b"\r\n")).body == body


async def test_framing_and_connection_fields_of_others_are_not_repeated() -> None:
    others = [("Transfer-Encoding", "gzip"), ("Connection", "close"), ("content-length", "7"), ("Date", "today")]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, [*others, ("X-Kept", "1")], b"{}")

    async with serving(handler) as server:
        reply = await server.ask()
        assert reply.headers == {"date": "today", "x-kept": "1", "content-length": "2"}


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\0"])
async def test_a_field_cannot_add_another_field(value: str) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, [("X-Request-Id", value)], b"{}")

    async with serving(handler) as server:
        reply = await server.ask()
        assert reply.status == 500 and "x-evil" not in reply.headers


async def test_aiohttp_s_own_responses_are_served_too() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/whole":
            return web.json_response({"ok": True})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"1")
        await response.write_eof()
        return response

    async with serving(handler) as server:
        client = await server.connect()
        assert (await client.ask(b"GET /whole HTTP/1.1\r\n" + HOST + b"\r\n")).body == b'{"ok": true}'
        assert (await client.ask(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")).body == b"1"
        reply = await client.ask(b"GET /whole HTTP/1.0\r\n" + HOST + b"\r\n")
        assert reply.body == b'{"ok": true}' and await client.rest() == b""


async def test_an_unforeseen_error_is_a_500_without_its_story(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/nothing":
            return None  # type: ignore[return-value]
        raise ValueError(SECRET.decode())

    async with serving(handler) as server:
        client = await server.connect()
        for _ in range(50):
            reply = await client.ask()
            assert (reply.status, reply.body) == (500, b"500 on /v1/models: internal error")
        assert len(caplog.records) == LINES_PER_S
        server.pass_time(1)
        assert (await client.ask(b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n")).status == 500
        assert "(and 40 more like it)" in caplog.records[-1].getMessage()
        assert "ValueError at test_listener.py" in caplog.text
        assert SECRET.decode() not in caplog.text


async def test_a_cancellation_that_was_not_meant_for_the_handler_is_an_error_like_others() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        await other
        raise AssertionError

    async with serving(handler) as server:
        assert (await server.ask()).status == 500


# Breaks


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_breaks_off_does_not_look_complete(version: bytes) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        await sender.send(b'data: {"half": ')
        return await sender.abort(b"data: sorry\n\n")

    async with serving(handler) as server:
        client = await server.connect()
        client.write(b"GET / HTTP/%b\r\n" % version + HOST + b"\r\n")
        if version == b"1.0":
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
        else:
            received = await client.reader.read()
            assert received.endswith(b"data: sorry\n\n\r\n")  # the last words, and no last chunk


async def test_an_error_in_the_middle_of_an_answer_breaks_it_off() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        await sender.send(b"half")
        raise ValueError

    async with serving(handler) as server:
        with pytest.raises(h11.RemoteProtocolError):
            await server.ask()


async def test_the_handler_is_cancelled_when_its_client_leaves() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path == "/body":
                await read_body(request, config.Server())
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.put_nowait(request.path)
            raise
        raise AssertionError

    async with serving(handler) as server:
        for data in (b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n", post(b"a", b"Content-Length: 9\r\n", b"/body")):
            client = await server.connect()
            client.write(data)
            await until(lambda: server.listener.requests)
            client.writer.close()
            assert (await ended.get()).encode() in data
            await until(lambda: not server.listener.requests)


async def test_a_reader_that_takes_nothing_holds_little_and_is_cut() -> None:
    sent = 0
    ended = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        try:
            sender = Sender(request, 200, JSON)
            while True:
                await sender.send(b"a" * 4096)
                sent += 4096
        finally:
            ended.set()

    async with serving(handler, send_timeout=60) as server:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", server.port))
            await loop.sock_sendall(slow, GET)
            await until(lambda: any(c._paused for c in server.listener._connections))
            assert sent < 256 * 1024
            server.pass_time(1)
            held = sent
            server.pass_time(30)
            while len(await loop.sock_recv(slow, 65536)) and sent == held:
                pass  # it takes something: a slow reader, not a dead one
            server.pass_time(40)
            server.pass_time(50)
            assert not ended.is_set()
            server.pass_time(61)
            await ended.wait()
            assert server.listener.stats()["refused_slow_reader"] == 1


async def test_a_reader_that_leaves_its_whole_answer_lying_is_cut() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, JSON, b"a" * (8 << 20))

    async with serving(handler, send_timeout=60) as server:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", server.port))
            await loop.sock_sendall(slow, GET)
            await until(lambda: any(c._paused for c in server.listener._connections))
            server.pass_time(1)
            server.pass_time(61)
            await until(lambda: server.listener.stats()["connections"] == 0)


# The port


async def test_a_taken_port_is_told_in_one_line() -> None:
    async with serving() as server:
        other = Listener(server.listener.handler, config.Server(), page)
        with pytest.raises(StartError, match=rf"^cannot listen on 127.0.0.1, port {server.port}: the port is taken$"):
            await other.start("127.0.0.1", server.port)
        with pytest.raises(StartError, match=r"^cannot listen on 192\.0\.2\.1, port 0: "):
            await other.start("192.0.2.1", 0)
        await other.drain(0)


async def test_two_listeners_share_a_port_when_asked() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, JSON, b"{}")

    first, second = (Listener(handler, config.Server(), page) for _ in range(2))
    port = await first.start("127.0.0.1", 0, reuse_port=True)
    assert await second.start("127.0.0.1", port, reuse_port=True) == port
    await first.drain(1)
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    assert (await client.ask()).status == 200
    client.writer.close()
    await second.drain(1)


async def test_connections_beyond_the_cap_are_told_and_the_log_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(max_connections=3) as server:
        kept = [await server.connect() for _ in range(3)]
        for client in kept:
            assert (await client.ask()).status == 200
        for _ in range(SURPLUS):
            reply = await server.ask()
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        with pytest.raises((h11.RemoteProtocolError, ConnectionResetError, EOFError)):
            await server.ask()
        assert len(caplog.records) == LINES_PER_S
        assert server.listener.stats()["refused_connections"] == SURPLUS + 1
        for client in server.clients[3:]:
            client.writer.close()
        kept[0].writer.close()
        await until(lambda: server.listener.stats()["connections"] == 2)
        assert (await server.ask()).status == 200


async def test_running_out_of_files_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        loop = asyncio.get_running_loop()
        trouble = {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "no files")}
        for _ in range(1000):
            loop.call_exception_handler(trouble)
        assert len(caplog.records) == LINES_PER_S
        assert (await server.ask()).status == 200
        with caplog.at_level(logging.ERROR):
            loop.call_exception_handler({"message": "something else"})
        assert "something else" in caplog.records[-1].getMessage()


async def test_drain_refuses_the_new_closes_the_idle_and_lets_the_running_finish() -> None:
    gate = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON) if request.path == "/stream" else None
        if request.path != "/v1/models":
            await gate.wait()
        if sender is None:
            return whole_response(request, 200, JSON, b"{}")
        await sender.send(b"{}")
        return await sender.end()

    async with serving(handler) as server:
        idle, streaming, waiting, asking = [await server.connect() for _ in range(4)]
        await idle.ask()
        streaming.write(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
        waiting.write(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        asking.write(GET[:-2])
        await until(lambda: len(server.seen) == 3 and any(c._fruitless for c in server.listener._connections))
        draining = asyncio.create_task(server.listener.drain(60))
        assert await idle.rest() == b""
        with pytest.raises(OSError):
            await server.connect()
        asking.write(GET[-2:])  # its head was on the way when the drain began
        reply = await asking.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        gate.set()
        assert (await streaming.reply()).body == b"{}"
        reply = await waiting.reply()
        assert (reply.status, reply.headers["connection"], reply.body) == (200, "close", b"{}")
        for client in (streaming, waiting, asking):
            assert await client.rest() == b""
            client.writer.close()
        await draining


async def test_what_still_runs_at_the_drain_s_deadline_is_visibly_broken_off() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await sender.abort(b"data: shutting down\n\n")
            raise
        raise AssertionError

    async with serving(handler) as server:
        client = await server.connect()
        client.write(GET)
        await until(lambda: server.seen)
        await server.listener.drain(0.01)
        received = await client.reader.read()
        assert received.endswith(b"data: shutting down\n\n\r\n")
        assert server.listener.stats()["connections"] == 0

"""Requests whose bodies are packed, on a real socket: the same questions as plain ones, or refused in good time."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from semcache.config import Server
from semcache.listening.encoding import encode
from semcache.listening.listener import stream_body, whole_response
from tests.harness import Proxy, running_proxy
from tests.listening import CHUNKED, JSON, post, serving, until

pytestmark = pytest.mark.both_loops

QUESTION = {"model": "small", "messages": [{"role": "user", "content": "Where is my parcel now"}]}


def packed(body: bytes, coding: str = "gzip", fields: bytes = b"", length: int | None = None) -> bytes:
    declared = b"Content-Encoding: %b\r\nContent-Length: %d\r\n" % (coding.encode(), length or len(body))
    return post(body, declared + fields)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [3, 300_000, 3_000_000])
async def test_a_packed_body_is_read_plain(coding: Any, size: int) -> None:
    body = random.Random(7).randbytes(size // 3) * 3
    async with serving() as server:
        client = await server.connect()
        data = encode(coding, body)
        assert (await client.ask(packed(data, coding))).body == b"POST /v1/x " + body
        pieces = b"".join(
            b"%x\r\n%b\r\n" % (len(data[at : at + 999]), data[at : at + 999]) for at in range(0, len(data), 999)
        )
        client.write(post(pieces + b"0\r\n\r\n", CHUNKED + b"Content-Encoding: %b\r\n" % coding.encode()))
        assert (await client.reply()).body == b"POST /v1/x " + body


@pytest.mark.parametrize("at", [1, 9, 10, 20, -9, -8, -1])
async def test_where_the_packed_bytes_are_split_changes_nothing(at: int) -> None:
    data = gzip.compress(b"Where is my parcel?")
    async with serving() as server:
        client = await server.connect()
        client.write(packed(data[:at], length=len(data)))
        await until(lambda: server.seen)
        client.write(data[at:])
        assert (await client.reply()).body == b"POST /v1/x Where is my parcel?"


REFUSED = {
    "plain": (b'{"model": "m"}', 400),
    "nothing": (b"", 400),
    "cut": (gzip.compress(b"{}" * 99)[:-1], 400),
    "garbage behind": (gzip.compress(b"{}") + b"{}", 400),
    "a bomb": (gzip.compress(b"\0" * (50 << 20)), 413),
    "too large unpacked": (gzip.compress(random.Random(7).randbytes(2_000_001)), 413),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_unpacked_is_refused(name: str) -> None:
    data, status = REFUSED[name]
    async with serving(max_body=2_000_000) as server:
        reply = await server.ask(packed(data))
        assert reply.status == status
        assert b"zlib" not in reply.body and b"Error" not in reply.body


async def test_a_bomb_delays_nobody() -> None:
    """Unpacked in slices, with a turn for the others after each."""
    slowest = 0.0
    bomb = packed(gzip.compress(random.Random(7).randbytes(400_000) * 60))
    async with serving() as server:
        attacker, other = await server.connect(), await server.connect()
        for _ in range(3):
            attacker.write(bomb)
            refusal = asyncio.create_task(attacker.reply())
            answered = 0
            while not refusal.done():
                started = time.perf_counter()
                assert (await other.ask()).status == 200
                slowest = max(slowest, time.perf_counter() - started)
                answered += 1
            assert (await refusal).status == 200
            assert answered > 50  # of 366 slices
        assert slowest < 0.25


@pytest.mark.parametrize("fields", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("coding", ["deflate", "br", "gzip, gzip", "gzip\r\nContent-Encoding: gzip"])
async def test_other_codings_are_refused_before_the_body_with_those_that_are_understood(
    coding: str, fields: bytes
) -> None:
    async with serving() as server:
        client = await server.connect()
        reply = await client.ask(packed(b"", coding, fields, length=1000))
        assert (reply.status, reply.headers["accept-encoding"]) == (415, "gzip, zstd")
        assert reply.headers["connection"] == "close"


async def test_who_waits_for_leave_may_send_a_packed_body() -> None:
    data = gzip.compress(b"{}")
    async with serving() as server:
        client = await server.connect()
        assert (await client.ask(packed(b"", "gzip", b"Expect: 100-continue\r\n", len(data)))).status == 100
        client.write(data)
        assert (await client.reply()).body == b"POST /v1/x {}"


async def test_a_body_that_passes_through_keeps_its_bytes() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        pieces = [piece async for piece in stream_body(request, Server())]
        return whole_response(request, 200, JSON, b"".join(pieces))

    async with serving(handler) as server:
        client = await server.connect()
        for coding in ("br", "gzip", "gzip, gzip"):
            assert (await client.ask(packed(b"whatever it is", coding))).body == b"whatever it is"


# Through the whole proxy


async def send(proxy: Proxy, data: bytes, path: str = "/chat/completions", **headers: str) -> httpx.Response:
    headers = {"Authorization": "Bearer sk-test", "Content-Type": "application/json", **headers}
    async with httpx.AsyncClient() as client:
        return await client.post(proxy.url + path, content=data, headers=headers)


async def test_a_question_is_the_same_however_it_is_packed_and_goes_upstream_plain(tmp_path: Path) -> None:
    body = json.dumps(QUESTION).encode()
    async with running_proxy(tmp_path) as proxy:
        first = await send(proxy, gzip.compress(body), **{"Content-Encoding": "gzip", "Content-MD5": "x"})
        assert first.status_code == 200 and "fwd=miss" in first.headers["Cache-Status"]
        assert proxy.backend.bodies == [QUESTION]
        assert not {"content-encoding", "content-md5"} & {name.lower() for name in proxy.backend.headers[0]}
        await proxy.landed()
        for data, coding in ((body, "identity"), (encode("zstd", body), "zstd"), (gzip.compress(body), "x-gzip")):
            again = await send(proxy, data, **{"Content-Encoding": coding})
            assert "hit" in again.headers["Cache-Status"]
        assert len(proxy.backend.bodies) == 1


async def test_a_packed_body_that_is_none_is_refused_in_the_dialect(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        reply = await send(proxy, b"{}", **{"Content-Encoding": "gzip"})
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == "the request body is not gzip, or damaged"
        reply = await send(proxy, b"{}", **{"Content-Encoding": "compress"})
        assert (reply.status_code, reply.headers["Accept-Encoding"]) == (415, "gzip, zstd")
        assert proxy.backend.bodies == []


async def test_a_packed_body_for_another_endpoint_arrives_there_as_it_was_sent(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        data = gzip.compress(b"--b\r\n...")
        await send(
            proxy, data, "/files", **{"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=b"}
        )
        assert proxy.backend.headers[-1]["Content-Encoding"] == "gzip"

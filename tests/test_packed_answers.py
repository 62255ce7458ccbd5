"""Answers that leave packed: for whom, and which never."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from semcache.listening.listener import whole_response
from semcache.listening.sending import PACK_INLINE_BYTES
from tests.fakes import ModelServer
from tests.harness import running_proxy
from tests.listening import JSON, Handler, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.both_loops

UNPACK: dict[str | None, Any] = {"gzip": gzip.decompress, "zstd": zstd.decompress, None: bytes}
LARGE = json.dumps({"text": "Where is my parcel? " * 2000}).encode()
HUGE = json.dumps({"text": [f"parcel {number}" for number in range(60_000)]}).encode()
assert len(LARGE) < PACK_INLINE_BYTES < len(HUGE)


def gives(body: bytes, headers: list[tuple[str, str]] = JSON, status: int = 200, **options: Any) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, status, headers, body, compress_from=16_000, **options)

    return handler


def get(accepts: str | None, method: str = "GET") -> bytes:
    field = "" if accepts is None else f"Accept-Encoding: {accepts}\r\n"
    return f"{method} / HTTP/1.1\r\nHost: proxy\r\n{field}\r\n".encode()


@pytest.mark.parametrize("body", [LARGE, HUGE], ids=["large", "huge"])
@pytest.mark.parametrize(
    "accepts, coding",
    [
        ("gzip, deflate", "gzip"),
        ("zstd", "zstd"),
        ("gzip\r\nAccept-Encoding: zstd", "zstd"),
        ("br", None),
        (None, None),
    ],
)
async def test_a_large_answer_is_packed_for_who_accepts_it_and_says_that_this_was_chosen(
    body: bytes, accepts: str | None, coding: str | None
) -> None:
    async with serving(gives(body)) as server:
        client = await server.connect()
        for _ in range(2):
            reply = await client.ask(get(accepts))
            assert reply.headers.get("content-encoding") == coding
            assert reply.headers["vary"] == "Accept-Encoding"
            assert int(reply.headers["content-length"]) == len(reply.body)
            assert UNPACK[coding](reply.body) == body
            assert coding is None or len(reply.body) < len(body) / 2


ETAG = [*JSON, ("ETag", '"1"')]
AS_IT_IS = {
    "small": gives(b"{}"),
    "no json": gives(LARGE, [("Content-Type", "audio/mpeg")]),
    "a stream": gives(LARGE, [("Content-Type", "text/event-stream")], is_stream=True),
    "with an etag": gives(LARGE, ETAG),
    "packed already": gives(gzip.compress(b"x" * 10) + b"y" * 20_000, [*JSON, ("Content-Encoding", "gzip")]),
    "with a digest": gives(LARGE, [*JSON, ("Content-Digest", "sha-256=:x:")]),
    "not to be transformed": gives(LARGE, [*JSON, ("Cache-Control", "private, No-Transform")]),
}


@pytest.mark.parametrize("name", AS_IT_IS)
async def test_what_is_small_or_not_ours_to_change_goes_out_as_it_is(name: str) -> None:
    async with serving(AS_IT_IS[name]) as server:
        plain = await server.ask(get(None))
        reply = await server.ask(get("gzip, zstd"))
        assert reply.body == plain.body and "vary" not in reply.headers
        assert reply.headers.get("content-encoding") == plain.headers.get("content-encoding")


async def test_a_small_answer_is_packed_for_who_refuses_it_plain() -> None:
    async with serving(gives(b"{}")) as server:
        reply = await server.ask(get("gzip, identity;q=0"))
        assert (reply.headers["content-encoding"], gzip.decompress(reply.body)) == ("gzip", b"{}")


async def test_nothing_is_packed_where_nothing_is_to_be() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return whole_response(request, 200, JSON, LARGE)

    async with serving(handler) as server:
        reply = await server.ask(get("gzip"))
        assert reply.body == LARGE and "vary" not in reply.headers


async def test_statuses_without_a_body_have_none_however_large_it_would_be() -> None:
    for method, status in (("HEAD", 200), ("GET", 304)):
        async with serving(gives(LARGE, status=status)) as server:
            assert (await server.ask(get("gzip", method))).body == b""


@pytest.mark.parametrize("compress_from", ["16KB", "null"])
async def test_misses_and_hits_are_packed_alike_and_streams_are_not(tmp_path: Path, compress_from: str) -> None:
    backend = ModelServer()
    backend.extra = {"padding": "parcel " * 5000}
    body = {"model": "small", "messages": [{"role": "user", "content": "Where is my parcel now"}]}
    async with running_proxy(tmp_path, f"server: {{compress_from: {compress_from}}}", backend=backend) as proxy:
        headers = {"Authorization": "Bearer sk-test", "Accept-Encoding": "gzip"}
        async with httpx.AsyncClient(headers=headers) as client:
            for _ in range(2):
                reply = await client.post(f"{proxy.url}/chat/completions", json=body)
                assert reply.headers.get("Content-Encoding") == (None if compress_from == "null" else "gzip")
                assert reply.json()["padding"] == "parcel " * 5000
                await proxy.landed()
            stream = await client.post(f"{proxy.url}/chat/completions", json={**body, "stream": True})
            assert "Content-Encoding" not in stream.headers and "hit" in stream.headers["Cache-Status"]
            plain = await client.post(
                f"{proxy.url}/chat/completions", json=body, headers={"Accept-Encoding": "identity"}
            )
            assert "Content-Encoding" not in plain.headers and plain.json()["padding"] == "parcel " * 5000

"""How a request's body is read: counted while it comes, against an absolute deadline, and only once it is wanted.

A body is refused by its declared length before a byte of it is read, and a client that asks first (`Expect:
100-continue`) is told to go on only after every check has passed: who asks for a body has already looked at the key.

A body that is read comes out unpacked, so that equal questions are equal however they were sent; what is sent on of it
has no content coding any more. A body that passes through keeps its bytes and its coding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol, cast

from aiohttp import web
from aiohttp.http import HttpVersion11

from semcache import config
from semcache.errors import ClientError
from semcache.listening.encoding import Coding, Decoder, coding_of

FREE_BYTES = 1024 * 1024  # a body of up to this gets settings.body_timeout
FLOOR_BYTES_S = 64 * 1024  # and beyond it a second more for so much received: a declared length buys no time


class _Wire(Protocol):
    def go_on(self) -> None:
        """Tell a client that waits for it to send its body."""


async def read_body(request: web.BaseRequest, settings: config.Server, limit_bytes: int | None = None) -> bytes:
    """Return the whole body, unpacked, at most `limit_bytes` (settings.max_body).

    Raises ClientError: 413 too large, 408 too slow, 415 a coding not understood, 417 an unknown expectation, 400 broken
    framing, or not packed as it says.
    """
    limit = settings.max_body if limit_bytes is None else limit_bytes
    content = request.content
    headers = request.headers
    coding = coding_of(headers.getall("Content-Encoding")) if "Content-Encoding" in headers else None
    if coding is not None:
        return await _unpacked(stream_body(request, settings, limit), coding, limit)
    if content.is_eof():  # the common case: a small body came in the same segment as its head
        _check(request, limit)
        body = content.read_nowait()
        if len(body) > limit:
            raise _too_large(limit)
        return body
    return b"".join([piece async for piece in stream_body(request, settings, limit)])


async def _unpacked(pieces: AsyncIterator[bytes], coding: Coding, limit_bytes: int) -> bytes:
    """Read and unpack. Others get their turn after each slice, so a large body costs nobody more than 0.2 ms at once;
    on a thread it would go on for a client that has left."""
    decoder = Decoder(coding, limit_bytes)
    slices: list[bytes] = []
    async for piece in pieces:
        for decoded in decoder.feed(piece):
            if slices:
                await asyncio.sleep(0)
            slices.append(decoded)
    decoder.finish()
    return b"".join(slices)


async def read_ahead(request: web.BaseRequest, settings: config.Server) -> tuple[bytes | None, AsyncIterator[bytes]]:
    """Return a body that may pass through and may be worth reading: whole, unless it is packed or larger than
    settings.max_body, and as the stream that goes on either way. Raises ClientError as `stream_body` does.
    """
    pieces = stream_body(request, settings, settings.max_upload)
    length = request.headers.get("Content-Length", "0")
    if "Content-Encoding" in request.headers or int(length) > settings.max_body:
        return None, pieces
    seen: list[bytes] = []
    seen_bytes = 0
    async for piece in pieces:
        seen.append(piece)
        seen_bytes += len(piece)
        if seen_bytes > settings.max_body:
            return None, _joined(seen, pieces)
    body = b"".join(seen)
    return body, _joined([body], pieces)


async def _joined(seen: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in seen:
        yield piece
    async for piece in rest:
        yield piece


async def stream_body(
    request: web.BaseRequest, settings: config.Server, limit_bytes: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Only waiting for the client counts against its deadline, not what is done in between.

    Raises ClientError: 413, 408, 417, or 400 for broken framing.
    """
    limit = settings.max_body if limit_bytes is None else limit_bytes
    accept_body(request, limit)
    content = request.content
    loop = asyncio.get_running_loop()
    received = 0
    waited_s = 0.0
    while not content.at_eof():
        allowed_s = settings.body_timeout + max(0, received - FREE_BYTES) / FLOOR_BYTES_S
        started = loop.time()
        try:
            async with asyncio.timeout(allowed_s - waited_s):
                piece = await content.readany()
        except TimeoutError as exc:
            raise ClientError(
                f"the request body did not arrive within {allowed_s:.0f} s", status=408, code="request_timeout"
            ) from exc
        waited_s += loop.time() - started
        received += len(piece)
        if received > limit:
            raise _too_large(limit)
        if piece:
            yield piece


def accept_body(request: web.BaseRequest, limit_bytes: int) -> None:
    """Check what can be checked before the body, then let a client go on that waits for leave. Raises ClientError."""
    _check(request, limit_bytes)
    if "Expect" in request.headers and request.version == HttpVersion11 and not request.content.total_bytes:
        cast(_Wire, request.protocol).go_on()  # what has sent a byte of its body did not wait


def _check(request: web.BaseRequest, limit_bytes: int) -> None:
    for expectation in request.headers.getall("Expect", ()):
        if expectation.lower() != "100-continue":
            raise ClientError("this expectation cannot be met", status=417, code="expectation_failed")
    length = request.headers.get("Content-Length")  # digits: the parser refuses anything else
    if length is not None and int(length) > limit_bytes:
        raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> ClientError:
    return ClientError(f"the request body is larger than {limit_bytes} bytes", status=413, code="request_too_large")

"""The cache inside a program that calls model APIs over httpx: give the SDK a client with this transport.

What has a dialect here lives the life of any request of the proxy and comes with its `Cache-Status`; everything else
goes out as it is. Works with httpx2, which the SDKs of OpenAI and Anthropic use, and with httpx.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from multidict import CIMultiDict

from semcache.backends.headers import returned_headers
from semcache.delivery import Delivery
from semcache.errors import SemcacheError
from semcache.forwarding import record
from semcache.inprocess import Cache, FetchFailed, find_address, raised_for
from semcache.planning import Plan
from semcache.wire.dialect import Reading
from semcache.wire.recording import Recording

# One library under two names; a client takes only what is of its own.
_LIBRARIES: list[Any] = [import_module(name) for name in ("httpx2", "httpx") if find_spec(name)]
if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport, AsyncByteStream, Request, Response
else:
    AsyncBaseTransport = type("AsyncBaseTransport", tuple(library.AsyncBaseTransport for library in _LIBRARIES), {})
    AsyncByteStream = type("AsyncByteStream", tuple(library.AsyncByteStream for library in _LIBRARIES), {})

# Said to the cache, or written anew; and an answer that is read here must come unencoded.
_ENDS_HERE = b"accept-encoding cache-control content-length semcache-control transfer-encoding".split()


class CachedTransport(AsyncBaseTransport):
    def __init__(self, cache: Cache, transport: AsyncBaseTransport | None = None, *, stream_usage: bool = True) -> None:
        """`cache`: open, in the event loop of the requests. Closing the client leaves it open.
        `transport`: what requests go out through, with its limits and proxies; None: as the library has it.
        `stream_usage`: ask for the usage of every stream, for those who will; False for servers that refuse to tell.
        """
        self._cache, self._transport, self._stream_usage = cache, transport, stream_usage

    async def handle_async_request(self, request: Request) -> Response:
        library = next(library for library in _LIBRARIES if isinstance(request, library.Request))
        transport = self._transport = self._transport or library.AsyncHTTPTransport()
        is_plain = request.method == "POST" and "content-encoding" not in request.headers
        address = find_address(str(request.url)) if is_plain else None
        if address is None:
            return await transport.handle_async_request(request)
        headers, source = CIMultiDict(request.headers.multi_items()), partial(self._write, library, request)
        try:
            delivery = await self._cache.respond(address, headers, await request.aread(), source)
        except SemcacheError as error:
            cause = raised_for(error, library.RemoteProtocolError)
            raise cause from cause.__cause__
        body = _Body(delivery, library.RemoteProtocolError)
        return cast("Response", library.Response(delivery.status, headers=delivery.headers, stream=body))

    async def _write(self, library: Any, request: Request, plan: Plan, recording: Recording) -> Reading:
        fields = [(name, value) for name, value in request.headers.raw if name.lower() not in _ENDS_HERE]
        fields.append((b"Accept-Encoding", b"identity"))
        body = plan.dialect.upstream_body(plan.ask, ask_usage=self._stream_usage)
        sent = library.Request("POST", request.url, headers=fields, content=body, extensions=request.extensions)
        try:
            reply: Any = await self._transport.handle_async_request(sent)  # type: ignore[union-attr]
            try:
                # Framed so that a cut is noticed; what ends with its connection may be cut anywhere.
                framed = (
                    reply.headers.keys() & {"content-length", "transfer-encoding"} or reply.http_version == "HTTP/2"
                )
                head = (reply.status_code, returned_headers(reply.headers.multi_items()), request.url.host)
                return await record(plan, recording, *head, aiter(reply.stream), lambda: bool(framed))
            finally:
                await reply.aclose()
        except Exception as exc:  # a timeout, say: whatever it is, it is for those who asked
            raise FetchFailed(exc) from exc

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()


class _Body(AsyncByteStream):
    def __init__(self, delivery: Delivery, broken: type[Exception]) -> None:
        self._delivery, self._broken = delivery, broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._delivery.pieces():
                yield piece
        except SemcacheError as error:
            cause = raised_for(error, self._broken)
            raise cause from cause.__cause__

    async def aclose(self) -> None:
        self._delivery.close()

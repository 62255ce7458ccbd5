"""One client's connection: bytes in, requests in order, one at a time, each answered or refused.

aiohttp's parser reads and its request and response classes are used as they are; the life of the connection is ours,
because every deadline and every refusal has to be in one place. The rules:

- Ambiguous framing is refused and the connection closed; what follows on it is never read as a request.
- Nothing of a request is in a log line or in a refusal.
- A connection costs a task only while a request is under way, and that task is cancelled when the client leaves.
- A response says that the connection stays open only if the request's body has arrived whole.
- Bytes behind a request that asks for another protocol are never read as a request: they wait for the WebSocket that
  was asked for, and are dropped with the connection when it is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from semcache import config
from semcache.errors import STOPPING, ClientError, SemcacheError
from semcache.listening.head import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    Refusal,
    head_too_large,
    in_origin_form,
    is_request_line,
    judge,
    malformed,
    objection,
    path_of,
)
from semcache.listening.sending import ClientGone, closing_response, whole_response
from semcache.tunnel import End, Headers, is_handshake, reset_on_close, switching

MAX_CHUNK_OVERHEAD_BYTES = 8 * 1024  # of chunk extensions and trailers between two bytes of a body
READ_BUFFER_BYTES = 64 * 1024  # of a body that nobody reads yet; twice that, and the socket is left alone
MAX_PIPELINED = 16  # requests read ahead
SLICE_BYTES = 4 * 1024  # input is parsed in slices of this where the overhead has to be seen
LINGER_S = 5.0  # after a last response the client may still be sending; closing at once would cost it the response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ErrorPage = Callable[[str, SemcacheError], tuple[bytes, str]]  # path or "", error -> body, content type


class Owner(Protocol):
    """What the connections of one listener share."""

    settings: config.Server
    handler: Handler
    error_page: ErrorPage
    draining: bool
    requests: int  # under way

    def now(self) -> float: ...

    def opened(self, connection: Connection) -> SemcacheError | None:
        """Take note of a connection, or say why it cannot be served."""

    def closed(self, connection: Connection) -> None:
        """The connection is lost and its task, if it had one, has ended."""

    def refused(self, reason: str) -> None: ...

    def failed(self, exc: BaseException) -> None:
        """The handler raised what it should not."""


class Request(web.BaseRequest):
    @property
    def keep_alive(self) -> bool:
        """For responses that aiohttp writes; ours ask the connection themselves."""
        return cast(Connection, self.protocol).keeps_alive(self)


class Connection(BaseProtocol):
    # Read by aiohttp's request on its way in.
    ssl_context = None
    peername: Any = None
    sockname: Any = None

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            READ_BUFFER_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_FIELDS,
            auto_decompress=False,
            max_msg_queue_size=MAX_PIPELINED,
        )
        super().__init__(loop, parser)
        self._owner = owner
        self._queue: deque[tuple[RawRequestMessage, StreamReader] | Refusal] = deque()  # to be answered
        self._task: asyncio.Task[None] | None = None  # while requests are answered
        self._request: Request | None = None  # the one under way
        self._incoming: StreamReader | None = None  # the body that is being received
        self._incoming_length: int | None = None  # None: chunked
        self._incoming_bytes = 0  # of it, when last looked at
        self._incoming_switches = False  # its request asks for another protocol
        self._tunnel: End | None = None  # asked for by the request read last; then nothing is parsed any more
        self._fruitless = 0  # bytes received since the last that completed a head or belonged to a body
        self._unwelcome: SemcacheError | None = None  # refused whatever it asks; how to say so depends on the path
        self._opening = b""  # the first line of a head that comes in several segments
        self._all_ascii = True  # so far; else field values have to be looked at
        self._deaf = False  # input is discarded: the last request has been read, or refused
        self._served = False
        self._due = inf  # without a task: when the next head has to be complete, or the client has to be gone
        self._written = 0  # bytes, ever
        self._written_before = 0  # the same when the request under way began
        self._taken = -1  # of those, by the kernel, when last looked at; -1: all
        self._taken_at = 0.0

    # Opening and closing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")
        self._due = self._owner.now() + self._owner.settings.header_timeout
        self._unwelcome = self._owner.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)  # wakes whoever waits for room
        self._deaf = True
        self._parser = None
        self._queue.clear()
        if self._incoming is not None:
            self._incoming.set_exception(ClientGone("the client has closed the connection"))
        if self._tunnel is not None:
            self._tunnel.lost(exc)
        if self._task is not None:
            if self._tunnel is None or not self._tunnel.is_open:  # else its task sees the loss, and ends by itself
                self._task.cancel()  # and closed when it has ended
        else:
            self._owner.closed(self)

    def _end(self) -> None:
        """Close once the client has had its last response: it may be sending still, and a reset would cost it that."""
        was_deaf, self._deaf = self._deaf, True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._due = self._owner.now() + LINGER_S
        self._resume_transport_reading()
        if not transport.can_write_eof():  # TLS, which ends in both directions at once
            if self._incoming is None and not was_deaf:
                transport.close()
            return  # the rest is still coming: the client, which knows the response's length, closes or is cut
        try:
            transport.write_eof()
        except OSError:  # the client has gone already, with a reset
            transport.abort()

    def sever(self, *, by_reset: bool) -> None:
        self._deaf = True
        transport = self.transport
        if transport is None:
            return
        if by_reset:
            reset_on_close(transport)
            transport.abort()
        else:
            transport.close()

    def break_off(self) -> None:
        """End the connection now, whatever is under way."""
        self.sever(by_reset=True)

    # Time

    def check(self, now: float) -> None:
        """Called about once a second: cut a reader that takes nothing, a head that does not end, an idle connection."""
        transport = self.transport
        if transport is None or (transport.is_closing() and not transport.can_write_eof()):
            return  # TLS has a deadline of its own for the end, and its transport may not be closed twice
        waiting = transport.get_write_buffer_size()
        if waiting:
            sent = self._written + (self._request.writer.output_size if self._request else 0)
            sent += self._tunnel.sent_bytes if self._tunnel else 0
            if sent - waiting != self._taken:
                self._taken, self._taken_at = sent - waiting, now
            elif now - self._taken_at >= self._owner.settings.send_timeout:
                self._owner.refused("slow_reader")
                self.break_off()
                return
        else:
            self._taken = -1
        if self._task is not None or now < self._due:
            return
        if self._fruitless and not self._deaf:
            error = ClientError("the request's head did not arrive in time", status=408, code="head_timeout")
            self._refuse(Refusal(error, path_of(self._opening)))
        elif self._deaf:
            transport.abort()
        else:
            transport.close()

    def close_if_idle(self) -> None:
        """Called once when draining begins. A connection that is new is about to ask: it gets a second."""
        if self._task is not None or self._fruitless or self._deaf or self.transport is None:
            return
        if self._served:
            self.transport.close()
        else:
            self._due = min(self._due, self._owner.now() + 1.0)

    def cut(self) -> None:
        """The drain's deadline has passed. A handler that is cancelled may still write last words; see Sender.abort.

        Where nothing was written yet, a refusal says in the client's words that it may ask again.
        """
        if self._task is not None:
            request = self._request
            if request is not None and self._written == self._written_before and not request.writer.output_size:
                self._refuse(Refusal(STOPPING, request.path))
            self._task.cancel()
        elif self.transport is not None:
            self.transport.abort()

    # Input

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._tunnel is not None:
            self._tunnel.received(data)
            return
        if self._unwelcome is not None:
            self._turn_away(self._unwelcome, data)
            return
        if self._all_ascii and not data.isascii():
            self._all_ascii = False
        if len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            # The parser puts no limit on chunk extensions and trailers. Fed in slices, it shows when they go on and on.
            start = 0
            while start < len(data) and not self._deaf:
                end = start + max(SLICE_BYTES, self._counted_ahead())
                self._parse(data[start:end])
                start = end
        if len(self._queue) >= MAX_PIPELINED and not self._buffer_paused:
            self._pause_reading_for_buffer()
        if self._queue and self._task is None:
            self._task = self._loop.create_task(self._serve())

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called with every body that is read to its end, and nearly none of them was ever paused."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _counted_ahead(self) -> int:
        """Bytes to come of a body whose length is known: until it ends there can be no overhead."""
        if self._incoming is None or self._incoming_length is None:
            return 0
        return self._incoming_length - self._incoming_bytes

    def _parse(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.received(data)
            return
        parser = self._parser
        assert parser is not None
        try:
            received, upgraded, behind = parser.feed_data(data)
        except HttpProcessingError as exc:
            head = self._opening + data
            self._refuse_input(judge(exc, head), head)
            return
        if received:
            self._queue.extend(received)
            message, body = received[-1]
            self._incoming = None
            if not body.is_eof():
                self._incoming = body
                self._incoming_bytes = body.total_bytes
                self._incoming_length = None if message.chunked else int(message.headers["Content-Length"])
                self._incoming_switches = message.upgrade
            elif upgraded and is_handshake(message):
                assert self.transport is not None
                self._tunnel = End(self.transport, behind)
            elif message.upgrade:
                self._deaf = upgraded or not _is_all(message, data)
            self._fruitless = 0
            self._opening = b""
        elif self._incoming is not None:
            self._count_body(data)
        else:
            self._count_head(data)

    def _count_body(self, data: bytes) -> None:
        body = self._incoming
        assert body is not None
        if self._incoming_switches and body.is_eof() and self._incoming_bytes + len(data) != self._incoming_length:
            self._deaf = True
        if body.total_bytes != self._incoming_bytes or body.is_eof():
            self._incoming_bytes = body.total_bytes
            self._fruitless = 0
        else:
            self._fruitless += len(data)
            if self._fruitless > MAX_CHUNK_OVERHEAD_BYTES:
                self._refuse_input(ClientError("the chunked body holds too little data", code="chunk_overhead"))
        if body.is_eof():
            self._incoming = None

    def _count_head(self, data: bytes) -> None:
        if not self._fruitless:
            data = data.lstrip(b"\r\n")  # some clients send a line break after a body
            if not data:
                return
            self._due = self._owner.now() + self._owner.settings.header_timeout
        self._fruitless += len(data)
        if b"\n" not in self._opening:
            self._opening += data
            line, ended, _ = self._opening.partition(b"\n")
            if ended and not is_request_line(line):  # HTTP/0.9 ends here: waiting for fields would be in vain
                self._refuse_input(malformed(), self._opening)
                return
        if self._fruitless > MAX_HEAD_BYTES:
            self._refuse_input(head_too_large(), self._opening)

    def _turn_away(self, error: SemcacheError, data: bytes) -> None:
        """Nothing is read of a request that is refused in any case, but the path: whose words to use depends on it."""
        self._fruitless += len(data)
        self._opening += data
        if b"\n" in self._opening or self._fruitless > MAX_LINE_BYTES:
            self._deaf = True
            self._refuse(Refusal(error, path_of(self._opening)))

    def _refuse_input(self, error: ClientError, head: bytes = b"") -> None:
        """The input makes no sense from here on. A request under way learns it while it reads, or is answered first."""
        self._deaf = True
        if self._incoming is not None and not self._incoming.is_eof():
            self._incoming.set_exception(error)
        elif self._task is not None or self._queue:
            self._queue.append(Refusal(error, path_of(head)))
        else:
            self._refuse(Refusal(error, path_of(head)))

    # Output

    def keeps_alive(self, request: web.BaseRequest) -> bool:
        return (
            not request._message.should_close
            and request.version == HttpVersion11
            and request.content.is_eof()
            and (bool(self._queue) or not (self._deaf or self._tunnel or self._owner.draining))
        )

    def write(self, data: bytes | memoryview) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client has closed the connection")
        self._written += len(data)
        transport.write(data)

    def asks_to_switch(self) -> bool:
        return self._tunnel is not None and not self._queue  # a handshake is the last that is queued

    def switch(self, headers: Headers) -> End:
        """Raises ClientGone, and ValueError when a field contains a line break."""
        assert self.asks_to_switch() and self._tunnel is not None
        self.write(switching(headers))
        return self._tunnel

    def eof_received(self) -> bool:
        return self._tunnel is not None and self._tunnel.ended()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._tunnel is not None:
            self._tunnel.full()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._tunnel is not None:
            self._tunnel.free()

    def go_on(self) -> None:
        """Not counted as written: the response has not begun."""
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def drained(self) -> None:
        if not self._paused:
            return
        try:
            await self._drain_helper()
        except ConnectionError as exc:
            raise ClientGone("the client has closed the connection") from exc
        if self.transport is None:
            raise ClientGone("the client has closed the connection")

    # Requests

    async def _serve(self) -> None:
        """Answer what is queued, in order; the task ends when nothing is left."""
        try:
            while self._queue:
                received = self._queue.popleft()
                if isinstance(received, Refusal):
                    self._refuse(received)
                    return
                if self._parser is not None:
                    self._parser.message_consumed()
                if not await self._answer(*received):
                    self._end()
                    return
                if self._paused:
                    await self.drained()
                if self._buffer_paused and not self._queue:
                    self._resume_reading_for_buffer()
                    self.data_received(b"")
                if self._queue:
                    await asyncio.sleep(0)  # a client that sends ahead does not keep the others waiting
            self._rest()
        except ClientGone:
            pass
        except Exception as exc:  # the error page itself failed: nobody else would close the connection
            self._owner.failed(exc)
            self.break_off()
        finally:
            self._task = None
            if self.transport is None:
                self._owner.closed(self)

    def _rest(self) -> None:
        settings = self._owner.settings
        self._due = self._owner.now() + (settings.header_timeout if self._fruitless else settings.keepalive)
        self._served = True
        if self._owner.draining and not self._fruitless and self.transport is not None:
            self.transport.close()

    async def _answer(self, message: RawRequestMessage, body: StreamReader) -> bool:
        """Return whether the connection can be used further."""
        error = objection(message, self._all_ascii)
        if error is not None:
            self._refuse(Refusal(error, message.url.path))
            return False
        owner = self._owner
        writer = StreamWriter(self, self._loop)
        task = cast("asyncio.Task[None]", self._task)
        request = self._request = Request(
            in_origin_form(message), body, cast(web.RequestHandler, self), writer, task, self._loop
        )
        before = self._written_before = self._written
        owner.requests += 1
        try:
            response = await owner.handler(request)
            await response.prepare(request)
            await response.write_eof()
            return bool(response.keep_alive)
        except asyncio.CancelledError as exc:
            if not task.cancelling():  # not meant for us: something that the handler waited for was cancelled
                return await self._recover(request, exc, begun=self._written != before)
            # The client has left, or the drain is over. What is sent must not pass for the whole.
            self.sever(by_reset=request.version != HttpVersion11)
            raise
        except Exception as exc:
            return await self._recover(request, exc, begun=self._written != before)
        finally:
            owner.requests -= 1
            self._written += writer.output_size
            self._request = None

    async def _recover(self, request: Request, exc: BaseException, *, begun: bool) -> bool:
        """Tell the client of a failure, or break off what has begun. Return whether the connection can be used on."""
        is_gone = self.transport is None or self.transport.is_closing()
        error = exc if isinstance(exc, SemcacheError) else SemcacheError("internal error")
        if error is not exc and not (is_gone and isinstance(exc, ConnectionError)):
            self._owner.failed(exc)
        if is_gone:
            return False
        if begun or request.writer.output_size:
            self.sever(by_reset=request.version != HttpVersion11)
            return False
        page, content_type = self._owner.error_page(request.path, error)
        headers = [("Content-Type", content_type), *getattr(error, "headers", {}).items()]
        response = whole_response(request, error.status, headers, page)
        await response.write_eof()
        return bool(response.keep_alive)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is not a request, or not one that can be served; the connection ends."""
        error = refusal.error
        self._owner.refused(error.code or "other")
        page, content_type = self._owner.error_page(refusal.path, error)
        headers = [("Content-Type", content_type), *getattr(error, "headers", {}).items()]
        try:
            self.write(closing_response(error.status, headers, page))
        except ClientGone:
            return
        self._end()


def _is_all(message: RawRequestMessage, data: bytes) -> bool:
    """Whether a request that asks for another protocol can be seen to be all that `data` holds.

    The parser passes over the bytes behind such a request without a word, and would go on in the middle of them.
    """
    end = data.find(b"\r\n\r\n")
    length = int(message.headers.get("Content-Length", "0"))
    return end >= 0 and not message.chunked and end + 4 + length == len(data)

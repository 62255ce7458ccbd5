"""One client's connection: bytes in, requests in order, one at a time, each answered or refused.

aiohttp's parser reads and its request and response classes are used as they are; the life of the connection is ours,
because every deadline and every refusal has to be in one place. The rules:

- Ambiguous framing is refused and the connection closed; what follows on it is never read as a request.
- Nothing of a request is in a log line or in a refusal.
- A connection costs a task only while a request is under way, and that task is cancelled when the client leaves.
- A response says that the connection stays open only if the request's body has arrived whole.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion10, HttpVersion11, RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader
from yarl import URL

from semcache import config
from semcache.errors import ClientError, SemcacheError
from semcache.sending import ClientGone, closing_response, whole_response

MAX_LINE_BYTES = 8190  # the request line's target, and each field: what nginx and Apache take
MAX_FIELDS = 128
MAX_HEAD_BYTES = 64 * 1024  # of fields that are each short enough
MAX_CHUNK_OVERHEAD_BYTES = 8 * 1024  # of chunk extensions and trailers between two bytes of a body
READ_BUFFER_BYTES = 64 * 1024  # of a body that nobody reads yet; twice that, and the socket is left alone
MAX_PIPELINED = 16  # requests read ahead
SLICE_BYTES = 4 * 1024  # input is parsed in slices of this where the overhead has to be seen
LINGER_S = 5.0  # after a last response the client may still be sending; closing at once would cost it the response

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_LINE = re.compile(rb"\S+ (\S+) HTTP/(\d+(?:\.\d+)?)\r?")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ErrorPage = Callable[[str, SemcacheError], tuple[bytes, str]]  # path or "", error -> body, content type


@dataclass(frozen=True, slots=True)
class Refusal:
    """Stands in the queue where a request would have stood; always the last."""

    error: SemcacheError
    path: str  # as far as it could be read: it chooses the form of the error


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
        self._incoming_chunked = False
        self._incoming_bytes = 0  # of it, when last looked at
        self._fruitless = 0  # bytes received since the last that completed a head or belonged to a body
        self._opening = b""  # the first line of a head that comes in several segments
        self._all_ascii = True  # so far; else field values have to be looked at
        self._deaf = False  # input is discarded: the last request has been read, or refused
        self._served = False
        self._due = inf  # without a task: when the next head has to be complete, or the client has to be gone
        self._written = 0  # bytes, ever
        self._taken = 0  # of those, by the kernel, when last looked at
        self._taken_at = 0.0

    # Opening and closing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")
        self._due = self._owner.now() + self._owner.settings.header_timeout
        objection = self._owner.opened(self)
        if objection is not None:
            self._refuse(Refusal(objection, ""))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)  # wakes whoever waits for room
        self._deaf = True
        self._parser = None
        self._queue.clear()
        if self._incoming is not None:
            self._incoming.set_exception(ClientGone("the client has closed the connection"))
        if self._task is not None:
            self._task.cancel()  # and closed when it has ended
        else:
            self._owner.closed(self)

    def _end(self) -> None:
        """Close once the client has had its last response: it may be sending still, and a reset would cost it that."""
        self._deaf = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._due = self._owner.now() + LINGER_S
        self._resume_transport_reading()
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
            _reset_on_close(transport)
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
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting:
            sent = self._written + (self._request.writer.output_size if self._request else 0)
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
            self._refuse(Refusal(error, _path_of(self._opening)))
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
        """The drain's deadline has passed. A handler that is cancelled may still write last words; see Sender.abort."""
        if self._task is not None:
            self._task.cancel()
        elif self.transport is not None:
            self.transport.abort()

    # Input

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._all_ascii and not data.isascii():
            self._all_ascii = False
        if len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            # The parser puts no limit on chunk extensions and trailers. Fed in slices, it shows when they go on and on.
            start = 0
            while start < len(data) and not self._deaf:
                end = len(data) if self._is_counted() else start + SLICE_BYTES
                self._parse(data[start:end])
                start = end
        if self._queue and self._task is None:
            self._task = self._loop.create_task(self._serve())
        elif len(self._queue) >= MAX_PIPELINED and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _is_counted(self) -> bool:
        """Whether a body of known length is being received: no overhead is possible until it ends."""
        return self._incoming is not None and not self._incoming_chunked

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        try:
            received, upgraded, _ = parser.feed_data(data)
        except HttpProcessingError as exc:
            head = self._opening + data
            self._refuse_input(_judge(exc, head), head)
            return
        if received:
            self._queue.extend(received)
            message, body = received[-1]
            self._incoming = None if body.is_eof() else body
            self._incoming_chunked = message.chunked
            self._incoming_bytes = body.total_bytes
            self._fruitless = 0
            self._opening = b""
            self._deaf = upgraded  # we stay with HTTP/1.1; what follows is another protocol's
        elif self._incoming is not None:
            self._count_body(data)
        else:
            self._count_head(data)

    def _count_body(self, data: bytes) -> None:
        body = self._incoming
        assert body is not None
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
            if ended and not _REQUEST_LINE.fullmatch(line):  # HTTP/0.9 ends here: waiting for fields would be in vain
                self._refuse_input(_malformed(), self._opening)
                return
        if self._fruitless > MAX_HEAD_BYTES:
            self._refuse_input(_head_too_large(), self._opening)

    def _refuse_input(self, error: ClientError, head: bytes = b"") -> None:
        """The input makes no sense from here on. A request under way learns it while it reads, or is answered first."""
        self._deaf = True
        if self._incoming is not None:
            self._incoming.set_exception(error)
            self._incoming = None
        elif self._task is not None or self._queue:
            self._queue.append(Refusal(error, _path_of(head)))
        else:
            self._refuse(Refusal(error, _path_of(head)))

    # Output

    def keeps_alive(self, request: web.BaseRequest) -> bool:
        return (
            not request._message.should_close
            and request.version == HttpVersion11
            and request.content.is_eof()
            and (bool(self._queue) or not (self._deaf or self._owner.draining))
        )

    def write(self, data: bytes | memoryview) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientGone("the client has closed the connection")
        self._written += len(data)
        transport.write(data)

    async def drained(self) -> None:
        if self._paused:
            await self._drain_helper()
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
        objection = _objection(message, self._all_ascii)
        if objection is not None:
            self._refuse(Refusal(objection, message.url.path))
            return False
        if message.path[0] != "/" and message.url.absolute:
            # Sent as if to a forward proxy. Where a request goes is not for its sender to say.
            path, query = message.url.raw_path or "/", message.url.raw_query_string
            url = URL.build(path=path, query_string=query, encoded=True)
            message = message._replace(path=f"{path}?{query}" if query else path, url=url)
        owner = self._owner
        writer = StreamWriter(self, self._loop)
        task = cast("asyncio.Task[None]", self._task)
        request = self._request = Request(message, body, cast(web.RequestHandler, self), writer, task, self._loop)
        before = self._written
        owner.requests += 1
        try:
            response = await owner.handler(request)
            await response.prepare(request)
            await response.write_eof()
            return bool(response.keep_alive)
        except asyncio.CancelledError:
            # The client has left, or the drain is over. What is sent must not pass for the whole.
            self.sever(by_reset=request.version != HttpVersion11)
            raise
        except Exception as exc:
            if self.transport is None or self.transport.is_closing():
                return False
            if isinstance(exc, SemcacheError):
                error = exc
            else:
                owner.failed(exc)
                error = SemcacheError("internal error")
            if self._written != before or writer.output_size:
                self.sever(by_reset=request.version != HttpVersion11)
                return False
            return await self._explain(request, error)
        finally:
            owner.requests -= 1
            self._written += writer.output_size
            self._request = None

    async def _explain(self, request: Request, error: SemcacheError) -> bool:
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


def _objection(message: RawRequestMessage, all_ascii: bool) -> ClientError | None:
    """Why a request that the parser let through is not served all the same."""
    version = message.version
    if version != HttpVersion11:
        if version < HttpVersion10:
            return _malformed()
        if version > HttpVersion11:
            return _version()
        if message.chunked:  # RFC 9112 section 6.1: faulty framing
            return _malformed()
    if message.method not in _METHODS:
        return ClientError("this method is not served", status=501, code="unknown_method")
    if message.chunked and message.headers["Transfer-Encoding"].strip().lower() != "chunked":
        return ClientError("this transfer coding is not understood", status=501, code="unknown_transfer_coding")
    if not all_ascii and not all(_is_text(name) and _is_text(value) for name, value in message.raw_headers):
        return ClientError("a header field is not UTF-8", code="malformed")
    return None


def _judge(exc: HttpProcessingError, head: bytes) -> ClientError:
    """What the parser stumbled over. Its own words quote the request, so they are never used."""
    line, ended, _ = head.lstrip(b"\r\n").partition(b"\n")
    if isinstance(exc, LineTooLong):
        if not ended or len(line) > MAX_LINE_BYTES:
            return ClientError("the request's target is too long", status=414, code="uri_too_long")
        return _head_too_large()
    if exc.message == "Too many headers received":
        return _head_too_large()
    found = _REQUEST_LINE.fullmatch(line)
    if found and found[2] > b"1.1":
        return _version()
    return _malformed()


def _malformed() -> ClientError:
    return ClientError("the request is not well-formed HTTP/1.1", code="malformed")


def _version() -> ClientError:
    return ClientError("only HTTP/1.1 is spoken here", status=505, code="http_version")


def _head_too_large() -> ClientError:
    return ClientError("the request's header fields are too large or too many", status=431, code="head_too_large")


def _path_of(head: bytes) -> str:
    """The path of an unfinished or faulty head, as far as it can be seen: it only chooses the form of the error."""
    found = re.match(rb"\s*\S+ (/[!-~]*)", head[:MAX_LINE_BYTES])
    return found[1].split(b"?")[0].decode("ascii") if found else ""


def _is_text(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the end of this connection a reset: the only break that is visible where the end of a body is the close."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def where(exc: BaseException) -> str:
    """Where an exception was raised, innermost first, without its text: that may hold parts of the request."""
    places = []
    trace: TracebackType | None = exc.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(places[-6:]))

"""One HTTP/1.1 connection to a backend and the one exchange it carries at a time.

The rule: framing is read strictly, and a connection on which anything unexpected happened is closed, never used again.

aiohttp's own client is not used here since it is made to forgive: it joins folded fields, takes bare line feeds, shows
an answer that was cut by a reset as a clean end, and does not tell whether any of a request had left. A proxy has to
know all four. The bytes are parsed by llhttp (httptools) with every leniency off: doubled or listed Content-Length,
Content-Length beside Transfer-Encoding, folded fields, bare LF and bad chunk sizes are errors there.
"""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Protocol, cast

import httptools

from semcache.errors import ClientError, UpstreamError
from semcache.tunnel import End

READ_BYTES = 64 * 1024  # one read from a socket
HELD_BYTES = 64 * 1024  # of an answer nobody has taken yet; past it the socket is left unread: READ_BYTES more at most
_PIECE_BYTES = 48  # the object around a piece: an answer in chunks of one byte would else weigh forty times its length
MAX_OVERHEAD_BYTES = 64 * 1024  # of head, chunk sizes or trailers in a row; a head in use has one or two KB
_ONE_WRITE_BYTES = 64 * 1024  # a small body leaves in one packet with its head; copying a large one would cost more
_TURNS_TO_READ = 4  # of the loop, until what lies in the socket has been read and parsed; over TLS it may be no answer

Body = bytes | AsyncIterable[bytes]


class Lender(Protocol):
    """Whoever lends connections out; in the program a ConnectionPool."""

    def returned(self, connection: Connection) -> None:
        """Its exchange is over, whole or not; `is_usable` tells whether another may follow."""

    def closed(self, connection: Connection) -> None: ...


class Exchange:
    """One request and the answer to it as it arrives. Once it has ended it never touches the connection again.

    Deadlines run only while somebody waits for bytes: a client that reads slowly is no fault of the backend.
    """

    __slots__ = (
        "_begun",
        "_between_bytes_s",
        "_connection",
        "_ended",
        "_error",
        "_first_byte_due",
        "_first_byte_s",
        "_held_bytes",
        "_name",
        "_paused",
        "_pieces",
        "_waiter",
        "fields",
        "framed",
        "may_switch",
        "status",
        "tunnel",
        "whole",
    )

    def __init__(
        self,
        connection: Connection,
        name: str,
        first_byte_s: float,
        between_bytes_s: float,
        *,
        may_switch: bool = False,
    ) -> None:
        """`may_switch`: WebSocket was asked for, so the answer may be 101; `tunnel` is then what follows on it."""
        self.may_switch = may_switch
        self.tunnel: End | None = None
        self.status = 0  # 0: the head is not here yet
        self.fields: list[tuple[bytes, bytes]] = []
        self.whole = False  # ended, and the framing has proved that nothing is missing
        self.framed = False  # Content-Length, chunked, or a status without a body: an early end can be told
        self._connection = connection
        self._name = name
        self._first_byte_s = first_byte_s
        self._between_bytes_s = between_bytes_s
        self._first_byte_due = math.inf  # loop time; set when the request has left, inf again after the first byte
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._begun = False  # a byte of the body has come
        self._ended = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for status and fields. Raises UpstreamError (sent), or what the request's body raised."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def first(self) -> None:
        """Wait for a byte of the body, or its end. Raises UpstreamError (sent) when it broke off without one."""
        while not self._pieces and not self._ended:
            await self._wait()
        if not self._pieces and self._error is not None:
            raise self._error

    @property
    def is_empty(self) -> bool:
        """The body has ended without a byte. Settled once `first` has returned."""
        return self._ended and not self._pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, in pieces of any size. Leaving early, by cancellation too, closes the connection.

        Raises UpstreamError (sent) on a cut, a reset, bad framing or a deadline, after all that had arrived.
        """
        try:
            while True:
                if self._pieces:
                    yield self._take()
                elif self._error is not None:
                    raise self._error
                elif self._ended:
                    return
                else:
                    await self._wait()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once unless the answer has arrived already. May be called at any time, also twice."""
        if not self._ended:
            self.fail(UpstreamError("the fetch was given up", sent=True))

    # What the connection reports.

    def sent(self) -> None:
        """The request has left whole, or the backend does not take more of it: now it is the backend's turn."""
        self._expect_first_byte(self._connection.loop.time() + self._first_byte_s)

    def sending(self) -> None:
        """It is the client's turn: more of the request is to come."""
        self._expect_first_byte(math.inf)

    def _expect_first_byte(self, due: float) -> None:
        if not self._begun:
            self._first_byte_due = due
            if self._waiter is not None:
                self._connection.watch(due)

    def began(self, status: int, fields: list[tuple[bytes, bytes]], framed: bool) -> None:
        self.status, self.fields, self.framed = status, fields, framed
        self._wake()

    def received(self, piece: bytes) -> None:
        self._begun = True
        self._first_byte_due = math.inf
        self._pieces.append(piece)
        self._held_bytes += len(piece) + _PIECE_BYTES
        if self._held_bytes > HELD_BYTES and not self._paused:
            self._paused = True
            self._connection.pause_reading()
        self._wake()

    def ended(self) -> None:
        """The whole answer is here, or all that the backend meant to send."""
        self._ended = True
        self.whole = self.framed
        self._resume()
        self._wake()

    def fail(self, error: BaseException) -> None:
        self._ended = True
        self._error = error
        self._wake()
        self._connection.discard(self)

    def late(self) -> None:
        limit_s, what = (
            (self._between_bytes_s, "nothing more")
            if self._begun
            else (self._first_byte_s, "no first byte of an answer")
        )
        self.fail(
            UpstreamError(
                f"{self._name} sent {what} within {limit_s:g} s", status=504, code="upstream_timeout", sent=True
            )
        )

    def cut(self, how: str) -> None:
        when = "in mid-answer" if self.status else "before it answered"
        self.fail(UpstreamError(f"{self._name} {how} the connection {when}", sent=True))

    def misread(self) -> None:
        self.fail(UpstreamError(f"{self._name} sent what is not a valid HTTP/1.1 answer", sent=True))

    # Waiting.

    async def _wait(self) -> None:
        loop = self._connection.loop
        # Before the first byte the deadline stands still; after it every wait has one of its own.
        self._connection.watch(loop.time() + self._between_bytes_s if self._begun else self._first_byte_due)
        self._waiter = loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        # The deadline goes here and not where the wait ends: by then the connection may carry somebody else's exchange.
        self._connection.watch(math.inf)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> bytes:
        pieces, self._pieces, self._held_bytes = self._pieces, [], 0
        self._resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._connection.resume_reading()


class Connection(asyncio.BufferedProtocol):
    """The socket, the parser, the one timer and the writing of a request."""

    transport: asyncio.Transport | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview, lender: Lender) -> None:
        """`buffer`: where reads land. Connections of one loop may share it, as it is emptied before the next read."""
        self.loop = loop
        self._buffer = buffer
        self._lender = lender
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._headless = False  # a HEAD request: its answer has no body, whatever the fields say
        self._fields: list[tuple[bytes, bytes]] = []
        self._interim = False  # reading a 1xx head
        self._tunnel: End | None = None  # after a 101; then nothing is parsed any more
        self._fresh = True  # no byte of the awaited head is here yet
        self._overhead_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def is_usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and self._exchange is None

    def begin(self, exchange: Exchange, method: str, head: bytes, body: Body, length_bytes: int | None = None) -> None:
        """Send a request. From here on it may have arrived.

        `length_bytes`: of a streamed body, as the head declares it; without it the body goes out in chunks.
        """
        assert self.transport is not None and self._exchange is None
        self._exchange = exchange
        self._headless = method == "HEAD"
        self._fresh = True
        self._overhead_bytes = 0
        if not isinstance(body, bytes):
            self.transport.write(head)
            pieces = _in_chunks(body) if length_bytes is None else _of_length(body, length_bytes)
            self._sender = self.loop.create_task(self._send(exchange, pieces))
            return
        if len(body) <= _ONE_WRITE_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        exchange.sent()

    def rest(self, keepalive_s: float) -> None:
        """Idle: close after so long."""
        self.watch(self.loop.time() + keepalive_s)

    def discard(self, exchange: Exchange) -> None:
        """Close at once, if this exchange is still the one it carries."""
        if self._exchange is exchange:
            self._exchange = None
            self.close()
            self._lender.returned(self)

    def stop(self) -> None:
        """Give up whatever is going on."""
        if self._exchange is not None:
            self._exchange.abort()
        else:
            self.close()

    def close(self) -> None:
        """Now: what is unread stays unread, and the other side sees it."""
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        if self.transport is not None:
            self.transport.abort()

    # One timer, moved only when a deadline comes before it: two calls a connection and minute, not two a request.

    def watch(self, due: float) -> None:
        """Replace the deadline (loop time; inf: none)."""
        self._due = due
        if due < self._timer_at and self.transport is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._due > self.loop.time():
            if self._due < math.inf:
                self.watch(self._due)
        elif self._exchange is not None:
            self._exchange.late()
        else:
            self.close()

    # Sending a body that is still arriving.

    async def _send(self, exchange: Exchange, pieces: AsyncIterable[Sequence[bytes]]) -> None:
        assert self.transport is not None
        try:
            async for piece in pieces:
                await self._read_first(exchange)
                self.transport.writelines(piece)
                if not self._writable.is_set():
                    exchange.sent()
                    await self._writable.wait()
                    exchange.sending()
        except Exception as error:  # the caller's stream broke: its error, not ours
            self._sender = None
            exchange.fail(error)
        else:
            self._sender = None
            exchange.sent()

    async def _read_first(self, exchange: Exchange) -> None:
        """A backend that answers early may close right behind its answer, with a reset, as more of the request comes.
        Writing into that reset would end the connection with the answer unread."""
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        arrived = select.poll()  # and not select.select, which knows no file above 1024
        arrived.register(sock.fileno(), select.POLLIN)
        for _ in range(_TURNS_TO_READ):
            if exchange.status or not arrived.poll(0):
                return
            await asyncio.sleep(0)

    def pause_writing(self) -> None:
        self._writable.clear()
        if self._tunnel is not None:
            self._tunnel.full()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._tunnel is not None:
            self._tunnel.free()

    def pause_reading(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # of uvloop it is one in all but name

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._tunnel is not None:
            self._tunnel.received(bytes(self._buffer[:nbytes]))
            return
        if self._exchange is None:
            self.close()  # nobody asked
            return
        self._overhead_bytes += nbytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except httptools.HttpParserUpgrade as switched:  # raised at a 101 alone, and others are refused before
            self._switch(bytes(self._buffer[switched.args[0] : nbytes]))
        except httptools.HttpParserError:
            self._misread()
        else:
            if self._overhead_bytes > MAX_OVERHEAD_BYTES:
                self._misread()

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            return self._tunnel.ended()
        exchange = self._exchange
        if exchange is None:
            return False
        if exchange.status and not exchange.framed:
            self._finish(exchange, reusable=False)  # the end of such an answer is the end of the connection
        else:
            exchange.cut("closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tunnel is not None:
            self._tunnel.lost(exc)
        exchange = self._exchange
        if exchange is not None:
            exchange.cut("reset" if exc is not None else "closed")
        if self._timer is not None:
            self._timer.cancel()
        self.transport = None
        del self._parser  # it holds our methods, and so us
        self._lender.closed(self)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if not self._fresh:
            raise httptools.HttpParserError("bytes after the answer")
        self._fresh = False
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))  # trailers come here too; by then nobody looks

    def on_headers_complete(self) -> None:
        exchange, status = self._exchange, self._parser.get_status_code()
        assert exchange is not None
        if self._parser.get_http_version() not in ("1.1", "1.0") or status < 100:
            raise httptools.HttpParserError("not an answer to what was asked")
        if status == 101:
            protocols = [value.strip().lower() for name, value in self._fields if name.lower() == b"upgrade"]
            if not exchange.may_switch or protocols != [b"websocket"] or not self._parser.should_upgrade():
                raise httptools.HttpParserError("a protocol that was not asked for")
            return
        if status < 200:
            self._interim = True
            return
        codings = [value.strip().lower() for name, value in self._fields if name.lower() == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise httptools.HttpParserError("a transfer coding that was not asked for")
        framed = (
            bool(codings)
            or status in (204, 304)
            or self._headless
            or any(name.lower() == b"content-length" for name, _ in self._fields)
        )
        exchange.began(status, self._fields, framed)
        if self._headless:
            self._finish(exchange, reusable=False)  # the parser waits for a body, and cannot be told otherwise

    def on_body(self, piece: bytes) -> None:
        self._overhead_bytes = 0
        if self._exchange is not None:
            self._exchange.received(piece)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._fresh = True
        elif self._parser.get_status_code() == 101:
            pass  # the parser stops here
        elif self._exchange is not None:
            self._finish(self._exchange, reusable=self._parser.should_keep_alive())

    def _finish(self, exchange: Exchange, *, reusable: bool) -> None:
        assert self.transport is not None
        self._exchange = None
        exchange.ended()
        # A request that is still leaving has been answered early, often with an error: the rest of it must not follow.
        if not reusable or self._sender is not None or self.transport.get_write_buffer_size():
            self.close()
        self._lender.returned(self)

    def _switch(self, early: bytes) -> None:
        """The answer is 101: what follows is no HTTP. The exchange goes on until the tunnel ends."""
        exchange = self._exchange
        assert exchange is not None and self.transport is not None
        self._tunnel = exchange.tunnel = End(self.transport, early)
        exchange.began(101, self._fields, framed=True)

    def _misread(self) -> None:
        if self._exchange is None:
            self.close()  # more than the answer had been sent: whoever got the answer is unharmed
        else:
            self._exchange.misread()


async def _in_chunks(body: AsyncIterable[bytes]) -> AsyncIterator[Sequence[bytes]]:
    async for piece in body:
        if piece:
            yield b"%x\r\n" % len(piece), piece, b"\r\n"
    yield (b"0\r\n\r\n",)


async def _of_length(body: AsyncIterable[bytes], length_bytes: int) -> AsyncIterator[Sequence[bytes]]:
    """Raises ClientError for a body of any other length: the backend then sees that it is not whole, or none of the
    surplus, which it would read as another request."""
    missing = length_bytes
    async for piece in body:
        missing -= len(piece)
        if missing < 0:
            break
        yield (piece,)
    if missing:
        raise ClientError("the request body is not as long as its Content-Length says", code="malformed")

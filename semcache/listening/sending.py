"""How a response leaves: the one place that writes status lines, framing and chunks to a client.

An answer that is complete goes out in one piece; one that is still being written goes out piece by piece, each waiting
until the client has room for it. A complete one in JSON is packed for a client that accepts it; a stream never is,
since what is packed waits for more. The rule: a break is never made to look like an end. Both SDKs take a chunked body
that ends politely for success, so an answer that stops short stops without its last chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

from aiohttp import web
from aiohttp.http import HttpVersion11

from semcache.listening.encoding import Coding, choose_coding, encode

# Written in pieces of at most this: for a slow reader the transport copies no more than one, beside its own 64 KB.
# The answer itself is another matter: a complete one is held until it is written, and one still being written belongs
# to its recording, shared by all who follow it.
PIECE_BYTES = 64 * 1024

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}

# Ours to decide, whatever the caller relays from elsewhere: framing belongs to one connection.
_FRAMING = frozenset({"connection", "content-length", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})

# They speak of the bytes as they are, so a body that comes with one of them goes out as it is.
_OF_THE_BYTES = frozenset(
    {"content-encoding", "content-range", "content-md5", "digest", "content-digest", "repr-digest", "etag"}
)

PACK_INLINE_BYTES = 256 * 1024  # larger answers are packed on a thread: 3 ms for this much

_LAST_CHUNK = b"0\r\n\r\n"

Headers = Iterable[tuple[str, str]]


class ClientGone(ConnectionResetError):
    """The client has closed the connection. The task of its request is cancelled as well; see client_connection.py."""


class Wire(Protocol):
    """A connection as a response sees it."""

    def keeps_alive(self, request: web.BaseRequest) -> bool:
        """Whether another request may follow on this connection. Asked once, when the head is written."""

    def write(self, data: bytes | memoryview) -> None:
        """Raises ClientGone."""

    async def drained(self) -> None:
        """Wait until the client has room. Raises ClientGone."""

    def sever(self, *, by_reset: bool) -> None:
        """Close after what is already written. `by_reset`: the end of the connection would pass for the body's."""


class SentResponse(web.StreamResponse):
    """What a handler returns when its response is on the way: nothing is left for aiohttp to prepare or write."""

    _reason = ""

    def __init__(self, status: int, keep_alive: bool) -> None:
        # Not aiohttp's: its header and state dictionaries cost a third of a hit's time and would stay empty.
        self._status = status
        self._keep_alive = keep_alive
        self._eof_sent = True


class WholeResponse(SentResponse):
    """A complete response, written when the connection takes it over from the handler."""

    def __init__(self, wire: Wire, status: int, keep_alive: bool, pieces: tuple[bytes, ...]) -> None:
        super().__init__(status, keep_alive)
        self._eof_sent = False
        self._wire = wire
        self._pieces = pieces

    async def prepare(self, request: web.BaseRequest) -> None:
        """The head was written into the pieces."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Raises ClientGone."""
        if self._eof_sent:
            return
        self._eof_sent = True
        size_bytes = sum(map(len, self._pieces))
        if size_bytes <= PIECE_BYTES:
            self._wire.write(b"".join(self._pieces))
            return
        for piece in self._pieces:
            await _write_in_slices(self._wire, piece)


class PackedResponse(WholeResponse):
    """A large one, packed on a thread before it is written."""

    def __init__(
        self, wire: Wire, status: int, keep_alive: bool, headers: Sequence[tuple[str, str]], body: bytes, coding: Coding
    ) -> None:
        super().__init__(wire, status, keep_alive, (body,))
        self._fields = headers
        self._coding = coding

    async def write_eof(self, data: bytes = b"") -> None:
        if not self._eof_sent:
            packed = await asyncio.to_thread(encode, self._coding, self._pieces[0])
            head = _head(self.status, self._fields, f"Content-Length: {len(packed)}\r\n", bool(self._keep_alive))
            self._pieces = (head, packed)
        await super().write_eof()


def whole_response(
    request: web.BaseRequest,
    status: int,
    headers: Headers,
    body: bytes,
    *,
    is_stream: bool = False,
    compress_from: int | None = None,
) -> web.StreamResponse:
    """Return a response to be returned by the handler; its bytes go out in one write where they fit.

    `is_stream`: the body is a stream's, complete, and is framed as one (chunked, to clients that know chunks).
    `compress_from`: JSON of so many bytes and more is packed for clients that accept it; None: never.
    Fields of `headers` that frame or that concern the connection are left out: both are decided here.
    Raises ValueError when a field contains a line break.
    """
    wire = cast(Wire, request.protocol)
    keep_alive = wire.keeps_alive(request)
    if request.method == "HEAD" or status in (204, 304):
        framing = "" if status in (204, 304) else f"Content-Length: {len(body)}\r\n"
        return WholeResponse(wire, status, keep_alive, (_head(status, headers, framing, keep_alive),))
    if is_stream and body and request.version == HttpVersion11:
        head = _head(status, headers, "Transfer-Encoding: chunked\r\n", keep_alive)
        return WholeResponse(wire, status, keep_alive, (head, b"%x\r\n" % len(body), body, b"\r\n" + _LAST_CHUNK))
    if compress_from is not None and not is_stream and (len(body) >= compress_from or "q=0" in _accepted(request)):
        accepted = _accepted(request)
        coding = choose_coding(accepted, len(body), compress_from)
        if (coding is not None or len(body) >= compress_from) and _may_be_packed(fields := list(headers)):
            fields.append(("Vary", "Accept-Encoding"))
            headers = fields
            if coding is not None:
                fields.append(("Content-Encoding", coding))
                if len(body) > PACK_INLINE_BYTES:
                    return PackedResponse(wire, status, keep_alive, fields, body, coding)
                body = encode(coding, body)
    head = _head(status, headers, f"Content-Length: {len(body)}\r\n", keep_alive)
    return WholeResponse(wire, status, keep_alive, (head, body))


def _accepted(request: web.BaseRequest) -> str:
    return ", ".join(request.headers.getall("Accept-Encoding", ()))


def _may_be_packed(headers: Headers) -> bool:
    """JSON, of which nothing is said that packing would make untrue."""
    is_json = False
    for name, value in headers:
        field = name.lower()
        if field in _OF_THE_BYTES or (field == "cache-control" and "no-transform" in value.lower()):
            return False
        is_json = is_json or (field == "content-type" and value.lower().startswith("application/json"))
    return is_json


def closing_response(status: int, headers: Headers, body: bytes) -> bytes:
    """The bytes of a last response, for when there is no sound request to answer."""
    return _head(status, headers, f"Content-Length: {len(body)}\r\n", keep_alive=False) + body


class Sender:
    """A response that is not here as a whole. Its head goes out at once; `end` or `abort` must follow.

    Chunked; to HTTP/1.0 the end of the connection is the end of the body.
    """

    def __init__(
        self, request: web.BaseRequest, status: int, headers: Headers, length_bytes: int | None = None
    ) -> None:
        """`length_bytes`: of the body, where it is known, and then the pieces come to that: it is sent as such, so that
        a client can say how much is missing. Raises ClientGone, and ValueError when a field contains a line break."""
        self._wire = cast(Wire, request.protocol)
        self._status = status
        self._has_body = request.method != "HEAD" and status not in (204, 304)
        is_told = length_bytes is not None and status not in (204, 304)
        self._chunked = self._has_body and not is_told and request.version == HttpVersion11
        self._ends_by_closing = not self._chunked and not is_told
        self._keep_alive = self._wire.keeps_alive(request)
        framing = f"Content-Length: {length_bytes}\r\n" if is_told else ""
        if self._chunked:
            framing = "Transfer-Encoding: chunked\r\n"
        self._wire.write(_head(status, headers, framing, self._keep_alive))

    async def send(self, piece: bytes) -> None:
        """Write a piece, then wait until the client has room for the next. Raises ClientGone."""
        if not piece or not self._has_body:
            return
        wire = self._wire
        if len(piece) > PIECE_BYTES:
            if self._chunked:
                wire.write(b"%x\r\n" % len(piece))
            await _write_in_slices(wire, piece)
            if self._chunked:
                wire.write(b"\r\n")
        else:
            wire.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        await wire.drained()

    async def end(self) -> web.StreamResponse:
        """The answer is complete. Raises ClientGone."""
        if self._chunked:
            self._wire.write(_LAST_CHUNK)
        return SentResponse(self._status, self._keep_alive)

    async def abort(self, last_words: bytes = b"") -> web.StreamResponse:
        """The answer breaks off: write the last words, then end the connection so that no client takes it for the end.

        Never waits, so it may be called while the request's task is being cancelled.
        """
        try:
            if last_words and self._chunked:
                self._wire.write(b"%x\r\n%b\r\n" % (len(last_words), last_words))
        except ClientGone:
            pass
        self._wire.sever(by_reset=self._ends_by_closing)
        return SentResponse(self._status, keep_alive=False)


async def _write_in_slices(wire: Wire, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        wire.write(view[start : start + PIECE_BYTES])
        await wire.drained()


def _head(status: int, headers: Headers, framing: str, keep_alive: bool) -> bytes:
    lines = []
    has_date = False
    for name, value in headers:
        field = name.lower()
        if field in _FRAMING:
            continue
        has_date = has_date or field == "date"
        lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    # One line break for each line and none inside: counting is the cheapest proof that no value adds a field.
    if not text.count("\r") == text.count("\n") == len(lines) or "\0" in text:
        raise ValueError("a response header field contains a line break")
    status_line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
    date = "" if has_date else _date_line()
    end = "\r\n" if keep_alive else "Connection: close\r\n\r\n"
    # Field values that are not text were read as surrogates, and leave as the bytes they were.
    return f"{status_line}{text}{date}{framing}{end}".encode("utf-8", "surrogateescape")


_date = (0, "")


def _date_line() -> str:
    """Made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n")
    return _date[1]

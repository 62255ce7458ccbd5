"""WebSocket: what asks for it, and the relay once it is granted, bytes both ways until both sides have ended.

The rule: what happens at one end happens at the other, at once: bytes, an end, a break. Nothing is looked into and
nothing is kept: while one side does not take what it was sent, the other is left unread, so a tunnel holds no more
than one read from each. A request that asks for another protocol in any other way than RFC 6455 section 4.1 is an
ordinary request, as RFC 9110 section 7.8 allows.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Protocol, cast

from aiohttp import web
from aiohttp.http import HttpVersion, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy, MultiMapping

from semcache.errors import ClientError

# No byte either way for this long, and the tunnel is closed. A session may be quiet while nobody speaks, and the
# clients' pings (every 20 s in `websockets`) reset it; an hour is the longest that OpenAI lets a session live.
SILENCE_S = 3600.0
HALF_CLOSED_S = 60.0  # the same once one side has ended: WebSocket has no use for half a connection
EARLY_BYTES = 64 * 1024  # taken from a side before the tunnel is open; then it is left unread

# A peer that has vanished without a word is noticed after two minutes, and not after the system's usual two hours.
_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

PROTOCOLS = "Sec-WebSocket-Protocol"
_KEY_MEMBER = "openai-insecure-api-key."  # how a browser sends its key, which can set no other field

Headers = Sequence[tuple[str, str]]


# What is asked for


class _Request(Protocol):
    """Of aiohttp's: the parsed message as well as the request made from it."""

    @property
    def method(self) -> str: ...
    @property
    def version(self) -> HttpVersion: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...


class Switchable(Protocol):
    """A client's connection, as whoever answers its request sees it."""

    def asks_to_switch(self) -> bool:
        """Whether the request under way is a WebSocket handshake."""

    def switch(self, headers: Headers) -> End:
        """Answer 101 with these fields; HTTP ends on this connection."""


def is_handshake(request: _Request) -> bool:
    """Whether a request asks for WebSocket and for nothing else. Its fields are for the backend to judge."""
    headers = request.headers
    listed = {member.strip().lower() for value in headers.getall("Connection", ()) for member in value.split(",")}
    return (
        request.method == "GET"
        and request.version == HttpVersion11
        and "upgrade" in listed
        and [value.lower() for value in headers.getall("Upgrade", ())] == ["websocket"]
        and "Sec-WebSocket-Key" in headers
        and headers.get("Content-Length", "0") == "0"
        and "Transfer-Encoding" not in headers
    )


def is_asked_for(request: web.BaseRequest) -> bool:
    return cast(Switchable, request.protocol).asks_to_switch()


def switch(request: web.BaseRequest, headers: Headers) -> End:
    """Answer a handshake with 101 and these fields. Raises ClientGone, and ValueError for a field with a line break."""
    return cast(Switchable, request.protocol).switch(headers)


def refuse_another_sites_page(headers: MultiMapping[str]) -> None:
    """For a caller without a key. No browser asks a server before it opens a WebSocket to it, so any page that somebody
    visits could reach a proxy on his machine, spend the operator's key and read the answers.

    Raises ClientError 403.
    """
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("Host", "").strip().lower():
        raise ClientError(
            "a page of another site may open a WebSocket here only with a key of its own",
            status=403,
            code="foreign_origin",
        )


def with_offered_key(headers: CIMultiDictProxy[str]) -> MultiMapping[str]:
    """The fields that tell who asks. A browser's key, which lies in the list of subprotocols, counts as a bearer token.

    One that comes twice, or beside an Authorization, counts as often as it comes.
    """
    if PROTOCOLS not in headers:  # as good as always
        return headers
    keys = [key for value in headers.getall(PROTOCOLS) for key in _offered_keys(value)]
    if not keys:
        return headers
    told = CIMultiDict(headers)
    for key in keys:
        told.add("Authorization", f"Bearer {key}")
    return told


def without_offered_keys(protocols: str) -> str:
    """The list of subprotocols as it may go to a backend that must not see the caller's key. May be empty."""
    members = (member.strip() for member in protocols.split(","))
    return ", ".join(member for member in members if not member.lower().startswith(_KEY_MEMBER))


def _offered_keys(protocols: str) -> list[str]:
    members = (member.strip() for member in protocols.split(","))
    return [member[len(_KEY_MEMBER) :] for member in members if member.lower().startswith(_KEY_MEMBER)]


def switching(headers: Headers) -> bytes:
    """The head of our answer. Raises ValueError when a field contains a line break."""
    lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
    lines += [f"{name}: {value}" for name, value in headers]
    text = "\r\n".join(lines)
    if not text.count("\r") == text.count("\n") == len(lines) - 1 or "\0" in text:
        raise ValueError("a response header field contains a line break")
    return text.encode("utf-8", "surrogateescape") + b"\r\n\r\n"


# The relay


class End:
    """One of the two connections. Its owner reports what happens on it, and keeps the transport's protocol.

    Until the relay begins, what arrives is held here.
    """

    def __init__(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        self.transport = transport
        self.has_ended = False  # nothing more comes from this side
        self.is_lost = False  # and nothing can go there
        self.is_broken = False  # by a reset, or by something as rude
        self.sent_bytes = 0  # written to this side
        self.heard_at = 0.0  # loop time of the last byte from this side
        self._peer: End | None = None
        self._early = [early] if early else []
        self._early_bytes = len(early)
        self._news = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """The relay has begun, and with it the request's task watches both sides."""
        return self._peer is not None

    # Reported by the connection

    def received(self, data: bytes) -> None:
        if self._peer is not None:
            self.heard_at = asyncio.get_running_loop().time()
            self._peer._write(data)
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_BYTES:
            self.transport.pause_reading()

    def ended(self) -> bool:
        """Return whether the connection is to stay open: over TLS, and before the tunnel is, there is no half of it."""
        if not self.has_ended:
            self.has_ended = True
            if self._peer is not None:
                self._peer._finish()
            self._news.set()
        return self._peer is not None and self.transport.get_extra_info("ssl_object") is None

    def lost(self, exc: BaseException | None) -> None:
        self.has_ended = self.is_lost = True
        self.is_broken = exc is not None
        if self._peer is not None:
            self._peer._follow_loss(self)
        self._news.set()

    def full(self) -> None:
        """This side has no room: the other is left unread."""
        if self._peer is not None and self._peer._is_readable():
            self._peer.transport.pause_reading()

    def free(self) -> None:
        """Everything has gone out."""
        if self._peer is not None and self._peer._is_readable():
            self._peer.transport.resume_reading()
        self._news.set()

    # Reported by the other end

    def join(self, peer: End, news: asyncio.Event) -> None:
        self._peer, self._news = peer, news
        self.heard_at = asyncio.get_running_loop().time()
        if not self.is_lost:
            # A pause with the first byte that finds no room. Not 0: under TLS an empty buffer would count as full.
            self.transport.set_write_buffer_limits(1)
            _probe(self.transport)

    def begin(self) -> None:
        """Pass on what has happened before there was anybody to tell."""
        assert self._peer is not None
        for data in self._early:
            self._peer._write(data)
        self._early.clear()
        if self.is_lost:
            self._peer._follow_loss(self)
        elif self.has_ended:
            self._peer._finish()
        elif not self._peer._is_waiting() and self._is_readable():
            self.transport.resume_reading()

    def is_over(self) -> bool:
        """Nothing more comes from this side, and all that was meant for it has gone out."""
        return self.is_lost or (self.has_ended and not self._is_waiting())

    def close(self) -> None:
        if not self.is_lost:
            self.transport.close()

    def abort(self) -> None:
        if not self.is_lost:
            self.transport.abort()

    def _write(self, data: bytes) -> None:
        if not self.is_lost and not self.transport.is_closing():
            self.sent_bytes += len(data)
            self.transport.write(data)

    def _finish(self) -> None:
        if self.is_lost or self.transport.is_closing():
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # this side has gone already, with a reset
            self.transport.abort()

    def _follow_loss(self, peer: End) -> None:
        if self.is_lost:
            return
        if peer.is_broken:
            reset_on_close(self.transport)
            self.transport.abort()
        else:
            self.transport.close()

    def _is_waiting(self) -> bool:
        return not self.is_lost and self.transport.get_write_buffer_size() > 0

    def _is_readable(self) -> bool:
        return not self.has_ended and not self.transport.is_closing()


async def relay(near: End, far: End, silence_s: float = SILENCE_S, half_closed_s: float = HALF_CLOSED_S) -> bool:
    """Carry bytes until both sides have ended; return whether they have, in peace: False after a reset or a silence.

    Cancelling breaks the far side off. The near side is then left to its owner.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    ends = (near, far)
    near.join(far, news)
    far.join(near, news)
    for end in ends:
        end.begin()
    in_peace = False
    try:
        while not any(end.is_broken for end in ends):
            news.clear()
            if all(end.is_over() for end in ends):
                in_peace = True
                break
            limit_s = half_closed_s if any(end.has_ended for end in ends) else silence_s
            due = max(end.heard_at for end in ends) + limit_s
            if due <= loop.time():
                break
            try:
                async with asyncio.timeout_at(due):
                    await news.wait()
            except TimeoutError:
                pass
    finally:
        if in_peace:
            near.close()
            far.close()
        else:
            far.abort()
    return in_peace


def reset_on_close(transport: asyncio.Transport) -> None:
    """Make the end of this connection a reset: a break that no reader can take for an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _probe(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        if hasattr(socket, name):  # Linux has all three
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

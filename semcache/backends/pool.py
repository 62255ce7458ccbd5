"""Connections to one origin, kept for the next request.

The rule: at most `limit` requests are on their way to an origin at once; the rest wait in order, and no longer than a
connection may take. A kept connection is given up before its server is likely to close it, and when it has reached an
age: only a new one asks where its name lies now.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohappyeyeballs

from semcache.backends.connection import Connection
from semcache.backends.proxying import Proxy, ProxyError, Tunnel
from semcache.backends.target import Origin
from semcache.errors import UpstreamError

# Of socket.getaddrinfo: family, type, protocol, canonical name, address.
Address = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

# A server that closes an idle connection just as a request leaves turns that request into a 502, as a POST is never
# sent twice. uvicorn, and with it vLLM, closes after 5 s; load balancers, as the vendors have, usually after a minute,
# and there a new connection costs two round trips.
KEEPALIVE_PLAIN_S = 4.0
KEEPALIVE_TLS_S = 45.0

HAPPY_EYEBALLS_S = 0.25  # RFC 8305: how long one address may take before the next is tried beside it

# A connection is given up between this share of its age and all of it, so that those that were opened together, by a
# burst or at the start, are not all dialled anew together.
_YOUNGEST_SHARE = 0.8

# First match wins.
_DIAL_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "has a certificate that cannot be trusted"),
    (ssl.SSLError, "does not complete a TLS handshake"),
    (socket.gaierror, "has a host name that cannot be resolved"),
    (ConnectionRefusedError, "refuses connections"),
    (UnicodeError, "has a host name that cannot be resolved"),
    (OSError, "cannot be reached"),
)


@dataclass(frozen=True, slots=True)
class Dialling:
    """What the pools of one event loop have in common."""

    tls: ssl.SSLContext
    buffer: memoryview  # where reads land
    resolve: Resolver
    now: Callable[[], float]  # monotonic seconds
    chance: Callable[[], float]  # from 0 to 1


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Ask the system, on one of the event loop's threads: whoever has a cache for names runs it there."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class ConnectionPool:
    """Lends connections. Whoever acquires one begins an exchange on it; its end, good or bad, gives it back."""

    def __init__(self, origin: Origin, limit: int, age_s: float, proxy: Proxy | None, dialling: Dialling) -> None:
        """`age_s`: past it a connection is not lent again; the request that it carries then ends in peace."""
        self.proxy = proxy
        self._origin = origin
        self._dialling = dialling
        self._tls = dialling.tls if origin.tls else None
        self._keepalive_s = KEEPALIVE_TLS_S if origin.tls else KEEPALIVE_PLAIN_S
        self._age_s = age_s
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []  # the one used last is lent first, so that a quiet pool shrinks
        self._open: dict[Connection, float] = {}  # until when each may be lent
        self._turn = 0
        self._is_retired = False
        self.dialled = 0

    async def acquire(self, name: str, connect_s: float) -> tuple[Connection, bool]:
        """A connection, and whether it has been used before.

        Raises UpstreamError, not sent: 502 when there can be none, 504 when it takes longer than `connect_s`.
        """
        has_slot = False
        try:
            if not self._slots.locked():
                await self._slots.acquire()  # does not suspend, so that the usual case needs no timer
                has_slot = True
                if kept := self._take_idle():
                    return kept, True
            async with asyncio.timeout(connect_s):
                if not has_slot:
                    await self._slots.acquire()
                    has_slot = True
                    if kept := self._take_idle():
                        return kept, True
                return await self._dial(), False
        except BaseException as exc:
            if has_slot:
                self._slots.release()
            if isinstance(exc, (OSError, UnicodeError)):
                raise _explain(exc, name, connect_s, has_slot) from exc
            raise

    def retire(self) -> None:
        """Lend nothing again: what is idle is closed now, and the rest when it is returned."""
        self._is_retired = True
        for connection in tuple(self._idle):
            connection.close()

    def close(self) -> None:
        for connection in tuple(self._open):
            connection.stop()

    def returned(self, connection: Connection) -> None:
        self._slots.release()
        if not connection.is_usable():
            return
        rest_s = self._open[connection] - self._dialling.now()
        if rest_s <= 0 or self._is_retired:
            connection.close()
        else:
            self._idle.append(connection)
            connection.rest(min(rest_s, self._keepalive_s))

    def closed(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)

    def stats(self) -> dict[str, int]:
        return {"open": len(self._open), "idle": len(self._idle), "dialled": self.dialled}

    def _take_idle(self) -> Connection | None:
        now = self._dialling.now()
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_usable():  # one whose end is known is still here until the loop has told us
                continue
            if self._open[connection] > now:
                return connection
            connection.close()
        return None

    async def _dial(self) -> Connection:
        connection = Connection(self._loop, self._dialling.buffer, self)
        share = _YOUNGEST_SHARE + (1 - _YOUNGEST_SHARE) * self._dialling.chance()
        self._open[connection] = self._dialling.now() + share * self._age_s
        try:
            if self.proxy is None:
                await self._connect(self._origin, self._tls, connection)
            else:
                await self._connect_through(self.proxy, connection)
            if not connection.is_usable():
                raise ConnectionAbortedError("closed as soon as it was open")
        except BaseException:
            self._open.pop(connection, None)
            connection.close()  # cancelled when all was done
            raise
        self.dialled += 1
        return connection

    async def _connect_through(self, proxy: Proxy, connection: Connection) -> None:
        if self._tls is None:  # each request says where it goes; see `_head` in fetch.py
            await self._connect_to(proxy, connection)
            return
        tunnel = Tunnel(proxy, self._origin)
        try:
            await self._connect_to(proxy, tunnel)
            await self._secure(tunnel, connection, self._tls)
        except BaseException:
            if tunnel.transport is not None:
                tunnel.transport.abort()
            raise

    async def _connect_to(self, proxy: Proxy, protocol: Connection | Tunnel) -> None:
        try:
            await self._connect(proxy.origin, self._dialling.tls if proxy.origin.tls else None, protocol)
            if isinstance(protocol, Tunnel):
                await protocol.opened()
        except ProxyError:
            raise
        except (OSError, UnicodeError) as exc:
            raise ProxyError(f"cannot be reached: its proxy {_complaint(exc)}") from exc

    async def _secure(self, tunnel: Tunnel, connection: Connection, tls: ssl.SSLContext) -> None:
        assert tunnel.transport is not None
        secured = await self._loop.start_tls(tunnel.transport, connection, tls, server_hostname=self._origin.host)
        assert secured is not None
        connection.connection_made(secured)

    async def _connect(self, origin: Origin, tls: ssl.SSLContext | None, protocol: Connection | Tunnel) -> None:
        addresses = await self._dialling.resolve(origin.host, origin.port)
        self._turn += 1
        sock = await aiohappyeyeballs.start_connection(
            _in_turn(addresses, self._turn), happy_eyeballs_delay=HAPPY_EYEBALLS_S, loop=self._loop
        )
        try:
            await self._loop.create_connection(
                lambda: protocol, sock=sock, ssl=tls, server_hostname=origin.host if tls else None
            )
        except BaseException:
            if protocol.transport is None:  # else the transport has it
                sock.close()
            raise


def _in_turn(addresses: Sequence[Address], turn: int) -> Sequence[Address]:
    """The addresses of a name, another one first each time: many servers may share it. The system's order of IPv6 and
    IPv4 stays."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [found[(turn + place) % len(found)] for found in families.values() for place in range(len(found))]


def _explain(exc: Exception, name: str, connect_s: float, has_slot: bool) -> UpstreamError:
    if isinstance(exc, TimeoutError):
        what = "could not be connected to" if has_slot else "had no free connection"
        return UpstreamError(f"{name} {what} within {connect_s:g} s", status=504, code="upstream_timeout")
    return UpstreamError(f"{name} {exc if isinstance(exc, ProxyError) else _complaint(exc)}")


def _complaint(exc: Exception) -> str:
    return next(text for kind, text in _DIAL_ERRORS if isinstance(exc, kind))

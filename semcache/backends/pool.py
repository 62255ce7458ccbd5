"""Connections to one origin, kept for the next request.

The rule: at most `limit` requests are on their way to an origin at once; the rest wait in order, and no longer than a
connection may take. A kept connection is given up before its server is likely to close it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

import aiohappyeyeballs

from semcache.backends.connection import Connection
from semcache.backends.routing import Origin
from semcache.errors import UpstreamError

# A server that closes an idle connection just as a request leaves turns that request into a 502, as a POST is never
# sent twice. uvicorn, and with it vLLM, closes after 5 s; load balancers, as the vendors have, usually after a minute,
# and there a new connection costs two round trips.
KEEPALIVE_PLAIN_S = 4.0
KEEPALIVE_TLS_S = 45.0

HAPPY_EYEBALLS_S = 0.25  # RFC 8305: how long one address may take before the next is tried beside it

# First match wins.
_DIAL_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "has a certificate that cannot be trusted"),
    (ssl.SSLError, "does not complete a TLS handshake"),
    (socket.gaierror, "has a host name that cannot be resolved"),
    (ConnectionRefusedError, "refuses connections"),
    (UnicodeError, "has a host name that cannot be resolved"),
    (OSError, "cannot be reached"),
)


class ConnectionPool:
    """Lends connections. Whoever acquires one begins an exchange on it; its end, good or bad, gives it back."""

    def __init__(self, origin: Origin, limit: int, tls: ssl.SSLContext, buffer: memoryview) -> None:
        self._origin = origin
        self._tls = tls if origin.tls else None
        self._buffer = buffer
        self._keepalive_s = KEEPALIVE_TLS_S if origin.tls else KEEPALIVE_PLAIN_S
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []  # the one used last is lent first, so that a quiet pool shrinks
        self._open: set[Connection] = set()
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

    def close(self) -> None:
        for connection in tuple(self._open):
            connection.stop()

    def returned(self, connection: Connection) -> None:
        self._slots.release()
        if connection.is_usable():
            self._idle.append(connection)
            connection.rest(self._keepalive_s)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def stats(self) -> dict[str, int]:
        return {"open": len(self._open), "idle": len(self._idle), "dialled": self.dialled}

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():  # one whose end is known is still here until the loop has told us
                return connection
        return None

    async def _dial(self) -> Connection:
        addresses = await self._loop.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_S, loop=self._loop
        )
        connection = Connection(self._loop, self._buffer, self)
        self._open.add(connection)
        try:
            await self._loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._origin.host if self._tls else None,
            )
        except BaseException:
            self._open.discard(connection)
            if connection.transport is not None:  # cancelled when all was done
                connection.transport.abort()
            else:
                sock.close()
            raise
        if not connection.is_usable():
            raise ConnectionAbortedError("closed as soon as it was open")
        self.dialled += 1
        return connection


def _explain(exc: Exception, name: str, connect_s: float, has_slot: bool) -> UpstreamError:
    if isinstance(exc, TimeoutError):
        what = "could not be connected to" if has_slot else "had no free connection"
        return UpstreamError(f"{name} {what} within {connect_s:g} s", status=504, code="upstream_timeout")
    return UpstreamError(f"{name} {next(text for kind, text in _DIAL_ERRORS if isinstance(exc, kind))}")

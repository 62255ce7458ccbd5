"""The port: who may connect, how many, for how long, and how the port is left without breaking an answer.

Each connection keeps its own rules (client_connection.py); what concerns all of them is here: the cap below the limit
of open files, the sweep that holds everyone to the deadlines, the drain, and log lines that no client can multiply.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from semcache import config
from semcache.errors import ClientError, SemcacheError, StartError
from semcache.listening.client_connection import Connection, ErrorPage, Handler
from semcache.listening.reading import read_ahead, read_body, stream_body
from semcache.listening.sending import ClientGone, Sender, whole_response
from semcache.listening.tls import Certificates, TlsServer
from semcache.listening.unix_socket import BACKLOG, UnixSocket

__all__ = ["ClientGone", "Listener", "Sender", "read_ahead", "read_body", "stream_body", "whole_response"]

log = logging.getLogger(__name__)

KEPT_FILES = 64  # open files left to the store, the log and the admin listener
SURPLUS = 64  # connections beyond the cap that are told so; more are closed without a word
ACCEPT_BATCH = 16  # accepted in a row by asyncio; when files run out it logs a line and rests a second for each
SEND_BUFFER_BYTES = 64 * 1024  # the kernel doubles it; with 64 KB of ours a slow reader holds under 256 KB
SWEEP_S = 1.0  # deadlines are kept to within this
CERTIFICATE_S = 5.0  # a renewed certificate is found within this
LINES_PER_S = 10  # log lines for one cause

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Serves `handler` on one port. Its task is cancelled when the client leaves, and when the drain is over.

    What the handler raises is answered in the form that `error_page(path, error)` gives it; the path is "" where the
    request could not be read that far. `clock`: monotonic seconds, for the deadlines.
    """

    def __init__(
        self,
        handler: Handler,
        settings: config.Server,
        error_page: ErrorPage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handler = handler
        self.settings = settings
        self.error_page = error_page
        self.draining = False
        self.requests = 0
        self.addresses: list[str] = []  # where it listens, as an operator would write it
        self.now = clock
        self._connections: set[Connection] = set()
        self._max_connections = _max_connections(settings.max_connections)
        self._refused: Counter[str] = Counter()
        self._complaints = Complaints(clock)
        self._servers: list[asyncio.Server | TlsServer] = []
        self._certificates: Certificates | None = None
        self._certificates_due = 0.0
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(
        self, host: str | None, port: int, reuse_port: bool = False, unix_socket: UnixSocket | None = None
    ) -> int:
        """Listen; return the port, 0 without a host. Raises StartError.

        An empty host is every address of the machine: one socket for IPv4 and one for IPv6, on the same port.
        """
        loop = asyncio.get_running_loop()
        if self.settings.tls is not None:
            self._certificates = Certificates(self.settings.tls)
        sockets = [] if host is None else await _bind(loop, host, port, reuse_port)
        self._previous_trouble = loop.get_exception_handler()
        loop.set_exception_handler(self._trouble)
        scheme = "http" if self._certificates is None else "https"
        for sock in sockets:
            self._servers.append(await self._serve(sock))
            self.addresses.append(url_of(scheme, *sock.getsockname()[:2]))
        if unix_socket is not None:
            self._servers.append(await loop.create_unix_server(self._connect, sock=unix_socket.sock, backlog=BACKLOG))
            self.addresses.append(f"unix:{unix_socket.path}")
        self._sweeping = loop.call_later(self._sweep_interval_s(), self._sweep_again)
        return int(sockets[0].getsockname()[1]) if sockets else 0

    async def _serve(self, sock: socket.socket) -> asyncio.Server | TlsServer:
        loop = asyncio.get_running_loop()
        if self._certificates is None:
            server = await loop.create_server(self._connect, sock=sock, backlog=ACCEPT_BATCH)
            sock.listen(BACKLOG)
            return server
        sock.listen(BACKLOG)
        return TlsServer(
            sock,
            self._certificates,
            self._connect,
            self.settings.header_timeout,
            self.settings.send_timeout,
            has_room=lambda waiting: len(self._connections) + waiting < self._max_connections + SURPLUS,
            refused=self.refused,
            out_of_files=lambda exc: self._complaints.tell("accept", "cannot accept connections: %s", exc.strerror),
        )

    def _connect(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    async def drain(self, deadline_s: float) -> None:
        """Refuse new connections, let running requests finish, then end those that are left, visibly broken off."""
        loop = asyncio.get_running_loop()
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        await self._wait_until_empty(deadline_s)
        for end in (Connection.cut, Connection.break_off):
            for connection in list(self._connections):
                end(connection)
            await self._wait_until_empty(1.0)
        if self._sweeping is not None:
            self._sweeping.cancel()
        if loop.get_exception_handler() == self._trouble:
            loop.set_exception_handler(self._previous_trouble)

    async def _wait_until_empty(self, deadline_s: float) -> None:
        if not self._connections:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(deadline_s):
                await self._empty.wait()
        except TimeoutError:
            pass

    def stats(self) -> dict[str, float]:
        refused = {f"refused_{reason}": float(count) for reason, count in self._refused.items()}
        return {"connections": len(self._connections), "requests": self.requests, **refused}

    def __repr__(self) -> str:
        return f"<Listener {len(self._connections)} connections, {self.requests} requests>"

    def sweep(self) -> None:
        """Hold every connection to its deadlines. Runs by itself about once a second."""
        now = self.now()
        for connection in list(self._connections):
            connection.check(now)
        if self._certificates is not None and now >= self._certificates_due:
            self._certificates_due = now + CERTIFICATE_S
            self._certificates.refresh()

    def _sweep_again(self) -> None:
        self.sweep()
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self._sweep_interval_s(), self._sweep_again)

    def _sweep_interval_s(self) -> float:
        shortest = min(self.settings.header_timeout, self.settings.send_timeout, self.settings.keepalive)
        return max(0.02, min(SWEEP_S, shortest / 4))

    # What connections tell

    def opened(self, connection: Connection) -> SemcacheError | None:
        surplus = len(self._connections) - self._max_connections
        self._connections.add(connection)
        if surplus < 0:
            return None
        self._complaints.tell(
            "connections",
            "too many connections: %d are open; raise server.max_connections, or the limit of open files",
            self._max_connections,
        )
        if surplus >= SURPLUS:
            self.refused("connections")
            connection.break_off()
            return None
        return ClientError("too many connections", status=503, code="connections", headers={"Retry-After": "1"})

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def refused(self, reason: str) -> None:
        self._refused[reason] += 1

    def failed(self, exc: BaseException) -> None:
        self._complaints.tell("handler", "a request failed: %s at %s", type(exc).__name__, _where(exc))

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Without open files accept fails over and over, and asyncio logs each failure."""
        exc = context.get("exception")
        if isinstance(exc, OSError) and exc.errno in _OUT_OF_FILES:
            self._complaints.tell("accept", "cannot accept connections: %s", exc.strerror)
        elif self._previous_trouble is not None:
            self._previous_trouble(loop, context)
        else:
            loop.default_exception_handler(context)


class Complaints:
    """At most LINES_PER_S log lines a second for one cause. What was left out is told with the next line."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, tuple[int, int]] = {}  # cause -> the second, lines in it

    def tell(self, cause: str, message: str, *values: object) -> None:
        now = int(self._clock())
        second, lines = self._told.get(cause, (now, 0))
        left_out = 0
        if second != now:
            left_out, lines = max(0, lines - LINES_PER_S), 0
        self._told[cause] = (now, lines + 1)
        if lines < LINES_PER_S:
            suffix = f" (and {left_out} more like it)" if left_out else ""
            log.warning(message + suffix, *values)


def _where(exc: BaseException) -> str:
    """Where an exception was raised, innermost first, without its text: that may hold parts of the request."""
    places = []
    trace: TracebackType | None = exc.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(places[-6:]))


def _max_connections(wanted: int) -> int:
    """Every connection may need a second file, to a backend, unless the operator knows better."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return wanted or 1_000_000
    most = max(1, files - KEPT_FILES)
    return min(wanted, most) if wanted else max(1, most // 2)


def url_of(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _bind(loop: asyncio.AbstractEventLoop, host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """Bind every address of the host that this machine has. Raises StartError."""
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            shared = sockets[0].getsockname()[1] if sockets else port  # port 0: the one that the first was given
            try:
                sockets.append(_bound(family, (address[0], shared, *address[2:]), reuse_port))
            except OSError as exc:
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = exc  # a name such as localhost may stand for an address family that is switched off here
        if not sockets:
            raise absent or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    except OSError as exc:
        for sock in sockets:
            sock.close()
        why = "the port is taken" if exc.errno == errno.EADDRINUSE else exc.strerror or str(exc)
        raise StartError(f"cannot listen on {host or '*'}, port {port}: {why}") from exc
    return sockets


def _bound(family: int, address: tuple[Any, ...], reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted connections inherit these.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock

"""FETCH: send a request to the first backend that takes it and hand back the reply as it arrives.

The rule: a request that may have arrived is not sent again. The next backend is tried only when no byte of the request
can have left: no name, no connection, no TLS, no free connection in time. A POST that went out on a kept connection
which turned out to be dead fails with `sent`, since the backend may have read it, begun to answer and died; only the
caller knows whether asking twice is harmless (the SDKs retry a 502). GET, HEAD and OPTIONS may be repeated at will.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

from multidict import CIMultiDict
from pydantic import SecretStr

from semcache.backends.connection import READ_BYTES, Body, Exchange
from semcache.backends.headers import NODE, forwarded_headers, returned_headers
from semcache.backends.pool import ConnectionPool, Dialling, Resolver, resolve
from semcache.backends.proxying import Proxy, ProxyError, find_proxy, refusal
from semcache.backends.target import Origin, Target, targets_of
from semcache.config import Pool
from semcache.errors import ClientError, UpstreamError
from semcache.tunnel import PROTOCOLS, without_offered_keys

_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request as the client sent it: fields, path and key are made to fit each backend that is tried."""

    method: str
    path_and_query: str  # raw: nothing is unquoted
    headers: Mapping[str, str]  # the client's own, unfiltered, repeated ones included
    body: Body = b""  # a stream is read once; its errors come out of `fetch` or `chunks` as they are
    length: int | None = None  # of a stream, if it is known: sent as Content-Length, else the stream goes out in chunks
    want_recording: bool = False  # the answer will be read by us: asked for without a content coding
    pass_key: bool = True  # send the caller's key where a backend has none of its own; see headers.py
    identity: Callable[[], str] | None = None  # who asks, signed for one use: for backends that are semcaches, too
    switches: bool = False  # a WebSocket handshake: a Reply of status 101 has a tunnel
    on_sent: Callable[[], None] = lambda: None  # told when it has a connection and goes out: from then on it may arrive


class Reply:
    """A backend's answer whose head is here. Call `abort` in a `finally` when done with it: harmless after the end."""

    __slots__ = ("_exchange", "backend", "headers", "status", "tunnel")

    def __init__(self, exchange: Exchange, backend: str) -> None:
        self.status = exchange.status
        self.headers: CIMultiDict[str] = returned_headers([(_text(n), _text(v)) for n, v in exchange.fields])
        self.backend = backend
        self.tunnel = exchange.tunnel  # with status 101, and only then
        self._exchange = exchange

    @property
    def whole(self) -> bool:
        """The answer has ended, and its framing proves that nothing is missing.

        False for one that is delimited by the end of the connection: it may be cut, and nobody can tell.
        """
        return self._exchange.whole

    @property
    def length(self) -> int | None:
        """Of the body in bytes, where the head tells it; `chunks` then gives as many or raises. Of a HEAD: of what a
        GET would have brought."""
        told = self.headers.get("Content-Length")  # digits: the parser refuses anything else, and more than one
        return None if told is None else int(told)

    async def first(self) -> None:
        """Wait until the body has begun, and take nothing of it; one without a byte has begun when it has ended.

        Raises as `chunks` does, if no byte of it came. Cancelling closes the connection: to see whether an answer
        begins in time and to go on waiting if not, wait for a task of this with `asyncio.wait`.
        """
        await self._exchange.first()

    @property
    def is_empty(self) -> bool:
        """Its body has ended without a byte. Settled once `first` has returned."""
        return self._exchange.is_empty

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, once. Leaving the loop early or being cancelled closes the connection.

        Raises UpstreamError (sent): 504 for silence past a deadline, 502 for a cut, a reset or bad framing.
        What had arrived before is given first.
        """
        return self._exchange.chunks()

    async def abort(self) -> None:
        """Close the connection at once, so that the backend stops working, unless the whole answer has arrived."""
        self._exchange.abort()


class Fetcher:
    """All connections to backends of one event loop."""

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        resolve: Resolver = resolve,
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        node: str = NODE,
    ) -> None:
        """`tls`: who is trusted; None for the system's certificate authorities, or those that SSL_CERT_FILE and
        SSL_CERT_DIR name. `environ`: where HTTP_PROXY and its like are looked for, once for each backend. `node`: our
        name in Via.
        """
        self._node = node
        self._tls = tls
        self._resolve, self._environ, self._now, self._chance = resolve, environ, now, chance
        self._dialling: Dialling | None = None
        self._pools: dict[_Key, ConnectionPool] = {}
        self._retired: WeakSet[ConnectionPool] = WeakSet()  # alive as long as a request is under way in them
        self.requests = 0
        self.failovers = 0

    async def start(self) -> None:
        tls = self._tls
        if tls is None:
            tls = ssl.create_default_context()
            tls.set_alpn_protocols(["http/1.1"])
        buffer = memoryview(bytearray(READ_BYTES))
        self._dialling = Dialling(tls, buffer, self._resolve, self._now, self._chance)

    async def close(self) -> None:
        """Cut what is still running and close every connection."""
        for pool in (*self._pools.values(), *self._retired):
            pool.close()
        await asyncio.sleep(0)  # the loop tells the connections of their end in its next turn

    def adopt(self, pools: Mapping[str, Pool]) -> None:
        """Take new settings. Connections that they have no use for are given up, each when its request has ended."""
        used = {_key(target) for name, pool in pools.items() for target in targets_of(name, pool)}
        for key in self._pools.keys() - used:
            pool = self._pools.pop(key)
            pool.retire()
            self._retired.add(pool)

    async def fetch(self, targets: Sequence[Target], request: UpstreamRequest) -> Reply:
        """Ask the targets in turn until one takes the request; return once the head of its answer is here.

        Any status is an answer, an error of the backend too. Cancelling closes the connection.
        Raises ClientError for a request that must not be forwarded; UpstreamError of the last target that was tried.
        """
        error: UpstreamError | None = None
        for number, target in enumerate(targets):
            try:
                return await self.send(target, request)
            except UpstreamError as exc:
                if exc.sent and not _is_repeatable(request):
                    raise
                self.failovers += number + 1 < len(targets)
                error = exc
        raise error or UpstreamError("no backend was given")

    async def send(self, target: Target, request: UpstreamRequest) -> Reply:
        """Ask one target, once; return when the head of its answer is here. No failover: that is for the caller.

        Any status is an answer. Cancelling closes the connection. Raises ClientError for a request that must not be
        forwarded; UpstreamError, whose `sent` tells whether the request may have arrived.
        """
        pool = self._pools.get(_key(target)) or self._open_pool(target)
        # A tunnel is the backend's own connection; without one the proxy reads every request.
        proxy = None if target.origin.tls else pool.proxy
        head = _head(target, request, proxy, self._node)  # before a connection is taken: it may refuse
        while True:
            connection, used_before = await pool.acquire(target.name, target.connect_s)
            exchange = Exchange(
                connection, target.name, target.first_byte_s, target.between_bytes_s, may_switch=request.switches
            )
            self.requests += 1
            request.on_sent()
            connection.begin(exchange, request.method, head, request.body, request.length)
            try:
                await exchange.head()
            except UpstreamError as exc:
                # A kept connection that was dead says nothing about the backend. Each turn uses one up.
                if used_before and exc.status == 502 and _is_repeatable(request):
                    continue
                raise
            if proxy is not None and exchange.status == 407:
                exchange.abort()
                # Nothing has come to the backend, but a stream can be read only once.
                is_spent = not isinstance(request.body, bytes)
                raise UpstreamError(f"{target.name} {refusal(exchange.status)}", sent=is_spent)
            return Reply(exchange, target.name)

    def stats(self) -> dict[str, object]:
        pools = {f"{key[0]} {key[1].host}:{key[1].port}": pool.stats() for key, pool in self._pools.items()}
        return {"requests": self.requests, "failovers": self.failovers, "connections": pools}

    def _open_pool(self, target: Target) -> ConnectionPool:
        assert self._dialling is not None, "start() comes first"
        try:
            proxy = find_proxy(target.backend.proxy.get_secret_value(), target.origin, self._environ)
        except ProxyError as exc:
            raise UpstreamError(f"{target.name} {exc}") from exc
        pool = ConnectionPool(target.origin, target.max_connections, target.connection_age_s, proxy, self._dialling)
        self._pools[_key(target)] = pool
        return pool


_Key = tuple[str, Origin, SecretStr, int, float]


def _key(target: Target) -> _Key:
    """Targets with equal keys share their connections: the keys of one backend, and one server under several models."""
    return target.pool, target.origin, target.backend.proxy, target.max_connections, target.connection_age_s


def _is_repeatable(request: UpstreamRequest) -> bool:
    return request.method in _REPEATABLE and isinstance(request.body, bytes)


def _head(target: Target, request: UpstreamRequest, proxy: Proxy | None, node: str) -> bytes:
    """Request line and fields, as bytes. `proxy`: it reads them and asks the backend. Raises ClientError."""
    path = target.path(request.path_and_query)
    if proxy is not None:
        path = f"http://{target.host}{path}"  # RFC 9112 section 3.2.2
    lines = [f"{request.method} {path} HTTP/1.1", f"Host: {target.host}"]
    if proxy is not None and proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    fields = forwarded_headers(
        request.headers,
        target,
        request.want_recording,
        pass_key=request.pass_key,
        is_unpacked=isinstance(request.body, bytes),  # a body that is held was read, and reading unpacks it
        node=node,
        identity=request.identity,
    )
    if PROTOCOLS in request.headers:
        fields = _without_offered_keys(fields, target, pass_key=request.pass_key)
    lines += [f"{name}: {value}" for name, value in fields]
    if request.switches:
        lines += ["Connection: Upgrade", "Upgrade: websocket"]
    if not isinstance(request.body, bytes):
        lines.append("Transfer-Encoding: chunked" if request.length is None else f"Content-Length: {request.length}")
    elif request.body or request.method not in _REPEATABLE:
        lines.append(f"Content-Length: {len(request.body)}")
    head = "\r\n".join(lines)
    # A line break inside a value would be a field of its own upstream, a blank in the path a second half of the line.
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or lines[0].count(" ") != 2:
        raise ClientError("the path or a header of the request holds a line break or a blank where none may be")
    return head.encode("utf-8", "surrogateescape") + b"\r\n\r\n"  # as aiohttp's server decoded them


def _without_offered_keys(
    fields: Sequence[tuple[str, str]], target: Target, *, pass_key: bool
) -> list[tuple[str, str]]:
    """A browser's key lies in the list of subprotocols. It goes where every other caller's key goes, and no further."""
    if pass_key and not target.api_key:
        return list(fields)
    kept = []
    for name, value in fields:
        if name.lower() == PROTOCOLS.lower():
            value = without_offered_keys(value)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")  # as HTTP/1.0 had it: a lone surrogate could not be sent on

"""Through which HTTP proxy a backend is reached, and the way through it.

The rule: where a proxy is named, nothing goes around it. The name of the backend is then resolved by the proxy and not
here, and the proxy's credentials go to the proxy alone. A backend with TLS is reached through a tunnel (CONNECT), in
which the proxy sees no more than its name; one without is asked for by its whole URL, since most proxies open tunnels
to port 443 only.
"""

from __future__ import annotations

import asyncio
import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote, urlsplit

import httptools

from semcache.backends.target import Origin

_PORTS = {"http": 80, "https": 443}
_MAX_HEAD_BYTES = 64 * 1024  # of the proxy's answer


class ProxyError(OSError):
    """There is no way through the proxy. The message goes on after the backend's name."""


@dataclass(frozen=True, slots=True)
class Proxy:
    origin: Origin  # the proxy itself
    authorization: str = field(default="", repr=False)  # of Proxy-Authorization


def find_proxy(setting: str, origin: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy on the way to a backend. `setting`: as in `Backend.proxy`.

    The variables are read as curl and Go do: HTTPS_PROXY or HTTP_PROXY by what the backend speaks, else ALL_PROXY; in
    small letters they count first; this machine itself is never reached through a proxy of the environment.
    Raises ProxyError where no HTTP proxy is named: what was meant to go through one must not go around it.
    """
    if setting == "none":
        return None
    url = setting
    if setting == "env":
        scheme = "https" if origin.tls else "http"
        if scheme == "http" and "REQUEST_METHOD" in environ:  # a CGI script, whose callers set HTTP_PROXY by a header
            environ = {name: value for name, value in environ.items() if name != "HTTP_PROXY"}
        url = _variable(environ, f"{scheme}_proxy") or _variable(environ, "all_proxy")
        if not url or _is_here(origin.host) or _is_listed(origin, _variable(environ, "no_proxy")):
            return None
        url = url if "://" in url else f"http://{url}"
    return _read(url)


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, environ.get(name.upper(), "")).strip()


def _read(text: str) -> Proxy:
    """Raises ProxyError."""
    try:
        url = urlsplit(text)
        port = _PORTS.get(url.scheme) if url.port is None else url.port
    except ValueError:  # whose message may quote the password
        raise ProxyError("cannot be reached: the setting of its proxy is no URL") from None
    if url.scheme not in _PORTS or not url.hostname or not port:
        raise ProxyError("cannot be reached: the setting of its proxy names no HTTP proxy, which is all that is spoken")
    authorization = ""
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        authorization = f"Basic {b64encode(pair.encode('utf-8', 'surrogateescape')).decode()}"
    return Proxy(Origin(url.hostname, port, url.scheme == "https"), authorization)


def _is_here(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _is_listed(origin: Origin, no_proxy: str) -> bool:
    """NO_PROXY: names, which stand for all below them too; addresses and networks; each with a port or without."""
    host, address = origin.host.lower().rstrip("."), _address(origin.host)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        name, _, port = entry.rpartition(":")
        if name and port.isdecimal() and (":" not in name or name.endswith("]")):
            if int(port) != origin.port:
                continue
            entry = name
        if address is not None:
            if _contains(entry.strip("[]"), address):
                return True
        elif host == (name := entry.removeprefix("*").strip(".")) or (name and host.endswith(f".{name}")):
            return True
    return False


def _contains(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


class Tunnel(asyncio.Protocol):
    """A CONNECT and the proxy's answer to it. After `opened` the transport is a way to the backend.

    What follows the head of the answer is thrown away: a backend with TLS is silent until it is spoken to, and of a
    refusal the status is enough.
    """

    def __init__(self, proxy: Proxy, origin: Origin) -> None:
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        authority = f"{host}:{origin.port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        self._request = "\r\n".join([*lines, "\r\n"]).encode()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._read_bytes = 0
        self.transport: asyncio.Transport | None = None

    async def opened(self) -> None:
        """Raises ProxyError."""
        await self._opened

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("cannot be reached: its proxy sent what is not a valid answer")
        if self._read_bytes > _MAX_HEAD_BYTES:
            self._fail("cannot be reached: its proxy sent what is not a valid answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("cannot be reached: its proxy closed the connection")
        del self._parser  # it holds our methods, and so us

    # Called by the parser.

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 200 <= status < 300:
            if not self._opened.done():
                self._opened.set_result(None)
        elif status >= 200:
            self._fail(refusal(status))

    def _fail(self, why: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(ProxyError(why))


def refusal(status: int) -> str:
    """What a proxy's own status means, after a backend's name."""
    if status == 407:
        return "cannot be reached: its proxy asks for other credentials (proxy: http://user:password@host:port)"
    return f"cannot be reached: its proxy refuses with status {status}"

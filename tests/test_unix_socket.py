"""Where the proxy listens besides a port of IPv4: a path, IPv6, both families at once. Real clients come in by each."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from semcache import config
from semcache.children import Child
from semcache.errors import ConfigError, StartError
from semcache.listening.listener import Listener, url_of, whole_response
from semcache.listening.unix_socket import UnixSocket
from tests.harness import running_proxy
from tests.listening import JSON, page

pytestmark = pytest.mark.both_loops

HAS_IPV6 = os.path.exists("/proc/net/if_inet6") and "00000000000000000000000000000001" in Path(
    "/proc/net/if_inet6"
).read_text(encoding="ascii")
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return whole_response(request, 200, JSON, f'"{request.path}"'.encode())


@asynccontextmanager
async def listening(host: str | None, unix_socket: UnixSocket | None = None) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(hello, config.Server(), page)
    port = await listener.start(host, 0, unix_socket=unix_socket)
    try:
        yield listener, port
    finally:
        await listener.drain(0.1)


async def ask(url: str, path: Path | None = None) -> str:
    transport = httpx.AsyncHTTPTransport(uds=str(path)) if path else None
    async with httpx.AsyncClient(transport=transport) as client:
        return str((await client.get(url)).json())


# A path


async def test_a_path_is_listened_on_beside_the_port_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "semcache.sock"
    bound = UnixSocket(str(path), 0o660)
    async with listening("127.0.0.1", bound) as (listener, port):
        assert await ask("http://any/v1/a", path) == "/v1/a"
        assert await ask(f"http://127.0.0.1:{port}/v1/b") == "/v1/b"
        assert listener.addresses == [f"http://127.0.0.1:{port}", f"unix:{path}"]
    bound.remove()
    assert list(tmp_path.iterdir()) == []


async def test_without_a_host_there_is_only_the_path(tmp_path: Path) -> None:
    path = tmp_path / "semcache.sock"
    bound = UnixSocket(str(path), 0o660)
    async with listening(None, bound) as (listener, port):
        assert (port, listener.addresses) == (0, [f"unix:{path}"])
        assert await ask("http://any/v1/a", path) == "/v1/a"
    bound.remove()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_path_has_the_permissions_that_were_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        bound = UnixSocket(str(tmp_path / "s"), mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    bound.remove()


def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bound = UnixSocket(str(path), 0o660)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.remove()
    assert not path.exists()


def test_a_path_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bound = UnixSocket(str(path), 0o660)
    with pytest.raises(StartError, match=rf'^server\.unix_socket: another process listens on "{path}"$'):
        UnixSocket(str(path), 0o660)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.remove()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(StartError, match=r'^server\.unix_socket: ".*" is there already, and is no socket$'):
        UnixSocket(str(path), 0o660)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_a_path_that_cannot_be_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match=r'^server\.unix_socket: cannot listen on ".*": .+$'):
        UnixSocket(str(tmp_path / name), 0o660)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = UnixSocket(str(path), 0o660)
    first.close()
    second = UnixSocket(str(path), 0o660)
    first.remove()
    assert path.exists()
    second.remove()


async def test_the_whole_proxy_answers_on_its_path(tmp_path: Path) -> None:
    path = tmp_path / "semcache.sock"
    async with running_proxy(tmp_path, f"server: {{unix_socket: {path}}}") as proxy:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, headers={"Authorization": "Bearer sk-test"}) as client:
            body = {"model": "small", "messages": [{"role": "user", "content": "Where is my parcel now"}]}
            reply = await client.post("http://any/v1/chat/completions", json=body)
            assert reply.json()["choices"][0]["message"]["content"] == "answer 1 to: Where is my parcel now"
        again = await proxy.ask("Where is my parcel now")
        assert again.verdict in ("hit", "miss")
    assert not path.exists()


def test_workers_share_one_path_and_their_parent_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "semcache.sock"
    settings = tmp_path / "semcache.yaml"
    settings.write_text(
        f"server: {{host: null, unix_socket: {path}, workers: 2, admin_port: 0, request_log: 'off', drain: 1s}}\n"
        f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\n"
    )
    log = tmp_path / "serve.log"
    child = Child([sys.executable, "-m", "semcache", "serve", "-c", str(settings)], log)
    try:
        child.wait_for_line(r"(?s)(listening on unix:\S+/semcache\.sock, metrics on http://127.*){2}")
        for _ in range(10):
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                assert client.get("http://any/healthz").json() == {"status": "ok"}
    finally:
        child.stop()
    assert not path.exists()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("{host: null}", "server: host is null and there is no unix_socket: nobody could ask anything"),
        ("{unix_socket: s, unix_socket_mode: 660}", "server.unix_socket_mode: 660: write permissions in quotes"),
        ("{unix_socket: s, unix_socket_mode: '999'}", "server.unix_socket_mode: '999': write permissions in quotes"),
        ("{tls: {certificate: c}}", "server.tls.key: must be written out, it has no default"),
        ("{host: null, unix_socket: s, tls: {certificate: c, key: k}}", "server: tls is for host and port"),
    ],
)
def test_settings_that_cannot_be_are_told(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(f"server: {text}", {})
    assert str(caught.value).startswith(f"config: {complaint}")


# IPv6


def test_addresses_are_written_as_in_a_url() -> None:
    assert url_of("https", "::1", 8080) == "https://[::1]:8080"
    assert url_of("http", "127.0.0.1", 80) == "http://127.0.0.1:80"


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_an_address_of_ipv6_serves_ipv6_alone(host: str) -> None:
    async with listening(host) as (listener, port):
        assert await ask(f"http://[::1]:{port}/v1/a") == "/v1/a"
        assert listener.addresses == [f"http://[{host}]:{port}"]
        with pytest.raises(httpx.ConnectError):
            await ask(f"http://127.0.0.1:{port}/v1/a")


@needs_ipv6
async def test_no_address_is_every_address_of_both_families_on_one_port() -> None:
    async with listening("") as (listener, port):
        assert await ask(f"http://[::1]:{port}/v1/a") == "/v1/a"
        assert await ask(f"http://127.0.0.1:{port}/v1/b") == "/v1/b"
        assert sorted(listener.addresses) == [f"http://0.0.0.0:{port}", f"http://[::]:{port}"]


async def test_an_address_of_ipv4_serves_ipv4_alone() -> None:
    async with listening("0.0.0.0") as (_, port):
        assert await ask(f"http://127.0.0.1:{port}/v1/a") == "/v1/a"
        with pytest.raises(OSError):
            await asyncio.open_connection("::1", port)

"""Backends behind an HTTP proxy: which one is taken, and what goes through it and what does not."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.backends.fetch import Fetcher, Reply, UpstreamRequest
from semcache.backends.pool import Address, resolve
from semcache.backends.proxying import Proxy, ProxyError, find_proxy
from semcache.backends.target import Origin, Target, targets_of
from semcache.config import Backend, Pool, parse
from semcache.errors import ConfigError, UpstreamError
from tests.forward_proxy import ForwardProxy
from tests.scripted_upstream import Expect, ScriptedUpstream, Wait, answer, chunked

PLAIN, SECURE = Origin("gpu.internal", 8000, False), Origin("api.example.com", 443, True)
HERE = Proxy(Origin("proxy", 3128, False))


# Which proxy


@pytest.mark.parametrize(
    "origin, environ, proxy",
    [
        (PLAIN, {}, None),
        (PLAIN, {"HTTP_PROXY": "http://proxy:3128"}, HERE),
        (PLAIN, {"HTTPS_PROXY": "http://proxy:3128"}, None),
        (SECURE, {"HTTPS_PROXY": "http://proxy:3128"}, HERE),
        (SECURE, {"HTTP_PROXY": "http://proxy:3128"}, None),
        (SECURE, {"ALL_PROXY": "http://proxy:3128"}, HERE),
        (PLAIN, {"all_proxy": "proxy:3128"}, HERE),
        (
            SECURE,
            {"https_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://other", "ALL_PROXY": "http://third"},
            HERE,
        ),
        (SECURE, {"https_proxy": "", "HTTPS_PROXY": "http://other"}, None),  # the usual way to switch it off
        (SECURE, {"HTTPS_PROXY": "https://proxy"}, Proxy(Origin("proxy", 443, True))),
        (PLAIN, {"HTTP_PROXY": "http://[::1]:3128/"}, Proxy(Origin("::1", 3128, False))),
        (PLAIN, {"HTTP_PROXY": "http://proxy:3128", "REQUEST_METHOD": "GET"}, None),
        (PLAIN, {"http_proxy": "http://proxy:3128", "REQUEST_METHOD": "GET"}, HERE),
    ],
)
def test_the_environment_names_a_proxy(origin: Origin, environ: dict[str, str], proxy: Proxy | None) -> None:
    assert find_proxy("env", origin, environ) == proxy
    assert find_proxy("none", origin, environ) is None
    assert find_proxy("http://own:1", origin, environ) == Proxy(Origin("own", 1, False))


@pytest.mark.parametrize(
    "host, no_proxy, goes_direct",
    [
        ("gpu.internal", "*", True),
        ("gpu.internal", "internal", True),
        ("gpu.internal", ".internal", True),
        ("gpu.internal", "*.internal", True),
        ("GPU.internal", "gpu.INTERNAL", True),
        ("gpu.internal.", "gpu.internal", True),
        ("gpu.internal", "other, gpu.internal", True),
        ("gpu.internal", "other gpu.internal", True),
        ("gpu.internal", "gpu.internal:8000", True),
        ("gpu.internal", "gpu.internal:80", False),
        ("gpu.internal", "u.internal", False),
        ("gpu.internal", "x.gpu.internal", False),
        ("gpu.internal", "", False),
        ("gpu.internal", ".,,", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3:8000", True),
        ("10.1.2.3", "10.1.2.3:8001", False),
        ("10.1.2.3", "10.1.3.0/24,2.3", False),
        ("fd00::7", "fd00::/8", True),
        ("fd00::7", "[fd00::7]:8000", True),
        ("fd00::7", "fd00::8", False),
        ("localhost", "", True),
        ("127.0.0.2", "", True),
        ("::1", "", True),
    ],
)
def test_what_no_proxy_lists_is_reached_directly(host: str, no_proxy: str, goes_direct: bool) -> None:
    environ = {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": no_proxy}
    assert (find_proxy("env", Origin(host, 8000, False), environ) is None) == goes_direct
    assert find_proxy("http://proxy:3128", Origin(host, 8000, False), environ) == HERE  # written out, it is meant


@pytest.mark.parametrize(
    "url",
    [
        "socks5://me:secret@proxy:1080",
        "http://me:secret@proxy:99999",
        "http://",
        "http://me:secret/@proxy",
        "http://[]",
    ],
)
def test_a_proxy_that_cannot_be_used_is_not_gone_around(url: str) -> None:
    for setting, environ in (("env", {"ALL_PROXY": url}), (url, {})):
        with pytest.raises(ProxyError, match="proxy") as refused:
            find_proxy(setting, PLAIN, environ)
        assert "secret" not in str(refused.value)


def test_credentials_are_read_from_the_url_and_shown_nowhere() -> None:
    proxy = find_proxy("http://me:p%40ss%3A@proxy:3128", PLAIN, {})
    assert proxy is not None
    assert proxy.authorization == f"Basic {b64encode(b'me:p@ss:').decode()}"
    assert proxy.origin == HERE.origin
    assert "Basic" not in repr(proxy)


URLS = st.text(max_size=20) | st.text("htps:/[]@.%1a", max_size=25)
LISTS = st.text("0123456789.,:/*[] a-", max_size=30) | st.text(max_size=20)


@given(URLS | st.builds("http://{}@{}:{}".format, st.text(), st.text(), st.text("0123456789", max_size=6)), LISTS)
@example("[]@", "")
def test_whatever_the_environment_holds_it_is_a_proxy_or_an_error(url: str, no_proxy: str) -> None:
    for host in ("gpu.internal", "10.1.2.3", "fd00::7"):
        try:
            proxy = find_proxy("env", Origin(host, 8000, True), {"https_proxy": url, "no_proxy": no_proxy})
        except ProxyError:
            continue
        assert proxy is None or (proxy.origin.host and 0 < proxy.origin.port < 65536)


# Through it, on real sockets


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    def run_whole(coroutine: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return run_whole


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA, *hosts: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts).configure_cert(context)
    return context


@asynccontextmanager
async def fetching(authority: trustme.CA | None = None, **settings: Any) -> AsyncIterator[Fetcher]:
    """A fetcher that asks the system for addresses of this machine only."""

    async def only_here(host: str, port: int) -> Sequence[Address]:
        assert host in ("127.0.0.1", "localhost"), f"{host} was resolved here"
        return await resolve(host, port)

    trusting = ssl.create_default_context()
    if authority is not None:
        authority.configure_trust(trusting)
    fetcher = Fetcher(trusting, resolve=only_here, **settings)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


@pytest.mark.parametrize("proxy", ["proxy:3128", "socks5://me:secret@proxy", "http://me:secret@", "http://p:99999", ""])
def test_a_proxy_in_the_file_is_checked_before_it_is_needed(proxy: str) -> None:
    with pytest.raises(ConfigError, match="URL of an HTTP proxy") as refused:
        parse(f"pools: {{a: {{backends: [{{url: 'http://h/v1', proxy: '{proxy}'}}]}}}}", {})
    assert "secret" not in str(refused.value)


def test_the_password_of_a_proxy_is_not_shown_with_the_settings() -> None:
    backend = Backend(url="http://h/v1", proxy="http://me:secret@proxy:3128")  # type: ignore[arg-type]
    assert "secret" not in repr(backend)


def behind(proxy: str, port: int, scheme: str = "https", host: str = "gpu.internal") -> Target:
    backend = Backend(url=f"{scheme}://{host}:{port}/v1", proxy=proxy, api_key="backend-key")  # type: ignore[arg-type]
    return next(targets_of("gpu", Pool(backends=(backend,))))


ASK = UpstreamRequest("POST", "/v1/chat/completions", CIMultiDict({"Proxy-Authorization": "Basic callers"}), b"{}")


async def read(reply: Reply) -> bytes:
    return b"".join([piece async for piece in reply.chunks()])


@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
def test_a_backend_with_tls_is_reached_through_a_tunnel(
    run: Callable[[Any], None], authority: trustme.CA, proxy_scheme: str
) -> None:
    async def whole() -> None:
        script = [Expect(), answer(b"safe"), Expect(), chunked(b"again"), Expect(), answer(b"x" * 300_000)]
        proxy_tls = server_tls(authority, "localhost") if proxy_scheme == "https" else None
        async with (
            ScriptedUpstream([script], server_tls(authority, "gpu.internal")) as upstream,
            ForwardProxy({"gpu.internal": "127.0.0.1"}, b64encode(b"me:secret").decode(), tls=proxy_tls) as proxy,
            fetching(authority) as fetcher,
        ):
            target = behind(f"{proxy_scheme}://me:secret@localhost:{proxy.port}", upstream.port)
            for expected in (b"safe", b"again", b"x" * 300_000):
                assert await read(await fetcher.send(target, ASK)) == expected
            authority_line = f"gpu.internal:{upstream.port}"
            [head] = proxy.heads  # of one tunnel; what went through it is nobody's to read
            assert head[:2] == [f"CONNECT {authority_line} HTTP/1.1", f"Host: {authority_line}"]
            for received in upstream.requests:
                assert received.line == "POST /v1/chat/completions HTTP/1.1"
                assert received.all("proxy-authorization") == []
                assert received.all("authorization") == ["Bearer backend-key"]
            assert upstream.connections == 1

    run(whole())


def test_a_backend_without_tls_is_asked_for_by_its_whole_url(run: Callable[[Any], None]) -> None:
    async def whole() -> None:
        async with (
            ScriptedUpstream([[Expect(), answer(b"one"), Expect(), chunked(b"two")]]) as upstream,
            ForwardProxy({"gpu.internal": "127.0.0.1"}, b64encode(b"me:").decode()) as proxy,
            fetching(environ={"http_proxy": f"me@localhost:{proxy.port}"}) as fetcher,
        ):
            target = behind("env", upstream.port, "http")
            for expected in (b"one", b"two"):
                assert await read(await fetcher.send(target, ASK)) == expected
            assert proxy.lines == [f"POST http://gpu.internal:{upstream.port}/v1/chat/completions HTTP/1.1"] * 2
            for received in upstream.requests:
                assert received.all("host") == [f"gpu.internal:{upstream.port}"]
                assert received.all("proxy-authorization") == []
            assert "Basic callers" not in str(proxy.heads)

    run(whole())


def test_what_is_listed_in_no_proxy_does_not_touch_the_proxy(run: Callable[[Any], None]) -> None:
    async def whole() -> None:
        async with (
            ScriptedUpstream([[Expect(), answer(b"direct")]]) as upstream,
            ForwardProxy() as proxy,
            fetching(environ={"HTTP_PROXY": f"http://localhost:{proxy.port}"}) as fetcher,
        ):
            target = behind("env", upstream.port, "http", "localhost")
            assert await read(await fetcher.send(target, ASK)) == b"direct"
            assert proxy.heads == []

    run(whole())


REFUSES = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nforbidden"


@pytest.mark.parametrize(
    "instead, complaint",
    [
        (REFUSES, "refuses with status 403"),
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "asks for other credentials"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not a valid answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not a valid answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not a valid answer"),
        (b"HTTP/1.1 200 O", "closed the connection"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\nno TLS here\r\n", "closed as soon|TLS handshake|cannot be reached"),
    ],
)
def test_without_a_tunnel_nothing_is_sent(
    run: Callable[[Any], None], authority: trustme.CA, instead: bytes, complaint: str
) -> None:
    async def whole() -> None:
        async with ForwardProxy(answer=instead) as proxy, fetching(authority) as fetcher:
            with pytest.raises(UpstreamError, match=complaint) as refused:
                await fetcher.send(behind(f"http://me:secret@localhost:{proxy.port}", 443), ASK)
            assert (refused.value.status, refused.value.sent) == (502, False)
            assert "secret" not in refused.value.message
            assert "localhost" not in refused.value.message

    run(whole())


def test_a_proxy_that_wants_credentials_is_no_backend_that_does(run: Callable[[Any], None]) -> None:
    async def whole() -> None:
        async with ForwardProxy(credentials="other") as proxy, fetching() as fetcher:
            with pytest.raises(UpstreamError, match="asks for other credentials") as refused:
                await fetcher.send(behind(f"http://me:secret@localhost:{proxy.port}", 80, "http"), ASK)
            assert (refused.value.status, refused.value.sent) == (502, False)

    run(whole())


def test_a_proxy_that_is_not_there_is_what_the_error_is_about(run: Callable[[Any], None]) -> None:
    async def whole() -> None:
        async with ForwardProxy() as proxy:
            port = proxy.port
        async with fetching() as fetcher:
            for scheme in ("http", "https"):
                with pytest.raises(UpstreamError, match=r"^gpu\[0\] cannot be reached: its proxy refuses connections"):
                    await fetcher.send(behind(f"http://localhost:{port}", 80, scheme), ASK)

    run(whole())


def test_a_certificate_for_another_host_is_refused_behind_a_proxy_too(
    run: Callable[[Any], None], authority: trustme.CA
) -> None:
    async def whole() -> None:
        async with (
            ScriptedUpstream([[Expect(), answer()]], server_tls(authority, "other.internal")) as upstream,
            ForwardProxy({"gpu.internal": "127.0.0.1"}) as proxy,
            fetching(authority) as fetcher,
        ):
            with pytest.raises(UpstreamError, match="cannot be trusted"):
                await fetcher.send(behind(f"http://localhost:{proxy.port}", upstream.port), ASK)
            assert upstream.requests == []

    run(whole())


def test_a_proxy_that_is_silent_is_left_at_the_connect_deadline(
    run: Callable[[Any], None], authority: trustme.CA
) -> None:
    async def whole() -> None:
        async with ScriptedUpstream([[Wait(asyncio.Event())]]) as silent, fetching(authority) as fetcher:
            backend = Backend(url="https://gpu.internal/v1", proxy=f"http://localhost:{silent.port}")
            target = next(targets_of("gpu", Pool(backends=(backend,), connect=0.05, max_connections=1)))
            for _ in range(2):  # the place is free again
                with pytest.raises(UpstreamError, match="could not be connected to") as late:
                    await fetcher.send(target, ASK)
                assert (late.value.status, late.value.sent) == (504, False)

    run(whole())


def test_direct_and_proxied_connections_are_not_mixed(run: Callable[[Any], None]) -> None:
    async def whole() -> None:
        async with (
            ScriptedUpstream([[Expect(), answer(b"1"), Expect(), answer(b"2")]]) as upstream,
            ForwardProxy() as proxy,
            fetching() as fetcher,
        ):
            for setting, seen in (("none", 0), (f"http://localhost:{proxy.port}", 1), ("none", 1)):
                target = behind(setting, upstream.port, "http", "localhost")
                await read(await fetcher.send(target, ASK))
                assert len(proxy.heads) == seen
            assert upstream.connections == 2

    run(whole())

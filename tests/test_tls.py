"""HTTPS on the port: the certificate that is shown and renewed, handshakes that never end, answers that break off."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives import serialization

from semcache import config
from semcache.errors import StartError
from semcache.listening.listener import Listener, Sender, whole_response
from semcache.listening.tls import Certificates
from tests.listening import CHUNKED, GET, HOST, JSON, Client, Serving, page, post, serving, until

pytestmark = pytest.mark.both_loops

AUTHORITY = trustme.CA()


class Pair:
    """A certificate and its key, in files."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.issue()

    def issue(self) -> None:
        self.write(AUTHORITY.issue_cert("127.0.0.1", "localhost"))

    def write(self, issued: trustme.LeafCert) -> None:
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    @property
    def settings(self) -> dict[str, str]:
        return {"certificate": str(self.certificate), "key": str(self.key)}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.fixture
def trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@pytest.fixture
async def server(pair: Pair, trust: ssl.SSLContext) -> AsyncIterator[Serving]:
    async with serving(trust=trust, tls=pair.settings, max_body=100_000) as server:
        yield server


def shown(client: Client) -> int:
    """The serial number of the certificate that this client was shown."""
    certificate: Any = client.writer.get_extra_info("peercert")
    return int(certificate["serialNumber"], 16)


async def test_requests_come_in_over_tls_on_a_connection_that_is_kept(server: Serving) -> None:
    client = await server.connect()
    for _ in range(3):
        assert (await client.ask()).body == b"GET /v1/models "
    body = bytes(range(256)) * 300
    assert (await client.ask(post(body, b"Content-Length: %d\r\n" % len(body)))).body == b"POST /v1/x " + body
    assert (await client.ask(b"GET /x HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")).status == 200
    assert await client.rest() == b""


async def test_a_client_from_elsewhere_is_content(server: Serving, trust: ssl.SSLContext) -> None:
    async with httpx.AsyncClient(verify=trust) as client:
        for host in ("127.0.0.1", "localhost"):
            with suppress(httpx.ConnectError):  # localhost may be ::1 alone
                reply = await client.post(f"https://{host}:{server.port}/v1/x", json={"a": 1})
                assert reply.text == 'POST /v1/x {"a":1}'
    assert server.listener.addresses == [f"https://127.0.0.1:{server.port}"]


async def test_http_1_1_is_what_is_agreed_on_whatever_else_is_offered(server: Serving, trust: ssl.SSLContext) -> None:
    trust.set_alpn_protocols(["h2", "http/1.1"])
    client = await server.connect()
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert (await client.ask()).status == 200


async def test_old_tls_is_not_spoken(server: Serving, trust: ssl.SSLContext) -> None:
    trust.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trust.minimum_version = trust.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await server.connect()


# Renewal


@pytest.mark.parametrize("by_link", [False, True], ids=["written over", "links renamed"])
async def test_a_renewed_certificate_is_shown_to_new_connections_and_the_open_go_on(
    pair: Pair, trust: ssl.SSLContext, tmp_path: Path, by_link: bool
) -> None:
    if by_link:  # as certbot lays them out
        for number in ("1", "2"):
            (tmp_path / number).mkdir()
            Pair(tmp_path / number)
        for path in (pair.certificate, pair.key):
            path.unlink()
            path.symlink_to(tmp_path / "1" / path.name)
    async with serving(trust=trust, tls=pair.settings) as server:
        old = await server.connect()
        assert (await old.ask()).status == 200
        if by_link:
            for path in (pair.certificate, pair.key):
                (tmp_path / "new").symlink_to(tmp_path / "2" / path.name)
                (tmp_path / "new").rename(path)
        else:
            pair.issue()
        server.pass_time(6)
        new = await server.connect()
        assert shown(new) != shown(old)
        assert (await new.ask()).status == 200
        assert (await old.ask()).status == 200


async def test_a_pair_that_does_not_fit_is_told_once_and_the_one_before_stays(
    pair: Pair, server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    before = shown(await server.connect())
    sound = pair.certificate.read_bytes()
    for damage in (AUTHORITY.issue_cert("127.0.0.1").cert_chain_pems[0].bytes(), b"", sound[:200]):
        pair.certificate.write_bytes(damage)
        caplog.clear()
        for _ in range(5):
            server.pass_time(6)
        assert len(caplog.records) == 1 and "the certificate in use is kept: server.tls" in caplog.text
        assert shown(await server.connect()) == before
    pair.certificate.unlink()
    server.pass_time(6)
    assert shown(await server.connect()) == before
    pair.issue()
    server.pass_time(6)
    assert shown(await server.connect()) != before


def encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


UNFIT = {
    "no certificate": ("certificate", None, r'^server\.tls\.certificate: ".*" cannot be read: No such file'),
    "no key": ("key", None, r'^server\.tls\.key: ".*" cannot be read: No such file'),
    "no pem": ("certificate", lambda _: b"hello", r'^server\.tls\.certificate: ".*" is not a PEM file$'),
    "empty": ("key", lambda _: b"", r'^server\.tls\.key: ".*" is not a PEM file$'),
    "half": ("key", lambda key: key[:100], r"^server\.tls: .* are no certificate and key: "),
    "other key": (
        "key",
        lambda _: AUTHORITY.issue_cert("a").private_key_pem.bytes(),
        r'^server\.tls: the key ".*" does not belong to the certificate ".*"',
    ),
    "encrypted": ("key", encrypted, r'^server\.tls\.key: ".*" is encrypted, .*openssl pkey'),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_files_that_are_no_pair_end_the_start_with_one_line(name: str, pair: Pair) -> None:
    field, damage, complaint = UNFIT[name]
    path = getattr(pair, field)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    listener = Listener(None, config.Server(tls=config.Tls(**pair.settings)), page)  # type: ignore[arg-type]
    with pytest.raises(StartError, match=complaint) as caught:
        await listener.start("127.0.0.1", 0)
    assert "\n" not in caught.value.message and "secret" not in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_key_that_may_not_be_read_ends_the_start(pair: Pair) -> None:
    pair.key.chmod(0)
    with pytest.raises(StartError, match=r'^server\.tls\.key: ".*" cannot be read: Permission denied$'):
        Certificates(config.Tls(**pair.settings))


# Handshakes


async def refused(server: Serving, reason: str, count: int) -> None:
    async with asyncio.timeout(10):
        while server.listener.stats().get(f"refused_{reason}", 0) < count:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("data", [GET, b"\0" * 100, b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-scan\r\n"])
async def test_what_is_no_handshake_is_ended_without_a_log_line(
    server: Serving, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for number in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            writer.write_eof()
            with suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
            writer.close()
            await refused(server, "handshake", number + 1)
        gc.collect()
        assert (await server.ask()).status == 200
    assert caplog.records == []


async def test_who_never_shakes_hands_is_cut_and_counts_as_a_connection(
    pair: Pair, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(trust=trust, tls=pair.settings, header_timeout=0.3, max_connections=1) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(70)]
        await refused(server, "connections", 5)  # beyond the cap and its surplus
        assert server.listener.stats()["connections"] == 0
        await refused(server, "handshake", 65)
        for reader, writer in silent:
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert (await server.ask()).status == 200
    assert caplog.records == []


async def test_a_drain_does_not_wait_for_handshakes(pair: Pair, trust: ssl.SSLContext) -> None:
    async with serving(trust=trust, tls=pair.settings, header_timeout=60) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        running = await server.connect()
        assert (await running.ask()).status == 200
        await server.listener.drain(5)
        assert await running.rest() == b""
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):
            await server.connect()


async def test_what_still_runs_at_the_drain_s_deadline_is_visibly_broken_off(pair: Pair, trust: ssl.SSLContext) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await sender.abort(b"data: shutting down\n\n")
            raise
        raise AssertionError

    async with serving(handler, trust, tls=pair.settings) as server:
        client = await server.connect()
        client.write(GET)
        await until(lambda: server.seen)
        draining = asyncio.create_task(server.listener.drain(0.01))
        received = await client.reader.read()
        assert received.endswith(b"data: shutting down\n\n\r\n")
        client.writer.close()
        await draining
        assert server.listener.stats()["connections"] == 0


async def test_an_idle_connection_is_closed_once_however_often_its_deadline_is_looked_at(
    pair: Pair, trust: ssl.SSLContext
) -> None:
    """A TLS transport that is closed a second time forgets its connection, and raises when it is asked anything."""
    async with serving(trust=trust, tls=pair.settings, keepalive=75) as server:
        client, other = await server.connect(), await server.connect()
        for asking in (client, other):
            assert (await asking.ask()).status == 200
        await until(lambda: all(c._task is None for c in server.listener._connections))
        for _ in range(5):
            server.pass_time(80)
        assert await client.rest() == b""
        assert await other.rest() == b""
        assert (await server.ask()).status == 200


# Answers


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_breaks_off_does_not_look_complete(
    pair: Pair, trust: ssl.SSLContext, version: bytes
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        await sender.send(b'data: {"half": ')
        return await sender.abort(b"data: sorry\n\n")

    async with serving(handler, trust, tls=pair.settings) as server:
        client = await server.connect()
        client.write(b"GET / HTTP/%b\r\n" % version + HOST + b"\r\n")
        if version == b"1.0":  # without the goodbye of TLS the end is no end
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await client.reader.read()
        else:
            received = await client.reader.read()
            assert received.endswith(b"data: sorry\n\n\r\n")


async def test_the_end_of_a_whole_answer_to_http_1_0_is_said_in_tls(pair: Pair, trust: ssl.SSLContext) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sender = Sender(request, 200, JSON)
        await sender.send(b"a" * 300_000)
        return await sender.end()

    async with serving(handler, trust, tls=pair.settings) as server:

        def fetch() -> bytes:
            """With a strict client: no goodbye is an error to it."""
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                with trust.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as wrapped:
                    wrapped.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    received = b""
                    while piece := wrapped.recv(65536):
                        received += piece
                    return received

        assert (await asyncio.to_thread(fetch)).endswith(b"\r\n\r\n" + b"a" * 300_000)


async def test_a_refusal_arrives_while_the_body_is_still_sent(server: Serving) -> None:
    client = await server.connect()
    client.write(post(fields=CHUNKED))
    chunk = b"%x\r\n%b\r\n" % (50_000, b"a" * 50_000)
    reading = asyncio.create_task(client.reply())
    for _ in range(60):
        client.write(chunk)
        await client.writer.drain()
    reply = await reading
    assert (reply.status, reply.headers["connection"]) == (413, "close")


async def test_a_refused_head_is_answered_and_a_client_that_stays_is_cut(server: Serving) -> None:
    client = await server.connect()
    assert (await client.ask(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n" + GET)).status == 400
    await until(lambda: all(c._task is None for c in server.listener._connections))
    server.pass_time(6)
    await until(lambda: server.listener.stats()["connections"] == 0)
    assert server.seen == []


async def test_a_reader_that_takes_nothing_holds_little_and_is_cut(pair: Pair, trust: ssl.SSLContext) -> None:
    sent = 0
    ended = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        try:
            sender = Sender(request, 200, JSON)
            while True:
                await sender.send(b"a" * 4096)
                sent += 4096
        finally:
            ended.set()

    async with serving(handler, trust, tls=pair.settings, send_timeout=60) as server:

        def stall() -> ssl.SSLSocket:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            wrapped = trust.wrap_socket(sock, server_hostname="127.0.0.1")
            wrapped.sendall(GET)
            return wrapped

        with await asyncio.to_thread(stall):
            await until(lambda: any(c._paused for c in server.listener._connections))
            assert sent < 256 * 1024
            server.pass_time(1)
            server.pass_time(61)
            await ended.wait()
            assert server.listener.stats()["refused_slow_reader"] == 1


async def test_a_client_that_leaves_cancels_its_handler(pair: Pair, trust: ssl.SSLContext) -> None:
    ended = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with serving(handler, trust, tls=pair.settings) as server:
        client = await server.connect()
        client.write(GET)
        await until(lambda: server.seen)
        client.writer.close()
        await ended.wait()


async def test_an_error_in_the_middle_breaks_off_and_an_answer_in_one_piece_is_whole(
    pair: Pair, trust: ssl.SSLContext
) -> None:
    body = bytes(range(256)) * 8000

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/whole":
            return whole_response(request, 200, JSON, body)
        await Sender(request, 200, JSON).send(b"half")
        raise ValueError

    async with serving(handler, trust, tls=pair.settings) as server:
        assert (await server.ask(b"GET /whole HTTP/1.1\r\n" + HOST + b"\r\n")).body == body
        with pytest.raises(h11.RemoteProtocolError):
            await server.ask()

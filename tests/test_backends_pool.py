"""Which connections are kept, for how long, and where new ones go."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from multidict import CIMultiDict

from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.pool import Address
from semcache.backends.target import Target, targets_of
from semcache.config import Backend, Pool
from semcache.errors import UpstreamError
from tests.fakes import Clock
from tests.scripted_upstream import Expect, ScriptedUpstream, Send, Wait, WaitForClose, answer

AGE_S = 300.0
ASK = UpstreamRequest("POST", "/v1/chat/completions", CIMultiDict(), b"{}")


class Names:
    """A resolver whose answer is changed by hand."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        assert host == "gpu.internal"
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@asynccontextmanager
async def fetching(**settings: Any) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(environ={}, **settings)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def at(port: int, **pool: Any) -> Target:
    backend = Backend(url=f"http://gpu.internal:{port}/v1")
    return next(targets_of("gpu", Pool(backends=(backend,), **({"connection_age": AGE_S} | pool))))


async def ask(fetcher: Fetcher, target: Target) -> bytes:
    return b"".join([piece async for piece in (await fetcher.send(target, ASK)).chunks()])


@asynccontextmanager
async def one_port(*addresses: str) -> AsyncIterator[tuple[int, dict[str, int]]]:
    """Servers at several addresses of this machine with one port; each answers with its address."""
    connections = dict.fromkeys(addresses, 0)
    serving: set[asyncio.Task[None] | None] = set()

    def serve(address: str) -> Any:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections[address] += 1
            serving.add(asyncio.current_task())
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n{}")
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(address) + address.encode())
            except (asyncio.IncompleteReadError, OSError):
                writer.close()

        return accept

    servers = [await asyncio.start_server(serve(addresses[0]), addresses[0], 0)]
    port = servers[0].sockets[0].getsockname()[1]
    servers += [await asyncio.start_server(serve(address), address, port) for address in addresses[1:]]
    try:
        yield port, connections
    finally:
        for server in servers:
            server.close()
        await asyncio.gather(*filter(None, serving))  # the fetcher has closed its ends


async def test_a_name_that_moves_is_followed_when_the_connection_has_its_age() -> None:
    names, clock = Names("127.0.0.1"), Clock()
    async with (
        one_port("127.0.0.1", "127.0.0.2") as (port, connections),
        fetching(resolve=names, now=clock, chance=lambda: 1.0) as fetcher,
    ):
        assert await ask(fetcher, at(port)) == b"127.0.0.1"
        names.addresses = ("127.0.0.2",)
        clock.advance(AGE_S - 1)
        assert await ask(fetcher, at(port)) == b"127.0.0.1"
        assert names.asked == 1
        clock.advance(1)
        assert await ask(fetcher, at(port)) == b"127.0.0.2"
        assert (names.asked, connections) == (2, {"127.0.0.1": 1, "127.0.0.2": 1})


async def test_connections_opened_together_are_not_given_up_together() -> None:
    clock, chances = Clock(), iter((0.0, 1.0))
    async with (
        one_port("127.0.0.1") as (port, connections),
        fetching(resolve=Names("127.0.0.1"), now=clock, chance=lambda: next(chances, 1.0)) as fetcher,
    ):
        await asyncio.gather(*(ask(fetcher, at(port)) for _ in range(2)))
        clock.advance(AGE_S * 0.9)  # one of the two is past its age, which is at least 0.8 of the setting
        await asyncio.gather(*(ask(fetcher, at(port)) for _ in range(2)))
        assert connections["127.0.0.1"] == 3


async def test_an_answer_outlives_the_age_of_its_connection() -> None:
    clock, gate = Clock(), asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
    script = [Expect(), Send(head + b"half"), Wait(gate), Send(b"half")]
    async with (
        ScriptedUpstream([script, [Expect(), answer(b"anew")]]) as upstream,
        fetching(resolve=Names("127.0.0.1"), now=clock) as fetcher,
    ):
        reply = await fetcher.send(at(upstream.port), ASK)
        await reply.first()
        clock.advance(10 * AGE_S)
        gate.set()
        assert b"".join([piece async for piece in reply.chunks()]) == b"halfhalf"
        assert await ask(fetcher, at(upstream.port)) == b"anew"
        assert upstream.connections == 2


async def test_no_age_means_no_connection_is_used_twice() -> None:
    async with one_port("127.0.0.1") as (port, connections), fetching(resolve=Names("127.0.0.1")) as fetcher:
        for _ in range(3):
            await ask(fetcher, at(port, connection_age=0, max_connections=1))
        assert connections["127.0.0.1"] == 3


async def test_the_addresses_of_a_name_take_turns() -> None:
    names = Names("127.0.0.1", "127.0.0.2", "127.0.0.3")
    async with one_port(*names.addresses) as (port, connections), fetching(resolve=names) as fetcher:
        for _ in range(6):
            await ask(fetcher, at(port, connection_age=0))
        assert set(connections.values()) == {2}


async def test_an_address_where_nobody_answers_is_passed_over() -> None:
    names = Names("127.0.0.9", "127.0.0.1")
    async with one_port("127.0.0.1") as (port, connections), fetching(resolve=names) as fetcher:
        for _ in range(4):
            assert await ask(fetcher, at(port, connection_age=0)) == b"127.0.0.1"
        assert connections["127.0.0.1"] == 4


async def test_a_reload_keeps_connections_whose_settings_stay_and_cuts_no_request() -> None:
    gate = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
    script = [Expect(), Send(head + b"half"), Wait(gate), Send(b"half"), WaitForClose()]
    async with (
        ScriptedUpstream([script, [Expect(), answer(b"more")] * 9]) as upstream,
        one_port("127.0.0.1") as (port, connections),
        fetching(resolve=Names("127.0.0.1")) as fetcher,
    ):

        def pools(age: float) -> dict[str, Pool]:
            changed = Backend(url=f"http://gpu.internal:{upstream.port}/v1")
            same = Backend(url=f"http://gpu.internal:{port}/v1")
            return {
                "changed": Pool(backends=(changed,), connection_age=age),
                "same": Pool(backends=(same,)),
            }

        def target(name: str, age: float) -> Target:
            return next(targets_of(name, pools(age)[name]))

        running = await fetcher.send(target("changed", 60), ASK)
        await ask(fetcher, target("same", 60))
        fetcher.adopt(pools(age=90))
        await ask(fetcher, target("same", 90))
        assert connections["127.0.0.1"] == 1
        assert await ask(fetcher, target("changed", 90)) == b"more"
        gate.set()
        assert b"".join([piece async for piece in running.chunks()]) == b"halfhalf"
        await upstream.closed.wait()  # it is not kept
        assert await ask(fetcher, target("changed", 90)) == b"more"
        assert upstream.connections == 2
        fetcher.adopt({})
        assert fetcher.stats()["connections"] == {}


async def test_closing_cuts_also_what_a_reload_left_running() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"
    async with ScriptedUpstream([[Expect(), Send(head + b"half"), WaitForClose()]]) as upstream:
        async with fetching(resolve=Names("127.0.0.1")) as fetcher:
            running = await fetcher.send(at(upstream.port), ASK)
            fetcher.adopt({})
        await upstream.closed.wait()
        with pytest.raises(UpstreamError):
            [piece async for piece in running.chunks()]


TRUSTS = """
import asyncio, sys
from multidict import CIMultiDict
from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.target import targets_of
from semcache.config import Backend, Pool
from semcache.errors import UpstreamError

async def main():
    fetcher = Fetcher()
    await fetcher.start()
    target = next(targets_of("gpu", Pool(backends=(Backend(url=sys.argv[1]),))))
    try:
        reply = await fetcher.send(target, UpstreamRequest("GET", "/v1/models", CIMultiDict()))
        print(reply.status)
    except UpstreamError as exc:
        print(exc.message)
    await fetcher.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", None])
async def test_an_authority_of_ones_own_is_named_in_the_environment(tmp_path: Path, variable: str | None) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    async with ScriptedUpstream([[Expect(), answer()]], tls) as upstream:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT")}
        if variable:
            environ[variable] = str(tmp_path / "ca.pem")
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", TRUSTS, f"https://localhost:{upstream.port}/v1", env=environ, stdout=subprocess.PIPE
        )
        said, _ = await program.communicate()
    assert said.decode().strip() == ("200" if variable else "gpu[0] has a certificate that cannot be trusted")

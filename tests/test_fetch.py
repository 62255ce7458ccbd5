"""Fetching over real sockets from upstreams that are scripts: uvloop is what serves, asyncio is the measure."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest
import trustme
import uvloop
from multidict import CIMultiDict

from semcache.backends.fetch import Fetcher, Reply, UpstreamRequest
from semcache.backends.target import Target, targets_of
from semcache.config import Backend, Pool
from semcache.errors import ClientError, UpstreamError
from tests.scripted_upstream import (
    Close,
    Expect,
    ExpectHead,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    Wait,
    WaitForClose,
    answer,
    chunked,
)

SHORT_S = 0.05  # a deadline that is meant to pass


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run it on each event loop, with a `fetcher` that is started and closed there."""

    @functools.wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        async def whole() -> None:
            fetcher = fixtures.get("fetcher", Fetcher())
            await fetcher.start()
            await test(**fixtures)
            await fetcher.close()

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(whole())

    asked = inspect.signature(test)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = asked.replace(parameters=[new_loop, *asked.parameters.values()])  # type: ignore[attr-defined]
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    return cast(Callable[..., None], loops(run))


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher()


def at(port: int, *, scheme: str = "http", host: str = "127.0.0.1", api_key: str = "", pool: str = "gpu") -> Target:
    backend = Backend(url=f"{scheme}://{host}:{port}/v1", api_key=api_key)  # type: ignore[arg-type]
    return next(targets_of(pool, Pool(backends=(backend,))))


def ask(body: bytes | AsyncIterator[bytes] = b"{}", method: str = "POST", **headers: str) -> UpstreamRequest:
    return UpstreamRequest(method, "/v1/chat/completions", CIMultiDict(headers), body)


async def read(reply: Reply) -> bytes:
    return b"".join([piece async for piece in reply.chunks()])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def several(*steps: Step, times: int = 5) -> list[list[Step]]:
    return [list(steps) * times]


# What is sent and what comes back.


@on_both_loops
async def test_a_request_arrives_as_it_was_sent_and_the_answer_as_it_was_given(fetcher: Fetcher) -> None:
    async with ScriptedUpstream(
        [[Expect(), answer(b'{"ok":1}', "X-B: 1", "X-B: 2", "Keep-Alive: timeout=5")]]
    ) as upstream:
        request = UpstreamRequest(
            "POST",
            "/chat/completions?api-version=2024%2D06&q=%41+b",
            CIMultiDict(
                {"Authorization": "Bearer caller", "Host": "proxy", "X-Note": "grüße", "Cache-Control": "no-cache"}
            ),
            b'{"a": 1}',
        )
        reply = await fetcher.fetch([at(upstream.port)], request)
        assert (reply.status, await read(reply), reply.whole, reply.backend) == (200, b'{"ok":1}', True, "gpu[0]")
        assert list(reply.headers.items()) == [("X-B", "1"), ("X-B", "2"), ("Content-Length", "8")]
        [received] = upstream.requests
        assert received.line == "POST /v1/chat/completions?api-version=2024%2D06&q=%41+b HTTP/1.1"
        assert received.headers == [
            ("host", f"127.0.0.1:{upstream.port}"),
            ("authorization", "Bearer caller"),
            ("x-note", "grüße"),
            ("via", "1.1 semcache"),
            ("content-length", "8"),
        ]
        assert received.body == b'{"a": 1}'


@on_both_loops
async def test_whole_answers_leave_their_connection_to_the_next_request(fetcher: Fetcher) -> None:
    script = [
        Expect(),
        answer(b"one"),
        Expect(),
        chunked(b"t", b"wo"),
        Expect(),
        Send(b"HTTP/1.1 204 No Content\r\n\r\n"),
    ]
    async with ScriptedUpstream([script]) as upstream:
        got = []
        for _ in range(3):
            reply = await fetcher.fetch([at(upstream.port)], ask())
            got.append((reply.status, await read(reply), reply.whole))
        assert got == [(200, b"one", True), (200, b"two", True), (204, b"", True)]
        assert (upstream.connections, len(upstream.requests)) == (1, 3)


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many Requests", "500 Oops", "529 Overloaded"])
@on_both_loops
async def test_errors_of_the_upstream_are_answers(fetcher: Fetcher, status: str) -> None:
    async with ScriptedUpstream([[Expect(), answer(b'{"error":\n{}}', "retry-after: 3", status=status)]]) as upstream:
        reply = await fetcher.fetch([at(upstream.port), at(free_port())], ask())
        assert (reply.status, await read(reply), reply.headers["retry-after"]) == (
            int(status[:3]),
            b'{"error":\n{}}',
            "3",
        )


@on_both_loops
async def test_a_redirect_is_relayed_and_nobody_follows_it(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[Expect(), answer(b"never asked")]]) as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere.port}/v1/chat/completions"
        async with ScriptedUpstream([[Expect(), answer(b"", location, status="307 Go")]]) as upstream:
            reply = await fetcher.fetch([at(upstream.port, api_key="secret")], ask())
            assert reply.status == 307
            assert elsewhere.connections == 0


@pytest.mark.parametrize(
    "method, raw",
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (
            "POST",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        ),
    ],
)
@on_both_loops
async def test_answers_without_a_body_are_whole(fetcher: Fetcher, method: str, raw: bytes) -> None:
    async with ScriptedUpstream([[Expect(), Send(raw)]]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask(b"", method))
        assert (await read(reply), reply.whole, "Link" in reply.headers) == (b"", True, False)


@on_both_loops
async def test_a_large_answer_passes_a_slow_reader_unharmed(fetcher: Fetcher) -> None:
    body = bytes(range(256)) * 20_000
    async with ScriptedUpstream([[Expect(), answer(body)]]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask())
        digest, sizes = hashlib.sha256(), []
        async for piece in reply.chunks():
            digest.update(piece)
            sizes.append(len(piece))
            await asyncio.sleep(0)
        assert digest.digest() == hashlib.sha256(body).digest()
        assert max(sizes) <= 128 * 1024


# Framing: what is incomplete or doubtful.


@on_both_loops
async def test_an_answer_delimited_by_the_close_is_given_but_proves_nothing(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[Expect(), Send(b"HTTP/1.1 200 OK\r\n\r\n{half"), Close()]]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask())
        assert (await read(reply), reply.whole) == (b"{half", False)


@pytest.mark.parametrize("end", [Close(), Reset()])
@pytest.mark.parametrize(
    "whole", [answer(b"0123456789").raw, chunked(b"01234", b"56789").raw], ids=["length", "chunked"]
)
@on_both_loops
async def test_a_cut_after_any_byte_is_an_error(fetcher: Fetcher, whole: bytes, end: Step) -> None:
    got = asyncio.Event()
    for position in range(len(whole)):
        gate = [Wait(got)] if isinstance(end, Reset) and position else []  # a reset overtakes what is still unread
        async with ScriptedUpstream([[Expect(), Send(whole[:position]), *gate, end]]) as upstream:
            received = b""
            got.clear()
            asyncio.get_running_loop().call_soon(got.set)
            with pytest.raises(UpstreamError) as cut:
                reply = await fetcher.fetch([at(upstream.port)], ask())
                async for piece in reply.chunks():
                    received += piece
            assert (cut.value.status, cut.value.sent) == (502, True)
            assert b"0123456789".startswith(received)
            assert len(upstream.requests) == 1


@on_both_loops
async def test_a_reset_of_an_answer_without_framing_is_an_error_too(fetcher: Fetcher) -> None:
    seen = asyncio.Event()
    script = [Expect(), Send(b"HTTP/1.1 200 OK\r\n\r\n{half"), Wait(seen), Reset()]
    async with ScriptedUpstream([script]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask())
        pieces = reply.chunks()
        assert await anext(pieces) == b"{half"
        seen.set()
        with pytest.raises(UpstreamError, match="reset"):
            await anext(pieces)
        assert not reply.whole


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: folded\r\n line\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX : spaced\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: nul\0\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nok",
        b"hello there\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
)
@on_both_loops
async def test_doubtful_framing_is_refused_and_its_connection_dropped(fetcher: Fetcher, raw: bytes) -> None:
    async with ScriptedUpstream([[Expect(), Send(raw), WaitForClose()], [Expect(), answer(b"fine")]]) as upstream:
        with pytest.raises(UpstreamError, match=r"gpu\[0\]") as refused:
            await fetcher.fetch([at(upstream.port)], ask())
        assert (refused.value.status, refused.value.sent) == (502, True)
        await upstream.closed.wait()
        assert await read(await fetcher.fetch([at(upstream.port)], ask())) == b"fine"
        assert upstream.connections == 2


@pytest.mark.parametrize("size", [b"zz", b"0x2", b"-2", b"2 \n"])
@on_both_loops
async def test_a_bad_chunk_size_in_mid_answer_is_an_error(fetcher: Fetcher, size: bytes) -> None:
    async with ScriptedUpstream(
        [[Expect(), chunked(b"good", end=False), Send(size + b"\r\nok\r\n0\r\n\r\n")]]
    ) as upstream:
        received = b""
        with pytest.raises(UpstreamError, match="valid"):
            async for piece in (await fetcher.fetch([at(upstream.port)], ask())).chunks():
                received += piece
        assert received in (b"", b"good")


@on_both_loops
async def test_more_bytes_than_the_answer_has_harm_nobody(fetcher: Fetcher) -> None:
    evil = Send(answer(b"first").raw + answer(b"evil").raw)
    async with ScriptedUpstream([[Expect(), evil, WaitForClose()], [Expect(), answer(b"second")]]) as upstream:
        for expected in (b"first", b"second"):
            reply = await fetcher.fetch([at(upstream.port)], ask())
            assert (await read(reply), reply.whole) == (expected, True)
        assert upstream.connections == 2


@on_both_loops
async def test_an_answer_that_announces_its_close_is_not_followed_on_the_same_connection(fetcher: Fetcher) -> None:
    async with ScriptedUpstream(
        [[Expect(), answer(b"one", "Connection: close")], [Expect(), answer(b"two")]]
    ) as upstream:
        for expected in (b"one", b"two"):
            assert await read(await fetcher.fetch([at(upstream.port)], ask())) == expected


# Deadlines.


@pytest.mark.parametrize(
    "steps, deadline",
    [
        ([], "first_byte_s"),
        ([Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")], "first_byte_s"),
        ([Send(b"HTTP/1.1 100 Continue\r\n\r\n")], "first_byte_s"),
        ([chunked(b"one", end=False)], "between_bytes_s"),
    ],
    ids=["silence", "head, then silence", "interim, then silence", "one piece, then silence"],
)
@on_both_loops
async def test_silence_is_cut_at_its_deadline(fetcher: Fetcher, steps: list[Step], deadline: str) -> None:
    async with ScriptedUpstream([[Expect(), *steps, WaitForClose()]]) as upstream:
        target = replace(at(upstream.port), **{deadline: SHORT_S})
        with pytest.raises(UpstreamError, match=r"gpu\[0\].* 0\.05 s") as late:
            await read(await fetcher.fetch([target], ask()))
        assert (late.value.status, late.value.sent, late.value.code) == (504, True, "upstream_timeout")
        await upstream.closed.wait()


@on_both_loops
async def test_a_handshake_that_does_not_come_is_cut_at_the_connect_deadline(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[WaitForClose()]]) as upstream:
        target = replace(at(upstream.port, scheme="https"), connect_s=SHORT_S)
        with pytest.raises(UpstreamError) as late:
            await fetcher.fetch([target], ask())
        assert (late.value.status, late.value.sent) == (504, False)
        await upstream.closed.wait()


# Leaving.


@on_both_loops
async def test_abort_reaches_the_upstream_at_once(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[Expect(), chunked(b"token", end=False), WaitForClose()]]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask())
        pieces = reply.chunks()
        assert await anext(pieces) == b"token"
        await reply.abort()
        await upstream.closed.wait()
        await reply.abort()
        with pytest.raises(UpstreamError):
            await anext(pieces)


@on_both_loops
async def test_leaving_the_loop_over_the_pieces_closes_too(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[Expect(), chunked(b"token", end=False), WaitForClose()]]) as upstream:
        pieces = (await fetcher.fetch([at(upstream.port)], ask())).chunks()
        assert await anext(pieces) == b"token"
        await pieces.aclose()  # type: ignore[attr-defined]
        await upstream.closed.wait()


@pytest.mark.parametrize("steps", [[], [chunked(b"token", end=False)]], ids=["before the head", "in mid-answer"])
@on_both_loops
async def test_cancelling_closes_and_frees_the_place(fetcher: Fetcher, steps: list[Step]) -> None:
    waits = asyncio.Event()

    async def fetch_and_read(target: Target) -> None:
        reply = await fetcher.fetch([target], ask())
        async for _ in reply.chunks():
            waits.set()

    async with ScriptedUpstream([[Expect(), *steps, WaitForClose()], [Expect(), answer(b"next")]]) as upstream:
        target = replace(at(upstream.port), max_connections=1)
        task = asyncio.create_task(fetch_and_read(target))
        if steps:
            await waits.wait()
        else:
            while not upstream.requests:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.closed.wait()
        assert await read(await fetcher.fetch([target], ask())) == b"next"


@on_both_loops
async def test_cancelling_while_connecting_frees_the_place(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[WaitForClose()]]) as upstream:
        target = replace(at(upstream.port, scheme="https"), max_connections=1)
        task = asyncio.create_task(fetcher.fetch([target], ask()))
        while not upstream.connections:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.closed.wait()
        with pytest.raises(UpstreamError, match="could not be connected to"):  # and not: no free connection
            await fetcher.fetch([replace(target, connect_s=SHORT_S)], ask())


@on_both_loops
async def test_closing_the_fetcher_ends_what_is_running() -> None:
    fetcher = Fetcher()
    await fetcher.start()
    async with ScriptedUpstream([[Expect(), chunked(b"token", end=False), WaitForClose()]]) as upstream:
        pieces = (await fetcher.fetch([at(upstream.port)], ask())).chunks()
        await anext(pieces)
        await fetcher.close()
        await upstream.closed.wait()
        with pytest.raises(UpstreamError):
            await anext(pieces)


# Waiting for the first byte.


@on_both_loops
async def test_the_first_byte_is_waited_for_and_not_taken(fetcher: Fetcher) -> None:
    begins = asyncio.Event()
    head = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    async with ScriptedUpstream([[Expect(), head, Wait(begins), Send(b"body")]]) as upstream:
        reply = await fetcher.send(at(upstream.port), ask())
        first = asyncio.create_task(reply.first())
        done, _ = await asyncio.wait([first], timeout=SHORT_S)
        assert not done
        begins.set()
        await first
        await reply.first()  # it has come: nothing to wait for
        assert await read(reply) == b"body"
        await reply.first()


@pytest.mark.parametrize("raw", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
@on_both_loops
async def test_an_empty_answer_has_begun_when_it_has_ended(fetcher: Fetcher, raw: bytes) -> None:
    async with ScriptedUpstream([[Expect(), Send(raw)]]) as upstream:
        reply = await fetcher.send(at(upstream.port), ask())
        await reply.first()
        assert await read(reply) == b""
        assert reply.whole


@pytest.mark.parametrize("body, breaks_at_once", [(b"", True), (b"half", False)])
@on_both_loops
async def test_an_answer_that_breaks_off_says_so_before_its_first_byte_or_after_its_last(
    fetcher: Fetcher, body: bytes, breaks_at_once: bool
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    async with ScriptedUpstream([[Expect(), Send(head + body), Reset()]]) as upstream:
        reply = await fetcher.send(at(upstream.port), ask())
        if breaks_at_once:
            with pytest.raises(UpstreamError):
                await reply.first()
        else:
            await reply.first()
        got = []
        with pytest.raises(UpstreamError) as broken:
            async for piece in reply.chunks():
                got.append(piece)
        assert (b"".join(got), broken.value.sent) == (body, True)


@on_both_loops
async def test_giving_up_the_first_byte_closes_the_connection(fetcher: Fetcher) -> None:
    head = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    async with ScriptedUpstream([[Expect(), head, WaitForClose()]]) as upstream:
        reply = await fetcher.send(at(upstream.port), ask())
        first = asyncio.create_task(reply.first())
        await asyncio.wait([first], timeout=SHORT_S)
        first.cancel()
        await upstream.closed.wait()


@on_both_loops
async def test_one_attempt_goes_to_one_backend(fetcher: Fetcher) -> None:
    with pytest.raises(UpstreamError, match="refuses connections") as refused:
        await fetcher.send(at(free_port()), ask())
    assert not refused.value.sent


# Failing over, and not sending twice.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


@on_both_loops
async def test_an_answer_comes_over_tls(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    fetcher = Fetcher(trusting)
    await fetcher.start()
    script = [Expect(), chunked(b"safe"), Expect(), chunked(b"token", end=False), WaitForClose()]
    async with ScriptedUpstream([script], server_tls(authority, "localhost")) as upstream:
        target = at(upstream.port, scheme="https", host="localhost")
        assert await read(await fetcher.fetch([target], ask())) == b"safe"
        reply = await fetcher.fetch([target], ask())
        await reply.abort()
        await upstream.closed.wait()
        assert upstream.connections == 1
    await fetcher.close()


@pytest.mark.parametrize(
    "trouble, complaint",
    [
        ("refused", "refuses connections"),
        ("no such name", "cannot be resolved"),
        ("no possible name", "cannot be resolved"),
        ("unknown authority", "cannot be trusted"),
        ("certificate for another host", "cannot be trusted"),
        ("no TLS there", "TLS handshake"),
    ],
)
@on_both_loops
async def test_the_next_backend_is_tried_while_nothing_has_left(
    trouble: str, complaint: str, authority: trustme.CA
) -> None:
    trusting = ssl.create_default_context()
    if trouble != "unknown authority":
        authority.configure_trust(trusting)
    fetcher = Fetcher(trusting)
    await fetcher.start()
    named = "elsewhere.example" if trouble == "certificate for another host" else "127.0.0.1"
    async with (
        ScriptedUpstream([[Expect(), answer(b"from the second")]]) as second,
        ScriptedUpstream([[WaitForClose()]], server_tls(authority, named)) as secure,
        ScriptedUpstream([[Send(b"no TLS"), WaitForClose()]]) as plain,
    ):
        first = {
            "refused": at(free_port()),
            "no such name": at(1, host="nobody.invalid"),
            "no possible name": at(1, host="a" * 64 + ".example"),
            "no TLS there": at(plain.port, scheme="https"),
        }.get(trouble) or at(secure.port, scheme="https")
        reply = await fetcher.fetch([first, at(second.port, pool="spare")], ask())
        assert (await read(reply), reply.backend) == (b"from the second", "spare[0]")
        assert fetcher.stats()["failovers"] == 1
        with pytest.raises(UpstreamError, match=complaint) as alone:
            await fetcher.fetch([first], ask())
        assert (alone.value.status, alone.value.sent) == (502, False)
        assert not secure.requests
        assert not plain.requests
    await fetcher.close()


@on_both_loops
async def test_each_backend_gets_its_own_key_and_path_on_failover(fetcher: Fetcher) -> None:
    async with ScriptedUpstream([[Expect(), answer()]]) as upstream:
        first, second = at(free_port(), api_key="first-key"), at(upstream.port, api_key="second-key")
        await read(await fetcher.fetch([first, second], ask(Authorization="Bearer caller")))
        assert upstream.requests[0].all("authorization") == ["Bearer second-key"]


@pytest.mark.parametrize("end", [Close(), Reset()])
@on_both_loops
async def test_a_post_that_may_have_arrived_is_not_sent_again(fetcher: Fetcher, end: Step) -> None:
    async with (
        ScriptedUpstream([[Expect(), answer(b"one"), Expect(), end], [Expect(), answer(b"again")]]) as upstream,
        ScriptedUpstream([[Expect(), answer(b"elsewhere")]]) as spare,
    ):
        targets = [at(upstream.port), at(spare.port, pool="spare")]
        await read(await fetcher.fetch(targets, ask()))
        with pytest.raises(UpstreamError) as dead:
            await fetcher.fetch(targets, ask(b"once"))
        assert (dead.value.status, dead.value.sent) == (502, True)
        assert [request.body for request in upstream.requests] == [b"{}", b"once"]
        assert spare.connections == 0


@on_both_loops
async def test_a_get_is_sent_again_when_its_kept_connection_was_dead(fetcher: Fetcher) -> None:
    async with ScriptedUpstream(
        [[Expect(), answer(b"one"), Expect(), Close()], [Expect(), answer(b"again")]]
    ) as upstream:
        for expected in (b"one", b"again"):
            assert await read(await fetcher.fetch([at(upstream.port)], ask(b"", "GET"))) == expected
        assert (upstream.connections, len(upstream.requests)) == (2, 3)


@on_both_loops
async def test_a_get_moves_on_when_a_backend_dies_over_it(fetcher: Fetcher) -> None:
    async with (
        ScriptedUpstream([[Expect(), Close()]]) as dying,
        ScriptedUpstream([[Expect(), answer(b"alive")]]) as alive,
    ):
        reply = await fetcher.fetch([at(dying.port), at(alive.port)], ask(b"", "GET"))
        assert await read(reply) == b"alive"
        assert len(dying.requests) == 1


@on_both_loops
async def test_at_most_so_many_requests_are_under_way_to_a_backend(fetcher: Fetcher) -> None:
    release = asyncio.Event()
    async with ScriptedUpstream([[Expect(), Wait(release), answer(b"one"), Expect(), answer(b"two")]]) as upstream:
        target = replace(at(upstream.port), max_connections=1)
        first = asyncio.create_task(fetcher.fetch([target], ask(b"1")))
        await asyncio.sleep(0)
        with pytest.raises(UpstreamError, match="no free connection") as full:
            await fetcher.fetch([replace(target, connect_s=SHORT_S)], ask(b"too many"))
        assert (full.value.status, full.value.sent) == (504, False)
        second = asyncio.create_task(fetcher.fetch([target], ask(b"2")))
        release.set()
        assert [await read(await first), await read(await second)] == [b"one", b"two"]
        assert (upstream.connections, [request.body for request in upstream.requests]) == (1, [b"1", b"2"])


@pytest.mark.parametrize(
    "path, headers",
    [
        ("/v1/x", {"X": "a\r\nAuthorization: b"}),
        ("/v1/x", {"X": "a\nb"}),
        ("/v1/x", {"X": "a\rb"}),
        ("/v1/x y HTTP/1.1", {}),
        ("/v1/x?q=\r\nX: y", {}),
        ("/v1/../x", {}),
        ("/v1/x", {"Connection": "authorization"}),
        ("/v1/x", {"Via": "1.1 semcache"}),
    ],
)
@on_both_loops
async def test_a_request_that_must_not_go_out_opens_no_connection(
    fetcher: Fetcher, path: str, headers: dict[str, str]
) -> None:
    async with ScriptedUpstream([[Expect(), answer()]]) as upstream:
        with pytest.raises(ClientError):
            await fetcher.fetch([at(upstream.port)], UpstreamRequest("POST", path, headers))
        assert upstream.connections == 0


# Bodies that are still arriving.


@on_both_loops
async def test_a_streamed_body_arrives_whole(fetcher: Fetcher) -> None:
    async def upload() -> AsyncIterator[bytes]:
        for number in range(50):
            yield bytes([number]) * 10_000
            yield b""

    async with ScriptedUpstream(several(Expect(), answer(b"thanks"))) as upstream:
        for _ in range(2):
            assert await read(await fetcher.fetch([at(upstream.port)], ask(upload()))) == b"thanks"
        assert upstream.connections == 1
        assert [len(request.body) for request in upstream.requests] == [500_000, 500_000]
        assert upstream.requests[0].all("transfer-encoding") == ["chunked"]
        assert not upstream.requests[0].all("content-length")


@on_both_loops
async def test_a_body_that_breaks_off_is_not_ended_politely(fetcher: Fetcher) -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client has gone")

    async with ScriptedUpstream([[ExpectHead(), WaitForClose()]]) as upstream:
        with pytest.raises(ConnectionResetError, match="client has gone"):
            await fetcher.fetch([at(upstream.port)], ask(upload()))
        await upstream.closed.wait()


@on_both_loops
async def test_an_early_answer_is_given_and_the_rest_of_the_request_withheld(fetcher: Fetcher) -> None:
    stopped = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    script = [ExpectHead(), answer(b"too much", status="413 Content Too Large"), WaitForClose()]
    async with ScriptedUpstream([script]) as upstream:
        reply = await fetcher.fetch([at(upstream.port)], ask(upload()))
        assert (reply.status, await read(reply)) == (413, b"too much")
        await upstream.closed.wait()
        await stopped.wait()


@on_both_loops
async def test_an_upstream_that_stops_taking_the_body_is_cut_at_the_first_byte_deadline(fetcher: Fetcher) -> None:
    async def upload() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with ScriptedUpstream([[ExpectHead(), Wait(asyncio.Event())]]) as upstream:
        with pytest.raises(UpstreamError) as late:
            await fetcher.fetch([replace(at(upstream.port), first_byte_s=SHORT_S)], ask(upload()))
        assert (late.value.status, late.value.sent) == (504, True)

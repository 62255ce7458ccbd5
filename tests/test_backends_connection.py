"""The connection without a network: bytes in, calls out, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from semcache.backends.connection import HELD_BYTES, MAX_OVERHEAD_BYTES, READ_BYTES, Connection, Exchange
from semcache.errors import UpstreamError

FIRST_BYTE_S, BETWEEN_S, KEEPALIVE_S = 120.0, 60.0, 4.0


class HandMovedLoop:
    """The part of an event loop that a connection uses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers_made = 0
        self._timers: list[HandMovedLoop.Timer] = []

    class Timer:
        def __init__(self, due: float, call: Callable[[], None], timers: list[HandMovedLoop.Timer]) -> None:
            self.due, self.call, self._timers = due, call, timers
            timers.append(self)

        def cancel(self) -> None:
            if self in self._timers:
                self._timers.remove(self)

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, due: float, call: Callable[[], None]) -> Timer:
        self.timers_made += 1
        return self.Timer(due, call, self._timers)

    def advance(self, by_s: float) -> None:
        until = self.now + by_s
        while due := sorted((t for t in self._timers if t.due <= until), key=lambda t: t.due):
            self._timers.remove(due[0])
            self.now = max(self.now, due[0].due)
            due[0].call()
        self.now = until


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading, self.closing = True, False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0


class Lender:
    """A pool that counts."""

    def __init__(self) -> None:
        self.returns = 0

    def returned(self, connection: Connection) -> None:
        self.returns += 1
        if connection.is_usable():
            connection.rest(KEEPALIVE_S)

    def closed(self, connection: Connection) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.loop, self.wire, self.lender = HandMovedLoop(), Wire(), Lender()
        buffer = memoryview(bytearray(READ_BYTES))
        self.connection = Connection(cast(asyncio.AbstractEventLoop, self.loop), buffer, self.lender)
        self.connection.connection_made(self.wire)

    def ask(self, method: str = "POST") -> Exchange:
        exchange = Exchange(self.connection, "gpu[0]", FIRST_BYTE_S, BETWEEN_S)
        self.connection.begin(exchange, method, b"POST / HTTP/1.1\r\n\r\n", b"")
        return exchange

    def hear(self, raw: bytes) -> None:
        for start in range(0, len(raw), READ_BYTES):
            piece = raw[start : start + READ_BYTES]
            self.connection.get_buffer(-1)[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))


@pytest.fixture
def bench() -> Bench:
    return Bench()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


async def waiting(coroutine: Any) -> asyncio.Task[Any]:
    """The coroutine as a task that has come to where it waits."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


async def body(exchange: Exchange) -> bytes:
    return b"".join([piece async for piece in exchange.chunks()])


async def test_an_answer_is_the_same_however_its_bytes_are_split() -> None:
    raw = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + HEAD
        + chunk(b"hello ")
        + chunk(b"world")
        + b"0\r\nSum: 1\r\n\r\n"
    )
    for position in range(len(raw) + 1):
        bench = Bench()
        exchange = bench.ask()
        bench.hear(raw[:position])
        bench.hear(raw[position:])
        await exchange.head()
        assert (exchange.status, await body(exchange), exchange.whole) == (200, b"hello world", True)
        assert bench.connection.is_usable() and bench.lender.returns == 1


async def test_no_head_in_time_is_a_first_byte_timeout(bench: Bench) -> None:
    head = await waiting(bench.ask().head())
    bench.loop.advance(FIRST_BYTE_S + 0.001)
    with pytest.raises(UpstreamError, match=r"gpu\[0\].*120 s") as late:
        await head
    assert (late.value.status, late.value.sent) == (504, True)
    assert bench.wire.closing and bench.lender.returns == 1


async def test_a_head_that_trickles_does_not_move_the_first_byte_deadline(bench: Bench) -> None:
    head = await waiting(bench.ask().head())
    for byte in HEAD[:10]:
        bench.hear(bytes([byte]))
        bench.loop.advance(FIRST_BYTE_S / 10 + 0.01)
    with pytest.raises(UpstreamError) as late:
        await head
    assert late.value.status == 504


async def test_the_head_is_not_the_first_byte(bench: Bench) -> None:
    exchange = bench.ask()
    bench.loop.advance(FIRST_BYTE_S - 1)
    bench.hear(HEAD)
    await exchange.head()
    reading = await waiting(body(exchange))
    bench.loop.advance(1.001)
    with pytest.raises(UpstreamError, match="first byte"):
        await reading


async def test_every_piece_gives_the_next_one_its_full_time(bench: Bench) -> None:
    exchange = bench.ask()
    bench.hear(HEAD)
    reading = await waiting(body(exchange))
    for _ in range(5):
        bench.hear(chunk(b": ping\n\n"))
        await asyncio.sleep(0)
        bench.loop.advance(BETWEEN_S - 1)
        assert not reading.done()
    bench.loop.advance(1.001)
    with pytest.raises(UpstreamError, match="60 s") as late:
        await reading
    assert late.value.status == 504


async def test_deadlines_do_not_run_while_the_client_is_slow(bench: Bench) -> None:
    exchange = bench.ask()
    bench.hear(HEAD + chunk(b"a"))
    pieces = exchange.chunks()
    assert await anext(pieces) == b"a"
    bench.loop.advance(10 * BETWEEN_S)  # the client takes its time
    bench.hear(chunk(b"b") + END)
    assert await anext(pieces) == b"b"


async def test_a_thousand_exchanges_share_a_handful_of_timers(bench: Bench) -> None:
    for _ in range(1000):
        exchange = bench.ask()
        head = await waiting(exchange.head())
        bench.loop.advance(0.01)
        bench.hear(HEAD + chunk(b"a") + END)
        await head
        assert await body(exchange) == b"a"
    assert bench.loop.timers_made < 20  # 10 s of traffic


async def test_a_kept_connection_is_closed_when_it_has_idled_long_enough(bench: Bench) -> None:
    exchange = bench.ask()
    bench.hear(HEAD + END)
    assert await body(exchange) == b""
    bench.loop.advance(KEEPALIVE_S - 0.1)
    assert bench.connection.is_usable()
    bench.loop.advance(0.2)
    assert not bench.connection.is_usable()


async def test_bytes_nobody_asked_for_close_a_kept_connection(bench: Bench) -> None:
    bench.ask()
    bench.hear(HEAD + END)
    bench.hear(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert not bench.connection.is_usable()


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"])
async def test_bytes_after_the_answer_cost_the_connection_and_nothing_else(bench: Bench, extra: bytes) -> None:
    exchange = bench.ask()
    bench.hear(HEAD + chunk(b"good") + END + extra)
    await exchange.head()
    assert (exchange.status, await body(exchange), exchange.whole) == (200, b"good", True)
    assert not bench.connection.is_usable() and bench.lender.returns == 1


async def test_an_answer_that_nobody_takes_stops_the_reading(bench: Bench) -> None:
    exchange = bench.ask()
    piece = chunk(b"x" * 1000)
    bench.hear(HEAD)
    heard = 0
    while bench.wire.reading:
        bench.hear(piece)
        heard += 1000
    assert 0.9 * HELD_BYTES < heard <= HELD_BYTES + READ_BYTES
    pieces = exchange.chunks()
    assert len(await anext(pieces)) == heard
    assert bench.wire.reading
    bench.hear(chunk(b"y" * (READ_BYTES - 100)) + chunk(b"y" * 200) + END)  # ends while it is stopped again
    assert bench.wire.reading and bench.connection.is_usable()


async def test_tiny_pieces_weigh_what_they_cost(bench: Bench) -> None:
    bench.ask()
    bench.hear(HEAD)
    heard = 0
    while bench.wire.reading:
        bench.hear(chunk(b"x"))
        heard += 1
    assert heard < HELD_BYTES / 40


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (MAX_OVERHEAD_BYTES // 6 + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_OVERHEAD_BYTES,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_OVERHEAD_BYTES // 25 + 1),
        HEAD + b"1;" + b"x" * MAX_OVERHEAD_BYTES * 2,
        HEAD + b"0\r\n" + b"X: y\r\n" * (MAX_OVERHEAD_BYTES // 3),
    ],
    ids=["head", "field", "interim answers", "chunk extension", "trailers"],
)
async def test_framing_without_end_is_cut_off(bench: Bench, raw: bytes) -> None:
    exchange = bench.ask()
    bench.hear(raw)
    with pytest.raises(UpstreamError, match="valid"):
        await exchange.head()
        await body(exchange)
    assert bench.wire.closing


async def test_giving_up_wakes_whoever_waits_and_closes_at_once(bench: Bench) -> None:
    exchange = bench.ask()
    bench.hear(HEAD + chunk(b"a"))
    reading = await waiting(body(exchange))
    exchange.abort()
    exchange.abort()
    assert bench.wire.closing and bench.lender.returns == 1
    with pytest.raises(UpstreamError, match="given up"):
        await reading


async def test_an_exchange_that_is_over_cannot_touch_the_next(bench: Bench) -> None:
    first = bench.ask()
    bench.hear(HEAD + chunk(b"first") + END)
    second = bench.ask()
    first.abort()
    assert await body(first) == b"first"
    bench.hear(HEAD + chunk(b"second") + END)
    assert await body(second) == b"second"
    assert bench.connection.is_usable()

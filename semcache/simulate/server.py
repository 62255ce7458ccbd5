"""A simulated model server with the wire forms of real ones: for the demo, the tests and the load tests.

It answers in the form of the path that is asked (the table is in paths.py), at a set time to the first token
and a set rate after it, or as a GPU with slots and a KV cache would (gpu.py), counts what it was asked (GET
/simulate/stats, GET /metrics), and misbehaves on request. The header `X-Simulate` holds a comma-separated list:

    ttft=300ms, rate=60    this request's own pace            tokens=N      an answer of N words
    finish=length          this finish reason                 reasoning, refusal   such an answer
    about=cancel_order     one answer for all questions about this, in a little other words for each
    status=429             an error of this status            error-200     an error object with status 200
    cut=17                 the connection ends after 17 bytes of body
    error-event            an error event after three deltas  no-done       a stream without its last event
    garbage                200 and something that is not JSON
    hang                   no byte at all                     hang=headers  headers, and then nothing
    hang=body              three deltas, and then nothing
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from semcache.config import read_duration
from semcache.errors import StartError
from semcache.simulate import answers
from semcache.simulate.answers import Json, Pace
from semcache.simulate.forms import Fault, Speaking, Telling, Timed, read_body
from semcache.simulate.gpu import Engine, NoGpu, Turn, as_prometheus
from semcache.simulate.limits import Headers, RateLimit
from semcache.simulate.paths import MODELS, find, vendor_of

DELTAS_BEFORE_FAULT = 3
MAX_BODY_BYTES = 64 * 1024 * 1024


class Asked(NamedTuple):
    """One request as it arrived, for tests that look at what was sent."""

    path: str
    headers: CIMultiDictProxy[str]
    body: bytes


@dataclass(slots=True)
class Counters:
    requests: int = 0
    active: int = 0
    max_active: int = 0
    cancelled: int = 0  # the caller left before its answer was whole
    by_path: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "active": self.active,
            "max_active": self.max_active,
            "cancelled": self.cancelled,
            "by_path": dict(self.by_path),
        }


def die_at_once() -> None:
    """As a machine that loses its power: no answer is finished, no connection closed."""
    os.kill(os.getpid(), signal.SIGKILL)


class Simulator:
    """One simulated server. `tokens_per_s` 0: as fast as it goes. `models`: those it has; None: any that is asked for.

    `fail_rate`: of the requests this share gets a 500. `die_after`: so many requests are answered; 0: it lives.

    In a test: `async with Simulator() as backend: ... backend.url ... backend.counters.requests`.
    """

    def __init__(
        self,
        *,
        ttft_s: float = 0.0,
        tokens_per_s: float = 0.0,
        models: Collection[str] | None = None,
        remember: int = 256,
        fingerprint: str = answers.FINGERPRINT,
        gpu: Engine | None = None,
        limit: RateLimit | None = None,
        fail_rate: float = 0.0,
        die_after: int = 0,
        chance: Callable[[], float] = random.random,
        die: Callable[[], None] = die_at_once,
    ) -> None:
        self.ttft_s = ttft_s
        self.tokens_per_s = tokens_per_s
        self.models = models
        self.fingerprint = fingerprint
        self.gpu: Engine = gpu or NoGpu()
        self.limit = limit
        self.fail_rate = fail_rate
        self.die_after = die_after
        self._chance = chance
        self._die = die
        self.counters = Counters()
        self.asked: deque[Asked] = deque(maxlen=remember)
        self._runner: web.ServerRunner | None = None
        self._numbers = itertools.count(1)
        self._address = ("", 0)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def url(self) -> str:
        """The base URL, with /v1."""
        return f"{self.root}/v1"

    @property
    def root(self) -> str:
        """The base URL of the dialects whose paths do not begin with /v1."""
        return f"http://{self._address[0]}:{self._address[1]}"

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen. Port 0 takes a free one. Raises StartError."""
        # A handler is cancelled when its caller leaves: that is how a real server frees the GPU, and how we count it.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, backlog=4096).start()
        except OSError as exc:
            await self.close()
            raise StartError(f"cannot listen on {host}:{port}: {exc.strerror}; choose another with --port") from exc
        self._address = self._runner.addresses[0][:2]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Simulator:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removesuffix("/")
        if (told := self._told_of_itself(path)) is not None:
            return told
        self.counters.requests += 1
        self.counters.by_path[path] += 1
        self.counters.active += 1
        self._idle.clear()
        self.counters.max_active = max(self.counters.max_active, self.counters.active)
        headers: Headers = {}
        try:
            if self.die_after and self.counters.requests > self.die_after:
                self._die()
            self._limit(request, path, headers)
            return await self._answer(request, path, headers)
        except Fault as fault:
            return _error(path, fault, headers)
        except (asyncio.CancelledError, ConnectionResetError):
            self.counters.cancelled += 1
            raise
        finally:
            self.counters.active -= 1
            if not self.counters.active:
                self._idle.set()

    def _told_of_itself(self, path: str) -> web.Response | None:
        """What a model server answers its operator, who is not counted among the callers."""
        match path:
            case "/health":
                return web.Response()
            case "/metrics":
                text = as_prometheus(self.gpu.metrics(), (list(self.models or ()) or MODELS)[0])
                return web.Response(text=text, content_type="text/plain")
            case "/simulate/stats":
                return web.json_response(
                    self.counters.as_json() | ({"gpu": told} if (told := self.gpu.metrics()) else {})
                )
            case _:
                return None

    def _limit(self, request: web.BaseRequest, path: str, headers: Headers) -> None:
        """Count the request against the limit of its key, and fill in the headers that tell of it. Raises Fault."""
        if self.limit is None or request.method == "GET":
            return
        key = request.headers.get("Authorization") or request.headers.get("X-Api-Key") or ""
        allowed, left, full_in_s = self.limit.take(key)
        headers |= self.limit.headers(path, allowed, left, full_in_s)
        if not allowed:
            raise Fault(429, "this key has used up its requests of this minute", code="rate_limit_exceeded")

    async def until_idle(self) -> None:
        """Return once no request is being answered."""
        await self._idle.wait()

    async def _answer(self, request: web.BaseRequest, path: str, headers: Headers) -> web.StreamResponse:
        raw = await _read(request)
        self.asked.append(Asked(path, request.headers, raw))
        orders = _orders(request.headers.get("X-Simulate", ""))
        if "status" in orders:
            raise Fault(int(orders["status"]), "as ordered")
        if self.fail_rate and self._chance() < self.fail_rate:
            raise Fault(500, "this request is one of those that fail")
        if orders.get("hang") == "":
            await _forever()
        endpoint, extra = find(request.method, path, request.query)
        body: Json = {"models": list(self.models or MODELS)}
        if endpoint.request is not None:
            body = read_body(raw, endpoint.request, extra)
            if self.models is not None and body["model"] not in self.models:
                raise vendor_of(path).unknown_model(body["model"])
        if isinstance(endpoint, Telling):
            return await _send(request, path, endpoint.tell(body), orders, headers)
        asked = endpoint.read(body)
        async with self.gpu.turn(asked) as turn:
            return await self._speak(request, path, endpoint, body, asked, orders, turn, headers)

    async def _speak(
        self,
        request: web.BaseRequest,
        path: str,
        endpoint: Speaking,
        body: Json,
        asked: Sequence[Json],
        orders: Mapping[str, str],
        turn: Turn,
        headers: Headers,
    ) -> web.StreamResponse:
        said = {**orders, "reasoning": ""} if endpoint.thinks(body) else orders
        pace, number, now = self._pace(orders), next(self._numbers), time.time()
        reply = answers.joined([answers.write_reply(ask, said, number, now, pace) for ask in asked])
        reply = replace(reply, cached_tokens=turn.cached_tokens, fingerprint=self.fingerprint)
        if not reply.choices:  # nothing was asked
            pace = answers.AT_ONCE
        stream = body.get("stream")
        if (endpoint.streams_unasked if stream is None else stream) and "error-200" not in orders:
            events = endpoint.events(reply, body)
            response = await self._stream(request, path, events, pace, endpoint.media_type, orders, turn, headers)
            turn.remember(reply.choices)
            return response
        if pace.ttft_s:
            await asyncio.sleep(pace.ttft_s)
        await turn.write(reply.completion_tokens, pace.token_s)
        turn.remember(reply.choices)
        return await _send(request, path, endpoint.whole(reply, body), orders, headers)

    def _pace(self, orders: Mapping[str, str]) -> Pace:
        ttft_s = read_duration(orders["ttft"], "X-Simulate ttft") if "ttft" in orders else self.ttft_s
        rate = float(orders["rate"]) if "rate" in orders else self.tokens_per_s
        return Pace(ttft_s, 1 / rate if rate else 0.0)

    async def _stream(
        self,
        request: web.BaseRequest,
        path: str,
        events: Iterable[Timed],
        pace: Pace,
        media_type: str,
        orders: Mapping[str, str],
        turn: Turn,
        headers: Headers,
    ) -> web.StreamResponse:
        """Write events when their tokens are due. Those that are due together leave in one write."""
        ttft_s, token_s = pace
        clock = time.perf_counter  # a loop may keep its own time in whole milliseconds, and only between callbacks
        response = web.StreamResponse(headers={"Content-Type": media_type, **headers})
        due_at = clock() + ttft_s
        if ttft_s:
            await asyncio.sleep(ttft_s)
        await response.prepare(request)
        cut = int(orders.get("cut", -1))
        sent, due = 0, bytearray()

        async def flush() -> bool:
            """Write what is due. False: the ordered cut was reached, and the connection is gone."""
            nonlocal sent, due
            out, due = bytes(due), bytearray()
            if 0 <= cut <= sent + len(out):
                await response.write(out[: cut - sent])
                _hang_up(request)
                return False
            sent += len(out)
            if out:
                await response.write(out)
            return True

        if "no-done" in orders:
            events = list(events)[:-1]
        deltas = 0
        for place, (tokens, event) in enumerate(events):
            token_now_s = turn.token_s(token_s)
            due_at += (tokens - deltas) * token_now_s
            delay_s = due_at - clock() if token_now_s else 0.0
            if delay_s > 0:
                if not await flush():
                    return response
                await asyncio.sleep(delay_s)
            is_faulty = deltas >= DELTAS_BEFORE_FAULT
            if orders.get("hang") == "headers" or (orders.get("hang") == "body" and is_faulty):
                await flush()
                await _forever()
            if "error-event" in orders and is_faulty:
                due += vendor_of(path).event("as ordered", place)
                break
            due += event
            deltas = tokens
        if await flush():
            await response.write_eof()
        return response


async def _read(request: web.BaseRequest) -> bytes:
    raw = bytearray()
    async for chunk in request.content.iter_any():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise Fault(413, "the body is too large")
    return bytes(raw)


def _orders(header: str) -> dict[str, str]:
    parts = (part.strip().partition("=") for part in header.split(",") if part.strip())
    return {name: value for name, _, value in parts}


async def _send(
    request: web.BaseRequest, path: str, whole: bytes, orders: Mapping[str, str], headers: Headers
) -> web.StreamResponse:
    """An answer that is no stream, or what was ordered in its place."""
    if "error-200" in orders:
        whole = orjson.dumps(vendor_of(path).error(Fault(500, "as ordered")))
    if "garbage" in orders:
        whole = b"<html>not what was asked for</html>"
    if "cut" in orders or "hang" in orders:
        return await _broken_off(request, whole, orders)
    return web.Response(body=whole, content_type="application/json", headers=headers)


def _error(path: str, fault: Fault, headers: Headers) -> web.Response:
    body = orjson.dumps(vendor_of(path).error(fault))
    if fault.status in (429, 503, 529):
        headers = {"retry-after": "1", **headers}
    return web.Response(status=fault.status, body=body, content_type="application/json", headers=headers)


async def _broken_off(request: web.BaseRequest, whole: bytes, orders: Mapping[str, str]) -> web.StreamResponse:
    """Announce a whole body, and then stop early: by closing (`cut`) or by silence (`hang`)."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(whole))})
    await response.prepare(request)
    if "cut" in orders:
        await response.write(whole[: int(orders["cut"])])
        _hang_up(request)
        return response
    if orders["hang"] == "body":
        await response.write(whole[: len(whole) // 2])
    await _forever()
    return response


def _hang_up(request: web.BaseRequest) -> None:
    """End the connection where it is: what was written leaves, the last chunk or the rest of the length never does."""
    if request.transport is not None:
        request.transport.close()


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


def run(simulator: Simulator, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises StartError."""
    import uvloop

    uvloop.run(_serve(simulator, host, port))


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await simulator.start(port, host)
    print(
        f"simulated model server: {simulator.url}  (counters: {simulator.url.removesuffix('/v1')}/simulate/stats)",
        flush=True,
    )
    await stop.wait()
    await simulator.close()

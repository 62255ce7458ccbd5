"""DELIVER, the last step: a reply leaves over the client's connection, and the outcome is told what left.

A reply is one of four: a whole body, a stream as it comes, a refusal of our own, or the end of a tunnel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter

from aiohttp import web

from semcache import tunnel, wire
from semcache.delivery import Headers, id_headers, own_headers
from semcache.errors import STOPPING, ClientError, OutOfRegion, Overloaded, SemcacheError, UpstreamError
from semcache.gate import Gate
from semcache.listening.listener import Sender, whole_response
from semcache.listening.sending import SentResponse
from semcache.metering import Tab
from semcache.planning import Plan
from semcache.types import Outcome, Verdict
from semcache.wire.score import JSON


class Replier:
    def __init__(self, gate: Gate, compress_from: int | None) -> None:
        """`gate`: knows what is left of a caller's limits. `compress_from`: bytes, see settings."""
        self._gate = gate
        self._compress_from = compress_from

    def whole(
        self,
        request: web.BaseRequest,
        status: int,
        headers: Headers,
        body: bytes,
        outcome: Outcome,
        is_stream: bool = False,
    ) -> web.StreamResponse:
        outcome.status = status
        outcome.bytes_out = len(body)
        outcome.ttfb_ms = ms_since(outcome.started)
        return whole_response(request, status, headers, body, is_stream=is_stream, compress_from=self._compress_from)

    async def stream(
        self,
        request: web.BaseRequest,
        plan: Plan | None,
        status: int,
        headers: Headers,
        pieces: AsyncIterator[bytes],
        outcome: Outcome,
        length_bytes: int | None = None,
    ) -> web.StreamResponse:
        """Send pieces as they come, of `length_bytes` together where that is known.

        A source that breaks off leaves a visibly broken answer: the dialect's error event, then the connection ends
        without its last chunk, for both SDKs take a clean end for success.
        """
        outcome.status = status
        sender = Sender(request, status, headers, length_bytes)
        try:
            async for piece in pieces:
                if outcome.ttfb_ms is None:
                    outcome.ttfb_ms = ms_since(outcome.started)
                outcome.bytes_out += len(piece)
                await sender.send(piece)
            return await sender.end()
        except (SemcacheError, asyncio.CancelledError) as exc:
            error = exc if isinstance(exc, SemcacheError) else STOPPING
            outcome.truncated, outcome.error = True, type(error).__name__
            last_words = plan.dialect.error_event(error, outcome.request_id) if plan and plan.ask.stream else b""
            broken = await sender.abort(last_words)
            if isinstance(exc, asyncio.CancelledError):
                raise
            return broken

    def refuse(
        self, request: web.BaseRequest, error: SemcacheError, outcome: Outcome, tab: Tab | None = None
    ) -> web.StreamResponse:
        """A 4xx or 5xx of our own, in the shape that the caller's SDK expects. `tab`: of a request that was let in."""
        headers = [("Content-Type", JSON)]
        if isinstance(error, UpstreamError):
            headers += own_headers(outcome)
        else:
            headers += id_headers(outcome)
            if error.code == "not_cached" and outcome.reason is not None:  # looked up, neither hit nor forwarded
                headers.append(("Cache-Status", f"semcache; detail={outcome.reason}"))
        outcome.verdict = Verdict.REFUSED
        outcome.error, outcome.code = type(error).__name__, error.code
        if isinstance(error, OutOfRegion):
            outcome.regions = error.regions
        if isinstance(error, (ClientError, Overloaded)):
            headers += error.headers.items()
        if isinstance(error, ClientError) and error.status >= 500 and "Retry-After" not in error.headers:
            headers.append(("x-should-retry", "false"))  # the SDKs retry a 5xx, and it would not help
        if tab is not None:
            headers = self._gate.limited(headers, tab)
        body = wire.error_shape(request.path).error_body(error, outcome.request_id)
        return self.whole(request, error.status, headers, body, outcome)

    async def relay(
        self, request: web.BaseRequest, far: tunnel.End, headers: Headers, outcome: Outcome
    ) -> web.StreamResponse:
        """A WebSocket, from its 101 until both sides have ended."""
        outcome.status = 101
        outcome.ttfb_ms = ms_since(outcome.started)
        near = tunnel.switch(request, headers)
        try:
            outcome.truncated = not await tunnel.relay(near, far)
        finally:
            outcome.bytes_out = near.sent_bytes
        return SentResponse(101, keep_alive=False)


def ms_since(started: float) -> float:
    """Milliseconds with three digits. Rounding to digits takes ten times as long as rounding to a whole number."""
    return round((perf_counter() - started) * 1e6) / 1000

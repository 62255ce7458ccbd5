"""DELIVER, as far as it does not matter how a reply is sent: status, header fields and body of whatever is played.

There is one way for each kind: a stored answer, a batch of them, a recording in the form that was asked, and a
recording that has to be rendered first. The proxy sends what comes out over a socket (replying.py); a program is handed
it (inprocess.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import NamedTuple, TypeVar

from cachetools import LRUCache

from semcache import wire
from semcache.batches import assemble_partly, assemble_stored
from semcache.cache.policy import Directives
from semcache.errors import CacheFault, SemcacheError, UpstreamError
from semcache.forwarding import Source
from semcache.pacing import RealTime, Timer, paced
from semcache.pipeline import Followed, Pipeline, Played, PlayedBatch
from semcache.planning import Plan
from semcache.status_headers import cache_status, server_timing
from semcache.types import Entry, Form, Match, Outcome
from semcache.wire.recording import Follower, Recording
from semcache.wire.score import RECORDED, Score

PREPARE_INLINE_BYTES = 32 * 1024  # a stored answer of 1 MB takes some 30 ms to render, the first time it is played
SCORES_BYTES = 64 * 1024 * 1024  # rendered answers kept in memory

# Fields of an upstream's reply that we write ourselves. Its Cache-Status stays: ours is appended as the nearest cache.
_OURS = frozenset({"content-length", "transfer-encoding", "server-timing", "x-request-id"})
_REQUEST_ID = {"anthropic": "request-id"}  # where a vendor's SDK looks for it, besides X-Request-Id

_OF_THE_BODY = frozenset({"content-type", "content-encoding"})

Headers = list[tuple[str, str]]
T = TypeVar("T")


@dataclass(slots=True)  # not frozen: that would cost a microsecond of every hit
class Delivery:
    """A reply, ready to be sent. Whoever has it closes it, when its last byte has left or nobody wants it any more."""

    status: int
    headers: Headers  # less those that frame the body
    body: bytes | AsyncIterator[bytes]  # whole, or as it comes: raises SemcacheError where it breaks off
    is_stream: bool = False  # a whole body that is a stream all the same: events, played at once
    leave: Callable[[], object] | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, whichever kind it is."""
        if isinstance(self.body, bytes):
            yield self.body
        else:
            async for piece in self.body:
                yield piece

    def close(self) -> None:
        """Follow no longer; the outcome then tells what the answer cost and whether it was kept. Does nothing twice."""
        if self.leave is not None:
            self.leave()


class _Kept(NamedTuple):
    score: Score
    size_bytes: int  # with what it is found by: a request's own words, repeated in its answer or not


class Deliverer:
    """Asks the pipeline, and makes a delivery of whatever it says."""

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float], timer: Timer | None = None) -> None:
        """`clock`: unix seconds, for the time that a hit shows. `timer`: by which it is paced."""
        self._pipeline = pipeline
        self._clock = clock
        self._timer = timer or RealTime()
        self._scores: LRUCache[tuple[int, wire.Rendition], _Kept] = LRUCache(
            SCORES_BYTES, getsizeof=lambda kept: kept.size_bytes
        )

    async def respond(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> Delivery:
        """Answer a request, and say in `outcome` how. Raises SemcacheError where there is no answer to give."""
        reply = await self._pipeline.respond(plan, asked, source, outcome)
        if not isinstance(reply, Followed):
            try:
                if isinstance(reply, Played):
                    return await self._play(plan, reply.match, asked, outcome)
                return await self._play_batch(plan, reply, outcome)
            except CacheFault:  # what is stored cannot be rendered: a fresh answer will replace it
                reply = self._pipeline.forward_instead(plan, asked, source, outcome)
        try:
            return await self._follow(plan, reply, outcome)
        except SemcacheError as error:
            if reply.instead is not None:
                delivery = await self._play_after_all(plan, asked, reply.instead, source, outcome)
                if delivery is not None:
                    return delivery
            if not isinstance(error, CacheFault):
                raise
            # What another's fetch brought is no answer to this request.
            reply = self._pipeline.forward_alone(plan, asked, source, outcome)
            return await self._follow(plan, reply, outcome)

    # What is stored

    async def _play(self, plan: Plan, match: Match, asked: Directives, outcome: Outcome) -> Delivery:
        """A stored answer: rendered once for all its hits, with an id and a time of its own for each."""
        score = await self._score(plan, match.entry)
        identity = self._identity(plan, match.entry.writer)
        headers = [("Content-Type", score.content_type), *own_headers(outcome)]
        headers.append(("Age", str(int(match.age_s))))
        headers.append(("Semcache-Entry", match.entry.id))
        if not plan.ask.stream:
            return Delivery(200, headers, score.play_whole(identity))
        headers.append(("Cache-Control", "no-cache"))
        pace = asked.replay or plan.route.cache.replay
        if pace == "instant":
            return Delivery(200, headers, score.play_whole(identity), is_stream=True)
        return Delivery(200, headers, paced(score.play(identity), score.schedule(pace), self._timer))

    async def _play_after_all(
        self, plan: Plan, asked: Directives, match: Match, source: Source, outcome: Outcome
    ) -> Delivery | None:
        """What is stored, where a fetch that was to be learned from has failed. None where that is no answer either."""
        try:
            await self._score(plan, match.entry)  # before the outcome says that it is a hit
            played = await self._pipeline.serve_after_all(plan, asked, match, source, outcome)
        except CacheFault:
            return None
        return None if played is None else await self._play(plan, played.match, asked, outcome)

    async def _play_batch(self, plan: Plan, reply: PlayedBatch, outcome: Outcome) -> Delivery:
        size_bytes = sum(match.entry.answer.size_bytes for match in reply.matches)
        score, outcome.usage = await _aside(size_bytes, partial(assemble_stored, plan, reply.matches))
        headers = [("Content-Type", score.content_type), *own_headers(outcome)]
        headers.append(("Age", str(int(outcome.age_s or 0))))
        if outcome.entry_id is not None:
            headers.append(("Semcache-Entry", outcome.entry_id))
        return Delivery(200, headers, score.play_whole(RECORDED))

    async def _score(self, plan: Plan, entry: Entry) -> Score:
        """Raises CacheFault when the stored answer cannot be rendered."""
        key = (entry.seq, _rendition(plan, zero_usage=plan.route.cache.usage == "zero"))
        kept = self._scores.get(key)
        if kept is not None:
            return kept.score
        answer = entry.answer
        if answer.usage is not None and answer.usage.is_estimated:  # for our books: to clients the upstream told none
            answer = replace(answer, usage=None)
        score = await _aside(answer.size_bytes, partial(plan.dialect.prepare, answer, key[1]))
        size_bytes = score.size_bytes + sum(len(name) + len(text) for name, text in key[1].echo)
        if size_bytes <= SCORES_BYTES:
            self._scores[key] = _Kept(score, size_bytes)
        return score

    def stats(self) -> dict[str, float]:
        return {"scores": len(self._scores), "scores_bytes": self._scores.currsize}

    def _identity(self, plan: Plan, writer: str) -> wire.Identity:
        """The id and the time that a replay shows. `writer`: the tenant whose request brought the answer."""
        is_handle = plan.ask.traits.id_is_a_handle and writer == plan.tenant.id
        if is_handle or plan.route.cache.identity == "original":
            return RECORDED
        return plan.dialect.fresh_identity(self._clock())

    # What is being written

    async def _follow(self, plan: Plan, reply: Followed, outcome: Outcome) -> Delivery:
        """A reply that is being written. Leaving it, for whatever reason, is one follower less.

        Raises CacheFault, before a byte has left, when it is another's and no answer to this request.
        """
        recording = reply.flight.recording
        with ExitStack() as following:
            following.enter_context(reply.flight)
            follower = following.enter_context(recording.join())
            following.callback(_conclude, recording, outcome)
            status, headers, body = await self._followed(plan, reply, follower, outcome)
            return Delivery(status, headers, body, plan.ask.stream and status == 200, following.pop_all().close)

    async def _followed(
        self, plan: Plan, reply: Followed, follower: Follower, outcome: Outcome
    ) -> tuple[int, Headers, bytes | AsyncIterator[bytes]]:
        recording = reply.flight.recording
        # Nothing of a JSON answer leaves before its end, so there is no need to wake for each of its frames.
        is_whole = not recording.is_stream and await recording.whole()
        await recording.begun()
        if reply.is_anothers and recording.status != 200:
            raise CacheFault("the error of another tenant's fetch: it may be about his key")
        failed = recording.status in _IN_TROUBLE if reply.is_stale_instead else recording.status != 200
        if reply.instead is not None and failed:
            raise UpstreamError("a fetch failed that has a stored answer to fall back on")
        _adopt(reply, outcome)
        if not reply.is_relayed and recording.status == 200:
            return await self._render(plan, reply, outcome)
        if recording.is_stream and recording.status != 200:  # an error, and no stream
            is_whole = await recording.whole()
        if not outcome.collapsed:
            outcome.stored = recording.stored
        fields = relayed(recording.headers, outcome.dialect)
        if reply.is_anothers:  # his limits, cookies and ids stay his
            fields = [(name, value) for name, value in fields if name.lower() in _OF_THE_BODY]
        headers = [*fields, *own_headers(outcome)]
        body = follower.take(include_usage=True) if is_whole else follower.pieces(plan.ask.include_usage)
        return recording.status, headers, body

    async def _render(self, plan: Plan, reply: Followed, outcome: Outcome) -> tuple[int, Headers, bytes]:
        """What is fetched is not this reply as it stands: another form was asked for, or more than was missing.

        It has to be whole first. Raises CacheFault if it cannot be given.
        """
        recording = reply.flight.recording
        await recording.whole()
        reading = recording.reading
        if reading is None or reading.answer is None:
            raise CacheFault("the answer this request waited for cannot be given in the form asked for")
        answer = reading.answer
        if reply.plan is not None:
            assemble = partial(assemble_partly, plan, reply.known, reply.plan, answer, reading.usage)
            score, _ = await _aside(answer.size_bytes, assemble)
        else:
            prepare = partial(plan.dialect.prepare, answer, _rendition(plan, zero_usage=False))
            score = await _aside(answer.size_bytes, prepare)
        if not outcome.collapsed:
            outcome.stored = recording.stored
        before_us = [] if reply.is_anothers else _cache_status_of(recording.headers)
        headers = [("Content-Type", score.content_type), *before_us, *own_headers(outcome)]
        return 200, headers, score.play_whole(self._identity(plan, recording.tenant))


# Of an upstream: it has no answer now, whatever was asked (RFC 5861 section 4, and what vendors say when overloaded).
_IN_TROUBLE = frozenset({429, 500, 502, 503, 504, 529})


def own_headers(outcome: Outcome) -> Headers:
    headers = [("Cache-Status", cache_status(outcome)), *id_headers(outcome)]
    if outcome.phases_ms:
        headers.append(("Server-Timing", server_timing(outcome)))
    return headers


def id_headers(outcome: Outcome) -> Headers:
    headers = [("X-Request-Id", outcome.request_id)]
    if name := _REQUEST_ID.get(outcome.dialect):
        headers.append((name, outcome.request_id))
    return headers


def relayed(headers: Mapping[str, str], dialect: str = "") -> Headers:
    """An upstream's fields as they go on, less those that we write ourselves in a reply of this dialect."""
    own_id = _REQUEST_ID.get(dialect)
    return [(name, value) for name, value in headers.items() if (low := name.lower()) not in _OURS and low != own_id]


def _cache_status_of(headers: Mapping[str, str]) -> Headers:
    """What the caches before us, another semcache say, have told: it is of this answer, however it is rendered."""
    return [(name, value) for name, value in headers.items() if name.lower() == "cache-status"]


def request_id(headers: Mapping[str, str]) -> str | None:
    """Another party's id for this request, if it is fit to be repeated in a header and a log line."""
    name = headers.get("X-Request-Id") or headers.get("request-id")
    return name if name and len(name) <= 128 and name.isascii() and name.isprintable() else None


def _adopt(reply: Followed, outcome: Outcome) -> None:
    """What the upstream's head tells about this request. Its id for the request becomes ours, so that what the
    client reports to the vendor, what it reports to us and what our log says are one."""
    recording = reply.flight.recording
    passed_ms = (perf_counter() - outcome.started) * 1000
    outcome.phases_ms["fetch"] = round(passed_ms - sum(outcome.phases_ms.values()), 3)
    outcome.fwd_status, outcome.backend = recording.status, recording.backend
    outcome.region, outcome.attempts = recording.region, recording.attempts
    if not reply.is_anothers:
        outcome.request_id = request_id(recording.headers) or outcome.request_id


def _conclude(recording: Recording, outcome: Outcome) -> None:
    """What is only known once a recording is over, or this reader has left it."""
    if recording.reading is not None:
        outcome.usage = recording.reading.usage
    if not outcome.collapsed:
        outcome.stored, outcome.unstorable = recording.stored, recording.unstorable


def _rendition(plan: Plan, *, zero_usage: bool) -> wire.Rendition:
    ask = plan.ask
    form = Form.STREAM if ask.stream else Form.JSON
    return wire.Rendition(form, ask.include_usage and ask.stream, zero_usage, ask.echo)


async def _aside(size_bytes: int, render: Callable[[], T]) -> T:
    """Render, on a thread where it takes long enough to keep others waiting."""
    return await asyncio.to_thread(render) if size_bytes > PREPARE_INLINE_BYTES else render()

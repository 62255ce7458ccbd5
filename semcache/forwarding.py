"""FETCH into a recording: send a planned request upstream, and write down what comes back as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from semcache.backends.dispatch import Dispatcher, Lost, Needs
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.target import Target
from semcache.config import Route
from semcache.errors import SemcacheError, UpstreamError
from semcache.metering import Meter, Tab
from semcache.planning import Plan
from semcache.types import Unstorable
from semcache.usage import Purpose
from semcache.wire.dialect import Frame, Reading
from semcache.wire.recording import Recording
from semcache.wire.rename import rename

# Where an answer comes from that is not stored: writes the recording of a plan to its end and returns what it turned
# out to be. Raises SemcacheError when there is none, or when it breaks off.
Source = Callable[[Plan, Recording], Awaitable[Reading]]

DONE = b"data: [DONE]\n\n"
_ENDS_WITH_DONE = frozenset({"chat/completions", "completions"})

COUNTED_BYTES = 1024 * 1024  # of an answer whose tokens we have to count: longer ones are counted too low

BATCH_BYTES = 32 * 1024 * 1024  # of a batch's answer, however many items it has


class Forwarder:
    """The source of a proxy: backends over HTTP."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        meter: Meter,
        replaces_keys: Callable[[], bool],
        now: Callable[[], float] = perf_counter,
    ) -> None:
        """`replaces_keys`: whether callers hold our keys, which must not travel upstream. `now`: monotonic seconds."""
        self._dispatcher = dispatcher
        self._meter = meter
        self._replaces_keys = replaces_keys
        self._now = now

    async def write(
        self,
        headers: Mapping[str, str],
        tab: Tab,
        plan: Plan,
        recording: Recording,
        identity: Callable[[], str] | None = None,
    ) -> Reading:
        """`headers`: the caller's. `tab`: what it may spend. `identity`: who asks, for backends that are semcaches. The
        rest is `Source`."""
        assert not isinstance(plan.way, SemcacheError)
        ask_usage = plan.ask.stream and all(target.backend.stream_usage for target in plan.way.targets)
        body = plan.dialect.upstream_body(plan.ask, ask_usage=ask_usage)
        request = UpstreamRequest(
            method="POST",
            path_and_query=plan.ask.target,
            headers=headers,
            body=body,
            want_recording=True,
            pass_key=not self._replaces_keys(),
            identity=identity,
        )
        needs = needs_of(
            plan.route,
            plan.route_name,
            body,
            plan.ask.model,
            is_repeatable=not plan.ask.traits.is_stateful,
            is_stream=plan.ask.stream,
            is_optional=recording.is_optional,
        )
        lost: list[Lost] = []
        tab.is_fetching = True  # from here on it is settled here, whatever happens
        try:
            reply = await self._dispatcher.fetch(plan.way, request, needs, lost)
        except BaseException:
            self._meter.not_fetched(tab)
            for number, (target, model) in enumerate(lost):
                purpose = Purpose.HEDGE if number else Purpose(recording.purpose)
                self._meter.lost(plan, target, model, tab, purpose)
            raise
        pieces = Pieces()
        reading = None
        try:
            recording.came_from(reply.target.backend.region, reply.model, reply.attempts)
            head = (reply.status, reply.headers, reply.backend)
            leaves_end_out = not reply.target.backend.stream_done
            end = DONE if leaves_end_out and plan.ask.stream and plan.ask.endpoint in _ENDS_WITH_DONE else b""
            chunks = reply.chunks()
            reading = await record(plan, recording, *head, chunks, lambda: reply.whole, self._now, end, pieces)
            return reading
        finally:
            self._meter.fetched(plan, reply.target, recording, reading, pieces.kept, tab)
            for target, model in lost:
                self._meter.lost(plan, target, model, tab)
            await reply.abort()  # after a whole reply it only gives its place back


class Pieces:
    """What came of an answer, for counting its tokens should its upstream not tell them."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self._size_bytes = 0

    def add(self, frames: Sequence[Frame], is_stream: bool) -> None:
        for frame in frames:
            piece = frame.payload if is_stream else frame.raw
            if piece is not None and self._size_bytes < COUNTED_BYTES:
                self.kept.append(piece)
                self._size_bytes += len(piece)


def needs_of(
    route: Route,
    name: str,
    body: bytes,
    model: str | None,
    *,
    is_repeatable: bool,
    is_stream: bool = False,
    is_optional: bool = False,
) -> Needs:
    """`is_repeatable`: asking twice does no harm at the upstream."""
    return Needs(
        route=name,
        retry=route.retry,
        hedge=route.hedge,
        priority=route.priority,
        is_nearest_first=route.order == "nearest",
        is_repeatable=is_repeatable,
        is_optional=is_optional,
        model=model,
        is_stream=is_stream,
        prompt=body,
        fit=fit_model,
    )


def fit_model(request: UpstreamRequest, target: Target) -> UpstreamRequest:
    """The request as this backend wants it, where it knows the model by another name."""
    if target.model is None:
        return request
    content_type = request.headers.get("Content-Type", "")
    path, body = rename(request.path_and_query, content_type, request.body, target.model)
    length = request.length if body is request.body else None
    return replace(request, path_and_query=path, body=body, length=length)


async def record(
    plan: Plan,
    recording: Recording,
    status: int,
    headers: Mapping[str, str],
    backend: str,
    chunks: AsyncIterator[bytes],
    is_whole: Callable[[], bool],
    now: Callable[[], float] = perf_counter,
    end: bytes = b"",
    pieces: Pieces | None = None,
) -> Reading:
    """Write down a reply as it comes, and return what it turned out to be.

    `headers`: case-insensitive. `is_whole`: asked at the end, whether the framing proves that nothing is missing.
    `now`: monotonic seconds. `end`: of a stream, where its backend leaves it out: read as if it had come, not relayed.
    `pieces`: takes what comes.
    Raises what `chunks` raises, and UpstreamError for a reply that ended early.
    """
    begun = now()
    limit_bytes, store_tools = answer_limit(plan), plan.route.cache.store_tools
    scribe = plan.dialect.scribe(plan.ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)
    recording.begin(status, headers, backend)
    tail = b""
    async for chunk in chunks:
        frames = scribe.feed(chunk, int((now() - begun) * 1000))
        if pieces is not None:
            pieces.add(frames, plan.ask.stream)
        await recording.extend(frames)
        tail = (tail + chunk)[-len(DONE) :] if end else b""
    whole = is_whole()
    if whole and tail.endswith(b"\n\n") and tail != DONE:
        scribe.feed(end, int((now() - begun) * 1000))
    frames, reading = scribe.finish(whole)
    if reading.unstorable is Unstorable.INCOMPLETE and not whole:
        # Delimited by the connection's end, and not at an end of its own: a cut that HTTP does not show. Half an event
        # is held back, for the error event that comes now would be read as its other half.
        raise UpstreamError(f"{backend} ended its answer early", sent=True)
    await recording.extend(frames)
    return reading


def answer_limit(plan: Plan) -> int:
    """The largest answer that is kept, in bytes. The setting is for one answer, and a batch has as many as items."""
    limit = plan.route.cache.max_answer
    return min(limit * len(plan.items), max(limit, BATCH_BYTES)) if plan.items else limit

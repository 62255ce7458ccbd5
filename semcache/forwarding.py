"""FETCH into a recording: send a planned request upstream, and write down what comes back as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter

from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.errors import SemcacheError, UpstreamError
from semcache.planning import Plan
from semcache.types import Unstorable
from semcache.wire.dialect import Reading
from semcache.wire.recording import Recording

# Where an answer comes from that is not stored: writes the recording of a plan to its end and returns what it turned
# out to be. Raises SemcacheError when there is none, or when it breaks off.
Source = Callable[[Plan, Recording], Awaitable[Reading]]

DONE = b"data: [DONE]\n\n"
_ENDS_WITH_DONE = frozenset({"chat/completions", "completions"})

BATCH_BYTES = 32 * 1024 * 1024  # of a batch's answer, however many items it has


class Forwarder:
    """The source of a proxy: backends over HTTP."""

    def __init__(self, fetcher: Fetcher, replaces_keys: bool, now: Callable[[], float] = perf_counter) -> None:
        """`replaces_keys`: callers hold our keys, which must not travel upstream. `now`: monotonic seconds."""
        self._fetcher = fetcher
        self._replaces_keys = replaces_keys
        self._now = now

    async def write(self, headers: Mapping[str, str], plan: Plan, recording: Recording) -> Reading:
        """`headers`: the caller's. The rest is `Source`."""
        assert not isinstance(plan.way, SemcacheError)
        ask_usage = plan.ask.stream and all(target.backend.stream_usage for target in plan.way.targets)
        request = UpstreamRequest(
            method="POST",
            path_and_query=plan.ask.target,
            headers=headers,
            body=plan.dialect.upstream_body(plan.ask, ask_usage=ask_usage),
            want_recording=True,
            pass_key=not self._replaces_keys,
        )
        reply = await self._fetcher.fetch(plan.way.targets, request)
        try:
            head = (reply.status, reply.headers, reply.backend)
            end = _left_out(plan, reply.backend)
            return await record(plan, recording, *head, reply.chunks(), lambda: reply.whole, self._now, end)
        finally:
            await reply.abort()  # after a whole reply there is nothing left to abort


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
) -> Reading:
    """Write down a reply as it comes, and return what it turned out to be.

    `headers`: case-insensitive. `is_whole`: asked at the end, whether the framing proves that nothing is missing.
    `now`: monotonic seconds. `end`: of a stream, where its backend leaves it out: read as if it had come, not relayed.
    Raises what `chunks` raises, and UpstreamError for a reply that ended early.
    """
    begun = now()
    limit_bytes, store_tools = answer_limit(plan), plan.route.cache.store_tools
    scribe = plan.dialect.scribe(plan.ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)
    recording.begin(status, headers, backend)
    tail = b""
    async for chunk in chunks:
        await recording.extend(scribe.feed(chunk, int((now() - begun) * 1000)))
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


def _left_out(plan: Plan, name: str) -> bytes:
    """The end of a stream that this backend does not write (`stream_done: false`), if the dialect has one."""
    assert not isinstance(plan.way, SemcacheError)
    leaves_it_out = any(target.name == name and not target.backend.stream_done for target in plan.way.targets)
    return DONE if leaves_it_out and plan.ask.stream and plan.ask.endpoint in _ENDS_WITH_DONE else b""


def answer_limit(plan: Plan) -> int:
    """The largest answer that is kept, in bytes. The setting is for one answer, and a batch has as many as items."""
    limit = plan.route.cache.max_answer
    return min(limit * len(plan.items), max(limit, BATCH_BYTES)) if plan.items else limit

"""RECV and DELIVER: the data plane's routes, from the first header to the last byte.

`handle` opens and closes every request: identify, read, plan, respond (pipeline.py), deliver, and tell telemetry.
Every reply is a recording being played. There is one way in for each kind: a stored answer, a recording in the form
that was asked, a recording in the other form, and bytes that pass through.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Protocol, TypeVar

import orjson
from aiohttp import web
from cachetools import LRUCache
from multidict import CIMultiDictProxy

from semcache import wire
from semcache.admit import Admission
from semcache.backends.connection import Body
from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.headers import refuse_unforwardable
from semcache.batches import assemble_partly, assemble_stored
from semcache.cache.policy import Directives, read_directives
from semcache.config import Config
from semcache.errors import CacheFault, ClientError, SemcacheError, UpstreamError
from semcache.forwarding import Forwarder
from semcache.listener import ClientGone, Sender, read_body, stream_body, whole_response
from semcache.pipeline import Followed, Pipeline, Played, PlayedBatch
from semcache.planning import Plan, Planner
from semcache.status_headers import cache_status, server_timing
from semcache.types import Entry, Form, Match, Outcome, Reason, Tenant, Verdict
from semcache.wire.score import JSON, RECORDED, Score

PARSE_INLINE_BYTES = 256 * 1024  # larger bodies are parsed on a thread: 1 MB takes some 15 ms
PREPARE_INLINE_BYTES = 32 * 1024  # a stored answer of 1 MB takes some 30 ms to render, the first time it is played
SCORES_BYTES = 64 * 1024 * 1024  # rendered answers kept in memory

STOPPING = UpstreamError("the proxy is stopping", status=503, code="stopping")  # at the end of a drain

# Fields of an upstream's reply that we write ourselves. Its Cache-Status stays: ours is appended as the nearest cache.
_OURS = frozenset({"content-length", "transfer-encoding", "server-timing", "x-request-id"})

_OF_THE_BODY = frozenset({"content-type", "content-encoding"})

Headers = list[tuple[str, str]]
T = TypeVar("T")


class Observer(Protocol):
    def observe(self, outcome: Outcome, question: str | None = None) -> None: ...


class Server:
    def __init__(
        self,
        config: Config,
        admission: Admission,
        planner: Planner,
        pipeline: Pipeline,
        fetcher: Fetcher,
        observer: Observer,
        unready: Callable[[], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._admission = admission
        self._planner = planner
        self._pipeline = pipeline
        self._forwarder = Forwarder(fetcher, admission.replaces_keys)
        self._fetcher = fetcher
        self._observer = observer
        self._unready = unready
        self._clock = clock
        self._scores: LRUCache[tuple[int, wire.Rendition], Score] = LRUCache(
            SCORES_BYTES, getsizeof=lambda score: score.size_bytes
        )
        self._request_ids = (f"{prefix}{number:08x}" for prefix in [os.urandom(8).hex()] for number in count())

    # RECV

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is. Every path through here ends in one observed Outcome."""
        path = request.path
        if path in ("/healthz", "/readyz"):
            return self._health(request, path)
        outcome = Outcome(_request_id(request.headers) or next(self._request_ids), perf_counter())
        try:
            return await self._answer(request, path, outcome)
        except SemcacheError as error:
            return self._refuse(path, error, outcome, request)
        except (asyncio.CancelledError, ClientGone):
            outcome.truncated = True
            raise
        finally:
            outcome.total_ms = round((perf_counter() - outcome.started) * 1000, 3)
            self._observer.observe(outcome, outcome.question)

    async def _answer(self, request: web.BaseRequest, path: str, outcome: Outcome) -> web.StreamResponse:
        address = wire.find_address(request.raw_path) if request.method == "POST" else None
        if address is None and not wire.is_model_path(path):
            raise ClientError("no such path here; the models are under /v1/", status=404, code="not_found")
        refuse_unforwardable(request.headers)
        tenant = self._admission.identify(request.headers)
        outcome.tenant = tenant.id
        if address is None:
            return await self._pass_through(request, path, tenant, outcome)
        outcome.dialect, outcome.endpoint = address.vendor, address.endpoint
        asked = read_directives(_whole(request.headers, "Cache-Control"), _whole(request.headers, "Semcache-Control"))
        outcome.namespace = self._admission.namespace(tenant, asked.namespace)
        body = await read_body(request, self._config.server)
        plan = await self._plan(address, outcome, request.headers, body, tenant)
        outcome.model, outcome.stream = plan.ask.model, plan.ask.stream
        if self._config.server.log_prompts:
            outcome.question = plan.ask.question
        return await self._respond(request, plan, asked, outcome)

    async def _plan(
        self, address: wire.Address, outcome: Outcome, headers: CIMultiDictProxy[str], body: bytes, tenant: Tenant
    ) -> Plan:
        arguments = (address, headers, body, tenant, outcome.namespace)
        if len(body) > PARSE_INLINE_BYTES:
            return await asyncio.to_thread(self._planner.plan, *arguments)
        return self._planner.plan(*arguments)

    async def _respond(
        self, request: web.BaseRequest, plan: Plan, asked: Directives, outcome: Outcome
    ) -> web.StreamResponse:
        source = partial(self._forwarder.write, request.headers)
        reply = await self._pipeline.respond(plan, asked, source, outcome)
        if not isinstance(reply, Followed):
            try:
                if isinstance(reply, Played):
                    return await self._play(request, plan, reply.match, asked, outcome)
                return await self._play_batch(request, plan, reply, outcome)
            except CacheFault:  # what is stored cannot be rendered: a fresh answer will replace it
                reply = self._pipeline.forward_instead(plan, asked, source, outcome)
        try:
            return await self._follow(request, plan, reply, outcome)
        except CacheFault:  # what another's fetch brought is no answer to this request
            reply = self._pipeline.forward_alone(plan, asked, source, outcome)
            return await self._follow(request, plan, reply, outcome)

    # DELIVER

    async def _play(
        self, request: web.BaseRequest, plan: Plan, match: Match, asked: Directives, outcome: Outcome
    ) -> web.StreamResponse:
        """A stored answer: rendered once for all its hits, with an id and a time of its own for each."""
        score = await self._score(plan, match.entry)
        identity = self._identity(plan, match.entry.writer)
        headers = [("Content-Type", score.content_type), *self._own_headers(outcome)]
        headers.append(("Age", str(int(match.age_s))))
        headers.append(("Semcache-Entry", match.entry.id))
        if not plan.ask.stream:
            return self._send_whole(request, 200, headers, score.play_whole(identity), outcome)
        headers.append(("Cache-Control", "no-cache"))
        pace = asked.replay or plan.route.cache.replay
        if pace == "instant":
            return self._send_whole(request, 200, headers, score.play_whole(identity), outcome, is_stream=True)
        events = _paced(score.play(identity), score.schedule(pace))
        return await self._stream(request, plan, 200, headers, events, outcome)

    async def _play_batch(
        self, request: web.BaseRequest, plan: Plan, reply: PlayedBatch, outcome: Outcome
    ) -> web.StreamResponse:
        size_bytes = sum(match.entry.answer.size_bytes for match in reply.matches)
        score, outcome.usage = await _aside(size_bytes, partial(assemble_stored, plan, reply.matches))
        headers = [("Content-Type", score.content_type), *self._own_headers(outcome)]
        headers.append(("Age", str(int(outcome.age_s or 0))))
        if outcome.entry_id is not None:
            headers.append(("Semcache-Entry", outcome.entry_id))
        return self._send_whole(request, 200, headers, score.play_whole(RECORDED), outcome)

    async def _score(self, plan: Plan, entry: Entry) -> Score:
        """Raises CacheFault when the stored answer cannot be rendered."""
        key = (entry.seq, _rendition(plan, zero_usage=plan.route.cache.usage == "zero"))
        score = self._scores.get(key)
        if score is None:
            answer = entry.answer
            score = await _aside(answer.size_bytes, partial(plan.dialect.prepare, answer, key[1]))
            if score.size_bytes <= SCORES_BYTES:
                self._scores[key] = score
        return score

    def _identity(self, plan: Plan, writer: str) -> wire.Identity:
        """The id and the time that a replay shows. `writer`: the tenant whose request brought the answer."""
        is_handle = plan.ask.traits.id_is_a_handle and writer == plan.tenant.id
        if is_handle or plan.route.cache.identity == "original":
            return RECORDED
        return plan.dialect.fresh_identity(self._clock())

    async def _follow(
        self, request: web.BaseRequest, plan: Plan, reply: Followed, outcome: Outcome
    ) -> web.StreamResponse:
        """A reply that is being written. Leaving it, for whatever reason, is one follower less.

        Raises CacheFault, before a byte has left, when it is another's and no answer to this request.
        """
        recording = reply.flight.recording
        with reply.flight, recording.join() as follower:
            try:
                # Nothing of a JSON answer leaves before its end, so there is no need to wake for each of its frames.
                is_whole = not recording.is_stream and await recording.whole()
                await recording.begun()
                if reply.is_anothers and recording.status != 200:
                    raise CacheFault("the error of another tenant's fetch: it may be about his key")
                self._adopt(reply, outcome)
                if not reply.is_relayed and recording.status == 200:
                    return await self._render(request, plan, reply, outcome)
                if recording.is_stream and recording.status != 200:  # an error, and no stream
                    is_whole = await recording.whole()
                if not outcome.collapsed:
                    outcome.stored = recording.stored
                relayed = _relayed(recording.headers)
                if reply.is_anothers:  # his limits, cookies and ids stay his
                    relayed = [(name, value) for name, value in relayed if name.lower() in _OF_THE_BODY]
                headers = [*relayed, *self._own_headers(outcome)]
                if is_whole:
                    body = follower.take(include_usage=True)
                    return self._send_whole(request, recording.status, headers, body, outcome)
                pieces = follower.pieces(plan.ask.include_usage)
                return await self._stream(request, plan, recording.status, headers, pieces, outcome)
            finally:
                if recording.reading is not None:
                    outcome.usage = recording.reading.usage
                if not outcome.collapsed:
                    outcome.stored, outcome.unstorable = recording.stored, recording.unstorable

    def _adopt(self, reply: Followed, outcome: Outcome) -> None:
        """What the upstream's head tells about this request. Its id for the request becomes ours, so that what the
        client reports to the vendor, what it reports to us and what our log says are one."""
        recording = reply.flight.recording
        passed_ms = (perf_counter() - outcome.started) * 1000
        outcome.phases_ms["fetch"] = round(passed_ms - sum(outcome.phases_ms.values()), 3)
        outcome.fwd_status, outcome.backend = recording.status, recording.backend
        if not reply.is_anothers:
            outcome.request_id = _request_id(recording.headers) or outcome.request_id

    async def _render(
        self, request: web.BaseRequest, plan: Plan, reply: Followed, outcome: Outcome
    ) -> web.StreamResponse:
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
        headers = [("Content-Type", score.content_type), *self._own_headers(outcome)]
        body = score.play_whole(self._identity(plan, recording.tenant))
        return self._send_whole(request, 200, headers, body, outcome, is_stream=plan.ask.stream)

    async def _stream(
        self,
        request: web.BaseRequest,
        plan: Plan | None,
        status: int,
        headers: Headers,
        pieces: AsyncIterator[bytes],
        outcome: Outcome,
    ) -> web.StreamResponse:
        """Send pieces as they come. A source that breaks off leaves a visibly broken answer: the dialect's error event,
        then the connection ends without its last chunk, for both SDKs take a clean end for success."""
        outcome.status = status
        sender = Sender(request, status, headers)
        try:
            async for piece in pieces:
                if outcome.ttfb_ms is None:
                    outcome.ttfb_ms = round((perf_counter() - outcome.started) * 1000, 3)
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

    def _send_whole(
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
        outcome.ttfb_ms = round((perf_counter() - outcome.started) * 1000, 3)
        compress_from = self._config.server.compress_from
        return whole_response(request, status, headers, body, is_stream=is_stream, compress_from=compress_from)

    def _own_headers(self, outcome: Outcome) -> Headers:
        headers = [("Cache-Status", cache_status(outcome)), ("X-Request-Id", outcome.request_id)]
        if outcome.phases_ms:
            headers.append(("Server-Timing", server_timing(outcome)))
        return headers

    # What is not cached

    async def _pass_through(
        self, request: web.BaseRequest, path: str, tenant: Tenant, outcome: Outcome
    ) -> web.StreamResponse:
        """Relay a request that no dialect here understands, both bodies as they are."""
        outcome.verdict, outcome.reason = Verdict.BYPASS, Reason.ENDPOINT
        outcome.endpoint = "other"
        body: Body = b""
        model = None
        if _is_json(request):
            body, model = await self._read_json(request)
        elif request.body_exists:
            body = stream_body(request, self._config.server)
        targets = self._planner.targets_for_path(path, request.headers, model, tenant)
        reply = await self._fetcher.fetch(
            targets,
            UpstreamRequest(
                request.method, request.raw_path, request.headers, body, pass_key=not self._admission.replaces_keys
            ),
        )
        try:
            outcome.fwd_status, outcome.backend = reply.status, reply.backend
            outcome.request_id = _request_id(reply.headers) or outcome.request_id
            headers = [*_relayed(reply.headers), *self._own_headers(outcome)]
            return await self._stream(request, None, reply.status, headers, reply.chunks(), outcome)
        finally:
            await reply.abort()

    async def _read_json(self, request: web.BaseRequest) -> tuple[bytes, str | None]:
        """A JSON body and the model it names, if it does: the route depends on it. Judging the body is not for us."""
        body = await read_body(request, self._config.server)
        if len(body) > PARSE_INLINE_BYTES:
            return body, await asyncio.to_thread(wire.read_model, body)
        return body, wire.read_model(body)

    # Our own answers

    def _refuse(
        self, path: str, error: SemcacheError, outcome: Outcome, request: web.BaseRequest
    ) -> web.StreamResponse:
        """A 4xx or 5xx of our own, in the shape that the caller's SDK expects."""
        headers = [("Content-Type", JSON)]
        if isinstance(error, UpstreamError):
            headers += self._own_headers(outcome)
        else:
            headers.append(("X-Request-Id", outcome.request_id))
            if error.code == "not_cached" and outcome.reason is not None:  # looked up, neither hit nor forwarded
                headers.append(("Cache-Status", f"semcache; detail={outcome.reason}"))
        outcome.verdict = Verdict.REFUSED
        outcome.error = type(error).__name__
        if isinstance(error, ClientError):
            headers += error.headers.items()
            if error.status >= 500:
                headers.append(("x-should-retry", "false"))  # the SDKs retry a 5xx, and it would not help
        body = wire.error_shape(path).error_body(error, outcome.request_id)
        return self._send_whole(request, error.status, headers, body, outcome)

    def _health(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        missing = list(self._unready()) if path == "/readyz" else []
        body = orjson.dumps({"status": "unready", "missing": missing} if missing else {"status": "ok"})
        return whole_response(request, 503 if missing else 200, [("Content-Type", JSON)], body)


def _whole(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """The value of a field that is a list: on several lines it is still one (RFC 9110 section 5.3)."""
    values = headers.getall(name, None)
    return None if values is None else ", ".join(values)


def _request_id(headers: Mapping[str, str]) -> str | None:
    """Another party's id for this request, if it is fit to be repeated in a header and a log line."""
    name = headers.get("X-Request-Id")
    return name if name and len(name) <= 128 and name.isascii() and name.isprintable() else None


def _relayed(headers: Mapping[str, str]) -> Headers:
    """An upstream's fields as they go on, less those that we write ourselves."""
    return [(name, value) for name, value in headers.items() if name.lower() not in _OURS]


def _is_json(request: web.BaseRequest) -> bool:
    return request.method == "POST" and request.headers.get("Content-Type", "").lower().startswith(JSON)


def _rendition(plan: Plan, *, zero_usage: bool) -> wire.Rendition:
    ask = plan.ask
    form = Form.STREAM if ask.stream else Form.JSON
    return wire.Rendition(form, ask.include_usage and ask.stream, zero_usage, ask.echo)


async def _aside(size_bytes: int, render: Callable[[], T]) -> T:
    """Render, on a thread where it takes long enough to keep others waiting."""
    return await asyncio.to_thread(render) if size_bytes > PREPARE_INLINE_BYTES else render()


async def _paced(events: Sequence[bytes], due_s: Sequence[float]) -> AsyncIterator[bytes]:
    """Play each event when it is due, in seconds since the beginning."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for event, due in zip(events, due_s, strict=True):
        await asyncio.sleep(max(0.0, begun + due - loop.time()))
        yield event

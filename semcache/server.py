"""RECV and the sending of what is delivered: the data plane's routes, from the first header to the last byte.

`handle` opens and closes every request: identify, read, plan, respond (delivery.py), send, and tell telemetry. What is
sent is one of three: a whole body, a stream as it comes, or bytes that pass through.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import Protocol

import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from semcache import catalogue, feedback, tunnel, wire
from semcache.admit import ANONYMOUS, Admission
from semcache.backends.connection import Body
from semcache.backends.dispatch import Dispatcher
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.headers import NODE, refuse_unforwardable
from semcache.backends.target import Target
from semcache.cache.policy import Directives, read_directives
from semcache.catalogue import Catalogue
from semcache.config import Config
from semcache.delivery import Deliverer, Headers, id_headers, own_headers, relayed, request_id
from semcache.errors import STOPPING, ClientError, OutOfRegion, Overloaded, SemcacheError, UpstreamError
from semcache.feedback import FeedbackDesk
from semcache.forwarding import Forwarder, needs_of
from semcache.gate import Gate
from semcache.listening.listener import ClientGone, Sender, read_ahead, read_body, stream_body, whole_response
from semcache.listening.sending import SentResponse
from semcache.metering import Meter, Tab
from semcache.pacing import Timer
from semcache.pipeline import Pipeline
from semcache.planning import PLAN_BODY_BYTES, Plan, Planner
from semcache.types import Outcome, Reason, Tenant, Tier, Verdict
from semcache.wire.form_model import read_form_model
from semcache.wire.score import JSON

PARSE_INLINE_BYTES = 256 * 1024  # larger bodies are parsed on a thread: 1 MB takes some 15 ms


class Observer(Protocol):
    def observe(self, outcome: Outcome, question: str | None = None) -> None: ...


class Signer(Protocol):
    """Says to other semcaches who asks; see access/chain.py."""

    def sign(self, tenant: Tenant, namespace: str, now_unix: float) -> str: ...


class Server:
    def __init__(
        self,
        config: Config,
        gate: Gate,
        admission: Admission,
        planner: Planner,
        pipeline: Pipeline,
        dispatcher: Dispatcher,
        meter: Meter,
        observer: Observer,
        unready: Callable[[], Sequence[str]],
        clock: Callable[[], float],
        timer: Timer,
        desk: FeedbackDesk,
        node: str = NODE,
        signer: Signer | None = None,
    ) -> None:
        self._node, self._signer, self._clock = node, signer, clock
        self._config = config
        self._keeps_questions = config.server.log_prompts or (config.audit is not None and config.audit.prompts)
        self._gate = gate
        self._admission = admission
        self._planner = planner
        self.deliverer = Deliverer(pipeline, clock, timer)
        self._forwarder = Forwarder(dispatcher, meter, lambda: admission.replaces_keys, timer.now)
        self._dispatcher = dispatcher
        self._catalogue = Catalogue(planner, dispatcher.fleet)
        self._observer = observer
        self._unready = unready
        self._desk = desk
        self._request_ids = (f"{prefix}{number:08x}" for prefix in [os.urandom(8).hex()] for number in count())

    # RECV

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is. Every path through here ends in one observed Outcome."""
        path = request.path
        if path in ("/healthz", "/readyz"):
            return self._health(request, path)
        outcome = Outcome(request_id(request.headers) or next(self._request_ids), perf_counter())
        try:
            return await self._answer(request, path, outcome)
        except SemcacheError as error:
            return self._refuse(path, error, outcome, request)
        except (asyncio.CancelledError, ClientGone):
            outcome.truncated = True
            raise
        finally:
            outcome.total_ms = _ms_since(outcome.started)
            self._observer.observe(outcome, outcome.question)

    async def _answer(self, request: web.BaseRequest, path: str, outcome: Outcome) -> web.StreamResponse:
        if path in feedback.PATHS:
            return await self._take_feedback(request, outcome)
        address = wire.find_address(request.raw_path) if request.method == "POST" else None
        if address is None and not wire.is_model_path(path):
            raise ClientError("no such path here; the models are under /v1/", status=404, code="not_found")
        if address is None and request.method == "POST":
            wire.refuse_disguise(request.raw_path)
        refuse_unforwardable(request.headers, self._node)
        tenant = await self._gate.identify(request.headers, outcome)
        if address is None or not self._planner.caches(address):
            return await self._pass_through(request, path, tenant, outcome)
        outcome.dialect, outcome.endpoint = address.vendor, address.endpoint
        asked = read_directives(_whole(request.headers, "Cache-Control"), _whole(request.headers, "Semcache-Control"))
        outcome.namespace = self._admission.namespace(tenant, asked.namespace)
        if address.opt_in is None:
            body = await read_body(request, self._config.server)
            plan = await self._plan(address, outcome, request.headers, body, tenant)
        else:
            upload, pieces = await read_ahead(request, self._config.server)
            arguments = (address, request.headers, upload, tenant, outcome.namespace)
            wanted = await asyncio.to_thread(self._planner.plan_upload, *arguments)
            if wanted is None:
                return await self._pass_through(request, path, tenant, outcome, pieces)
            plan = wanted
        outcome.model, outcome.stream = plan.ask.model, plan.ask.stream
        outcome.route, outcome.regions = plan.route_name, plan.regions
        if self._keeps_questions:
            outcome.question = plan.ask.question
        tab = await self._gate.let_in(plan, outcome)
        try:
            return await self._respond(request, plan, asked, outcome, tab)
        except SemcacheError as error:
            return self._refuse(path, error, outcome, request, tab)
        finally:
            self._gate.settle(tab)

    async def _plan(
        self, address: wire.Address, outcome: Outcome, headers: CIMultiDictProxy[str], body: bytes, tenant: Tenant
    ) -> Plan:
        arguments = (address, headers, body, tenant, outcome.namespace)
        size = len(body)
        # A batch's items cost more than its bytes: 20 KB hold two thousand, which take as long as 2 MB of one question.
        # Smaller bodies stay on this thread, for their plans are remembered, and only one thread may do that.
        if size > PARSE_INLINE_BYTES or (size > PLAN_BODY_BYTES and isinstance(address.dialect, wire.BatchDialect)):
            return await asyncio.to_thread(self._planner.plan, *arguments)
        return self._planner.plan(*arguments)

    async def _respond(
        self, request: web.BaseRequest, plan: Plan, asked: Directives, outcome: Outcome, tab: Tab
    ) -> web.StreamResponse:
        identity = self._identity(plan.tenant, outcome.namespace, plan.regions)
        source = partial(self._forwarder.write, request.headers, tab, identity=identity)
        if tab.reservation.unpaid is not None:  # what is stored costs nothing
            plan = replace(plan, way=tab.reservation.unpaid)
        delivery = await self.deliverer.respond(plan, asked, source, outcome)
        if outcome.tier is not None:
            exact = outcome.entry_key if outcome.tier is Tier.EXACT else plan.key.exact  # a batch's key is no entry's
            self._desk.remember(plan.tenant, exact or plan.key.exact, outcome)
        try:
            status, headers, body = delivery.status, delivery.headers, delivery.body
            if tab.subjects:
                headers = self._gate.limited(headers, tab, is_relayed=outcome.fwd_status is not None)
            if isinstance(body, bytes):
                return self._send_whole(request, status, headers, body, outcome, is_stream=delivery.is_stream)
            return await self._stream(request, plan, status, headers, body, outcome)
        finally:
            delivery.close()

    def _identity(self, tenant: Tenant, namespace: str, regions: frozenset[str]) -> Callable[[], str] | None:
        """`regions`: that this request is bound to; its route may have said more than its tenant."""
        signer = self._signer
        if signer is None:
            return None
        return lambda: signer.sign(replace(tenant, regions=regions), namespace, self._clock())

    # DELIVER

    async def _stream(
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
                    outcome.ttfb_ms = _ms_since(outcome.started)
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
        outcome.ttfb_ms = _ms_since(outcome.started)
        compress_from = self._config.server.compress_from
        return whole_response(request, status, headers, body, is_stream=is_stream, compress_from=compress_from)

    # What is not cached

    async def _pass_through(
        self,
        request: web.BaseRequest,
        path: str,
        tenant: Tenant,
        outcome: Outcome,
        upload: AsyncIterator[bytes] | None = None,
    ) -> web.StreamResponse:
        """Relay a request that no dialect here understands, both bodies as they are. `upload`: looked at already."""
        outcome.verdict, outcome.reason = Verdict.BYPASS, Reason.ENDPOINT
        outcome.dialect, outcome.endpoint = "", "other"
        body: Body = b""
        length = None
        model = request.query.get("model")
        switches = tunnel.is_asked_for(request)
        if switches and tenant is ANONYMOUS:
            tunnel.refuse_another_sites_page(request.headers)
        if catalogue.is_list(request.method, path):
            outcome.regions = self._catalogue.regions(path, request.headers, tenant)
            targets = self._catalogue.backends(path, request.headers, tenant, outcome.regions)
            if targets:
                return await self._list_models(request, path, targets, tenant, outcome)
        if upload is None and _is_json(request):
            body, model = await self._read_json(request)
        elif request.body_exists:
            body = upload or stream_body(request, self._config.server, self._config.server.max_upload)
            length = request.content_length
            if request.content_type == "multipart/form-data":
                model, body = await read_form_model(request.headers["Content-Type"], body)
        way, route, outcome.route = self._planner.way_for_path(path, request.headers, model, tenant)
        outcome.regions = way.regions
        tab = self._gate.let_pass(tenant)
        is_safe = request.method in ("GET", "HEAD", "OPTIONS") and isinstance(body, bytes)
        onward = UpstreamRequest(
            request.method,
            request.raw_path,
            request.headers,
            body,
            length=length,
            pass_key=not self._admission.replaces_keys,
            identity=self._identity(tenant, outcome.namespace, way.regions),
            switches=switches,
        )
        needs = needs_of(route, outcome.route, body if isinstance(body, bytes) else b"", is_repeatable=is_safe)
        try:
            reply = await self._dispatcher.fetch(way, onward, needs._replace(model=model))
        except SemcacheError as error:
            return self._refuse(path, error, outcome, request, tab)
        try:
            outcome.fwd_status, outcome.backend = reply.status, reply.backend
            outcome.region, outcome.attempts = reply.target.backend.region, reply.attempts
            outcome.request_id = request_id(reply.headers) or outcome.request_id
            headers = [*relayed(reply.headers), *own_headers(outcome)]
            if tab.subjects:
                headers = self._gate.limited(headers, tab)
            if reply.reply.tunnel is not None:
                return await self._relay(request, reply.reply.tunnel, headers, outcome)
            return await self._stream(request, None, reply.status, headers, reply.chunks(), outcome, reply.reply.length)
        finally:
            await reply.abort()

    async def _list_models(
        self, request: web.BaseRequest, path: str, targets: Sequence[Target], tenant: Tenant, outcome: Outcome
    ) -> web.StreamResponse:
        """One list of what several backends have."""
        tab = self._gate.let_pass(tenant)
        pass_key = not self._admission.replaces_keys
        try:
            body = await self._catalogue.list(targets, path, request.headers, tenant, pass_key)
        except SemcacheError as error:
            return self._refuse(path, error, outcome, request, tab)
        headers = [("Content-Type", JSON), *own_headers(outcome)]
        if tab.subjects:
            headers = self._gate.limited(headers, tab)
        return self._send_whole(request, 200, headers, body, outcome)

    async def _relay(
        self, request: web.BaseRequest, far: tunnel.End, headers: Headers, outcome: Outcome
    ) -> web.StreamResponse:
        """A WebSocket, from its 101 until both sides have ended."""
        outcome.status = 101
        outcome.ttfb_ms = _ms_since(outcome.started)
        near = tunnel.switch(request, headers)
        try:
            outcome.truncated = not await tunnel.relay(near, far)
        finally:
            outcome.bytes_out = near.sent_bytes
        return SentResponse(101, keep_alive=False)

    async def _read_json(self, request: web.BaseRequest) -> tuple[bytes, str | None]:
        """A JSON body and the model it names, if it does: the route depends on it. Judging the body is not for us."""
        body = await read_body(request, self._config.server)
        if len(body) > PARSE_INLINE_BYTES:
            return body, await asyncio.to_thread(wire.read_model, body)
        return body, wire.read_model(body)

    # Our own answers

    async def _take_feedback(self, request: web.BaseRequest, outcome: Outcome) -> web.StreamResponse:
        """A caller's word on a hit it got. No request to a model: nothing of the cache is told about it."""
        outcome.endpoint = "feedback"
        if request.method != "POST":
            message = "feedback is sent with POST; the operator reads it on the admin port"
            raise ClientError(message, status=405, code="method_not_allowed", headers={"Allow": "POST"})
        tenant = await self._gate.identify(request.headers, outcome)
        self._planner.residency.refuse_store(tenant.regions)
        body = await read_body(request, self._config.server, feedback.MAX_BODY)
        answer = await self._desk.take(tenant, body, outcome)
        outcome.verdict = Verdict.BYPASS
        headers = [("Content-Type", JSON), *id_headers(outcome)]
        return self._send_whole(request, 200, headers, orjson.dumps(answer), outcome)

    def _refuse(
        self, path: str, error: SemcacheError, outcome: Outcome, request: web.BaseRequest, tab: Tab | None = None
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
        if tab is not None and tab.subjects:
            headers = self._gate.limited(headers, tab)
        body = wire.error_shape(path).error_body(error, outcome.request_id)
        return self._send_whole(request, error.status, headers, body, outcome)

    def _health(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        missing = list(self._unready()) if path == "/readyz" else []
        body = orjson.dumps({"status": "unready", "missing": missing} if missing else {"status": "ok"})
        return whole_response(request, 503 if missing else 200, [("Content-Type", JSON)], body)


def _ms_since(started: float) -> float:
    """Milliseconds with three digits. Rounding to digits takes ten times as long as rounding to a whole number."""
    return round((perf_counter() - started) * 1e6) / 1000


def _whole(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """The value of a field that is a list: on several lines it is still one (RFC 9110 section 5.3)."""
    values = headers.getall(name, None)
    return None if values is None else ", ".join(values)


def _is_json(request: web.BaseRequest) -> bool:
    return request.method == "POST" and request.headers.get("Content-Type", "").lower().startswith(JSON)

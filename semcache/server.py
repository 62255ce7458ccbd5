"""RECV: the data plane's routes, from the first header of a request to the outcome that is told of it.

`handle` opens and closes every request. In between, for one that may be cached:

    gate.identify      who asks; before the body is read
    planner.plan       what it asks, by which rules, and where it may go
    gate.let_in        guardrails and limits
    deliverer.respond  the answer, from the cache (pipeline.py) or from a backend (forwarding.py)
    replier            sends it
    gate.settle        what it was let in for and did not use

What no dialect here caches goes through passing.py instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import Protocol

import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from semcache import feedback, wire
from semcache.access.credentials import Introduce, introduce_nobody
from semcache.admit import Admission
from semcache.backends.headers import NODE, refuse_unforwardable
from semcache.cache.policy import Directives, read_directives
from semcache.config import Config
from semcache.delivery import Deliverer, id_headers, request_id
from semcache.errors import ClientError, SemcacheError
from semcache.feedback import FeedbackDesk
from semcache.forwarding import Forwarder
from semcache.gate import Gate
from semcache.listening.listener import ClientGone, read_ahead, read_body, whole_response
from semcache.metering import Tab
from semcache.passing import PassThrough
from semcache.planning import PARSE_INLINE_BYTES, PLAN_BODY_BYTES, Plan, Planner
from semcache.replying import Replier, ms_since
from semcache.types import Outcome, Tenant, Tier, Verdict
from semcache.wire.score import JSON


class Observer(Protocol):
    def observe(self, outcome: Outcome, question: str | None = None) -> None: ...


class Server:
    def __init__(
        self,
        config: Config,
        gate: Gate,
        admission: Admission,
        planner: Planner,
        deliverer: Deliverer,
        forwarder: Forwarder,
        passing: PassThrough,
        replier: Replier,
        desk: FeedbackDesk,
        observer: Observer,
        unready: Callable[[], Sequence[str]],
        introduce: Introduce = introduce_nobody,
        node: str = NODE,
    ) -> None:
        """`unready`: what is still missing. `node`: our name in Via, by which we know our own requests again."""
        self._settings = config.server
        self._keeps_questions = config.server.log_prompts or (config.audit is not None and config.audit.prompts)
        self._gate = gate
        self._admission = admission
        self._planner = planner
        self._deliverer = deliverer
        self._forwarder = forwarder
        self._passing = passing
        self._replier = replier
        self._desk = desk
        self._observer = observer
        self._unready = unready
        self._introduce = introduce
        self._node = node
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
            return self._replier.refuse(request, error, outcome)
        except (asyncio.CancelledError, ClientGone):
            outcome.truncated = True
            raise
        finally:
            outcome.total_ms = ms_since(outcome.started)
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
            return await self._passing.respond(request, tenant, outcome)
        outcome.dialect, outcome.endpoint = address.vendor, address.endpoint
        asked = read_directives(_whole(request.headers, "Cache-Control"), _whole(request.headers, "Semcache-Control"))
        outcome.namespace = self._admission.namespace(tenant, asked.namespace)
        if address.opt_in is None:
            body = await read_body(request, self._settings)
            plan = await self._plan(address, outcome, request.headers, body, tenant)
        else:
            upload, pieces = await read_ahead(request, self._settings)
            arguments = (address, request.headers, upload, tenant, outcome.namespace)
            wanted = await asyncio.to_thread(self._planner.plan_upload, *arguments)
            if wanted is None:
                return await self._passing.respond(request, tenant, outcome, pieces)
            plan = wanted
        outcome.model, outcome.stream = plan.ask.model, plan.ask.stream
        outcome.route, outcome.regions = plan.route_name, plan.regions
        if self._keeps_questions:
            outcome.question = plan.ask.question
        tab = await self._gate.let_in(plan, outcome)
        try:
            return await self._respond(request, plan, asked, outcome, tab)
        except SemcacheError as error:
            return self._replier.refuse(request, error, outcome, tab)
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
        identity = self._introduce(plan.tenant, outcome.namespace, plan.regions)
        source = partial(self._forwarder.write, request.headers, tab, identity=identity)
        if tab.reservation.why_no_fetch is not None:  # what is stored costs nothing
            plan = replace(plan, way=tab.reservation.why_no_fetch)
        delivery = await self._deliverer.respond(plan, asked, source, outcome)
        if outcome.tier is not None:
            exact = outcome.entry_key if outcome.tier is Tier.EXACT else plan.key.exact  # a batch's key is no entry's
            self._desk.remember(plan.tenant, exact or plan.key.exact, outcome)
        try:
            status, body = delivery.status, delivery.body
            headers = self._gate.limited(delivery.headers, tab, is_relayed=outcome.fwd_status is not None)
            if isinstance(body, bytes):
                return self._replier.whole(request, status, headers, body, outcome, is_stream=delivery.is_stream)
            return await self._replier.stream(request, plan, status, headers, body, outcome)
        finally:
            delivery.close()

    # Our own answers

    async def _take_feedback(self, request: web.BaseRequest, outcome: Outcome) -> web.StreamResponse:
        """A caller's word on a hit it got. No request to a model: nothing of the cache is told about it."""
        outcome.endpoint = "feedback"
        if request.method != "POST":
            message = "feedback is sent with POST; the operator reads it on the admin port"
            raise ClientError(message, status=405, code="method_not_allowed", headers={"Allow": "POST"})
        tenant = await self._gate.identify(request.headers, outcome)
        self._planner.residency.refuse_store(tenant.regions)
        body = await read_body(request, self._settings, feedback.MAX_BODY)
        answer = await self._desk.take(tenant, body, outcome)
        outcome.verdict = Verdict.BYPASS
        headers = [("Content-Type", JSON), *id_headers(outcome)]
        return self._replier.whole(request, 200, headers, orjson.dumps(answer), outcome)

    def _health(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        missing = list(self._unready()) if path == "/readyz" else []
        body = orjson.dumps({"status": "unready", "missing": missing} if missing else {"status": "ok"})
        return whole_response(request, 503 if missing else 200, [("Content-Type", JSON)], body)


def _whole(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """The value of a field that is a list: on several lines it is still one (RFC 9110 section 5.3)."""
    values = headers.getall(name, None)
    return None if values is None else ", ".join(values)

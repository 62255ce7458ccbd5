"""PASS THROUGH: what no dialect here caches goes to a backend and back, both bodies as they are.

There is no plan, no recording and no lookup: a route, a way, and what comes. The list of models is answered here too,
where several backends have a part in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from semcache import catalogue, tunnel, wire
from semcache.access.credentials import Introduce
from semcache.admit import ANONYMOUS, Admission
from semcache.backends.connection import Body
from semcache.backends.dispatch import Answering, Dispatcher
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.target import Target
from semcache.catalogue import Catalogue
from semcache.config import Server
from semcache.delivery import own_headers, relayed, request_id
from semcache.errors import SemcacheError
from semcache.forwarding import needs_of
from semcache.gate import Gate
from semcache.listening.listener import read_body, stream_body
from semcache.metering import Tab
from semcache.planning import PARSE_INLINE_BYTES, Planner
from semcache.replying import Replier
from semcache.types import Outcome, Reason, Tenant, Verdict
from semcache.wire.form_model import looks_like_object, read_form_model
from semcache.wire.score import JSON


class PassThrough:
    def __init__(
        self,
        settings: Server,
        gate: Gate,
        admission: Admission,
        planner: Planner,
        dispatcher: Dispatcher,
        replier: Replier,
        introduce: Introduce,
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._admission = admission
        self._planner = planner
        self._dispatcher = dispatcher
        self._catalogue = Catalogue(planner, dispatcher.fleet)
        self._replier = replier
        self._introduce = introduce

    async def respond(
        self,
        request: web.BaseRequest,
        tenant: Tenant,
        outcome: Outcome,
        upload: AsyncIterator[bytes] | None = None,
    ) -> web.StreamResponse:
        """Answer a request of this tenant. `upload`: its body, where that was looked at already.

        Raises ClientError: 404 where no backend takes it, 403 or 429 where it may not go.
        """
        path = request.path
        outcome.verdict, outcome.reason = Verdict.BYPASS, Reason.ENDPOINT
        outcome.dialect, outcome.endpoint = "", "other"
        switches = tunnel.is_asked_for(request)
        if switches and tenant is ANONYMOUS:
            tunnel.refuse_another_sites_page(request.headers)
        if catalogue.is_list(request.method, path):
            outcome.regions = self._catalogue.regions(path, request.headers, tenant)
            targets = self._catalogue.backends(path, request.headers, tenant, outcome.regions)
            if targets:
                return await self._list_models(request, targets, tenant, outcome)
        body, model = await self._read(request, upload)
        way, route, outcome.route = self._planner.way_for_path(path, request.headers, model, tenant)
        outcome.regions = way.regions
        tab = self._gate.let_pass(tenant)
        is_held = isinstance(body, bytes)
        onward = UpstreamRequest(
            request.method,
            request.raw_path,
            request.headers,
            body,
            length=None if is_held else request.content_length,
            pass_key=not self._admission.replaces_keys,
            identity=self._introduce(tenant, outcome.namespace, way.regions),
            switches=switches,
        )
        is_safe = is_held and request.method in ("GET", "HEAD", "OPTIONS")
        needs = needs_of(route, outcome.route, body if isinstance(body, bytes) else b"", model, is_repeatable=is_safe)
        try:
            reply = await self._dispatcher.fetch(way, onward, needs)
        except SemcacheError as error:
            return self._replier.refuse(request, error, outcome, tab)
        try:
            return await self._send(request, reply, outcome, tab)
        finally:
            await reply.abort()

    async def _read(self, request: web.BaseRequest, upload: AsyncIterator[bytes] | None) -> tuple[Body, str | None]:
        """The body, and the model that it or the query names, if either does: the route depends on it.

        JSON is held whole, and judging it is not for us; everything else is read as the backend takes it.
        """
        model = request.query.get("model")
        if upload is None and is_json(request):
            whole = await read_body(request, self._settings)
            if len(whole) > PARSE_INLINE_BYTES:
                return whole, await asyncio.to_thread(wire.read_model, whole)
            return whole, wire.read_model(whole)
        if not request.body_exists:
            return b"", model
        pieces = upload or stream_body(request, self._settings, self._settings.max_upload)
        if request.content_type == "multipart/form-data":
            model, pieces = await read_form_model(request.headers["Content-Type"], pieces)
        elif model is not None and upload is None:
            is_object, pieces = await looks_like_object(pieces)
            model = None if is_object else model  # many a server reads JSON whatever its type, and the model in it
        return pieces, model

    async def _send(self, request: web.BaseRequest, reply: Answering, outcome: Outcome, tab: Tab) -> web.StreamResponse:
        outcome.fwd_status, outcome.backend = reply.status, reply.backend
        outcome.region, outcome.attempts = reply.target.backend.region, reply.attempts
        outcome.request_id = request_id(reply.headers) or outcome.request_id
        headers = self._gate.limited([*relayed(reply.headers), *own_headers(outcome)], tab)
        if reply.reply.tunnel is not None:
            return await self._replier.relay(request, reply.reply.tunnel, headers, outcome)
        length_bytes = reply.reply.length
        return await self._replier.stream(request, None, reply.status, headers, reply.chunks(), outcome, length_bytes)

    async def _list_models(
        self, request: web.BaseRequest, targets: Sequence[Target], tenant: Tenant, outcome: Outcome
    ) -> web.StreamResponse:
        """One list of what several backends have."""
        tab = self._gate.let_pass(tenant)
        pass_key = not self._admission.replaces_keys
        try:
            body = await self._catalogue.list(targets, request.path, request.headers, tenant, pass_key)
        except SemcacheError as error:
            return self._replier.refuse(request, error, outcome, tab)
        headers = self._gate.limited([("Content-Type", JSON), *own_headers(outcome)], tab)
        return self._replier.whole(request, 200, headers, body, outcome)


def is_json(request: web.BaseRequest) -> bool:
    return request.method == "POST" and request.headers.get("Content-Type", "").lower().startswith(JSON)

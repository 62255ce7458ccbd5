"""The operator's listener: figures, explanations, purge, export and import, on a port of its own.

Who may call is decided here, before a byte of a body is read. `/metrics`, `/healthz` and `/readyz` answer anybody who
reaches the port. Everything else needs the admin token; where none is set, it must come from this machine, and not
from a web page: a browser can be made to call local ports, so a foreign `Origin` or `Host` is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, fields
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

import orjson
from aiohttp import web

from semcache.audit.record import Event
from semcache.config import Server
from semcache.errors import CacheFault, ClientError, SemcacheError, StartError
from semcache.types import Selector

log = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024  # of a purge: a question is the longest thing in it
MAX_LINE = 64 * 1024 * 1024  # of an import: an entry with the largest answer anybody keeps, and its vector
BODY_TIMEOUT_S = 60.0  # between pieces of a body, either way
MAX_FEEDBACK = 1000  # rows to an answer
JSON_LINES = "application/x-ndjson"

SELECTORS = frozenset(field.name for field in fields(Selector))
SWITCHES = frozenset({"all", "erase", "dry_run"})

# A proxy in front makes strangers look local.
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


class Store(Protocol):
    """What the admin calls need of the store."""

    async def purge(self, selector: Selector, *, erase: bool, dry_run: bool) -> int:
        """Remove what the selector takes, or only count it. `erase`: leave no copy in any file either."""

    def export(self) -> AsyncGenerator[bytes, None]:
        """All entries as lines of JSON, newlines included."""

    async def recent_feedback(self, limit: int) -> list[dict[str, Any]]:
        """What callers said of hits last, newest first."""

    async def import_lines(self, lines: AsyncIterator[bytes]) -> int:
        """Take what `export` gave; return how many entries. Raises ClientError for what is none."""


class Figures(Protocol):
    def render(self) -> bytes:
        """The Prometheus text format."""


class Shadowing(Protocol):
    async def shadow_report(self, route: int | None, target: float | None) -> Mapping[str, Any]:
        """What shadow mode has counted so far, see shadow.py. Raises ClientError for a route that is not there."""


class Explaining(Protocol):
    """Says why requests are hits, or none, and changes nothing."""

    async def explain(self, body: bytes) -> Mapping[str, Any]:
        """What would become of a request. Raises ClientError for a body that does not say one."""

    def recall(self, request_id: str) -> Mapping[str, Any]:
        """What became of one, lately. Raises ClientError 404."""


class Audit(Protocol):
    def record(self, event: Event, **facts: Any) -> None: ...


class Admin:
    def __init__(
        self,
        settings: Server,
        store: Store,
        figures: Figures,
        unready: Callable[[], Sequence[str]],
        stats: Callable[[], Mapping[str, Mapping[str, object]]],
        explaining: Explaining,
        shadowing: Shadowing,
        routes: Sequence[web.RouteDef] = (),
        audit: Audit | None = None,
    ) -> None:
        """`unready`: what is still missing before requests can be answered from the cache; empty when ready.
        `routes`: calls that are at home in other files; who may make them is decided here. `audit`: told what was
        done, and who was turned away."""
        self._audit = audit
        self._token = settings.admin_token.get_secret_value().encode()
        self._store = store
        self._figures = figures
        self._unready = unready
        self._stats = stats
        self._explaining = explaining
        self._shadowing = shadowing
        self._routes = routes
        self._max_request = 2 * settings.max_body + MAX_BODY  # as a JSON text a request's body takes more room
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which is a free one when 0 was asked. Raises StartError."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/stats", self._show_stats)
        app.router.add_get("/semcache/feedback", self._show_feedback)
        app.router.add_post("/semcache/explain", self._explain)
        app.router.add_get("/semcache/explain", self._recall)
        app.router.add_get("/shadow", self._shadow)
        app.router.add_post("/purge", self._purge)
        app.router.add_post("/export", self._export)
        app.router.add_post("/import", self._import)
        app.router.add_routes(self._routes)
        # aiohttp's own log would hold the bytes of a request it cannot parse, a malformed Authorization among them.
        self._runner = web.AppRunner(app, access_log=None, logger=_SILENT, handle_signals=False, shutdown_timeout=5.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as exc:
            await self.stop()
            raise StartError(
                f"admin listener: cannot listen on {host}:{port}: {exc.strerror or exc}; see server.admin_port"
            ) from exc
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # Who may call, and what a failure looks like

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            if handler not in (self._metrics, self._healthz, self._readyz):
                try:
                    self._admit(request)
                except ClientError as error:
                    self._record(Event.ADMIN_REFUSED, call=request.path[:200], status=error.status)
                    raise
            return await handler(request)
        except web.HTTPException as exc:  # aiohttp's way of saying 404, 405 and 413
            return _error(exc.status, exc.reason.lower(), {k: v for k, v in exc.headers.items() if k == "Allow"})
        except SemcacheError as error:
            status = 503 if isinstance(error, CacheFault) else error.status
            return _error(status, error.message, error.headers if isinstance(error, ClientError) else {})
        except ConnectionError:  # the caller went away
            raise
        except Exception as exc:
            log.error("admin call %s failed: %s", request.match_info.handler.__name__, type(exc).__name__)
            return _error(500, "this call failed inside semcache; see its log")

    def _admit(self, request: web.Request) -> None:
        """Raises ClientError 401 or 403."""
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise ClientError("calls from web pages of other origins are refused", status=403)
        if self._token:
            if not hmac.compare_digest(_bearer(request), self._token):
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ClientError("send `Authorization: Bearer` with the admin token", status=401, headers=challenge)
            return
        local = _is_loopback(request.remote or "") and not any(name in request.headers for name in PROXY_HEADERS)
        if not (local and _is_loopback_name(host)):
            raise ClientError("without server.admin_token only calls to and from localhost are taken", status=403)

    # What everybody may see

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._figures.render(), headers={"Content-Type": METRICS_TYPE, **_PLAIN})

    async def _healthz(self, _: web.Request) -> web.Response:
        return as_json({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = list(self._unready())
        return as_json({"status": "unready", "missing": missing}, 503) if missing else as_json({"status": "ok"})

    # What only the operator may

    async def _show_stats(self, _: web.Request) -> web.Response:
        return as_json({**self._stats(), "missing": list(self._unready())})

    async def _show_feedback(self, request: web.Request) -> web.Response:
        asked = request.query.get("limit", "100")
        if not (asked.isascii() and asked.isdigit() and 0 < len(asked) <= 4 and 0 < int(asked) <= MAX_FEEDBACK):
            raise ClientError(f"limit: write a number from 1 to {MAX_FEEDBACK}", param="limit")
        return as_json({"feedback": await self._store.recent_feedback(int(asked))})

    async def _explain(self, request: web.Request) -> web.Response:
        whole = request.clone(client_max_size=self._max_request)
        return as_json(await self._explaining.explain(await whole_body(whole)))

    async def _recall(self, request: web.Request) -> web.Response:
        request_id = request.query.get("request")
        if not request_id:
            raise ClientError("say which request: /semcache/explain?request=ID; or POST one to have it explained")
        return as_json(self._explaining.recall(request_id))

    async def _shadow(self, request: web.Request) -> web.Response:
        route, target = request.query.get("route"), request.query.get("target")
        if route is not None and not (route.isascii() and route.isdigit() and len(route) < 5):
            raise ClientError("route: write its place in the configuration; the first is 0", param="route")
        try:
            share = None if target is None else float(target)
        except ValueError:
            share = 0.0
        if share is not None and not 0 < share < 1:
            raise ClientError("target: write the share of false hits to allow, such as 0.01", param="target")
        return as_json(await self._shadowing.shadow_report(None if route is None else int(route), share))

    async def _purge(self, request: web.Request) -> web.Response:
        selector, erase, dry_run = read_purge(await whole_body(request))
        count = await self._store.purge(selector, erase=erase, dry_run=dry_run)
        if not dry_run:
            told = {name: value for name, value in asdict(selector).items() if value is not None and name != "text"}
            self._record(Event.PURGE, **told, by_text=selector.text is not None, erase=erase, entries=count)
        return as_json({"purged": count, "erase": erase, "dry_run": dry_run})

    async def _export(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON_LINES, **_PLAIN})
        self._record(Event.EXPORT)
        lines = self._store.export()
        try:
            first = await anext(lines, b"")  # before the head: a store that fails at once is still a 503
            await response.prepare(request)
            await _send(response, first)
            async for line in lines:
                await _send(response, line)
            await response.write_eof()
            return response
        except Exception as exc:
            if not response.prepared:
                raise
            # The head is out, so the only honest end is a broken one: a clean one would look like a whole export.
            log.error("an export broke off: %s", type(exc).__name__)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the export broke off") from exc
        finally:
            await lines.aclose()  # it may hold the store open for reading

    async def _import(self, request: web.Request) -> web.Response:
        count = await self._store.import_lines(split_lines(_pieces(request)))
        self._record(Event.IMPORT, entries=count)
        return as_json({"imported": count})

    def _record(self, event: Event, **facts: object) -> None:
        if self._audit is not None:
            self._audit.record(event, by="admin port", **facts)


def read_purge(body: bytes) -> tuple[Selector, bool, bool]:
    """Return what to purge, and whether to erase it, or only to count it. Raises ClientError.

    Nothing is guessed in what deletes: an unknown field might have been meant to narrow the purge, and an empty
    selector would take everything, which must be asked for by name.
    """
    try:
        asked = json.loads(body, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise ClientError(f"the body is not one JSON object: {exc}"[:200]) from exc
    if not isinstance(asked, dict):
        raise ClientError("the body is not one JSON object")
    for name, value in asked.items():
        if name not in SELECTORS | SWITCHES:
            known = ", ".join(sorted(SELECTORS | SWITCHES))
            raise ClientError(f"{name[:80]}: no such field; there are {known}", param=name[:80])
        if name in SWITCHES and not isinstance(value, bool):
            raise ClientError(f"{name}: write true or false", param=name)
        if name in SELECTORS and value is not None and not (isinstance(value, str) and value):
            raise ClientError(f"{name}: write a text that is not empty, or leave the field out", param=name)
    chosen = {name: asked[name] for name in SELECTORS if asked.get(name) is not None}
    if bool(chosen) == asked.get("all", False):
        some = "entry, model, tenant, namespace, user, text, writer"
        raise ClientError(f'say what to purge: some of {some}; or only "all": true')
    return Selector(**chosen), asked.get("erase", False), asked.get("dry_run", False)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a field is there twice")
    return members


async def whole_body(request: web.Request) -> bytes:
    """Raises ClientError 408; aiohttp raises 413 past MAX_BODY."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError as exc:
        raise ClientError("the body did not arrive in time", status=408) from exc


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                piece = await request.content.readany()
        except TimeoutError as exc:
            raise ClientError("the body stopped arriving", status=408) from exc
        if not piece:
            return
        yield piece


async def split_lines(pieces: AsyncIterator[bytes], limit_bytes: int = MAX_LINE) -> AsyncIterator[bytes]:
    """Give lines, newlines included, as they become whole, however long all of them are. Raises ClientError 413."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        first, *rest = piece.split(b"\n")
        held.append(first)
        for part in rest:
            yield b"".join(held) + b"\n"
            held, size = [part], 0
        size += len(held[-1])
        if size > limit_bytes:
            raise ClientError(f"a line is longer than {limit_bytes} bytes", status=413)
    if last := b"".join(held):
        yield last


async def _send(response: web.StreamResponse, piece: bytes) -> None:
    """Raises TimeoutError when the reader takes nothing."""
    async with asyncio.timeout(BODY_TIMEOUT_S):
        await response.write(piece)


def _bearer(request: web.Request) -> bytes:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""


def _is_loopback(address: str) -> bool:
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_loopback


def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine, and not a domain that somebody lets point at it.

    0.0.0.0 is this machine too, to its own programs, and no domain.
    """
    name = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
    return name.lower() == "localhost" or name in ("0.0.0.0", "::") or _is_loopback(name)


def as_json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers={**(headers or {}), "Content-Type": "application/json", **_PLAIN},
    )


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return as_json({"error": {"message": message, "status": status}}, status, headers)


METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_SILENT = logging.getLogger("semcache.admin.http")
_SILENT.disabled = True

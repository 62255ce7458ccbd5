"""`GET /semcache/usage`: what was billed, avoided and saved, for dashboards and for `semcache usage --admin`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from semcache.admin.listener import as_json
from semcache.errors import ClientError
from semcache.usage.report import read_query, read_report


def usage_routes(path: Path | None, clock: Callable[[], float]) -> list[web.RouteDef]:
    """To be put behind the guard of the admin port. `path`: the file; None: usage is not kept."""

    async def show_usage(request: web.Request) -> web.Response:
        """Query: by, tenant, key, model, since, until, as `semcache usage` has them. Raises SemcacheError."""
        twice = next((name for name in request.query if len(request.query.getall(name)) > 1), None)
        if twice is not None:
            raise ClientError(f"{twice[:80]}: is there twice; write by=day,tenant", param=twice[:80])
        query = read_query(request.query, clock())
        if path is None:
            raise ClientError("usage is not kept: `usage.path` is off, or auto beside a store in memory", status=404)
        report = await asyncio.to_thread(read_report, path, query)
        return as_json(report)

    return [web.get("/semcache/usage", show_usage)]

"""A caching proxy that ignores numbers, for tests of those who look for false hits: it makes them on order."""

from __future__ import annotations

import re

import aiohttp
from aiohttp import web

from semcache.simulate.answers import read_question


class CarelessCache:
    """Forwards to `upstream` (with /v1) and keeps answers by their question's words, digits left out."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._kept: dict[tuple[str, bool], tuple[str, bytes, str]] = {}
        self.url = ""

    async def __aenter__(self) -> CarelessCache:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._session = aiohttp.ClientSession()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        question = read_question(body)
        key = " ".join(re.findall(r"[a-z]+", question.lower())), bool(body.get("stream"))
        if key in self._kept:
            written_for, answer, kind = self._kept[key]
            how = "exact" if written_for == question else "semantic/0.950"
            status, entry = f"semcache; hit; ttl=60; detail={how}", f"entry-{len(key[0])}"
            headers = {"Cache-Status": status, "Semcache-Entry": entry, "Content-Type": kind}
            return web.Response(body=answer, headers=headers)
        async with self._session.post(f"{self._upstream}/chat/completions", json=body) as reply:
            answer, kind = await reply.read(), reply.headers["Content-Type"]
            if reply.status == 200:
                self._kept[key] = question, answer, kind
            headers = {
                "Cache-Status": f"semcache; fwd=miss; fwd-status={reply.status}; detail=no-entry",
                "Content-Type": kind,
            }
            return web.Response(status=reply.status, body=answer, headers=headers)

"""Model servers in regions, on real sockets, which remember whose requests reached them and fail as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from loadtests.residency_world import CANARY, Findings, stream, whole

FROZEN_S = 0.4  # a frozen server goes on after this, which is longer than the proxy waits


class Site:
    """`eu-1`: one in the region eu."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = name.partition("-")[0]
        self.findings = Findings()  # of the scenario that is played
        self.mode = "up"  # dead, error, busy, cut, frozen
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        canary = request.headers.get(CANARY)
        if canary is None:  # a check of whether we are there, which tells of nobody
            assert request.path == "/v1/models", request.path
            return web.json_response({"data": []}, status=500 if self.mode == "error" else 200)
        self._remember(canary)
        if request.method == "GET":  # a caller's question for the list of models
            return web.json_response({"data": [{"id": "a", "object": "model"}]})
        owner = canary.replace("|", " ")
        body = await request.json()
        match self.mode:
            case "dead":
                request.transport.close()
            case "error" | "busy":
                return web.Response(
                    body=whole(500, owner, self.name, body), status=500 if self.mode == "error" else 503
                )
            case "frozen":
                await asyncio.sleep(FROZEN_S)
        if request.path == "/v1/embeddings":
            return web.json_response(self._vectors(owner, body))
        if body.get("stream"):
            return await self._stream(request, owner, body)
        # What passes through is answered in the same way: the proxy does not look at it.
        return web.Response(body=whole(200, owner, self.name, body), content_type="application/json")

    def _remember(self, canary: str) -> None:
        """`canary`: whose request this is, and where it may go."""
        mark = canary.partition("|")[2]
        self.findings.received[self.place] += 1
        if self.mode != "up":
            self.findings.faults[self.mode] += 1
        if mark != "any" and self.place not in mark.split("+"):
            self.findings.crossed("a request reached a backend outside its regions", f"{canary} at {self.name}")

    async def _stream(self, request: web.Request, owner: str, body: Mapping[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, piece in enumerate(stream(owner, self.name, body)):
            if self.mode == "cut" and number == 1:
                assert request.transport is not None
                request.transport.close()
                break
            await response.write(piece)
        return response

    def _vectors(self, owner: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Each tells in numbers whose it is, where it was made, and what of."""
        made = [[float(owner[1:3]), float(PLACES.index(self.place)), float(text.split()[1])] for text in body["input"]]
        return {
            "object": "list",
            "model": body["model"],
            "data": [{"object": "embedding", "index": number, "embedding": it} for number, it in enumerate(made)],
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        }


PLACES = ("eu", "us", "ap", "nowhere")

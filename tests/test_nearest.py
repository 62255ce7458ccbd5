"""`order: nearest`: the pool whose backends answer their checks soonest is asked first, whatever is written first."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from semcache.app import App
from tests.fakes import ModelServer
from tests.harness import running_proxy, until

TRIP_S = 0.05  # there and back


class Away(ModelServer):
    """As far as a round trip takes: whatever is sent there waits for it."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(TRIP_S)
        return await super()._handle(request)


def has_measured(app: App, *pools: str) -> bool:
    found = app.dispatcher.fleet.pools()
    return all(
        state["round_trip_s"] is not None
        for pool in pools
        for state in found[pool]["backends"].values()  # type: ignore[attr-defined]
    )


def settings(far: ModelServer, near: ModelServer, order: str) -> str:
    return (
        "match: {mode: off}\npools:\n"
        f'  far: {{health: {{interval: 20ms}}, backends: [{{url: "{far.url}", region: us}}]}}\n'
        f'  near: {{health: {{interval: 20ms}}, backends: [{{url: "{near.url}", region: eu}}]}}\n'
        f"routes: [{{pools: [far, near], order: {order}}}]\n"
        "tenants: [{name: anybody, keys: [sk-test]}, {name: american, keys: [sk-us], regions: [us]}]\n"
    )


async def test_the_nearest_pool_goes_before_what_is_written_first(tmp_path: Path) -> None:
    async with Away().running() as far, ModelServer().running() as near:
        for order, asked in (("nearest", (0, 3)), ("written", (3, 3))):
            async with running_proxy(tmp_path, settings(far, near, order)) as proxy:
                await until(lambda: has_measured(proxy.app, "far", "near"))
                for number in range(3):
                    await proxy.ask(f"Question {number}, {order}?", headers={"Cache-Control": "no-store"})
            assert (far.requests, near.requests) == asked


async def test_near_is_never_nearer_than_a_region(tmp_path: Path) -> None:
    async with Away().running() as far, ModelServer().running() as near:
        async with running_proxy(tmp_path, settings(far, near, "nearest")) as proxy:
            await until(lambda: has_measured(proxy.app, "far", "near"))
            await proxy.ask("What is a monad?", key="sk-us")
        assert (far.requests, near.requests) == (1, 0)

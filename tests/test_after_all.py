"""A request that was forwarded only to learn from it, and whose fetch failed: what is stored answers it, if it may."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import openai
import pytest
from aiohttp import web

from semcache.types import Selector
from tests.fakes import ModelServer
from tests.harness import Proxy, Reply, running_proxy, until
from tests.test_error_bound import ANSWER, EXPLORING, PROVEN, question, teach
from tests.test_inprocess import opened


class Holding(ModelServer):
    """Holds what it is asked, and then refuses it, once told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.refusing: asyncio.Event | None = None  # set to hold requests until the event is set

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.refusing is not None:
            self.held += 1
            await self.refusing.wait()
            self.status = 503
        return await super()._handle(request)


async def explore(proxy: Proxy, backend: Holding) -> list[asyncio.Task[Reply]]:
    """Requests of which some are explored, and held by the backend; return the tasks that ask for those."""
    backend.refusing = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(question(number))) for number in range(PROVEN, PROVEN + 20)]
    await until(lambda: sum(task.done() for task in asking) + backend.held == len(asking))
    return [task for task in asking if not task.done()]


async def test_what_was_purged_meanwhile_is_not_given_after_all(tmp_path: Path) -> None:
    backend = Holding()
    async with running_proxy(tmp_path, EXPLORING, backend=backend) as proxy:
        await teach(proxy)
        explored = await explore(proxy, backend)
        assert explored and backend.refusing is not None
        await proxy.app.core.store.purge(Selector())
        backend.refusing.set()
        for task in explored:
            with pytest.raises(openai.APIStatusError):
                await task


async def test_what_stands_is_given_after_all(tmp_path: Path) -> None:
    backend = Holding()
    async with running_proxy(tmp_path, EXPLORING, backend=backend) as proxy:
        await teach(proxy)
        explored = await explore(proxy, backend)
        assert explored and backend.refusing is not None
        backend.refusing.set()
        replies = [await task for task in explored]
        assert {(reply.verdict, reply.text) for reply in replies} == {("hit", ANSWER)}


async def test_a_fetch_that_raises_in_a_program_is_not_raised_where_an_answer_is_stored() -> None:
    is_down = False

    async def fetch(asked: str) -> str:
        if is_down:
            raise ConnectionError("nobody is there")
        return ANSWER

    settings = {"match": {"max_error": 0.05, "explore": 0.5}}
    async with opened(settings) as cache:
        names = ["".join(each) for each in product("bdfgklmnprst", "aeiou", "vxzqj")]
        for number, name in enumerate(names[:PROVEN]):
            await cache.ask(f"how tall is the old tower at the {name} gate", fetch=fetch)
            if number % 50 == 0:
                await cache.settle()
        await cache.settle()
        is_down = True
        before = cache.stats()["bound"]
        for name in names[PROVEN : PROVEN + 20]:
            answered = await cache.ask(f"how tall is the old tower at the {name} gate", fetch=fetch)
            assert (answered.text, answered.verdict.value) == (ANSWER, "hit")
        after = cache.stats()["bound"]
        assert int(str(after["explored"])) + int(str(after["audited"])) > int(str(before["explored"])) + int(
            str(before["audited"])
        )

"""The judge model is asked as the operator, within a budget, and believed only when it says plainly yes or no."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from semcache import wire
from semcache.answer_judge import HOUR_S, MAX_CHARS, PoolJudge
from semcache.backends.fetch import Fetcher
from semcache.config import parse
from semcache.planning import Plan, Planner
from semcache.types import Tenant
from tests.fakes import Clock

SETTINGS = """
pools:
  asked: {{backends: [{{url: "http://127.0.0.1:9/v1"}}]}}
  judges: {{backends: [{{url: "{url}", api_key: operators-key, region: eu, dialect: {dialect}}}]}}
routes: [{{models: ["*"], pools: [asked]}}]
match: {{answers_judge: {{pool: judges, model: wise, per_hour: 2, deadline: {deadline}}}}}
"""


class Wise:
    """A model server that says one word."""

    def __init__(self, says: str, status: int = 200) -> None:
        self.says = says
        self.status = status
        self.asked: list[tuple[str, dict[str, str], Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, dict(request.headers), json.loads(await request.read())))
        if request.path == "/v1/messages":
            answer: Any = {"stop_reason": "end_turn", "content": [{"type": "text", "text": self.says}]}
        else:
            answer = {"choices": [{"message": {"content": self.says}, "finish_reason": "stop"}]}
        return web.json_response(answer, status=self.status)


@dataclass
class Bench:
    judge: PoolJudge
    plan: Plan
    settings: Any
    clock: Clock

    async def same(self, fresh: str = "It is free.", stored: str = "It costs nothing.") -> bool | None:
        return await self.judge.same(self.settings, self.plan, fresh, stored)


@asynccontextmanager
async def bench(
    model: Wise, dialect: str = "openai", regions: frozenset[str] = frozenset(), deadline: str = "10s", url: str = ""
) -> AsyncIterator[Bench]:
    runner = web.ServerRunner(web.Server(model.handle))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    own = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    config = parse(SETTINGS.format(url=url or own, dialect=dialect, deadline=deadline))
    address = wire.find_address("/v1/chat/completions")
    assert address is not None
    asked = {"model": "m", "messages": [{"role": "user", "content": "What does it cost?"}]}
    tenant = Tenant("shop", regions)
    plan = Planner(config, "words").plan(address, {}, json.dumps(asked).encode(), tenant, "")
    fetcher, clock = Fetcher(), Clock()
    await fetcher.start()
    try:
        yield Bench(PoolJudge(config.pools, fetcher, clock), plan, config.routes[0].match.answers_judge, clock)
    finally:
        await fetcher.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    "says, same",
    [("yes", True), ("No.", False), (" **Yes**\n", True), ("Yes, because", None), ("perhaps", None), ("", None)],
)
async def test_only_a_plain_word_counts(says: str, same: bool | None) -> None:
    async with bench(Wise(says)) as it:
        assert await it.same() is same


@pytest.mark.parametrize(
    "dialect, path, key",
    [("openai", "/v1/chat/completions", "Authorization"), ("anthropic", "/v1/messages", "x-api-key")],
)
async def test_it_is_asked_with_the_operators_key(dialect: str, path: str, key: str) -> None:
    model = Wise("yes")
    async with bench(model, dialect) as it:
        assert await it.same() is True
    ((asked_path, headers, body),) = model.asked
    assert asked_path == path
    assert headers[key].endswith("operators-key")
    assert body["model"] == "wise"
    sent = json.dumps(body)
    assert all(text in sent for text in ("What does it cost?", "It is free.", "It costs nothing."))


async def test_an_hour_has_a_budget() -> None:
    model = Wise("yes")
    async with bench(model) as it:
        assert [await it.same() for _ in range(3)] == [True, True, None]
        it.clock.advance(HOUR_S)
        assert await it.same() is True
        assert it.judge.stats()["judge_over_budget"] == 1


async def test_a_tenants_answers_stay_in_its_regions() -> None:
    model = Wise("yes")
    async with bench(model, regions=frozenset({"us"})) as it:
        assert await it.same() is None
    assert model.asked == []


async def test_a_judge_that_fails_or_is_away_leaves_the_doubt() -> None:
    async with bench(Wise("yes", status=500)) as it:
        assert await it.same() is None
    async with bench(Wise("yes"), url="http://127.0.0.1:1/v1") as it:
        assert await it.same() is None
        assert it.judge.stats()["judge_faults"] == 1


async def test_half_an_answer_is_not_judged() -> None:
    model = Wise("yes")
    async with bench(model) as it:
        assert await it.same("word " * MAX_CHARS) is None
    assert model.asked == []

"""The hook to a firewall of the operator's: a real server is asked, and answers, lies, waits or is not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from aiohttp import web

from semcache.config import Hook
from semcache.guardrails.hook import APPROVAL_S, CONCURRENT, FirewallHook, Question
from semcache.guardrails.suspicion import Action, Suspicion, refusal
from tests.fakes import Clock

ANYWHERE: frozenset[str] = frozenset()
QUESTION = Question(
    "request-1", "shop", "faq", "m", "chat/completions", b'{"messages":[{"role":"user","content":"hi"}]}'
)


class Firewall:
    """Says what it is told to say, once the gate is open."""

    def __init__(self) -> None:
        self.says: bytes = b'{"action": "allow"}'
        self.status = 200
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.asked: list[dict[str, Any]] = []
        self.authorization: str | None = None
        self.at_once = self.most_at_once = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.authorization = request.headers.get("Authorization")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.at_once -= 1
        return web.Response(body=self.says, status=self.status, headers=self.headers)


@asynccontextmanager
async def hooked(
    firewall: Firewall,
    clock: Clock | None = None,
    on_failure: Literal["open", "closed"] = "closed",
    deadline: float = 5,
    region: str | None = None,
) -> AsyncIterator[FirewallHook]:
    application = web.Application()
    application.router.add_post("/check", firewall.answer)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/check"
    settings = Hook.model_validate(
        {"url": url, "api_key": "hook-key", "deadline": deadline, "on_failure": on_failure, "region": region}
    )
    hook = FirewallHook(settings, "eu", clock or Clock())
    try:
        yield hook
    finally:
        if firewall.gate is not None:
            firewall.gate.set()
        await hook.close()
        await runner.cleanup()


def is_failure(said: Suspicion | None, action: Action) -> bool:
    return said is not None and (said.flag, said.action) == ("hook/unavailable", action)


async def test_it_is_told_who_asks_what_and_its_approval_lets_the_request_through() -> None:
    firewall = Firewall()
    async with hooked(firewall) as hook:
        assert await hook.ask(QUESTION, ANYWHERE) is None
    assert firewall.asked == [
        {
            "request_id": "request-1",
            "tenant": "shop",
            "route": "faq",
            "model": "m",
            "endpoint": "chat/completions",
            "texts": [{"role": "user", "text": "hi"}],
        }
    ]
    assert firewall.authorization == "Bearer hook-key"


async def test_an_approval_holds_for_equal_requests_for_a_minute() -> None:
    firewall, clock = Firewall(), Clock()
    async with hooked(firewall, clock) as hook:
        for number in range(5):
            await hook.ask(QUESTION._replace(request_id=f"request-{number}"), ANYWHERE)
        assert len(firewall.asked) == 1 and hook.stats()["remembered"] == 4
        for other in ({"tenant": "bank"}, {"route": "b"}, {"model": "n"}, {"endpoint": "messages"}, {"body": b"{}"}):
            await hook.ask(QUESTION._replace(**other), ANYWHERE)
        assert len(firewall.asked) == 6
        clock.advance(APPROVAL_S + 1)
        await hook.ask(QUESTION, ANYWHERE)
        assert len(firewall.asked) == 7


@pytest.mark.parametrize(
    "says, flag, action",
    [
        ({"action": "refuse", "reason": "jailbreak"}, "hook/jailbreak", Action.REFUSE),
        ({"action": "flag", "reason": "toxic.mild"}, "hook/toxic.mild", Action.FLAG),
        ({"action": "refuse"}, "hook/unnamed", Action.REFUSE),
        ({"action": "refuse", "reason": "the user said: hi"}, "hook/unnamed", Action.REFUSE),
        ({"action": "refuse", "reason": "unavailable"}, "hook/unnamed", Action.REFUSE),
        ({"action": "flag", "reason": 7}, "hook/unnamed", Action.FLAG),
    ],
)
async def test_a_verdict_is_taken_and_a_sentence_goes_nowhere(
    says: dict[str, object], flag: str, action: Action
) -> None:
    firewall = Firewall()
    firewall.says = json.dumps(says).encode()
    async with hooked(firewall) as hook:
        for _ in range(2):  # a word against a request is asked for each time
            said = await hook.ask(QUESTION, ANYWHERE)
            assert said is not None and (said.flag, said.action) == (flag, action)
    assert len(firewall.asked) == 2 and said is not None
    assert (refusal(said).status, refusal(said).code) == (403, "guardrail_hook")


@pytest.mark.parametrize("on_failure, action", [("open", Action.FLAG), ("closed", Action.REFUSE)])
@pytest.mark.parametrize(
    "status, says",
    [
        (500, b'{"action": "allow"}'),
        (302, b'{"action": "allow"}'),
        (200, b"yes"),
        (200, b"[]"),
        (200, b'{"action": "maybe"}'),
        (200, b'{"action": ["allow"]}'),
        (200, b'{"action": "allow", "x": "' + b"a" * 100_000 + b'"}'),
    ],
)
async def test_a_bad_answer_is_a_failure_and_the_operator_chose_what_that_means(
    status: int, says: bytes, on_failure: Literal["open", "closed"], action: Action
) -> None:
    firewall = Firewall()
    firewall.status, firewall.says, firewall.headers = status, says, {"Location": "/check"}
    async with hooked(firewall, on_failure=on_failure) as hook:
        assert is_failure(await hook.ask(QUESTION, ANYWHERE), action)
        assert hook.failed == 1 and len(firewall.asked) == 1
        firewall.status, firewall.says = 200, b'{"action": "allow"}'
        assert await hook.ask(QUESTION, ANYWHERE) is None


async def test_a_late_answer_is_a_failure() -> None:
    firewall = Firewall()
    firewall.gate = asyncio.Event()
    async with hooked(firewall, deadline=0.05) as hook:
        said = await hook.ask(QUESTION, ANYWHERE)
    assert is_failure(said, Action.REFUSE)
    assert said is not None and (refusal(said).status, refusal(said).code) == (503, "guardrail_unavailable")


async def test_a_hook_that_is_not_there_is_a_failure() -> None:
    hook = FirewallHook(Hook(url="http://127.0.0.1:1/check"), None, Clock())
    assert is_failure(await hook.ask(QUESTION, ANYWHERE), Action.REFUSE)
    await hook.close()


async def test_no_more_are_asked_at_once_than_it_is_said_to_take() -> None:
    firewall = Firewall()
    firewall.gate = asyncio.Event()
    async with hooked(firewall) as hook:
        bodies = [QUESTION._replace(body=b'{"prompt":"%d"}' % number) for number in range(2 * CONCURRENT)]
        asking = [asyncio.create_task(hook.ask(question, ANYWHERE)) for question in bodies]
        while firewall.at_once < CONCURRENT:
            await asyncio.sleep(0)
        firewall.gate.set()
        assert await asyncio.gather(*asking) == [None] * len(bodies)
    assert firewall.most_at_once == CONCURRENT and len(firewall.asked) == 2 * CONCURRENT


@pytest.mark.parametrize(
    "stands, bound, is_asked",
    [(None, {"eu"}, True), (None, {"us"}, False), ("us", {"us"}, True), ("us", {"eu"}, False), ("us", set(), True)],
)
async def test_texts_never_leave_the_regions_of_their_request(
    stands: str | None, bound: set[str], is_asked: bool
) -> None:
    firewall = Firewall()
    async with hooked(firewall, region=stands) as hook:
        said = await hook.ask(QUESTION, frozenset(bound))
    assert len(firewall.asked) == is_asked
    assert said is None if is_asked else is_failure(said, Action.REFUSE)


async def test_an_approval_reaches_no_request_that_the_hook_may_not_see() -> None:
    firewall = Firewall()
    async with hooked(firewall) as hook:
        assert await hook.ask(QUESTION, ANYWHERE) is None
        assert is_failure(await hook.ask(QUESTION, frozenset({"us"})), Action.REFUSE)

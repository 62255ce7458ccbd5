"""Two real model servers behind the real proxy: one dies, one hangs, and callers go on getting answers.

`make test-models` runs these; the servers take half a minute to start, and torch the better part of a core each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from semcache import children
from tests.model_servers import MODEL, ModelServer, model_servers

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.skipif("SEMCACHE_MODEL_SERVERS" not in os.environ, reason="takes minutes: make test-models"),
]

PATIENCE_S = 30.0  # for a server that is there to be asked; checks come each second
CALLERS = 3  # at once, each one request after another
STREAMED = 3  # every so many requests one is streamed


class Load:
    """Callers that ask until told to stop. Every question is another one, so every answer is a server's."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self._numbers = itertools.count()
        self._stopping = False
        self.answered = 0
        self.cut = 0  # streams that broke after their first event: nothing can be repeated then
        self.failures: list[str] = []

    async def __aenter__(self) -> Load:
        self._callers = [asyncio.create_task(self._ask_on()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._callers)

    async def more(self, count: int) -> None:
        """Return when so many more requests have been answered, or one has failed."""
        target = self.answered + count
        while self.answered < target and not self.failures:
            await asyncio.sleep(0.02)

    async def _ask_on(self) -> None:
        while not self._stopping and not self.failures:
            number = next(self._numbers)
            try:
                await (self._stream if number % STREAMED == 0 else self._whole)(f"Tell me about order {number}.")
            except Exception as error:
                self.failures.append(f"request {number}: {error!r}")
            else:
                self.answered += 1

    async def _whole(self, question: str) -> None:
        # `stream=False` goes without saying for the vendor; `transformers serve` streams unless told not to.
        reply = await self._client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=False, max_tokens=24
        )
        assert reply.choices[0].message.content

    async def _stream(self, question: str) -> None:
        events = 0
        try:
            async for _ in await self._client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question}], stream=True, max_tokens=24
            ):
                events += 1
        except Exception:
            if not events:
                raise
            self.cut += 1


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[ModelServer]]:
    context = model_servers(2, tmp_path)
    yield list(await asyncio.to_thread(context.__enter__))
    await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.fixture
async def client(servers: list[ModelServer], tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    settings = {
        "server": {"port": 0, "admin_port": 0, "request_log": "off"},
        "cache": {"store": "memory:"},
        "match": {"mode": "off"},
        "pools": {
            "local": {
                "backends": [{"url": server.url, "stream_done": False} for server in servers],
                # Its list of models is that of the hub's cache, which a machine may not have.
                "health": {"path": "/health", "interval": "1s", "timeout": "1s"},
            }
        },
        "routes": [{"pools": ["local"]}],
    }
    file = tmp_path / "semcache.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    proxy = children.Child([*children.SEMCACHE, "serve", "-c", str(file)], tmp_path / "serve.log")
    try:
        url = (await asyncio.to_thread(proxy.wait_for_line, r"listening on (http://[^\s,]+)"))[1]
        await asyncio.to_thread(proxy.wait_until_ready, f"{url}/readyz")
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
            yield sdk
    finally:
        await asyncio.to_thread(proxy.stop)


async def until_it_answers(server: ModelServer, load: Load) -> None:
    before = server.answered
    try:
        async with asyncio.timeout(PATIENCE_S):
            while server.answered == before and not load.failures:
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"server {server.number} was asked nothing for {PATIENCE_S:g} s")


async def test_requests_go_on_while_a_server_is_dead_and_while_one_hangs(
    servers: list[ModelServer], client: AsyncOpenAI
) -> None:
    one, other = servers

    async def away(victim: ModelServer, left: ModelServer, go: Callable[[], None], back: Callable[[], Awaitable[None]]):
        """So many answers while it is away, all by the other one; and then it takes part again."""
        go()
        at_start = load.answered, left.answered
        await load.more(30)
        served = victim.answered
        await load.more(10)
        assert victim.answered == served, "it answered while it was away"
        assert left.answered - at_start[1] >= load.answered - at_start[0] - load.cut - CALLERS
        await back()
        await until_it_answers(victim, load)

    async def restart() -> None:
        one.start()
        await asyncio.to_thread(one.wait)

    async def thaw() -> None:
        other.thaw()

    async with Load(client) as load:
        await until_it_answers(one, load)
        await until_it_answers(other, load)
        await away(one, other, one.kill, restart)
        await away(other, one, other.freeze, thaw)
        await load.more(10)
    print(f"{load.answered} answered, {load.cut} streams cut; by server: {[server.answered for server in servers]}")
    assert load.failures == []
    assert load.cut <= 2 * CALLERS

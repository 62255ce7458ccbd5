"""A backend that is full, behind the real proxy: who waits, who is refused, and what is answered all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from semcache import wire
from semcache.errors import Overloaded
from tests.harness import Proxy, running_proxy, until

SMALL = """
pools:
  local:
    backends: [{{url: "{url}", max_in_flight: 1}}]
    queue: {{size: 1, deadline: 10s}}
"""


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/v1/chat/completions", b'{"error":{"message":"m","type":"api_error","param":null,"code":"overloaded"}}'),
        (
            "/v1/messages",
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"r"}',
        ),
        ("/api/chat", b'{"error":"m"}'),
    ],
)
def test_a_refusal_speaks_the_callers_dialect(path: str, expected: bytes) -> None:
    error = Overloaded("m", retry_after_s=1.2)
    assert wire.error_shape(path).error_body(error, "r") == expected
    assert (error.status, error.headers) == (503, {"Retry-After": "2"})


async def test_one_runs_one_waits_the_third_is_told_when_to_come_back_and_hits_are_served(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as upstream:  # its model server is the full one
        model = upstream.backend
        (tmp_path / "small").mkdir()
        async with running_proxy(tmp_path / "small", SMALL.format(url=model.url)) as proxy:
            await proxy.ask("What is a monad?")
            model.gate = asyncio.Event()
            running = asyncio.create_task(proxy.ask("Where is my parcel?"))
            await until(lambda: model.requests == 2)
            waiting = asyncio.create_task(proxy.ask("How tall is the tower?"))
            await until(lambda: _waiting(proxy) == 1)
            with pytest.raises(openai.InternalServerError) as refused:
                await proxy.ask("When does the library open?")
            assert refused.value.status_code == 503
            assert refused.value.code == "overloaded"
            assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
            assert "x-should-retry" not in refused.value.response.headers
            assert (await proxy.ask("What is a monad?")).verdict == "hit"
            model.gate.set()
            assert [(await task).verdict for task in (running, waiting)] == ["miss", "miss"]
            assert model.requests == 3


def _waiting(proxy: Proxy) -> object:
    pools: Any = proxy.app.stats()["backends"]["pools"]
    return pools["local"]["queue"]["waiting"]

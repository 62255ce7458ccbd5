"""What an operator sees of the backends, and does to them: the admin calls, the command, what is logged and audited."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from click.testing import CliRunner

from semcache.backends.fetch import Fetcher
from semcache.backends.fleet import Fleet
from semcache.cli import main
from semcache.config import parse
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until

TWO = """
audit: {{path: {folder}/audit.jsonl}}
pools:
  local: {{backends: [{{url: "{first}", region: eu}}, {{url: "{second}"}}], health: {{interval: 0s, failures: 2}}}}
  spare: {{backends: [{{url: "{first}"}}]}}
routes: [{{pools: [local, spare]}}]
"""


@asynccontextmanager
async def two_backends(folder: Path, settings: str = TWO) -> AsyncIterator[tuple[Proxy, ModelServer, ModelServer]]:
    first, second = ModelServer(), ModelServer()
    async with first.running(), second.running():
        text = settings.format(folder=folder, first=first.url, second=second.url)
        async with running_proxy(folder, text) as proxy:
            yield proxy, first, second


async def call(proxy: Proxy, method: str, path: str) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{proxy.app.admin_port}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        return response.status, await response.json()


def audited(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


async def test_a_drained_backend_gets_nothing_new_until_it_is_undrained(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, first, second):
        status, answer = await call(proxy, "POST", "/backends/local%5B0%5D/drain")
        assert (status, answer["backends"][0]["state"], answer["notes"]) == (200, "drained", [])
        for number in range(6):
            await proxy.ask(f"What is item {number} of the list?")
        assert (first.requests, second.requests) == (0, 6)
        await call(proxy, "POST", "/backends/local%5B0%5D/undrain")
        await call(proxy, "POST", "/backends/local%5B1%5D/drain")
        await proxy.ask("Where can I find my invoice?")
        assert (first.requests, second.requests) == (1, 6)
    events = [(line["event"], line["backends"]) for line in audited(tmp_path) if "backends" in line]
    assert events == [("drain", ["local[0]"]), ("undrain", ["local[0]"]), ("drain", ["local[1]"])]


async def test_what_runs_on_a_drained_backend_ends_in_peace(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, first, _second):
        await call(proxy, "POST", "/backends/local%5B1%5D/drain")
        first.gate = asyncio.Event()
        running = asyncio.create_task(proxy.ask("What is a monad?"))
        await until(lambda: first.requests == 1)
        _, answer = await call(proxy, "POST", "/backends/local%5B0%5D/drain")
        assert answer["backends"][0]["in_flight"] == 1
        first.gate.set()
        assert (await running).verdict == "miss"


async def test_a_whole_pool_is_drained_by_its_name_and_requests_go_to_the_next(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, _first, _second):
        _, answer = await call(proxy, "POST", "/backends/local/drain")
        assert [each["name"] for each in answer["backends"]] == ["local[0]", "local[1]"]
        assert answer["notes"] == ["pool local takes no requests now: they go to their route's next pool, or get a 503"]
        assert (await proxy.ask("What is a monad?")).headers["x-request-id"]
        assert proxy.app.dispatcher.fleet.pools()["spare"]["backends"]["spare[0]"]["requests"] == 1
        await call(proxy, "POST", "/backends/spare/drain")
        with pytest.raises(openai.InternalServerError) as refused:
            await proxy.ask("Where can I find my invoice?")
        assert refused.value.status_code == 503
        assert (await proxy.ask("What is a monad?")).verdict == "hit"


async def test_a_drain_by_hand_survives_a_reload_that_changes_other_things(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, _first, _second):
        await call(proxy, "POST", "/backends/local%5B0%5D/drain")
        config = proxy.app.config
        pools = {name: pool.model_copy(update={"balance": "latency"}) for name, pool in config.pools.items()}
        proxy.app.dispatcher.adopt(pools, config.routes)
        assert proxy.app.dispatcher.fleet.pools()["local"]["backends"]["local[0]"]["state"] == "drained"


async def test_all_keys_of_a_backend_are_drained_with_it_and_the_file_has_the_last_word() -> None:
    settings = """
    pools:
      cloud:
        backends: [{url: "http://a/v1", api_keys: [one, two]}, {url: "http://b/v1", drain: true}]
    """
    fleet = Fleet(Fetcher())
    config = parse(settings)
    fleet.adopt(config.pools, config.routes)
    assert [state.target.name for state in fleet.drain("cloud[0]", True)] == ["cloud[0]#0", "cloud[0]#1"]
    assert [state.target.name for state in fleet.drain("cloud[0]#1", False)] == ["cloud[0]#1"]
    states = {name: each["state"] for name, each in fleet.pools()["cloud"]["backends"].items()}
    assert states == {"cloud[0]#0": "drained", "cloud[0]#1": "well", "cloud[1]": "drained"}
    fleet.drain("cloud[1]", False)
    assert fleet.pools()["cloud"]["backends"]["cloud[1]"]["state"] == "drained"


async def test_a_name_that_is_nobodys_is_a_404_that_names_those_there_are(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, _, _second):
        status, answer = await call(proxy, "POST", "/backends/local%5B7%5D/drain")
        assert status == 404
        assert "there are local[0], local[1], spare[0]" in answer["error"]["message"]


async def test_a_backend_that_goes_and_comes_back_is_told_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_backends(tmp_path, TWO.replace("{{pools: [local, spare]}}", "{{pools: [local]}}")) as (
        proxy,
        first,
        second,
    ):
        fleet = proxy.app.dispatcher.fleet
        state = fleet.pool("local").states["local[0]"]
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                state.vitals.failed(fleet.clock())
                fleet.notice(state)
            other = fleet.pool("local").states["local[1]"]
            for _ in range(2):
                other.vitals.failed(fleet.clock())
            fleet.notice(other)
            for _ in range(3):
                state.vitals.succeeded(fleet.clock())
                fleet.notice(state)
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("semcache.backends")]
        assert messages == [
            f"backend local[0] ({first.url}) is out: requests in a row have failed there",
            f"backend local[1] ({second.url}) is out: requests in a row have failed there",
            "pool local: no backend looks alive; requests go to later pools, and all of these are tried after them",
            f"backend local[0] ({first.url}) is back",
        ]
    told = [(line["event"], line["state"]) for line in audited(tmp_path) if line["event"] in ("breaker", "panic")]
    assert told == [
        ("breaker", "open"),
        ("breaker", "open"),
        ("panic", "begins"),
        ("breaker", "well"),
        ("panic", "ends"),
    ]


async def test_requests_that_fail_put_the_backend_out_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = """
audit: {{path: {folder}/audit.jsonl}}
pools: {{gone: {{backends: [{{url: "http://127.0.0.1:9/v1"}}], health: {{failures: 2}}}}}}
"""
    async with two_backends(tmp_path, settings) as (proxy, _, _second):
        with caplog.at_level(logging.WARNING):
            for number in range(3):
                with pytest.raises(openai.APIStatusError):
                    await proxy.ask(f"What is item {number} of the list?")
        assert [r.getMessage() for r in caplog.records if "is out" in r.getMessage()] == [
            "backend gone[0] (http://127.0.0.1:9/v1) is out: requests in a row have failed there"
        ]


async def test_the_command_shows_a_table_and_drains(tmp_path: Path) -> None:
    async with two_backends(tmp_path) as (proxy, first, _second):
        await proxy.ask("What is a monad?")
        admin = f"http://127.0.0.1:{proxy.app.admin_port}"

        async def run(*args: str) -> str:
            result = await asyncio.to_thread(CliRunner().invoke, main, ["backends", *args, "--admin", admin])
            assert result.exit_code == 0, result.output
            return result.output

        table = await run()
        assert "local[0]" in table and first.url in table and "well" in table and "spare[0]" in table
        assert json.loads(await run("--json"))["local"]["backends"]["local[0]"]["region"] == "eu"
        assert "local[0] is drained" in await run("drain", "local[0]")
        assert "drained" in await run()
        assert "local[0] is well" in await run("undrain", "local[0]")


def test_the_command_says_when_nobody_listens() -> None:
    result = CliRunner().invoke(main, ["backends", "--admin", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no server listens on http://127.0.0.1:9" in result.output

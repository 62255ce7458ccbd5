"""Reading the configuration again while requests are served."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from semcache import config
from semcache.config import Config
from semcache.errors import ConfigError
from semcache.reload import Reloader, what_needs_a_restart
from tests.fakes import ModelServer
from tests.harness import running_proxy, until


class Looks:
    """Stands for time: each look at the file waits for `again`."""

    def __init__(self) -> None:
        self.looks = 0
        self._next = asyncio.Event()

    async def __call__(self, _: float) -> None:
        self.looks += 1
        await self._next.wait()
        self._next.clear()

    async def again(self) -> None:
        """Let it look once more, and wait until it has."""
        looks = self.looks
        self._next.set()
        await until(lambda: self.looks > looks)


def settings(text: str) -> Config:
    return config.parse(text, {})


def reloader(path: Path, taken: list[Config], **more: object) -> Reloader:
    return Reloader(config.load(path), lambda: config.load(path), taken.append, path, **more)  # type: ignore[arg-type]


async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    path, taken, told = tmp_path / "c.yaml", list[Config](), list[tuple[str, object]]()
    path.write_text("match: {threshold: 0.9}")
    here = reloader(path, taken, record=lambda event, facts: told.append((event, facts)))
    for bad, complaint in (
        ("match: {threshold: 1.5}", "match.threshold"),
        ("match: {treshold: 0.9}", "did you mean threshold"),
        ("match: [", "YAML"),
        ("routes: [{pools: [nowhere]}]", "nowhere"),
        ("server: {port: 1}", "server.port: takes effect with a restart only"),
        ("cache: {store: 'memory:'}", "cache.store: takes effect"),
        ("match: {reranker: some/model}", "match.reranker"),
    ):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=complaint):
            await here.reload("test")
        assert (taken, here.last_error is not None) == ([], True)
    assert {event for event, _ in told} == {"reload-refused"}
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await here.reload("test")


async def test_a_good_file_is_taken_once(tmp_path: Path) -> None:
    path, taken = tmp_path / "c.yaml", list[Config]()
    path.write_text("match: {threshold: 0.9}")
    here = reloader(path, taken)
    assert not await here.reload("test"), "nothing is new in it"
    path.write_text("match: {threshold: 0.8}")
    assert await here.reload("test")
    assert [found.match.threshold for found in taken] == [0.8]
    assert here.last_error is None


async def test_the_file_is_taken_when_it_has_changed_and_nobody_writes_to_it_any_more(tmp_path: Path) -> None:
    path, taken, looks = tmp_path / "c.yaml", list[Config](), Looks()
    path.write_text("match: {threshold: 0.9}")
    here = reloader(path, taken, pause=looks)
    here.start()
    try:
        await until(lambda: looks.looks)
        await looks.again()
        path.write_text("match: {threshold: 0.8")  # half of it
        await looks.again()
        path.write_text("match: {threshold: 0.85}")
        await looks.again()
        assert taken == [] and here.refused == 0
        await looks.again()
        await until(lambda: taken)
        await looks.again()
        assert [found.match.threshold for found in taken] == [0.85]
        path.unlink()
        await looks.again()
        await looks.again()
        assert here.refused == 0, "a file that is being exchanged is no error"
    finally:
        await here.stop()


@pytest.mark.parametrize(
    "broken",
    ["cache: {ttl: 2026-99-99}", f"server: {{port: {'9' * 5000}}}", "a: &a {b: *a}", "[" * 20_000],
    ids=["no such day", "a long number", "an endless alias", "deeply nested"],
)
async def test_no_file_ends_the_watch_over_it(tmp_path: Path, broken: str) -> None:
    path, taken, looks = tmp_path / "c.yaml", list[Config](), Looks()
    path.write_text("match: {threshold: 0.9}")
    here = reloader(path, taken, pause=looks)
    here.start()
    try:
        await until(lambda: looks.looks)
        for text in (broken, "match: {threshold: 0.85}"):
            path.write_text(text)
            await looks.again()
            await looks.again()
        await until(lambda: taken)
        assert here.refused == 1
    finally:
        await here.stop()


@pytest.mark.parametrize(
    "old, new, names",
    [
        ("{}", "{}", []),
        ("{}", "tenants: [{name: a, keys: [k]}]", []),
        ("match: {threshold: 0.9}", "match: {threshold: 0.8}", []),
        ("{}", "audit: {}", ["audit"]),
        ("audit: {path: a}", "audit: {path: b}", ["audit.path"]),
        ("{}", "embedder: {sessions: 2}", ["embedder.sessions"]),
        ("{}", "cache: {max_entries: 5}", ["cache.max_entries"]),
        ("{}", "cache: {ttl: 5}", []),
        ("{}", "match: {judge: 0.5}", ["match.judge"]),
    ],
)
def test_what_is_held_open_needs_a_restart(old: str, new: str, names: list[str]) -> None:
    assert list(what_needs_a_restart(settings(old), settings(new))) == names


# Through the front door


async def test_not_one_request_is_dropped_by_reloads_under_load(tmp_path: Path) -> None:
    """Pools, routes and thresholds change two hundred times while sixteen clients ask."""
    second = ModelServer()
    async with second.running() as other, running_proxy(tmp_path, "match: {mode: 'off'}") as proxy:
        urls = [proxy.backend.url, other.url]
        done = asyncio.Event()
        statuses: list[int] = []

        async def ask_on() -> None:
            async with httpx.AsyncClient(base_url=proxy.url, timeout=30) as client:
                while not done.is_set():
                    body = {"model": "small", "messages": [{"role": "user", "content": f"q {len(statuses)}"}]}
                    statuses.append((await client.post("/chat/completions", json=body)).status_code)

        asking = [asyncio.create_task(ask_on()) for _ in range(16)]
        for number in range(200):
            before = len(statuses)
            fresh = settings(
                f"{{match: {{mode: 'off'}}, pools: {{p{number % 3}: {{backends: [{{url: '{urls[number % 2]}'}}]}}}}}}"
            )
            proxy.app._adopt(
                fresh.model_copy(update={"server": proxy.app.config.server, "cache": proxy.app.config.cache})
            )
            await until(lambda before=before: len(statuses) > before)  # type: ignore[misc]
        done.set()
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        assert proxy.backend.requests > 50 and second.requests > 50


SERVE = "import sys; from semcache.cli import main; main(sys.argv[1:])"


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_reads_the_file_again_in_every_worker(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "semcache.yaml"
    async with ModelServer().running() as old, ModelServer().running() as new:
        text = (
            "server: {port: 0, admin_port: 0, request_log: 'off', reload_on_change: false, workers: WORKERS}\n"
            f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\nmatch: {{mode: 'off'}}\n"
            "pools: {p: {backends: [{url: 'URL'}]}}\n"
        ).replace("WORKERS", str(workers))
        port = "0"
        if workers > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = str(free.getsockname()[1])
            text = text.replace("port: 0,", f"port: {port},", 1)
        path.write_text(text.replace("URL", old.url))
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, "serve", "-c", str(path), stderr=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        assert server.stderr is not None
        try:
            lines = [await _line_with(server.stderr, "listening on") for _ in range(workers)]
            url = lines[0].split("listening on ")[1].split(",")[0].split(" ")[0]
            await _ask(url, 12)
            assert (old.requests, new.requests) == (12, 0)
            path.write_text("match: {threshold: 7}")
            server.send_signal(signal.SIGHUP)
            for _ in range(workers):
                await _line_with(server.stderr, "not reloaded")
            path.write_text(text.replace("URL", new.url))
            server.send_signal(signal.SIGHUP)
            for _ in range(workers):
                await _line_with(server.stderr, "was reloaded: pools (SIGHUP)")
            await _ask(url, 12)
            assert (old.requests, new.requests) == (12, 12)
        finally:
            if server.returncode is None:
                server.send_signal(signal.SIGTERM)
            await asyncio.wait_for(server.wait(), 30)


async def _line_with(stream: asyncio.StreamReader, text: str) -> str:
    async with asyncio.timeout(60):
        while line := (await stream.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"the server ended without saying {text!r}")


async def _ask(url: str, times: int) -> None:
    """Each on a connection of its own, so that all workers get some."""
    for number in range(times):
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"model": "small", "messages": [{"role": "user", "content": f"question {number}"}]}
            assert (await client.post(f"{url}/v1/chat/completions", json=body)).status_code == 200

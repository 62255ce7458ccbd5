"""A day of acts, through the ports and the command line, and what the audit log says of it in the evening."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from semcache import config
from semcache.app import App
from tests.fakes import Clock, ModelServer, WordsEmbedder
from tests.test_reload import _line_with as line_with

STORED = "how long does a parcel to the north take on average in the autumn please tell me"
NEAR = f"{STORED} thanks"
TOKEN = "an-admin-token-of-this-test"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Day:
    """A proxy with everything audited, and the operator's file of its settings."""

    def __init__(self, folder: Path, model: ModelServer, audit: str = "") -> None:
        self.folder = folder
        self.path = folder / "semcache.yaml"
        self.admin_port = free_port()
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.text = f"""
server: {{port: 0, admin_port: {self.admin_port}, admin_token: {TOKEN}, request_log: 'off', reload_on_change: false,
  drain: 1s}}
cache: {{store: 'sqlite:{folder}/cache.db'}}
match: {{guards: []}}
keys: {{path: {folder}/keys.db, pepper: a pepper of this test that is long enough, refresh: 50ms}}
audit: {{path: {folder}/audit.jsonl{audit}}}
pools: {{p: {{backends: [{{url: '{model.url}', region: eu}}], health: {{interval: 0s}}}}}}
tenants: [{{name: shop, keys: [sk-shop-of-this-test]}}, {{name: bank, keys: [sk-bank], regions: [us]}}]
"""
        self.path.write_text(self.text)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[openai.AsyncOpenAI]:
        settings = config.load(self.path)
        app = App(settings, embedder=WordsEmbedder(), clock=Clock(), read=lambda: config.load(self.path))  # type: ignore[arg-type]
        await app.start()
        await app.caught_up()
        self.app = app
        url = f"http://127.0.0.1:{app.port}/v1"
        try:
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-shop-of-this-test", max_retries=0) as client:
                yield client
        finally:
            await app.stop()

    async def call(self, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession() as http, http.post(self.admin + path, json=body, headers=headers) as reply:
            return reply.status, json.loads(await reply.read())

    async def command(self, *arguments: str, status: int = 0) -> str:
        """As an operator types it, in a process of its own."""
        program = "import sys; from semcache.cli import main; main(sys.argv[1:])"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            *arguments,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == status, err.decode() + out.decode()
        return out.decode().strip()

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [line for line in lines if event in ("", line["event"])]


async def ask(client: openai.AsyncOpenAI, question: str, **more: Any) -> str:
    messages: Any = [{"role": "user", "content": question}]
    raw = await client.chat.completions.with_raw_response.create(model="small", messages=messages, **more)
    return str(raw.headers["cache-status"])


async def test_every_act_of_a_day_is_in_the_log_with_who_and_what_and_without_prompts(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        day = Day(tmp_path, model)
        where = ("-c", str(day.path))
        async with day.running() as client:
            # The operator, at the command line.
            key = await day.command("keys", "create", *where, "--tenant", "shop", "--name", "web")
            key_id = json.loads(await day.command("keys", "list", *where, "--json"))[0]["id"]
            rotated = await day.command("keys", "rotate", key_id, *where)
            await day.command("keys", "revoke", key_id, *where)
            await day.command("keys", "revoke", "nothing", *where, status=2)
            # A program, at the admin port.
            status, made = await day.call("/semcache/keys", {"tenant": "shop", "name": "app"})
            assert status == 200
            assert (await day.call("/semcache/keys", {"tenant": "shop"}, token="wrong"))[0] == 401
            # Callers.
            assert "fwd=miss" in await ask(client, STORED)
            await day.app.pipeline.flights.drain()
            app_client = client.with_options(api_key=made["key"])
            messages: Any = [{"role": "user", "content": NEAR}]
            hit = await app_client.chat.completions.with_raw_response.create(model="small", messages=messages)
            assert "; hit" in hit.headers["cache-status"]
            said = {"entry": hit.headers["semcache-entry"], "request": hit.headers["x-request-id"], "verdict": "wrong"}
            async with aiohttp.ClientSession() as http:
                url = f"http://127.0.0.1:{day.app.port}/semcache/feedback"
                bearer = {"Authorization": f"Bearer {made['key']}"}
                async with http.post(url, json=said, headers=bearer) as reply:
                    assert reply.status == 200
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await ask(client.with_options(api_key="sk-bank"), "Anything?")
            assert refused.value.code == "region_not_allowed"
            # What the store holds goes out, away and in again.
            await day.command("export", *where, str(tmp_path / "entries.jsonl"))
            await day.command("purge", *where, "--text", STORED, "--yes")
            await day.command("purge", *where, "--all", "--dry-run")
            await day.command("import", *where, str(tmp_path / "entries.jsonl"))
            # Settings: a good file, and a bad one.
            day.path.write_text(day.text + "routes: [{name: all}]\n")
            assert await day.call("/reload") == (200, {"changed": True})
            day.path.write_text(day.text + "match: [")
            assert (await day.call("/reload"))[0] == 400
            day.path.write_text(day.text)
        assert "number 1 to" in await day.command("audit", "verify", *where)
        told = {line["event"]: line for line in day.lines()}
        assert [line["event"] for line in day.lines()] == [
            "start",
            "key-created",
            "key-rotated",
            "key-revoked",
            "key-created",
            "admin-refused",
            "hit",
            "feedback",
            "residency-refusal",
            "export",
            "purge",
            "import",
            "reload",
            "reload-refused",
            "stop",
        ]
        assert told["key-revoked"].items() >= {"key": key_id, "tenant": "shop", "name": "web"}.items()
        assert told["key-revoked"]["by"] != told["key-created"]["by"] == "admin port"
        assert told["admin-refused"].items() >= {"call": "/semcache/keys", "status": 401}.items()
        assert told["hit"].items() >= {"tenant": "shop", "key": made["id"], "entry": said["entry"]}.items()
        assert told["hit"]["similarity"] < 1
        assert told["feedback"].items() >= {"verdict": "wrong", "key": made["id"], "about": said["request"]}.items()
        assert told["residency-refusal"].items() >= {"tenant": "bank", "status": 403}.items()
        assert told["purge"].items() >= {"by_text": True, "entries": 1, "by": "admin port"}.items()
        assert told["import"]["file"] == told["export"]["file"] == str(tmp_path / "entries.jsonl")
        assert told["import"]["by"] == told["key-revoked"]["by"]
        assert told["reload"]["sections"] == ["routes"]
        assert "YAML" in told["reload-refused"]["error"]
        whole = (tmp_path / "audit.jsonl").read_text()
        for secret in (STORED, "parcel", key, rotated, made["key"], TOKEN, "sk-bank", "pepper", "answer 1"):
            assert secret not in whole


async def test_the_question_is_there_where_prompts_are_wanted(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        day = Day(tmp_path, model, ", prompts: true")
        async with day.running() as client:
            await ask(client, STORED)
            await day.app.pipeline.flights.drain()
            assert "; hit" in await ask(client, NEAR)
        (hit,) = day.lines("hit")
        assert hit["question"] == NEAR
        assert "ok" in await day.command("audit", "verify", "-c", str(day.path))


async def test_two_workers_and_a_command_write_one_chain(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        day = Day(tmp_path, model)
        port = free_port()
        text = day.text.replace("port: 0,", f"port: {port}, workers: 2,", 1).replace("guards: []", "mode: 'off'")
        # Two neighbouring ports, one for each worker's admin calls.
        day.path.write_text(text)
        program = "import sys; from semcache.cli import main; main(sys.argv[1:])"
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, "serve", "-c", str(day.path), stderr=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        assert server.stderr is not None
        try:
            for _ in range(2):
                await line_with(server.stderr, "listening on")
            for number in range(12):  # each on a connection of its own, so that both workers get some
                async with openai.AsyncOpenAI(
                    base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-bank", max_retries=0
                ) as client:
                    with pytest.raises(openai.PermissionDeniedError):
                        await ask(client, f"Question {number}?")
            await day.command("keys", "create", "-c", str(day.path), "--tenant", "shop")
        finally:
            if server.returncode is None:
                server.send_signal(signal.SIGTERM)
            await asyncio.wait_for(server.wait(), 30)
        assert len(day.lines("residency-refusal")) == 12
        assert sorted(line["worker"] for line in day.lines("start")) == [0, 1]
        assert [len(day.lines(event)) for event in ("key-created", "stop")] == [1, 2]
        assert "ok" in await day.command("audit", "verify", "-c", str(day.path))


async def test_what_commands_do_without_a_server_is_written_down_too_or_not_done(tmp_path: Path) -> None:
    async with ModelServer().running() as model:
        day = Day(tmp_path, model)
        async with day.running() as client:
            await ask(client, STORED)
    where = ("-c", str(day.path))
    await day.command("export", *where, "-")
    await day.command("purge", *where, "--text", STORED, "--yes")
    assert [line["event"] for line in day.lines()] == ["start", "stop", "export", "purge"]
    (purge,) = day.lines("purge")
    assert purge["by"].startswith("command line, ") and purge["by_text"] and "parcel" not in str(purge)
    (tmp_path / "audit.jsonl").rename(tmp_path / "elsewhere")
    (tmp_path / "audit.jsonl").mkdir()  # it cannot be written
    await day.command("export", *where, str(tmp_path / "entries.jsonl"), status=1)
    assert not (tmp_path / "entries.jsonl").exists() or not (tmp_path / "entries.jsonl").read_bytes()

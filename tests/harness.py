"""The real proxy on a real socket, in front of a model server that does as told, asked through the official SDK."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from semcache import config
from semcache.app import App
from semcache.pacing import Timer
from tests.fakes import Clock, ModelServer, WordsEmbedder


@dataclass
class Reply:
    """What a client saw."""

    text: str
    headers: dict[str, str]
    answer: Any = None  # the SDK's ChatCompletion, or the list of its chunks
    usage: Any = None

    @property
    def cache_status(self) -> str:
        return self.headers["cache-status"]

    @property
    def verdict(self) -> str:
        """As the header tells it."""
        if "collapsed" in self.cache_status:
            return "coalesced"
        if "; hit" in self.cache_status:
            return "stale" if "detail=stale" in self.cache_status else "hit"
        found = re.search(r"fwd=(\w+)", self.cache_status)
        return {"bypass": "bypass"}.get(found[1] if found else "", "miss")

    @property
    def detail(self) -> str:
        found = re.search(r"detail=([\w/.\-]+)", self.cache_status)
        return found[1] if found else ""


@dataclass
class Proxy:
    app: App
    backend: ModelServer
    embedder: WordsEmbedder
    clock: Clock
    url: str
    client: openai.AsyncOpenAI
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    async def landed(self) -> None:
        """Wait until every fetch is over and what it brought is stored: a stream's client has its end before that."""
        await self.app.pipeline.flights.drain()

    async def ask(
        self,
        question: str | list[dict[str, Any]],
        *,
        stream: bool = False,
        headers: dict[str, str] | None = None,
        key: str = "sk-test",
        **body: Any,
    ) -> Reply:
        """Ask through the openai SDK; its typed exceptions come out as they are."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        body = {"model": "small", "messages": messages, "stream": stream, **body}
        client = self.client.with_options(api_key=key)
        raw = await client.chat.completions.with_raw_response.create(extra_headers=headers or {}, **body)
        answer = raw.parse()
        if not stream:
            return Reply(answer.choices[0].message.content or "", dict(raw.headers), answer, answer.usage)
        chunks = [chunk async for chunk in answer]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = [chunk.usage for chunk in chunks if chunk.usage]
        return Reply(text, dict(raw.headers), chunks, usage[0] if usage else None)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds: for what the other side of a socket has yet to do."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def running_proxy(
    folder: Path,
    settings: str = "",
    *,
    backend: ModelServer | None = None,
    embedder: WordsEmbedder | None = None,
    clock: Clock | None = None,
    timer: Timer | None = None,
    options: dict[str, Any] | None = None,
) -> AsyncIterator[Proxy]:
    """Start a proxy with its store in `folder`. `settings` is YAML; store and ports are put over it, and where it names
    none, a backend and a short drain. `options`: as given on the command line, over all that."""
    embedder, clock = embedder or WordsEmbedder(), clock or Clock()
    async with (backend or ModelServer()).running() as server:
        own: dict[str, Any] = {
            "port": 0,
            "admin_port": 0,
            "request_log": "off",
            "store": f"sqlite:{folder}/cache.db",
        }
        if "drain:" not in settings:
            own["drain"] = "2s"
        if "pools:" not in settings:
            own["upstream"] = server.url
        settings_read = config.parse(settings, {}, options=own | (options or {}))
        app = App(settings_read, embedder=embedder, clock=clock, timer=timer)  # type: ignore[arg-type]
        await app.start()
        await app.caught_up()
        url = f"http://127.0.0.1:{app.port}/v1"
        client = openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0)
        try:
            yield Proxy(app, server, embedder, clock, url, client)
        finally:
            await client.close()
            await app.stop()

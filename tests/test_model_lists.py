"""What backends say they serve, asked over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from semcache.backends.fetch import Fetcher
from semcache.backends.model_lists import MAX_PAGES, ModelLists, fetch_list
from semcache.backends.routing import Option, Way
from semcache.backends.target import Target, targets_of
from semcache.config import Backend, Pool
from semcache.errors import ClientError, UpstreamError


def any_model(name: str) -> bool:
    return True


class ModelServer:
    """Lists models in one of the three forms, in pages if they are asked for."""

    def __init__(self, *models: str, form: str = "openai", page: int = 1000) -> None:
        self.models: tuple[str, ...] = models
        self.form, self.page = form, page
        self.raw: bytes | None = None  # answered instead
        self.status = 200
        self.requests: list[tuple[str, CIMultiDict[str]]] = []
        self.asked = asyncio.Event()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ModelServer]:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._list)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        self.requests.append((request.path_qs, CIMultiDict(request.headers)))
        self.asked.set()
        if self.raw is not None or self.status != 200:
            return web.Response(body=self.raw or b"{}", status=self.status)
        if self.form == "ollama":
            return web.json_response({"models": [{"name": name, "size": 7} for name in self.models]})
        start = self.models.index(request.query["after_id"]) + 1 if "after_id" in request.query else 0
        data = [{"id": name, "owned_by": "team"} for name in self.models[start : start + self.page]]
        listed: dict[str, Any] = {"object": "list", "data": data}
        if self.form == "anthropic":
            listed = {"data": data, "has_more": start + self.page < len(self.models), "last_id": data[-1]["id"]}
        return web.json_response(listed)


@asynccontextmanager
async def fetching() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(environ={})
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def pool(*servers: ModelServer, name: str = "gpu", **backend: Any) -> list[Target]:
    settings = {"models": "ask"} | backend
    backends = tuple(Backend(url=f"http://127.0.0.1:{server.port}/v1", **settings) for server in servers)
    return list(targets_of(name, Pool(backends=backends)))


async def test_a_backend_serves_what_it_lists() -> None:
    async with ModelServer("llama", "qwen").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        lists.watch(pool(server, api_key="key"))
        assert lists.serves("gpu[0]", "llama") is None
        await lists.ask(["gpu[0]"])
        assert [lists.serves("gpu[0]", name) for name in ("llama", "qwen", "Llama")] == [True, True, False]
        [(path, headers)] = server.requests
        assert (path, headers["Authorization"]) == ("/v1/models", "Bearer key")


async def test_ollama_lists_tags_and_is_asked_without() -> None:
    async with ModelServer("llama3:latest", "qwen:7b", form="ollama").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        lists.watch(pool(server, dialect="ollama"))
        await lists.ask(["gpu[0]"])
        asked = ("llama3", "llama3:latest", "qwen:7b", "qwen")
        assert [lists.serves("gpu[0]", name) for name in asked] == [True, True, True, False]
        assert server.requests[0][0] == "/api/tags"


async def test_anthropics_pages_are_read_to_the_end() -> None:
    async with ModelServer(*"abcde", form="anthropic", page=2).running() as server, fetching() as fetcher:
        [target] = pool(server, dialect="anthropic", api_key="key")
        assert list(await fetch_list(fetcher, target)) == list("abcde")
        paths = [path for path, _ in server.requests]
        assert paths == ["/v1/models?limit=1000", *(f"/v1/models?limit=1000&after_id={name}" for name in "bd")]
        assert {headers["anthropic-version"] for _, headers in server.requests} == {"2023-06-01"}
        assert {headers["x-api-key"] for _, headers in server.requests} == {"key"}


@pytest.mark.parametrize(
    "raw, status",
    [
        (b"not json", 200),
        (b"[]", 200),
        (b'{"data":{"id":"a"}}', 200),
        (b'{"data":[{"object":"model"}]}', 200),
        (b'{"data":["a"]}', 200),
        (b'{"error":"no key"}', 401),
        (b'{"data":[{"id":"a"}],"has_more":true,"last_id":"a"}', 200),  # and so for ever
        (b" " * (9 * 1024 * 1024), 200),
    ],
)
async def test_the_last_good_list_counts_until_there_is_a_better_one(
    raw: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with ModelServer("a").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        lists.watch(pool(server))
        await lists.ask(["gpu[0]"])
        server.raw, server.status = raw, status
        for _ in range(2):
            await lists.ask(["gpu[0]"])
        assert lists.serves("gpu[0]", "a") is True
        assert [record.levelname for record in caplog.records].count("WARNING") == 1  # said once, not every minute
        assert len(server.requests) <= 1 + 2 * MAX_PAGES
        server.raw, server.status, server.models = None, 200, ("b",)
        await lists.ask(["gpu[0]"])
        assert [lists.serves("gpu[0]", name) for name in "ab"] == [False, True]


async def test_who_has_never_answered_is_asked_where_nobody_else_has_the_model() -> None:
    async with (
        ModelServer("a").running() as first,
        ModelServer("a", "b").running() as second,
        ModelServer().running() as silent,
        fetching() as fetcher,
    ):
        silent.status = 404
        lists = ModelLists(fetcher)
        targets = pool(first, second, silent)
        lists.watch(targets)
        assert lists.choose(targets, "a") == targets  # before the first answer: no outage of all
        await lists.ask([target.name for target in targets])
        names = {asked: [target.name for target in lists.choose(targets, asked)] for asked in ("a", "b", "c", None)}
        assert names == {
            "a": ["gpu[0]", "gpu[1]"],
            "b": ["gpu[1]"],
            "c": ["gpu[2]"],
            None: ["gpu[0]", "gpu[1]", "gpu[2]"],
        }
        assert lists.choose(targets[:2], "c") == []


async def test_a_way_leads_to_those_who_serve_the_model_alone() -> None:
    async with ModelServer("a").running() as first, ModelServer("b").running() as second, fetching() as fetcher:
        lists = ModelLists(fetcher)
        near, far = pool(first, name="near"), pool(second, first, name="far")
        lists.watch(near + far)
        way = Way((Option("near", None, tuple(near)), Option("far", None, tuple(far))))
        assert lists.narrow(way, "b") is way
        await lists.ask(["near[0]", "far[0]", "far[1]"])
        assert [target.name for target in lists.narrow(way, "a").targets] == ["near[0]", "far[1]"]
        assert [option.pool for option in lists.narrow(way, "b").options] == ["far"]
        with pytest.raises(ClientError, match="serves the model 'c'") as nobody:
            lists.narrow(way, "c")
        assert (nobody.value.status, nobody.value.code) == (404, "model_not_found")


async def test_a_model_is_looked_for_under_the_name_it_has_there() -> None:
    async with ModelServer("llama").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        [target] = pool(server)
        lists.watch([target])
        await lists.ask(["gpu[0]"])
        assert lists.choose([target], "fast") == []
        assert lists.choose([renamed := target.asking_for("llama")], "fast") == [renamed]


async def test_a_backend_that_is_not_asked_has_what_its_setting_says() -> None:
    async with ModelServer("a").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        targets = pool(server) + pool(server, name="cloud", models="any") + pool(server, name="azure", dialect="azure")
        lists.watch(targets)
        await lists.ask([target.name for target in targets])
        assert len(server.requests) == 1  # Azure lists what could be deployed, and is asked for deployments
        assert [target.name for target in lists.choose(targets, "b")] == ["cloud[0]", "azure[0]"]


async def test_a_backend_is_asked_at_the_start_and_when_it_comes_back() -> None:
    async with ModelServer("a").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher, interval_s=3600)
        running = asyncio.create_task(lists.run())
        lists.watch(pool(server))
        await server.asked.wait()
        server.asked.clear()
        server.models = ("b",)
        lists.returned("gpu[0]")
        lists.returned("another")
        await server.asked.wait()
        running.cancel()
        assert len(server.requests) == 2


async def test_a_backend_is_asked_again_and_again() -> None:
    async with ModelServer("a").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher, interval_s=0.001)
        lists.watch(pool(server))
        running = asyncio.create_task(lists.run())
        for _ in range(3):
            await server.asked.wait()
            server.asked.clear()
        running.cancel()


async def test_a_reload_keeps_what_is_known_of_backends_that_stay() -> None:
    async with ModelServer("a").running() as server, ModelServer("b").running() as other, fetching() as fetcher:
        lists = ModelLists(fetcher)
        lists.watch(pool(server, other))
        await lists.ask(["gpu[0]", "gpu[1]"])
        lists.watch(pool(server, server))  # the second place is another backend's now
        assert (lists.serves("gpu[0]", "a"), lists.serves("gpu[1]", "b")) == (True, None)
        lists.watch([])
        assert lists.serves("gpu[0]", "a") is None


# Our own list


async def test_one_list_holds_what_all_backends_offer_under_the_callers_names() -> None:
    async with (
        ModelServer("llama", "qwen").running() as first,
        ModelServer("llama", "phi", "tuned").running() as second,
        ModelServer("x").running() as third,
        fetching() as fetcher,
    ):
        lists = ModelLists(fetcher)
        targets = (
            pool(first)
            + pool(second, models=("llama", "phi", "planned"))
            + pool(third, models={"gpt-4o": "x", "gpt-*": "x", "y": "*"})
        )
        caller = CIMultiDict({"Authorization": "Bearer caller", "If-None-Match": "old"})
        body = json.loads(await lists.merged(targets, "openai", any_model, caller, pass_key=True))
        names = [entry["id"] for entry in body["data"]]
        assert names == ["llama", "qwen", "phi", "planned", "gpt-4o", "y"]
        assert body["object"] == "list"
        assert body["data"][4] == {"id": "gpt-4o", "object": "model", "created": 0, "owned_by": "team"}
        assert first.requests[0][1]["Authorization"] == "Bearer caller"
        assert "If-None-Match" not in first.requests[0][1]
        few = json.loads(
            await lists.merged(targets, "openai", {"qwen", "gpt-4o", "fast"}.__contains__, caller, True, ["fast"])
        )
        assert [entry["id"] for entry in few["data"]] == ["qwen", "gpt-4o", "fast"]


async def test_who_does_not_answer_is_left_out_of_the_list() -> None:
    async with ModelServer("a").running() as server, ModelServer().running() as broken, fetching() as fetcher:
        broken.status = 500
        lists = ModelLists(fetcher)
        body = await lists.merged(pool(broken, server), "openai", any_model, {}, pass_key=False)
        assert [entry["id"] for entry in json.loads(body)["data"]] == ["a"]
        with pytest.raises(UpstreamError, match="status 500"):
            await lists.merged(pool(broken), "openai", any_model, {}, pass_key=False)


async def test_a_list_that_is_kept_is_not_asked_for_and_several_keys_are_one_backend() -> None:
    async with ModelServer("a").running() as server, fetching() as fetcher:
        lists = ModelLists(fetcher)
        lists.watch(kept := pool(server))
        await lists.ask(["gpu[0]"])
        await lists.merged(kept, "openai", any_model, {}, pass_key=False)
        assert len(server.requests) == 1
        await lists.merged(pool(server, models="any", api_keys=("k1", "k2")), "openai", any_model, {}, pass_key=False)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "dialect, listed",
    [
        ("anthropic", {"has_more": False, "first_id": "a", "last_id": "b"}),
        ("ollama", {}),
    ],
)
async def test_the_list_has_the_form_of_its_dialect(dialect: str, listed: dict[str, object]) -> None:
    async with ModelServer("a", "b", form=dialect).running() as server, fetching() as fetcher:
        targets = pool(server, dialect=dialect)
        body = json.loads(await ModelLists(fetcher).merged(targets, dialect, any_model, {}, pass_key=False))
        entries = body.pop("models" if dialect == "ollama" else "data")
        assert body == listed
        assert [entry["model" if dialect == "ollama" else "id"] for entry in entries] == ["a", "b"]
        again = await ModelLists(fetcher).merged(targets, dialect, "c".__eq__, {}, pass_key=False)
        assert b'"a"' not in again

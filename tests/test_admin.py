"""The admin listener over real sockets: who may call, what a purge may say, and how failures look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from semcache.admin.listener import MAX_BODY, Admin, read_purge, split_lines
from semcache.config import Server
from semcache.errors import ClientError, StartError, StoreFault
from semcache.types import Selector

TOKEN = "correct horse"


class Store:
    """Remembers what it was asked, and fails when told to."""

    def __init__(self) -> None:
        self.purges: list[tuple[Selector, bool, bool]] = []
        self.lines: list[bytes] = [b'{"entry": 1}\n', b'{"entry": 2}\n']
        self.imported: list[bytes] = []
        self.fault: Exception | None = None
        self.fault_after: int | None = None  # lines of an export
        self.exports_open = 0

    async def purge(self, selector: Selector, *, erase: bool, dry_run: bool) -> int:
        if self.fault:
            raise self.fault
        self.purges.append((selector, erase, dry_run))
        return 7

    async def export(self) -> AsyncGenerator[bytes, None]:
        self.exports_open += 1
        try:
            for number, line in enumerate(self.lines):
                if self.fault and number == (self.fault_after or 0):
                    raise self.fault
                yield line
        finally:
            self.exports_open -= 1

    async def recent_feedback(self, limit: int) -> list[dict[str, Any]]:
        return [{"entry": "e1", "verdict": "wrong"}][:limit]

    async def import_lines(self, lines: AsyncIterator[bytes]) -> int:
        async for line in lines:
            if b"bad" in line:
                raise ClientError("line 2: not an entry")
            self.imported.append(line)
        return len(self.imported)


class Explaining:
    """Repeats what it was asked."""

    async def explain(self, body: bytes) -> dict[str, Any]:
        return {"asked": body.decode()}

    def recall(self, request_id: str) -> dict[str, Any]:
        return {"request": request_id}


class Shadowing:
    """Repeats what it was asked."""

    async def shadow_report(self, route: int | None, target: float | None) -> dict[str, Any]:
        return {"route": route, "target": target}


class Caller:
    """An admin listener under test, and a client that talks to it."""

    def __init__(self, port: int, session: aiohttp.ClientSession, store: Store, missing: list[str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.session = session
        self.store = store
        self.missing = missing

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            raw = await response.read()
            return response.status, json.loads(raw) if response.content_type == "application/json" else raw


async def listening(token: str) -> AsyncIterator[Caller]:
    store, missing = Store(), list[str]()
    settings = Server(admin_token=SecretStr(token))
    figures = SimpleNamespace(render=lambda: b"semcache_up 1\n")
    admin = Admin(
        settings, store, figures, lambda: missing, lambda: {"store": {"entries": 3}}, Explaining(), Shadowing()
    )
    port = await admin.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        yield Caller(port, session, store, missing)
    await admin.stop()


@pytest.fixture
async def local() -> AsyncIterator[Caller]:
    """Without a token."""
    async for caller in listening(""):
        yield caller


@pytest.fixture
async def guarded() -> AsyncIterator[Caller]:
    """With a token."""
    async for caller in listening(TOKEN):
        yield caller


BEARER = {"Authorization": f"Bearer {TOKEN}"}
PURGE_ALL = {"all": True}


async def test_anybody_may_see_metrics_and_health(guarded: Caller) -> None:
    assert await guarded.call("GET", "/metrics") == (200, b"semcache_up 1\n")
    assert await guarded.call("GET", "/healthz") == (200, {"status": "ok"})
    assert await guarded.call("GET", "/readyz") == (200, {"status": "ok"})


async def test_readiness_lists_what_is_missing(local: Caller) -> None:
    local.missing.append("the model is loading")
    assert await local.call("GET", "/readyz") == (503, {"status": "unready", "missing": ["the model is loading"]})
    assert (await local.call("GET", "/healthz"))[0] == 200


async def test_stats_show_every_part(local: Caller) -> None:
    assert await local.call("GET", "/stats") == (200, {"store": {"entries": 3}, "missing": []})


@pytest.mark.parametrize("path", ["/purge", "/export", "/import", "/semcache/explain"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer \u00e9\u20ac"},
    ],
)
async def test_without_the_token_nothing_happens(guarded: Caller, path: str, headers: dict[str, str]) -> None:
    status, answer = await guarded.call("POST", path, PURGE_ALL, headers)
    assert (status, answer["error"]["status"]) == (401, 401)
    assert guarded.store.purges == [] and guarded.store.imported == []


async def test_the_token_opens_every_call(guarded: Caller) -> None:
    assert (await guarded.call("GET", "/stats", headers=BEARER))[0] == 200
    assert (await guarded.call("POST", "/purge", PURGE_ALL, BEARER))[0] == 200
    assert (await guarded.call("POST", "/export", headers=BEARER))[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
async def test_a_web_page_of_another_origin_is_refused_token_or_not(
    guarded: Caller, local: Caller, origin: str
) -> None:
    for caller, headers in ((guarded, BEARER), (local, {})):
        status, _ = await caller.call("POST", "/purge", PURGE_ALL, {**headers, "Origin": origin})
        assert status == 403
        assert caller.store.purges == []


async def test_a_page_of_the_listener_itself_is_no_stranger(local: Caller) -> None:
    assert (await local.call("POST", "/purge", PURGE_ALL, {"Origin": local.url}))[0] == 200


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8081", "127.0.0.1.nip.example", "10.0.0.1", ""])
async def test_a_domain_pointed_at_this_machine_is_refused_where_no_token_is_set(local: Caller, host: str) -> None:
    status, _ = await local.call("POST", "/purge", PURGE_ALL, {"Host": host})
    assert (status, local.store.purges) == (403, [])


@pytest.mark.parametrize(
    "host", ["localhost:8081", "LOCALHOST", "127.0.0.1", "[::1]:8081", "127.0.0.9:1", "0.0.0.0:8081"]
)
async def test_names_of_this_machine_are_taken(local: Caller, host: str) -> None:
    assert (await local.call("POST", "/purge", PURGE_ALL, {"Host": host}))[0] == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
async def test_a_stranger_behind_a_local_proxy_is_not_local(local: Caller, header: str) -> None:
    assert (await local.call("POST", "/purge", PURGE_ALL, {header: "203.0.113.9"}))[0] == 403


async def test_a_purge_says_what_it_removed(local: Caller) -> None:
    asked = {"model": "gpt-*", "tenant": "shop", "user": None, "erase": True, "dry_run": True}
    assert await local.call("POST", "/purge", asked) == (200, {"purged": 7, "erase": True, "dry_run": True})
    assert local.store.purges == [(Selector(model="gpt-*", tenant="shop"), True, True)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"all": false}',
        b'{"dry_run": true}',
        b'{"all": true, "tenant": "shop"}',
        b'{"all": "yes"}',
        b'{"all": 1}',
        b'{"tenants": "shop"}',
        b'{"tenant": ""}',
        b'{"tenant": ["shop"]}',
        b'{"tenant": null}',
        b'{"dry_run": true, "all": true, "dry_run": false}',
        b'{"all": true} {"all": true}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
async def test_a_purge_that_is_not_plainly_meant_is_refused(local: Caller, body: bytes) -> None:
    status, answer = await local.call("POST", "/purge", body)
    assert (status, local.store.purges) == (400, [])
    assert answer["error"]["message"]


def test_a_complaint_about_a_purge_names_the_field_and_those_there_are() -> None:
    with pytest.raises(ClientError, match=r"tenants: no such field; there are all, dry_run, .*tenant"):
        read_purge(b'{"tenants": "shop"}')


async def test_a_body_past_the_limit_is_refused(local: Caller) -> None:
    async def too_much() -> AsyncIterator[bytes]:
        yield b'{"text": "'
        for _ in range(MAX_BODY // 65536 + 1):
            yield b"x" * 65536

    async with local.session.post(local.url + "/purge", data=too_much()) as response:
        status, answer = response.status, await response.json()
    assert (status, local.store.purges) == (413, [])
    assert answer["error"]["status"] == 413


async def test_an_export_is_the_lines_of_the_store(local: Caller) -> None:
    assert await local.call("POST", "/export") == (200, b'{"entry": 1}\n{"entry": 2}\n')
    assert local.store.exports_open == 0


async def test_an_export_that_breaks_off_does_not_look_whole(local: Caller) -> None:
    local.store.fault, local.store.fault_after = StoreFault("disk gone"), 1
    with pytest.raises(aiohttp.ClientError):
        await local.call("POST", "/export")
    assert local.store.exports_open == 0


async def test_a_store_that_fails_at_once_is_a_plain_error(local: Caller) -> None:
    local.store.fault = StoreFault("the store cannot be read")
    for path, body in (("/export", None), ("/purge", PURGE_ALL)):
        status, answer = await local.call("POST", path, body)
        assert (status, answer["error"]["message"]) == (503, "the store cannot be read")


async def test_an_empty_export_is_empty(local: Caller) -> None:
    local.store.lines = []
    assert await local.call("POST", "/export") == (200, b"")


async def test_an_import_gets_its_lines_whole_wherever_the_network_cuts(local: Caller) -> None:
    lines = [b'{"entry": %d}\n' % number for number in range(50)] + [b'{"last": "without newline"}']

    async def crumbs() -> AsyncIterator[bytes]:
        whole = b"".join(lines)
        for start in range(0, len(whole), 7):
            yield whole[start : start + 7]

    async with local.session.post(local.url + "/import", data=crumbs()) as response:
        assert (response.status, await response.json()) == (200, {"imported": 51})
    assert local.store.imported == lines


async def test_an_import_of_something_else_is_refused_in_words(local: Caller) -> None:
    status, answer = await local.call("POST", "/import", b"good\nbad\n")
    assert (status, answer["error"]["message"]) == (400, "line 2: not an entry")


async def test_an_endless_line_is_cut_off() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"short\n"
        while True:
            yield b"x" * 100

    lines = split_lines(endless(), limit_bytes=1000)
    assert await anext(lines) == b"short\n"
    with pytest.raises(ClientError, match="longer than 1000 bytes"):
        await anext(lines)


async def test_a_failure_inside_shows_no_insides(local: Caller) -> None:
    local.store.fault = RuntimeError("secret path /home/somebody")
    status, answer = await local.call("POST", "/purge", PURGE_ALL)
    assert status == 500
    assert "secret" not in json.dumps(answer)


async def test_unknown_paths_and_methods_are_errors_in_json(local: Caller) -> None:
    assert (await local.call("GET", "/nothing"))[1]["error"]["status"] == 404
    assert (await local.call("GET", "/purge"))[1]["error"]["status"] == 405
    assert (await local.call("DELETE", "/metrics"))[1]["error"]["status"] == 405


async def test_what_cannot_be_parsed_is_in_no_log(local: Caller, caplog: pytest.LogCaptureFixture) -> None:
    port = int(local.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer top-secret\r\n\r\n")
    assert b" 400 " in await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert "top-secret" not in caplog.text


async def test_a_taken_port_is_one_clear_line(local: Caller) -> None:
    port = int(local.url.rpartition(":")[2])
    figures = SimpleNamespace(render=lambda: b"")
    with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}.*server\.admin_port"):
        await Admin(Server(), Store(), figures, list, dict, Explaining(), Shadowing()).start("127.0.0.1", port)

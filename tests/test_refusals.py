"""Whatever is refused is refused in the words of the dialect, and as the dialect's own SDK raises it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from tests.front_doors import DOORS, Door, Raw, post
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import Close, Expect, ScriptedUpstream, Send, Step, WaitForClose

QUESTION = "Which tyres fit my bicycle best in winter"
OURS, THEIRS = "sk-of-a-caller", "sk-of-the-backend"  # neither may ever be told
TENANT = f"tenants: [{{name: shop, keys: [{OURS}], namespaces: [docs], regions: [eu]}}]\n"

_OPENAI: Mapping[int, type[Exception]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    408: openai.APIStatusError,
    413: openai.APIStatusError,
    415: openai.APIStatusError,
    429: openai.RateLimitError,
}
_ANTHROPIC: Mapping[int, type[Exception]] = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    408: anthropic.RequestTimeoutError,
    413: anthropic.ContentTooLargeError,
    415: anthropic.APIStatusError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    502: anthropic.InternalServerError,
    503: anthropic.ServiceUnavailableError,
    504: anthropic.GatewayTimeoutError,
}


def raised_by(door: Door, status: int) -> type[Exception]:
    if door.name in ("ollama", "generate"):
        return ollama.ResponseError
    if door.name == "messages":
        return _ANTHROPIC[status]
    return _OPENAI.get(status, openai.InternalServerError)


@dataclass
class Place:
    """A proxy about to refuse something."""

    proxy: Proxy
    upstream: ScriptedUpstream

    @property
    def root(self) -> str:
        return self.proxy.url.removesuffix("/v1")


@dataclass(frozen=True)
class Refusal:
    name: str
    status: int
    says: str  # part of the message
    settings: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    key: str = OURS
    script: tuple[Step, ...] = (Expect(), Close())
    body: Callable[[bytes], bytes] = lambda body: body
    head_only: bool = False  # the body never comes
    in_the_way: Callable[[Place], Any] | None = None  # an async context in which it is refused
    retry_helps: bool = True  # of those that SDKs try again: 408, 409, 429 and all above
    except_for: tuple[str, ...] = ()  # dialects that cannot get there
    is_relayed: bool = False  # the upstream's own words


@asynccontextmanager
async def crowd(place: Place) -> AsyncIterator[None]:
    port = int(place.root.rpartition(":")[2])
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await until(lambda: place.proxy.app.listener.stats()["connections"] == 3)
    yield
    for _, writer in pairs:
        writer.close()


@asynccontextmanager
async def stopping(place: Place) -> AsyncIterator[None]:
    """The program ends, its drain's deadline with it, as soon as the request is on its way."""

    async def stop() -> None:
        await until(lambda: place.upstream.requests)
        await place.proxy.app.stop()

    stopped = asyncio.create_task(stop())
    yield
    await stopped


def upstream_says(raw: bytes) -> tuple[Step, ...]:
    return (Expect(), Send(raw), Close())


def relayed(status: str, *fields: str) -> tuple[Step, ...]:
    body = b'{"error":{"message":"their own words","type":"api_error"},"type":"error"}'
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *fields, f"Content-Length: {len(body)}"]
    return upstream_says("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


REFUSALS = [
    Refusal("a body cut short", 400, "not the JSON", body=lambda body: body[:-1]),
    Refusal("no model", 400, "model", body=lambda body: body.replace(b'"small"', b"7"), except_for=("azure",)),
    Refusal("a directive that is none", 400, "similarity", headers={"Semcache-Control": "similarity=close"}),
    Refusal("an unknown key", 401, "not known here", key="sk-of-nobody"),
    Refusal("a foreign namespace", 403, "may not use", headers={"Semcache-Control": "namespace=secrets"}),
    Refusal("no backend in the region", 403, "backends in eu only", settings="region: us"),
    Refusal("no route", 404, "no route serves", settings="routes: [{models: [large]}]"),
    Refusal("a slow body", 408, "did not arrive", settings="body_timeout: 0.05", head_only=True),
    Refusal("too large", 413, "larger than", settings="max_body: 64"),
    Refusal("an unknown coding", 415, "Content-Encoding", headers={"Content-Encoding": "br"}),
    Refusal("their limit", 429, "their own words", script=relayed("429 Too Many", "Retry-After: 7"), is_relayed=True),
    Refusal("their failure", 500, "their own words", script=relayed("500 Oops"), is_relayed=True),
    Refusal("a dead backend", 502, "it[0] refuses", settings="port: 1"),
    Refusal("bad framing", 502, "it[0]", script=upstream_says(b"220 smtp ready\r\n")),
    Refusal("a lost answer", 502, "it[0]", script=(Expect(), Close())),
    Refusal("too many connections", 503, "too many", settings="max_connections: 3", in_the_way=crowd),
    Refusal("stopping", 503, "stopping", settings="drain: 0", script=(Expect(), WaitForClose()), in_the_way=stopping),
    Refusal("a deadline", 504, "it[0]", settings="first_byte: 0.05", script=(Expect(), WaitForClose())),
    Refusal(
        "only what is cached", 504, "nothing stored", headers={"Cache-Control": "only-if-cached"}, retry_helps=False
    ),
]


@asynccontextmanager
async def prepared(folder: Path, refusal: Refusal) -> AsyncIterator[Place]:
    name, _, value = refusal.settings.partition(": ")
    async with ScriptedUpstream([refusal.script]) as upstream:
        port = value if name == "port" else upstream.port
        region = value if name == "region" else "eu"
        backend = f"{{url: 'http://127.0.0.1:{port}/v1', api_key: {THEIRS}, region: {region}}}"
        first_byte = f"first_byte: {value}, " if name == "first_byte" else ""
        settings = f"pools: {{it: {{{first_byte}backends: [{backend}]}}}}\n{TENANT}"
        if name == "routes":
            settings += refusal.settings
        if name in ("body_timeout", "max_body", "max_connections", "drain"):
            settings += f"server: {{{refusal.settings}}}\n"
        async with running_proxy(folder, settings) as proxy:
            yield Place(proxy, upstream)


async def without_body(door: Door, root: str) -> Raw:
    """A request whose body never comes, and its answer."""
    host, _, port = root.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fields = "".join(f"{name}: {value}\r\n" for name, value in door.key(OURS).items())
    writer.write(f"POST {door.path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: 99\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    lines = head.decode().split("\r\n")
    return Raw(int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body)


def replaying(door: Door, seen: Raw) -> dict[str, Any]:
    """A client's options with which it gets this answer and no other."""
    library: Any = httpx if door.name in ("ollama", "generate") else httpx2
    transport = library.MockTransport(
        lambda request: library.Response(seen.status, headers=list(seen.headers.items()), content=seen.body)
    )
    if library is httpx:
        return {"transport": transport}
    return {"http_client": library.AsyncClient(transport=transport)}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
async def test_a_refusal_has_the_dialects_shape_and_the_sdk_raises_its_own_exception(
    tmp_path: Path, door: Door, refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    if door.name in refusal.except_for:
        pytest.skip("this dialect cannot get there")
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(prepared(tmp_path, refusal))
        if refusal.in_the_way is not None:
            await stack.enter_async_context(refusal.in_the_way(place))
        if refusal.head_only:
            seen = await without_body(door, place.root)
        else:
            body = refusal.body(json.dumps(door.request(QUESTION, False)).encode())
            seen = await post(door, place.root, body, refusal.key, **refusal.headers)
    assert seen.status == refusal.status, seen.body
    if not refusal.is_relayed:
        assert_shape(door, seen.body)
        assert refusal.says in message_of(door, seen.body)

    told = seen.body.decode() + str(seen.headers) + caplog.text
    for secret in (OURS, THEIRS, "sk-of-nobody", QUESTION, "Traceback", 'File "', "/home/"):
        assert secret not in told

    is_tried_again = seen.status in (408, 409, 429) or seen.status >= 500
    forbids = {name.lower(): value for name, value in seen.headers.items()}.get("x-should-retry") == "false"
    assert forbids == (is_tried_again and not refusal.retry_helps)

    with pytest.raises(raised_by(door, refusal.status)) as raised:
        await door.through_sdk("http://proxy.example", QUESTION, stream=False, **replaying(door, seen))
    assert type(raised.value) is raised_by(door, refusal.status)
    assert refusal.says in str(raised.value)
    told_status: Any = raised.value
    assert told_status.status_code == refusal.status


def message_of(door: Door, body: bytes) -> str:
    error = json.loads(body)["error"]
    return str(error if isinstance(error, str) else error["message"])


def assert_shape(door: Door, body: bytes) -> None:
    error = json.loads(body)
    if door.name in ("ollama", "generate"):
        assert list(error) == ["error"]
        assert isinstance(error["error"], str)
    elif door.name == "messages":
        assert error["type"] == "error"
        assert sorted(error["error"]) == ["message", "type"]
        assert isinstance(error["request_id"], str)
    else:
        assert sorted(error["error"]) == ["code", "message", "param", "type"]

"""What no dialect caches goes through as it is: every method of the installed SDKs, and uploads that are never held."""

from __future__ import annotations

import asyncio
import inspect
import re
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from aiohttp import web

from semcache import wire
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import (
    Close,
    Expect,
    ExpectHead,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    Wait,
    WaitForClose,
    answer,
)

BYPASSED = "semcache; fwd=bypass; fwd-status=200; detail=endpoint"
FILE = ("a file.bin", bytes(range(256)) * 40 + b"\r\n--not-the-boundary--\r\n", "application/x-thing")
MB = 1024 * 1024


@dataclass(frozen=True)
class Seen:
    method: str
    target: str
    content_type: str | None
    body: bytes
    key: str | None


@dataclass
class Recorder:
    """A backend that notes what arrives and answers in JSON as no library would write it."""

    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    public_url: str = ""  # the proxy's

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Recorder]:
        application = web.Application(client_max_size=64 * MB)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        fields = request.headers
        key = fields.get("Authorization") or fields.get("x-api-key")
        body = await request.read()
        self.seen.append(Seen(request.method, request.raw_path, fields.get("Content-Type"), body, key))
        return web.Response(body=self.reply(len(self.seen)), content_type="application/json")

    def reply(self, number: int) -> bytes:
        """The SDK takes a batch's results from where the batch says that they are."""
        link = b"%b/v1/messages/batches/b/results" % self.public_url.encode()
        return b'{ "id" : "%d", "\xc3\xa4":\t"\\u00e4", "data":[], "results_url": "%b" }\r\n' % (number, link)


# Every method of the SDKs


Client = openai.AsyncOpenAI | anthropic.AsyncAnthropic
Method = Callable[..., Awaitable[Any]]

# Called with more than they require, for what they send is then another kind of body.
ALSO: dict[str, dict[str, Any]] = {
    "skills.create": {"files": [FILE]},
    "videos.create": {"input_reference": FILE},
    "containers.files.create": {"file": FILE},
    "videos.edit": {"video": FILE},
    "videos.extend": {"video": FILE},
}


def resources(client: Client) -> Iterator[str]:
    for name in sorted(dir(type(client))):
        static = inspect.getattr_static(type(client), name)
        if type(static).__name__ == "cached_property" and not name.startswith(("_", "with_")):
            yield name


def methods(resource: Any, name: str) -> Iterator[tuple[str, Method]]:
    """Whatever of a resource makes a request, by its name in the SDK."""
    raw = getattr(resource, "with_raw_response", None)  # those that speak WebSocket alone have none
    for attribute, method in vars(raw).items() if raw else ():
        if not attribute.startswith("_"):
            yield f"{name}.{attribute}", method
    for attribute in dir(type(resource)):
        static = inspect.getattr_static(type(resource), attribute)
        if type(static).__name__ == "cached_property" and not attribute.startswith(("_", "with_")):
            yield from methods(getattr(resource, attribute), f"{name}.{attribute}")


def value_for(annotation: str) -> Any:
    """Something of about that type. The SDKs look at no more than files and lists before they send it."""
    if "FileTypes" in annotation:
        return [FILE] if "Sequence" in annotation and not annotation.startswith("Union") else FILE
    if annotation.startswith(("SequenceNotStr", "List")):
        return ["one", "two"]
    if annotation.startswith("Iterable"):
        return [{"kind": "ä"}]
    if annotation == "int":
        return 3
    if re.search(r"\bstr\b|Literal|Model(Param)?$|Role$|Purpose$|Seconds$", annotation) and not annotation.startswith(
        ("Dict", "Optional[Dict")
    ):
        return "x y"
    return {"kind": "ä"}


async def call(name: str, method: Method) -> Any:
    parameters = inspect.signature(method).parameters
    required = [p for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    arguments = {p.name: value_for(str(p.annotation)) for p in required} | ALSO.get(name, {})
    arguments = {key: value for key, value in arguments.items() if key in parameters}
    try:
        return await method(**arguments)
    except TypeError as exc:  # which of its overloads is meant
        wanted = re.search(r"Missing required argument[^(]*?(?:\(([^)]*)\)|: '(\w+)')", str(exc))
        if wanted is None:
            raise
        names = [wanted[2]] if wanted[2] else re.findall(r"'(\w+)'", wanted[1])
        return await method(**{key: value_for(str(parameters[key].annotation)) for key in names} | arguments)


def clients(base_url: str = "http://unused") -> dict[str, Client]:
    return {
        "openai": openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="sk-test", admin_api_key="sk-test"),
        "anthropic": anthropic.AsyncAnthropic(base_url=base_url, api_key="sk-test"),
    }


@asynccontextmanager
async def watched(sdk: str, url: str, sent: list[httpx2.Request]) -> AsyncIterator[Client]:
    """A client of the SDK, and every request as it was when it left it."""

    async def note(request: httpx2.Request) -> None:
        await request.aread()
        sent.append(request)

    async with httpx2.AsyncClient(event_hooks={"request": [note]}) as http:
        client = clients(url)[sdk].with_options(http_client=http, max_retries=0)
        yield client


def target_of(request: httpx2.Request) -> str:
    return request.url.raw_path.decode()


def is_cached(request: httpx2.Request) -> bool:
    return request.method == "POST" and wire.find_address(target_of(request)) is not None


@pytest.mark.parametrize("sdk, name", [(sdk, name) for sdk, client in clients().items() for name in resources(client)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # assistants are old, and in use
async def test_every_method_of_a_resource_passes_untouched(tmp_path: Path, sdk: str, name: str) -> None:
    sent: list[httpx2.Request] = []
    passed = 0
    async with Recorder().running() as backend:
        settings = f"pools: {{it: {{backends: [{{url: '{backend.url}/v1'}}]}}}}"
        async with running_proxy(tmp_path, settings) as proxy:
            backend.public_url = f"http://127.0.0.1:{proxy.app.port}"
            async with watched(sdk, backend.public_url, sent) as client:
                for label, method in methods(getattr(client, name), name):
                    sent.clear()
                    backend.seen.clear()
                    try:
                        reply = await call(label, method)
                    except (openai.APIStatusError, anthropic.APIStatusError) as exc:
                        if is_cached(sent[0]):  # a dialect's own, and what was made up for it is no question
                            continue
                        raise AssertionError(f"{label}: {exc}") from exc
                    if is_cached(sent[0]):
                        continue
                    for request, seen in zip(sent, backend.seen, strict=True):
                        assert (seen.method, seen.target) == (request.method, target_of(request)), label
                        assert seen.content_type == request.headers.get("content-type"), label
                        assert seen.body == request.content, label
                        assert seen.key == (request.headers.get("authorization") or request.headers.get("x-api-key"))
                    assert await reply.http_response.aread() == backend.reply(len(backend.seen)), label
                    assert reply.headers["cache-status"] == BYPASSED, label
                    passed += 1
    assert passed or name in {"completions", "embeddings", "messages", "responses"}, "nothing was asked"


def first_segments(sdk: str) -> set[str]:
    """Of every path that the SDK asks for, as its source has them."""
    source = Path(inspect.getfile(openai if sdk == "openai" else anthropic)).parent / "resources"
    found: set[str] = set()
    for path in source.rglob("*.py"):
        found |= set(re.findall(r'^\s+(?:path_template\()?"/([a-z_]+)(?:[/"?])', path.read_text("utf-8"), re.MULTILINE))
        found |= set(re.findall(r'path_template\(\s*"/([a-z_]+)[/"?]', path.read_text("utf-8")))
    return found - {"v1"}


def test_a_base_url_without_a_version_reaches_every_resource() -> None:
    asked = first_segments("openai")
    assert {"files", "realtime", "audio"} <= asked
    assert {segment for segment in asked if not wire.is_model_path(f"/{segment}/x")} == set()


async def test_a_download_is_streamed_byte_for_byte(tmp_path: Path) -> None:
    audio = bytes(range(256)) * 4096
    gate = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: %d\r\n\r\n" % len(audio)
    async with facing(tmp_path, [Expect(), Send(head + audio[:5000]), Wait(gate), Send(audio[5000:])]) as (proxy, _):
        async with proxy.client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="hello"
        ) as speech:
            pieces = speech.iter_bytes()
            got = b""
            while len(got) < 5000:
                got += await anext(pieces)
            assert got == audio[:5000]
            gate.set()
            async for piece in pieces:
                got += piece
        assert got == audio
        assert speech.headers["cache-status"] == BYPASSED
        assert speech.headers["content-type"] == "audio/mpeg"
        assert speech.headers["content-length"] == str(len(audio))  # by which a client shows how far it is


async def test_a_download_that_is_cut_does_not_look_complete(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 10\r\n\r\n"
    async with facing(tmp_path, [Expect(), Send(head + b"12345"), Close()]) as (proxy, _):
        with pytest.raises(openai.APIConnectionError):
            await proxy.client.files.content("file-1")


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
async def test_what_has_no_body_keeps_the_length_that_it_speaks_of_only_where_it_may(
    tmp_path: Path, status: str
) -> None:
    """Of a HEAD it is that of the file."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: 12345\r\n\r\n".encode()
    async with facing(tmp_path, [ExpectHead(), Send(head)], [ExpectHead(), Send(head)]) as (proxy, _):
        async with httpx2.AsyncClient() as client:
            for _ in range(2):
                reply = await client.head(f"{proxy.url}/files/f/content")
                assert (reply.status_code, reply.content) == (int(status[:3]), b"")
                assert reply.headers.get("content-length") == ("12345" if reply.status_code == 200 else None)


# Uploads


@dataclass
class Sink:
    """A backend that counts an upload's bytes as they arrive, and answers once it has as many as were declared."""

    head: bytes = b""
    received: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sink]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", self.head)
            while length is None or self.received < int(length[1]):
                piece = await reader.read(64 * 1024)
                if not piece:
                    self.lost.set()
                    return
                self.received += len(piece)
            writer.write(answer(b'{"id": "file-1"}').raw)
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def facing(
    folder: Path, *scripts: list[Step], settings: str = ""
) -> AsyncIterator[tuple[Proxy, ScriptedUpstream]]:
    async with ScriptedUpstream(scripts) as upstream:
        async with running_proxy(folder, before(upstream.port) + settings) as proxy:
            yield proxy, upstream


def before(port: int) -> str:
    return f"pools: {{it: {{backends: [{{url: 'http://127.0.0.1:{port}/v1'}}]}}}}\n"


def upload(length: int | None, *fields: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    form = "Content-Type: multipart/form-data; boundary=b"
    return "\r\n".join(["POST /v1/files HTTP/1.1", "Host: proxy", form, framing, *fields, "", ""]).encode()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.app.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def pour(writer: asyncio.StreamWriter, length: int) -> None:
    piece = b"x" * 64 * 1024
    for _ in range(length // len(piece)):
        writer.write(piece)
        await writer.drain()


@pytest.mark.both_loops
async def test_an_upload_is_passed_on_as_it_comes_and_never_held(tmp_path: Path) -> None:
    size = 64 * MB  # twice what a request that is read may have
    async with Sink().running() as sink, running_proxy(tmp_path, before(sink.port)) as proxy:
        async with connected(proxy) as (reader, writer):
            writer.write(upload(size))
            await pour(writer, MB)
            await until(lambda: sink.received == MB)  # and the client has not sent the rest
            tracemalloc.start()
            try:
                await pour(writer, size - MB)
                head = await reader.readuntil(b"\r\n\r\n")
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n") and BYPASSED.encode() in head
            assert sink.received == size
            assert peak < 4 * MB
        assert b"\r\ncontent-length: %d\r\n" % size in sink.head
        assert b"transfer-encoding" not in sink.head


@pytest.mark.both_loops
async def test_a_backend_that_does_not_read_leaves_the_upload_with_the_client(tmp_path: Path) -> None:
    async with facing(tmp_path, [ExpectHead(), Wait(asyncio.Event())]) as (proxy, upstream):
        async with connected(proxy) as (_, writer):
            writer.write(upload(64 * MB))
            await pour(writer, 64 * 1024)
            await until(lambda: upstream.requests)
            tracemalloc.start()
            try:
                pouring = asyncio.create_task(pour(writer, 64 * MB))
                await asyncio.wait([pouring], timeout=0.5)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert not pouring.done()
            assert peak < 4 * MB
            pouring.cancel()


async def test_an_upload_of_unknown_length_goes_out_in_chunks(tmp_path: Path) -> None:
    async with facing(tmp_path, [Expect(), answer()]) as (proxy, upstream):
        async with connected(proxy) as (reader, writer):
            writer.write(upload(None) + b"5\r\nhello\r\n0\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        [seen] = upstream.requests
        assert (seen.body, seen.all("transfer-encoding"), seen.all("content-length")) == (b"hello", ["chunked"], [])


@pytest.mark.both_loops
@pytest.mark.parametrize("length", [2 * MB, None])
async def test_a_client_that_leaves_in_mid_upload_takes_the_request_with_it(tmp_path: Path, length: int | None) -> None:
    async with facing(tmp_path, [ExpectHead(), WaitForClose()]) as (proxy, upstream):
        async with connected(proxy) as (_, writer):
            writer.write(upload(length) + (b"10000\r\n" if length is None else b"") + b"x" * 65536)
            await until(lambda: upstream.requests)
        async with asyncio.timeout(5):
            await upstream.closed.wait()
        await until(lambda: proxy.app.listener.stats()["requests"] == 0)


@pytest.mark.both_loops
async def test_a_client_that_stalls_in_mid_upload_is_told_and_the_backend_cut(tmp_path: Path) -> None:
    settings = "server: {body_timeout: 50ms}\n"
    async with Sink().running() as sink, running_proxy(tmp_path, before(sink.port) + settings) as proxy:
        async with connected(proxy) as (reader, writer):
            writer.write(upload(2 * MB) + b"x" * 65536)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            await sink.lost.wait()
            assert sink.received == 65536


@pytest.mark.both_loops
@pytest.mark.parametrize("ending", [[WaitForClose()], [Close()], [Reset()]], ids=["stays", "closes", "resets"])
@pytest.mark.parametrize("status", ["413 Content Too Large", "401 Unauthorized"])
async def test_an_early_answer_is_relayed_while_the_upload_runs(
    tmp_path: Path, status: str, ending: list[Step]
) -> None:
    refusal = answer(b'{"error": {"message": "no"}}', "Connection: close", status=status)
    script: list[Step] = [ExpectHead(), refusal, *ending]
    async with facing(tmp_path, script) as (proxy, _):
        for _ in range(10):
            async with connected(proxy) as (reader, writer):
                writer.write(upload(64 * MB))
                pouring = asyncio.create_task(pour(writer, 64 * MB))
                try:
                    reply = await reader.readuntil(b"\r\n\r\n")
                    assert reply.startswith(f"HTTP/1.1 {status[:3]} ".encode())
                    assert await reader.readexactly(28) == b'{"error": {"message": "no"}}'
                finally:
                    pouring.cancel()
                    await asyncio.gather(pouring, return_exceptions=True)


async def test_an_upload_has_a_limit_of_its_own(tmp_path: Path) -> None:
    settings = "server: {max_body: 64KB, max_upload: 1MB}\n"
    async with facing(tmp_path, [Expect(), answer()], settings=settings) as (proxy, upstream):
        async with connected(proxy) as (reader, writer):
            writer.write(upload(1_000_000) + b"x" * 1_000_000)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        async with connected(proxy) as (reader, writer):
            writer.write(upload(1_000_001, "Expect: 100-continue"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert upstream.connections == 1


async def test_an_upload_of_the_sdk_raises_the_right_error_when_it_is_too_large(tmp_path: Path) -> None:
    async with facing(tmp_path, [Expect(), answer()], settings="server: {max_upload: 1KB}\n") as (proxy, upstream):
        with pytest.raises(openai.APIStatusError, match="larger than 1000 bytes") as refused:
            await proxy.client.files.create(file=FILE, purpose="user_data")
        assert refused.value.status_code == 413
        assert upstream.requests == []


async def test_the_model_in_a_form_picks_the_route(tmp_path: Path) -> None:
    async with Recorder().running() as voice, Recorder().running() as other:
        settings = f"""
        pools: {{voice: {{backends: [{{url: '{voice.url}/v1'}}]}}, other: {{backends: [{{url: '{other.url}/v1'}}]}}}}
        routes: [{{models: ["whisper-*"], pools: [voice]}}, {{models: ["*"], pools: [other]}}]
        """
        async with running_proxy(tmp_path, settings) as proxy:
            for model in ("whisper-1", "gpt-4o-transcribe"):
                await proxy.client.audio.transcriptions.with_raw_response.create(model=model, file=FILE)
            await proxy.client.files.with_raw_response.create(file=FILE, purpose="user_data")
        assert [seen.target for seen in voice.seen] == ["/v1/audio/transcriptions"]
        assert [seen.target for seen in other.seen] == ["/v1/audio/transcriptions", "/v1/files"]
        assert FILE[1] in voice.seen[0].body

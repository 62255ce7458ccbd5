"""The real proxy among enemies: broken upstreams, crafted requests, clients that leave. The official SDK is the judge.

What single parts do with such input is tested beside them; here it is what a client sees, and what is kept of it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from semcache.types import Selector
from semcache.wire.recording import WINDOW_BYTES
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import Close, Expect, Reset, ScriptedUpstream, Send, Step, Wait, WaitForClose

ANY_FAILURE = (openai.OpenAIError, httpx2.TransportError)

QUESTION = "Which tyres fit my bicycle best in winter"

CHAT = "POST /v1/chat/completions HTTP/1.1"
JSON_TYPE = "Content-Type: application/json"
SSE_TYPE = "Content-Type: text/event-stream"


def choice(text: str | None = "Studded ones.", finish: str | None = "stop", index: int = 0, **more: Any) -> Any:
    return {"index": index, "message": {"role": "assistant", "content": text, **more}, "finish_reason": finish}


def completion(*choices: Any, **more: Any) -> bytes:
    head = {"id": "chatcmpl-u", "object": "chat.completion", "created": 1, "model": "small"}
    return json.dumps({**head, "choices": list(choices or [choice()]), **more}).encode()


def event(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    piece = {"index": index, "delta": delta, "finish_reason": finish, **more}
    head = {"id": "chatcmpl-u", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    return b"data: %b\n\n" % json.dumps({**head, "choices": [piece]}).encode()


DONE = b"data: [DONE]\n\n"
STREAM = (event({"role": "assistant", "content": "Studded"}), event({"content": " ones."}), event({}, "stop"), DONE)


def framed(body: Sequence[bytes], content_type: str, framing: str, status: str = "200 OK", *fields: str) -> bytes:
    """A whole answer, its end told by its length, by its last chunk, or by nothing but the end of the connection."""
    joined = b"".join(body)
    match framing:
        case "length":
            own = [f"Content-Length: {len(joined)}", "Connection: close"]
        case "chunked":
            own = ["Transfer-Encoding: chunked", "Connection: close"]
            joined = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body) + b"0\r\n\r\n"
        case _:
            own = []
    version = "HTTP/1.0" if framing == "close" else "HTTP/1.1"
    return "\r\n".join([f"{version} {status}", content_type, *fields, *own, "", ""]).encode() + joined


def says(raw: bytes) -> list[Step]:
    return [Expect(), Send(raw), Close()]


def says_json(body: bytes, status: str = "200 OK", *fields: str) -> list[Step]:
    return says(framed([body], JSON_TYPE, "length", status, *fields))


def says_events(*events: bytes) -> list[Step]:
    return says(framed(events or STREAM, SSE_TYPE, "chunked"))


@dataclass
class Faced:
    """A proxy and the upstream it faces."""

    proxy: Proxy
    upstream: ScriptedUpstream

    @property
    def calls(self) -> int:
        return len(self.upstream.requests)

    async def ask(self, **more: Any) -> Any:
        return await self.proxy.ask(QUESTION, **more)

    async def is_kept(self) -> bool:
        """Whether the store would answer it now."""
        await self.proxy.landed()
        seen = await post(self.proxy, body_of(), Cache_Control="only-if-cached")
        assert seen.status in (200, 504)
        return seen.status == 200


@asynccontextmanager
async def facing(folder: Path, *scripts: list[Step], settings: str = "", pool: str = "") -> AsyncIterator[Faced]:
    async with ScriptedUpstream(scripts) as upstream:
        pools = f"pools: {{it: {{{pool} backends: [{{url: 'http://127.0.0.1:{upstream.port}/v1'}}]}}}}\n"
        async with running_proxy(folder, pools + settings) as proxy:
            yield Faced(proxy, upstream)


@pytest.fixture
async def proxy(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with running_proxy(tmp_path) as running:
        yield running


def body_of(question: str = QUESTION, **more: Any) -> bytes:
    return json.dumps({"model": "small", "messages": [{"role": "user", "content": question}], **more}).encode()


def request(*fields: str, body: bytes = b"", line: str = CHAT, length: bool = True) -> bytes:
    own = [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([line, "Host: proxy", JSON_TYPE, *own, *fields, "", ""]).encode() + body


async def exchange(proxy: Proxy, raw: bytes) -> bytes:
    """Send bytes and return all that comes until the proxy closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.app.port)
    writer.write(raw)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@dataclass
class Seen:
    status: int
    headers: Any
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found

    @property
    def tree(self) -> Any:
        """The JSON body less what is fresh with every reply."""
        return {name: value for name, value in json.loads(self.body).items() if name not in ("id", "created")}

    @property
    def chunks(self) -> list[Any]:
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        assert lines.pop() == b"[DONE]"
        return [json.loads(line) for line in lines]


async def post(proxy: Proxy, body: bytes, path: str = "/chat/completions", **fields: Any) -> Seen:
    """Through a client that takes everything as it comes. A field may have several values."""
    pairs = [("Content-Type", "application/json"), ("Authorization", "Bearer sk-test")]
    for name, values in fields.items():
        pairs += [(name.replace("_", "-"), value) for value in ([values] if isinstance(values, str) else values)]
    async with (
        aiohttp.ClientSession() as session,
        session.post(proxy.url + path, data=body, headers=pairs, allow_redirects=False) as reply,
    ):
        return Seen(reply.status, reply.headers, await reply.read())


# Framing, from the client's side (cases 1 to 18)


@pytest.mark.parametrize(
    "fields",
    [
        ("Transfer-Encoding: chunked",),  # beside the Content-Length
        ("Content-Length: 1",),
        ("Transfer-Encoding: xchunked",),
        ("Connection: close, authorization",),
        ("Connection: close", "Connection: content-length"),
        ("Connection: close, Host",),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
async def test_an_ambiguous_head_is_a_400_even_where_the_answer_is_stored(
    proxy: Proxy, fields: tuple[str, ...], stored: bool
) -> None:
    if stored:
        await post(proxy, body_of())
    calls = proxy.backend.requests
    reply = await exchange(proxy, request(*fields, "Authorization: Bearer sk-test", "X-Last: 1", body=body_of()))
    assert reply.startswith(b"HTTP/1.1 400 "), reply
    assert b"Cache-Status" not in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert proxy.backend.requests == calls


async def test_a_request_hidden_in_anothers_body_is_never_one_of_its_own(proxy: Proxy) -> None:
    hidden = b"0\r\n\r\n" + request(body=body_of("smuggled"))
    reply = await exchange(proxy, request("Transfer-Encoding: chunked", body=hidden))
    assert reply.count(b"HTTP/1.1 ") == 1
    assert proxy.backend.paths == []


async def test_what_connection_lists_is_removed_in_both_directions(tmp_path: Path) -> None:
    script = says_json(
        completion(), "200 OK", "Connection: X-Theirs", "X-Theirs: 1", "Keep-Alive: timeout=5", "X-Kept: 2"
    )
    async with facing(tmp_path, script) as faced:
        raw = request("Connection: close, X-Mine", "X-Mine: 1", "TE: trailers", "X-Stays: 2", body=body_of())
        reply = (await exchange(faced.proxy, raw)).lower()
        (sent,) = faced.upstream.requests
        assert [sent.all(name) for name in ("x-mine", "te", "x-stays")] == [[], [], ["2"]]
        assert b"x-theirs" not in reply
        assert b"keep-alive" not in reply
        assert b"x-kept: 2" in reply


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (request(line=f"POST /v1/{{path}}?{'x' * 9000} HTTP/1.1"), 414),
        (request(f"X-Long: {'x' * 9000}", line="POST /v1/{path} HTTP/1.1"), 431),
        (request(*["X: 1"] * 129, line="POST /v1/{path} HTTP/1.1"), 431),
        (request("Content-Length: 100000000", line="POST /v1/{path} HTTP/1.1", length=False), 413),
        (request("Content-Encoding: gzip", "Connection: close", body=b"x", line="POST /v1/{path} HTTP/1.1"), 400),
        (request("Content-Encoding: br", "Connection: close", body=b"x", line="POST /v1/{path} HTTP/1.1"), 415),
    ],
    ids=["target", "field", "fields", "length", "gzip", "br"],
)
@pytest.mark.parametrize("path", ["chat/completions", "messages"])
async def test_refusals_have_the_callers_dialect_and_no_cache_status(
    proxy: Proxy, raw: bytes, status: int, path: str
) -> None:
    reply = await exchange(proxy, raw.replace(b"{path}", path.encode()))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"cache-status" not in head.lower()
    assert ("type" in json.loads(body)) == (path == "messages")
    assert proxy.backend.paths == []


@pytest.mark.parametrize(
    ("fields", "status"), [(("Authorization: Bearer wrong",), 401), (("Authorization: Bearer sk-shop",), 413)]
)
async def test_who_asks_for_leave_is_refused_without_it(tmp_path: Path, fields: tuple[str, ...], status: int) -> None:
    async with running_proxy(tmp_path, "tenants: [{name: shop, keys: [sk-shop]}]") as proxy:
        raw = request("Expect: 100-continue", "Content-Length: 100000000", *fields, length=False)
        reply = await exchange(proxy, raw)
        assert reply.startswith(b"HTTP/1.1 %d " % status)
        assert b"100 Continue" not in reply


async def test_a_body_without_a_declared_length_is_counted(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "server: {max_body: 64KB}") as proxy:
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        reply = await exchange(proxy, request("Transfer-Encoding: chunked", length=False) + chunk * 3)
        assert reply.startswith(b"HTTP/1.1 413 ")


async def test_where_a_request_claims_to_go_changes_nothing(proxy: Proxy) -> None:
    await post(proxy, body_of())
    line = "POST http://169.254.169.254/v1/chat/completions HTTP/1.1"
    raw = request(
        "Authorization: Bearer sk-test", "X-Forwarded-Host: evil", "Connection: close", body=body_of(), line=line
    )
    reply = await exchange(proxy, raw.replace(b"Host: proxy", b"Host: evil"))
    assert b"Cache-Status: semcache; hit;" in reply
    assert proxy.backend.requests == 1


@pytest.mark.parametrize("path", ["/v1/../secret", "/v1/%2e%2e/secret", "/v1/x/..%2f../secret", "/v1/./models"])
async def test_a_path_that_climbs_reaches_no_backend(proxy: Proxy, path: str) -> None:
    reply = await exchange(proxy, request("Connection: close", line=f"GET {path} HTTP/1.1"))
    assert reply[9:12] in (b"400", b"404")
    assert proxy.backend.paths == []


async def test_a_request_that_comes_round_again_is_a_508(proxy: Proxy) -> None:
    await post(proxy, body_of())
    seen = await post(proxy, body_of("another"), Via=f"1.0 cdn, 1.1 {proxy.app.node}")
    assert (seen.status, seen.error["code"]) == (508, "loop")
    assert proxy.backend.requests == 1


# Framing, from the upstream's side (cases 15 to 17, 19)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        b"220 smtp ready\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
        b"HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"",
    ],
)
async def test_an_upstream_that_speaks_no_http_is_a_502_in_the_dialect(
    tmp_path: Path, raw: bytes, stream: bool
) -> None:
    async with facing(tmp_path, says(raw), says_json(completion())) as faced:
        seen = await post(faced.proxy, body_of(stream=stream))
        assert (seen.status, seen.error["type"]) == (502, "api_error")
        assert seen.headers["Cache-Status"] == "semcache; fwd=miss; detail=no-entry"
        assert (await faced.ask()).verdict == "miss", "nothing was kept, and the next caller is unharmed"


async def test_bytes_behind_an_answer_reach_nobody(tmp_path: Path) -> None:
    extra = framed([completion(choice("Planted."))], JSON_TYPE, "length")
    body = completion()
    head = f"HTTP/1.1 200 OK\r\n{JSON_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with facing(tmp_path, says(head + body + extra), says_json(completion(choice("Mine.")))) as faced:
        assert (await faced.ask()).text == "Studded ones."
        assert (await faced.proxy.ask("Another thing entirely")).text == "Mine."


async def test_a_redirect_is_relayed_and_not_followed(tmp_path: Path) -> None:
    moved = says_json(b"{}", "307 Temporary Redirect", "Location: http://127.0.0.1:9/v1/chat/completions")
    async with facing(tmp_path, moved) as faced:
        seen = await post(faced.proxy, body_of())
        assert (seen.status, seen.headers["Location"]) == (307, "http://127.0.0.1:9/v1/chat/completions")
        assert (faced.calls, await faced.is_kept()) == (1, False)


@pytest.mark.parametrize("ending", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_cut_after_any_byte_raises_in_the_sdk_and_nothing_is_kept(
    tmp_path: Path, stream: bool, framing: str, ending: Step
) -> None:
    raw = framed(STREAM, SSE_TYPE, framing) if stream else framed([completion()], JSON_TYPE, framing)
    # A reset may overtake what was sent before it, so what matters is that it is seen, and not at which byte.
    cuts = range(len(raw)) if isinstance(ending, Close) else range(0, len(raw), 29)
    scripts: list[list[Step]] = [[Expect(), Send(raw[:end]), ending] for end in cuts]
    async with facing(tmp_path, *scripts, says(raw)) as faced:
        for end in cuts:
            if stream and DONE in raw[:end]:  # all has been said, and only a last chunk is missing: the SDK stops there
                await faced.ask(stream=True)
                continue
            with pytest.raises(ANY_FAILURE):
                reply = await faced.ask(stream=stream)
                pytest.fail(f"cut after {raw[:end][-40:]!r}, and taken for {reply}")
        whole = await faced.ask(stream=stream)
        assert (whole.text, whole.verdict) == ("Studded ones.", "miss"), "none of the cuts was kept"
        assert await faced.is_kept(), "and the whole one is"


# Streams (cases 23 to 39)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [*STREAM[:2], b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', DONE], id="error"
        ),
        pytest.param(
            [*STREAM[:2], b'event: error\ndata: {"error": {"message": "out of memory"}}\n\n'], id="error event"
        ),
    ],
)
async def test_an_error_inside_a_stream_is_relayed_and_raises(tmp_path: Path, events: list[bytes]) -> None:
    async with facing(tmp_path, says_events(*events), says_events()) as faced:
        seen = await post(faced.proxy, body_of(stream=True))
        assert seen.body == b"".join(events), "as sent"
        assert not await faced.is_kept()
    async with facing(tmp_path, says_events(*events)) as faced:
        with pytest.raises(openai.APIError, match="out of memory"):
            await faced.ask(stream=True)


async def test_an_error_with_status_200_for_a_stream_is_relayed_as_sent(tmp_path: Path) -> None:
    sent = b'{"error": {"message": "the model is loading", "code": 503}}'
    async with facing(tmp_path, says_json(sent)) as faced:
        seen = await post(faced.proxy, body_of(stream=True))
        assert (seen.status, seen.body, seen.headers["Content-Type"]) == (200, sent, "application/json")
        assert not await faced.is_kept()


@pytest.mark.parametrize("n", [2, 3])
async def test_each_choice_must_end_for_any_to_be_kept(tmp_path: Path, n: int) -> None:
    unfinished = [event({"content": "a"}, index=0), event({"content": "b"}, index=1), event({}, "stop", index=0), DONE]
    async with facing(tmp_path, says_events(*unfinished), says_events(*unfinished)) as faced:
        for _ in range(2):
            assert (await post(faced.proxy, body_of(stream=True, n=n))).body == b"".join(unfinished)
            await faced.proxy.landed()
        assert faced.calls == 2


async def test_a_client_that_never_reads_costs_bounded_memory_and_then_its_connection(tmp_path: Path) -> None:
    big = event({"content": "x" * 16_000})
    chunk = b"%x\r\n%b\r\n" % (len(big), big)
    head = framed([], SSE_TYPE, "chunked").removesuffix(b"0\r\n\r\n")
    script: list[Step] = [Expect(), Send(head), *[Send(chunk)] * 3200, WaitForClose()]  # 50 MB
    async with facing(tmp_path, script, settings="server: {send_timeout: 300ms}") as faced:
        _, writer = await asyncio.open_connection("127.0.0.1", faced.proxy.app.port, limit=4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(body=body_of(stream=True)))
        await until(lambda: faced.calls)
        (task,) = faced.proxy.app.pipeline.flights._tasks
        held: list[int] = []
        recordings = [flight.recording for flight in faced.proxy.app.pipeline.flights._joinable.values()]
        while not task.done():
            held += [recording._held_bytes for recording in recordings]
            await asyncio.sleep(0)
        writer.close()
        limit = faced.proxy.app.config.routes[0].cache.max_answer
        assert max(held) <= limit + WINDOW_BYTES
        assert not faced.upstream.finished.is_set(), "the upstream was cut before its 50 MB had gone"


async def test_the_last_of_several_to_leave_ends_the_fetch(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(QUESTION, stream=number % 2 == 0)) for number in range(5)]
    await until(lambda: proxy.app.pipeline.flights.joined == 4)
    await until(lambda: proxy.backend.requests)
    for leaving in asking:
        assert proxy.backend.cancelled == 0
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    async with asyncio.timeout(1):
        await proxy.backend.gone.wait()
    await until(lambda: proxy.app.pipeline.stats()["flights"] == 0)
    await until(lambda: proxy.app.listener.stats()["requests"] == 0)


async def test_who_joins_late_gets_everything_in_order(tmp_path: Path) -> None:
    rest = asyncio.Event()
    words = [event({"content": f"{number} "}) for number in range(30)]
    whole = framed([*words, *STREAM[2:]], SSE_TYPE, "chunked")
    at = whole.index(b'"29 "') - 200
    async with facing(tmp_path, [Expect(), Send(whole[:at]), Wait(rest), Send(whole[at:]), Close()]) as faced:
        leader = asyncio.create_task(faced.ask(stream=True))
        await until(lambda: faced.calls)
        late = asyncio.create_task(faced.ask(stream=True))
        as_json = asyncio.create_task(faced.ask())
        await until(lambda: faced.proxy.app.pipeline.flights.joined == 2)
        rest.set()
        texts = {(await reply).text for reply in (leader, late, as_json)}
        assert texts == {"".join(f"{number} " for number in range(30))}
        assert faced.calls == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_burst_behind_an_answer_that_is_not_kept_costs_one_fetch(proxy: Proxy, stream: bool) -> None:
    proxy.backend.gate, proxy.backend.finish_reason = asyncio.Event(), "length"
    asking = [asyncio.create_task(proxy.ask(QUESTION, stream=stream)) for _ in range(30)]
    await until(lambda: proxy.app.pipeline.flights.joined == 29)
    proxy.backend.gate.set()
    assert {reply.text.strip() for reply in await asyncio.gather(*asking)} == {f"answer 1 to: {QUESTION}"}
    assert proxy.backend.requests == 1


async def test_a_refusal_of_the_upstream_reaches_everyone_who_waited(tmp_path: Path) -> None:
    go = asyncio.Event()
    refusal = framed([b'{"error": {"message": "slow down"}}'], JSON_TYPE, "length", "429 Too Many", "Retry-After: 7")
    async with facing(tmp_path, [Expect(), Wait(go), Send(refusal), Close()]) as faced:
        asking = [asyncio.create_task(faced.ask(stream=number % 2 == 0)) for number in range(100)]
        await until(lambda: faced.proxy.app.pipeline.flights.joined == 99)
        go.set()
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(error) for error in errors} == {openai.RateLimitError}
        assert {error.response.headers["retry-after"] for error in errors} == {"7"}  # type: ignore[union-attr]
        assert faced.calls == 1


@pytest.mark.parametrize(
    ("sent", "pool"),
    [
        pytest.param(b"", "first_byte: 50ms,", id="nothing at all"),
        pytest.param(framed([], SSE_TYPE, "chunked")[:-5], "first_byte: 50ms,", id="a head and nothing more"),
        pytest.param(framed(STREAM[:2], SSE_TYPE, "chunked")[:-5], "between_bytes: 50ms,", id="some events"),
    ],
)
async def test_an_upstream_that_falls_silent_is_given_up(tmp_path: Path, sent: bytes, pool: str) -> None:
    async with facing(tmp_path, [Expect(), Send(sent), WaitForClose()], pool=pool) as faced:
        with pytest.raises(openai.APIError, match="within 0.05 s"):
            await faced.ask(stream=True)
        async with asyncio.timeout(2):
            await faced.upstream.closed.wait()
        assert not await faced.is_kept()


async def test_a_stop_lets_streams_finish_and_refuses_the_new(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    running = asyncio.create_task(proxy.ask(QUESTION, stream=True))
    await until(lambda: proxy.backend.requests)
    stopping = asyncio.create_task(proxy.app.stop())
    await until(lambda: proxy.app.listener.draining)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.app.port)
    proxy.backend.gate.set()
    assert (await running).text.startswith("answer 1")
    async with asyncio.timeout(1):
        await stopping


@pytest.mark.parametrize("stream", [False, True])
async def test_past_the_drain_a_running_answer_breaks_off_visibly(tmp_path: Path, stream: bool) -> None:
    async with running_proxy(tmp_path, "server: {drain: 50ms}") as proxy:
        proxy.backend.gate = asyncio.Event()
        asking = asyncio.create_task(exchange(proxy, request(body=body_of(stream=stream))))
        await until(lambda: proxy.backend.requests)
        await proxy.app.stop()
        reply = await asking
        assert not reply.endswith(b"0\r\n\r\n")
        assert b'"code":"stopping"' in reply
        assert reply.startswith(b"HTTP/1.1 200 " if stream else b"HTTP/1.1 503 ")  # nothing of a JSON answer had left


# What must not be stored (cases 40 to 44), and what must


APOLOGY = b'{"error": {"message": "internal error", "code": 500}, "choices": []}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(completion(choice(finish="refusal")), "200 OK", id="refusal"),
        pytest.param(completion(choice(None, refusal="I may not")), "200 OK", id="message.refusal"),
        pytest.param(completion(choice(finish=None)), "200 OK", id="no finish"),
        pytest.param(completion(choice(" \n")), "200 OK", id="blank"),
        pytest.param(completion(choice(None)), "200 OK", id="null"),
        pytest.param(b'{"choices": []}', "200 OK", id="no choices"),
        pytest.param(APOLOGY, "200 OK", id="an error and no choices"),
        pytest.param(b"<html>busy</html>", "200 OK", id="html"),
        pytest.param(completion(), "201 Created", id="201"),
        pytest.param(completion(), "206 Partial Content", id="206"),
        pytest.param(completion(), "203 Non-Authoritative Information", id="203"),
        pytest.param(completion(), "404 Not Found", id="404"),
        pytest.param(completion(), "999 What", id="999"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_good_answer_is_relayed_and_not_kept(
    tmp_path: Path, body: bytes, status: str, stream: bool
) -> None:
    async with facing(tmp_path, says_json(body, status)) as faced:
        seen = await post(faced.proxy, body_of(stream=stream))
        assert (seen.status, seen.body) == (int(status[:3]), body)
        assert "stored" not in seen.headers["Cache-Status"]
        assert not await faced.is_kept()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_is_a_backend_that_has_died(tmp_path: Path, stream: bool) -> None:
    async with facing(tmp_path, says_json(b"", "200 OK")) as faced:
        seen = await post(faced.proxy, body_of(stream=stream))
        assert seen.status == 502 and b"ended its answer before it began" in seen.body
        assert not await faced.is_kept()


async def test_an_error_dressed_as_a_finished_stream_is_not_kept(tmp_path: Path) -> None:
    raw = framed(STREAM, SSE_TYPE, "chunked", "400 Bad Request")
    async with facing(tmp_path, says(raw)) as faced:
        seen = await post(faced.proxy, body_of(stream=True))
        assert (seen.status, seen.body) == (400, b"".join(STREAM))
        assert not await faced.is_kept()


async def test_a_reply_without_a_body_is_relayed(tmp_path: Path) -> None:
    async with facing(tmp_path, says(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")) as faced:
        for stream in (False, True):
            seen = await post(faced.proxy, body_of(stream=stream))
            assert (seen.status, seen.body) == (204, b"")


@pytest.mark.parametrize("fields", [["no-store"], ["max-age=60", "no-store"], ["private, No-Store"]])
async def test_an_upstream_that_forbids_storing_is_obeyed(tmp_path: Path, fields: list[str]) -> None:
    script = says_json(completion(), "200 OK", *[f"Cache-Control: {value}" for value in fields])
    async with facing(tmp_path, script) as faced:
        await faced.ask()
        assert not await faced.is_kept()


@pytest.mark.parametrize("wishes", [["no-store"], ["max-age=60", "no-store"], ["max-age=60, no-store"]])
async def test_a_caller_who_wants_no_trace_leaves_none(proxy: Proxy, wishes: list[str]) -> None:
    await post(proxy, body_of(), Cache_Control=wishes)
    seen = await post(proxy, body_of(), Cache_Control="only-if-cached")
    assert seen.status == 504


async def test_wishes_in_two_fields_are_one_wish(proxy: Proxy) -> None:
    await post(proxy, body_of())
    seen = await post(proxy, body_of(), Semcache_Control=["tier=exact", "namespace=docs"])
    assert seen.headers["Cache-Status"].startswith("semcache; fwd=miss")
    again = await post(proxy, body_of(), Semcache_Control="namespace=docs")
    assert again.headers["Cache-Status"].endswith("detail=exact"), "it was asked in that namespace"


CALL = {"id": "call_1", "type": "function", "function": {"name": "book", "arguments": '{"seat": 4}'}}
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("arguments", ['{"seat": 4}', '{"seat": 4'])
@pytest.mark.parametrize("store_tools", [False, True])
async def test_tool_calls_are_kept_where_the_route_allows_and_they_are_sound(
    tmp_path: Path, arguments: str, store_tools: bool
) -> None:
    call = {**CALL, "function": {"name": "book", "arguments": arguments}}
    script = says_json(completion(choice(None, "tool_calls", tool_calls=[call])))
    async with facing(tmp_path, script, settings=f"cache: {{store_tools: {store_tools}}}".lower()) as faced:
        first = await post(faced.proxy, body_of(tools=TOOLS))
        again = await post(faced.proxy, body_of(tools=TOOLS))
        assert again.tree == first.tree
        kept = store_tools and arguments.endswith("}")
        assert ("; hit" in again.headers["Cache-Status"]) == kept
        if kept:
            streamed = await post(faced.proxy, body_of(tools=TOOLS, stream=True))
            deltas = [chunk["choices"][0]["delta"] for chunk in streamed.chunks]
            calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
            assert "".join(call["function"]["arguments"] for call in calls) == arguments
            assert streamed.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


LOGPROBS = {"content": [{"token": "Studded ones.", "logprob": -0.25, "bytes": [83], "top_logprobs": []}]}
RICH = completion(
    {
        **choice("Studded ones.", index=0, reasoning_content="Snow. So:", vendor_note={"a": [1.50]}),
        "logprobs": LOGPROBS,
    },
    choice("Wide ones.", index=1),
    usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "completion_tokens_details": {"x": 1}},
    system_fingerprint="fp_1",
    vendor_field={"routed": ["b", 12345678901234567890123]},
)


async def test_a_replay_has_every_field_of_the_answer(tmp_path: Path) -> None:
    asked = {"n": 2, "logprobs": True}
    async with facing(tmp_path, says_json(RICH)) as faced:
        miss = await post(faced.proxy, body_of(**asked))
        hit = await post(faced.proxy, body_of(**asked))
        assert miss.body == RICH
        assert "detail=exact" in hit.headers["Cache-Status"]
        assert hit.tree == miss.tree
        assert list(json.loads(hit.body)) == list(json.loads(RICH)), "in their order"
        assert b"1.5" in hit.body
        assert b"12345678901234567890123" in hit.body
        streamed = await post(faced.proxy, body_of(stream=True, stream_options={"include_usage": True}, **asked))
        chunks = streamed.chunks
        assert all(chunk["vendor_field"] == miss.tree["vendor_field"] for chunk in chunks[:1])
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == miss.tree["usage"]
        said: Counter[tuple[int, str]] = Counter()
        texts: dict[tuple[int, str], str] = {}
        for chunk in chunks:
            for item in chunk["choices"]:
                for name in ("content", "reasoning_content"):
                    key = item["index"], name
                    texts[key] = texts.get(key, "") + (item["delta"].get(name) or "")
                said[item["index"], "logprobs"] += len((item.get("logprobs") or {}).get("content") or [])
        assert texts[0, "content"] == "Studded ones."
        assert texts[0, "reasoning_content"] == "Snow. So:"
        assert texts[1, "content"] == "Wide ones."
        assert said == {(0, "logprobs"): 1, (1, "logprobs"): 0}
        assert faced.calls == 1


async def test_a_recorded_stream_has_every_field_as_a_body_too(tmp_path: Path) -> None:
    events = [
        event({"role": "assistant", "content": ""}),
        event({"reasoning_content": "Snow. "}),
        event({"content": "Studded"}, logprobs={"content": [{"token": "Studded", "logprob": -1.25}]}),
        event({"content": " ones.", "vendor_note": "b"}, "stop"),
        b'data: {"id": "chatcmpl-u", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n',
        DONE,
    ]
    async with facing(tmp_path, says_events(*events)) as faced:
        await post(faced.proxy, body_of(stream=True))
        await faced.proxy.landed()
        (given,) = (await post(faced.proxy, body_of())).tree["choices"]
        message = given["message"]
        assert (message["content"], message["reasoning_content"]) == ("Studded ones.", "Snow. ")
        assert message["vendor_note"] == "b"
        assert given["logprobs"] == {"content": [{"token": "Studded", "logprob": -1.25}]}
        assert faced.calls == 1


# An answer that is delimited by nothing but the end of its connection (HTTP/1.0 servers)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_http_1_0_upstream_is_an_upstream_like_others(tmp_path: Path, stream: bool) -> None:
    raw = framed(STREAM, SSE_TYPE, "close") if stream else framed([completion()], JSON_TYPE, "close")
    async with facing(tmp_path, says(raw)) as faced:
        assert (await faced.ask(stream=stream)).text == "Studded ones."
        assert await faced.is_kept()


# What may meet (cases 46 to 55)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"seed": 12345678901234567890}, {"seed": 12345678901234567891}),
        ({"extra": True}, {"extra": 1}),
        ({"extra": None}, {}),
        ({"tools": TOOLS}, {}),
        ({"stop": ["a"]}, {"stop": "a"}),
    ],
)
async def test_requests_that_look_alike_do_not_meet(proxy: Proxy, one: Any, other: Any) -> None:
    await post(proxy, body_of(**one))
    assert "fwd=miss" in (await post(proxy, body_of(**other))).headers["Cache-Status"]
    assert proxy.backend.requests == 2


async def test_numbers_as_written_are_not_rounded(proxy: Proxy) -> None:
    for written in (b"1", b"1.0", b"1e0", b"10e-1"):
        await post(proxy, body_of(x="@").replace(b'"@"', written))
    assert proxy.backend.requests == 4


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_equal_words_about_other_media_do_not_meet(proxy: Proxy, kind: str) -> None:
    def asked(of: str) -> bytes:
        content = [{"type": "text", "text": QUESTION}, {"type": kind, kind: {"url": f"https://pictures/{of}"}}]
        return json.dumps({"model": "small", "messages": [{"role": "user", "content": content}]}).encode()

    await post(proxy, asked("one"))
    assert "detail=media" in (await post(proxy, asked("two"))).headers["Cache-Status"]
    assert "detail=exact" in (await post(proxy, asked("one"))).headers["Cache-Status"]
    await post(proxy, body_of())
    assert proxy.backend.requests == 3


@pytest.mark.parametrize(
    "other", ["Bearer sk-" + "a" * 40 + "c", "Bearer sk-" + "A" * 40 + "b", "Bearer sk-" + "a" * 20, "Basic x"]
)
async def test_keys_that_look_alike_are_different_tenants(proxy: Proxy, other: str) -> None:
    async def ask(key: str) -> Seen:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{proxy.url}/chat/completions", data=body_of(), headers={"Authorization": key}) as reply,
        ):
            return Seen(reply.status, reply.headers, await reply.read())

    await ask("Bearer sk-" + "a" * 40 + "b")
    stranger = await ask(other)
    assert stranger.headers["Cache-Status"] == "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"
    assert not {"Age", "Semcache-Entry"} & set(stranger.headers)


async def test_two_keys_at_once_are_no_identity(tmp_path: Path) -> None:
    tenants = "tenants: [{name: shop, keys: [sk-shop]}, {name: bank, keys: [sk-bank]}]"
    async with running_proxy(tmp_path, tenants) as proxy:
        raw = request("Authorization: Bearer sk-shop", "Authorization: Bearer sk-bank", body=body_of())
        assert (await exchange(proxy, raw.replace(b"Host:", b"Connection: close\r\nHost:"))).startswith(
            b"HTTP/1.1 401 "
        )
        assert proxy.backend.requests == 0


async def test_anothers_refused_key_is_not_held_against_those_who_share(tmp_path: Path) -> None:
    """Answers are shared by all, but whether a key is good the upstream decides for each."""
    go = asyncio.Event()
    refusal = framed([b'{"error": {"message": "no such key"}}'], JSON_TYPE, "length", "401 Unauthorized")
    scripts: list[list[Step]] = [[Expect(), Wait(go), Send(refusal), Close()], says_json(completion())]
    async with facing(tmp_path, *scripts, settings="cache: {sharing: all}") as faced:
        thief = asyncio.create_task(faced.ask(key="sk-stolen"))
        await until(lambda: faced.calls)
        good = asyncio.create_task(faced.ask(key="sk-good"))
        await until(lambda: faced.proxy.app.pipeline.flights.joined)
        go.set()
        assert ((await good).verdict, (await good).text) == ("miss", "Studded ones.")
        with pytest.raises(openai.AuthenticationError):
            await thief
        assert [sent.all("authorization") for sent in faced.upstream.requests] == [
            ["Bearer sk-stolen"],
            ["Bearer sk-good"],
        ]


async def test_those_who_share_an_answer_in_flight_share_nothing_else(tmp_path: Path) -> None:
    go = asyncio.Event()
    own = ["Set-Cookie: a=1", "X-Request-Id: up-1", "X-RateLimit-Remaining: 3", "OpenAI-Organization: acme"]
    raw = framed([completion()], JSON_TYPE, "length", "200 OK", *own)
    async with facing(tmp_path, [Expect(), Wait(go), Send(raw), Close()], settings="cache: {sharing: all}") as faced:
        leader = asyncio.create_task(faced.ask(key="sk-one"))
        await until(lambda: faced.calls)
        follower = asyncio.create_task(faced.ask(key="sk-two"))
        await until(lambda: faced.proxy.app.pipeline.flights.joined)
        go.set()
        assert (await leader).headers["x-request-id"] == "up-1"
        reply = await follower
        assert (reply.verdict, reply.text) == ("coalesced", "Studded ones.")
        theirs = {"set-cookie", "x-ratelimit-remaining", "openai-organization"}
        assert not theirs & set(reply.headers)
        assert reply.headers["x-request-id"] != "up-1"


@pytest.mark.parametrize("led_by_stream", [True, False])
async def test_who_waited_in_the_other_form_for_what_cannot_be_turned_asks_himself(
    tmp_path: Path, led_by_stream: bool
) -> None:
    """Nobody gets an error because somebody else asked first."""
    go = asyncio.Event()
    error = b'{"error": {"message": "out of memory"}}'
    bad = (
        framed([b"data: %b\n\n" % error], SSE_TYPE, "chunked")
        if led_by_stream
        else framed([error], JSON_TYPE, "length")
    )
    good = says_json(completion()) if led_by_stream else says_events()
    async with facing(tmp_path, [Expect(), Wait(go), Send(bad), Close()], good) as faced:
        leader = asyncio.create_task(post(faced.proxy, body_of(stream=led_by_stream)))
        await until(lambda: faced.calls)
        follower = asyncio.create_task(faced.ask(stream=not led_by_stream))
        await until(lambda: faced.proxy.app.pipeline.flights.joined)
        go.set()
        assert b"out of memory" in (await leader).body
        reply = await follower
        assert (reply.verdict, reply.text) == ("miss", "Studded ones.")
        assert faced.calls == 2


async def test_a_refresh_of_a_near_answer_is_not_given_to_who_wants_the_exact_one(tmp_path: Path) -> None:
    """The refresh of a stale answer asks the question of whoever met it, which may be another one's wording."""
    async with running_proxy(tmp_path, "cache: {ttl: 60s, grace: 600s}") as proxy:
        await proxy.ask(QUESTION)
        proxy.clock.advance(70)
        proxy.backend.gate = asyncio.Event()
        near = await proxy.ask(QUESTION + " please")
        assert (near.verdict, near.text) == ("stale", f"answer 1 to: {QUESTION}")
        await until(lambda: proxy.backend.requests == 2)
        strict = {"Semcache-Control": "tier=exact", "Cache-Control": "max-age=10"}
        exact = asyncio.create_task(proxy.ask(QUESTION, headers=strict))
        await until(lambda: proxy.backend.requests == 3 or proxy.app.pipeline.flights.joined)
        proxy.backend.gate.set()
        assert (await exact).text == f"answer 3 to: {QUESTION}"


# Bodies that are made to break a reader (cases 57 to 61)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of(x="@").replace(b'"@"', b"NaN"), id="nan"),
        pytest.param(body_of(x="@").replace(b'"@"', b"-Infinity"), id="infinity"),
        pytest.param(body_of().decode().encode("utf-16"), id="utf-16"),
        pytest.param(b"\xef\xbb\xbf" + body_of(), id="bom"),
        pytest.param(body_of("@").replace(b"@", b"\xff\xfe"), id="invalid utf-8"),
        pytest.param(body_of("@").replace(b"@", b"\xed\xa0\x80"), id="surrogate as utf-8"),
        pytest.param(body_of("@").replace(b"@", rb"\ud800"), id="lone surrogate"),
        pytest.param(body_of(x="@").replace(b'"@"', b"[" * 100_000 + b"]" * 100_000), id="nested"),
        pytest.param(body_of(x="@").replace(b'"@"', b'{"a":' * 100_000 + b"1" + b"}" * 100_000), id="nested objects"),
        pytest.param(body_of(x="@").replace(b'"@"', b"9" * 100_000), id="digits"),
        pytest.param(body_of(x="@").replace(b'"@"', b"[" + b"[]," * 600_000 + b"1]"), id="lists without end"),
        pytest.param(body_of(x="@").replace(b'"@"', b"[" + b"1," * 2_100_000 + b"1]"), id="numbers without end"),
        pytest.param(body_of().replace(b'"model"', b'"model": "large", "model"'), id="a key twice"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"", id="empty"),
        pytest.param(body_of(n=0), id="n of 0"),
        pytest.param(body_of(n=1e9), id="n of a billion"),
        pytest.param(body_of(stream="yes"), id="stream of yes"),
        pytest.param(json.dumps({"model": "m", "messages": [[]]}).encode(), id="messages of lists"),
    ],
)
async def test_a_body_that_two_readers_could_read_differently_is_a_400(proxy: Proxy, body: bytes) -> None:
    seen = await post(proxy, body)
    assert (seen.status, seen.error["type"]) == (400, "invalid_request_error")
    assert "Cache-Status" not in seen.headers
    assert (proxy.backend.requests, proxy.app.listener.stats()["requests"]) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "nul \0 inside",
        "\u200b" * 100_000,
        "e" + "\u0301" * 100_000,
        "\U0001f469\u200d\U0001f4bb \u202e right to left",
        "<script>alert(1)</script> \x1b[31m red \r\n\r\nHTTP/1.1 200 OK",
        "'; DROP TABLE entries; --",
    ],
    ids=["nul", "nul inside", "zero width", "marks", "emoji", "markup", "sql"],
)
@pytest.mark.parametrize("store", ["disk", "memory"])
async def test_odd_text_is_asked_and_kept_as_it_is(tmp_path: Path, text: str, store: str) -> None:
    async with running_proxy(tmp_path) as proxy:
        first = await post(proxy, body_of(text, user=text[:50]))
        assert first.status == 200
        assert json.loads(first.body)["choices"][0]["message"]["content"] == f"answer 1 to: {text}"
        if store == "memory":
            assert "detail=exact" in (await post(proxy, body_of(text))).headers["Cache-Status"]
    if store == "disk":
        async with running_proxy(tmp_path) as proxy:
            seen = await post(proxy, body_of(text))
            assert "detail=exact" in seen.headers["Cache-Status"]
            assert seen.tree["choices"] == json.loads(first.body)["choices"]


async def test_a_caller_chooses_no_upstream(proxy: Proxy) -> None:
    async with ScriptedUpstream([[Expect()]]) as canary:
        url = f"http://127.0.0.1:{canary.port}/v1"
        wishes = {"api_base": url, "base_url": url, "api_key": "sk-x", "callbacks": [url]}
        fields = {"X_Forwarded_Host": f"127.0.0.1:{canary.port}", "Forwarded": f"host=127.0.0.1:{canary.port}"}
        assert (await post(proxy, body_of(**wishes), **fields, Cache_Status="semcache; hit")).status == 200
        assert (proxy.backend.requests, canary.connections) == (1, 0)
        assert not {"X-Forwarded-Host", "Forwarded", "Cache-Status"} & set(proxy.backend.headers[0])


async def test_names_of_models_made_up_by_callers_are_not_held_on_to(proxy: Proxy) -> None:
    await post(proxy, json.dumps({"model": "m" * 1_000_000, "messages": [{"role": "user", "content": "a"}]}).encode())
    assert proxy.backend.requests == 1
    assert proxy.app.core.planner._ways.cache_info().currsize == 0


# What a reply says of itself


async def test_what_other_caches_said_stands_before_what_we_say(tmp_path: Path) -> None:
    fields = ["Cache-Status: origin-shield; hit; ttl=9", "Cache-Status: cdn; fwd=miss", "Semcache-Entry: forged"]
    async with facing(
        tmp_path, says_json(completion(), "200 OK", *fields, "Set-Cookie: a=1", "X-Request-Id: up-1")
    ) as faced:
        miss = await post(faced.proxy, body_of())
        assert miss.headers.getall("Cache-Status") == [
            "origin-shield; hit; ttl=9",
            "cdn; fwd=miss",
            "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry",
        ]
        assert "Semcache-Entry" not in miss.headers
        assert miss.headers.getall("X-Request-Id") == ["up-1"]
        hit = await post(faced.proxy, body_of())
        assert hit.headers.getall("Cache-Status") == ["semcache; hit; ttl=86400; detail=exact"]
        assert not {"Set-Cookie"} & set(hit.headers)
        assert hit.headers["X-Request-Id"] != "up-1", "nothing of the upstream's head is replayed"


# Store, clock and load (cases 77 to 89)


async def test_a_purge_beats_a_fetch_that_began_before_it(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    asking = asyncio.create_task(proxy.ask(QUESTION))
    await until(lambda: proxy.backend.requests)
    await proxy.app.store.purge(Selector())
    proxy.backend.gate.set()
    assert (await asking).text.startswith("answer 1")
    assert (await proxy.ask(QUESTION)).verdict == "miss"


async def test_purges_expiry_and_questions_race_without_an_error(proxy: Proxy) -> None:
    async def purge() -> None:
        for number in range(20):
            await proxy.app.store.purge(Selector(text=f"question {number % 4}"))

    async def ask(number: int) -> str:
        reply = await proxy.ask(f"question {number % 4}", stream=number % 2 == 0)
        assert reply.text.strip().endswith(f"to: question {number % 4}")
        return reply.verdict

    verdicts, *_ = await asyncio.gather(asyncio.gather(*map(ask, range(80))), purge())
    assert set(verdicts) <= {"miss", "hit", "coalesced"}
    assert proxy.app.pipeline.faults == {}


@pytest.mark.parametrize("url", ["https://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"], ids=["tls", "dns"])
async def test_an_upstream_that_cannot_be_reached_is_a_502(tmp_path: Path, url: str) -> None:
    async with ScriptedUpstream([[Close()]]) as upstream:
        pool = f"pools: {{gone: {{backends: [{{url: '{url.format(port=upstream.port)}'}}]}}}}"
        async with running_proxy(tmp_path, pool) as proxy:
            seen = await post(proxy, body_of())
            assert (seen.status, seen.error["type"]) == (502, "api_error")


async def test_a_stale_answer_covers_for_an_upstream_that_is_gone(tmp_path: Path) -> None:
    backend = ModelServer()
    async with running_proxy(tmp_path, "cache: {ttl: 60s, grace: 600s}", backend=backend) as proxy:
        await proxy.ask(QUESTION)
        proxy.clock.advance(100)
        backend.status = 500
        for _ in range(3):
            assert (await proxy.ask(QUESTION)).verdict == "stale"
            await proxy.landed()


@pytest.mark.parametrize("jump_s", [10 * 365 * 86400.0, -86400.0])
async def test_a_clock_that_jumps_gives_no_negative_age_and_no_wrong_answer(proxy: Proxy, jump_s: float) -> None:
    await post(proxy, body_of())
    proxy.clock.advance(jump_s)
    seen = await post(proxy, body_of())
    assert seen.status == 200
    assert int(seen.headers.get("Age", "0")) >= 0
    proxy.clock.advance(-jump_s)
    assert "; hit" in (await post(proxy, body_of())).headers["Cache-Status"], "and back: nothing was thrown away"


async def test_500_equal_streams_cost_one_upstream_call(proxy: Proxy) -> None:
    proxy.backend.gate = asyncio.Event()
    asking = [asyncio.create_task(proxy.ask(QUESTION, stream=True)) for _ in range(500)]
    await until(lambda: proxy.app.pipeline.flights.joined == 499)
    proxy.backend.gate.set()
    replies = await asyncio.gather(*asking)
    assert proxy.backend.requests == 1
    assert Counter(reply.verdict for reply in replies) == {"miss": 1, "coalesced": 499}
    assert {reply.text.strip() for reply in replies} == {f"answer 1 to: {QUESTION}"}

"""The real proxy among enemies, in every dialect; see test_hostile.py for what is tried in one."""

from __future__ import annotations

import asyncio
import json
import random
from asyncio import gather
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from semcache.types import Selector
from tests.fakes import WordsEmbedder
from tests.front_doors import BROKEN, DOORS, FORMS, Door, Unended, Vendors, form_id, post
from tests.harness import Proxy, running_proxy, until
from tests.scripted_upstream import Close, Expect, Reset, ScriptedUpstream, Send, Step, Wait
from tests.test_embeddings import Embeds, vector_of

QUESTION = "Which tyres fit my bicycle best in winter"
SHARING = "cache: {sharing: all}"


def root_of(proxy: Proxy) -> str:
    return proxy.url.removesuffix("/v1")


def asks(door: Door, stream: bool, question: str = QUESTION) -> bytes:
    return json.dumps(door.request(question, stream)).encode()


@asynccontextmanager
async def among_vendors(folder: Path, settings: str = "") -> AsyncIterator[tuple[Proxy, Vendors, str]]:
    server = Vendors()
    async with running_proxy(folder, settings, backend=server) as proxy:
        yield proxy, server, root_of(proxy)


def framed(pieces: list[bytes], media_type: str, framing: str) -> bytes:
    """A whole answer on the wire; its end told by its length, by a last chunk, or by the connection's end alone."""
    head, body = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nConnection: close\r\n", b"".join(pieces)
    if framing == "length":
        head += f"Content-Length: {len(body)}\r\n"
    if framing == "chunked":
        head += "Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return head.encode() + b"\r\n" + body


every_form = pytest.mark.parametrize(("door", "stream"), FORMS, ids=form_id)
every_door = pytest.mark.parametrize("door", DOORS, ids=form_id)


# The table itself


@every_form
async def test_a_question_costs_one_fetch_in_either_form(tmp_path: Path, door: Door, stream: bool) -> None:
    async with among_vendors(tmp_path) as (proxy, server, root):
        said = await door.through_sdk(root, QUESTION, stream=stream)
        assert QUESTION in said or door.name == "embeddings"
        await proxy.landed()
        for form in {False, door.pieces is not None}:
            assert await door.through_sdk(root, QUESTION, stream=form) == said
        assert server.requests == 1


# Load


@every_form
async def test_500_equal_requests_at_once_are_one_call(tmp_path: Path, door: Door, stream: bool) -> None:
    async with among_vendors(tmp_path) as (proxy, server, root):
        server.gate = asyncio.Event()
        headers = {"Content-Type": "application/json", **door.key("sk-test")}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask() -> tuple[int, bytes]:
                async with session.post(root + door.path, data=asks(door, stream), headers=headers) as reply:
                    return reply.status, await reply.read()

            asked = [asyncio.create_task(ask()) for _ in range(500)]
            await until(lambda: proxy.app.pipeline.flights.joined == 499)
            server.gate.set()
            replies = set(await gather(*asked))
        assert [status for status, _ in replies] == [200]
        assert server.requests == 1


# A tenant's own


@every_form
@pytest.mark.parametrize("at_once", [False, True], ids=["later", "in flight"])
async def test_two_keys_never_see_anything_of_each_other(
    tmp_path: Path, door: Door, stream: bool, at_once: bool
) -> None:
    async with among_vendors(tmp_path) as (proxy, server, root):
        keys = ["sk-canary-a", "sk-canary-b"]
        if at_once:
            server.gate = asyncio.Event()
            asked = [asyncio.create_task(post(door, root, asks(door, stream), key)) for key in keys]
            await until(lambda: server.requests == 2)
            server.gate.set()
            replies = await gather(*asked)
        else:
            replies = [await post(door, root, asks(door, stream), key) for key in keys]
        await proxy.landed()
        replies += [await post(door, root, asks(door, stream), key) for key in keys]
        assert server.requests == 2
        for reply, other in zip(replies, ["canary-b", "canary-a"] * 2, strict=True):
            seen = reply.body + str(sorted(reply.headers.items())).encode()
            assert reply.status == 200
            assert other.encode() not in seen


@every_form
@pytest.mark.parametrize("at_once", [False, True], ids=["later", "in flight"])
async def test_of_a_shared_answer_only_what_it_says_is_shared(
    tmp_path: Path, door: Door, stream: bool, at_once: bool
) -> None:
    async with among_vendors(tmp_path, SHARING) as (proxy, server, root):
        if at_once:
            server.gate = asyncio.Event()
            first = asyncio.create_task(post(door, root, asks(door, stream), "sk-canary-a"))
            await server.begun.wait()
            second = asyncio.create_task(post(door, root, asks(door, stream), "sk-canary-b"))
            is_handle = door.name == "responses"
            await until(lambda: server.requests == 2 if is_handle else proxy.app.pipeline.flights.joined)
            server.gate.set()
            await first
            reply = await second
            assert server.requests == (2 if is_handle else 1)
        else:
            await post(door, root, asks(door, stream), "sk-canary-a")
            await proxy.landed()
            reply = await post(door, root, asks(door, stream), "sk-canary-b")
            assert server.requests == 1
        assert reply.status == 200
        assert "canary-a" not in str(sorted(reply.headers.items()))
        if door.name == "responses":
            assert b'id-sk-canary-a"' not in reply.body.replace(b"msg_id-sk-canary-a", b"")


# Clients that lose their patience and ask again


RETRYING = [(door, stream) for door, stream in FORMS if door.name in ("chat", "messages", "embeddings")]


def impatient(read_s: float) -> Any:
    return httpx2.Timeout(10, read=read_s)


@pytest.mark.parametrize(("door", "stream"), RETRYING, ids=form_id)
async def test_an_sdk_that_asks_again_joins_its_own_first_request(tmp_path: Path, door: Door, stream: bool) -> None:
    """Twice in vain, as its own pauses of half a second and of a whole one have it; the answer is the third's."""
    async with among_vendors(tmp_path) as (proxy, server, root):
        server.gate, server.holds_heads = asyncio.Event(), True
        options = {"timeout": impatient(0.1), "max_retries": 2}
        asked = asyncio.create_task(door.through_sdk(root, QUESTION, stream=stream, **options))
        await until(lambda: proxy.app.pipeline.flights.joined == 2 or asked.done())
        server.gate.set()
        assert await asked
        assert server.requests == 1
        assert server.cancelled == 0


@every_form
async def test_a_client_that_never_comes_back_ends_the_upstreams_work(tmp_path: Path, door: Door, stream: bool) -> None:
    async with among_vendors(tmp_path) as (_, server, root):
        server.gate, server.holds_heads = asyncio.Event(), True
        asked = asyncio.create_task(post(door, root, asks(door, stream)))
        await server.begun.wait()
        asked.cancel()
        async with asyncio.timeout(1.0):
            await server.gone.wait()
        assert server.cancelled == 1


@pytest.mark.parametrize(("door", "stream"), [form for form in FORMS if form[1]], ids=form_id)
async def test_a_stream_that_has_begun_is_not_waited_for(tmp_path: Path, door: Door, stream: bool) -> None:
    async with among_vendors(tmp_path) as (proxy, server, root):
        server.gate = asyncio.Event()
        async with aiohttp.ClientSession() as session:
            headers = {"Content-Type": "application/json", **door.key("sk-test")}
            async with session.post(root + door.path, data=asks(door, stream), headers=headers) as reply:
                assert await reply.content.readany()
            async with asyncio.timeout(0.5):  # less than anybody lingers
                await server.gone.wait()
        await proxy.landed()
        assert proxy.app.pipeline.stored == 0


# Never a partial


def reply(door: Door, stream: bool, framing: str, text: str = "Studded ones, in winter.") -> bytes:
    """A whole answer on the wire."""
    pieces = door.events(text) if stream else [door.whole(text)]
    media_type = door.stream_type if stream else "application/json"
    return framed(pieces, media_type, framing)


@asynccontextmanager
async def facing(folder: Path, *scripts: list[Step], settings: str = "") -> AsyncIterator[tuple[Proxy, str, Any]]:
    async with ScriptedUpstream(scripts) as upstream:
        pools = f"pools: {{it: {{backends: [{{url: 'http://127.0.0.1:{upstream.port}/v1'}}]}}}}\n"
        async with running_proxy(folder, pools + settings) as proxy:
            yield proxy, root_of(proxy), upstream


CUTS = 12  # of each form and framing, 540 in all; 9,000 were tried once


@every_form
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_an_answer_cut_anywhere_is_seen_to_be_cut_and_never_kept(
    tmp_path: Path, door: Door, stream: bool, framing: str
) -> None:
    raw = reply(door, stream, framing)
    random_cuts = random.Random(f"{door.name} {stream} {framing}")
    body_at = raw.index(b"\r\n\r\n") + 4
    said_at = len(raw) if not stream else raw.rindex(door.events("Studded ones, in winter.")[-1][:-2])
    cuts = [random_cuts.randrange(body_at if n % 10 else 0, len(raw)) for n in range(CUTS)]
    endings = [random_cuts.choice([Close(), Reset()]) for _ in cuts]
    scripts: list[list[Step]] = [[Expect(), Send(raw[:end]), ending] for end, ending in zip(cuts, endings, strict=True)]
    async with facing(tmp_path, *scripts, [Expect(), Send(raw), Close()]) as (proxy, root, upstream):
        stored = 0
        for number, end in enumerate(cuts):
            question = f"{QUESTION} {number}"
            try:
                said = await door.through_sdk(root, question, stream=stream)
            except (*BROKEN, Unended):
                said = None
            await proxy.landed()
            if end <= said_at:  # behind that all has been said, and only the framing's own end is missing
                assert (said, proxy.app.pipeline.stored) == (None, stored), f"cut after {raw[:end][-60:]!r}"
            stored = proxy.app.pipeline.stored
        assert upstream.connections == len(cuts)
        assert await door.through_sdk(root, QUESTION, stream=stream)
        await proxy.landed()
        assert proxy.app.pipeline.stored == stored + 1


@every_form
async def test_a_cut_is_seen_by_all_who_joined_in_either_form(tmp_path: Path, door: Door, stream: bool) -> None:
    raw = reply(door, stream, "chunked")
    go = asyncio.Event()
    for part in (0.4, 0.95):
        end = int(len(raw) * part)
        cut: list[Step] = [Expect(), Send(raw[:end]), Wait(go), Close()]
        async with facing(tmp_path, cut, [Expect(), Close()]) as (proxy, root, _):
            go.clear()
            forms = [stream, stream, not stream if door.pieces else stream]
            asked = [asyncio.create_task(door.through_sdk(root, QUESTION, stream=form)) for form in forms]
            await until(lambda: proxy.app.pipeline.flights.joined == 2)
            go.set()
            for said in await gather(*asked, return_exceptions=True):
                assert isinstance(said, (*BROKEN, Unended)), said
            await proxy.landed()
            assert proxy.app.pipeline.stored == 0


# Sizes and bytes


HOSTILE_BODIES = {
    "NaN": (b'"seed": NaN', 400),
    "Infinity": (b'"seed": -Infinity', 400),
    "doubled key": (b'"seed": 1, "seed": 2', 400),
    "long number": (b'"seed": ' + b"9" * 100_000, 400),
    "half a pair": (b'"user": "\\ud800"', 400),
    "deep": (b'"x": ' + b"[" * 100_000 + b"]" * 100_000, 400),
    "deep objects": (b'"x": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400),
    "deep tool arguments": (b'"tools": [{"parameters": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}]", 400),
    "invalid UTF-8": (b'"x": "\xff"', 400),
    "many members": (b'"x": [' + b"{}," * 600_000 + b"{}]", 400),
    "a stream of a kind": (b'"stream": "yes"', 400),
    "a NUL": (b'"x": "a\\u0000b"', 200),
    "a million marks": (b'"x": "' + "\u0301".encode() * 500_000 + b'"', 200),
}


@every_door
@pytest.mark.parametrize("case", HOSTILE_BODIES)
async def test_what_parsers_may_disagree_about_is_a_400_in_the_dialect(tmp_path: Path, door: Door, case: str) -> None:
    member, status = HOSTILE_BODIES[case]
    async with among_vendors(tmp_path) as (_, server, root):
        asked = door.request(QUESTION, False)
        if case == "a stream of a kind":
            asked.pop("stream", None)
            status = 400 if door.pieces else 200  # without streams the member is context like any other
        body = json.dumps(asked).encode()[:-1] + b", " + member + b"}"
        started = asyncio.get_running_loop().time()
        seen = await post(door, root, body)
        assert seen.status == status, seen.body[:300]
        if status == 400:
            assert_ours(door, seen.body)
            assert server.requests == 0
            assert asyncio.get_running_loop().time() - started < 2
        assert (await post(door, root, asks(door, False))).status == 200, "and the worker lives"


@every_door
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16")])
async def test_what_is_no_object_is_a_400_in_the_dialect(tmp_path: Path, door: Door, body: bytes) -> None:
    async with among_vendors(tmp_path) as (_, server, root):
        seen = await post(door, root, body)
        assert seen.status == 400
        assert_ours(door, seen.body)
        assert server.requests == 0


WRONG_SHAPES: list[Any] = [None, 7, "", [], {}, [None], [[]], [7, "x"], [{}], [{"role": 7}], {"a": 1}, [[1], "x"], True]


@every_door
async def test_members_of_any_shape_are_a_400_or_go_upstream_and_never_fail(tmp_path: Path, door: Door) -> None:
    names = ["model", "messages", "input", "prompt", "stream", "temperature", "tools", "metadata", "options", "user"]
    names += ["system", "instructions", "stream_options", "images", "encoding_format", "prompt_cache_options", "n"]
    async with among_vendors(tmp_path) as (proxy, _, root):
        for name in names:
            for value in [*WRONG_SHAPES, [{"role": "user", "content": shape} for shape in WRONG_SHAPES]]:
                body = {**door.request(QUESTION, False), name: value}
                seen = await post(door, root, json.dumps(body).encode())
                assert seen.status in (200, 400, 404, 500), (name, value, seen.status, seen.body)
                if seen.status == 500:
                    assert "X-Canary" in seen.headers or b"Server got itself" in seen.body, (name, value, seen.body)
        assert proxy.app.pipeline.faults == {}


def assert_ours(door: Door, body: bytes) -> None:
    """An error of the proxy itself, in the shape that the dialect's clients read."""
    error = json.loads(body)
    if door.name in ("ollama", "generate"):
        assert isinstance(error["error"], str)
    elif door.name == "messages":
        assert (error["type"], sorted(error["error"])) == ("error", ["message", "type"])
    else:
        assert sorted(error["error"]) == ["code", "message", "param", "type"]
    assert b"Traceback" not in body
    assert b'File "' not in body


HUGE = "x" * (1024 * 1024 + 1)


@pytest.mark.parametrize(("door", "stream"), [form for form in FORMS if form[1]], ids=form_id)
async def test_an_event_too_large_to_read_is_relayed_whole_and_not_kept(
    tmp_path: Path, door: Door, stream: bool
) -> None:
    pieces = door.events(HUGE)
    raw = framed(pieces, door.stream_type, "chunked")
    async with facing(tmp_path, [Expect(), Send(raw), Close()]) as (proxy, root, _):
        seen = await post(door, root, asks(door, stream))
        assert seen.body == b"".join(pieces)
        await proxy.landed()
        assert proxy.app.pipeline.stored == 0


@pytest.mark.parametrize("name", ["ollama", "generate"])
async def test_lines_of_any_make_are_relayed_as_sent_and_kept_if_whole(tmp_path: Path, name: str) -> None:
    door = next(door for door in DOORS if door.name == name)
    lines = door.events("Studded ones, really.")
    kept = {
        "carriage returns": b"".join(line.replace(b"\n", b"\r\n") for line in lines),
        "no last line feed": b"".join(lines)[:-1],
        "blank lines": b"\n".join(lines) + b"\n\n",
    }
    left = {
        "a NUL between": b"\x00\n".join(lines),
        "no line feeds": b"".join(line[:-1] for line in lines),
        "a line after the end": b"".join([*lines, lines[0]]),
        "half a pair": b"".join(lines).replace(b"Studded", b"\\ud800"),
        "cut in the last line": b"".join(lines)[:-3],
    }
    for number, (case, sent) in enumerate({**kept, **left}.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        script: list[Step] = [Expect(), Send(framed([sent], door.stream_type, "length")), Close()]
        async with facing(folder, script) as (proxy, root, _):
            assert (await post(door, root, asks(door, True))).body == sent, case
            await proxy.landed()
            assert proxy.app.pipeline.stored == (case in kept), case


CONTRADICTIONS = {
    "responses": (b"event: response.completed\n", b"event: response.created\n"),
    "messages": (b"event: message_stop\n", b"event: message_start\n"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
async def test_an_event_whose_name_is_not_its_type_is_relayed_and_not_kept(tmp_path: Path, name: str) -> None:
    door = next(door for door in DOORS if door.name == name)
    sent = b"".join(door.events("Studded ones.")).replace(*CONTRADICTIONS[name])
    async with facing(tmp_path, [Expect(), Send(framed([sent], door.stream_type, "length")), Close()]) as (
        proxy,
        root,
        _,
    ):
        assert (await post(door, root, asks(door, True))).body == sent
        await proxy.landed()
        assert proxy.app.pipeline.stored == 0


# Memory, life and death


async def test_metadata_that_is_new_each_time_leaves_hits_hits_and_memory_bounded(tmp_path: Path) -> None:
    """Where the answer does not repeat it, it is still what the rendered answer is found by."""
    door = next(door for door in DOORS if door.name == "responses")
    tree = door.body("Studded ones.", "resp_1")
    del tree["metadata"]
    answer = framed([json.dumps(tree).encode()], "application/json", "length")
    async with facing(tmp_path, [Expect(), Send(answer), Close()]) as (proxy, root, upstream):
        labels_bytes = 0
        for number in range(20):
            metadata = {"trace": f"{number}" * 20_000}
            labels_bytes += len(json.dumps(metadata, separators=(",", ":")))
            seen = await post(door, root, json.dumps({**door.request(QUESTION, False), "metadata": metadata}).encode())
            assert seen.status == 200
            await proxy.landed()
        assert upstream.connections == 1
        assert proxy.app.deliverer.stats()["scores_bytes"] > labels_bytes * 0.9


@pytest.mark.parametrize("door", [door for door in DOORS if door.pieces], ids=form_id)
async def test_a_replay_that_takes_its_time_survives_a_drain_and_not_its_client(tmp_path: Path, door: Door) -> None:
    async with among_vendors(tmp_path, "server: {drain: 5s}") as (proxy, server, root):
        await post(door, root, asks(door, True))
        await proxy.landed()
        headers = {"Content-Type": "application/json", "Semcache-Control": "replay=40", **door.key("sk-test")}
        async with aiohttp.ClientSession() as session:
            asked = partial(session.post, root + door.path, data=asks(door, True), headers=headers)
            async with asked() as leaving:
                await leaving.content.readany()
            await until(lambda: not proxy.app.listener.stats()["requests"])
            async with asked() as staying:
                await staying.content.readany()
                stopped = asyncio.create_task(proxy.app.stop())
                rest = await staying.content.read()
            await stopped
        end = {"chat": b"[DONE]", "completions": b"[DONE]", "azure": b"[DONE]", "messages": b"message_stop"}
        assert end.get(door.name, b"response.completed" if door.name == "responses" else b'"done": true') in rest
        assert server.requests == 1


@every_form
async def test_the_exact_tier_works_in_every_dialect_while_the_embedder_is_down(
    tmp_path: Path, door: Door, stream: bool
) -> None:
    embedder, server = WordsEmbedder(), Vendors()
    embedder.fault = RuntimeError("the model is gone")
    async with running_proxy(tmp_path, backend=server, embedder=embedder) as proxy:
        for _ in range(3):
            assert (await post(door, root_of(proxy), asks(door, stream))).status == 200
            await proxy.landed()
        assert server.requests == 1


async def test_a_purge_while_a_batch_is_partly_fetched_keeps_nothing_of_it(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server, ask):
        await ask(["a", "b"])
        server.gate = asyncio.Event()
        asked = asyncio.create_task(ask(["a", "c", "b"]))
        await until(lambda: server.requests == 2)
        await proxy.app.store.purge(Selector())
        server.gate.set()
        assert await asked == [vector_of(text) for text in ("a", "c", "b")]
        await proxy.landed()
        await ask(["c"])
        assert server.inputs == [["a", "b"], ["c"], ["c"]]


@pytest.mark.parametrize("fault", ["dropped", "status", "cut"])
async def test_a_partly_known_batch_whose_rest_fails_is_asked_again_or_told_so(tmp_path: Path, fault: str) -> None:
    async with embedding(tmp_path) as (proxy, server, ask):
        await ask(["a", "b"])
        if fault == "dropped":
            server.dropped = 1
            with pytest.raises((openai.OpenAIError, AssertionError)):
                assert len(await ask(["a", "c", "b"])) == 3, "as the vendor sent it, and not as three"
            server.dropped = 0
        elif fault == "status":
            server.status = 500
            with pytest.raises(openai.InternalServerError):
                await ask(["a", "c", "b"])
            server.status = 200
        else:
            server.gate = asyncio.Event()
            asked = asyncio.create_task(ask(["a", "c", "b"]))
            await until(lambda: server.requests == 2)
            proxy.app.pipeline.flights.cancel()
            with pytest.raises(openai.InternalServerError):
                await asked
            server.gate = None
        await proxy.landed()
        assert await ask(["a", "c", "b"]) == [vector_of(text) for text in ("a", "c", "b")]
        assert server.inputs[-1] == ["c"], "what was known still is, and the rest was never kept"


async def test_two_tenants_overlapping_batches_share_no_vector(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (_, server, ask):
        await ask(["a", "b"], key="sk-one")
        await ask(["b", "c"], key="sk-two")
        await ask(["c", "a", "b"], key="sk-one")
        assert server.inputs == [["a", "b"], ["b", "c"], ["c"]]


async def test_more_inputs_than_are_split_go_upstream_as_they_are(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (_, server, ask):
        inputs = [f"{number}" for number in range(100_000)]
        assert len(await ask(inputs)) == len(inputs)
        assert server.requests == 1


@asynccontextmanager
async def embedding(folder: Path) -> AsyncIterator[tuple[Proxy, Embeds, Any]]:
    server = Embeds()
    async with running_proxy(folder, backend=server) as proxy:

        async def ask(inputs: list[str], key: str = "sk-test") -> list[list[float]]:
            client = proxy.client.with_options(api_key=key)
            answer = await client.embeddings.create(model="small", input=inputs, encoding_format="float")
            return [item.embedding for item in answer.data]

        yield proxy, server, ask

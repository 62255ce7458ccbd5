"""Servers that end a stream without `[DONE]`: kept where the operator says so, and only if nothing can be missing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.harness import Proxy, running_proxy
from tests.scripted_upstream import Close, Expect, ScriptedUpstream, Send, Step

QUESTION = "Where is my parcel?"


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "small", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


SAID = (event({"role": "assistant", "content": "On its "}), event({"content": "way."}))
FINISHED = event({}, "stop")
DONE = b"data: [DONE]\n\n"


def chunked(events: Sequence[bytes]) -> list[Step]:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in events) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [Expect(), Send(head + body), Close()]


def ended_by_close(events: Sequence[bytes]) -> list[Step]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return [Expect(), Send(head + b"".join(events)), Close()]


@asynccontextmanager
async def facing(folder: Path, script: list[Step], *, stream_done: bool) -> AsyncIterator[Proxy]:
    async with ScriptedUpstream([script]) as upstream:
        backend = {"url": f"http://127.0.0.1:{upstream.port}/v1", "stream_done": stream_done}
        async with running_proxy(folder, f"pools: {json.dumps({'it': {'backends': [backend]}})}") as proxy:
            yield proxy


@pytest.mark.parametrize(
    ("script", "stream_done", "kept"),
    [
        (chunked([*SAID, FINISHED, DONE]), True, True),
        (chunked([*SAID, FINISHED]), True, False),
        (chunked([*SAID, FINISHED]), False, True),
        (chunked([*SAID]), False, False),  # no finish reason: it stopped somewhere
        (chunked([*SAID, FINISHED[:-1]]), False, False),  # inside an event
        (chunked([*SAID, FINISHED, DONE]), False, True),  # it writes one after all
    ],
    ids=["an end", "no end", "no end, as told", "nothing finished", "half an event", "an end all the same"],
)
async def test_a_stream_without_its_end_is_kept_only_where_it_is_known_to_have_none(
    tmp_path: Path, script: list[Step], stream_done: bool, kept: bool
) -> None:
    async with facing(tmp_path, script, stream_done=stream_done) as proxy:
        first = await proxy.ask(QUESTION, stream=True)
        assert first.text == "On its way."
        await proxy.landed()
        assert proxy.app.pipeline.stored == kept
        if kept:
            again = await proxy.ask(QUESTION, stream=True)
            assert (again.text, again.headers["cache-status"][:13]) == (first.text, "semcache; hit")


async def test_an_end_that_is_only_the_connections_is_never_taken_for_one(tmp_path: Path) -> None:
    async with facing(tmp_path, ended_by_close([*SAID, FINISHED]), stream_done=False) as proxy:
        with pytest.raises(Exception, match="ended its answer early"):
            await proxy.ask(QUESTION, stream=True)
        await proxy.landed()
        assert proxy.app.pipeline.stored == 0


async def test_what_the_server_left_out_is_not_written_into_its_stream(tmp_path: Path) -> None:
    async with facing(tmp_path, chunked([*SAID, FINISHED]), stream_done=False) as proxy:
        body = {"model": "small", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
        async with httpx.AsyncClient() as client:
            reply = await client.post(f"{proxy.url}/chat/completions", json=body)
            assert reply.content == b"".join([*SAID, FINISHED])

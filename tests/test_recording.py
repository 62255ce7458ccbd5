"""One recording, many followers: everybody gets everything in order, and memory stays bounded."""

import asyncio

import pytest

from semcache.errors import UpstreamError
from semcache.types import Unstorable
from semcache.wire.dialect import Frame, Reading
from semcache.wire.recording import WINDOW_BYTES, Recording

END = Reading(None, Unstorable.REFUSED)


async def collect(recording: Recording, include_usage: bool = True) -> bytes:
    with recording.join() as follower:
        return b"".join([piece async for piece in follower.pieces(include_usage)])


async def test_a_late_follower_gets_everything_from_the_start() -> None:
    recording = Recording(1000, is_stream=True)
    recording.begin(200, {}, "a")
    early = asyncio.create_task(collect(recording))
    for number in range(9):
        await recording.extend([Frame(b"%d" % number)])
        await asyncio.sleep(0)
    late = asyncio.create_task(collect(recording))
    await asyncio.sleep(0)
    recording.finish(END)
    assert await early == await late == await collect(recording) == b"012345678"


async def test_only_those_who_asked_get_the_usage_chunk() -> None:
    recording = Recording(1000, is_stream=True)
    await recording.extend([Frame(b"a"), Frame(b"usage", usage_only=True), Frame(b"b")])
    recording.finish(END)
    assert await collect(recording, include_usage=False) == b"ab"
    assert await collect(recording) == b"ausageb"


async def test_a_reply_that_breaks_off_gives_what_there_is_and_then_the_error() -> None:
    recording = Recording(1000, is_stream=True)
    await recording.extend([Frame(b"half")])
    recording.fail(UpstreamError("cut"))
    got = []
    with pytest.raises(UpstreamError, match="cut"):
        async for piece in recording.join().pieces(True):
            got.append(piece)
    assert got == [b"half"]


async def test_failing_before_the_headers_raises_for_everybody() -> None:
    recording = Recording(1000, is_stream=True)
    waiting = [asyncio.create_task(recording.begun()) for _ in range(3)]
    await asyncio.sleep(0)
    recording.fail(UpstreamError("refused"))
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, UpstreamError)


async def test_past_its_limit_a_recording_waits_for_the_slowest_and_stays_small() -> None:
    recording = Recording(limit_bytes=1000, is_stream=True)
    chunk = Frame(b"x" * 64 * 1024)
    taken = asyncio.Event()
    received = 0

    async def follow_slowly() -> None:
        nonlocal received
        with recording.join() as follower:
            async for piece in follower.pieces(True):
                received += len(piece)
                await taken.wait()

    async def write() -> None:
        for _ in range(64):
            await recording.extend([chunk])
        recording.finish(END)

    follower = asyncio.create_task(follow_slowly())
    await asyncio.sleep(0)
    writer = asyncio.create_task(write())
    for _ in range(200):
        await asyncio.sleep(0)
    assert not writer.done(), "the fetch went on though nobody reads"
    assert not recording.is_joinable
    assert sum(len(frame.raw) for frame in recording._frames) <= WINDOW_BYTES + len(chunk.raw)
    taken.set()
    await asyncio.gather(follower, writer)
    assert received == 64 * len(chunk.raw)


async def test_a_follower_who_leaves_frees_the_fetch() -> None:
    recording = Recording(limit_bytes=0, is_stream=True)

    async def read_one() -> None:
        with recording.join() as follower:
            async for _ in follower.pieces(True):
                await asyncio.Event().wait()

    follower = asyncio.create_task(read_one())
    await asyncio.sleep(0)
    writer = asyncio.create_task(recording.extend([Frame(b"x" * (WINDOW_BYTES + 1)), Frame(b"y" * WINDOW_BYTES)]))
    for _ in range(10):
        await asyncio.sleep(0)
    follower.cancel()
    await asyncio.wait_for(writer, 1)


async def test_whoever_wants_it_whole_is_woken_once() -> None:
    recording = Recording(1000, is_stream=False)
    waiting = asyncio.create_task(recording.whole())
    for _ in range(3):
        await recording.extend([Frame(b"x")])
        await asyncio.sleep(0)
    assert not waiting.done()
    recording.finish(END)
    assert await waiting is True


async def test_whoever_wants_it_whole_is_told_when_it_grows_too_large() -> None:
    recording = Recording(limit_bytes=1000, is_stream=False)
    with recording.join() as follower:
        waiting = asyncio.create_task(recording.whole())
        await asyncio.sleep(0)
        writing = asyncio.create_task(recording.extend([Frame(b"x" * (WINDOW_BYTES + 1))]))
        assert await waiting is False
        assert len(follower.take(include_usage=True)) == WINDOW_BYTES + 1
        await asyncio.wait_for(writing, 1)

"""The pace of a hit: at once, as it was recorded, or so many tokens a second; in every dialect that streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.harness import until
from tests.stage import PARTS, Part, Stage, staged

every_part = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


def uneven(part: Part) -> list[float]:
    """Pauses before each event, none like the other; the first comes at once."""
    return [0.0, *(0.25 * number for number, _ in enumerate(part.events[1:], 1))]


@every_part
async def test_at_once_a_stream_leaves_in_one_piece(stage: Stage, part: Part) -> None:
    recorded = await stage.record(part, uneven(part))
    assert len(recorded.chunks) == len(part.events)
    hit = await stage.ask(part, stream=True)
    assert hit.is_hit
    assert len(hit.chunks) == 1
    assert len(part.read(hit.raw)) == len(part.read(recorded.raw))
    assert stage.ticks.slept == []


@every_part
async def test_as_recorded_each_event_comes_when_it_came(stage: Stage, part: Part) -> None:
    recorded = await stage.record(part, uneven(part))
    hit = await stage.ask(part, stream=True, control="replay=recorded")
    assert hit.is_hit
    assert len(hit.chunks) == len(part.events)
    assert [len(part.read(chunk)) for chunk in hit.chunks] == [len(part.read(chunk)) for chunk in recorded.chunks]
    kept = len(uneven(part)) - part.stream.count(b"[DONE]")  # the mark at the end belongs to the last event
    assert stage.ticks.slept == pytest.approx(uneven(part)[1:kept])


@every_part
async def test_by_the_second_the_whole_lasts_as_long_as_its_tokens_take(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=True)
    hit = await stage.ask(part, stream=True, control="replay=4")
    assert hit.is_hit
    assert len(hit.chunks) == len(part.events)
    assert sum(stage.ticks.slept) == pytest.approx(part.tokens / 4)
    assert max(stage.ticks.slept) == pytest.approx(min(stage.ticks.slept)), "evenly"


@every_part
async def test_by_the_second_a_body_is_played_so_too(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=False)
    hit = await stage.ask(part, stream=True, control="replay=4")
    assert hit.is_hit
    assert len(hit.chunks) > 1
    assert sum(stage.ticks.slept) == pytest.approx(part.tokens / 4)


@every_part
async def test_of_a_body_nobody_knows_when_its_words_came(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=False)
    hit = await stage.ask(part, stream=True, control="replay=recorded")
    assert hit.is_hit
    assert stage.ticks.slept == []


@every_part
async def test_a_body_never_waits(stage: Stage, part: Part) -> None:
    await stage.record(part, uneven(part))
    for pace in ("recorded", "1"):
        assert (await stage.ask(part, stream=False, control=f"replay={pace}")).is_hit
    assert stage.ticks.slept == []


@every_part
async def test_each_event_leaves_when_it_is_due_and_not_with_the_next(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=True)
    stage.ticks.gate = asyncio.Semaphore(1)
    held: list[int] = []

    def let_the_next_through() -> None:
        held.append(stage.ticks.asleep)
        stage.ticks.gate.release()  # type: ignore[union-attr]

    # The proxy is let to sleep through once for each event that the client has: it would wait for ever if it sent late.
    hit = await stage.ask(part, stream=True, control="replay=9", on_chunk=let_the_next_through)
    assert len(held) == len(hit.chunks) == len(part.events)


@every_part
async def test_the_vendors_client_shows_the_same_text_in_pieces(stage: Stage, part: Part) -> None:
    first = await stage.hear(part)
    await stage.proxy.landed()
    assert len(first) > 1
    for control in ("replay=instant", "replay=recorded", "replay=1000"):
        assert await stage.hear(part, control) == first
    assert stage.server.requests == 1


@every_part
async def test_a_pace_that_is_none_is_refused_in_the_dialects_shape(stage: Stage, part: Part) -> None:
    for control in ("replay=fast", "replay=0", "replay=-3", "replay"):
        with pytest.raises(part.wrong) as refused:
            await stage.hear(part, control)
        assert "Semcache-Control: the value of `replay` is not allowed" in str(refused.value)
    assert stage.server.requests == 0


ROUTES = """
cache: {replay: 10}
routes:
  - {models: [as-it-came], cache: {replay: recorded}}
  - {models: [at-once], cache: {replay: instant}}
  - {models: ["*"]}
"""


async def test_each_route_has_its_pace_and_a_request_its_own(tmp_path: Path) -> None:
    part = PARTS[0]
    async with staged(tmp_path, ROUTES) as stage:
        slept = stage.ticks.slept
        expected = {"other": part.tokens / 10, "as-it-came": 0.0, "at-once": 0.0}
        for model, lasts_s in expected.items():
            await stage.ask(part, stream=True, model=model)
            hit = await stage.ask(part, stream=True, model=model)
            assert (len(hit.chunks) == 1) == (model == "at-once")
            assert sum(slept) == pytest.approx(lasts_s)
            slept.clear()
            await stage.ask(part, stream=True, model=model, control="replay=2")
            assert sum(slept) == pytest.approx(part.tokens / 2)
            slept.clear()
            assert len((await stage.ask(part, stream=True, model=model, control="replay=instant")).chunks) == 1
            assert slept == []


# Who leaves, and what is cut


@every_part
async def test_a_client_that_leaves_ends_its_replay(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=True)
    stage.ticks.gate = asyncio.Semaphore(2)
    fields = {"Authorization": "Bearer sk-test", "Semcache-Control": "replay=1"}
    async with stage.http.post(stage.url + part.path, json=part.asking(True), headers=fields) as response:
        await response.content.readany()
        await until(lambda: stage.ticks.asleep)
        response.close()
    await until(lambda: stage.ticks.cancelled)
    assert stage.ticks.asleep == 0
    hit = await stage.ask(part, stream=True)
    assert hit.is_hit, "the entry is as good as before"


@every_part
async def test_the_end_of_a_drain_cuts_a_replay_where_everybody_sees_it(stage: Stage, part: Part) -> None:
    await stage.ask(part, stream=True)
    stage.ticks.gate = asyncio.Semaphore(2)
    fields = {"Authorization": "Bearer sk-test", "Semcache-Control": "replay=1"}
    async with stage.http.post(stage.url + part.path, json=part.asking(True), headers=fields) as response:
        raw = await response.content.readany()
        await until(lambda: stage.ticks.asleep)
        await stage.proxy.app.listener.drain(0)
        with pytest.raises(aiohttp.ClientPayloadError):
            while piece := await response.content.readany():
                raw += piece
    assert b"the proxy is stopping" in raw, "last words in the dialect"
    assert stage.ticks.cancelled == 1


@every_part
async def test_the_vendors_client_raises_for_a_replay_that_is_cut(stage: Stage, part: Part) -> None:
    await stage.hear(part)
    await stage.proxy.landed()
    stage.ticks.gate = asyncio.Semaphore(2)
    hearing = asyncio.create_task(stage.hear(part, "replay=1"))
    await until(lambda: stage.ticks.asleep and stage.ticks.gate.locked())  # type: ignore[union-attr]
    await stage.proxy.app.listener.drain(0)
    with pytest.raises(part.cut, match="the proxy is stopping"):
        await hearing

"""Whose id, time and token counts a hit shows: its own or the recorded ones, as its route says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.stage import PARTS, Heard, Part, staged

every_part = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
every_way = pytest.mark.parametrize(
    "recorded_as_stream, stream", [(a, b) for a in (False, True) for b in (False, True)], ids=str
)

FRESH = {
    "chat": r"chatcmpl-\w{12,}",
    "completions": r"cmpl-\w{12,}",
    "messages": r"msg_\w{12,}",
    "ollama": r"2027-01-15T08:00:00Z",  # it has no id, only a time
    "responses": r"resp_\w{12,}",
}
ROUTES = """
cache: {identity: original, usage: zero}
routes:
  - {models: [fresh], cache: {identity: fresh}}
  - {models: [metered], cache: {usage: original}}
  - {models: ["*"]}
"""


def identity_of(part: Part, heard: Heard) -> str:
    """The one id that all of a reply shows; Ollama's time."""
    name = "created_at" if part.name == "ollama" else "id"
    told = set()
    for value in part.read(heard.raw):
        holder = value.get("response") if type(value.get("response")) is dict else value.get("message")
        holder = holder if type(holder) is dict and "id" in holder else value
        if name in holder:
            told.add(holder[name])
    (one,) = told
    return str(one)


NAMES = {part.name: ("usage",) for part in PARTS} | {"ollama": ("prompt_eval_count", "eval_count")}


def figures(part: Part, heard: Heard) -> list[int]:
    """Every token count that a reply tells, nested ones too, in order."""
    return [number for value in part.read(heard.raw) for number in _under(value, NAMES[part.name])]


def _under(value: Any, names: tuple[str, ...]) -> Iterator[int]:
    if type(value) is dict:
        for name, member in value.items():
            yield from _numbers(member) if name in names else _under(member, names)
    elif type(value) is list:
        for member in value:
            yield from _under(member, names)


def _zeroed(value: Any, names: tuple[str, ...], *, here: bool = False) -> Any:
    if type(value) is dict:
        return {name: _zeroed(member, names, here=here or name in names) for name, member in value.items()}
    if type(value) is list:
        return [_zeroed(member, names, here=here) for member in value]
    return 0 if here and type(value) is int else value


def _numbers(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif type(value) is dict:
        for member in value.values():
            yield from _numbers(member)


def as_asked(part: Part) -> Mapping[str, Any]:
    return {"store": False} if part.name == "responses" else {}  # else its id is a handle; see below


@every_part
@every_way
async def test_by_default_every_hit_is_a_new_answer(
    tmp_path: Path, part: Part, recorded_as_stream: bool, stream: bool
) -> None:
    async with staged(tmp_path) as stage:
        miss = await stage.ask(part, stream=recorded_as_stream, **as_asked(part))
        hits = [await stage.ask(part, stream=stream, **as_asked(part)) for _ in range(2)]
        assert all(hit.is_hit for hit in hits)
        shown = [identity_of(part, hit) for hit in hits]
        if part.name == "ollama":
            assert shown == [FRESH["ollama"]] * 2
        else:
            assert len({*shown, identity_of(part, miss)}) == 3
            assert all(re.fullmatch(FRESH[part.name], one) for one in shown)


@every_part
@every_way
async def test_an_original_identity_is_the_recorded_one(
    tmp_path: Path, part: Part, recorded_as_stream: bool, stream: bool
) -> None:
    async with staged(tmp_path, ROUTES) as stage:
        await stage.ask(part, stream=recorded_as_stream, **as_asked(part))
        hits = [await stage.ask(part, stream=stream, **as_asked(part)) for _ in range(2)]
        assert all(hit.is_hit for hit in hits)
        recorded = Heard({}, [part.stream if recorded_as_stream else part.body])
        if part.name == "ollama":  # each line has a time of its own
            assert all(
                part.read(hit.raw)[-1]["created_at"] == part.read(recorded.raw)[-1]["created_at"] for hit in hits
            )
            return
        assert {identity_of(part, hit) for hit in hits} == {identity_of(part, recorded)}
        other = dict(as_asked(part)) | {"model": "fresh"}
        await stage.ask(part, stream=recorded_as_stream, **other)
        assert identity_of(part, await stage.ask(part, stream=stream, **other)) != identity_of(part, recorded)


@every_part
@every_way
async def test_token_counts_are_the_recorded_ones_or_what_a_hit_costs(
    tmp_path: Path, part: Part, recorded_as_stream: bool, stream: bool
) -> None:
    async with staged(tmp_path, ROUTES) as stage:
        miss = await stage.ask(part, stream=recorded_as_stream)
        assert part.tokens in figures(part, miss), "what is fetched shows what it has cost"
        hit = await stage.ask(part, stream=stream)
        assert hit.is_hit
        told = figures(part, hit)
        assert told and set(told) == {0}
        await stage.ask(part, stream=recorded_as_stream, model="metered")
        metered = await stage.ask(part, stream=stream, model="metered")
        assert metered.is_hit
        assert part.tokens in figures(part, metered)
        assert part.read(hit.raw) == [_zeroed(value, NAMES[part.name]) for value in part.read(metered.raw)], (
            "nothing but the counts is another"
        )


# What only some dialects have


async def test_anthropics_counts_are_nothing_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    part = PARTS[3]
    async with staged(tmp_path, ROUTES) as stage:
        for recorded_as_stream in (True, False):
            asked = {"model": f"tiny-{recorded_as_stream}"}
            await stage.ask(part, stream=recorded_as_stream, **asked)
            events = part.read((await stage.ask(part, stream=True, **asked)).raw)
            (start,) = [event["message"]["usage"] for event in events if event["type"] == "message_start"]
            (end,) = [event["usage"] for event in events if event["type"] == "message_delta"]
            assert (start["input_tokens"], start["output_tokens"], start["cache_read_input_tokens"]) == (0, 0, 0)
            assert (end["input_tokens"], end["output_tokens"], end["cache_read_input_tokens"]) == (0, 0, 0)
            assert start["service_tier"] == "standard", "what is no figure stays"


@pytest.mark.parametrize("part", PARTS[:2], ids=lambda part: part.name)
async def test_a_usage_chunk_is_shown_to_those_who_ask_and_says_nothing_was_used(tmp_path: Path, part: Part) -> None:
    async with staged(tmp_path, ROUTES) as stage:
        await stage.ask(part, stream=True)
        chunks = part.read((await stage.ask(part, stream=True)).raw)
        assert [chunk.get("usage") for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        for_others = part.read((await stage.ask(part, stream=True, stream_options=None)).raw)
        assert not any("usage" in chunk for chunk in for_others)


SHARED = """
cache: {sharing: namespace}
tenants:
  - {name: one, keys: [k-one], namespaces: [docs]}
  - {name: two, keys: [k-two], namespaces: [docs]}
"""


@every_way
async def test_an_id_that_is_a_handle_is_shown_to_those_alone_who_can_use_it(
    tmp_path: Path, recorded_as_stream: bool, stream: bool
) -> None:
    """The upstream keeps a response, unless it is told not to: its id is then asked for again."""
    part = PARTS[2]
    async with staged(tmp_path, SHARED) as stage:
        miss = await stage.ask(part, stream=recorded_as_stream, key="k-one")
        kept = identity_of(part, miss)
        own = [await stage.ask(part, stream=stream, key="k-one") for _ in range(2)]
        others = [await stage.ask(part, stream=stream, key="k-two") for _ in range(2)]
        assert all(hit.is_hit for hit in (*own, *others))
        assert [identity_of(part, hit) for hit in own] == [kept, kept]
        shown = [identity_of(part, hit) for hit in others]
        assert len({kept, *shown}) == 3
        assert all(re.fullmatch(FRESH["responses"], one) for one in shown)
        assert stage.server.requests == 1

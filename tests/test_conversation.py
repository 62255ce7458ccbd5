"""How the turns before a question count: equal, near, or only the last of them. Through the whole proxy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest

from semcache import config
from semcache.cache.conversation import (
    COMPARED_CHARS,
    COMPARED_TURNS,
    NO_PAST,
    Past,
    compared,
    find_context_objection,
    loses_its_meaning,
    turns_left_out,
)
from semcache.cache.policy import rule
from semcache.config import Cache, Match
from semcache.errors import ConfigError
from semcache.types import Ask, Reason, Traits, Turn
from tests.entries import make_entry
from tests.harness import Proxy, running_proxy

PATH = "/v1/chat/completions"
ASK = Ask("openai", "chat/completions", PATH, "m", "What does it all cost?", b"{}", False, False, None, Traits(), b"")
TALK = (Turn("user", "Which plan has roaming?"), Turn("assistant", "The travel plan."))

QUESTION = "What does the travel plan cost for one month abroad?"
NEAR = "What does the travel plan cost for one month abroad then?"


def talk(*said: str) -> list[dict[str, Any]]:
    """User and assistant in turn, the last being the question."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]


OPENING = "Hello, I would like to know which of your plans work well in other countries of Europe"
OPENED = "Hello, I would like to know which of your plans work well in many countries of Europe"
REPLY = "The travel plan works in all of them and has five gigabytes of data"


# The setting


@pytest.mark.parametrize(
    "written, read",
    [
        ("equal", "equal"),
        ("similar", "similar"),
        ("{last: 3}", 3),
        ('"last: 3"', 3),
        ('"last:12"', 12),
    ],
)
def test_the_setting_is_read(written: str, read: object) -> None:
    assert config.parse(f"match: {{context: {written}}}", {}).match.context == read


@pytest.mark.parametrize("written", ["3", "last", "{last: 0}", "{last: three}", '"last: -1"', "{first: 3}", "null"])
def test_a_setting_that_is_none_is_refused_with_the_remedy(written: str) -> None:
    with pytest.raises(ConfigError, match=r'match\.context.*"last: 3"'):
        config.parse(f"match: {{context: {written}}}", {})


# Which turns count, and how


def test_equal_turns_are_all_of_the_context() -> None:
    assert turns_left_out(TALK, Match()) is None
    assert turns_left_out((), Match(context="similar")) is None


def test_older_turns_than_the_last_are_left_out() -> None:
    assert turns_left_out(TALK * 2, Match(context={"last": 3})) == slice(0, 1)  # type: ignore[arg-type]
    assert turns_left_out(TALK, Match(context={"last": 3})) is None  # type: ignore[arg-type]


def test_near_turns_are_the_newest_that_fit() -> None:
    assert compared(TALK) == TALK
    assert compared(TALK * 10) == (TALK * 10)[-COMPARED_TURNS:]
    assert compared((Turn("user", "x" * COMPARED_CHARS), *TALK)) == TALK
    assert compared((*TALK, Turn("user", None), *TALK[:1])) == TALK[:1]
    assert compared((*TALK, Turn("user", "x" * (COMPARED_CHARS + 1)))) == ()
    assert turns_left_out((*TALK, Turn("user", None)), Match(context="similar")) is None


def vector(*values: float) -> Any:
    return np.array(values, np.float32)


ENTRY = replace(make_entry("q"), turns=("Which plan has roaming?", "The travel plan."), turns_vector=vector(0.6, 0.8))
SIMILAR = rule(replace(ASK, turns=TALK), Cache(), Match(context="similar", context_threshold=0.9))


def test_turns_are_held_against_each_other_one_by_one() -> None:
    def objection(texts: Sequence[str], turns_vector: Any) -> Reason | None:
        return find_context_objection(Past(tuple(texts), turns_vector), ENTRY, SIMILAR)

    assert objection(ENTRY.turns, vector(0.6, 0.8)) is None
    assert objection(("What plan has roaming?", "The travel plan."), vector(0.6, 0.8)) is None
    assert objection(ENTRY.turns, vector(0.8, 0.6)) is None
    assert objection(ENTRY.turns, vector(1.0, 0.0)) is Reason.CONTEXT  # too far
    assert objection(("Which plan has no roaming?", "The travel plan."), vector(0.6, 0.8)) is Reason.CONTEXT
    assert objection(ENTRY.turns[:1], vector(0.6, 0.8)) is Reason.CONTEXT
    assert objection(ENTRY.turns, vector(0.6, 0.8, 0.0)) is Reason.CONTEXT  # of another model
    assert find_context_objection(NO_PAST, ENTRY, SIMILAR) is Reason.CONTEXT
    assert find_context_objection(Past(ENTRY.turns, vector(0.6, 0.8)), make_entry("q"), SIMILAR) is Reason.CONTEXT
    assert find_context_objection(NO_PAST, make_entry("q"), SIMILAR) is None


def test_turns_that_must_be_equal_are_not_compared() -> None:
    assert find_context_objection(NO_PAST, ENTRY, rule(ASK, Cache(), Match())) is None


@pytest.mark.parametrize(
    "question, turns, context, lost",
    [
        ("And in Norway?", (), "equal", True),
        ("And in Norway?", TALK, "equal", False),
        ("And in Norway?", TALK, "similar", True),
        ("And in Norway?", TALK, "last: 2", True),
        ("What does the travel plan cost?", TALK, "similar", False),
        ("What does the travel plan cost?", (), "equal", False),
        ("The one with the red roof", (Turn("assistant", "Which house do you mean?"),), "similar", True),
        ("The one with the red roof", (Turn("assistant", "Which house do you mean?"),), "equal", False),
        ("Which has a red roof in Graz?", (Turn("assistant", "Which house do you mean?"),), "last: 1", False),
    ],
)
def test_what_means_nothing_alone_needs_equal_turns(
    question: str, turns: tuple[Turn, ...], context: Any, lost: bool
) -> None:
    assert loses_its_meaning(replace(ASK, question=question, turns=turns), Match(context=context)) is lost


# The whole way


@pytest.fixture
async def similar(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with running_proxy(tmp_path, "match: {context: similar, threshold: 0.9, context_threshold: 0.9}") as proxy:
        yield proxy


async def test_near_turns_and_a_near_question_are_a_hit(similar: Proxy) -> None:
    first = await similar.ask(talk(OPENING, REPLY, QUESTION))
    hit = await similar.ask(talk(OPENED, REPLY, NEAR))
    assert (hit.verdict, hit.text) == ("hit", first.text)
    assert hit.detail.startswith("semantic")
    assert similar.backend.requests == 1


async def test_equal_turns_must_be_equal_where_nothing_else_is_said(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {threshold: 0.9}") as proxy:
        await proxy.ask(talk(OPENING, REPLY, QUESTION))
        assert (await proxy.ask(talk(OPENED, REPLY, NEAR))).verdict == "miss"
        assert (await proxy.ask(talk(OPENING, REPLY, NEAR))).verdict == "hit"


@pytest.mark.parametrize(
    "said",
    [
        (NEAR,),
        (OPENING, REPLY, OPENING, REPLY, NEAR),
        ("Where can I hand in a parcel in the evening", REPLY, NEAR),
        (OPENING.replace("work", "do not work"), REPLY, NEAR),
        (OPENING, REPLY.replace("five", "fifty"), NEAR),
    ],
    ids=["none", "more", "others", "denied", "another number"],
)
async def test_other_turns_are_a_miss(similar: Proxy, said: Sequence[str]) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    assert (await similar.ask(talk(*said))).verdict == "miss"


async def test_turns_that_are_not_near_are_named_as_the_reason(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    other = await similar.ask(talk("Where can I hand in a parcel in the evening", REPLY, NEAR))
    assert other.detail == "context"


async def test_a_first_question_meets_no_entry_with_turns(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    assert (await similar.ask(QUESTION)).verdict == "miss"
    assert (await similar.ask(NEAR)).verdict == "hit"


async def test_the_system_prompt_and_the_model_stay_equal(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    system = {"role": "system", "content": "Answer in rhymes."}
    assert (await similar.ask([system, *talk(OPENING, REPLY, NEAR)])).verdict == "miss"
    assert (await similar.ask(talk(OPENING, REPLY, NEAR), model="large")).verdict == "miss"


async def test_a_follow_up_meets_only_its_equal(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, "And what about Norway?"))
    other = await similar.ask(talk(OPENED, REPLY, "And what about Norway?"))
    assert (other.verdict, other.detail) == ("miss", "follow-up")
    assert (await similar.ask(talk(OPENING, REPLY, "And what about Norway?"))).detail == "exact"


async def test_turns_that_are_too_long_to_compare_must_be_equal(similar: Proxy) -> None:
    long = "word " * COMPARED_CHARS
    first = await similar.ask(talk(long, REPLY, QUESTION))
    assert (await similar.ask(talk(long, REPLY, NEAR))).text == first.text
    assert (await similar.ask(talk(long + "more", REPLY, NEAR))).verdict == "miss"


async def test_turns_the_embedder_cannot_read_leave_the_exact_tier(similar: Proxy) -> None:
    similar.embedder.window_words = 20
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    near = await similar.ask(talk(OPENING, REPLY, NEAR))
    assert near.verdict == "miss"
    assert (await similar.ask(talk(OPENING, REPLY, QUESTION))).detail == "exact"


async def test_turns_outlive_a_restart(tmp_path: Path) -> None:
    settings = "match: {context: similar, threshold: 0.9, context_threshold: 0.9}"
    async with running_proxy(tmp_path, settings) as proxy:
        first = await proxy.ask(talk(OPENING, REPLY, QUESTION))
    async with running_proxy(tmp_path, settings) as proxy:
        assert (await proxy.ask(talk(OPENED, REPLY, NEAR))).text == first.text
        other = await proxy.ask(talk(OPENING, REPLY.replace("five", "fifty"), NEAR))
        assert other.detail == "context"


async def test_only_the_last_turns_count_where_an_operator_says_so(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, 'match: {context: "last: 1", threshold: 0.9}') as proxy:
        first = await proxy.ask(talk(OPENING, REPLY, QUESTION))
        assert (await proxy.ask(talk("Something else", REPLY, NEAR))).text == first.text
        assert (await proxy.ask(talk("Something else", REPLY, QUESTION))).text == first.text
        assert (await proxy.ask(talk("Something else", "Ask again.", NEAR))).verdict == "miss"
        assert (await proxy.ask(talk(OPENING, REPLY, "And there?"))).verdict == "miss"
        assert (await proxy.ask(talk("Something else", REPLY, "And there?"))).detail == "follow-up"


async def test_small_talk_without_turns_meets_only_its_equal(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {threshold: 0.5}") as proxy:
        await proxy.ask("yes please do that")
        assert (await proxy.ask("yes please do")).detail == "follow-up"
        assert (await proxy.ask("yes please do that")).detail == "exact"


# Agents


async def test_a_loop_that_the_cache_would_make_is_broken(tmp_path: Path) -> None:
    said = "It is at the depot in the harbour of this town"
    asked = "Please tell me where the parcel with the lamp is kept over the night"
    async with running_proxy(tmp_path, 'match: {context: "last: 1", time_bound: serve}') as proxy:
        proxy.backend.answer = said
        await proxy.ask(talk("Hello", said, asked))
        for stream in (False, True):
            circle = await proxy.ask(talk("Good day to you", said, asked), stream=stream)
            assert (circle.verdict, circle.detail) == ("miss", "loop")
            await proxy.landed()
        proxy.backend.answer = "It has left the depot"
        assert (await proxy.ask(talk("Hello", said, asked))).detail == "loop"
        assert (await proxy.ask(talk("Hello", said, asked))).text == "It has left the depot"
        assert proxy.backend.requests == 4


async def test_a_popular_question_is_served_as_often_as_it_is_asked(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        replies = [await proxy.ask(talk("Hello", "Hello!", QUESTION)) for _ in range(20)]
        assert [reply.verdict for reply in replies] == ["miss"] + ["hit"] * 19


async def test_a_tools_output_in_the_users_turn_is_exact_only(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, "match: {threshold: 0.5}") as proxy:
        call = "Action: list_files\nAction Input: src"
        await proxy.ask(talk("What is in src?", call, "Observation: main.py util.py test.py"))
        near = await proxy.ask(talk("What is in src?", call, "Observation: main.py util.py text.py"))
        assert (near.verdict, near.detail) == ("miss", "agent")


# What operators are told


async def test_an_explanation_tells_how_near_the_turns_are(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    report = await explain(similar, talk("Where can I hand in a parcel in the evening", REPLY, NEAR))
    assert (report["verdict"], report["reason"]) == ("miss", "context")
    assert report["route"]["context"] == "similar"
    (candidate,) = report["candidates"]
    assert candidate["objection"] == "context"
    assert 0.3 < candidate["turns_similarity"] < 0.9


async def test_an_explanation_of_a_circle_says_so(tmp_path: Path) -> None:
    async with running_proxy(tmp_path) as proxy:
        proxy.backend.answer = "In the drawer."
        circle = talk("Where are the keys?", "In the drawer.", "Where does one keep the keys of this house?")
        await proxy.ask(circle)
        report = await explain(proxy, circle)
        assert (report["verdict"], report["reason"]) == ("miss", "loop")
        assert (await proxy.ask(circle)).detail == "loop"


async def explain(proxy: Proxy, messages: list[dict[str, Any]]) -> Any:
    asked = {"path": PATH, "body": {"model": "small", "messages": messages}, "key": "sk-test"}
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{proxy.app.admin_port}/semcache/explain"
        async with http.post(url, data=json.dumps(asked).encode()) as response:
            assert response.status == 200
            return await response.json()


async def test_turns_are_embedded_only_where_something_near_was_found(similar: Proxy) -> None:
    await similar.ask(talk(OPENING, REPLY, QUESTION))
    before = len(similar.embedder.embedded)
    stored_only = {"Cache-Control": "only-if-cached"}
    with pytest.raises(openai.APIStatusError):
        await similar.ask(talk(OPENED, REPLY, "Where do I find the hours of the office?"), headers=stored_only)
    assert len(similar.embedder.embedded) == before + 1
    await similar.ask(talk(OPENED, REPLY, NEAR), headers=stored_only)
    assert len(similar.embedder.embedded) == before + 3

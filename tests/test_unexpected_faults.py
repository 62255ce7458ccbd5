"""Whatever goes wrong in the cache, and however: the request is answered as if there were none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import TypeVar

import pytest

from semcache.admit import ANONYMOUS
from semcache.types import Answer, Match, Tier, Vector
from semcache.wire import find_address
from semcache.wire.openai import OpenAIChat
from tests.fakes import WordsEmbedder
from tests.harness import running_proxy

T = TypeVar("T")

QUESTION = "how tall is the old tower at the gate"


class Faulty(WordsEmbedder):
    """Fails as nobody has foreseen, once told to."""

    is_faulty = False

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T:
        if self.is_faulty:
            raise ZeroDivisionError("nobody has thought of this")
        return await super().embed(text, then, deadline_s, remember=remember)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lookup_that_fails_in_an_unforeseen_way_is_a_bypass(tmp_path: Path, stream: bool) -> None:
    embedder = Faulty()
    async with running_proxy(tmp_path, embedder=embedder) as proxy:
        embedder.is_faulty = True
        reply = await proxy.ask(QUESTION, stream=stream)
        assert reply.text.strip() == f"answer 1 to: {QUESTION}"
        assert (reply.verdict, reply.detail) == ("bypass", "cache-fault")
        assert proxy.app.pipeline.faults["ZeroDivisionError"] >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_kept_in_an_unforeseen_way_is_given_all_the_same(
    tmp_path: Path, stream: bool
) -> None:
    embedder = Faulty()
    async with running_proxy(tmp_path, embedder=embedder) as proxy:
        embedder.is_faulty = True  # with no-cache the question is embedded only for its entry
        reply = await proxy.ask(QUESTION, stream=stream, headers={"Cache-Control": "no-cache"})
        assert reply.text.strip() == f"answer 1 to: {QUESTION}"
        await proxy.landed()
        assert proxy.app.pipeline.faults["ZeroDivisionError"] == 1
        assert proxy.app.pipeline.stored == 0
        embedder.is_faulty = False
        assert (await proxy.ask(QUESTION)).verdict == "miss"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_damaged_answer_in_a_conversation_is_replaced_by_a_fresh_one(tmp_path: Path, stream: bool) -> None:
    said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Which one?"}]
    asked = [*said, {"role": "user", "content": "The one that was built of bricks"}]
    async with running_proxy(tmp_path) as proxy:
        await proxy.ask(asked)
        core = proxy.app.core
        (entry,) = [entry for seq in range(5) if (entry := core.store.get(seq))]
        await core.store.put(
            replace(entry, answer=replace(entry.answer, parts=(b'{"choices": [',))), core.store.last_seq
        )
        reply = await proxy.ask(asked, stream=stream)
        assert reply.text.strip() == "answer 2 to: The one that was built of bricks"
        await proxy.landed()
        assert (await proxy.ask(asked)).verdict == "hit"


class Listening(OpenAIChat):
    """Notes which threads read what answers say."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def spoken(self, answer: Answer) -> str | None:
        self.threads.append(get_ident())
        return super().spoken(answer)


@pytest.mark.parametrize("words, is_aside", [(10, False), (20_000, True)])
async def test_a_long_answer_is_held_against_the_conversation_on_a_thread(
    tmp_path: Path, words: int, is_aside: bool
) -> None:
    said = "again " * words
    asked = [{"role": "assistant", "content": said}, {"role": "user", "content": QUESTION}]
    async with running_proxy(tmp_path) as proxy:
        proxy.backend.answer = said
        await proxy.ask(asked)
        core = proxy.app.core
        address = find_address("/v1/chat/completions")
        assert address is not None
        body = json.dumps({"model": "small", "messages": asked, "stream": False}).encode()
        dialect = Listening()
        plan = replace(core.planner.plan(address, {}, body, ANONYMOUS, ""), dialect=dialect)
        (entry,) = [entry for seq in range(5) if (entry := core.store.get(seq))]
        match = Match(entry, Tier.EXACT, 60.0, 1.0)
        assert await proxy.app.pipeline.turns_in_a_circle(plan, match)
        assert await proxy.app.pipeline.turns_in_a_circle(plan, match)
        assert len(dialect.threads) == 1 and (dialect.threads[0] != get_ident()) == is_aside

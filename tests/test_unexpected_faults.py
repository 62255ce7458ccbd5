"""Whatever goes wrong in the cache, and however: the request is answered as if there were none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from semcache.types import Vector
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

"""A stream asked of a real cache that keeps an error bound (`match.max_error`), from nothing known to the end.

What a bounded route serves depends on all that it has seen, so there is no shortcut: every request goes through the
whole path of decision, with its exploring, comparing and fitting. Only the vectors are known beforehand, and answers
are the names of their labels: equal ones say the same, and any two others have nothing to do with each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from semcache.cache.engines import cores
from semcache.config import Match
from semcache.errors import TooLong
from semcache.tuning.curves import Count
from semcache.tuning.labelled import Vectors
from semcache.tuning.playing import EXACT, FALSE, MISS, RIGHT, Outcomes, Stream, count
from semcache.types import Reason, Tier, Vector, Verdict

T = TypeVar("T")

BOUNDS = (0.005, 0.01, 0.02, 0.05)
WARM_UP = 500  # requests that the bound learns from before it is judged
BEGUN_AT = 1_800_000_000.0  # unix seconds: any will do
STEP_S = 1.0  # between two questions
FEW = 2000  # rows for which other processes are not worth their start
SEED = 7  # of what is explored


class Cache(Protocol):
    """semcache.inprocess.Cache, as far as it is needed here."""

    async def ask(self, question: str, *, fetch: Callable[[str], Awaitable[str]]) -> Any: ...

    async def settle(self) -> None: ...


Open = Callable[..., AbstractAsyncContextManager[Any]]  # the class, with its arguments `settings`, embedder and clock


class Played(NamedTuple):
    bound: float
    outcomes: Outcomes
    explored: int  # would-be hits that were forwarded to compare, after the warm-up
    whole: Count  # after the warm-up


class KnownVectors:
    """An embedder that has all vectors already, and answers at once."""

    def __init__(self, texts: Sequence[str], vectors: Vectors, stamp: str) -> None:
        self.stamp = stamp
        self.dimensions = vectors.shape[1]
        self._vectors = dict(zip(texts, vectors, strict=True))

    async def start(self) -> None:
        """There is no model to load."""

    async def close(self) -> None:
        """Nothing is held that needs giving back."""

    def stats(self) -> dict[str, float]:
        return {"queue_depth": 0}

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T:
        vector = self._vectors.get(text)
        if vector is None:  # an answer, for it is compared with others
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
            drawn = np.random.default_rng(seed).standard_normal(self.dimensions)
            vector = np.asarray(drawn / np.linalg.norm(drawn), np.float32)
        elif not vector.any():
            raise TooLong("the model cannot read this text")
        return then(vector)


def play_bounds(
    stream: Stream, vectors: Vectors, stamp: str, match: Match, bounds: Sequence[float], open_cache: Open
) -> Iterator[Played]:
    """Each bound as soon as it is done; several at once where that is worth it."""
    arguments = [(stream, vectors, stamp, match, bound, open_cache) for bound in bounds]
    if len(stream.text_of) <= FEW or cores() == 1:
        yield from (play_bound(*each) for each in arguments)
        return
    # A fresh process each: a fork of one with threads of FAISS and onnxruntime may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores(), len(bounds)), mp_context=context) as processes:
        for done in [processes.submit(play_bound, *each) for each in arguments]:
            yield done.result()


def play_bound(stream: Stream, vectors: Vectors, stamp: str, match: Match, bound: float, open_cache: Open) -> Played:
    replies = asyncio.run(_ask_all(stream, vectors, stamp, settings_of(match, bound), open_cache))
    names = [f"answer {label}" for label in stream.labels]
    outcomes = np.array([_outcome(reply, name) for reply, name in zip(replies, names, strict=True)], np.uint8)
    explored = sum(reply.reason is Reason.EXPLORING for reply in replies[WARM_UP:])
    return Played(bound, outcomes, explored, count(outcomes[WARM_UP:]))


def settings_of(match: Match, bound: float) -> Mapping[str, Any]:
    """A cache that decides as the route does, under this bound, and forgets nothing."""
    section = match.model_dump(mode="json", exclude={"context", "reranker", "answers_judge"})
    return {
        "match": {**section, "mode": "serve", "max_error": bound, "learn": "auto"},
        "cache": {"store": "memory:", "ttl": "3650d"},
    }


async def _ask_all(
    stream: Stream, vectors: Vectors, stamp: str, settings: Mapping[str, Any], open_cache: Open
) -> list[Any]:
    # Time passes faster here than upkeep believes a clock.
    logging.getLogger("semcache.cache.upkeep").setLevel(logging.CRITICAL)
    random.seed(SEED)
    now = BEGUN_AT
    replies = []
    async with open_cache(settings, embedder=KnownVectors(stream.texts, vectors, stamp), clock=lambda: now) as cache:
        for text, label in zip(stream.text_of, stream.labels, strict=True):
            now += STEP_S
            replies.append(await cache.ask(stream.texts[text], fetch=_brings(f"answer {label}")))
            await cache.settle()  # as if the second had really passed
    return replies


def _brings(answer: str) -> Callable[[str], Awaitable[str]]:
    async def fetch(_: str) -> str:
        return answer

    return fetch


def _outcome(reply: Any, right: str) -> int:
    if reply.verdict not in (Verdict.HIT, Verdict.STALE):
        return MISS
    if reply.tier is Tier.EXACT:
        return EXACT
    return RIGHT if reply.text == right else FALSE

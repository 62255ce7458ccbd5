"""RERANK: two questions read together, by a cross-encoder, before the stored answer of the one serves the other.

An embedder sees one question at a time, so what tells two apart must show in both vectors. A cross-encoder sees them
side by side, at some milliseconds a pair. It is asked last, about candidates that everything cheaper lets pass.

What it says is a probability. Doubt about an answer is a miss: a pair that it cannot read whole gets 0.0, and a score
that is late or fails is a RerankerFault, with which the candidate is refused.

All state here belongs to the event loop; the threads only see single pairs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic, perf_counter
from typing import Any, Protocol

from cachetools import LRUCache

from semcache.cache import reranker_engines
from semcache.cache.embedder import Pulse
from semcache.cache.lane import Lane
from semcache.cache.reranker_engines import PairEngine
from semcache.errors import RerankerFault

Pair = tuple[str, str]  # the question asked, the question stored

REMEMBERED = 10_000  # pairs, 0.2 KB each; a repeated question meets the same candidates again
MAX_QUEUE = 256  # pairs waiting: half a second of work on two cores; one more is refused
UNREADABLE = 0.0  # the probability of what cannot be read whole


class Reranker(Protocol):
    async def score(self, pairs: Sequence[Pair], deadline_s: float) -> list[float]:
        """The probability, for each pair, that the stored question's answer serves the question asked.

        Raises RerankerFault when one of them is not known within the deadline, or soon enough to know.
        """


@dataclass(eq=False, slots=True)
class Ask:
    """One caller: how many of the scores are still to come, and where they go."""

    scores: list[float]
    missing: int
    future: asyncio.Future[list[float]]
    beat: int  # of the engine's pulse when it was asked

    def take(self, place: int, score: float) -> None:
        self.scores[place] = score
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.scores)

    def fail(self, message: str) -> None:
        if not self.future.done():
            self.future.set_exception(RerankerFault(message))


@dataclass(eq=False, slots=True)
class Job:
    """One pair on its way through the engine, for all who asked for it meanwhile."""

    pair: Pair
    digest: bytes
    asks: list[tuple[Ask, int]] = field(default_factory=list)  # with the place of the score among the caller's

    def is_wanted(self) -> bool:
        return any(not ask.future.done() for ask, _ in self.asks)


class CrossEncoder:
    """Scores pairs between `start` and `close`, on threads of its own: the embedder's are for those who come next."""

    def __init__(self, engine: PairEngine, clock: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        # By digest, so that long questions take no more room than short ones and none is kept in clear.
        self._remembered: MutableMapping[bytes, float] = LRUCache(REMEMBERED)
        self._jobs: dict[bytes, Job] = {}
        self._pulse = Pulse(clock)
        self._lane: Lane[Job] = Lane("semcache-rerank", self._score_jobs, engine.threads)
        self._count = dict.fromkeys(
            ("pairs", "remembered", "joined", "unreadable", "faults", "refused", "late", "skipped"), 0
        )
        self._seconds = 0.0  # spent in the engine, summed over its threads

    async def start(self) -> None:
        """Load the model. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._engine.open)
        self._lane.start()

    async def close(self) -> None:
        """Whoever still waits gets a RerankerFault."""
        for job in self._jobs.values():
            for ask, _ in job.asks:
                ask.fail("the reranker is closing")
        await asyncio.to_thread(self._lane.stop)

    def stats(self) -> dict[str, float]:
        return {
            **self._count,
            "seconds": self._seconds,
            "queue_depth": self._lane.depth,
            "kept": len(self._remembered),
            "down": float(self._pulse.is_down),
        }

    def __repr__(self) -> str:
        return f"<CrossEncoder {self._engine.stamp} {self.stats()}>"

    async def score(self, pairs: Sequence[Pair], deadline_s: float) -> list[float]:
        """See Reranker. Pairs scored lately are remembered, and those being scored now are joined."""
        ask = Ask([UNREADABLE] * len(pairs), len(pairs), self._loop.create_future(), self._pulse.beats)
        timer = self._loop.call_later(deadline_s, self._expire, ask)
        try:
            for place, pair in enumerate(pairs):
                self._look_up(ask, place, pair)
            return ask.scores if not ask.missing else await ask.future
        finally:
            timer.cancel()
            ask.future.cancel()  # where a pair was refused, nobody waits for those before it

    def _look_up(self, ask: Ask, place: int, pair: Pair) -> None:
        digest = self._digest(pair)
        if digest is None:
            self._count["unreadable"] += 1
            ask.take(place, UNREADABLE)
        elif (known := self._remembered.get(digest)) is not None:
            self._count["remembered"] += 1
            ask.take(place, known)
        elif (job := self._jobs.get(digest)) is not None:
            self._count["joined"] += 1
            job.asks.append((ask, place))
        else:
            self._enqueue(Job(pair, digest, [(ask, place)]))

    def _digest(self, pair: Pair) -> bytes | None:
        """None: too long to be tokenised, or no text at all."""
        asked, stored = pair
        if len(asked) + len(stored) > self._engine.limit_chars:
            return None
        try:
            first, second = asked.encode(), stored.encode()
        except UnicodeEncodeError:  # half a surrogate pair: JSON can say it, no tokenizer can read it
            return None
        return blake2b(b"%d %b%b" % (len(first), first, second), digest_size=16).digest()

    def _enqueue(self, job: Job) -> None:
        if not self._pulse.admits():
            self._count["refused"] += 1
            raise RerankerFault("the reranker does not answer")
        if self._lane.depth >= MAX_QUEUE:
            self._count["refused"] += 1
            raise RerankerFault(f"{MAX_QUEUE} pairs wait already")
        self._jobs[job.digest] = job
        self._lane.put(job)

    def _expire(self, ask: Ask) -> None:
        if not ask.future.done():
            self._count["late"] += 1
            if ask.beat == self._pulse.beats:  # else the engine did score others meanwhile: it is busy, not dead
                self._pulse.miss()
            ask.fail("no score within the deadline")

    # -- on the reranker's threads

    def _score_jobs(self, jobs: list[Job]) -> None:
        for job in jobs:
            begun = perf_counter()
            reply = self._ask_engine(job.pair) if job.is_wanted() else None
            self._loop.call_soon_threadsafe(self._take_back, job, reply, perf_counter() - begun)

    def _ask_engine(self, pair: Pair) -> float | str:
        """A probability, or why there is none."""
        try:
            score: Any = self._engine.score(*pair)
        except Exception as exc:  # native code: any error there is
            return f"the engine failed: {type(exc).__name__}"
        if not isinstance(score, float) or not 0.0 <= score <= 1.0:
            return "the engine gave no probability"
        return score

    # -- back on the event loop

    def _take_back(self, job: Job, reply: float | str | None, seconds: float) -> None:
        self._seconds += seconds
        if reply is None and job.is_wanted():  # joined after the thread had looked
            self._lane.put(job)
            return
        del self._jobs[job.digest]
        if reply is None:
            self._count["skipped"] += 1
        elif isinstance(reply, str):
            self._count["faults"] += 1
            self._pulse.miss()
            for ask, _ in job.asks:
                ask.fail(reply)
        else:
            self._count["pairs"] += 1
            self._pulse.beat()
            self._remembered[job.digest] = reply
            for ask, place in job.asks:
                ask.take(place, reply)


class Rerankers:
    """The cross-encoders that the routes name, one each; most installations have none or one."""

    def __init__(self, by_name: dict[str, CrossEncoder]) -> None:
        self._by_name = by_name

    async def start(self) -> None:
        for reranker in self._by_name.values():
            await reranker.start()

    async def close(self) -> None:
        for reranker in self._by_name.values():
            await reranker.close()

    def __getitem__(self, name: str) -> Reranker:
        return self._by_name[name]

    def stats(self) -> dict[str, float]:
        """Summed over all."""
        total: dict[str, float] = {}
        for reranker in self._by_name.values():
            for name, number in reranker.stats().items():
                total[name] = total.get(name, 0) + number
        return total

    def __repr__(self) -> str:
        return f"<Rerankers {self._by_name}>"


def build(names: Sequence[str]) -> Rerankers:
    """Find the models that `match.reranker` names. Raises StartError when one was not prepared."""
    return Rerankers({name: CrossEncoder(reranker_engines.build(name)) for name in dict.fromkeys(names)})

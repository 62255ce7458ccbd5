"""Questions into vectors, off the event loop, within a deadline: or an EmbedderFault, never a wait.

A question goes to the model once. Those asked recently are remembered; those being embedded now are joined; the rest
queue up for the engine, and whoever gave up meanwhile is skipped. What the engine returns is checked at the door, and
the caller's search runs on the embedding thread right away, so that one hand-over to a thread covers both.

All state here belongs to the event loop; the threads only see single questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from time import monotonic, perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from cachetools import LRUCache

from semcache import config
from semcache.cache import engines
from semcache.cache.engines import Engine, Reply
from semcache.cache.lane import Lane
from semcache.errors import EmbedderFault, TooLong
from semcache.types import Vector

T = TypeVar("T")

UNIT = 1e-3  # a vector's length may be off by this
TRIP = 5  # faults or late answers in a row, after which the engine is taken to be down
PROBE_S = 1.0  # a down engine gets one question in this time, and is up again with its first vector


def build(settings: config.Embedder, bill: engines.Bill = lambda tokens, texts: None) -> Embedder:
    """Find the model. `bill`: see engines.py. Raises StartError when it was not prepared, cannot be loaded or does not
    answer."""
    return Embedder(settings, engines.build(settings, bill))


@dataclass(eq=False, slots=True)
class Ask(Generic[T]):
    """One caller: what to do with the vector, and where the result goes."""

    then: Callable[[Vector], T]
    future: asyncio.Future[T]
    beat: int | None = None  # of the engine's pulse when it was asked; None: not asked

    def search(self, vector: Vector) -> Callable[[], None]:
        """Run `then` here, on a thread; returned is what the loop has to do with the result."""
        try:
            return partial(self.settle, self.then(vector))
        except Exception as exc:  # whatever it is, it is the caller's
            return partial(self.fail, exc)

    def settle(self, result: T) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Job:
    """One text on its way through the engine, for all who asked for it meanwhile."""

    text: str
    digest: bytes
    asks: list[Ask[Any]] = field(default_factory=list)
    remember: bool = True

    def waiting(self) -> list[Ask[Any]]:
        return [ask for ask in self.asks if not ask.future.done()]


class Embedder:
    """`stamp`, `dimensions`: known from the start. Questions are taken between `start` and `close`."""

    def __init__(self, settings: config.Embedder, engine: Engine, clock: Callable[[], float] = monotonic) -> None:
        self.stamp = engine.stamp
        self.dimensions = engine.dimensions
        self._engine = engine
        self._deadline_s = settings.deadline
        self._max_queue = settings.max_queue
        # By digest, so that long questions take no more room than short ones and none is kept in clear.
        self._remembered: MutableMapping[bytes, Vector | str] = (
            LRUCache(settings.remember) if settings.remember else Forgetful()
        )
        self._jobs: dict[bytes, Job] = {}
        self._pulse = Pulse(clock)
        self._embedding: Lane[Job] = Lane(
            "semcache-embed", self._embed_jobs, engine.threads, engine.batch, engine.max_wait_s
        )
        # A remembered question must not wait behind those for the model, nor for an engine that hangs.
        self._searching: Lane[tuple[Ask[Any], Vector]] = Lane("semcache-search", self._search)
        self._count = dict.fromkeys(
            ("texts", "remembered", "joined", "too_long", "faults", "refused", "late", "skipped"), 0
        )
        self._seconds = 0.0  # spent in the engine, summed over its threads

    async def start(self) -> None:
        """Load the model. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        await self._engine.open()
        self._embedding.start()
        self._searching.start()

    async def close(self) -> None:
        """Whoever still waits gets an EmbedderFault."""
        for job in self._jobs.values():
            for ask in job.asks:
                ask.fail(EmbedderFault("the embedder is closing"))
        await asyncio.to_thread(self._embedding.stop)
        await asyncio.to_thread(self._searching.stop)
        await self._engine.close()

    def stats(self) -> dict[str, float]:
        return {
            **self._count,
            "seconds": self._seconds,
            "queue_depth": self._embedding.depth,
            "kept": len(self._remembered),
            "down": float(self._pulse.is_down),
        }

    def __repr__(self) -> str:
        return f"<Embedder {self.stamp} {self.stats()}>"

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T:
        """Return `then(vector)`: a plain function, run on an embedding thread, perhaps at once with others.

        `remember`: False for what is no question, and must not take the place of one that will be asked again.

        Raises what `then` raises; TooLong when the model cannot read all of the text, so that its vector must not be
        used; EmbedderFault when there is no vector within `deadline_s` (default: `embedder.deadline`), or soon enough
        to know: queue full, engine down.
        """
        digest = self._digest(text)
        known = self._remembered.get(digest)
        if isinstance(known, str):
            raise TooLong(known)
        future: asyncio.Future[T] = self._loop.create_future()
        ask = Ask(then, future)
        if known is not None:
            self._count["remembered"] += 1
            self._searching.put((ask, known))
        else:
            self._enqueue(ask, text, digest, remember)
        timer = self._loop.call_later(self._deadline_s if deadline_s is None else deadline_s, self._expire, ask)
        try:
            return await future
        finally:
            timer.cancel()

    def _digest(self, text: str) -> bytes:
        if len(text) > self._engine.limit_chars:
            self._count["too_long"] += 1
            raise TooLong(f"{len(text)} characters; more than {self._engine.limit_chars} are not even counted")
        try:
            return blake2b(text.encode(), digest_size=16).digest()
        except UnicodeEncodeError as exc:  # half a surrogate pair: JSON can say it, no tokenizer can read it
            self._count["too_long"] += 1
            raise TooLong("holds code points that are no characters") from exc

    def _enqueue(self, ask: Ask[Any], text: str, digest: bytes, remember: bool) -> None:
        if not self._pulse.admits():
            self._count["refused"] += 1
            raise EmbedderFault("the engine does not answer")
        ask.beat = self._pulse.beats
        job = self._jobs.get(digest)
        if job is not None:
            self._count["joined"] += 1
            job.asks.append(ask)
            job.remember |= remember
            return
        if self._embedding.depth >= self._max_queue:
            self._count["refused"] += 1
            raise EmbedderFault(f"{self._max_queue} questions wait already")
        self._jobs[digest] = job = Job(text, digest, [ask], remember)
        self._embedding.put(job)

    def _expire(self, ask: Ask[Any]) -> None:
        if not ask.future.done():
            self._count["late"] += 1
            if ask.beat == self._pulse.beats:  # else the engine did embed others meanwhile: it is busy, not dead
                self._pulse.miss()
            ask.fail(EmbedderFault("no vector within the deadline"))

    # -- on the embedding threads

    def _embed_jobs(self, jobs: list[Job]) -> None:
        wanted: list[Job] = []
        skipped: list[Job] = []
        for job in jobs:
            (wanted if job.waiting() else skipped).append(job)
        started = perf_counter()
        replies = self._ask_engine([job.text for job in wanted]) if wanted else []
        seconds = perf_counter() - started
        done = list(zip(wanted, replies, strict=True))
        # Found here, while the vector is at hand; an engine that waits for batches is not kept waiting by searches.
        found = [] if self._engine.max_wait_s else [self._search_first(job, reply) for job, reply in done]
        self._loop.call_soon_threadsafe(self._take_back, done, skipped, seconds, found)

    def _search_first(self, job: Job, reply: Reply | EmbedderFault) -> Callable[[], None] | None:
        """The search of the first who waits for this vector; the others' are done on the lane for searches."""
        asks = job.waiting() if isinstance(reply, np.ndarray) else []
        return asks[0].search(reply) if asks else None  # type: ignore[arg-type]

    def _ask_engine(self, texts: list[str]) -> list[Reply | EmbedderFault]:
        """One reply a text, whatever the engine does; only good vectors pass."""
        try:
            replies = list(self._engine.embed(texts))
        except EmbedderFault as exc:
            return [exc] * len(texts)
        except Exception as exc:  # native code, remote servers: any error there is
            fault = EmbedderFault(f"the engine failed: {type(exc).__name__}")
            fault.__cause__ = exc
            return [fault] * len(texts)
        if len(replies) != len(texts):
            return [EmbedderFault(f"the engine gave {len(replies)} vectors for {len(texts)} texts")] * len(texts)
        return [self._admit(reply) for reply in replies]

    def _admit(self, reply: Any) -> Reply | EmbedderFault:
        """The door: a vector has the right size and unit length; one product also finds every NaN and infinity."""
        if isinstance(reply, TooLong):
            return reply
        if not isinstance(reply, np.ndarray) or reply.shape != (self.dimensions,) or reply.dtype != np.float32:
            return EmbedderFault(f"the engine gave no vector of {self.dimensions} float32 numbers")
        length = float(reply @ reply) ** 0.5
        if not abs(length - 1.0) <= UNIT:
            return EmbedderFault(f"the engine gave a vector of length {length}")
        return reply

    def _search(self, asks: list[tuple[Ask[Any], Vector]]) -> None:
        for ask, vector in asks:
            if not ask.future.done():
                self._loop.call_soon_threadsafe(ask.search(vector))

    # -- back on the event loop

    def _take_back(
        self,
        done: list[tuple[Job, Reply | EmbedderFault]],
        skipped: list[Job],
        seconds: float,
        found: list[Callable[[], None] | None],
    ) -> None:
        self._seconds += seconds
        for finish in found:
            if finish is not None:
                finish()
        for job, reply in done:
            del self._jobs[job.digest]
            self._conclude(job, reply)
        for job in skipped:
            if job.waiting():  # joined after the thread had looked
                self._embedding.put(job)
            else:
                del self._jobs[job.digest]
                self._count["skipped"] += 1

    def _conclude(self, job: Job, reply: Reply | EmbedderFault) -> None:
        if isinstance(reply, EmbedderFault):
            self._count["faults"] += 1
            self._pulse.miss()
            for ask in job.waiting():
                ask.fail(EmbedderFault(reply.message))  # one each: a traceback grows with every raise
            return
        self._pulse.beat()
        if isinstance(reply, TooLong):
            self._count["too_long"] += 1
            if job.remember:
                self._remembered[job.digest] = reply.message
            for ask in job.waiting():
                ask.fail(TooLong(reply.message))
            return
        self._count["texts"] += 1
        if job.remember:
            self._remembered[job.digest] = reply
        for ask in job.waiting():
            self._searching.put((ask, reply))


class Pulse:
    """Is the engine alive? Asked before each question, so that a dead engine costs the deadline only a few times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._misses = 0  # since the last beat
        self._next_probe = 0.0
        self.beats = 0

    @property
    def is_down(self) -> bool:
        return self._misses >= TRIP

    def admits(self) -> bool:
        if not self.is_down:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_S
        return True

    def miss(self) -> None:
        self._misses += 1
        if self._misses == TRIP:
            self._next_probe = self._clock() + PROBE_S

    def beat(self) -> None:
        self.beats += 1
        self._misses = 0


class Forgetful(dict[bytes, Any]):
    """Remembers nothing: `embedder.remember: 0`."""

    def __setitem__(self, key: bytes, value: Any) -> None:
        pass

"""LEARN: hold a fresh answer against the stored ones that were near, after it has left, and keep what that shows.

The rule: nobody waits for it. A request adds a few counters and a place in a short queue, or is dropped and counted.
One task then compares, one answer at a time: texts and guards on a thread, vectors by the embedder that questions use,
in pieces of some milliseconds and only while no question waits for it. What is left in doubt may go to a judge model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import perf_counter
from typing import Any, Protocol, TypeVar

from cachetools import LRUCache

from semcache.cache.bound import group_of
from semcache.cache.compare import Cuts, Texts, compare_texts, compare_vectors, embed_answer
from semcache.cache.guards import find_veto
from semcache.cache.store_evidence import HOUR_S, ShadowCount, ShadowKey
from semcache.config import AnswersJudge, Match, Route
from semcache.errors import CacheFault
from semcache.planning import Plan
from semcache.shadow import ShadowRequest, shadow_request, was_looked_up
from semcache.types import Answer, Considered, Entry, Finding, How, Observation, Occasion, Reason, Usage, Vector
from semcache.wire import SpokenDialect
from semcache.wire.dialect import Dialect, Reading

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_COMPARED = 4  # candidates of one request: further ones are further away, and say less
MAX_QUEUE = 128  # answers waiting to be compared; at some 20 ms each, what two seconds and a half get done
MAX_QUEUE_BYTES = 16 * 2**20
FLUSH_ROWS = 100
FLUSH_S = 1.0  # what a crash may lose
EMBED_S = 5.0  # for a piece of an answer: later than that, questions have better use for the embedder
BUSY_S = 0.02  # between two looks whether questions still wait
PATIENCE_S = 5.0  # with questions that keep waiting: then the answer is dropped
REST = 1.0  # after a piece, times what it took: comparing has one thread at most half of the time
KEPT_VECTORS = 1024  # of answers: popular ones are compared again and again; 1.6 KB each


class Embedder(Protocol):
    @property
    def stamp(self) -> str: ...

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T: ...

    def stats(self) -> Mapping[str, float]: ...


class Store(Protocol):
    async def observe(
        self, observations: Sequence[Observation], counts: Sequence[tuple[ShadowKey, ShadowCount]] = ()
    ) -> list[Observation]: ...


class AnswerJudge(Protocol):
    async def same(self, settings: AnswersJudge, plan: Plan, fresh: str, stored: str) -> bool | None:
        """Whether the stored answer says what the fresh one says; None: it did not say, or could not be asked."""


class NobodyToAsk:
    async def same(self, settings: AnswersJudge, plan: Plan, fresh: str, stored: str) -> bool | None:
        return None


@dataclass(frozen=True, slots=True)
class _Job:
    plan: Plan
    finding: Finding
    answer: Answer | None
    spent: ShadowCount | None  # in shadow mode: what the request is counted with
    at: float  # unix seconds

    @property
    def size_bytes(self) -> int:
        return self.answer.size_bytes if self.answer else 0


class Learning:
    """The pipeline's learner. All state belongs to the event loop; threads see single answers."""

    def __init__(
        self,
        routes: Sequence[Route],
        embedder: Embedder,
        store: Store,
        clock: Callable[[], float],
        cost_usd: Callable[[str, Usage], float | None],
        judge: AnswerJudge | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_explored: Callable[[float], None] = lambda usd: None,
    ) -> None:
        """`clock`: unix seconds. `cost_usd`: the price of a model's answer, None where it has none. `on_explored`: told
        what an answer cost that was fetched to learn.
        """
        self._on_explored = on_explored
        self._embedder = embedder
        self._routes: tuple[Route, ...] = ()
        self.adopt(routes)
        self._store = store
        self._clock = clock
        self._cost_usd = cost_usd
        self._judge = judge or NobodyToAsk()
        self._pause = pause
        self._jobs: deque[_Job] = deque()
        self._waiting_bytes = 0
        self._come = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._observations: list[Observation] = []
        self._counts: dict[ShadowKey, ShadowCount] = {}
        self._vectors: LRUCache[bytes, Vector] = LRUCache(KEPT_VECTORS)
        self._count: Counter[str] = Counter()
        self._seconds = 0.0

    def adopt(self, routes: Sequence[Route]) -> None:
        """Go by these routes. Those before are still known: requests that were planned by them are under way."""
        self._before, self._routes = self._routes, tuple(routes)
        known = [(place, route) for routes in (self._before, self._routes) for place, route in enumerate(routes)]
        self._places = {id(route): place for place, route in known}
        self._settings = {id(route): setting_of(route, self._embedder.stamp) for _, route in known}

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Keep what is known; what still waits to be compared is dropped."""
        for task in (self._task, self._flushing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._task = self._flushing = None
        await self.flush()

    async def idle(self) -> None:
        """Wait until nothing waits to be compared."""
        await self._is_idle.wait()

    # Called with every answer that was fetched

    def learn(self, plan: Plan, finding: Finding, reading: Reading, fetch_s: float) -> None:
        """An answer has been fetched, and has left. `fetch_s`: how long that took. Returns at once, raises nothing."""
        if not wants_learning(plan.route.match):
            return
        try:
            self._take(plan, finding, reading, fetch_s)
        except Exception as exc:  # whoever asked has his answer, and nothing that fails here may show
            self._fault(exc)

    def _take(self, plan: Plan, finding: Finding, reading: Reading, fetch_s: float) -> None:
        spent = None
        if plan.route.match.mode == "shadow" and was_looked_up(finding):
            spent = self._spent(plan, reading, fetch_s)
        if finding.occasion in (Occasion.EXPLORE, Occasion.AUDIT):
            self._on_explored(self._spent(plan, reading, fetch_s).usd)
        finding = _with_match(finding)
        job = _Job(plan, finding, reading.answer, spent, self._clock())
        is_comparable = bool(finding.considered) and reading.answer is not None and reading.unstorable is None
        if is_comparable and self._has_room(job):
            self._enqueue(job)
            return
        if finding.considered:
            self._count["dropped" if is_comparable else "incomparable"] += 1
        self._count_request(job, _eligible(plan, finding.considered[:MOST_COMPARED]))

    def _spent(self, plan: Plan, reading: Reading, fetch_s: float) -> ShadowCount:
        usage = reading.usage or (reading.answer.usage if reading.answer else None)
        usd = None if usage is None else self._cost_usd(plan.ask.model, usage)
        return ShadowCount(
            requests=1,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            usd=usd or 0.0,
            unpriced=int(usd is None),
            fetch_s=fetch_s,
        )

    def _has_room(self, job: _Job) -> bool:
        return len(self._jobs) < MAX_QUEUE and self._waiting_bytes + job.size_bytes <= MAX_QUEUE_BYTES

    def _enqueue(self, job: _Job) -> None:
        self._waiting_bytes += job.size_bytes
        self._jobs.append(job)
        self._is_idle.clear()
        self._come.set()

    # The task that compares

    async def _run(self) -> None:
        while True:
            while self._jobs:
                job = self._jobs.popleft()
                self._waiting_bytes -= job.size_bytes
                try:
                    await self._compare(job)
                except (CacheFault, TimeoutError):  # the embedder is down, or has no time for this
                    self._count["dropped"] += 1
                except Exception as exc:  # the top of a background loop
                    self._fault(exc)
            self._is_idle.set()
            self._come.clear()
            await self._come.wait()

    def _fault(self, exc: Exception) -> None:
        self._count[f"fault_{type(exc).__name__}"] += 1
        log.error("comparing two answers failed unexpectedly: %s", type(exc).__name__)

    async def _compare(self, job: _Job) -> None:
        plan = job.plan
        candidates = job.finding.considered[:MOST_COMPARED]
        eligible, fresh = await asyncio.to_thread(_look, job, candidates)
        request = self._count_request(job, eligible)
        if fresh is None:
            self._count["incomparable"] += 1
            return
        proposed = next((place for place, can in enumerate(eligible) if can), None)
        for place, considered in enumerate(candidates):
            same, how = await self._say_the_same(plan, fresh, considered.entry)
            if same is None:
                self._count["unsure"] += 1
                continue
            for key in request.decided_by(place) if request else ():
                self._add(key, ShadowCount(same=int(same), different=int(not same)))
            if considered.entry.key.exact != plan.key.exact:  # of one question there is nothing to learn about pairs
                self._observe(_observation(job, considered, same, how, place == proposed, self._place(plan.route)))

    async def _say_the_same(self, plan: Plan, fresh: str, entry: Entry) -> tuple[bool | None, How]:
        """Whether the stored answer says what the fresh one says, and what tells; None: there is no telling."""
        stored, texts = await asyncio.to_thread(_hold_against, plan.dialect, fresh, entry.answer)
        if stored is None or texts is None:
            return None, How.EQUAL
        if isinstance(texts, bool):
            return texts, How.EQUAL
        match = plan.route.match
        vectors = [await self._vector(text) if plan.ruling.may_embed else None for text in texts]
        if vectors[0] is not None and vectors[1] is not None:
            cuts = Cuts(match.answers_alike, match.answers_differ)
            similarity = float(vectors[0] @ vectors[1])
            same = await asyncio.to_thread(compare_vectors, texts, similarity, cuts)
            if same is not None:
                return same, How.EMBEDDING
        if match.answers_judge is None:
            return None, How.EMBEDDING
        return await self._judge.same(match.answers_judge, plan, fresh, stored), How.MODEL

    async def _vector(self, text: str) -> Vector | None:
        """The vector of an answer; None where the embedder cannot read it. Raises CacheFault and TimeoutError."""
        digest = blake2b(text.encode(errors="replace"), digest_size=16).digest()
        known = self._vectors.get(digest)
        if known is not None:
            return known
        vector = await embed_answer(text, self._embed_in_turn)
        if vector is not None:
            self._vectors[digest] = vector
        return vector

    async def _embed_in_turn(self, piece: str) -> Vector:
        """After the questions that wait, and with a rest afterwards. Raises as `_vector`, and TooLong."""
        await self._let_questions_pass()
        begun = perf_counter()
        vector: Vector = await self._embedder.embed(piece, _as_it_is, EMBED_S, remember=False)
        took_s = perf_counter() - begun
        self._seconds += took_s
        await self._pause(REST * took_s)
        return vector

    async def _let_questions_pass(self) -> None:
        """Raises TimeoutError."""
        for _ in range(int(PATIENCE_S / BUSY_S)):
            if not self._embedder.stats()["queue_depth"]:
                return
            await self._pause(BUSY_S)
        raise TimeoutError

    # What it shows

    def _count_request(self, job: _Job, eligible: Sequence[bool]) -> ShadowRequest | None:
        """Count a request of shadow mode; None where it is of none, or was not looked up."""
        if job.spent is None:
            return None
        route = job.plan.route
        hour = int(job.at // HOUR_S)
        finding = job.finding._replace(considered=job.finding.considered[:MOST_COMPARED])
        request = shadow_request(finding, eligible, hour, self._place(route), self._settings.get(id(route), ""))
        for key, _ in request.counted:
            self._add(key, job.spent)
        return request

    def _add(self, key: ShadowKey, count: ShadowCount) -> None:
        self._counts.setdefault(key, ShadowCount()).add(count)
        self._flush_soon()

    def _observe(self, observation: Observation) -> None:
        self._count[f"observed_{observation.occasion}_{'same' if observation.same else 'different'}"] += 1
        self._observations.append(observation)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())
        elif len(self._observations) == FLUSH_ROWS:
            self._flushing.cancel()
            self._flushing = asyncio.create_task(self.flush())

    async def _flush_later(self) -> None:
        await self._pause(FLUSH_S)
        await self.flush()

    async def flush(self) -> None:
        """Write down what is known so far. What cannot be written is lost, and counted."""
        observations, self._observations = self._observations, []
        counts, self._counts = self._counts, {}
        if not observations and not counts:
            return
        try:
            await self._store.observe(observations, list(counts.items()))
        except CacheFault as fault:
            self._count["lost"] += len(observations)
            log.warning("what comparing answers has shown cannot be kept: %s", fault)

    def stats(self) -> dict[str, float]:
        return {
            **self._count,
            "waiting": len(self._jobs),
            "embed_seconds": self._seconds,
        }

    def _place(self, route: Route) -> int:
        return self._places.get(id(route), -1)


def wants_learning(match: Match) -> bool:
    """Whether answers of a route are compared at all."""
    if match.learn == "auto":
        return match.mode == "shadow" or match.max_error is not None
    return match.learn == "always" and match.mode != "off"


def setting_of(route: Route, embedder: str) -> str:
    """A digest of all that similarities and vetoes depend on: what was counted under another says nothing of this."""
    match = route.match
    words = (
        route.models,
        *(match.guards, match.neighbours, match.judge, match.judge_weights),
        *(match.reranker, match.reranker_min, match.reranker_band),
        *(match.context, match.context_threshold),
        *(match.answers_alike, match.answers_differ, embedder),
    )
    return blake2b(repr(words).encode(), digest_size=6).hexdigest()


def _with_match(finding: Finding) -> Finding:
    """In shadow mode an equal request is forwarded, too. How often its fresh answer says the same tells how much a
    model's answers differ by themselves."""
    match = finding.match
    if finding.considered or match is None:
        return finding
    return finding._replace(considered=(Considered(match.entry, match.similarity, None),))


def _look(job: _Job, candidates: Sequence[Considered]) -> tuple[list[bool], str | None]:
    """Which candidates could be served, and what the fresh answer says."""
    said = None if job.answer is None else _spoken(job.plan.dialect, job.answer)
    return _eligible(job.plan, candidates), said


def _hold_against(dialect: Dialect, fresh: str, stored: Answer) -> tuple[str | None, bool | Texts | None]:
    """What a stored answer says, and whether that is what the fresh one says, as far as their texts tell."""
    said = _spoken(dialect, stored)
    return said, None if said is None else compare_texts(fresh, said)


def _eligible(plan: Plan, candidates: Sequence[Considered]) -> list[bool]:
    """Which candidates could be served where the threshold allows it."""
    return [_has_no_objection(plan, considered) for considered in candidates]


def _has_no_objection(plan: Plan, considered: Considered) -> bool:
    if considered.objection in (Reason.BOUND, Reason.EXPLORING):
        return True
    if considered.objection is not Reason.BELOW_THRESHOLD:
        return considered.objection is None
    # Guards may not have been asked below the threshold; nor may the turns before, which are not at hand any more.
    if plan.ruling.compares_turns:
        return False
    asked, stored = plan.ask.question, considered.entry.question
    return asked is not None and stored is not None and find_veto(asked, stored, plan.ruling.guards) is None


def _observation(job: _Job, it: Considered, same: bool, how: How, is_proposed: bool, route: int) -> Observation:
    is_shadow = job.plan.route.match.mode == "shadow"
    return Observation(
        group=group_of(job.plan.scope),
        route=route,
        asked=job.plan.key.exact,
        entry_key=it.entry.key.exact,
        entry_id=it.entry.id,
        similarity=it.similarity,
        features=it.features,
        probability=it.probability,
        same=same,
        how=how,
        occasion=Occasion.SHADOW if is_shadow else job.finding.occasion,
        share=job.finding.share,
        is_proposed=is_proposed,
        at=job.at,
    )


def _spoken(dialect: Dialect, answer: Answer) -> str | None:
    return dialect.spoken(answer) if isinstance(dialect, SpokenDialect) else None


def _as_it_is(vector: Any) -> Any:
    return vector

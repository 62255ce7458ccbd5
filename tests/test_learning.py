"""Fresh answers are held against stored ones after they have left, and what that shows is kept; nobody waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from semcache import wire
from semcache.cache.bound import group_of
from semcache.cache.store_evidence import ShadowCount, ShadowKey
from semcache.config import AnswersJudge, Config, parse
from semcache.errors import StoreFault
from semcache.learning import MAX_QUEUE, Learning
from semcache.planning import Plan, Planner
from semcache.types import (
    Answer,
    Considered,
    Entry,
    Finding,
    Form,
    How,
    Match,
    Observation,
    Occasion,
    Reason,
    Tenant,
    Tier,
    Unstorable,
    Usage,
)
from semcache.wire import Reading
from tests.fakes import Clock, WordsEmbedder

SHADOW = "match: {mode: shadow}"
ASKED = "How do I return a tent?"
STORED = "How can I return a tent?"
SAYS = "Open your order and choose return."


class Kept:
    """A store that keeps what it is told."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.counts: dict[ShadowKey, ShadowCount] = {}
        self.fault: StoreFault | None = None

    async def observe(
        self, observations: Sequence[Observation], counts: Sequence[tuple[ShadowKey, ShadowCount]] = ()
    ) -> list[Observation]:
        if self.fault is not None:
            raise self.fault
        self.observations += observations
        for key, count in counts:
            self.counts.setdefault(key, ShadowCount()).add(count)
        return list(observations)

    def by_strategy(self) -> dict[str, tuple[int, int, int, int]]:
        """Bucket, requests, same and different of each; for tests that count one request."""
        return {
            key.strategy: (key.bucket, count.requests, count.same, count.different)
            for key, count in self.counts.items()
        }


class Oracle:
    """A judge model that says as told."""

    def __init__(self, said: bool | None) -> None:
        self.said = said
        self.asked: list[tuple[str, str]] = []

    async def same(self, settings: AnswersJudge, plan: Plan, fresh: str, stored: str) -> bool | None:
        self.asked.append((fresh, stored))
        return self.said


@dataclass
class Desk:
    learning: Learning
    store: Kept
    embedder: WordsEmbedder
    planner: Planner
    slept: list[float] = field(default_factory=list)

    def plan(self, question: str = ASKED) -> Plan:
        address = wire.find_address("/v1/chat/completions")
        assert address is not None
        body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": question}]}).encode()
        return self.planner.plan(address, {}, body, Tenant("shop"), "")

    def entry(self, question: str = STORED, says: str = SAYS) -> Entry:
        plan = self.plan(question)
        answer = saying(says)
        return Entry(f"id of {question}", plan.scope, plan.key, question, None, None, answer, 0.0, 60.0, 0.0)

    def considered(
        self,
        similarity: float = 0.93,
        objection: Reason | None = None,
        question: str = STORED,
        says: str = SAYS,
    ) -> Considered:
        return Considered(self.entry(question, says), similarity, objection, 0.8, (0.5, 1.0))

    async def learn(
        self,
        *considered: Considered,
        says: str = SAYS,
        match: Match | None = None,
        reason: Reason | None = Reason.BELOW_THRESHOLD,
        unstorable: Unstorable | None = None,
        question: str = ASKED,
    ) -> list[Observation]:
        """What is observed of one request."""
        before = len(self.store.observations)
        finding = Finding(match, None if match else reason, considered=considered)
        self.learning.learn(self.plan(question), finding, reading(says, unstorable), 0.8)
        await self.learning.idle()
        await self.learning.flush()
        return self.store.observations[before:]


def saying(text: str, finish: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Answer("openai", Form.JSON, (json.dumps({"choices": [choice]}).encode(),), (), Usage(10, 20))


def reading(text: str, unstorable: Unstorable | None = None) -> Reading:
    answer = saying(text)
    return Reading(answer, unstorable, answer.usage)


@asynccontextmanager
async def at_desk(settings: str = SHADOW, judge: Oracle | None = None) -> AsyncIterator[Desk]:
    config: Config = parse(settings)
    store, embedder, slept = Kept(), WordsEmbedder(), list[float]()

    async def pause(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    learning = Learning(config.routes, embedder, store, Clock(7200.0), lambda model, usage: 0.5, judge, pause)
    learning.start()
    try:
        yield Desk(learning, store, embedder, Planner(config, embedder.stamp), slept)
    finally:
        await learning.stop()


async def test_an_answer_that_says_the_same_is_evidence_with_all_its_figures() -> None:
    async with at_desk() as desk:
        (seen,) = await desk.learn(desk.considered())
        plan = desk.plan()
        assert seen == Observation(
            group=group_of(plan.scope),
            route=0,
            asked=plan.key.exact,
            entry_key=desk.plan(STORED).key.exact,
            entry_id=f"id of {STORED}",
            similarity=0.93,
            features=(0.5, 1.0),
            probability=0.8,
            same=True,
            how=How.EQUAL,
            occasion=Occasion.SHADOW,
            share=1.0,
            is_proposed=True,
            at=7200.0,
        )


@pytest.mark.parametrize(
    "says, stored, same",
    [
        ("Open the order and choose return now please.", "Open the order and choose return now.", True),
        ("It is free.", "Nobody knows the way to Rome", False),
    ],
)
async def test_other_words_are_compared_by_their_vectors(says: str, stored: str, same: bool) -> None:
    async with at_desk() as desk:
        (seen,) = await desk.learn(desk.considered(says=stored), says=says)
        assert (seen.same, seen.how) == (same, How.EMBEDDING)


async def test_a_doubt_is_counted_and_is_no_evidence() -> None:
    async with at_desk() as desk:
        doubt = {"says": "Choose return in your order."}
        assert await desk.learn(desk.considered(says="Your order has return in a list."), **doubt) == []
        assert desk.learning.stats()["unsure"] == 1
        assert desk.store.by_strategy()["guards"] == (93, 1, 0, 0)


@pytest.mark.parametrize("said", [True, False, None])
async def test_only_a_doubt_is_taken_to_the_judge_model(said: bool | None) -> None:
    oracle = Oracle(said)
    settings = "match: {mode: shadow, answers_judge: {pool: openai, model: m}}"
    async with at_desk(settings, oracle) as desk:
        await desk.learn(desk.considered())
        assert oracle.asked == []
        observed = await desk.learn(
            desk.considered(says="Your order has return in a list."), says="Choose return in your order."
        )
        assert oracle.asked == [("Choose return in your order.", "Your order has return in a list.")]
        assert [(seen.same, seen.how) for seen in observed] == ([] if said is None else [(said, How.MODEL)])


async def test_vetoed_candidates_are_evidence_too_but_were_not_proposed() -> None:
    async with at_desk() as desk:
        vetoed = desk.considered(0.97, Reason.GUARD_NUMBER, "How do I return 2 tents?", "No.")
        below = desk.considered(0.85, Reason.BELOW_THRESHOLD)
        observed = await desk.learn(vetoed, below, says=SAYS)
        assert [(seen.similarity, seen.same, seen.is_proposed) for seen in observed] == [
            (0.97, False, False),
            (0.85, True, True),
        ]
        assert desk.store.by_strategy() == {"threshold": (97, 1, 0, 1), "guards": (85, 1, 1, 0)}


async def test_guards_are_asked_about_what_only_the_threshold_refused() -> None:
    async with at_desk() as desk:
        below = desk.considered(0.85, Reason.BELOW_THRESHOLD, "How do I return 20 tents?")
        (seen,) = await desk.learn(below, question="How do I return 2 tents?")
        assert not seen.is_proposed
        assert desk.store.by_strategy() == {"threshold": (85, 1, 1, 0), "guards": (-1, 1, 0, 0)}


async def test_an_equal_request_is_counted_and_tells_nothing_about_pairs() -> None:
    async with at_desk() as desk:
        match = Match(desk.entry(ASKED), Tier.EXACT, 60.0, 0.0)
        assert await desk.learn(match=match, says="Something else entirely, about trains.") == []
        assert desk.store.by_strategy() == {"exact": (100, 1, 0, 1)}


async def test_a_request_without_neighbours_is_a_miss_at_any_threshold() -> None:
    async with at_desk() as desk:
        await desk.learn(reason=Reason.NO_ENTRY)
        assert desk.store.by_strategy() == {"threshold": (-1, 1, 0, 0), "guards": (-1, 1, 0, 0)}


@pytest.mark.parametrize("reason", [None, Reason.NO_CACHE, Reason.DISABLED, Reason.CACHE_FAULT])
async def test_what_was_not_looked_up_is_not_counted(reason: Reason | None) -> None:
    async with at_desk() as desk:
        await desk.learn(reason=reason)
        assert desk.store.counts == {}


async def test_what_a_hit_would_have_saved_is_counted_with_the_request() -> None:
    async with at_desk() as desk:
        await desk.learn(desk.considered())
        count = next(count for key, count in desk.store.counts.items() if key.strategy == "guards")
        assert count == ShadowCount(1, 1, 0, 10, 20, 0.5, 0, 0.8)
        assert {key.hour for key in desk.store.counts} == {2}


async def test_an_answer_that_ended_otherwise_is_counted_but_not_compared() -> None:
    async with at_desk() as desk:
        assert await desk.learn(desk.considered(), unstorable=Unstorable.FINISH) == []
        assert desk.store.by_strategy()["guards"] == (93, 1, 0, 0)
        assert desk.learning.stats()["incomparable"] == 1


@pytest.mark.parametrize(
    "settings, occasion",
    [
        ("match: {learn: always}", Occasion.MISS),
        ("match: {learn: auto}", None),
        ("match: {learn: off, mode: shadow}", None),
        ("match: {learn: always, mode: off}", None),
        (SHADOW, Occasion.SHADOW),
    ],
)
async def test_a_route_learns_where_it_is_told_to(settings: str, occasion: Occasion | None) -> None:
    async with at_desk(settings) as desk:
        observed = await desk.learn(desk.considered())
        assert [seen.occasion for seen in observed] == ([] if occasion is None else [occasion])
        assert bool(desk.store.counts) == (occasion is Occasion.SHADOW)


async def test_a_full_queue_drops_comparisons_and_still_counts_the_requests() -> None:
    async with at_desk() as desk:
        desk.embedder.gate = asyncio.Event()
        finding = Finding(None, Reason.NO_ENTRY, considered=(desk.considered(says="Other words."),))
        for _ in range(MAX_QUEUE + 3):  # none is taken out: nothing is awaited
            desk.learning.learn(desk.plan(), finding, reading("It is free."), 0.1)
        assert desk.learning.stats()["dropped"] == 3
        desk.embedder.gate.set()
        await desk.learning.idle()
        await desk.learning.flush()
        assert desk.store.by_strategy()["guards"] == (93, MAX_QUEUE + 3, 0, MAX_QUEUE)


async def test_a_dead_embedder_costs_the_comparison_alone() -> None:
    async with at_desk() as desk:
        desk.embedder.fault = RuntimeError("dead")
        assert await desk.learn(desk.considered(says="Other words."), says="It is free.") == []
        assert desk.learning.stats()["dropped"] == 1
        assert len(await desk.learn(desk.considered())) == 1  # equal texts need no vector


async def test_the_vector_of_a_popular_answer_is_made_once() -> None:
    async with at_desk() as desk:
        for _ in range(3):
            await desk.learn(desk.considered(says="Nobody knows."), says="It is free.")
        assert sorted(desk.embedder.embedded) == ["It is free.", "Nobody knows."]


async def test_comparing_rests_as_long_as_it_has_kept_the_embedder() -> None:
    async with at_desk() as desk:
        await desk.learn(desk.considered(says="Nobody knows."), says="It is free.")
        busy_s = desk.learning.stats()["embed_seconds"]
        assert sum(seconds for seconds in desk.slept if seconds != 1.0) == pytest.approx(busy_s)


async def test_an_answer_too_long_to_be_read_is_a_doubt() -> None:
    async with at_desk() as desk:
        assert await desk.learn(desk.considered(says="word " * 2000), says="It is free.") == []
        assert desk.learning.stats()["unsure"] == 1


async def test_what_cannot_be_kept_is_lost_and_counted() -> None:
    async with at_desk() as desk:
        desk.store.fault = StoreFault("full")
        assert await desk.learn(desk.considered()) == []
        assert desk.learning.stats()["lost"] == 1


async def test_what_is_known_is_written_at_the_end() -> None:
    async with at_desk() as desk:
        desk.learning.learn(desk.plan(), Finding(None, Reason.NO_ENTRY), reading(SAYS), 0.1)
        store = desk.store
    assert store.by_strategy()["guards"] == (-1, 1, 0, 0)

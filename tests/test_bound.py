"""The error bound decides: what it serves, what it explores, what it learns, and that it takes nothing on trust."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from semcache.cache import bound as module
from semcache.cache.bound import GROUPS, Bound, Decision, Limits, group_of
from semcache.cache.bound_evidence import WINDOW
from semcache.cache.kinship import Kin
from semcache.cache.recent_rows import RecentRows
from semcache.cache.witnesses import NAMES, Record
from semcache.types import How, Observation, Occasion, Reason, Scope
from tests.fakes import Clock

TENANT = b"acme".ljust(8)
GROUP = TENANT + b"shop".ljust(8)
OTHERS = TENANT + b"others".ljust(8)
ANOTHERS = b"elsewhere".ljust(16)  # of another tenant
ONE_PERCENT = Limits(0.01, 0.05)
Chance = Callable[[], float]


def never() -> float:
    return 1.0


def always() -> float:
    return 0.0


class Traffic:
    """Candidates of which a known share is wrong, and what comparing them showed."""

    def __init__(self, bound: Bound, seed: int = 1) -> None:
        self.bound = bound
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def features(self, strength: float) -> tuple[float, ...]:
        """Of a candidate for which the judge's log-odds speak so much, and nothing else anything."""
        middle = dict.fromkeys(NAMES, 0.0) | {"similarity": 0.9, "closeness": 2.0, "judge": strength}
        return tuple(middle.values())

    def seen(
        self,
        strength: float,
        same: bool,
        *,
        group: bytes = GROUP,
        occasion: Occasion = Occasion.MISS,
        is_proposed: bool = True,
        mark: float | None = None,
        how: How = How.EQUAL,
    ) -> Observation:
        self.count += 1
        key = self.count.to_bytes(32, "big")
        return Observation(
            group=group,
            route=0,
            asked=key,
            entry_key=bytes(32) if same else bytes(31) + b"1",
            entry_id="e",
            similarity=0.9,
            features=(self.bound.mark if mark is None else mark, *self.features(strength)),
            probability=None,
            same=same,
            how=how,
            occasion=occasion,
            share=1.0,
            is_proposed=is_proposed,
            at=0.0,
        )

    def good(self, n: int = 400, group: bytes = GROUP) -> list[Observation]:
        """Strong ones are right, weak ones wrong."""
        strong = self.rng.random(n) < 0.9
        return [self.seen(6.0 if each else -6.0, bool(each), group=group) for each in strong]

    def bad(self, n: int = 400, group: bytes = GROUP) -> list[Observation]:
        """However strong, half are wrong."""
        return [self.seen(6.0, bool(self.rng.random() < 0.5), group=group) for _ in range(n)]


def new_bound(chance: Chance = never, clock: Clock | None = None, bounds: Sequence[float] = (0.01,)) -> Bound:
    return Bound("words judge", Kin(lambda entry: None), clock or Clock(), chance, bounds)


async def taught(observations: Sequence[Observation], bound: Bound) -> Bound:
    bound.observe(observations)
    await bound.fit()
    return bound


def strong(bound: Bound, group: bytes = GROUP, limits: Limits = ONE_PERCENT, strength: float = 6.0) -> Decision:
    return bound.decide(group, Traffic(bound).features(strength), limits)


# Evidence first


async def test_without_evidence_nothing_is_served() -> None:
    bound = new_bound()
    assert strong(bound).reason is Reason.BOUND
    await bound.fit()
    assert strong(bound).reason is Reason.BOUND
    assert bound.opinion(GROUP, 0.01)[:3] == (0, 0, None)


@pytest.mark.parametrize("n, serves", [(60, False), (250, False), (450, True)])
async def test_so_many_right_comparisons_prove_a_bound(n: int, serves: bool) -> None:
    bound = new_bound()
    await taught(Traffic(bound).good(n), bound)
    assert (strong(bound).reason is None) is serves
    assert strong(bound, strength=-6.0).reason is Reason.BOUND


async def test_a_looser_bound_is_proven_by_less() -> None:
    bound = new_bound(bounds=(0.01, 0.05))
    await taught(Traffic(bound).good(150), bound)
    assert strong(bound, limits=Limits(0.05, 0.05)).reason is None
    assert strong(bound, limits=Limits(0.01, 0.05)).reason is Reason.BOUND


async def test_what_is_wrong_too_often_is_never_served() -> None:
    bound = new_bound()
    await taught(Traffic(bound).bad(3000), bound)
    assert strong(bound).reason is Reason.BOUND
    assert bound.opinion(GROUP, 0.01).cut is None


async def test_a_bound_that_nobody_announced_is_fitted_for_once_it_is_asked_for() -> None:
    bound = new_bound(bounds=())
    traffic = Traffic(bound)
    await taught([*traffic.good(1600), *traffic.good(1600, OTHERS)], bound)
    assert strong(bound).reason is Reason.BOUND
    await bound.fit()
    assert strong(bound).reason is None
    assert strong(bound, OTHERS).reason is None  # which did not ask: its evidence is fitted again all the same


async def test_the_first_request_of_a_new_group_breaks_no_fit() -> None:
    bound = new_bound(bounds=())
    await taught(Traffic(bound).good(), bound)
    assert strong(bound, OTHERS).reason is Reason.BOUND
    await bound.fit()
    assert strong(bound, OTHERS).reason is None


# Whose evidence


async def test_a_new_group_is_served_by_its_tenants_evidence() -> None:
    bound = new_bound()
    await taught(Traffic(bound).good(group=OTHERS), bound)
    assert strong(bound).reason is None
    assert not bound.opinion(GROUP, 0.01).is_own
    assert bound.opinion(OTHERS, 0.01).is_own


async def test_a_group_whose_own_evidence_is_bad_is_not_served_by_its_tenants() -> None:
    bound = new_bound()
    traffic = Traffic(bound)
    await taught([*traffic.good(5000, OTHERS), *traffic.bad(60)], bound)
    await bound.fit()
    assert bound.opinion(OTHERS, 0.01).cut is not None
    assert strong(bound, OTHERS).reason is None
    assert strong(bound).reason is Reason.BOUND


async def test_vetoed_pairs_raise_no_doubt_about_a_group() -> None:
    """A guard vetoed them: they were never proposed, and say nothing of what would be served."""
    bound = new_bound()
    traffic = Traffic(bound)
    vetoed = [traffic.seen(6.0, False, is_proposed=False) for _ in range(60)]
    await taught(traffic.good(5000, OTHERS), bound)
    cut = bound.opinion(OTHERS, 0.01).cut
    await taught(vetoed, bound)
    assert cut is not None
    assert bound.opinion(GROUP, 0.01).cut is not None


async def test_an_explored_hit_of_a_new_group_that_was_wrong_is_looked_into_at_once() -> None:
    bound = new_bound()
    traffic = Traffic(bound)
    await taught(traffic.good(5000, OTHERS), bound)
    assert strong(bound).reason is None
    await taught([traffic.seen(6.0, False, occasion=Occasion.AUDIT)], bound)
    assert strong(bound).reason is Reason.BOUND
    assert strong(bound, OTHERS).reason is None


async def test_no_tenant_is_served_by_what_another_has_brought() -> None:
    bound = new_bound()
    await taught(Traffic(bound).good(3000, ANOTHERS), bound)
    assert strong(bound, ANOTHERS).reason is None
    assert strong(bound).reason is Reason.BOUND
    assert bound.opinion(GROUP, 0.01).observed_of_tenant == 0


async def test_groups_forgotten_are_groups_without_evidence() -> None:
    bound = new_bound()
    traffic = Traffic(bound)
    await taught(traffic.good(1600), bound)
    await taught([traffic.seen(6.0, True, group=TENANT + number.to_bytes(8, "big")) for number in range(GROUPS)], bound)
    assert bound.stats()["groups"] == GROUPS
    assert bound.opinion(GROUP, 0.01).observed == 0
    assert strong(bound).reason is None  # the tenant's evidence has kept what it brought


async def test_asking_in_made_up_namespaces_pushes_no_group_out() -> None:
    bound = await open_bound(never)
    for number in range(2 * GROUPS):
        strong(bound, TENANT + number.to_bytes(8, "big"))
    assert bound.opinion(GROUP, 0.01).observed > 0


def test_a_groups_name_tells_apart_whose_traffic_it_is_and_nothing_else() -> None:
    scope = Scope("shop", "faq", "openai", "chat/completions", "small")
    names = {group_of(scope)}
    for field in ("tenant", "namespace", "dialect", "endpoint", "model"):
        names.add(group_of(replace(scope, **{field: "\udcff"})))
    assert len(names) == 6
    assert all(len(name) == 16 for name in names)


# Exploring


async def open_bound(chance: Chance, clock: Clock | None = None) -> Bound:
    bound = new_bound(chance, clock)
    return await taught(Traffic(bound).good(2000), bound)


@pytest.mark.parametrize("explore", [0.0, 0.02, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("distance", ["near", "far"])
async def test_no_more_than_its_share_of_hits_is_explored(explore: float, distance: str) -> None:
    rng = np.random.default_rng(3)
    bound = await open_bound(rng.random)
    cut, weights = bound.opinion(GROUP, 0.01).cut, bound._groups[GROUP].weights
    assert cut is not None and weights is not None
    strength = 6.0
    if distance == "near":  # half a step of log-odds above the cut
        low, high = -6.0, 6.0
        for _ in range(60):
            strength = (low + high) / 2
            above = bound.preview(GROUP, Traffic(bound).features(strength), ONE_PERCENT).reason is None
            low, high = (low, strength) if above else (strength, high)
        strength = high + 1e-6
    decisions = [strong(bound, limits=Limits(0.01, explore), strength=strength) for _ in range(10_000)]
    explored = [each for each in decisions if each.reason is Reason.EXPLORING]
    assert len(explored) <= 10_000 * explore + 1  # and one that was saved up
    assert {each.reason for each in decisions} <= {None, Reason.EXPLORING}
    if explore:
        assert len(explored) >= 10_000 * explore * (0.9 if distance == "near" else 0.4)
        assert {each.occasion for each in explored} == {Occasion.EXPLORE if distance == "near" else Occasion.AUDIT}
    count = bound.stats()
    assert count["served"] == 10_000 - len(explored)
    assert count["explored"] + count["audited"] == len(explored)


async def test_money_ends_exploring_until_the_next_day() -> None:
    clock = Clock()
    bound = await open_bound(always, clock)
    limits = Limits(0.01, 0.5, explore_usd=0.10)
    assert strong(bound, limits=limits).reason is Reason.EXPLORING
    bound.paid(0.10)
    assert {strong(bound, limits=limits).reason for _ in range(10)} == {None}
    assert bound.stats()["spent_usd"] == 0.10
    assert Reason.EXPLORING in {strong(bound, limits=Limits(0.01, 0.5)).reason for _ in range(4)}  # no limit there
    clock.advance(86400)
    assert bound.stats()["spent_usd"] == 0.0
    assert Reason.EXPLORING in {strong(bound, limits=limits).reason for _ in range(4)}


async def test_no_money_is_no_exploring_at_all() -> None:
    bound = await open_bound(always)
    assert {strong(bound, limits=Limits(0.01, 0.5, explore_usd=0.0)).reason for _ in range(10)} == {None}


async def test_a_preview_leaves_no_trace() -> None:
    bound = await open_bound(always)
    features = Traffic(bound).features(6.0)
    before = bound.stats(), len(bound._homes[TENANT].traffic), bound._credit
    stranger = TENANT + b"stranger"
    for group in (GROUP, stranger):
        assert bound.preview(group, features, Limits(0.01, 0.5)).reason is None
        assert bound.preview(group, features, Limits(0.03, 0.5)).reason is Reason.BOUND  # no bound that is asked for
    bound.opinion(stranger, 0.04)
    assert (bound.stats(), len(bound._homes[TENANT].traffic), bound._credit) == before


# Drift


async def test_entries_that_turn_wrong_close_the_cut_within_a_few_explored_hits() -> None:
    bound = await open_bound(never)
    traffic = Traffic(bound)
    explored = 0
    while bound.opinion(GROUP, 0.01).cut is not None:
        await taught([traffic.seen(6.0, False, occasion=Occasion.AUDIT)], bound)
        explored += 1
        assert explored <= 20
    assert strong(bound).reason is Reason.BOUND


async def test_one_that_was_wrong_among_many_that_were_right_is_borne() -> None:
    bound = await open_bound(never)
    traffic = Traffic(bound)
    seen = [traffic.seen(6.0, True, occasion=Occasion.AUDIT) for _ in range(300)]
    seen[150] = traffic.seen(6.0, False, occasion=Occasion.AUDIT)
    await taught(seen, bound)
    assert strong(bound).reason is None


async def test_a_bad_hour_does_not_close_a_bound_for_good() -> None:
    """While it is closed nothing is explored, so what comes of misses must be enough to open it."""
    bound = await open_bound(never)
    traffic = Traffic(bound)
    await taught([traffic.seen(6.0, False, occasion=Occasion.AUDIT) for _ in range(8)], bound)
    assert bound.opinion(GROUP, 0.01).cut is None
    for _ in range(20):
        await taught(traffic.good(200), bound)
    assert strong(bound).reason is None


async def test_a_hit_that_was_explored_for_a_loose_bound_says_nothing_of_a_strict_one() -> None:
    bound = new_bound(bounds=(0.01, 0.2))
    traffic = Traffic(bound)
    weak = [traffic.seen(0.0, bool(n % 8)) for n in range(800)]
    await taught([*traffic.good(1600), *weak], bound)
    cuts = [bound.opinion(GROUP, each).cut for each in (0.01, 0.2)]
    assert cuts[0] is not None and cuts[1] is not None and cuts[0].score > cuts[1].score
    await taught([traffic.seen(0.0, bool(n % 8), occasion=Occasion.EXPLORE) for n in range(400)], bound)
    assert strong(bound).reason is None
    assert bound._groups[GROUP].aims[0.01] == 1.0


# What is no evidence


@pytest.mark.parametrize("kind", ["another mark", "too few figures", "feedback", "not a number", "too large"])
async def test_what_cannot_be_weighed_moves_nothing(kind: str) -> None:
    bound = new_bound()
    traffic = Traffic(bound)
    seen = []
    for observation in traffic.good(1000):
        features = observation.features
        features = {
            "another mark": (bound.mark + 1, *features[1:]),
            "too few figures": features[:-1],
            "feedback": (),
            "not a number": (*features[:-1], math.nan),
            "too large": (*features[:-1], 1e300),
        }[kind]
        seen.append(replace(observation, features=features))
    await taught(seen, bound)
    assert bound.stats()["observations"] == 0
    assert strong(bound).reason is Reason.BOUND


def test_evidence_of_another_embedder_has_another_mark() -> None:
    marks = {Bound(stamp, Kin(lambda entry: None), Clock()).mark for stamp in ("minilm a", "minilm b", "other a")}
    assert len(marks) == 3
    assert all(np.float32(mark) == mark for mark in marks)  # the store keeps figures so


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(len(NAMES)))
async def test_a_candidate_of_which_a_figure_is_none_is_not_served(value: float, place: int) -> None:
    bound = await open_bound(never)
    features = list(Traffic(bound).features(6.0))
    features[place] = value
    for decide in (bound.decide, bound.preview):
        assert decide(GROUP, features, ONE_PERCENT).reason is Reason.BOUND
    assert strong(bound).reason is None


async def test_words_of_callers_go_into_the_record_of_an_entry_and_join_nothing() -> None:
    bound = new_bound()
    traffic = Traffic(bound)
    entry = bytes(32)
    bound.observe([traffic.seen(6.0, True), traffic.seen(6.0, True, how=How.FEEDBACK, occasion=Occasion.FEEDBACK)])
    assert bound.record(entry) == Record(right=2, wrong=0)
    assert bound.record(b"unknown") == Record()
    assert len(bound.kin) == 2  # of the comparison


# Fits


@asynccontextmanager
async def running(bound: Bound) -> AsyncIterator[Bound]:
    bound.start()
    try:
        yield bound
    finally:
        await bound.stop()


async def test_a_fit_comes_by_itself_and_off_the_event_loop() -> None:
    async with running(new_bound()) as bound:
        bound.observe(Traffic(bound).good(WINDOW))
        steps = 0
        fitted = asyncio.create_task(bound.idle())
        while not fitted.done():
            await asyncio.sleep(0)
            steps += 1
        assert steps > 20  # the loop went on while it was learned
        assert strong(bound).reason is None
        assert bound.stats()["fits"] == 2


async def test_a_fit_that_fails_leaves_what_the_last_one_said() -> None:
    async with running(new_bound()) as bound:
        traffic = Traffic(bound)
        bound.observe(traffic.good(1000))
        await bound.idle()
        assert strong(bound).reason is None
        bound._homes[TENANT].pairs = RecentRows(2, 100)  # rows of another shape, which no fit can read
        for _ in range(60):
            bound._homes[TENANT].pairs.append((1.0, 1.0))
        bound._homes[TENANT].new = WINDOW
        bound._call_for_a_fit()
        await bound.idle()
        assert bound.stats()["faults"] == 1
        assert strong(bound).reason is None


async def test_what_comes_during_a_fit_is_learned_by_the_next() -> None:
    async with running(new_bound()) as bound:
        traffic = Traffic(bound)
        for _ in range(30):
            bound.observe(traffic.good(100))
            await asyncio.sleep(0)
        await bound.idle()
        assert bound.stats()["observations"] == 3000
        assert not bound._homes[TENANT].is_due
        assert strong(bound).reason is None


async def test_recalling_is_learning_in_pieces() -> None:
    recalled, told = new_bound(), new_bound()
    seen = Traffic(told).good(5000)
    steps = 0
    async with running(recalled):
        done = asyncio.create_task(recalled.recall(seen))
        while not done.done():
            await asyncio.sleep(0)
            steps += 1
        await recalled.idle()
        assert steps >= len(seen) // module.RECALL_ROWS
        await taught(seen, told)
        assert recalled.stats()["observations"] == told.stats()["observations"] == 5000
        assert strong(recalled).reason is strong(told).reason is None


async def test_stopping_and_not_having_started_are_borne() -> None:
    bound = new_bound()
    await bound.stop()
    bound.start()
    bound.observe(Traffic(bound).good(500))
    await bound.stop()


# The newest rows


def test_the_newest_rows_are_kept_in_the_order_they_came() -> None:
    rows = RecentRows(2, 100)
    assert rows.copy().shape == (0, 2)
    for number in range(777):
        rows.append((number, -number))
        kept = rows.copy()
        assert len(kept) == len(rows) == min(number + 1, 100)
        assert kept[:, 0].tolist() == list(range(max(0, number - 99), number + 1))
        assert (kept[:, 1] == -kept[:, 0]).all()


def test_rows_take_memory_as_they_come() -> None:
    rows = RecentRows(14, 6000)
    assert rows.nbytes < 2000
    for _ in range(20_000):
        rows.append(np.zeros(14))
    assert rows.nbytes == 6000 * 14 * 4
    assert len(rows) == 6000


def test_a_copy_stays_as_it_was() -> None:
    rows = RecentRows(1, 10)
    rows.append([1.0])
    kept = rows.copy()
    rows.append([2.0])
    rows.copy()[0] = 9.0
    assert kept.tolist() == [[1.0]]
    assert rows.copy().tolist() == [[1.0], [2.0]]

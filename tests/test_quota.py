"""Limits: who is let in, what is given back, what a 429 says, and how workers know of each other."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from semcache.access.quota import NANO, NOTHING, Place, Quotas, Reservation, duration
from semcache.config import Limits
from semcache.errors import ClientError
from semcache.types import Usage
from tests.fakes import Clock

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC).timestamp()  # a full minute
LONG = 365 * 86400.0


def let_in(quotas: Quotas, now: float, tokens: int = 0, **limits: float) -> Reservation:
    return quotas.reserve([("tenant shop", Limits(**limits))], tokens, now)  # type: ignore[arg-type]


def refused(quotas: Quotas, now: float, tokens: int = 0, **limits: float) -> ClientError:
    with pytest.raises(ClientError) as caught:
        let_in(quotas, now, tokens, **limits)
    assert caught.value.status == 429
    return caught.value


# Nobody limited


def test_who_has_no_limits_costs_nothing_and_is_not_remembered() -> None:
    quotas = Quotas()
    for number in range(1000):
        assert quotas.reserve([(f"tenant {number}", Limits())], 100, NOW) is NOTHING
    quotas.settle(NOTHING, Usage(1, 1), 5, NOW)
    assert quotas.headers(NOTHING, NOW) == []
    assert quotas.stats() == {"refused": 0, "subjects": 0}


# Minutes


def test_a_minute_slides() -> None:
    quotas = Quotas()
    for _ in range(60):
        let_in(quotas, NOW, requests_per_minute=60)
    refused(quotas, NOW + 59, requests_per_minute=60)
    # Half of the minute before is past: 30 of its 60 still count.
    for _ in range(30):
        let_in(quotas, NOW + 90, requests_per_minute=60)
    refused(quotas, NOW + 90, requests_per_minute=60)


def test_a_refused_request_does_not_count() -> None:
    quotas = Quotas()
    let_in(quotas, NOW, requests_per_minute=1)
    for second in range(50):
        refused(quotas, NOW + second, requests_per_minute=1)
    let_in(quotas, NOW + 120, requests_per_minute=1)


@given(
    limit=st.integers(1, 50),
    came=st.lists(st.floats(0, 110), max_size=120).map(sorted),
    last=st.floats(0, 10),
)
def test_after_the_wait_that_a_429_names_a_request_is_let_in(limit: int, came: list[float], last: float) -> None:
    quotas = Quotas()
    now = NOW
    for offset in came:
        now = NOW + offset
        try:
            let_in(quotas, now, requests_per_minute=limit)
        except ClientError as error:
            wait_s = int(error.headers["Retry-After"])
            assert 1 <= wait_s <= 120
            let_in(quotas, now + wait_s + last, requests_per_minute=limit)
            return


# Tokens


def test_tokens_are_reserved_and_then_count_as_billed() -> None:
    quotas = Quotas()
    limits: dict[str, Any] = {"tokens_per_minute": 1000.0}
    first = let_in(quotas, NOW, 600, **limits)
    refused(quotas, NOW, 600, **limits)
    quotas.settle(first, Usage(300, 100), None, NOW + 1)
    second = let_in(quotas, NOW + 2, 600, **limits)
    quotas.settle(second, Usage(600, 600), None, NOW + 3)  # its answer was long
    refused(quotas, NOW + 4, 1, **limits)


def test_a_hit_gives_its_tokens_back_and_has_been_a_request_all_the_same() -> None:
    quotas = Quotas()
    limits: dict[str, Any] = {"tokens_per_day": 100.0, "requests_per_day": 3.0}
    for _ in range(3):
        quotas.settle(let_in(quotas, NOW, 100, **limits), None, None, NOW)
    error = refused(quotas, NOW, 100, **limits)
    assert "3 requests a day" in error.message


def test_settling_twice_counts_once() -> None:
    quotas = Quotas()
    reservation = let_in(quotas, NOW, 10, tokens_per_day=100)
    for _ in range(3):
        quotas.settle(reservation, Usage(50, 0), None, NOW)
    let_in(quotas, NOW, 50, tokens_per_day=100)


def test_what_a_long_answer_took_beyond_its_reservation_counts_when_it_ends() -> None:
    quotas = Quotas()
    reservation = let_in(quotas, NOW, 10, tokens_per_minute=1000)
    quotas.settle(reservation, Usage(10, 990), None, NOW + 600)
    refused(quotas, NOW + 601, 500, tokens_per_minute=1000)


def test_a_request_larger_than_the_limit_is_told_that_waiting_does_not_help() -> None:
    error = refused(Quotas(), NOW, 2000, tokens_per_minute=1000)
    assert "less than this request alone" in error.message
    assert "Retry-After" not in error.headers and error.headers["x-should-retry"] == "false"


# Money, days, months


def test_a_budget_counts_billed_money_and_stops_what_comes_after_it_is_spent() -> None:
    quotas = Quotas()
    limits: dict[str, Any] = {"usd_per_day": 1.0}
    one, two = let_in(quotas, NOW, **limits), let_in(quotas, NOW, **limits)
    quotas.settle(one, Usage(1, 1), NANO, NOW)
    quotas.settle(two, Usage(1, 1), NANO, NOW)  # under way when the budget ran out: it is billed, too
    error = refused(quotas, NOW, **limits)
    assert error.code == "insufficient_quota"
    assert error.headers["Retry-After"] == str(14 * 3600) and error.headers["x-should-retry"] == "false"
    assert error.message == "tenant shop: the limit of 1 US dollars a day is used up; try again in 14h0m0s"
    let_in(quotas, NOW + 14 * 3600, **limits)


def test_a_month_ends_with_its_last_day_in_utc() -> None:
    quotas = Quotas()
    december = datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC).timestamp()
    let_in(quotas, december, requests_per_month=1)
    assert refused(quotas, december, requests_per_month=1).headers["Retry-After"] == "30"
    let_in(quotas, december + 30, requests_per_month=1)


def test_what_nobody_asked_for_is_charged_to_whom_it_was_done_for() -> None:
    quotas = Quotas()
    quotas.charge([("tenant shop", Limits(usd_per_day=1))], Usage(1, 1), 2 * NANO, NOW)
    refused(quotas, NOW, usd_per_day=1)


def test_who_has_nothing_left_to_spend_may_still_have_what_the_cache_has() -> None:
    quotas = Quotas()
    subjects = [("tenant shop", Limits(usd_per_day=1, requests_per_day=3))]
    quotas.charge(subjects, Usage(1, 1), NANO, NOW)
    for _ in range(3):
        reservation = quotas.reserve(subjects, 10, NOW, may_be_free=True)
        assert reservation.why_no_fetch is not None and reservation.why_no_fetch.code == "insufficient_quota"
        quotas.settle(reservation, None, None, NOW)
    with pytest.raises(ClientError, match="3 requests a day"):
        quotas.reserve(subjects, 10, NOW, may_be_free=True)


# Several limits at once


def test_nobody_is_charged_for_a_request_that_one_of_several_limits_refuses() -> None:
    quotas = Quotas()
    tenant, key = Limits(requests_per_day=10), Limits(requests_per_day=1)
    quotas.reserve([("tenant", tenant), ("key", key)], 0, NOW)
    for _ in range(20):
        with pytest.raises(ClientError, match="key: the limit of 1 requests a day"):
            quotas.reserve([("tenant", tenant), ("key", key)], 0, NOW)
    left = dict(quotas.headers(quotas.reserve([("tenant", tenant)], 0, NOW), NOW))
    assert left["x-ratelimit-remaining-requests"] == "8"


def test_the_longest_of_several_waits_is_told() -> None:
    quotas = Quotas()
    let_in(quotas, NOW, requests_per_minute=1, requests_per_day=1)
    assert "a day" in refused(quotas, NOW, requests_per_minute=1, requests_per_day=1).message


# What replies say


def test_replies_tell_the_limit_of_which_the_least_is_left_in_the_form_of_openai() -> None:
    quotas = Quotas()
    reservation = let_in(quotas, NOW + 30, 500, requests_per_minute=60, requests_per_day=10, tokens_per_minute=150000)
    assert quotas.headers(reservation, NOW + 30) == [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "9"),
        ("x-ratelimit-reset-requests", "13h59m30s"),
        ("x-ratelimit-limit-tokens", "150000"),
        ("x-ratelimit-remaining-tokens", "149500"),
        ("x-ratelimit-reset-tokens", "1m30s"),
    ]


def test_a_429_carries_the_same_figures() -> None:
    quotas = Quotas()
    let_in(quotas, NOW, requests_per_minute=1)
    headers = refused(quotas, NOW, requests_per_minute=1).headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["Retry-After"] == "120"  # a whole minute from the end of this one


@pytest.mark.parametrize(
    "seconds, written",
    [(0, "0s"), (-1, "0s"), (0.0121, "13ms"), (0.9999, "1s"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")]
    + [(25950, "7h12m30s"), (86400 * 30, "720h0m0s")],
)
def test_durations_are_written_as_openai_writes_them_and_never_too_short(seconds: float, written: str) -> None:
    assert duration(seconds) == written


# Clocks


@pytest.mark.parametrize("back_s", [0.5, 30, 3600, 86400 * 40])
def test_a_clock_that_goes_back_neither_blocks_nor_forgives_the_present(back_s: float) -> None:
    quotas = Quotas()
    let_in(quotas, NOW, requests_per_minute=2, requests_per_month=1000)
    then = NOW - back_s
    let = 0
    for _ in range(5):
        with suppress(ClientError):
            reservation = let_in(quotas, then, requests_per_minute=2, requests_per_month=1000)
            assert int(dict(quotas.headers(reservation, then))["x-ratelimit-remaining-requests"]) >= 0
            let += 1
    assert let in (1, 2)
    assert int(refused(quotas, then, requests_per_minute=2).headers["Retry-After"]) <= 180


# Workers that share a file


class SharedFile:
    """Adds up what workers write, as the usage file does."""

    def __init__(self) -> None:
        self.totals: dict[Place, tuple[int, int, int]] = {}

    def exchange(self, quotas: Quotas) -> None:
        news, wanted = quotas.take()
        for place, counts in news:
            old = self.totals.get(place, (0, 0, 0))
            self.totals[place] = (old[0] + counts[0], max(0, old[1] + counts[1]), old[2] + counts[2])
        quotas.learn({place: self.totals[place] for place in wanted if place in self.totals})


def test_a_limit_holds_over_workers_but_for_what_came_since_they_last_told_each_other() -> None:
    clock, file = Clock(NOW), SharedFile()
    workers = [Quotas(clock), Quotas(clock)]
    let = [0, 0]
    for second in range(30):
        clock.now = NOW + second
        for place, worker in enumerate(workers):
            for _ in range(10):
                with suppress(ClientError):
                    let_in(worker, clock.now, requests_per_day=100)
                    let[place] += 1
        for worker in workers:
            file.exchange(worker)
    assert 100 <= sum(let) <= 100 + 2 * 10
    assert file.totals["tenant shop", "day", int(NOW // 86400) * 86400][0] == sum(let)


def test_a_restart_forgets_nothing_that_was_written() -> None:
    clock, file = Clock(NOW), SharedFile()
    before = Quotas(clock)
    for _ in range(5):
        let_in(before, NOW, requests_per_day=5)
    file.exchange(before)
    after = Quotas(clock)
    after.learn(file.totals)
    refused(after, NOW, requests_per_day=5)


def test_what_could_not_be_written_is_written_later_and_counts_meanwhile() -> None:
    clock, file = Clock(NOW), SharedFile()
    quotas = Quotas(clock)
    let_in(quotas, NOW, requests_per_day=2)
    quotas.take()
    let_in(quotas, NOW, requests_per_day=2)
    quotas.give_back()
    refused(quotas, NOW, requests_per_day=2)
    file.exchange(quotas)
    assert {counts[0] for counts in file.totals.values()} == {2}
    refused(quotas, NOW, requests_per_day=2)


class TwoWorkers(RuleBasedStateMachine):
    """Whatever happens in whatever order, nothing is counted twice, lost, or below zero."""

    @initialize()
    def begin(self) -> None:
        self.clock, self.file = Clock(NOW), SharedFile()
        self.workers = [Quotas(self.clock), Quotas(self.clock)]
        self.limits = Limits(requests_per_month=10**9, tokens_per_minute=10**9)
        self.open: list[tuple[Quotas, Reservation]] = []
        self.requests = self.tokens = self.nano = 0

    @rule(worker=st.integers(0, 1), tokens=st.integers(0, 50))
    def reserve(self, worker: int, tokens: int) -> None:
        quotas = self.workers[worker]
        self.open.append((quotas, quotas.reserve([("t", self.limits)], tokens, self.clock.now)))
        self.requests += 1

    @rule(billed=st.none() | st.integers(0, 200), nano=st.integers(0, 10))
    def settle(self, billed: int | None, nano: int) -> None:
        if self.open:
            quotas, reservation = self.open.pop(0)
            quotas.settle(reservation, None if billed is None else Usage(billed, 0), nano, self.clock.now)
            self.tokens += billed or 0
            self.nano += nano

    @rule(worker=st.integers(0, 1))
    def exchange(self, worker: int) -> None:
        self.file.exchange(self.workers[worker])

    @rule(worker=st.integers(0, 1))
    def fail(self, worker: int) -> None:
        self.workers[worker].take()
        self.workers[worker].give_back()

    @rule(seconds=st.sampled_from([0.5, 20, 61, 200, -0.5, -30]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def what_is_left_is_never_more_than_there_is(self) -> None:
        for quotas, reservation in getattr(self, "open", []):
            figures = dict(quotas.headers(reservation, self.clock.now))
            assert 0 <= int(figures["x-ratelimit-remaining-tokens"]) <= 10**9

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        while self.open:
            self.settle(0, 0)
        for worker in self.workers:
            self.file.exchange(worker)
        months = [counts for place, counts in self.file.totals.items() if place[1] == "month"]
        assert [sum(counts) for counts in zip(*months, strict=True)] in ([], [self.requests, self.tokens, self.nano])


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""Who may be asked: the breaker, ejection by checks, rests, slow start and panic, by a clock that is moved by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from semcache.backends.breaker import TRIAL_S, UNPLACED
from semcache.backends.health import SMALLEST_SHARE, State, Vitals, choose
from semcache.config import Health

HEALTH = Health(failures=5, open=30.0, successes=2, unhealthy_after=2, healthy_after=1, slow_start=10.0)


def vitals(**changed: object) -> Vitals:
    """Without chance: the breaker is open for exactly as long as it is set to."""
    return Vitals(HEALTH.model_copy(update=changed), chance=lambda: 0.0)


def fail(backend: Vitals, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        backend.failed(now, backend.begin(now))


def succeed(backend: Vitals, times: int, now: float) -> None:
    for _ in range(times):
        backend.succeeded(now, backend.begin(now))


def test_five_failures_in_a_row_open_the_breaker() -> None:
    backend = vitals()
    fail(backend, 4)
    succeed(backend, 1, 0.0)
    fail(backend, 4)
    assert backend.may_take(0.0)
    fail(backend, 1)
    assert not backend.may_take(0.0)
    assert backend.state(0.0) is State.OPEN


def test_after_its_time_one_request_at_a_time_tries_an_open_one() -> None:
    backend = vitals()
    fail(backend, 5)
    assert not backend.may_take(29.9)
    assert backend.may_take(30.0)
    backend.begin(30.0)
    assert backend.state(30.0) is State.HALF_OPEN
    assert not backend.may_take(30.1)


def test_two_successes_close_it() -> None:
    backend = vitals()
    fail(backend, 5)
    succeed(backend, 1, 30.0)
    assert backend.state(30.0) is State.HALF_OPEN
    succeed(backend, 1, 31.0)
    assert backend.state(31.0) is State.WELL
    fail(backend, 4, 32.0)
    assert backend.may_take(32.0)


def test_a_failed_trial_opens_it_again_for_twice_as_long_up_to_four_times() -> None:
    backend = vitals()
    fail(backend, 5)
    now = 0.0
    for wait in (30.0, 60.0, 120.0, 120.0):
        assert not backend.may_take(now + wait - 0.1)
        now += wait
        fail(backend, 1, now)
    now += 120.0
    succeed(backend, 2, now)
    fail(backend, 5, now)  # a new outage begins with the short wait
    assert backend.may_take(now + 30.0)


def test_the_caller_who_leaves_a_trial_gives_its_place_back() -> None:
    backend = vitals()
    fail(backend, 5)
    backend.ended(31.0, backend.begin(30.0))
    assert backend.may_take(31.0)
    assert backend.state(31.0) is State.HALF_OPEN


def test_a_trial_that_hangs_keeps_others_away_for_a_while_only() -> None:
    backend = vitals()
    fail(backend, 5)
    hanging = backend.begin(30.0)
    assert not backend.may_take(30.0 + TRIAL_S - 0.1)
    assert backend.may_take(30.0 + TRIAL_S)
    second = backend.begin(30.0 + TRIAL_S)
    backend.failed(61.0, hanging)  # it says nothing any more
    assert backend.state(61.0) is State.HALF_OPEN
    backend.succeeded(61.0, second)
    succeed(backend, 1, 62.0)
    assert backend.state(62.0) is State.WELL


def test_failures_of_before_an_outage_do_not_count_after_it() -> None:
    backend = vitals()
    late = [backend.begin(0.0) for _ in range(20)]
    fail(backend, 5, 1.0)
    succeed(backend, 2, 31.0)
    for spell in late:
        backend.failed(120.0, spell)
    assert backend.state(120.0) is State.WELL


def test_requests_that_are_told_without_their_spell_count_as_of_now() -> None:
    backend = vitals()
    for _ in range(5):
        backend.failed(0.0)
    for _ in range(50):  # of before, or in panic: the breaker is open already
        backend.failed(1.0)
    assert backend.may_take(30.0)
    for _ in range(2):
        backend.begin(30.0)
        backend.succeeded(30.0)
    assert backend.state(30.0) is State.WELL


def test_many_proxies_do_not_return_in_the_same_moment() -> None:
    chance = random.Random(1).random
    backends = [Vitals(HEALTH, chance) for _ in range(100)]
    for backend in backends:
        fail(backend, 5)
    assert not any(backend.may_take(29.9) for backend in backends)
    back_by_33 = sum(backend.may_take(33.0) for backend in backends)
    assert 30 < back_by_33 < 70
    assert all(backend.may_take(36.0) for backend in backends)


def test_failed_checks_in_a_row_eject_and_one_good_one_brings_back() -> None:
    backend = vitals()
    backend.checked(False, 0.0)
    assert backend.may_take(0.0)
    backend.checked(False, 1.0)
    assert backend.state(1.0) is State.EJECTED
    assert not backend.may_take(1000.0)
    backend.checked(True, 1000.0)
    assert backend.state(1000.0) is State.WELL


def test_a_return_may_ask_for_several_good_checks_in_a_row() -> None:
    backend = vitals(healthy_after=3)
    backend.checked(False, 0.0)
    backend.checked(False, 0.0)
    for is_well in (True, True, False, True, True):
        backend.checked(is_well, 1.0)
        assert backend.is_ejected()
    backend.checked(True, 2.0)
    assert backend.may_take(2.0)


def test_a_check_that_succeeds_after_one_that_failed_lets_requests_try_at_once() -> None:
    """A server that was restarted takes requests within one check interval, and not half a minute later."""
    backend = vitals()
    fail(backend, 5, 0.0)
    backend.checked(False, 0.1)
    backend.checked(False, 0.6)
    backend.checked(True, 2.6)
    assert backend.state(2.6) is State.HALF_OPEN
    succeed(backend, 2, 3.0)
    assert backend.state(3.0) is State.WELL


def test_checks_that_never_failed_do_not_shorten_the_wait_of_a_breaker() -> None:
    """A server whose engine is dead may list its models as before."""
    backend = vitals()
    fail(backend, 5, 0.0)
    for second in range(1, 30):
        backend.checked(True, float(second))
        assert not backend.may_take(float(second))


def test_an_unanswered_check_does_not_count_when_something_else_was_heard() -> None:
    backend = vitals()
    for asked_at in (1.0, 2.0, 3.0):
        backend.succeeded(asked_at + 0.1, backend.begin(0.0))
        assert not backend.unanswered(asked_at)
    assert backend.may_take(4.0)
    assert backend.unanswered(4.0)
    assert backend.unanswered(5.0)
    assert backend.is_ejected()


def test_silence_is_counted_from_the_last_sign_or_the_first_request_that_waits() -> None:
    backend = vitals()
    assert backend.silent_since() is None
    first = backend.begin(1.0)
    second = backend.begin(2.0)
    assert backend.silent_since() == 1.0
    backend.succeeded(3.0, first)
    assert backend.silent_since() == 3.0
    backend.heard(4.0)
    assert backend.silent_since() == 4.0
    backend.ended(5.0, second)
    assert backend.silent_since() is None
    backend.begin(6.0)
    assert backend.silent_since() == 6.0


def test_a_limited_key_rests_until_the_longest_of_its_times_and_looks_alive() -> None:
    backend = vitals()
    backend.rest(20.0)
    backend.rest(10.0)
    assert backend.state(5.0) is State.RESTING
    assert (backend.may_take(19.9), backend.rests_until(19.9)) == (False, 20.0)
    assert (backend.may_take(20.0), backend.rests_until(20.0)) == (True, 0.0)
    assert backend.looks_alive()
    assert backend.share(20.0) == 1.0  # a rest cools nothing


def test_after_a_return_the_share_grows_evenly() -> None:
    backend = vitals()
    assert backend.share(0.0) == 1.0
    backend.checked(False, 0.0)
    backend.checked(False, 0.0)
    assert backend.share(0.0) == SMALLEST_SHARE
    backend.checked(True, 100.0)
    shares = [backend.share(100.0 + passed) for passed in (0, 0.5, 2.5, 5, 9.9, 10, 100)]
    assert shares == pytest.approx([SMALLEST_SHARE, SMALLEST_SHARE, 0.25, 0.5, 0.99, 1, 1])


def test_a_breaker_that_closes_starts_slowly_too_and_slow_start_may_be_off() -> None:
    slow, quick = vitals(), vitals(slow_start=0.0)
    for backend in (slow, quick):
        fail(backend, 5)
        succeed(backend, 2, 40.0)
    assert (slow.share(40.0), slow.share(45.0), quick.share(40.0)) == (SMALLEST_SHARE, 0.5, 1.0)


def test_a_half_open_backend_is_ranked_as_if_nothing_were_wrong_or_nobody_would_try_it() -> None:
    """Beside two backends with four requests each, a tenth of a share was never chosen: it stayed half-open."""
    backend = vitals()
    fail(backend, 5)
    assert backend.may_take(30.0)
    assert backend.share(30.0) == 1.0


def pool(*states: str) -> list[Vitals]:
    """One backend per word: well, dead (by checks), open (by requests), resting."""
    backends = []
    for word in states:
        backend = vitals()
        if word == "dead":
            backend.checked(False, 0.0)
            backend.checked(False, 0.0)
        elif word == "open":
            fail(backend, 5)
        elif word == "resting":
            backend.rest(60.0)
        backends.append(backend)
    return backends


@pytest.mark.parametrize(
    "states, panic, chosen, why",
    [
        (["well", "well"], 0.0, [0, 1], "all is well"),
        (["well", "dead", "open"], 0.0, [0], "one is enough, as it has a queue"),
        (["dead", "open"], 0.0, [0, 1], "nobody looks alive"),
        (["dead", "open", "resting"], 0.0, [], "the one that rests is alive: the caller is told when to come back"),
        (["resting", "resting"], 1.0, [], "a limited key is no reason for panic"),
        (["well", "dead", "open"], 0.5, [0, 1, 2], "a third is less than half"),
        (["well", "dead"], 0.5, [0], "half is not less than half"),
        (["well", "dead", "dead", "resting"], 0.75, [0, 1, 2], "in panic a rest is respected still"),
    ],
)
def test_panic(states: list[str], panic: float, chosen: list[int], why: str) -> None:
    backends = pool(*states)
    found = choose(backends, Health(panic=panic), 1.0)
    assert [backends.index(backend) for backend in found] == chosen, why


def test_an_empty_pool_has_nobody_to_choose() -> None:
    assert choose([], HEALTH, 0.0) == []


def test_answers_to_requests_in_panic_close_an_open_breaker_and_failures_do_not_prolong_it() -> None:
    backend = vitals()
    fail(backend, 5, 0.0)
    fail(backend, 50, 1.0)
    assert backend.may_take(30.0)
    assert backend.begin(2.0) == UNPLACED
    backend.succeeded(3.0, UNPLACED)
    assert backend.state(3.0) is State.HALF_OPEN
    backend.succeeded(3.0, backend.begin(3.0))
    assert backend.state(3.0) is State.WELL


@dataclass
class Model:
    """The breaker and the checks, once more and as simple as can be: a list of what happened since the last change."""

    health: Health
    is_open: bool = False
    opened_at: float = 0.0
    wait_s: float = 0.0
    era: int = 0  # how often it has opened and closed
    recent: list[str] = field(default_factory=list)  # what trials and, when closed, requests brought
    trials: dict[int, float] = field(default_factory=dict)  # those under way -> when they began

    def open(self, now: float) -> None:
        doubled = min(2 * self.wait_s, 4 * self.health.open) if self.is_open else self.health.open
        self.is_open, self.opened_at, self.wait_s, self.recent, self.trials = True, now, doubled, [], {}
        self.era += 1

    def close(self) -> None:
        self.is_open, self.recent, self.trials = False, [], {}
        self.era += 1

    def live_trials(self, now: float) -> int:
        return sum(now < begun + TRIAL_S for begun in self.trials.values())


class AnyLife(RuleBasedStateMachine):
    """Requests that begin and end in any order, early, late and never, with checks and rests in between."""

    @initialize(
        failures=st.integers(1, 4), successes=st.integers(1, 4), unhealthy=st.integers(1, 3), seed=st.integers(0, 99)
    )
    def begin_life(self, failures: int, successes: int, unhealthy: int, seed: int) -> None:
        self.health = Health(failures=failures, successes=successes, unhealthy_after=unhealthy, open=30.0)
        self.backend = Vitals(self.health, random.Random(seed).random)
        self.model = Model(self.health)
        self.now = 0.0
        self.running: dict[int, tuple[int, int]] = {}  # request -> spell, era of the model
        self.requests = 0
        self.failed_checks = 0
        self.doubtful = False
        self.rests = 0.0
        self.early = False  # a check or an answer has shortened the wait

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 10.0, 31.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(dares=st.booleans())
    def a_request_begins(self, dares: bool) -> None:
        may_take = self.backend.may_take(self.now)
        if not may_take and not dares:
            return
        self.requests += 1
        spell = self.backend.begin(self.now)
        self.running[self.requests] = spell, self.model.era
        if self.model.is_open and spell != UNPLACED:
            self.model.trials[self.requests] = self.now
            assert self.early or self.now >= self.model.opened_at + self.model.wait_s
        if may_take and self.model.is_open:
            assert spell != UNPLACED

    @precondition(lambda self: self.running)
    @rule(pick=st.randoms(use_true_random=False), how=st.sampled_from(["good", "bad", "neither"]))
    def a_request_ends(self, pick: random.Random, how: str) -> None:
        request = pick.choice(sorted(self.running))
        spell, era = self.running.pop(request)
        {"good": self.backend.succeeded, "bad": self.backend.failed, "neither": self.backend.ended}[how](
            self.now, spell
        )
        model = self.model
        newest = max(model.trials, default=None)
        if not model.is_open:
            if how == "good":
                model.recent.clear()
            elif how == "bad" and era == model.era:
                model.recent.append(how)
                if len(model.recent) >= self.health.failures:
                    model.open(self.now)
                    self.early = False
        elif request == newest:
            del model.trials[request]
            if how == "bad":
                model.open(self.now)
                self.early = False
            elif how == "good":
                self._good()
            else:
                self.early = True
        elif spell == UNPLACED and how == "good":
            self._good()
        model.trials.pop(request, None)

    def _good(self) -> None:
        self.early = True
        self.model.recent.append("good")
        if len(self.model.recent) >= self.health.successes:
            self.model.close()

    @rule(is_well=st.booleans())
    def a_check_is_answered(self, is_well: bool) -> None:
        self.backend.checked(is_well, self.now)
        self.failed_checks = 0 if is_well else self.failed_checks + 1
        if is_well and self.doubtful:
            self.early = True
        self.doubtful = not is_well
        assert self.backend.is_ejected() is (self.failed_checks >= self.health.unhealthy_after)

    @rule(seconds=st.floats(0, 100))
    def its_key_is_limited(self, seconds: float) -> None:
        self.backend.rest(self.now + seconds)
        self.rests = max(self.rests, self.now + seconds)

    @invariant()
    def it_is_closed_exactly_when_it_should_be(self) -> None:
        if not hasattr(self, "model"):
            return
        is_open = self.backend.state(self.now) in (State.OPEN, State.HALF_OPEN)
        if not self.backend.is_ejected():
            assert is_open is self.model.is_open

    @invariant()
    def never_more_than_one_tries(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.model.live_trials(self.now) <= 1
        if self.model.is_open and self.model.live_trials(self.now):
            assert not self.backend.may_take(self.now)

    @invariant()
    def who_may_take_is_well_in_every_respect(self) -> None:
        if not hasattr(self, "model"):
            return
        if self.backend.may_take(self.now):
            assert not self.backend.is_ejected()
            assert self.now >= self.rests
        elif not self.backend.is_ejected() and self.now >= self.rests:
            assert self.model.is_open
        assert 0 < self.backend.share(self.now) <= 1

    @invariant()
    def no_backend_is_lost_for_ever(self) -> None:
        if not hasattr(self, "model"):
            return
        far = max(self.now + 1.2 * 4 * self.health.open, self.rests)
        assert self.backend.may_take(far) or self.backend.is_ejected()


AnyLife.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=50, deadline=None)
TestAnyLife = AnyLife.TestCase

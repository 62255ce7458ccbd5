"""The watch over rates: many different questions of one key are told, and nothing else is."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from semcache.config import Guardrails
from semcache.guardrails.extraction import ExtractionWatch
from semcache.guardrails.suspicion import Action
from tests.fakes import Clock

FLAG = Guardrails(extraction="flag", extraction_per_hour=1000)


def digest(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=32).digest()


def ask(watch: ExtractionWatch, numbers: range, key: str = "k1", settings: Guardrails = FLAG) -> int | None:
    """How many were asked when the first was suspicious."""
    for count, number in enumerate(numbers, 1):
        if watch.seen("shop", key, digest(number), settings):
            return count
    return None


def test_many_different_questions_are_told_near_the_limit() -> None:
    told = ask(ExtractionWatch(Clock()), range(2000))
    assert told is not None and 950 <= told <= 1050


@pytest.mark.parametrize("limit", [1, 100, 30_000])
def test_counts_are_right_within_some_percent_at_any_limit(limit: int) -> None:
    settings = Guardrails(extraction="flag", extraction_per_hour=limit)
    told = ask(ExtractionWatch(Clock()), range(2 * limit + 10), settings=settings)
    assert told is not None and abs(told - limit - 1) <= max(2, 0.05 * limit)


def test_as_many_requests_with_repeats_are_none_of_it() -> None:
    watch = ExtractionWatch(Clock())
    for number in range(1400):
        for _ in range(2):
            assert watch.seen("shop", "k1", digest(number), FLAG) is None


def test_the_same_rate_over_a_day_is_none_of_it() -> None:
    clock = Clock()
    watch = ExtractionWatch(clock)
    for number in range(24 * 900):
        clock.advance(3600 / 900)
        assert watch.seen("shop", "k1", digest(number), FLAG) is None


def test_an_hour_that_begins_in_the_middle_of_it_does_not_hide_it() -> None:
    clock = Clock()
    watch = ExtractionWatch(clock)
    watch.seen("shop", "k1", digest(-1), FLAG)
    clock.advance(3500)
    assert ask(watch, range(800)) is None
    clock.advance(200)
    assert ask(watch, range(800, 1600)) is not None


def test_an_hour_of_silence_is_forgiven() -> None:
    clock = Clock()
    watch = ExtractionWatch(clock)
    assert ask(watch, range(1500)) is not None
    clock.advance(2 * 3600)
    assert ask(watch, range(1500, 2300)) is None


def test_what_was_refused_is_refused_again_and_what_was_answered_is_answered_again() -> None:
    watch = ExtractionWatch(Clock())
    settings = Guardrails(extraction="refuse", extraction_per_hour=1000)
    told = ask(watch, range(1500), settings=settings)
    assert told is not None
    for _ in range(500):  # as often as one likes: what is refused makes no repeated share either
        suspicion = watch.seen("shop", "k1", digest(told - 1), settings)
        assert suspicion is not None and suspicion.action is Action.REFUSE
    assert watch.seen("shop", "k1", digest(3), settings) is None


def test_keys_are_counted_apart_and_only_where_it_is_wanted() -> None:
    watch = ExtractionWatch(Clock())
    assert ask(watch, range(900), "k1") is None
    assert ask(watch, range(900, 1800), "k2") is None
    assert ask(watch, range(5000), "k3", Guardrails()) is None
    assert watch.stats() == {"keys": 2}


def test_memory_is_bounded_by_forgetting_who_was_silent_longest() -> None:
    watch = ExtractionWatch(Clock())
    huge = Guardrails(extraction="flag", extraction_per_hour=10**9)
    for key in range(100):
        watch.seen("shop", f"k{key}", digest(0), huge)
    assert watch.stats()["keys"] <= 64

"""The peak EWMA: bad news counts at once, good news slowly, and silence is forgotten."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.backends.ewma import PeakEwma

SECONDS = st.floats(0, 1000)


def observed(*values: tuple[float, float]) -> PeakEwma:
    ewma = PeakEwma(decay_s=10)
    for value_s, now in values:
        ewma.observe(value_s, now)
    return ewma


def test_nothing_observed_is_no_value() -> None:
    assert PeakEwma().value(100.0) is None


def test_a_slow_answer_counts_in_full_at_once() -> None:
    assert observed((0.1, 0), (0.1, 1), (5.0, 2)).value(2) == 5.0


def test_quick_answers_lower_it_over_the_time_of_decay() -> None:
    assert observed((5.0, 0), (1.0, 0)).value(0) == 5.0, "no time has passed in which it could have become quick"
    assert observed((5.0, 0), (1.0, 10)).value(10) == pytest.approx(1 + 4 * exp(-1))
    assert observed((5.0, 0), (1.0, 100)).value(100) == pytest.approx(1.0, abs=1e-3)


def test_a_backend_that_nobody_asks_is_taken_for_quick_in_time() -> None:
    ewma = observed((5.0, 0))
    assert ewma.value(10) == pytest.approx(5 / exp(1))
    assert ewma.value(100) < 0.001
    assert ewma.value(0) == 5.0, "looking changes nothing"


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1), SECONDS)
def test_it_stays_between_nothing_and_the_slowest_answer(values: list[tuple[float, float]], now: float) -> None:
    value = observed(*values).value(now)  # times may run backwards, as two requests end in either order
    assert value is not None
    assert 0 <= value <= max(value_s for value_s, _ in values)

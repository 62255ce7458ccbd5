"""What speaks for a candidate, as figures: always finite, and each says what its name says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.witnesses import LONE_MARGIN, NAMES, WITNESSES, Neighbour, Record, read_witnesses, scaled

ME, OTHER = b"me", b"other"
cosines = st.floats(-1.0000001, 1.0000001)


def read(
    *around: tuple[float, bytes], place: int = 0, judged: float = 0.0, record: Record = Record()
) -> dict[str, float]:
    neighbours = [Neighbour(*each) for each in around]
    return dict(zip(NAMES, read_witnesses(neighbours[place], neighbours, judged, record, 7200.0), strict=True))


@given(
    around=st.lists(st.tuples(cosines, st.sampled_from([ME, OTHER, b"third"])), min_size=1, max_size=64),
    data=st.data(),
    judged=st.floats(-14, 14),
    right=st.integers(0, 10**9),
    wrong=st.integers(0, 10**9),
    age_s=st.floats(0, 1e11),
)
def test_figures_are_finite_whatever_is_around(
    around: list[tuple[float, bytes]], data: st.DataObject, judged: float, right: int, wrong: int, age_s: float
) -> None:
    neighbours = [Neighbour(*each) for each in sorted(around, reverse=True)]
    proposed = neighbours[data.draw(st.integers(0, len(neighbours) - 1))]
    features = read_witnesses(proposed, neighbours, judged, Record(right, wrong), age_s)
    assert len(features) == len(NAMES)
    assert all(math.isfinite(feature) for feature in features)
    assert np.isfinite(scaled(np.array([features]))).all()


def test_neighbours_that_agree_speak_for_a_candidate_and_others_against_it() -> None:
    together = read((0.9, ME), (0.88, ME), (0.87, ME))
    torn = read((0.9, ME), (0.88, OTHER), (0.87, ME))
    assert (together["unanimous"], torn["unanimous"]) == (1.0, 0.0)
    assert together["share"] == 1.0 > torn["share"] > 0.5
    assert (together["kin"], torn["kin"]) == (3 / WITNESSES, 2 / WITNESSES)
    assert torn["margin"] == pytest.approx(0.02)
    assert together["margin"] == pytest.approx(0.03 + LONE_MARGIN)


def test_a_nearer_other_answer_makes_the_margin_negative() -> None:
    assert read((0.95, OTHER), (0.9, ME), place=1)["margin"] == pytest.approx(-0.05)


def test_a_far_neighbour_counts_less_than_a_near_one() -> None:
    assert read((0.9, ME), (0.7, OTHER))["share"] > read((0.9, ME), (0.89, OTHER))["share"]


def test_no_more_neighbours_are_heard_than_are_witnesses() -> None:
    heard = [(0.9 - n / 100, ME) for n in range(WITNESSES)]
    assert read(*heard) == read(*heard, (0.5, OTHER))


def test_the_judge_the_record_and_the_age_are_told() -> None:
    told = read((0.9, ME), judged=2.5, record=Record(3, 1))
    assert told["judge"] == 2.5
    assert (told["right"], told["wrong"]) == (math.log(4), math.log(2))
    assert told["age"] == pytest.approx(math.log(3))
    assert told["similarity"] == 0.9


def test_scaling_adds_a_column_of_ones() -> None:
    rows = scaled(np.zeros((3, len(NAMES))))
    assert rows.shape == (3, len(NAMES) + 1)
    assert rows.dtype == np.float64
    assert (rows[:, -1] == 1).all()
    assert np.array_equal(scaled(np.zeros((1, len(NAMES))))[0], rows[0])

"""How well scores part pairs: the area and the recalls, also where scores are equal."""

import math

import numpy as np
import pytest

from semcache.tuning.figures import measure

SAME = np.array([True, True, False, True, False, False])


def test_what_is_in_order_has_all_of_the_area_and_all_recalls() -> None:
    assert measure(np.array([True, True, False]), np.array([0.9, 0.8, 0.1])) == (1.0, (1.0, 1.0, 1.0))


def test_the_area_is_the_share_of_couples_in_order() -> None:
    area, recalls = measure(SAME, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))
    assert area == pytest.approx(8 / 9)
    assert recalls == pytest.approx((2 / 3,) * 3)


def test_no_cut_parts_equal_scores_whatever_their_order() -> None:
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        assert measure(SAME[order], np.full(6, 0.5)) == (0.5, (0.0, 0.0, 0.0))


def test_pairs_of_one_kind_have_no_figures() -> None:
    assert all(
        map(
            math.isnan,
            (measure(np.array([True]), np.array([1.0])).area, *measure(np.array([True]), np.array([1.0])).recalls),
        )
    )

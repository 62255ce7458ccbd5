"""From evidence to a probability, and to a cut that keeps an error bound: checked where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from semcache.cache.calibration import FEWEST, Cut, Floats, choose_cut, cross_fit, fit, lower_rate, upper_rate

Errors = Callable[[Floats], Floats]  # the true probability of being wrong, by score


def labelled(n: int, weights: Floats, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x: Floats = np.hstack([rng.normal(size=(n, len(weights) - 1)), np.ones((n, 1))])
    y: Floats = (rng.random(n) < 1 / (1 + np.exp(-x @ weights))).astype(np.float64)
    return x, y


# Weights


def test_a_fit_finds_the_weights_that_made_the_labels() -> None:
    true = np.array([1.5, -0.7, 0.0, 0.4])
    x, y = labelled(20_000, true, seed=1)
    assert np.abs(fit(x, y, np.zeros(4), 1.0) - true).max() < 0.1


def test_a_prior_one_is_sure_of_is_kept() -> None:
    prior = np.array([0.3, -2.0, 1.0])
    x, y = labelled(500, np.array([-1.0, 1.0, 0.0]), seed=2)
    assert np.allclose(fit(x, y, prior, 1e9), prior, atol=1e-4)


def test_without_observations_the_prior_is_all_there_is() -> None:
    prior = np.array([0.3, -2.0])
    assert np.allclose(fit(np.empty((0, 2)), np.empty(0), prior, 1.0, start=np.zeros(2)), prior)


@pytest.mark.parametrize("labels", ["separated", "all right", "all wrong"])
def test_labels_without_a_mistake_give_finite_weights(labels: str) -> None:
    x, _ = labelled(1000, np.array([1.0, 0.0]), seed=3)
    y: Floats = {"separated": x[:, 0] > 0, "all right": x[:, 0] > -99, "all wrong": x[:, 0] > 99}[labels].astype(float)
    weights = fit(x, y, np.zeros(2), 1.0)
    assert np.isfinite(weights).all() and np.abs(weights).max() < 50
    if labels == "separated":
        assert weights[0] > 3


def test_a_fit_comes_to_the_same_from_wherever_it_begins() -> None:
    x, y = labelled(800, np.array([2.0, -1.0, 0.5]), seed=4)
    one, other = (fit(x, y, np.zeros(3), 1.0, start=start) for start in (np.zeros(3), np.array([20.0, 20.0, -20.0])))
    assert np.allclose(one, other, atol=1e-2)


def test_no_score_knows_its_own_label() -> None:
    x, y = labelled(200, np.array([1.0, 0.5]), seed=5)
    start = np.zeros(2)
    before, _ = cross_fit(x, y, np.zeros(2), 1.0, start)
    for row in (0, 57, 199):
        flipped = y.copy()
        flipped[row] = 1 - flipped[row]
        after, _ = cross_fit(x, flipped, np.zeros(2), 1.0, start)
        assert after[row] == before[row]
        assert not np.array_equal(after, before)  # others have learned from it


def test_candidates_to_come_are_scored_as_surely_as_those_that_were_seen() -> None:
    """Else they would pass a cut that was set among lower scores. All are right here, and each one makes surer."""
    x, _ = labelled(100, np.array([1.0, 0.0]), seed=6)
    scores, weights = cross_fit(x, np.ones(100), np.zeros(2), 1.0, np.zeros(2))
    assert np.mean(x @ weights) == pytest.approx(np.mean(scores), abs=0.02)
    assert np.mean(x @ fit(x, np.ones(100), np.zeros(2), 1.0)) > np.mean(scores) + 0.1


# Rates


@pytest.mark.parametrize(
    "events, trials, exact",  # chi-square quantiles: 2 (events + 1) degrees of freedom, 95 %, over 2 trials
    [(0, 299, 0.010019), (1, 500, 0.009488), (5, 1000, 0.010513), (50, 1000, 0.063287)],
)
def test_the_upper_bound_of_a_rate_is_poissons(events: int, trials: int, exact: float) -> None:
    assert upper_rate(events, trials) == pytest.approx(exact, rel=0.011)


@pytest.mark.parametrize("events, trials, exact", [(5, 100, 0.019702), (20, 100, 0.132547), (100, 1000, 0.084140)])
def test_the_lower_bound_is_no_higher_than_poissons(events: int, trials: int, exact: float) -> None:
    assert 0.97 * exact < lower_rate(events, trials) < 1.002 * exact


def test_nothing_tried_says_nothing() -> None:
    assert upper_rate(0, 0) == 1.0
    assert lower_rate(0, 0) == lower_rate(0, 100) == 0.0
    assert 0 <= lower_rate(1, 1) < 0.06  # one of one is no certainty


# The cut


def test_without_evidence_there_is_no_cut() -> None:
    nothing = np.empty(0)
    assert choose_cut(nothing, nothing > 0, nothing, 0.5) is None
    few = np.linspace(5, 1, FEWEST - 1)
    assert choose_cut(few, few < 0, few, 0.5) is None


def test_a_bound_is_proven_by_as_many_right_ones_as_it_takes() -> None:
    for n, proves in ((250, False), (350, True)):
        scores = np.linspace(9, 1, n)
        assert (choose_cut(scores, scores < 0, np.empty(0), 0.01) is not None) is proves


def test_wrong_ones_lie_below_the_cut() -> None:
    scores = np.linspace(10, 0, 2000)
    wrong = scores < 4
    cut = choose_cut(scores, wrong, scores, 0.02)
    assert isinstance(cut, Cut)
    assert 3.5 < cut.score < 4.6
    assert cut.upper <= 0.02
    assert (cut.observed, cut.wrong) == ((scores >= cut.score).sum(), wrong[scores >= cut.score].sum())


def test_a_few_hits_after_a_start_are_no_picture_of_the_traffic() -> None:
    """All right above 4, a third wrong between 2 and 4; and the first five hits are, by chance, of the best."""
    scores = np.linspace(10, 2, 4000)
    wrong = (scores < 4) & (np.arange(4000) % 3 == 0)
    cut = choose_cut(scores, wrong, np.linspace(9.9, 9.0, 5), 0.05)
    assert cut is not None and cut.score > 3.0


SPREAD = 2.0
CENTRE = 3.0


def overstepped(errors: Errors, n: int, max_error: float, looked_at: Errors, centre: float) -> tuple[float, float]:
    """In how many of 200 draws the true error above the cut is above the bound, and in how many there is a cut."""
    everybody = np.random.default_rng(99).normal(centre, SPREAD, 50_000)
    over = found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = rng.normal(centre, SPREAD, n)
        wrong = rng.random(n) < errors(scores)
        seen = rng.random(n) < looked_at(scores)
        cut = choose_cut(scores[seen], wrong[seen], rng.normal(centre, SPREAD, 1000), max_error)
        if cut is not None:
            found += 1
            over += float(errors(everybody[everybody >= cut.score]).mean()) > max_error
    return over / 200, found / 200


def _logistic(scores: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(scores)))


def _steep(scores: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(2 * scores)))


def _flat(scores: Floats) -> Floats:
    return np.full_like(scores, 0.06)


def _all(scores: Floats) -> Floats:
    return np.ones_like(scores)


def _few_above(scores: Floats) -> Floats:
    """Above the cut of yesterday one of ten is explored."""
    return np.where(scores < 2.5, 1.0, 0.1)


@pytest.mark.parametrize(
    "errors, n, max_error, looked_at, centre, finds",
    [
        pytest.param(_logistic, 2000, 0.05, _all, CENTRE, 0.9, id="all is seen"),
        pytest.param(_steep, 2000, 0.01, _all, CENTRE, 0.9, id="all is seen, 1 %"),
        pytest.param(_flat, 1000, 0.05, _all, CENTRE, 0.0, id="no score helps"),
        pytest.param(_logistic, 4000, 0.05, _few_above, CENTRE, 0.2, id="hits are seldom seen"),
        pytest.param(_logistic, 4000, 0.05, _few_above, CENTRE + 2, 0.9, id="hits are seldom seen, and many are sure"),
        pytest.param(_flat, 4000, 0.05, _few_above, CENTRE + 2, 0.0, id="hits are seldom seen, and no score helps"),
    ],
)
def test_the_bound_is_kept_in_nineteen_of_twenty_draws(
    errors: Errors, n: int, max_error: float, looked_at: Errors, centre: float, finds: float
) -> None:
    over, found = overstepped(errors, n, max_error, looked_at, centre)
    assert over <= 0.08  # 5 %, and what 200 draws may differ by
    assert found >= finds

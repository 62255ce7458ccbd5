"""CALIBRATION: from evidence to a probability, and from there to a cut that keeps an error bound. Pure functions.

`fit` is logistic regression with a Gaussian prior. `cross_fit` gives each observation the score of a model that has not
seen it, so that nothing is judged by what it was learned from. `choose_cut` then looks for the lowest cut whose error
is below the bound with confidence: the learn-then-test recipe (Angelopoulos et al. 2021; conformal risk control,
Angelopoulos et al. 2022). Cuts are tried from the strictest down and the lowest that passes is taken, though a stricter
one may have failed for want of observations. So the confidence is that of each test by itself;
tests/test_calibration.py simulates what that comes to.

The observations are no random sample of hits: requests below the cut are all observed, those above only when they are
explored. Given its score, though, whether a candidate is right does not depend on whether it was looked at. So hits are
split into strata by score, the error is estimated in each, and the strata are weighed by the traffic of today; the
upper bound of such a weighted sum of rare events is that of Fay and Feuer (1997).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FOLDS = 4
STRATA = 3  # of hits, by score, equally large: enough to see errors gather at the cut
LEAST_TRAFFIC = 30  # hits that strata are made of: of a few after a start, all may by chance be of the best
CUTS = 100  # tried at most
FEWEST = 20  # observations above a cut: fewer prove nothing at any bound that makes sense
_NORMAL_95 = 1.6448536269514722


class Cut(NamedTuple):
    """Where scores begin that keep the bound, and what that rests on."""

    score: float  # log-odds
    observed: int  # observations above it
    wrong: int  # of them
    upper: float  # of the error of hits above it, with 95 % confidence


def fit(x: Floats, y: Floats, prior: Floats, precision: float, start: Floats | None = None) -> Floats:
    """Return weights, shape (k,): the mode of a logistic regression of `y` (0 or 1) on `x` (n, k).

    Each weight has a normal prior around `prior` with the same `precision`. Newton's method, damped.
    """
    weights = prior.copy() if start is None else start.copy()
    for _ in range(15):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (y - p) - precision * (weights - prior)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + precision * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        longest = np.abs(step).max()
        weights += step * min(1.0, 3.0 / max(longest, 1e-12))
        if longest < 1e-3:
            break
    return weights


def cross_fit(x: Floats, y: Floats, prior: Floats, precision: float, start: Floats) -> tuple[Floats, Floats]:
    """Scores (log-odds), shape (n,), each from a fit to the other folds, and the mean of the weights of these fits.

    Every fourth observation is of one fold. The mean is for candidates to come: a fit to all observations is surer of
    itself than those that the scores are from, and would lift candidates over a cut among these.
    """
    scores = np.empty(len(y))
    weights = np.zeros(x.shape[1])
    fold = np.arange(len(y)) % FOLDS
    for number in range(FOLDS):
        out = fold == number
        fitted = fit(x[~out], y[~out], prior, precision, start)
        scores[out] = x[out] @ fitted
        weights += fitted / FOLDS
    return scores, weights


def choose_cut(scores: Floats, wrong: NDArray[np.bool_], traffic: Floats, max_error: float) -> Cut | None:
    """The lowest cut above which hits are wrong in at most `max_error` of cases, with 95 % confidence; None: no such.

    `scores` and `wrong`: of what was observed. `traffic`: scores of recent would-be hits, observed or not.
    """
    order = np.argsort(-scores, kind="stable")
    scores, wrong = scores[order], wrong[order]
    traffic = np.sort(traffic)[::-1]
    found = None
    for observed in range(FEWEST, len(scores) + 1, max(1, len(scores) // CUTS)):
        score = float(scores[observed - 1])
        upper = _upper_error(scores[:observed], wrong[:observed], traffic[traffic >= score])
        if upper <= max_error:
            found = Cut(score, observed, int(wrong[:observed].sum()), upper)
    return found


def _upper_error(scores: Floats, wrong: NDArray[np.bool_], traffic: Floats) -> float:
    """The 95 % upper bound of the share of wrong ones in `traffic`. All arrays: best first, above the cut."""
    if len(traffic) < LEAST_TRAFFIC:
        return upper_rate(int(wrong.sum()), len(scores))
    edges = [float(traffic[len(traffic) * part // STRATA]) for part in range(1, STRATA)]
    ends = [0, *(int(np.searchsorted(-scores, -edge)) for edge in edges), len(scores)]
    rate = variance = heaviest = 0.0
    for start, end in pairwise(ends):
        if end - start < 1:  # nothing was seen there: it may be as wrong as what lies below
            return upper_rate(int(wrong.sum()), len(scores))
        weight = 1 / STRATA / (end - start)
        errors = int(wrong[start:end].sum())
        rate += weight * errors
        variance += weight * weight * errors
        heaviest = max(heaviest, weight)
    # Fay and Feuer: as if one more error, of the greatest weight, had been seen.
    rate, variance = rate + heaviest, variance + heaviest**2
    return variance / (2 * rate) * _chi_square_95(2 * rate * rate / variance)


def upper_rate(events: int, trials: int) -> float:
    """The 95 % upper bound of a rate of rare events, Poisson's; 1 where nothing was tried."""
    return min(1.0, _chi_square_95(2 * (events + 1)) / 2 / trials) if trials else 1.0


def lower_rate(events: int, trials: int) -> float:
    """The 95 % lower bound of the same."""
    return _chi_square(2 * events, -_NORMAL_95) / 2 / trials if trials and events else 0.0


def _chi_square_95(freedom: float) -> float:
    return _chi_square(freedom, _NORMAL_95)


def _chi_square(freedom: float, normal: float) -> float:
    """Quantile of the chi-square distribution (Wilson and Hilferty 1931), within 1 % from 2 degrees of freedom on."""
    spread = 2 / (9 * freedom)
    return float(freedom * max(0.0, 1 - spread + normal * spread**0.5) ** 3)

"""WITNESSES: what speaks for a candidate, as numbers that a probability is made of.

A near question alone says little: how near is near differs from topic to topic. The other neighbours are witnesses.
Where ten stored questions around the one asked all have the same answer, that answer serves whatever the wording;
where the next neighbour has another answer and is nearly as near, the question lies on a border. So the margin to the
nearest other answer counts, and the share of neighbours that agree (nearest-neighbour classification with distance
weights: Dudani 1976; its use as a measure of trust: Jiang et al. 2018), beside the pair judge's word, and the record of
the entry: how often it was found right or wrong before.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, log1p
from typing import NamedTuple

import numpy as np

WITNESSES = 10  # neighbours that are heard; more add nothing, on seven labelled streams
STEEP = 20.0  # a neighbour that is 0.05 further away counts a third (1/e)
LONE_MARGIN = 0.1  # where no neighbour disagrees, the margin is that to the last one and this

NAMES = ("closeness", "similarity", "margin", "share", "kin", "log kin", "unanimous", "judge", "right", "wrong", "age")

# About the mean and the spread of each on labelled streams, so that one prior fits them all. Exactness buys nothing:
# the fit that follows finds its own scale.
_CENTRE = np.array([2.0, 0.83, 0.06, 0.8, 0.5, 1.5, 0.35, 1.5, 0.7, 0.1, 2.0])
_SPREAD = np.array([0.7, 0.10, 0.06, 0.25, 0.3, 0.7, 0.48, 2.5, 0.8, 0.3, 2.0])


class Record(NamedTuple):
    """How often an entry was found to serve, and not to."""

    right: int = 0
    wrong: int = 0


class Neighbour(NamedTuple):
    similarity: float
    kin: bytes  # equal for neighbours whose answers say the same; see kinship.py


def read_witnesses(
    proposed: Neighbour, around: Sequence[Neighbour], judged: float, record: Record, age_s: float
) -> tuple[float, ...]:
    """What speaks for `proposed`, one of `around` (nearest first), in the order of NAMES.

    `judged`: the pair judge's log-odds, 0 where there is none.
    """
    near = proposed.similarity
    heard = around[:WITNESSES]
    agree = disagree = 0.0
    kin = 0
    margin = None
    for similarity, name in heard:
        weight = exp((similarity - near) * STEEP)
        if name == proposed.kin:
            agree += weight
            kin += 1
        else:
            disagree += weight
            if margin is None:
                margin = near - similarity
    return (
        -log(max(1.01 - near, 1e-3)),
        near,
        near - heard[-1].similarity + LONE_MARGIN if margin is None else margin,
        agree / (agree + disagree),
        kin / WITNESSES,
        log1p(kin),
        float(margin is None),
        judged,
        log1p(record.right),
        log1p(record.wrong),
        log1p(age_s / 3600),
    )


def scaled(features: np.ndarray) -> np.ndarray:
    """Features, shape (n, k), on one scale, with a last column of ones: shape (n, k + 1), float64."""
    out = np.ones((len(features), len(NAMES) + 1))  # half the time of hstack, for a single row
    np.divide(features - _CENTRE, _SPREAD, out=out[:, :-1])
    return out

"""How well scores tell pairs with the same answer from others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PRECISIONS = (0.90, 0.95, 0.98)


class Figures(NamedTuple):
    """NaN where all pairs are of one kind."""

    area: float  # under the ROC curve: how often a same pair is above another one
    recalls: tuple[float, ...]  # at each of PRECISIONS: of the same pairs, how many are above the best such cut


def measure(same: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> Figures:
    """Equal scores are one step: no cut parts them, and the area counts half of each such couple."""
    positives, negatives = int(same.sum()), int((~same).sum())
    if not positives or not negatives:
        return Figures(math.nan, (math.nan,) * len(PRECISIONS))
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    right = np.cumsum(same[order])[ends]
    taken = ends + 1
    wrong = taken - right
    area = np.trapezoid(np.append(0, right), np.append(0, wrong)) / (positives * negatives)
    precision = right / taken
    return Figures(
        float(area), tuple(float(right[precision >= least].max(initial=0)) / positives for least in PRECISIONS)
    )

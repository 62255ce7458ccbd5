"""A labelled stream, replayed in order under one setting after another: a miss is stored, a hit is not.

Every replay looks at the same neighbours, found beforehand, and leaves out those that its cache would not hold. That
takes seconds where asking a real cache takes a minute; a test holds one against the other, hit by hit.

There is no time in it: answers do not expire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semcache.tuning.curves import Count, Point
from semcache.tuning.labelled import Vectors
from semcache.tuning.neighbours import Neighbours
from semcache.tuning.strategies import Strategy

MISS, EXACT, RIGHT, FALSE = range(4)  # what became of a row
Outcomes = npt.NDArray[np.uint8]  # (rows,)

ENOUGH = 0.3  # of what is served is false: looser settings are of no interest to anybody
ENOUGH_SEEN = 100


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows in order of time. Texts are numbered as they first appear."""

    name: str
    texts: Sequence[str]
    text_of: Sequence[int]  # (rows,)
    labels: Sequence[int]  # (rows,): equal ones have equal answers


def number_stream(name: str, rows: Sequence[tuple[str, str]]) -> Stream:
    """`rows`: texts, and what their answers are called."""
    texts: dict[str, int] = {}
    labels: dict[str, int] = {}
    text_of = [texts.setdefault(text, len(texts)) for text, _ in rows]
    return Stream(name, list(texts), text_of, [labels.setdefault(label, len(labels)) for _, label in rows])


def sweep(
    stream: Stream, near: Neighbours, strategy: Strategy, looked_at: int, advance: Callable[[], None] = lambda: None
) -> list[Point]:
    """A point for each setting, strictest first, until too much is false. `looked_at`: candidates of a request."""
    points = []
    for setting in strategy.grid:
        outcomes = play(stream, near, strategy, setting, looked_at)
        half = len(outcomes) // 2
        points.append(Point(setting, count(outcomes), (count(outcomes[:half]), count(outcomes[half:]))))
        advance()
        whole = points[-1].whole
        if whole.seen >= ENOUGH_SEEN and whole.false_rate > ENOUGH:
            break
    return points


def count(outcomes: Outcomes) -> Count:
    _, exact, right, false = np.bincount(outcomes, minlength=4).tolist()
    served = right + false
    return Count(len(outcomes), exact + served, exact, served, false, served)


def play(stream: Stream, near: Neighbours, strategy: Strategy, setting: float, looked_at: int) -> Outcomes:
    questions = strategy.words.questions
    vectors = questions.vectors
    floor = strategy.floor(setting)
    outcomes = np.zeros(len(stream.text_of), np.uint8)
    label_of = np.full(len(stream.texts), -1, np.int64)  # of the answer that is stored for a text; -1: none is
    may_match = np.ones(len(stream.texts), bool)
    if strategy.heeds_rules:
        may_match &= ~np.asarray(questions.exact_only, bool)
    kept = _Kept(vectors)
    is_worth_a_look = (near.cosines[:, 0] >= floor).tolist() if near.cosines.shape[1] else [False] * len(outcomes)
    for row, (text, label) in enumerate(zip(stream.text_of, stream.labels, strict=True)):
        if label_of[text] >= 0:
            outcomes[row] = EXACT
            continue
        if strategy.heeds_rules and questions.unstored[text]:
            continue
        if is_worth_a_look[row] and may_match[text]:
            served = _find(row, text, near, strategy, setting, floor, looked_at, label_of, may_match, kept)
            if served is not None:
                outcomes[row] = RIGHT if label_of[served] == label else FALSE
                continue
        label_of[text] = label
        if may_match[text]:
            kept.add(text)
    return outcomes


class _Kept:
    """The vectors of what is stored, to search in where a row's list of neighbours ends too soon."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._rows = np.empty_like(vectors)
        self._texts = np.empty(len(vectors), np.int64)
        self._number = 0

    def add(self, text: int) -> None:
        self._rows[self._number] = self._vectors[text]
        self._texts[self._number] = text
        self._number += 1

    def nearest(self, text: int, number: int) -> tuple[list[int], list[float]]:
        cosines = self._rows[: self._number] @ self._vectors[text]
        places = np.argpartition(-cosines, min(number, len(cosines)) - 1)[:number] if len(cosines) else np.arange(0)
        places = places[np.argsort(-cosines[places], kind="stable")]
        return self._texts[places].tolist(), cosines[places].tolist()


def _find(
    row: int,
    text: int,
    near: Neighbours,
    strategy: Strategy,
    setting: float,
    floor: float,
    looked_at: int,
    label_of: npt.NDArray[np.int64],
    may_match: npt.NDArray[np.bool_],
    kept: _Kept,
) -> int | None:
    """The stored text whose answer is served: the nearest of the `looked_at` nearest that passes."""
    places, cosines = near.places[row], near.cosines[row]
    is_candidate = (cosines >= floor) & (places >= 0)
    is_cut_off = bool(is_candidate[-1])
    is_candidate &= (label_of[places] >= 0) & may_match[places]
    found = np.flatnonzero(is_candidate)[:looked_at]
    if is_cut_off and len(found) < looked_at:
        texts, values = kept.nearest(text, looked_at)
    else:
        texts, values = places[found].tolist(), cosines[found].tolist()
    for stored, cosine in zip(texts, values, strict=True):
        if cosine < floor:
            break
        if strategy.number(text, stored, cosine) >= setting:
            return int(stored)
    return None

"""What the pair judge looks at beside the vectors: how the words of two questions meet, as a row of numbers.

Each word has a weight, how much it tells (of "please" nothing, of "refund" much), and a short vector, so that "buy"
meets "purchase" half-way where equal words meet fully; both come with weights that look at words. A question is read
once and remembered; all stored questions of a call are then compared with the asked one by a few operations on whole
arrays. Every number is the same when the two questions change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from semcache.cache.remember import remember
from semcache.cache.vocabulary import is_general
from semcache.cache.words import MARKS, read_words

Floats = npt.NDArray[np.float32]

NAMES = (
    "cosine",
    "nearness",  # the same, stretched where it is near 1
    "exact_least",  # the weight of the words that the other has too, as a share, of the question with the smaller share
    "exact_most",  # ... and of the other one
    "soft_least",  # the same, where a similar word counts as far as it is similar
    "soft_most",
    "worst_least",  # the weightiest word that meets none
    "worst_most",
    "lacking_least",  # the weight of all words that meet none, not as a share
    "lacking_most",
    "words_least",  # how many words of weight the other lacks
    "words_most",
    "rare_least",  # how many words that are not ordinary English the other lacks: names, codes, typos
    "rare_most",
    "figures",  # how many tokens with a digit only one of them has
    "order",  # the share of neighbouring words that are neighbours in the other too
    "letters",  # the share of runs of three letters that both have
    "ends",  # the share of the shorter that both end with
    "asking",  # both ask, with different words: when, how, can
    "denials",  # how many words of denial one has more
)
_TELLING = 0.35  # a word of this weight or more has a meaning of its own
_MOST_WORDS = 64  # of a question that are compared: enough for a paragraph; it bounds what a caller can cost
_ASKING = frozenset(
    "who whose whom what which when where why how can do doe is are will should would could may".split()
)
_DENIALS = frozenset("not no never none without nor neither cannot nothing nobody".split())


class Words(NamedTuple):
    """What the judge knows of words: by stem, the weight from 0 to 1 and the place of its vector."""

    weights: dict[str, float]
    unknown: float  # the weight of any other
    places: dict[str, int]
    vectors: Floats  # (words, d) of unit length; the last row is zero: it meets no other word


class Reading(NamedTuple):
    """One question, read."""

    ids: npt.NDArray[np.int64]  # of its different words, in order of appearance
    weights: Floats
    total: float  # of the weights
    telling: Floats  # 1 where the word has a meaning of its own
    rare: Floats  # 1 where it is not ordinary English
    vectors: Floats  # (words, d)
    joints: frozenset[tuple[str, str]]  # neighbouring words
    letters: frozenset[str]  # runs of three
    stems: tuple[str, ...]
    figures: frozenset[str]
    asking: frozenset[str]
    denials: int


class Reader:
    """Reads questions, and pairs of them."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self.read = remember(self._read)

    def _read(self, question: str) -> Reading:
        words = self._words
        found = [word for word in read_words(question) if word not in MARKS][:_MOST_WORDS]
        stems = tuple(word.stem for word in found) or ("",)
        texts = {word.stem: word.text for word in found}
        different = list(dict.fromkeys(stems))
        weights = np.array([words.weights.get(stem, words.unknown) for stem in different], np.float32)
        places = [words.places.get(stem, -1) for stem in different]
        joined = " ".join(word.text for word in found)
        return Reading(
            ids=np.array([hash(stem) for stem in different], np.int64),
            weights=weights,
            total=float(weights.sum()) + 1e-6,
            telling=(weights >= _TELLING).astype(np.float32),
            rare=np.array([not is_general(texts.get(stem, "")) for stem in different], np.float32),
            vectors=words.vectors[places],
            joints=frozenset(zip(("", *stems), (*stems, ""), strict=True)),
            letters=frozenset(joined[at : at + 3] for at in range(max(len(joined) - 2, 1))),
            stems=stems,
            figures=frozenset(word.text for word in found if any(map(str.isdigit, word.text))),
            asking=frozenset(stems[:4]) & _ASKING,
            denials=sum(stem in _DENIALS for stem in stems),
        )

    def compare(self, asked: str, stored: Sequence[str], cosines: Floats) -> Floats:
        """Return a row for each stored question, shape (n, len(NAMES)). `n` is at least 1."""
        one = self.read(asked)
        others = [self.read(each) for each in stored]
        sizes = [len(each.ids) for each in others]
        starts = np.cumsum([0, *sizes[:-1]])
        ids = np.concatenate([each.ids for each in others])
        weights = np.concatenate([each.weights for each in others])

        equal = (one.ids[:, None] == ids).astype(np.float32)  # (words asked, words of all stored)
        alike = np.maximum(equal, one.vectors @ np.concatenate([each.vectors for each in others]).T)
        # How well each word meets its best: (words asked, n), and (words of all stored,)
        equal_asked, equal_stored = np.maximum.reduceat(equal, starts, axis=1), equal.max(axis=0)
        alike_asked, alike_stored = np.maximum.reduceat(alike, starts, axis=1), alike.max(axis=0)
        apart_asked = one.weights[:, None] * (1 - alike_asked)
        apart_stored = weights * (1 - alike_stored)
        only_asked, only_stored = 1 - equal_asked, 1 - equal_stored
        totals = np.array([each.total for each in others], np.float32)
        lacking_asked, lacking_stored = apart_asked.sum(axis=0), np.add.reduceat(apart_stored, starts)
        both_ways = (
            (
                one.weights @ equal_asked / one.total,
                np.add.reduceat(weights * equal_stored, starts) / totals,
            ),
            (1 - lacking_asked / one.total, 1 - lacking_stored / totals),
            (apart_asked.max(axis=0), np.maximum.reduceat(apart_stored, starts)),
            (lacking_asked, lacking_stored),
            (
                one.telling @ only_asked,
                np.add.reduceat(np.concatenate([each.telling for each in others]) * only_stored, starts),
            ),
            (
                one.rare @ only_asked,
                np.add.reduceat(np.concatenate([each.rare for each in others]) * only_stored, starts),
            ),
        )
        rows = np.empty((len(others), len(NAMES)), np.float32)
        rows[:, 0] = cosines
        rows[:, 1] = stretch(cosines)
        for number, (mine, theirs) in enumerate(both_ways):
            rows[:, 2 + 2 * number] = np.minimum(mine, theirs)
            rows[:, 3 + 2 * number] = np.maximum(mine, theirs)
        rows[:, 14:] = [_shape(one, other) for other in others]
        return rows


def stretch(cosines: Floats) -> Floats:
    """From 0.98 to 0.99 is as far as from 0.90 to 0.95, about."""
    return -np.log(1.01 - np.minimum(cosines, 1.0))


def _shape(one: Reading, other: Reading) -> tuple[float, ...]:
    """What is left of NAMES, from "figures" on."""
    shorter = min(len(one.stems), len(other.stems))
    ends = 0
    while ends < shorter and one.stems[-1 - ends] == other.stems[-1 - ends]:
        ends += 1
    joints, letters = len(one.joints & other.joints), len(one.letters & other.letters)
    return (
        len(one.figures ^ other.figures),
        joints / (len(one.joints) + len(other.joints) - joints),
        letters / (len(one.letters) + len(other.letters) - letters),
        ends / shorter,
        bool(one.asking and other.asking and not one.asking & other.asking),
        abs(one.denials - other.denials),
    )

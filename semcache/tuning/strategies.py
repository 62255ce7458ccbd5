"""Strategies: what may decide about a hit, each with the one setting that is swept from strict to loose.

A strategy gives a candidate one number: with the setting at or below that number, the candidate is served. So words are
looked at once for each pair, however many settings are tried; pairs and replays share what was found out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from semcache.cache.guards import find_veto
from semcache.cache.policy import rule
from semcache.config import Cache, Match
from semcache.tuning.labelled import Vectors
from semcache.types import Ask, Traits

FLOOR = 0.70  # cosine below which nothing is looked at, where something else than the cosine decides
THRESHOLDS = tuple(round(0.99 - 0.01 * step, 2) for step in range(30))
CHANCES = (0.995, 0.99, 0.98, 0.97, 0.96, 0.95, *(round(0.94 - 0.02 * step, 2) for step in range(36)))
NEVER = -1.0  # the number of a candidate that no setting lets pass

Name = Literal["threshold", "+ guards", "+ judge", "+ reranker"]
SWEPT: dict[Name, str] = {
    "threshold": "threshold",
    "+ guards": "threshold",
    "+ judge": "judge",
    "+ reranker": "reranker_min",
}
# The threshold alone is there to compare with. Labelled files seldom hold the twins that guards are for.
RECOMMENDED: tuple[Name, ...] = ("+ guards", "+ judge", "+ reranker")


class Judge(Protocol):
    def judge(
        self, asked: str, vector: npt.NDArray[np.float32], stored: Sequence[str], vectors: Vectors
    ) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Questions:
    """Texts with their vectors, and which of them the cache never answers by meaning."""

    texts: Sequence[str]
    vectors: Vectors
    exact_only: Sequence[bool]  # about now, about somebody's own affairs, or without a meaning of its own
    unstored: Sequence[bool]  # ... of which not even an equal one is answered


def read_questions(texts: Sequence[str], vectors: Vectors, cache: Cache, match: Match) -> Questions:
    rulings = [rule(_ask(text), cache, match) for text in texts]
    return Questions(
        texts,
        vectors,
        [ruling.exact_only is not None or not vector.any() for ruling, vector in zip(rulings, vectors, strict=True)],
        [ruling.skip_lookup is not None or not ruling.may_store for ruling in rulings],
    )


def _ask(question: str) -> Ask:
    return Ask("program", "ask", "ask", "", question, b"", False, False, None, Traits(), b"")


@dataclass
class Words:
    """What guards, judge and reranker say of pairs of questions, each asked once."""

    questions: Questions
    match: Match
    judge: Judge | None = None
    reranker: Callable[[str, str], float] | None = None
    _vetoed: dict[tuple[int, int], bool] = field(default_factory=dict)
    _judged: dict[tuple[int, int], float] = field(default_factory=dict)
    _reranked: dict[tuple[int, int], float] = field(default_factory=dict)

    def vetoes(self, asked: int, stored: int) -> bool:
        known = self._vetoed.get((asked, stored))
        if known is None:
            texts = self.questions.texts
            known = find_veto(texts[asked], texts[stored], self.match.guards) is not None
            self._vetoed[asked, stored] = known
        return known

    def probability(self, asked: int, stored: int) -> float:
        """The pair judge's."""
        known = self._judged.get((asked, stored))
        if known is None:
            assert self.judge is not None
            texts, vectors = self.questions.texts, self.questions.vectors
            found = self.judge.judge(texts[asked], vectors[asked], [texts[stored]], vectors[stored][np.newaxis])
            known = self._judged[asked, stored] = float(found[0])
        return known

    def reranked(self, asked: int, stored: int) -> float:
        known = self._reranked.get((asked, stored))
        if known is None:
            assert self.reranker is not None
            texts = self.questions.texts
            known = self._reranked[asked, stored] = self.reranker(texts[asked], texts[stored])
        return known


@dataclass(frozen=True)
class Strategy:
    """One way to decide, over the words of one set of questions."""

    name: Name
    grid: tuple[float, ...]  # strictest first
    words: Words

    @property
    def swept(self) -> str:
        return SWEPT[self.name]

    @property
    def heeds_rules(self) -> bool:
        """Whether questions that are never answered by meaning are left to the exact tier."""
        return self.name != "threshold"

    def floor(self, setting: float) -> float:
        """The least cosine that is looked at."""
        if self.swept == "threshold":
            return setting
        return self.words.match.reranker_band[0] if self.name == "+ reranker" else FLOOR

    def number(self, asked: int, stored: int, cosine: float) -> float:
        """The strictest setting under which the stored answer is served; NEVER where there is none.

        The cosine is at least the floor.
        """
        if self.name == "threshold":
            return cosine
        if self.words.vetoes(asked, stored):
            return NEVER
        if self.name == "+ guards":
            return cosine
        match = self.words.match
        if self.name == "+ judge":
            return self.words.probability(asked, stored)
        if match.judge is not None and self.words.judge and self.words.probability(asked, stored) < match.judge:
            return NEVER
        return 1.0 if cosine >= match.reranker_band[1] else self.words.reranked(asked, stored)

    def lines(self, setting: float) -> dict[str, Any]:
        """What to write into the section `match` for this."""
        match = self.words.match
        guards = [] if self.name == "threshold" else list(match.guards)
        written: dict[str, Any] = {"guards": guards} if guards != list(Match().guards) else {}
        match self.name:
            case "+ judge":
                return {"threshold": FLOOR, "judge": setting, **written}
            case "+ reranker":
                asked = {"reranker": match.reranker, "reranker_min": setting}
                return {**asked, "reranker_band": list(match.reranker_band), **written}
            case _:
                return {"threshold": setting, **written}


def choose_strategies(words: Words) -> list[Strategy]:
    """Those that can be tried with what there is."""
    chosen = [Strategy("threshold", THRESHOLDS, words), Strategy("+ guards", THRESHOLDS, words)]
    if words.judge is not None:
        chosen.append(Strategy("+ judge", CHANCES, words))
    if words.reranker is not None:
        chosen.append(Strategy("+ reranker", CHANCES, words))
    return chosen

"""What should be a number and is none speaks for nothing: nothing is served, or called the same, because of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from semcache.cache.compare import Cuts, Texts, compare_vectors
from semcache.cache.conversation import Past, find_context_objection
from semcache.cache.kinship import Kin
from semcache.cache.lookup import Lookup
from semcache.cache.policy import rule
from semcache.cache.verify import Verifier
from semcache.config import Cache
from semcache.config import Match as MatchSettings
from semcache.errors import CacheFault
from semcache.types import Entry, Reason, Turn, Vector
from tests.entries import make_entry
from tests.fakes import Clock, WordsEmbedder
from tests.test_lookup import ASK, KEY, PARCEL, Shelf

NAN = float("nan")


class Says:
    """A pair judge of one word."""

    stamp = "one-word"

    def __init__(self, word: float) -> None:
        self._word = word

    def judge(
        self,
        asked: str,
        vector: Vector,
        stored: Sequence[str],
        vectors: NDArray[np.float32],
        *,
        guards_passed: bool = False,
    ) -> NDArray[np.float32]:
        return np.full(len(stored), self._word, np.float32)


@pytest.mark.parametrize("word, reason", [(0.95, None), (0.2, Reason.JUDGE), (NAN, Reason.JUDGE)])
async def test_a_pair_judge_that_gives_no_number_lets_nothing_pass(word: float, reason: Reason | None) -> None:
    embedder = WordsEmbedder()
    shelf = Shelf(embedder)
    shelf.add(PARCEL + " thanks")
    lookup = Lookup(shelf, embedder, Verifier(shelf, Clock(), judge=Says(word)))
    ruling = rule(ASK, Cache(ttl=60, grace=30), MatchSettings(threshold=0.8, judge=0.9))
    finding = await lookup.find(ASK, KEY, ruling, {})
    assert (finding.match is None, finding.reason) == (reason is not None, reason)


def test_answers_whose_similarity_is_no_number_are_in_doubt() -> None:
    texts = Texts("It opens early in the day.", "The doors open in the morning.")
    assert compare_vectors(texts, 0.99, Cuts(0.9, 0.5)) is True
    assert compare_vectors(texts, NAN, Cuts(0.9, 0.5)) is None


def test_turns_whose_similarity_is_no_number_are_not_near() -> None:
    vector = WordsEmbedder().vector("what about the tower")
    settings = MatchSettings(context="similar")
    ruling = rule(replace(ASK, turns=(Turn("user", "the tower"),)), Cache(), settings)
    entry = replace(make_entry("how tall is it"), turns=("that tower",), turns_vector=vector)
    assert find_context_objection(Past(("the tower",), vector), entry, replace(ruling, guards=())) is None
    broken = replace(entry, turns_vector=np.full_like(vector, NAN))
    assert find_context_objection(Past(("the tower",), vector), broken, replace(ruling, guards=())) is Reason.CONTEXT


def test_an_answer_that_cannot_be_read_is_its_own_kin_alone() -> None:
    def say(entry: Entry) -> str | None:
        if entry.question == "broken":
            raise CacheFault("this answer cannot be read")
        return "the same"

    kin = Kin(say)
    one, other, broken = (make_entry(question) for question in ("one", "other", "broken"))
    assert kin.name(one) == kin.name(other) != kin.name(broken)
    assert kin.name(broken) == kin.name(broken)

"""The attack on a shared cache, with an embedder that tells no order of words: there a shuffled question collides."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests.attack import DEFENCES, VICTIMS, attack, settings_of
from semcache.cache.personal import find_personal
from semcache.cache.time_bound import is_time_bound
from tests.fakes import WordsEmbedder

SHUFFLED = [" ".join(reversed(question.rstrip("?").split())) for question, _ in VICTIMS]


@pytest.mark.parametrize("name", DEFENCES)
async def test_what_collides_hijacks_until_somebody_must_vouch_for_it(name: str) -> None:
    result = await attack(SHUFFLED, settings_of(DEFENCES[name], 0.95), WordsEmbedder())  # type: ignore[arg-type]
    if name == "threshold alone":
        assert result.hijacked == tuple(range(len(VICTIMS)))
    if "min_uses" in name:
        assert result.hijacked == ()


async def test_honest_askers_are_answered_whatever_the_defence() -> None:
    embedder = WordsEmbedder()
    near = sum(float(np.dot(embedder.vector(one), embedder.vector(other))) >= 0.8 for one, other in VICTIMS)
    assert near > len(VICTIMS) / 2
    for name, defence in DEFENCES.items():
        if "judge" in name:  # it knows the cosines of the real embedder, not those of words
            continue
        result = await attack([], settings_of(defence, 0.8), embedder)  # type: ignore[arg-type]
        assert result.hijacked == () and result.kept >= near - 2


def test_no_victim_asks_what_is_never_answered_by_meaning() -> None:
    questions = {question for pair in VICTIMS for question in pair}
    assert len(questions) == 2 * len(VICTIMS)
    assert [question for question in questions if find_personal(question) or is_time_bound(question)] == []

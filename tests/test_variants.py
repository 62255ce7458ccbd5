"""Generated pairs: each kind changes what it says, or nothing that matters, and the same seed gives the same pairs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.tuning.variants import CHANGES, HARMLESS, make_variants


@pytest.mark.parametrize(
    "kind, text, copies",
    [
        ("denial", "Can I pay later?", {"Can I not pay later?"}),
        ("denial", "Why did it not arrive?", {"Why did it arrive?"}),
        ("exchange", "Convert from EUR to USD", {"Convert from USD to EUR"}),
        ("polarity", "How do I Enable alerts?", {"How do I Disable alerts?"}),
        ("number", "Room 7", {"Room 8", "Room 6", "Room 70", *(f"Room {n}" for n in range(9, 17))}),
        ("unit", "after 3 weeks", {f"after 3 {unit}" for unit in ("hours", "days", "months", "years")}),
        ("question", "When is it open?", {"Where is it open?", "Why is it open?", "Who is it open?"}),
        ("clauses", "What do I do if my card is lost?", {"If my card is lost, what do I do?"}),
        ("contraction", "What is the limit?", {"What's the limit?"}),
        (
            "thanks",
            "Where is my parcel?",
            {f"Where is my parcel{end}?" for end in (", please", ", thanks", ", thank you", " please")},
        ),
        ("case", "Where is it?", {"where is it?"}),
        ("synonym", "can I buy it", {"can I purchase it"}),
    ],
)
def test_a_kind_changes_what_it_says(kind: str, text: str, copies: set[str]) -> None:
    assert {**CHANGES, **HARMLESS}[kind](text, random.Random(3)) in copies


@pytest.mark.parametrize("kind", sorted(CHANGES))
def test_where_there_is_nothing_to_change_there_is_no_variant(kind: str) -> None:
    assert CHANGES[kind]("hello there", random.Random(3)) is None


def test_the_same_seed_gives_the_same_variants() -> None:
    texts = ["Can I fly from Paris to Rome on Monday?", "Enable two alerts please"]
    assert list(make_variants(texts, seed=1, each=2)) == list(make_variants(texts, seed=1, each=2))
    assert {variant.same for variant in make_variants(texts, seed=1)} == {True, False}


@settings(deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.integers(0, 99))
def test_any_text_gives_copies_that_differ_from_it(text: str, seed: int) -> None:
    for variant in make_variants([text], seed, each=3):
        assert variant.copy != text
        assert variant.copy.strip()
        assert variant.same == (variant.kind in HARMLESS)

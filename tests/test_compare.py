"""Two answers that say the same, two that do not, and those of which nobody can tell."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.compare import (
    MOST_PIECES,
    PIECE_CHARS,
    Cuts,
    Texts,
    compare_texts,
    compare_vectors,
    joined,
    pieces_of,
)

CUTS = Cuts(alike=0.85, differ=0.6)
LONG = "Refunds are made to the card that you paid with, and take some days to appear on your statement. " * 3

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "fresh, stored",
    [
        ("Four days.", "  Four\n days. "),
        ("Grösse", "Gro\u0308sse"),
        ('{"a": 1, "b": [true, "x y"]}', '{"b":[true,"x y"],"a":1}'),
        ('```json\n{"a": 1}\n```', '{"a":1}'),
        ("```\nprint(1)\n```", "print(1)"),
    ],
)
def test_blanks_fences_and_the_order_of_members_say_nothing(fresh: str, stored: str) -> None:
    assert compare_texts(fresh, stored) is True


@pytest.mark.parametrize(
    "fresh, stored",
    [
        ('{"intent": "cancel"}', '{"intent": "change"}'),
        ('{"sure": 1}', '{"sure": true}'),
        ('{"a": 1}', '{"a": 1, "b": null}'),
        ("[]", "{}"),
        ("[[], 1]", "[1]"),
        ('{"a": {}}', '{"a": null}'),
        ('{"a": 3}', '{"a": 4}'),
    ],
)
def test_a_field_that_differs_is_another_answer(fresh: str, stored: str) -> None:
    assert compare_texts(fresh, stored) is False


def test_of_json_only_the_sentences_that_differ_are_embedded() -> None:
    fresh, stored = '{"id": 7, "text": "it is here"}', '{"id": 7, "text": "here it is"}'
    assert compare_texts(fresh, stored) == Texts("it is here", "here it is")


@given(trees)
def test_a_tree_says_what_it_says_however_it_is_written(tree: object) -> None:
    written = json.dumps(tree), json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False)
    outcome = compare_texts(*written)
    assert outcome is True or not isinstance(tree, dict | list)


@pytest.mark.parametrize(
    "fresh, stored, similarity",
    [
        ("Yes, you can.", "No, you cannot.", 0.95),
        ("Within 30 days.", "Within 14 days.", 0.97),
        ("Shipping is free.", "Shipping is not free.", 0.97),
        ("It arrives on Tuesday.", "It arrives on Thursday.", 0.95),
        ("Run `git log --oneline`.", "Run `git log --graph`.", 0.9),
        (LONG, "The trail takes about four hours, and there is no shade on its upper half.", 0.2),
    ],
)
def test_another_detail_of_a_short_answer_or_another_topic_is_another_answer(
    fresh: str, stored: str, similarity: float
) -> None:
    assert compare_vectors(Texts(fresh, stored), similarity, CUTS) is False


@pytest.mark.parametrize(
    "fresh, stored, similarity",
    [
        ("You may cancel at any time.", "You can cancel whenever you like.", 0.9),
        (LONG + "Ask again then.", LONG + "Then ask again.", 0.9),
        ("It takes 3 days.", "It takes three days.", 0.95),
    ],
)
def test_near_answers_with_the_same_details_say_the_same(fresh: str, stored: str, similarity: float) -> None:
    assert compare_vectors(Texts(fresh, stored), similarity, CUTS) is True


@pytest.mark.parametrize(
    "fresh, stored, similarity",
    [
        ("You may cancel it.", "Cancelling is possible.", 0.7),  # between the cuts
        ("Paris", "The capital of France is Paris.", 0.5),  # said within the other
        ("Yes.", "Yes, you can.", 0.37),
        (LONG + "It takes 5 days.", LONG + "It takes 7 days.", 0.97),  # a number, in a long answer
        ("The meeting is in Berlin.", "The meeting is in Munich.", 0.9),  # a name
    ],
)
def test_doubt_is_no_evidence(fresh: str, stored: str, similarity: float) -> None:
    assert compare_vectors(Texts(fresh, stored), similarity, CUTS) is None


@given(texts, texts, st.floats(-1, 1))
def test_the_order_of_two_answers_does_not_matter(one: str, other: str, similarity: float) -> None:
    assert compare_vectors(Texts(one, other), similarity, CUTS) == compare_vectors(Texts(other, one), similarity, CUTS)


@given(st.lists(st.text("ab \n.!?", max_size=900), max_size=12).map("".join))
def test_pieces_are_the_whole_answer_and_none_is_long(text: str) -> None:
    pieces = pieces_of(text)
    if pieces is not None:
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(0 < len(piece) <= PIECE_CHARS for piece in pieces)
        assert len(pieces) <= MOST_PIECES


def test_an_answer_that_is_too_long_is_not_cut() -> None:
    assert pieces_of("word " * PIECE_CHARS * MOST_PIECES) is None


def test_the_pieces_of_an_answer_are_one_vector_of_unit_length() -> None:
    one, other = np.eye(2, dtype=np.float32)
    assert np.allclose(joined([one, other]), [0.5**0.5, 0.5**0.5])
    assert np.allclose(joined([one, -one]), 0)

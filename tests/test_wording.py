"""What a detail in one question only says, by how the rest is worded."""

import pytest

from semcache.cache.wording import are_requests, is_context, other_words

CONTEXT = [
    (
        "What is the best phone in Kenya?",
        "Which phones are the best to buy?",
        1,
        "other words, of general interest",
    ),
    ("Who will win the election of 2031?", "Which party is going to win?", 1, "a year that goes without saying"),
]
DETAIL = [
    ("What is the weather in Oslo?", "What's the weather like?", 1, "nothing else differs"),
    ("Find me a cheap hotel in Oslo", "I need a room somewhere nice", 1, "requests, however they are worded"),
    ("weather in oslo", "temperature outside", 1, "no questions by their form: what is said is what is wanted"),
    ("What can I do in Kenya?", "Where should I go and what should I see?", 1, "the asker's own affairs"),
]


@pytest.mark.parametrize(("asked", "stored", "detail", "why"), CONTEXT)
def test_a_detail_is_context_where_all_is_worded_otherwise(asked: str, stored: str, detail: int, why: str) -> None:
    assert is_context(asked, stored, detail, 0), why
    assert is_context(stored, asked, detail, 0), why


@pytest.mark.parametrize(("asked", "stored", "detail", "why"), DETAIL)
def test_a_detail_counts_in_requests_and_equal_wording(asked: str, stored: str, detail: int, why: str) -> None:
    assert not is_context(asked, stored, detail, 0), why
    assert not is_context(stored, asked, detail, 0), why


def test_small_words_and_inflections_are_no_other_words() -> None:
    assert other_words("How do you open an account?", "Please tell me how to open the accounts") == 0
    assert other_words("open an account", "close an account") == 2
    assert are_requests("open an account", "I want an account")
    assert not are_requests("open an account", "Who opens accounts?")

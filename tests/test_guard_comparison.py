"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_comparison import comparison_differ

DIFFERENT = [
    ("What is the cheapest flight to Rome?", "What is the most expensive flight to Rome?", "two ways to name the ends"),
    ("Which is the cheapest plan?", "Which is the priciest plan?", "superlatives"),
    ("What is the best phone?", "What is the worst phone?", "irregular superlatives"),
    ("Which of them is better?", "Which of them is worse?", "irregular comparatives"),
    ("Which is bigger, Mars or Venus?", "Which is smaller, Mars or Venus?", "comparatives"),
    ("What is the biggest city of Peru?", "What is the smallest city of Peru?", "superlatives"),
    ("What is the largest lake?", "What is the smallest lake?", "another word for big"),
    ("Who was the first president?", "Who was the last president?", "first and last"),
    ("Show me the first episode", "Show me the final episode", "first and final"),
    ("I need at least 5 GB", "I need at most 5 GB", "limits"),
    ("Rooms for more than 10 people", "Rooms for less than 10 people", "more than and less than"),
    ("Rooms for more than 10 people", "Rooms for fewer than 10 people", "more than and fewer than"),
    ("What is the minimum age to drive?", "What is the maximum age to drive?", "limits by name"),
    ("What is the min value?", "What is the max value?", "limits, shortened"),
    ("What is the easiest language to learn?", "What is the hardest language to learn?", "y becomes i"),
    ("Which mountain is the highest?", "Which mountain is the lowest?", "superlatives"),
    ("What is the least expensive plan?", "What is the most expensive plan?", "least and most"),
    ("Who is the oldest person alive?", "Who is the youngest person alive?", "of people"),
    ("Is the older model better?", "Is the newer model better?", "of things"),
    ("What is the earliest flight?", "What is the latest flight?", "times"),
    ("Is there an earlier train?", "Is there a later train?", "times, compared"),
    ("What is the fastest car?", "What is the slowest car?", "speed"),
    ("How can I spend more time outside?", "How can I spend less time outside?", "more and less of a thing"),
    ("How can I be more polite?", "How can I be less polite?", "more and less of a quality"),
    ("How can I be more careful?", "How can I be less careful?", "a quality of no table"),
    ("How can I be more visible?", "How can I be more invisible?", "opposites in one degree"),
    ("Sort the list ascending", "Sort the list descending", "order"),
    ("Show the top rows", "Show the bottom rows", "ends of a list"),
    ("Where is the nearest pharmacy?", "Where is the farthest pharmacy?", "distance"),
    ("Who is the richest man?", "Who is the poorest man?", "money"),
    ("What is the longest river?", "What is the shortest river?", "length"),
    ("Who is the tallest player?", "Who is the shortest player?", "height"),
    ("What is the lightest laptop?", "What is the heaviest laptop?", "weight"),
    ("What is the hottest month?", "What is the coldest month?", "doubled letters"),
    ("Which is the safest city?", "Which is the most dangerous city?", "safety"),
    ("What is the strongest material?", "What is the weakest material?", "strength"),
    ("Is tea healthier than coffee?", "Is tea less healthy than coffee?", "er against less"),
    ("Is Mars hotter than Venus?", "Is Mars colder than Venus?", "the same two, the other way round"),
    ("Which city has the most rain?", "Which city has the least rain?", "amounts"),
    ("Who made the fewest mistakes?", "Who made the most mistakes?", "counts"),
    ("What is the widest street?", "What is the narrowest street?", "width"),
    ("What is the happiest country?", "What is the saddest country?", "moods"),
    ("Is there a quieter room?", "Is there a louder room?", "noise"),
    ("What is your greatest fear?", "What is your smallest fear?", "greatest and smallest"),
    ("Find the cleanest beach", "Find the dirtiest beach", "cleanness"),
]

SAME = [
    ("What is the cheapest flight?", "What is the least expensive flight?", "two ways to name one end"),
    ("What is the cheapest flight?", "What is the most affordable flight?", "two ways to name one end"),
    ("How can I be more visible?", "How can I be less invisible?", "an opposite, turned"),
    ("Are PCs cheaper than consoles?", "Are consoles more expensive than PCs?", "both changed places"),
    ("Is Mars smaller than Earth?", "Is Earth bigger than Mars?", "both changed places"),
    ("What is the best phone?", "Which phone is better?", "people write better for best"),
    ("What is the biggest city?", "What is the largest city?", "two words for big"),
    ("What is the minimum salary?", "What is the lowest salary?", "two words for a limit"),
    ("What is the maximum salary?", "What is the highest salary?", "two words for a limit"),
    ("Is it more or less done?", "Is it less or more done?", "both"),
    ("Rooms for fewer than 5", "Rooms for less than 5", "of counts and amounts"),
    ("Is a bigger screen always better?", "Is it always better to have a bigger screen?", "another order"),
    ("What is the quickest way?", "What is the fastest way?", "two words for speed"),
    ("What is the simplest way?", "What is the easiest way?", "two words for ease"),
    ("What is the hardest exam?", "What is the toughest exam?", "two words for hard"),
    ("Who is the wealthiest man?", "Who is the richest man?", "two words for rich"),
    ("Where is the nearest bank?", "Where is the closest bank?", "two words for near"),
    ("Which laptop is the lightest?", "What's the lightest laptop?", "another order"),
    ("How do I get more followers?", "How can I get more followers?", "no degree changed"),
    ("Which is better, tea or coffee?", "Is tea better or coffee?", "the same degree"),
    ("What is a good laptop?", "What is the best laptop?", "one has a degree"),
    ("How do I become smart?", "How do I become smarter?", "one has a degree"),
    ("What are the best violins?", "What are some great violins?", "one has a degree"),
    ("Where can I eat cheap?", "Where can I eat cheaper?", "one has a degree"),
    ("When is the first train?", "When does the first train leave?", "the same rank"),
    ("Who won the last cup?", "Who was the winner of the last cup?", "the same rank"),
    ("What is the top speed?", "What is the maximum speed?", "two words for a limit"),
    ("How do I lose weight?", "How can I lose some weight?", "no degrees"),
    ("Is it far?", "How far is it?", "no degree of it"),
    ("Most people like it, why?", "Why do most people like it?", "most of the people"),
    ("Which city has the most rain?", "Which city gets the most rain?", "the same amount"),
    ("What is the oldest tree?", "Which tree is oldest?", "the same end"),
    ("I want a cheaper plan", "I want a less expensive plan", "turned"),
    ("Is it safer to fly?", "Is it less dangerous to fly?", "turned"),
    ("Show the latest news", "Show the newest news", "words of two tables"),
    ("At least 5 GB, please", "I need at least 5 GB", "the same limit"),
    ("Is water heavier than oil?", "Is oil lighter than water?", "both changed places"),
    ("What is the least I can pay?", "What is the minimum I can pay?", "words for a limit"),
    ("Quel est le vol le moins cher ?", "Quel vol est le moins cher ?", "another language"),
    ("Offer me a discount", "Give me a discount", "offer is no degree of off"),
    ("Is my number correct?", "Is the number right?", "number is no degree of numb"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_the_other_end_of_a_quality_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert comparison_differ(asked, stored), why
    assert comparison_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), SAME)
def test_the_same_degree_in_other_words_is_let_pass(asked: str, stored: str, why: str) -> None:
    assert not comparison_differ(asked, stored), why
    assert not comparison_differ(stored, asked), f"{why}, the other way round"


WORDS = st.lists(
    st.sampled_from("more less than the cheapest cheaper most expensive least first last min max not better".split()),
    max_size=12,
).map(" ".join)


@given(st.text() | WORDS, st.text() | WORDS)
def test_any_two_texts_are_compared_both_ways_alike(asked: str, stored: str) -> None:
    assert comparison_differ(asked, stored) == comparison_differ(stored, asked)


@given(st.text() | WORDS)
def test_equal_texts_are_never_vetoed(text: str) -> None:
    assert not comparison_differ(text, text)


@given(WORDS, WORDS)
def test_case_and_white_space_never_matter(asked: str, stored: str) -> None:
    shouted = f"  {asked.upper()} ".replace(" ", " \n")
    assert comparison_differ(shouted, stored) == comparison_differ(asked, stored)

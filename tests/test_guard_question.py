"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_question import question_differ

DIFFERENT = [
    ("How old is the lighthouse?", "How tall is the lighthouse?", "qualities after how"),
    ("How many moons does Mars have?", "Which moons does Mars have?", "the number and the things"),
    ("Who built the Eiffel Tower?", "When was the Eiffel Tower built?", "who and when"),
    ("Who invented paper?", "Where was paper invented?", "who and where"),
    ("Who invented paper?", "Why was paper invented?", "who and why"),
    ("Who invented paper?", "How was paper invented?", "who and how"),
    ("When was paper invented?", "Where was paper invented?", "when and where"),
    ("When was paper invented?", "Why was paper invented?", "when and why"),
    ("When was paper invented?", "How was paper invented?", "when and how"),
    ("Where was paper invented?", "Why was paper invented?", "where and why"),
    ("Where was paper invented?", "How was paper invented?", "where and how, of a thing"),
    ("Why does bread rise?", "How does bread rise?", "why and how"),
    ("Why does bread rise?", "Does bread rise?", "why takes for granted what whether asks"),
    ("When does the shop open?", "Does the shop open?", "when and whether"),
    ("Where is the shop open?", "Is the shop open?", "where and whether"),
    ("Who sells stamps?", "Why sell stamps?", "who and why"),
    ("When does the shop open?", "Where does the shop open?", "when and where, of a shop"),
    ("What time does the shop open?", "Where does the shop open?", "when in other words"),
    ("How many moons has Mars?", "Who found the moons of Mars?", "how many and who"),
    ("How many moons has Mars?", "Why has Mars moons?", "how many and why"),
    ("How many moons has Mars?", "Where has Mars moons?", "how many and where"),
    ("How many people live in Rome?", "Why do people live in Rome?", "how many and why"),
    ("How often do you water a cactus?", "How do you water a cactus?", "how often and how"),
    ("How often do you water a cactus?", "Why do you water a cactus?", "how often and why"),
    ("How often do you water a cactus?", "Where do you water a cactus?", "how often and where"),
    ("How long did Rome burn?", "Why did Rome burn?", "how long and why"),
    ("How long did Rome burn?", "Where did Rome burn?", "how long and where"),
    ("How long did Rome burn?", "How did Rome burn?", "how long and how"),
    ("How long did Rome burn?", "When did Rome burn?", "how long and when, and nothing else differs"),
    ("How many times did Rome burn?", "When did Rome burn?", "how often and when, and nothing else differs"),
    ("How old is the universe?", "Where is the universe?", "how old and where"),
    ("How far is the moon?", "When is the moon?", "how far and when"),
    ("How far can a camel walk?", "How can a camel walk?", "how far and how"),
    ("How old can a camel be?", "How can a camel be?", "how old and how"),
    ("How much did the ship cost?", "Why did the ship cost?", "how much and why"),
    ("How much did Apple pay for Beats?", "Why did Apple pay for Beats?", "how much and why"),
    ("How much did Apple pay for Beats?", "When did Apple pay for Beats?", "how much and when"),
    ("How much did Apple pay for Beats?", "Who did Apple pay for Beats?", "how much and whom"),
    ("Who was Homer?", "Where was Homer?", "who and where"),
    ("Who was Homer?", "When was Homer?", "who and when"),
    ("Who is the chief?", "Is the chief there?", "who and whether"),
    ("Tell me when paper was invented", "Tell me where paper was invented", "asked inside a sentence"),
    ("Do you know who invented paper? I wonder who did", "I wonder when paper was invented", "asked in two sentences"),
    ("Hello, when is the party?", "Hello, where is the party?", "after a greeting"),
    ("What is the reason for rust?", "Where is rust?", "the reason"),
    ("How come bread rises?", "When does bread rise?", "how come is why"),
    ("How do I buy a ticket?", "Where do I buy a ticket?", "a way and a place"),
    ("When was it built, and why?", "Where was it built, and why?", "one of two questions exchanged"),
    ("Who is a steward?", "What is a steward?", "who and what, and nothing else differs"),
    ("When did the war start?", "How did the war start?", "when and how"),
]

SAME = [
    ("How do I update my address?", "Where do I update my address?", "what is done on a page: the way is the place"),
    ("Is a tablet enough? Why?", "Is a tablet enough?", "reasons go without saying"),
    ("Who is the best keeper?", "Which keeper is the best?", "a person is also one of several"),
    ("How tall is the dam?", "How high is the dam?", "two words for one quality"),
    ("How do I reset my password?", "Can I reset my password?", "a wish"),
    ("How do I reset my password?", "Reset my password", "a command"),
    ("How do I reset my password?", "Steps to reset my password", "a heading"),
    ("How do I reset my password?", "What do I do to reset my password?", "what to do"),
    ("How do I reset my password?", "Is there a way to reset my password?", "a way"),
    ("How do I reset my password?", "Is it possible to reset my password?", "possible"),
    ("How do I reset my password?", "I want to reset my password", "a statement"),
    ("How do I find my PIN?", "Where do I find my PIN?", "the place of a thing"),
    ("What is a monad?", "Explain what a monad is", "a command"),
    ("What is a monad?", "Can you explain monads?", "a polite command"),
    ("Who is the author of Hamlet?", "What author wrote Hamlet?", "what author"),
    ("Who wrote Hamlet?", "Which author wrote Hamlet?", "which author"),
    ("Why is the sky blue?", "What is the reason the sky is blue?", "the reason"),
    ("Why is the sky blue?", "How come the sky is blue?", "how come"),
    ("Why was I charged?", "Is there a reason I was charged?", "a reason"),
    ("Why was I charged?", "For what reason was I charged?", "for what reason"),
    ("Why does rust form?", "What causes rust to form?", "the cause"),
    ("When does the shop open?", "What time does the shop open?", "what time"),
    ("When does the shop open?", "At what time does the shop open?", "at what time"),
    ("When is Easter?", "What day is Easter?", "what day"),
    ("When will my parcel come?", "How long until my parcel arrives?", "how long until"),
    ("How long does delivery take?", "How many days does delivery take?", "how many days"),
    ("How long does delivery take?", "What is the delivery time?", "a time"),
    ("How much does it cost to ship?", "What is the cost to ship?", "the cost"),
    ("How much is the fee?", "What is the fee?", "the fee"),
    ("How much is the fee?", "Is there a fee?", "whether there is one"),
    ("How many times a day do I feed it?", "How often a day do I feed it?", "how many times"),
    ("How old is he?", "What is his age?", "the age"),
    ("Where is the best beach?", "What is the best beach?", "a place"),
    ("Is it hard to learn Rust?", "How hard is it to learn Rust?", "how hard"),
    ("What are the fees?", "Are there any fees?", "whether there are any"),
    ("How many centimetres are in an inch?", "What is an inch in centimetres?", "a unit in another"),
    ("When I travel, can I top up?", "Can I top up while I travel?", "when that asks nothing"),
    ("The man who sold the world", "Where is the man who sold the world?", "who that asks nothing"),
    ("My locker is jammed, what do I do?", "What should I do if my locker is jammed?", "another clause"),
    ("Which documents do I need?", "What documents do I need?", "which and what"),
    ("Do you know when it opens?", "When does it open?", "a polite question"),
    ("Can you tell me why it fails?", "Why does it fail?", "a polite question"),
    ("How do I pay?", "How can one pay?", "the same word"),
    ("Pourquoi le ciel est bleu ?", "Le ciel est bleu, pourquoi ?", "another language"),
    ("What can I cook with rice?", "How can I cook rice?", "what and how are often one"),
    ("Where does it hurt and why?", "Why does it hurt?", "one of two"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_another_kind_of_question_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert question_differ(asked, stored), why
    assert question_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), SAME)
def test_the_same_question_put_in_another_way_is_let_pass(asked: str, stored: str, why: str) -> None:
    assert not question_differ(asked, stored), why
    assert not question_differ(stored, asked), f"{why}, the other way round"


WORDS = st.lists(
    st.sampled_from("who when where why how many much long often what is does paper rise the reason . ,".split()),
    max_size=12,
).map(" ".join)


@given(st.text() | WORDS, st.text() | WORDS)
def test_any_two_texts_are_compared_both_ways_alike(asked: str, stored: str) -> None:
    assert question_differ(asked, stored) == question_differ(stored, asked)


@given(st.text() | WORDS)
def test_equal_texts_are_never_vetoed(text: str) -> None:
    assert not question_differ(text, text)


@given(WORDS, WORDS)
def test_case_and_white_space_never_matter(asked: str, stored: str) -> None:
    shouted = f"  {asked.upper()} ".replace(" ", " \n")
    assert question_differ(shouted, stored) == question_differ(asked, stored)

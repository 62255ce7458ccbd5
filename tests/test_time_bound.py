"""Which questions are about now. A missed one serves an old answer; a false one costs a hit."""

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.time_bound import is_time_bound

BOUND = """
what is the weather in paris
weather
What's the latest iPhone?
current price of gold
who won the game last night
what time is it
news about brexit
is it going to snow tomorrow
stock price of tesla
what is the exchange rate of the euro
who is the current president of france
movies playing this weekend
what's happening right now
best phone to buy now
Is the store open today?
bitcoin price
what is today's date
who is winning the match
What day is it?
is the site down?
what are the trending songs
live score india australia
what's new this week
flights to rome next month
which films came out recently
How many people live in India currently?
WHAT IS THE WEATHER TODAY
how is the traffic on the motorway this morning
How do I get to the stadium tonight?
who is leading in the polls at the moment
"""

FREE = """
what do I do now
what should i cook now?
I have paid, where do I go now
why is the parcel I sent this morning still pending
delete my account right now
the wrong exchange rate was applied to an item
I recently moved, how do I change the address
how do I open a current account
how to go live on facebook
what is the price of an iphone case
how do i reset my password
I know the answer, why ask
translate "today is a good day" into French
translate 'what is the weather today' into french
what is time complexity
how do i find the current directory in bash
what's the difference between current and voltage
what is alternating current
how is knowledge made
how can I check the weather in python
how to get the current date in javascript
what is the date format of ISO 8601
what are latent variables
how do I cancel my order
is time travel possible
how do I know whether my parcel is lost
Until now I paid by card. How do I pay by invoice?
teenagers in today's society
what is the time value of money
who wrote Apocalypse Now
how many people live in india
what is a news feed made of `news()`
explain `datetime.now()`
write a function that returns "now"
"""


@pytest.mark.parametrize("question", BOUND.strip().splitlines())
def test_a_question_about_now_is_told(question: str) -> None:
    assert is_time_bound(question)


@pytest.mark.parametrize("question", FREE.strip().splitlines())
def test_words_of_time_that_say_nothing_about_when_are_left_alone(question: str) -> None:
    assert not is_time_bound(question)


def test_a_document_that_is_only_worked_on_does_not_make_its_question_bound() -> None:
    document = "The weather today is fine. " * 100
    assert not is_time_bound("Summarise this text. " + "x" * 300 + document + "y" * 300)
    assert is_time_bound(document + " So what is the weather today?")


@given(st.text(max_size=300))
def test_no_text_is_trouble(text: str) -> None:
    assert is_time_bound(text) in (True, False)


@pytest.mark.parametrize("unit", ["what is the ", "how do i now ", '"', "is a b ", "now ", "current ", "a", "today's "])
def test_no_text_takes_long_to_read(unit: str) -> None:
    started = perf_counter()
    is_time_bound(unit * (100_000 // len(unit)))
    assert perf_counter() - started < 0.2  # the worst was 0.01 s: only the ends of a long text are read

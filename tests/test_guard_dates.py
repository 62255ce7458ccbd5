"""Pairs, each with its reason. An answer for one day is wrong on another, however it is written."""

from collections.abc import Callable
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_dates import dates_differ
from semcache.cache.guard_numbers import numbers_differ

DIFFERENT = [
    ("Is March a good month to sow?", "Is July a good month to sow?", "a month that is also a word"),
    ("Who won the cup in 2023?", "Who won the cup in 2024?", "years"),
    ("The budget of this year", "The budget of last year", "years told from today"),
    ("The budget of this year", "The budget of 2024", "this year may be another"),
    ("Is it open in March?", "Is it open in May?", "months that are words too"),
    ("The weather in June", "The weather in July", "months"),
    ("The weather in Jan", "The weather in Feb", "shortened months"),
    ("Invoices of October", "Invoices of last month", "a month by name and one told from today"),
    ("Is it open?", "Is it open in August?", "one of twelve months"),
    ("Book a car for May 5", "Book a car for May 6", "days of a month"),
    ("Book a car for May 5", "Book a car for June 5", "months beside a day"),
    ("Book a car for 5 May", "Book a car for the sixth of May", "days in words"),
    ("Book a car for May 21st", "Book a car for May twenty second", "days in two words"),
    ("Book a car", "Book a car for 5 May", "one of many days"),
    ("Booked on 2024-05-01", "Booked on 2024-05-02", "dates in digits"),
    ("Booked on 2024-05-01", "Booked on May 2, 2024", "dates in digits and words"),
    ("Booked on 03/04/2024", "Booked on 04/03/2024", "the day first or the month"),
    ("Booked on 03/04/2024", "Booked on March 4, 2024", "the day first or the month: doubt"),
    ("Booked on 03/04/2024", "Booked on 3 April 2024", "the same doubt the other way"),
    ("Meet me on Monday", "Meet me on Tuesday", "days of the week"),
    ("Meet me on Mon", "Meet me on Wed", "shortened days"),
    ("Monday's agenda", "Friday's agenda", "whose agenda"),
    ("Find an event", "Find an event on Friday", "one of seven days"),
    ("Open on Saturdays?", "Open on Sundays?", "every week"),
    ("Meet me this Friday", "Meet me next Friday", "a week later"),
    ("The game of last Friday", "The game of next Friday", "before and after today"),
    ("Is it open today?", "Is it open tomorrow?", "days told from today"),
    ("Did it rain yesterday?", "Will it rain tomorrow?", "before and after today"),
    ("Is it open tomorrow?", "Is it open the day after tomorrow?", "a day later"),
    ("Did it rain yesterday?", "Did it rain the day before yesterday?", "a day earlier"),
    ("The weather", "The weather tomorrow", "now is what is meant else"),
    ("The weather tomorrow", "The weather on Friday", "may be another day"),
    ("Films today", "Films tonight", "only the evening"),
    ("The weather this week", "The weather next week", "weeks"),
    ("The weather this weekend", "The weather next weekend", "weekends"),
    ("Sales of last month", "Sales of last quarter", "the past in months and quarters"),
    ("Sales of last month", "Sales of this month", "months told from today"),
    ("Trains tomorrow morning", "Trains tomorrow evening", "parts of the day"),
    ("Flights in the morning", "Flights in the afternoon", "parts of any day"),
    ("Walk every morning", "Walk every evening", "parts of every day"),
    ("Wake me at 5 am", "Wake me at 5 pm", "halves of the day"),
    ("From 3 March to 5 April", "From 3 April to 5 April", "one of two months"),
    ("Wake me at 5 am", "Wake me at 5 in the evening", "an hour and a part of the day"),
    ("Wake me at 5:30 pm", "Wake me at 05:30", "halves of the day in both clocks"),
    ("What happened 3 days ago?", "What happens in 3 days?", "back and forward"),
    ("Open at Christmas?", "Open at Easter?", "holidays"),
    ("Kerala in summer", "Kerala in winter", "seasons"),
    ("How much did we sell?", "How much did we sell last week?", "how much there was in a time"),
    ("Events in October 2016", "Events on February 15, 2016", "a month and a day"),
]

EQUAL = [
    ("Booked on 2024-05-01", "Booked on May 1, 2024", "digits and words"),
    ("Booked on 2024-05-01", "Booked on 1 May 2024", "the day first"),
    ("Booked on 2024-05-01", "Booked on the first of May 2024", "a day in words"),
    ("Booked on 2024-05-01", "Booked on 2024/5/1", "slashes"),
    ("Booked on 13/05/2024", "Booked on May 13, 2024", "a day that is no month"),
    ("Booked on 05/13/2024", "Booked on 13.05.2024", "the month first, with dots"),
    ("Booked on 05/05/2024", "Booked on 5 May 2024", "day and month are equal"),
    ("Booked on 03/04/2024", "I booked on 03/04/2024", "in doubt, but equal"),
    ("Book a car for May 5", "Book a car for May 5th", "ordinals"),
    ("Book a car for May 5", "Book a car for the 5th of May", "ordinals before the month"),
    ("Book a car for May 5", "Book a car for the fifth of May", "ordinals in words"),
    ("Book a car for May 21", "Book a car for May twenty first", "ordinals in two words"),
    ("Book a car for 5 Sept", "Book a car for September 5", "shortened months"),
    ("Book a car for Dec 5", "Book a car for December 5", "shortened with a day"),
    ("The weather in June", "The weather during June", "another preposition"),
    ("May I pay by card?", "Can I pay by card?", "no month"),
    ("We march on", "We walk on", "no month either"),
    ("An august assembly", "A noble assembly", "nor this"),
    ("Meet me on Mon", "Meet me on Monday", "shortened days"),
    ("Meet me on Tue", "Meet me on Tuesday", "other shortened days"),
    ("Friday's agenda", "The agenda of Friday", "possessives"),
    ("Open on Saturdays?", "Open on Saturday?", "every week"),
    ("Meet me this Friday", "Meet me on Friday", "the next that comes"),
    ("Meet me this Friday", "Meet me this coming Friday", "the same in more words"),
    ("The sun is hot", "Is it hot?", "no Sunday"),
    ("He sat down", "He stood up", "no Saturday"),
    ("I passed the SAT", "I passed the exam", "nor is this one"),
    ("What is the weather today?", "What is the weather?", "today is meant"),
    ("What is the weather this week?", "What is the weather like?", "the present is meant"),
    ("Films this evening", "Films tonight", "tonight"),
    ("I bought it this morning", "I bought it today", "a part of today"),
    ("The weather next week", "The weather in the coming week", "coming is next"),
    ("Sales of last month", "Sales of the previous month", "previous is last"),
    ("My card was stolen yesterday", "My card was stolen", "told in passing"),
    ("My tent was torn last night, what now?", "My tent was torn, what now?", "told in passing, too"),
    ("I ordered it three days ago, where is it?", "I ordered it, where is it?", "told in passing, with a number"),
    ("Wake me at 5 pm", "Wake me at 17:00", "the clock of 24 hours"),
    ("Wake me at 9 a.m.", "Wake me at 9:00 am", "dots and minutes"),
    ("Wake me at 5 am", "Wake me at 5 in the morning", "an hour and its part of the day"),
    ("Call me at 5 pm", "Call me at 5 in the evening", "evening for some"),
    ("Call me at 5 pm", "Call me at 5 in the afternoon", "afternoon for others"),
    ("Closed at noon", "Closed at 12 pm", "noon"),
    ("Closed at midnight", "Closed at 12 am", "midnight"),
    ("Trains tomorrow morning", "Trains tomorrow in the morning", "parts of a day"),
    ("Good morning, where is my card?", "Good evening, where is my card?", "greetings"),
    ("Does iOS 9.3.4 work?", "Does iOS work?", "a version is no date"),
    ("What is 2/3 of it?", "What is two thirds of it?", "a fraction is no date"),
    ("A room for 5 nights", "A room for five nights", "nights that are counted"),
    ("Is 24/7 support included?", "Is support included?", "no date"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_another_time_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert dates_differ(asked, stored), why
    assert dates_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_time_written_otherwise_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not dates_differ(asked, stored), why
    assert not dates_differ(stored, asked), f"{why}, the other way round"


def ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


FORMS: list[Callable[[date], str]] = [
    lambda day: day.isoformat(),
    lambda day: f"{day:%Y/%m/%d}",
    lambda day: f"{day:%B} {day.day}, {day.year}",
    lambda day: f"{day.day} {day:%B} {day.year}",
    lambda day: f"{day:%b} {ordinal(day.day)} {day.year}",
    lambda day: f"the {ordinal(day.day)} of {day:%B}, {day.year}",
]
DAYS = st.dates(date(1950, 1, 1), date(2090, 12, 31))


@given(DAYS, DAYS, st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_dates_are_compared_as_days_and_not_as_they_are_written(
    one: date, other: date, mine: Callable[[date], str], yours: Callable[[date], str]
) -> None:
    asked = f"What happened on {mine(one)}?"
    assert dates_differ(asked, f"What happened on {yours(other)}?") == (one != other)
    assert not dates_differ(asked, f"What happened on {yours(one)}?")
    assert not numbers_differ(asked, f"What happened on {yours(one)}?"), "nor may the other guard stand in the way"


@given(DAYS, st.sampled_from(FORMS), st.sampled_from(FORMS), st.sampled_from([1, 7, 30, 365]))
def test_near_days_are_told_apart(
    one: date, mine: Callable[[date], str], yours: Callable[[date], str], later: int
) -> None:
    assert dates_differ(f"Sales on {mine(one)}", f"Sales on {yours(one + timedelta(days=later))}")


PIECES = st.sampled_from(
    "1 2 15 31 2024 5:30 17:00 2024-05-01 03/04/2024 99/99/9999 may may's march june first twenty of the th st in on "
    "next last this monday mon sat today tomorrow yesterday day after before week year morning night "
    "am pm ago i my much".split()
)
QUESTIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=8).map(" ".join), st.lists(PIECES).map("".join))


@given(QUESTIONS, QUESTIONS)
def test_any_two_questions_are_compared_the_same_both_ways(asked: str, stored: str) -> None:
    assert dates_differ(asked, stored) == dates_differ(stored, asked)


@given(QUESTIONS)
def test_a_question_never_differs_from_itself_in_another_case_or_with_more_white_space(question: str) -> None:
    assert not dates_differ(question, question)
    assert not dates_differ(question, "  " + question + "\n")
    if question.isascii():
        assert not dates_differ(question, question.upper())
        assert not dates_differ(question, question.replace(" ", "  "))

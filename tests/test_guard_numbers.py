"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

from time import perf_counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semcache.cache.guard_numbers import numbers_differ

DIFFERENT = [
    ("How do I take 5 mg of this?", "How do I take 50 mg of this?", "another dose"),
    ("Is the iPhone 14 waterproof?", "Is the iPhone 15 waterproof?", "another product"),
    ("Is the iPhone X waterproof?", "Is the iPhone 11 waterproof?", "another product, one with a letter"),
    ("Who won the cup in 2023?", "Who won the cup in 2024?", "another year"),
    ("Who won the cup?", "Who won the cup in 2024?", "one of many years"),
    ("Cancel order 1001", "Cancel order 1002", "another order"),
    ("Cancel order 0042", "Cancel order 42", "codes keep their zeros"),
    ("Call 555-0134 for me", "Call 555-0143 for me", "another telephone number"),
    ("Can I return two items?", "Can I return three items?", "written-out numbers"),
    ("Ship it in twenty days", "Ship it in twenty five days", "a number in two words"),
    ("Ship it in twenty-one days", "Ship it in twenty-two days", "a number with a hyphen"),
    ("Can I return an item?", "Can I return two items?", "a number on one side only"),
    ("Open at 10:30?", "Open at 10:45?", "times"),
    ("Wake me at 5 am", "Wake me at 6 am", "hours"),
    ("Does v1.2.3 work?", "Does v1.2.4 work?", "versions"),
    ("Is Python 3.1 supported?", "Is Python 3.10 supported?", "a version's last zero counts"),
    ("Is it 1.5 litres?", "Is it 15 litres?", "the decimal point counts"),
    ("Two or three days?", "Two days?", "one number less"),
    ("Transfer 100 and 100", "Transfer 100", "how often a number occurs counts"),
    ("Warm enough for -5 degrees?", "Warm enough for 5 degrees?", "the sign counts"),
    ("Warm enough for \u22125 degrees?", "Warm enough for 5 degrees?", "a typographer's minus"),
    ("Warm enough for minus five degrees?", "Warm enough for five degrees?", "a spoken sign"),
    ("Is it 5 degrees below zero?", "Is it 5 degrees?", "another way to speak the sign"),
    ("Half the price?", "Two times the price?", "half is not two"),
    ("A laptop under 30k", "A laptop under 40k", "thousands by a letter"),
    ("A flat for 1.5 million", "A flat for 1.5 billion", "scales"),
    ("Earn 2 lakh a year", "Earn 2 crore a year", "Indian scales"),
    ("Who lost World War I?", "Who lost World War II?", "Roman numerals"),
    ("How did Henry VII die?", "How did Henry VIII die?", "Roman numerals of kings"),
    ("Who was the first president?", "Who was the second president?", "ordinals"),
    ("Which is the 3rd planet?", "Which is the 4th planet?", "ordinals in digits"),
    ("I was charged once", "I was charged twice", "how often"),
    ("Book a single room", "Book a double room", "how many beds"),
    ("Top 5 films of Kubrick", "Top 10 films of Kubrick", "the length of a list"),
    ("Two times, or three times?", "Two times, or two times?", "one of two"),
    ("Cancel the one order", "Cancel the two orders", "one against the length of a list"),
    ("A flat with 3 bedrooms and 2 baths", "A flat with 2 bedrooms and 3 baths", "exchanged"),
    ("The first round, the third pick", "The third round, the first pick", "ordinals exchanged"),
    ("Eine Wohnung für 5.000 Euro", "Eine Wohnung für 5 Euro", "thousands with a point"),
    ("Eine Kiste mit 5.000 kg", "Eine Kiste mit 5 kg", "thousands with a point and a unit"),
    ("Ein Fass mit 1.000,50 Litern", "Ein Fass mit 1,50 Litern", "a point and a comma"),
    ("What is 34 + 12?", "What is 34 - 12?", "another sum"),
    ("What is 6 plus 2?", "What is 6 times 2?", "another sum, in words"),
    ("A discount of 10%", "A discount of 15%", "percentages"),
    ("Is 1/2 cup enough?", "Is 1/4 cup enough?", "fractions"),
    ("Is \u00bd cup enough?", "Is \u00bc cup enough?", "fractions as one sign"),
    ("Report of 9/11", "Report of 9/12", "no fractions"),
    ("Delivery in 3-5 days?", "Delivery in 3-7 days?", "ranges"),
    ("Delivery in one week?", "Delivery in two weeks?", "the one that is a number"),
    ("Delivery in a week?", "Delivery in two weeks?", "an article against a number"),
    ("A dozen eggs", "Two dozen eggs", "dozens"),
    ("I need a pass for May 5", "I need a pass for June 5", "a month beside a day"),
    ("Booked for 2024-05-01", "Booked for 2024-06-01", "dates in digits"),
    ("Booked for 03/04/2024", "Booked for 3 April 2024", "the day first or the month: doubt"),
    ("Music of the 80s", "Music of the 90s", "decades"),
    ("I want three tickets for 9 March", "I want tickets for 9 March", "March is no three"),
    ("The most popular sport", "The second most popular sport", "a place in a list is not its length"),
    ("Is the 6th free?", "Is the 7th free?", "nor is a day"),
    ("The iPhone 14 with 128 GB", "The iPhone 14 with 256 GB", "one of two numbers"),
    ("Run for 1 hour 30 minutes", "Run for 1 hour 20 minutes", "an amount in two units"),
]

EQUAL = [
    ("Which party will win the election of 2031?", "Who is going to win the election?", "a year as context"),
    ("I paid 1,000 dollars", "I paid 1000 dollars", "thousands separators"),
    ("I earn 1,50,000 rupees", "I earn 150000 rupees", "Indian separators"),
    ("Is it 5.0 litres?", "Is it 5 litres?", "trailing zeros"),
    ("It cost $3.50", "It cost $3.5", "trailing zeros of money"),
    ("Return two items", "Return 2 items", "written out or not"),
    ("A refund of three hundred and six euros", "A refund of 306 euros", "several words"),
    ("In twenty-five days", "In 25 days", "words with a hyphen"),
    ("Born in nineteen eighty four", "Born in 1984", "a spoken year"),
    ("It ends in twenty twenty five", "It ends in 2025", "a spoken year of this century"),
    ("Where is the blue one?", "Where is the blue item?", "one is mostly no number"),
    ("I have one question", "I have a question", "one for an article"),
    ("Book 1 room", "Book a room", "a digit for an article"),
    ("Book 1 room", "Book one room", "one as a digit"),
    ("Delivery in 3-5 days?", "Delivery in 3-5 days, please?", "a range has no sign"),
    ("Delivery in 3-5 days?", "Delivery in 3 to 5 days?", "a range in words"),
    ("Delivery in 3 \u2013 5 days?", "Delivery between 3 and 5 days?", "a typographer's range"),
    ("The iPhone-14", "The iPhone 14", "a hyphen is no sign"),
    ("The iPhone X", "The iPhone 10", "a letter that is a number"),
    ("How long is delivery?", "What is the delivery time?", "no numbers at all"),
    ("Order \uff11\uff12", "Order 12", "full-width digits"),
    ("Order \u0661\u0662", "Order 12", "digits of another script"),
    ("A phone under 15k", "A phone below 15,000", "thousands by a letter, and no sign in below"),
    ("Bought for $4.1bn", "Bought for $4.1 billion", "a scale by letters"),
    ("I won 2 million", "I won 2,000,000", "a scale in words"),
    ("Earn 1 lakh", "Earn 100,000", "an Indian scale"),
    ("Who won World War II?", "Who won World War 2?", "Roman numerals"),
    ("How did Henry VIII die?", "How did Henry the eighth die?", "Roman numerals and ordinals"),
    ("What is the 1st law?", "What is the first law?", "ordinals"),
    ("The 22nd of the month", "The twenty second of the month", "ordinals in two words"),
    ("My first card never came", "My card never came", "the first is often left out"),
    ("Twice in 1 month", "Two times in a month", "once and twice"),
    ("I was charged twice", "I see a duplicate charge", "no number in one of them"),
    ("Why was I charged more than once?", "Why was I charged twice?", "more than once"),
    ("What are the top 5 sights?", "What are the best sights?", "the length of a list is a wish"),
    ("What are five uses of iron?", "What are some uses of iron?", "a list without the word top"),
    ("A dozen eggs", "12 eggs", "dozens"),
    ("Half a dozen eggs", "6 eggs", "half a dozen"),
    ("A couple of days", "Two days", "couples"),
    ("1 hour", "60 minutes", "other units"),
    ("One hour", "60 minutes", "other units, one written out"),
    ("An hour and a half", "90 minutes", "halves of units"),
    ("Half an hour", "30 minutes", "half a unit"),
    ("1 hour 30 minutes", "90 minutes", "an amount in two units"),
    ("2 weeks", "14 days", "weeks and days"),
    ("12 months", "1 year", "months and years"),
    ("Wake me at 5 pm", "Wake me at 17:00", "the clock of 24 hours"),
    ("Wake me at 9 a.m.", "Wake me at 9:00 am", "dots and minutes"),
    ("Wake me at 11.30 am", "Wake me at 11:30 am", "a dot in a time"),
    ("A flat with 3 bedrooms and 2 baths", "A flat with two baths and three bedrooms", "another order"),
    ("I got $20 and asked for $100", "I asked for $100 and got $20", "another order of sums"),
    ("Closed at noon", "Closed at 12 pm", "noon"),
    ("Open 24/7?", "Open 24 hours a day, 7 days a week?", "always"),
    ("50%", "50 percent", "percentages"),
    ("\u00bd cup", "half a cup", "fractions"),
    ("1\u00bd cups", "1.5 cups", "a number with a fraction"),
    ("Minus five degrees", "-5 degrees", "a spoken sign"),
    ("Call (555) 123-4567", "Call 555 123 4567", "telephone numbers"),
    ("Booked for 2024-05-01", "Booked for May 1st, 2024", "dates"),
    ("Booked for 13/05/2024", "Booked for 13 May 2024", "a day that is no month"),
    ("Music of the 90s", "Music of the 1990s", "decades"),
    ("I ordered it two weeks ago, where is it?", "I ordered it, where is it?", "a span told in passing"),
    ("CLAT 2017 and the syllabus of 2017", "CLAT 2017 and the syllabus", "a year named twice"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_changed_number_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert numbers_differ(asked, stored), why
    assert numbers_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_number_in_another_spelling_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not numbers_differ(asked, stored), why
    assert not numbers_differ(stored, asked), f"{why}, the other way round"


PIECES = st.sampled_from(
    "1 2 15 30 2024 05:30 17:00 3.10 1,000 -5 +49 1/2 24/7 2024-05-01 03/04/2024 555-0134 one two twenty half hundred "
    "million and a an dozen first second am pm k % $ \u00b0 mg kg hour minutes ii viii x v war may of the twice 5 ' \""
    " minus plus times top best".split()
)
QUESTIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=8).map(" ".join), st.lists(PIECES).map("".join))


@given(QUESTIONS, QUESTIONS)
def test_any_two_questions_are_compared_the_same_both_ways(asked: str, stored: str) -> None:
    assert numbers_differ(asked, stored) == numbers_differ(stored, asked)


@example("000 000.000")  # once two blanks made two numbers of it
@given(QUESTIONS)
def test_a_question_never_differs_from_itself_in_another_case_or_with_more_white_space(question: str) -> None:
    assert not numbers_differ(question, question)
    assert not numbers_differ(question, "  " + question + "\n")
    if question.isascii():
        assert not numbers_differ(question, question.upper())
        assert not numbers_differ(question, question.replace(" ", "  "))


TEMPLATES = st.sampled_from(
    [
        "Cancel order {}",
        "Is {} mg too much?",
        "Is the iPhone {} waterproof?",
        "I paid ${} for it",
        "Is {}% enough?",
        "Wake me in {} minutes",
        "Top {} songs",
        "What are the {} best songs?",
        "What are {} reasons?",
        "Who won in {}?",
        "I called {} times",
        "A {} year old",
        "The {}th of them",
        "Windows {}.1",
        "From {} to 10",
        "Is -{} cold?",
        "A flat for {}k",
        "It costs 5.{} here",
    ]
)


@given(TEMPLATES, st.integers(1, 10**9), st.integers(1, 10**9))
def test_two_different_numbers_in_one_place_are_always_vetoed(template: str, one: int, other: int) -> None:
    assert numbers_differ(template.format(one), template.format(other)) == (one != other)


@given(TEMPLATES, st.integers(2, 10**6))
def test_neighbours_and_multiples_of_ten_are_always_told_apart(template: str, number: int) -> None:
    assert numbers_differ(template.format(number), template.format(number + 1))
    assert numbers_differ(template.format(number), template.format(number * 10))


def test_many_numbers_in_a_long_question_take_no_more_than_their_share() -> None:
    counted = " ".join(f"{number} things{number}" for number in range(5_000))
    others = " ".join(f"{number} things" for number in range(5_000, 10_000))
    begun = perf_counter()
    assert numbers_differ(counted, others)
    assert numbers_differ(counted, " ".join(reversed(counted.split(" "))))
    assert perf_counter() - begun < 5, "a second at most, where comparing each with each took minutes"

"""Pairs, each with its reason: the number alone does not say how much, and a unit alone can be the question."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.guard_units import units_differ
from semcache.cache.measures import BESIDE_A_NUMBER

DIFFERENT = [
    ("Is 5 kg too heavy?", "Is 5 lb too heavy?", "weights"),
    ("Is 5 kg too heavy?", "Is 5 g too heavy?", "a thousand times less"),
    ("Take 5 mg of it", "Take 5 mcg of it", "doses"),
    ("Take 5 mg of it", "Take 5 ml of it", "a weight and a volume"),
    ("Is 5 kg far?", "Is 5 km far?", "a weight and a length"),
    ("Is it 3 km away?", "Is it 3 miles away?", "distances"),
    ("A pole of 6 feet", "A pole of 6 metres", "lengths"),
    ("A screen of 15 inches", "A screen of 15 cm", "screens"),
    ('A screen of 15"', "A screen of 15 cm", "inches as a sign"),
    ("Is 20 \u00b0C warm?", "Is 20 \u00b0F warm?", "temperatures"),
    ("Is 20 degrees Celsius warm?", "Is 20 degrees Fahrenheit warm?", "temperatures written out"),
    ("Is 20C warm?", "Is 20F warm?", "temperatures by a letter"),
    ("What is boiling in Celsius?", "What is boiling in Kelvin?", "temperatures without a number"),
    ("Does it cost 5 USD?", "Does it cost 5 EUR?", "currencies by code"),
    ("Does it cost $5?", "Does it cost \u20ac5?", "currencies by sign"),
    ("Does it cost $5?", "Does it cost 5 pounds?", "a sign and a word"),
    ("Does it cost 5 dollars?", "Does it cost 5 cents?", "a hundredth"),
    ("Pay me in dollars", "Pay me in euros", "currencies without a number"),
    ("The price of gold in rupees", "The price of gold in yen", "more currencies"),
    ("Send 50 US dollars", "Send 50 Canadian dollars", "dollars of two countries"),
    ("Send 50 Indian rupees", "Send 50 Pakistani rupees", "rupees of two countries"),
    ("Change GBP into CHF", "Change GBP into JPY", "one of two currencies"),
    ("Set a timer for 5 minutes", "Set a timer for 5 hours", "spans"),
    ("Set a timer for 5 minutes", "Set a timer for 5 seconds", "shorter spans"),
    ("A trip of 3 days", "A trip of 3 weeks", "longer spans"),
    ("A trip of 3 days", "A trip of 3 months", "days and months"),
    ("Experience of 2 months", "Experience of 2 years", "months and years"),
    ("How many hours until noon?", "How many minutes until noon?", "the unit asked for"),
    ("How many weeks until May?", "How many days until May?", "the unit asked for, in plural"),
    ("My age in days", "My age in months", "in units"),
    ("Is it 10 per month?", "Is it 10 per year?", "rates"),
    ("Is it 10 a week?", "Is it 10 a day?", "rates with an article"),
    ("The monthly fee", "The annual fee", "rates as adjectives"),
    ("I am paid hourly", "I am paid weekly", "rates as adverbs"),
    ("A backup every day", "A backup every week", "how often"),
    ("How many hours in a day?", "How many hours in a week?", "the unit of the answer is the same"),
    ("A disk of 500 GB", "A disk of 500 MB", "data"),
    ("A disk of 2 TB", "A disk of 2 gigabytes", "data, written out"),
    ("A line of 50 Mbps", "A line of 50 Gbps", "speeds of a line"),
    ("A processor of 3 GHz", "A processor of 3 MHz", "frequencies"),
    ("Is 60 mph allowed?", "Is 60 km/h allowed?", "speeds"),
    ("A discount of 10%", "A discount of 10 dollars", "a share and a sum"),
    ("A cup of 8 oz", "A cup of 8 ml", "kitchens"),
    ("Two tablespoons of salt", "Two teaspoons of salt", "spoons"),
    ("Sleep 8 hours in 4 hours", "Sleep 8 minutes in 4 hours", "one of two amounts"),
    ("Is it 3 miles or 5 miles?", "Is it 3 km or 5 miles?", "one of two distances"),
    ("Is 100 dollars more than 100 euros?", "Is 100 yen more than 100 euros?", "one of two sums"),
    ("Yen in rubles", "Rubles in rubles", "one of two currencies alone"),
    ("My weight in kilos", "My weight in pounds", "weights without a number"),
]

EQUAL = [
    ("Is 5 kg too heavy?", "Is 5 kilograms too heavy?", "written out"),
    ("Is 5kg too heavy?", "Is 5 kilos too heavy?", "without a blank"),
    ("5 lb of flour", "5 pounds of flour", "pounds are a weight"),
    ("Send \u00a35", "Send 5 pounds", "pounds are money"),
    ("Send \u00a35", "Send 5 GBP", "by sign and code"),
    ("Send $5", "Send 5 USD", "dollars by sign"),
    ("Send $5", "Send 5 dollars", "dollars written out"),
    ("Send US$5", "Send 5 US dollars", "dollars of one country"),
    ("Send 5 bucks", "Send 5 dollars", "dollars as people say"),
    ("Rs. 500", "500 rupees", "rupees"),
    ("\u20b9500", "INR 500", "rupees by sign"),
    ("500 euro", "500 euros", "one or many"),
    ("I paid 5 dollars", "I paid 5", "units are left out"),
    ("How much is it in dollars?", "How much is it?", "a currency on one side only"),
    ("Is it 3 km away?", "Is it 3 kilometers away?", "distances written out"),
    ("Is it 3 km away?", "Is it 3 kilometres away?", "spelt as in London"),
    ("Is it 3 km away?", "Is it 3000 metres away?", "the same in other units"),
    ("Is it a 1.5 litre bottle?", "Is it a 1500 ml bottle?", "the same volume"),
    ("Ready in 1 hour?", "Ready in 60 minutes?", "the same span"),
    ("Ready in half an hour?", "Ready in 30 min?", "half a unit"),
    ("Ready in 1.5 hours?", "Ready in 90 minutes?", "a broken number of units"),
    ("Ready in 1 hour 30 minutes?", "Ready in 90 minutes?", "two units for one amount"),
    ("Ready in 2 weeks?", "Ready in 14 days?", "weeks and days"),
    ("A lease of 12 months", "A lease of 1 year", "months and years"),
    ("5 feet 10 inches", "5 ft 10 in", "feet"),
    ("Set a timer for 5 min", "Set a timer for 5 minutes", "shortened"),
    ("Set a timer for 90 sec", "Set a timer for 90 seconds", "shortened more"),
    ("It took 3 hrs", "It took 3 hours", "hours"),
    ("Is 20 \u00b0C warm?", "Is 20 degrees Celsius warm?", "temperatures"),
    ("Is 20 degrees warm?", "Is 20 degrees Celsius warm?", "which degrees is left out"),
    ("Is 20 degrees warm?", "Is 20 \u00b0F warm?", "which degrees is left out"),
    ("Is it 10 per month?", "Is it 10 a month?", "rates"),
    ("The monthly fee", "The fee per month", "rates as adjectives"),
    ("I get 10 yearly", "I get 10 per annum", "years"),
    ("A backup every day", "A daily backup", "how often"),
    ("Wait a second, where is my card?", "Where is my card?", "no unit"),
    ("What a day! Where is my card?", "Where is my card?", "no unit either"),
    ("Can I get a second card?", "Can I get another card?", "an ordinal"),
    ("A disk of 500 GB", "A disk of 500 gigabytes", "data"),
    ("A disk of 1 TB", "A disk of 1000 GB", "the same amount of data"),
    ("A discount of 10%", "A discount of 10 percent", "shares"),
    ("A discount of 10%", "A discount of 10 per cent", "shares in two words"),
    ("2 tbsp of salt", "2 tablespoons of salt", "spoons"),
    ("I like 4G", "I like LTE", "no gram"),
    ("How do I convert kg to lb?", "How do I convert kilograms to lbs?", "both units of a conversion"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_changed_unit_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert units_differ(asked, stored), why
    assert units_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_unit_in_another_spelling_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not units_differ(asked, stored), why
    assert not units_differ(stored, asked), f"{why}, the other way round"


WORDS = sorted(spelling for spelling in BESIDE_A_NUMBER if spelling.isalpha())


@pytest.mark.parametrize("one", WORDS)
def test_a_unit_is_only_equal_to_its_other_spellings(one: str) -> None:
    mine = BESIDE_A_NUMBER[one]
    for other in WORDS:
        yours = BESIDE_A_NUMBER[other]
        vague = "degree" in (mine.unit, yours.unit) and mine.kind == yours.kind
        assert units_differ(f"Are 7 {one} enough?", f"Are 7 {other} enough?") == (mine.unit != yours.unit and not vague)


PIECES = st.sampled_from(
    "1 2 60 half a an one per every hour hours minutes day week months $ \u20ac \u00b0 c f % kg lb pounds km ' \" us "
    "monthly canadian dollars euros many in degrees celsius / and".split()
)
QUESTIONS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=8).map(" ".join), st.lists(PIECES).map("".join))


@given(QUESTIONS, QUESTIONS)
def test_any_two_questions_are_compared_the_same_both_ways(asked: str, stored: str) -> None:
    assert units_differ(asked, stored) == units_differ(stored, asked)


@given(QUESTIONS)
def test_a_question_never_differs_from_itself_in_another_case_or_with_more_white_space(question: str) -> None:
    assert not units_differ(question, question)
    assert not units_differ(question, "  " + question + "\n")
    if question.isascii():
        assert not units_differ(question, question.upper())
        assert not units_differ(question, question.replace(" ", "  "))

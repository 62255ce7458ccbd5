"""Pairs, each with its reason. A guard may only veto, so a wrong veto costs a miss and a missing one costs trust."""

import pytest

from semcache.cache.guard_numbers import numbers_differ

DIFFERENT = [
    ("How do I take 5 mg of this?", "How do I take 50 mg of this?", "another dose"),
    ("Is the iPhone 14 waterproof?", "Is the iPhone 15 waterproof?", "another product"),
    ("Who won the cup in 2023?", "Who won the cup in 2024?", "another year"),
    ("Cancel order 1001", "Cancel order 1002", "another order"),
    ("Cancel order 0042", "Cancel order 42", "codes keep their zeros"),
    ("Can I return two items?", "Can I return three items?", "written-out numbers"),
    ("Ship it in twenty days", "Ship it in twenty five days", "a number in two words"),
    ("Can I return an item?", "Can I return two items?", "a number on one side only"),
    ("Open at 10:30?", "Open at 10:45?", "times"),
    ("Does v1.2.3 work?", "Does v1.2.4 work?", "versions"),
    ("Is it 1.5 litres?", "Is it 15 litres?", "the decimal point counts"),
    ("Two or three days?", "Two days?", "one number less"),
    ("Transfer 100 and 100", "Transfer 100", "how often a number occurs counts"),
    ("Warm enough for -5 degrees?", "Warm enough for 5 degrees?", "the sign counts"),
    ("Warm enough for \u22125 degrees?", "Warm enough for 5 degrees?", "a typographer's minus"),
    ("Warm enough for minus five degrees?", "Warm enough for five degrees?", "a spoken sign"),
    ("Half the price?", "Two times the price?", "half is not two"),
]

EQUAL = [
    ("I paid 1,000 dollars", "I paid 1000 dollars", "thousands separators"),
    ("Is it 5.0 litres?", "Is it 5 litres?", "trailing zeros"),
    ("Return two items", "Return 2 items", "written out or not"),
    ("A refund of three hundred and six euros", "A refund of 306 euros", "several words"),
    ("Where is the blue one?", "Where is the blue item?", "one is mostly no number"),
    ("Delivery in 3-5 days?", "Delivery in 3-5 days, please?", "a range has no sign"),
    ("The iPhone-14", "The iPhone 14", "a hyphen is no sign"),
    ("How long is delivery?", "What is the delivery time?", "no numbers at all"),
    ("Order \uff11\uff12", "Order 12", "full-width digits"),
    ("Order \u0661\u0662", "Order 12", "digits of another script"),
]


@pytest.mark.parametrize(("asked", "stored", "why"), DIFFERENT)
def test_changed_number_is_vetoed(asked: str, stored: str, why: str) -> None:
    assert numbers_differ(asked, stored), why
    assert numbers_differ(stored, asked), f"{why}, the other way round"


@pytest.mark.parametrize(("asked", "stored", "why"), EQUAL)
def test_the_same_number_in_another_spelling_is_no_difference(asked: str, stored: str, why: str) -> None:
    assert not numbers_differ(asked, stored), why

"""Guard `numbers`: what is counted, measured or numbered in one question must be so in the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from semcache.cache.figures import Reading, Role, read
from semcache.cache.measures import BESIDE_A_NUMBER, Measure
from semcache.cache.remember import remember
from semcache.cache.wording import is_context

# May be left out in one of two questions, but two of a kind must not be different. "One" is as long a list as "two".
_ASIDE: Mapping[Role, int] = {
    role: kind
    for kind, roles in enumerate(
        ((Role.LENGTH, Role.MAYBE), (Role.TIMES,), (Role.MONTH,), (Role.SIGN,), (Role.LETTER,))
    )
    for role in roles
}
_SAYING = frozenset({Role.MAYBE, Role.TIMES, Role.LENGTH, Role.LETTER})  # other ways to say a number
_SINGLE = frozenset({"a", "an", "one", "single"})
_BETWEEN = frozenset({"and", "or", "but", "to"})
MOST_COMPARED = 40  # numbers that are only in one question: more are a doubt, and would cost more than they bring
_YEARS = range(1900, 2100)


def numbers_differ(asked: str, stored: str) -> bool:
    """Every number in one must be in the other, equally often: amounts, versions, years, order numbers.

    The same amount may be written in other units (1 hour, 60 minutes) and the same time otherwise (5 pm, 17:00).
    """
    if asked == stored:
        return False
    one, other = read(asked), read(stored)
    if one.figures == other.figures:
        return False
    left, right = read_numbers(asked), read_numbers(stored)
    mine, yours = _rest(left.numbers, right.numbers), _rest(right.numbers, left.numbers)
    if len(mine) + len(yours) > MOST_COMPARED:
        return True
    if mine or yours:
        mine, yours = _unmatched(mine, yours, one, other)
    if mine and yours:
        return True
    alone = mine or yours
    if alone and is_context(asked, stored, len(alone), 0 if _are_years(alone) else 1):
        return False
    if (mine and not _are_said_in_passing(mine, one, other)) or (yours and not _are_said_in_passing(yours, other, one)):
        return True
    return _asides_differ(left.asides, right.asides) or _are_exchanged(left.things, right.things)


class Counted(NamedTuple):
    numbers: Counter[str]  # how often each must be in the other question
    asides: Mapping[int, Counter[str]]  # the same of each kind in _ASIDE that there is
    things: frozenset[tuple[str, str]]  # each number with what it counts, the next word in the singular


@remember
def read_numbers(question: str) -> Counted:
    """A year that is named twice is still one year."""
    figures = read(question).figures
    numbers = Counter(figure.value for figure in figures if figure.role is Role.COUNTS)
    for value in numbers:
        if len(value) == 4 and value.isdecimal() and int(value) in _YEARS:
            numbers[value] = 1
    asides: dict[int, Counter[str]] = {}
    for figure in figures:
        if figure.role is not Role.COUNTS:
            asides.setdefault(_ASIDE[figure.role], Counter())[figure.value] += 1
    things = frozenset(
        (figure.value, figure.thing.rstrip("s")) for figure in figures if figure.thing and figure.thing not in _BETWEEN
    )
    return Counted(numbers, asides, things)


def _rest(one: Counter[str], other: Counter[str]) -> list[str]:
    """The numbers that `one` has more often."""
    return [value for value, times in one.items() if times > other[value]]


def _unmatched(mine: Iterable[str], yours: Iterable[str], one: Reading, other: Reading) -> tuple[list[str], list[str]]:
    """What is left once the same in other words is taken away."""
    also_mine, also_yours = _other_words(one, mine), _other_words(other, yours)
    shared = Counter(also_mine.values()) & Counter(also_yours.values())
    left = [value for value in mine if also_mine.get(value) not in shared and not _is_said(value, one, other)]
    right = [value for value in yours if also_yours.get(value) not in shared and not _is_said(value, other, one)]
    return left, right


def _other_words(reading: Reading, values: Iterable[str]) -> dict[str, str]:
    wanted = set(values)
    return {figure.value: figure.also for figure in reading.figures if figure.also and figure.value in wanted}


def _is_said(value: str, own: Reading, other: Reading) -> bool:
    """Whether the other question says this number by a word that need not be one: "first", "a room", iPhone X."""
    ways = {value, *(figure.also for figure in own.figures if figure.value == value and figure.also)}
    if any(figure.role in _SAYING and ways & {figure.value, figure.also} for figure in other.figures):
        return True
    if value != "1":
        return False
    things = {figure.thing for figure in own.figures if figure.value == "1"}
    return any(word in _SINGLE and thing in things for word, thing in zip(other.words, other.words[1:], strict=False))


def _are_years(values: Iterable[str]) -> bool:
    return all(len(value) == 4 and value.isdecimal() and int(value) in _YEARS for value in values)


def _are_said_in_passing(values: Iterable[str], own: Reading, other: Reading) -> bool:
    """Whether all are hours, days or weeks, and the other question has none: "I ordered it (two weeks ago)"."""
    spans = {figure.value for figure in own.figures if _is_span(figure.measure)}
    return (
        spans.issuperset(values)
        and not any(_is_span(figure.measure) for figure in other.figures)
        and not any(
            article in _SINGLE and _is_span(BESIDE_A_NUMBER.get(word))
            for article, word in zip(other.words, other.words[1:], strict=False)
        )
    )


def _is_span(measure: Measure | None) -> bool:
    return measure is not None and measure.kind == "time"


def _asides_differ(one: Mapping[int, Counter[str]], other: Mapping[int, Counter[str]]) -> bool:
    """Whether both have figures of one kind, and each some that the other has not."""
    return any(one[kind] - other[kind] and other[kind] - one[kind] for kind in one.keys() & other.keys())


def _are_exchanged(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> bool:
    """Whether two numbers have changed their places: "3 beds and 2 baths", "2 beds and 3 baths"."""
    left, right = one - other, other - one
    return len(left) > MOST_COMPARED or any(
        (value, another_thing) in right and (another_value, thing) in right
        for value, thing in left
        for another_value, another_thing in left
        if value != another_value and thing != another_thing
    )

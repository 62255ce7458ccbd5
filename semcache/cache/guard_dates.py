"""Guard `dates`: what is asked for one day, month, year or hour must not be answered for another.

The same date may be written in many ways. "Today" and "this week" are what is meant when nothing is said, so they may
be missing in one question; tomorrow, Friday and 5 May may not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from semcache.cache.figures import MONTHS, calendar_date, read
from semcache.cache.number_words import SMALL, TENS
from semcache.cache.remember import remember
from semcache.cache.wording import is_context


class Detail(NamedTuple):
    """One thing a question says of time. `kind`: what it would be in conflict with."""

    kind: str
    value: str


def dates_differ(asked: str, stored: str) -> bool:
    """Whether both name other times, or only one names a time and it is not the present."""
    if asked == stored:
        return False
    one, other = read_dates(asked), read_dates(stored)
    if one == other:
        return False
    left, right = one - other, other - one
    if {detail.kind for detail in left} & {detail.kind for detail in right}:
        return True
    if _are_other_months(left.keys(), other.keys()) or _are_other_months(right.keys(), one.keys()):
        return True
    if _is_at_another_hour(one.keys(), other.keys()) or _is_at_another_hour(other.keys(), one.keys()):
        return True
    if not _narrow(left.keys() - other, read(asked).words) and not _narrow(right.keys() - one, read(stored).words):
        return False
    return not is_context(asked, stored, len(left) + len(right), 1)


def _are_other_months(left: Set[Detail], other: Set[Detail]) -> bool:
    """Whether a word that may be a month stands against months that are others: "is March fine", "is July fine"."""
    maybe = {detail.value for detail in left if detail.kind == MAYBE_MONTH}
    months = {detail.value for detail in other if detail.kind == MONTH}
    return bool(maybe and months) and maybe.isdisjoint(months)


def _is_at_another_hour(one: Set[Detail], other: Set[Detail]) -> bool:
    """Whether one names hours and the other only a part of the day that has none of them: 5 am, 5 in the evening."""
    hours = {int(detail.value[:2]) for detail in one if detail.kind == CLOCK}
    parts = {detail.value for detail in other if detail.kind == PART}
    if not hours or not parts or any(detail.kind == PART for detail in one):
        return False
    return not any(detail.kind == CLOCK for detail in other) and not any(hours & _HOURS[part] for part in parts)


def _narrow(left: Set[Detail], words: Sequence[str]) -> bool:
    """Whether times that only this question has make it another question.

    The present is meant when nothing is said. The past is mostly told in passing ("my tent was torn last night"),
    but for a question of how much there was.
    """
    times = {detail for detail in left if detail.kind in _NARROWING and detail not in _PRESENT}
    if not times:
        return False
    in_passing = not _FIRST_PERSON.isdisjoint(words) and "much" not in words and "many" not in words
    return not (in_passing and times <= _PAST)


# A day is told by its name, its number, its place in the week or from today: one of these against another is a doubt.
DAY, MONTH, YEAR, SEASON, PART, CLOCK, WAY = "day", "month", "year", "season", "part of the day", "clock", "way"
MAYBE_MONTH = "maybe a month"
_NARROWING = frozenset({DAY, MONTH})
_UNITS = ("week", "weekend", "month", "quarter", "season", "semester", "year")
_PRESENT = frozenset(Detail(DAY, day) for day in ("today", "tonight", *(f"this {unit}" for unit in _UNITS)))
_PAST = frozenset(
    Detail(DAY, day)
    for day in ("yesterday", "before yesterday", "last night", "last evening", *(f"last {unit}" for unit in _UNITS))
)
_HOURS = {  # with room at both ends: what is evening to one is night to another
    "morning": frozenset(range(13)),
    "afternoon": frozenset(range(12, 19)),
    "evening": frozenset(range(16, 24)),
    "night": frozenset({*range(18, 24), *range(7)}),
}
_FIRST_PERSON = frozenset({"i", "my", "me", "mine", "we", "our", "us", "i'm", "i've", "i'd", "i'll"})

_WEEKDAYS: Mapping[str, str] = {
    spelling: names.split()[0]
    for names in (
        "monday mondays",
        "tuesday tuesdays tues tue",
        "wednesday wednesdays weds",
        "thursday thursdays thurs thur thu",
        "friday fridays fri",
        "saturday saturdays",
        "sunday sundays",
    )
    for spelling in names.split()
}
_SHORT_WEEKDAYS: Mapping[str, str] = {"mon": "monday", "wed": "wednesday", "sat": "saturday", "sun": "sunday"}
_HOLIDAYS = frozenset({"christmas", "easter", "thanksgiving", "halloween", "ramadan", "diwali"})
_SEASONS = frozenset({"summer", "winter", "autumn"})
_RELATIVE = frozenset({"today", "tonight", "tomorrow", "yesterday"})
_WHICH: Mapping[str, str] = {
    "next": "next",
    "coming": "next",
    "upcoming": "next",
    "following": "next",
    "last": "last",
    "previous": "last",
    "past": "last",
    "this": "this",
    "current": "this",
}
_SPANS = frozenset({*_UNITS, "night", "morning", "afternoon", "evening"})
_PARTS: Mapping[str, str] = {
    "morning": "morning",
    "mornings": "morning",
    "afternoon": "afternoon",
    "afternoons": "afternoon",
    "evening": "evening",
    "evenings": "evening",
    "night": "night",
    "nights": "night",
    "overnight": "night",
}
_LONG_SPANS = frozenset("second seconds minute minutes hour hours day days week weeks month months year years".split())
_BEFORE_A_MONTH = frozenset(
    "in of since until till by from next last this during before after for to late early mid".split()
)
# Months that are other words too, or names, or shortened: believed only beside a number or after such a word.
_DOUBTFUL = frozenset({"may", "march", "mar", "jan", "jun", "dec", "sep", "august"})
_YEAR = re.compile(r"(?:19|20)\d\d")
_DAY = re.compile(r"[1-9]|[12]\d|3[01]")
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}|\d{1,2}/\d{1,2}/\d\d")
_CLOCK = re.compile(r"\d\d:\d\d")
_ENDINGS = frozenset({"st", "nd", "rd", "th"})


@remember
def read_dates(question: str) -> Counter[Detail]:
    """How often each is said."""
    reading = read(question)
    clocks = [Detail(CLOCK, each.also) for each in reading.figures if each.also and _CLOCK.fullmatch(each.also)]
    return Counter([*clocks, *_spoken(reading.words)])


def _spoken(words: Sequence[str]) -> Iterator[Detail]:
    for at, spelling in enumerate(words):
        word, before = spelling.removesuffix("'s"), words[at - 1] if at else ""
        if word in MONTHS:
            yield from _month(words, at, MONTHS[word])
        elif word in _RELATIVE:
            yield _relative(words, at, word)
        elif word in _WEEKDAYS or (word in _SHORT_WEEKDAYS and before in ("on", "next", "last")):
            yield Detail(DAY, _WEEKDAYS.get(word) or _SHORT_WEEKDAYS[word])
            if before in _WHICH:
                yield Detail(WAY, "this" if before in ("coming", "upcoming") else _WHICH[before])
        elif word in _SPANS and before in _WHICH:
            yield from _span(_WHICH[before], word)
        elif word in _PARTS and before not in ("good", "per", "a"):
            yield Detail(PART, _PARTS[word])
        elif word in _HOLIDAYS:
            yield Detail(DAY, word)
        elif word in _SEASONS:
            yield Detail(SEASON, word)
        elif word == "ago" or (word in ("later", "hence") and before in _LONG_SPANS):
            yield Detail(WAY, "last" if word == "ago" else "next")
        elif word == "in" and len(words) > at + 2 and words[at + 2] in _LONG_SPANS:
            yield Detail(WAY, "next")
        elif _YEAR.fullmatch(word):
            yield Detail(YEAR, word)
        elif _DATE.fullmatch(word):
            yield from _date(word)


def _relative(words: Sequence[str], at: int, word: str) -> Detail:
    if word == "tomorrow" and words[at - 2 : at] == ("day", "after"):
        return Detail(DAY, "after tomorrow")
    if word == "yesterday" and words[at - 2 : at] == ("day", "before"):
        return Detail(DAY, "before yesterday")
    return Detail(DAY, word)


def _span(which: str, span: str) -> Iterator[Detail]:
    """Next week, last night. This evening is tonight, this morning a part of today."""
    if span == "year":
        yield Detail(YEAR, f"{which} year")
    elif which == "this" and span in ("evening", "night"):
        yield Detail(DAY, "tonight")
    elif which == "this" and span in _PARTS:
        yield from (Detail(DAY, "today"), Detail(PART, span))
    else:
        yield Detail(DAY, f"{which} {span}")


def _month(words: Sequence[str], at: int, month: int) -> Iterator[Detail]:
    """A month, with its day where that stands beside it: May 5th, the fifth of May, 5 May."""
    day = _day(words[at + 1 : at + 3])
    if day is None:
        behind = [word for word in words[max(at - 4, 0) : at] if word not in _ENDINGS]
        if behind[-1:] == ["of"]:
            behind.pop()
        day = _day(behind[-2:]) if len(behind) > 1 and behind[-2] in TENS else _day(behind[-1:])
    if day is not None or words[at] not in _DOUBTFUL or (words[at - 1 : at] and words[at - 1] in _BEFORE_A_MONTH):
        yield Detail(MONTH, str(month))
    elif words[at] in ("march", "august"):
        yield Detail(MAYBE_MONTH, str(month))
    if day is not None:
        yield Detail(DAY, day)


def _day(words: Sequence[str]) -> str | None:
    """The day that one or two words are: 5, fifth, twenty first."""
    if not words:
        return None
    first, second = words[0], words[1] if len(words) > 1 else ""
    if _DAY.fullmatch(first):
        return first
    if first in TENS and TENS[first] < 40:
        return str(TENS[first] + (SMALL[second] if SMALL.get(second, 10) < 10 else 0))
    return str(SMALL[first]) if first in SMALL else None


def _date(text: str) -> Iterator[Detail]:
    date = calendar_date(text)
    if date is None:  # day and month may be the other way round: only as written
        yield Detail(DAY, text)
        return
    year, month, day = map(str, date)
    yield Detail(YEAR, year)
    yield Detail(MONTH, month)
    yield Detail(DAY, day)

"""Figures: the numbers in a question, each in one spelling, with the unit beside it. Read once for several guards.

"Twenty five", "25" and "25.0" are one number, as are "15k" and "15,000", "World War II" and "World War 2", "1st" and
"first". What is written as one word of a code is kept as written: a version, an order number, a telephone number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from math import gcd
from typing import NamedTuple

from semcache.cache.measures import ANYWHERE, BESIDE_A_NUMBER, POUND, Measure
from semcache.cache.number_words import NUMBER_WORDS, ORDINALS, SCALES, SMALL, TENS, read_scales, read_spoken
from semcache.cache.remember import remember
from semcache.cache.tokens import Token, cut, kind_at, word_at


class Role(Enum):
    """How much a figure says."""

    COUNTS = "counts"  # must be in the other question too
    TIMES = "times"  # once, twice, double: may be left out, must not be another
    LENGTH = "length"  # of a list: "top 5", "what are five reasons": may be left out, must not be another
    MONTH = "month"  # of a date: may be left out, must not be another
    SIGN = "sign"  # of a sum: may be left out, must not be another
    LETTER = "letter"  # V and X, which may be numbers or letters: may be left out, must not be another
    MAYBE = "maybe"  # "one", "first", "zero": only there to be what the other question writes as a number


class Figure(NamedTuple):
    value: str
    role: Role = Role.COUNTS
    measure: Measure | None = None
    also: str | None = None  # the same in other words: an amount in the smallest unit, a time of 24 hours, a decade
    thing: str = ""  # the next word: "1 room" may be "a room"


class Reading(NamedTuple):
    words: tuple[str, ...]  # every token of the question, folded
    figures: tuple[Figure, ...]


@remember
def read(question: str) -> Reading:
    tokens = cut(question)
    return Reading(tuple(token.text for token in tokens), tuple(_figures(tokens)))


_GLUED = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}  # 15k; m and b after money only
_DECADES = {
    word: f"19{ten}0s"
    for ten, word in enumerate("thirties forties fifties sixties seventies eighties nineties".split(), start=3)
}
_TIMES = {"once": "1", "single": "1", "twice": "2", "double": "2", "doubled": "2", "thrice": "3", "triple": "3"}
_SIGNS = {"+": "+", "plus": "+", "*": "*", "\u00d7": "*", "\u00f7": "/", "minus": "-"}
MONTHS: Mapping[str, int] = {
    name: number
    for number, names in enumerate(
        "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|"
        "september sept sep|october oct|november nov|december dec".split("|"),
        start=1,
    )
    for name in names.split()
}
# "What are five reasons", "name three ways": how many is a wish, where "I need five tickets" is an order.
_LISTING = frozenset({"are", "were", "the", "your", "name", "list", "these", "those", "best"})
LONGEST_LIST = 100
_SUPERLATIVE = re.compile(r"best|most|top|favou?rite|[^\W\d_]{3,}est")

# Roman numerals that are no words in any case: "World War II", "Henry VIII". VI and XI are names, XX is no number.
_ROMAN: Mapping[str, str] = {
    roman: str(number)
    for roman, number in zip(
        "ii iii iv vii viii ix xii xiii xiv xv xvi xvii xviii xix".split(),
        (2, 3, 4, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19),
        strict=True,
    )
}
_LETTERS = {"v": "5", "x": "10", "vi": "6", "xi": "11"}
_BEFORE_I = frozenset({"war", "type", "phase", "part", "grade", "stage", "class", "level", "chapter", "volume"})
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")  # 1,000 and 12,34,567.89
_POINTED = re.compile(r"-?\d{1,3}\.\d{3}")  # five in London, five thousand in Berlin: only as written
LONGEST_AMOUNT = 18  # digits; more are a code, and are never rounded
_PLAIN = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def _figures(tokens: Sequence[Token]) -> Iterator[Figure]:
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == "word":
            if token.text not in _OPENING:
                at += 1
                continue
            figures, after = _from_word(tokens, at)
        elif token.kind == "number":
            figures, after = _from_digits(tokens, at)
        elif token.kind == "time":
            figures, after = _from_time(tokens, at)
        elif token.kind == "mark":
            figures, after = _from_mark(tokens, at), at + 1
        else:
            figures, after = _CODES[token.kind](token.text), at + 1
        yield from figures
        at = after


def _from_word(tokens: Sequence[Token], at: int) -> tuple[Sequence[Figure], int]:
    word = tokens[at].text
    if word in NUMBER_WORDS:
        return _spoken_figure(tokens, at)
    if word in _TIMES and word_at(tokens, at - 1) not in ("than", "at"):  # more than once, at once
        return [Figure(_TIMES[word], Role.TIMES)], at + 1
    if word in _ROMAN:
        return [Figure(_ROMAN[word])], at + 1
    if word in _LETTERS:
        return [Figure(_LETTERS[word], Role.LETTER)], at + 1
    if word in MONTHS:
        near = {
            kind_at(tokens, at - 1),
            kind_at(tokens, at + 1),
            kind_at(tokens, at - 2) if word_at(tokens, at - 1) == "of" else "",
        }
        ordinal = word_at(tokens, at + 1) in SMALL or word_at(tokens, at - 1) in {"of", *SMALL}
        return [Figure(str(MONTHS[word]), Role.MONTH)] if "number" in near or ordinal else [], at + 1
    if word in ("minus", "plus"):
        number = kind_at(tokens, at + 1) == "number"
        spoken = word_at(tokens, at + 1) in SMALL or word_at(tokens, at + 1) in TENS
        if word == "minus" and kind_at(tokens, at - 1) != "number" and (number or spoken):
            figures, after = (_from_digits if number else _spoken_figure)(tokens, at + 1)
            return [each._replace(value="-" + each.value, role=Role.COUNTS, also=None) for each in figures], after
        return [Figure(_SIGNS[word], Role.SIGN)], at + 1
    if word in _FIXED:
        return [_FIXED[word]], at + 1
    if word == "i" and word_at(tokens, at - 1) in _BEFORE_I:
        return [Figure("1", Role.MAYBE)], at + 1
    if word in ("couple", "pair") and word_at(tokens, at + 1) == "of":
        return [Figure("2", Role.MAYBE)], at + 1
    if word == "zero":
        if word_at(tokens, at - 1) == "below":
            return [Figure("below zero")], at + 1
        return [Figure("0", Role.MAYBE)], at + 1
    return (), at + 1


_FIXED = {
    "noon": Figure("12", also="12:00"),
    "midday": Figure("12", also="12:00"),
    "midnight": Figure("midnight", also="00:00"),
    **{word: Figure(decade, also=decade) for word, decade in _DECADES.items()},
}


def _spoken_figure(tokens: Sequence[Token], at: int) -> tuple[Sequence[Figure], int]:
    word = tokens[at].text
    value, after = read_spoken(tokens, at)
    if after == at + 1:
        if word == "second" and _is_time(word_at(tokens, at - 1), word_at(tokens, at + 1)):
            return (), after
        if word == "first":
            return [Figure("1", Role.MAYBE, thing=word_at(tokens, after))], after
        if word == "one":
            figures, after = _finished(tokens, at, "1", value, after)
            return [each._replace(role=Role.MAYBE) for each in figures], after
    return _finished(tokens, at, _plain(value), value, after)


def _is_time(before: str, behind: str) -> bool:
    """Whether "second" is sixty to the minute, or of "second hand", and not the one after the first."""
    return (
        before in ("per", "split", "every", "each", "any")
        or behind == "hand"
        or (before in ("a", "one") and behind in ("", "ago"))
    )


def _from_digits(tokens: Sequence[Token], at: int) -> tuple[Sequence[Figure], int]:
    token = tokens[at]
    text = token.text
    if text[0] == "-" and kind_at(tokens, at - 1) == "number":
        text = text[1:]  # "3 -5" is a range
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    elif "," in text:  # a list, or a comma for a point: both parts are told apart
        return [Figure(_code(part)) for part in text.split(",") if part], at + 1
    is_amount = _PLAIN.fullmatch(text) and not _POINTED.fullmatch(text) and len(text) <= LONGEST_AMOUNT
    if not is_amount:  # a version, a code with a zero before it
        return [Figure(text)], at + 1
    value, after = Decimal(text), at + 1
    following = tokens[after] if after < len(tokens) else None
    glued = following.text if following is not None and following.start == token.end else ""
    if (glued or word_at(tokens, after)) == "k" or (glued in _GLUED and _money_before(tokens, at)):
        value *= _GLUED[glued or "k"]
        return _finished(tokens, at, _plain(value), value, after + 1)
    if following is not None and following.kind == "fraction" and "." not in text:
        part = _fraction(following.text)
        if part is not None:
            return _finished(tokens, at, _plain(value + part), value + part, after + 1)
    if glued == "s" and text.endswith("0"):
        if len(text) == 4:
            return [Figure(text + "s", also=text + "s")], after + 1
        if len(text) == 2 and text >= "30":
            return [Figure(text, also=f"19{text}s")], after + 1
    if following is not None and (following.text in SCALES or following.text in ("hundred", "dozen")):
        value, after = read_scales(tokens, after, value)
        return _finished(tokens, at, _plain(value), value, after)
    if [word_at(tokens, after + step) for step in range(3)] == ["and", "a", "half"]:
        return _finished(tokens, at, _plain(value + Decimal("0.5")), value + Decimal("0.5"), after + 3)
    return _finished(tokens, at, _code(text), value, after)


def _finished(tokens: Sequence[Token], at: int, text: str, value: Decimal, after: int) -> tuple[Sequence[Figure], int]:
    """A number with what stands beside it: a unit, a half of the day, "times", "top", a month."""
    word, last = word_at(tokens, after), tokens[after - 1]
    is_ordinal = last.text in ORDINALS
    if word in ("st", "nd", "rd", "th") and tokens[after].start == last.end:
        is_ordinal = True
        after += 1
        word = word_at(tokens, after)
    if word in ("am", "pm"):
        hour, point, minutes = text.partition(".")
        return [Figure(f"{hour}:{minutes}" if point else hour, also=_clock(hour, minutes or "00", word))], after + 1
    if word == "times":
        if kind_at(tokens, after + 1) == "number":
            return [Figure(text), Figure("*", Role.SIGN)], after + 1
        if value <= 3:
            return [Figure(text, Role.TIMES)], after + 1
    measure, beyond = _measure(tokens, at, after)
    if measure is None:
        is_wish = not is_ordinal and value <= LONGEST_LIST and _is_wish(word_at(tokens, at - 1), word)
        return [Figure(text, Role.LENGTH if is_wish else Role.COUNTS, thing=word)], after
    text = _plain(value) if measure.kind == "currency" else text
    if measure.size is None:
        return [Figure(text, measure=measure, thing=word)], beyond
    size = value * measure.size
    rest, end = _smaller_part(tokens, beyond, measure)
    if rest is not None:  # 1 hour 30 minutes
        size += rest
        text, beyond = f"{_plain(size)} {measure.kind}", end
    return [Figure(text, measure=measure, also=f"{_plain(size)} {measure.kind}", thing=word)], beyond


def _is_wish(before: str, behind: str) -> bool:
    """Whether a number is how long a list shall be: "top 5", "the 10 best", "what are five reasons"."""
    if before == "top" or _SUPERLATIVE.fullmatch(behind):
        return True
    return before in _LISTING and len(behind) > 3 and behind.endswith("s")


def _smaller_part(tokens: Sequence[Token], at: int, measure: Measure) -> tuple[Decimal | None, int]:
    """The size of what goes on from 1 hour with 30 minutes, from 5 feet with 10 inches."""
    if word_at(tokens, at) == "and":
        at += 1
    part = BESIDE_A_NUMBER.get(word_at(tokens, at + 1))
    if kind_at(tokens, at) == "number" and part and part.kind == measure.kind and _is_smaller(part, measure):
        (figure, *_), end = _from_digits(tokens, at)
        if figure.measure == part and figure.also:
            return Decimal(figure.also.split()[0]), end
    return None, at


def _is_smaller(part: Measure, whole: Measure) -> bool:
    return part.size is not None and whole.size is not None and part.size < whole.size


def _measure(tokens: Sequence[Token], at: int, after: int) -> tuple[Measure | None, int]:
    """The unit of the number at `at`, which ends before `after`, and where what follows it begins."""
    if _money_before(tokens, at):
        return ANYWHERE[word_at(tokens, at - 1)], after
    word = word_at(tokens, after)
    if word == "-" or (word in ("a", "an", "of") and tokens[at].text == "half"):
        after += 1
        word = word_at(tokens, after)
    if word in ("\u00b0", "degree", "degrees"):
        scale = {"c": "celsius", "f": "fahrenheit", "k": "kelvin"}.get(
            word_at(tokens, after + 1), word_at(tokens, after + 1)
        )
        if scale in ANYWHERE and ANYWHERE[scale].kind == "temperature":
            return ANYWHERE[scale], after + 2
    if word in ("c", "f") and tokens[after].start == tokens[after - 1].end:
        return ANYWHERE[{"c": "celsius", "f": "fahrenheit"}[word]], after + 1
    if word in ("pound", "pounds"):
        return POUND, after + 1
    measure = BESIDE_A_NUMBER.get(word)
    return measure, after + (measure is not None)


def _money_before(tokens: Sequence[Token], at: int) -> bool:
    measure = ANYWHERE.get(word_at(tokens, at - 1))
    return measure is not None and measure.kind == "currency"


def _from_time(tokens: Sequence[Token], at: int) -> tuple[Sequence[Figure], int]:
    hour, _, rest = tokens[at].text.partition(":")
    half = word_at(tokens, at + 1)
    short = hour.lstrip("0") or "0"
    value = short if rest == "00" else f"{short}:{rest}"
    if half in ("am", "pm"):
        return [Figure(value, also=_clock(hour, rest, half))], at + 2
    certain = len(hour) == 2 and (int(hour) > 12 or hour[0] == "0")
    return [Figure(value, also=f"{hour}:{rest}" if certain else None)], at + 1


def _clock(hour: str, rest: str, half: str) -> str | None:
    if len(hour) > 2 or not hour.isdecimal() or not 1 <= int(hour) <= 12:
        return None
    return f"{int(hour) % 12 + 12 * (half == 'pm'):02d}:{rest}"


def _from_mark(tokens: Sequence[Token], at: int) -> Sequence[Figure]:
    sign = _SIGNS.get(tokens[at].text)
    between = kind_at(tokens, at - 1) == "number" and kind_at(tokens, at + 1) == "number"
    spaced = between and tokens[at - 1].end < tokens[at].start < tokens[at + 1].start - 1
    if between and (sign or (spaced and tokens[at].text == "-")):
        return [Figure(sign or "-", Role.SIGN)]
    return ()


def calendar_date(text: str) -> tuple[int, int, int] | None:
    """Year, month and day of a date in digits; None where day and month may be the other way round."""
    first, second, third = (int(part) for part in re.split("[-/.]", text))
    if first > 31:
        return first, second, third
    year = third if third > 99 else 2000 + third
    if first > 12 or first == second:
        return year, second, first
    return (year, first, second) if second > 12 else None


def _from_date(text: str) -> Sequence[Figure]:
    date = calendar_date(text)
    if date is None:
        return [Figure("/".join(part.lstrip("0") for part in re.split("[-/.]", text)))]
    year, month, day = map(str, date)
    return [Figure(year), Figure(month, Role.MONTH), Figure(day)]


def _from_phone(text: str) -> Sequence[Figure]:
    return [Figure("".join(filter(str.isdecimal, text)))]


def _from_fraction(text: str) -> Sequence[Figure]:
    value = _fraction(text)
    return [Figure(text if value is None else _plain(value))]


def _fraction(text: str) -> Decimal | None:
    """The value of 1/2, and None for what is a date or a name: 9/11, 24/7, 2/4."""
    above, below = map(int, text.split("/"))
    if 0 < above < below <= 16 and gcd(above, below) == 1 and (above, below) != (9, 11):
        return (Decimal(above) / Decimal(below)).quantize(Decimal("0.0001")).normalize()
    return None


# Every word that says something of numbers, so that all others are passed over at once.
_OPENING = NUMBER_WORDS.union(
    {"minus", "plus", "i", "couple", "pair", "zero"}, _TIMES, _ROMAN, _LETTERS, MONTHS, _FIXED
)
_CODES = {"date": _from_date, "phone": _from_phone, "fraction": _from_fraction}


def _code(text: str) -> str:
    """5.0 is 5, but 3.10 is not 3.1, which may be versions, and 5.000 may be five thousand."""
    whole, _, part = text.partition(".")
    return text if part.strip("0") or len(part) == 3 else (whole if _PLAIN.fullmatch(whole) else text)


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")

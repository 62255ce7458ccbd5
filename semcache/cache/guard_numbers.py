"""Guard `numbers`: every number in one question must be in the other."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache


def numbers_differ(asked: str, stored: str) -> bool:
    """Every number in one must be in the other, equally often: amounts, versions, years, order numbers.

    Written-out numbers count as their digits, "1,000" as 1000, "5.0" as 5. "One" is left out, since it mostly stands
    for a thing ("the blue one"), so "one item" against "two items" still differs by the two.
    """
    return asked != stored and _numbers(asked) != _numbers(stored)


_SMALL = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_WORDS: Mapping[str, int] = {
    **{word: number for number, word in enumerate(_SMALL.split(), start=2)},
    **{word: 10 * number for number, word in enumerate(_TENS.split(), start=3)},
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
    "dozen": 12,
    "twice": 2,
    "double": 2,
    "triple": 3,
    "second": 2,
    "third": 3,
    "half": -2,  # no whole number, so that it differs from "two"
    "zero": 0,
}
_SIGNS = frozenset({"minus", "below"})  # "minus five", "5 degrees below zero"
_SCALES = frozenset({100, 1_000, 1_000_000, 1_000_000_000})

# Digits with the separators inside them ("1,000.50", "10:30", "2024-05-01") and a sign where it can be one, or a word.
_TOKEN = re.compile(r"(?:(?<![\w.,)])[-\u2212])?\d+(?:[.,:/\-]\d+)*|[^\W\d_]+")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")  # 1,000 and 12,345.67


@lru_cache(maxsize=8192)  # a popular stored question is compared again and again
def _numbers(text: str) -> Counter[str]:
    return Counter(_read_numbers(unicodedata.normalize("NFKC", text).lower()))


def _read_numbers(text: str) -> Iterable[str]:
    spoken: int | None = None  # a number being spoken in several words: "twenty five", "three hundred and six"
    for token in _TOKEN.findall(text):
        value = _WORDS.get(token)
        if value is not None and spoken is not None and _continues(spoken, value):
            spoken = spoken * value if value in _SCALES else spoken + value
            continue
        if token == "and" and spoken is not None and spoken % 100 == 0:
            continue
        if spoken is not None:
            yield str(spoken)
        spoken = value
        if token in _SIGNS:
            yield token
        elif not token[0].isalpha():
            yield _plain(token.replace("\u2212", "-"))
    if spoken is not None:
        yield str(spoken)


def _continues(spoken: int, value: int) -> bool:
    """Whether the next number word belongs to the same number ("twenty", "five") or starts another ("two", "three")."""
    if value in _SCALES:
        return 0 < spoken < value
    if spoken % 100 == 0:
        return 0 < value < 100
    return spoken % 10 == 0 and spoken % 100 >= 20 and 0 < value < 10


def _plain(token: str) -> str:
    """One spelling for each number: 1,000 -> 1000, 5.0 -> 5, 007 stays, as codes do."""
    if _GROUPED.fullmatch(token):
        token = token.replace(",", "")
    if token.startswith("0") and not token.startswith("0."):
        return token
    try:
        value = Decimal(token)
    except InvalidOperation:  # a date, a time, a version: compared as written
        return token
    return format(value.normalize(), "f")

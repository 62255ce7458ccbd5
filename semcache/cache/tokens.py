"""A question cut into words, numbers, dates, times and signs, in one case and one form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class Token(NamedTuple):
    kind: str  # "word", "number", ...: the groups of _TOKEN
    text: str
    start: int
    end: int


def cut(question: str) -> list[Token]:
    return [
        Token(str(found.lastgroup), found[0], found.start(), found.end()) for found in _TOKEN.finditer(fold(question))
    ]


def kind_at(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].kind if 0 <= at < len(tokens) else ""


def word_at(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].text if 0 <= at < len(tokens) else ""


_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215f\u2189]")  # one half as one sign, and the like
_HALF_OF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?")
_PHRASES = (
    (re.compile(r"\bper cent\b"), "percent"),
    (re.compile(r"\b(?:24\s?x\s?7|24 hours(?: a day)?,? (?:and )?(?:7|seven) days(?: a week)?)\b"), "24/7"),
    (re.compile(r"\b(?:a)?round[- ]the[- ]clock\b"), "24/7"),
    (re.compile(r"\bo['\u2019]clock\b"), "oclock"),
    (re.compile(r"\bu\.?s\.? ?\$"), "$"),
    (re.compile(r"\b(?:an?|one) ([^\W\d_]+) and a half\b"), r"1.5 \1s"),
)


def fold(question: str) -> str:
    """One case, one form of each letter and digit, and single spellings of what is written with dots and blanks."""
    if question.isascii():
        text = question.lower()
    else:
        split = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]), question)
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", split).casefold())
        text = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
        text = text.replace("\u2044", "/").replace("\u2212", "-").replace("\u2019", "'")
    text = " ".join(text.split())  # a blank may stand inside a number, two may not
    if ".m" in text or ". m" in text:
        text = _HALF_OF_DAY.sub(r"\1m", text)
    for pattern, spelling in _PHRASES:
        text = pattern.sub(spelling, text)
    return text


_TOKEN = re.compile(
    r"""
    (?P<word>[^\W\d_]+(?:'[^\W\d_]+)?)  # first, since most are
    |(?P<date>(?<![\d.,])(?:
        \d{4}(?P<dash>[-/.])\d{1,2}(?P=dash)\d{1,2}
        |\d{1,2}(?P<slash>[-/.])\d{1,2}(?P=slash)\d{4}
        |\d{1,2}/\d{1,2}/\d\d)(?![\d/]))
    |(?P<phone>(?<![\w.,/-])\+?(?:\d{1,3}[ .-]?)?(?:\(\d{2,5}\)|\d{3,5})[ .-]\d{3,4}[ .-]\d{3,4}(?![\w,/-]|\.\d)
        |(?<![\w.,/-])\d{3}-\d{4}(?![\w,/-]|\.\d)|(?<![\w.,/-])(?:\d{4}[ -]){3}\d{4}(?!\w))
    |(?P<time>(?<![\d:.])\d{1,2}:\d\d(?::\d\d)?(?![\d:]))
    |(?P<fraction>(?<![\w.,/-])\d{1,3}/\d{1,3}(?![\w/]))
    |(?P<number>(?:(?<![\w.,)-])-)?\d+(?:[.,]\d+)*)
    |(?P<mark>[%$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u00b0\u00a2\u00d7\u00f7+*/'"\u2013\u2014-])
    """,
    re.VERBOSE,
)

"""Numbers in words: "three hundred and six", "4.1 billion", "twenty first", "half a dozen"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from semcache.cache.tokens import Token, word_at

SMALL: Mapping[str, int] = {
    word: number
    for number, words in enumerate(
        "one first|two second|three third|four fourth|five fifth|six sixth|seven seventh|eight eighth|nine ninth|"
        "ten tenth|eleven eleventh|twelve twelfth|thirteen thirteenth|fourteen fourteenth|fifteen fifteenth|"
        "sixteen sixteenth|seventeen seventeenth|eighteen eighteenth|nineteen nineteenth".split("|"),
        start=1,
    )
    for word in words.split()
}
TENS: Mapping[str, int] = {
    word: 10 * number
    for number, words in enumerate(
        "twenty twentieth|thirty thirtieth|forty fortieth|fifty fiftieth|sixty sixtieth|seventy seventieth|"
        "eighty eightieth|ninety ninetieth".split("|"),
        start=2,
    )
    for word in words.split()
}
ORDINALS = frozenset(word for word in (*SMALL, *TENS) if word.endswith("th") or word in ("first", "second", "third"))
SCALES: Mapping[str, int] = {
    "thousand": 1_000,
    "grand": 1_000,
    "lakh": 100_000,
    "lakhs": 100_000,
    "lac": 100_000,
    "million": 1_000_000,
    "mn": 1_000_000,
    "mio": 1_000_000,
    "crore": 10_000_000,
    "crores": 10_000_000,
    "billion": 1_000_000_000,
    "bn": 1_000_000_000,
    "bil": 1_000_000_000,
    "trillion": 1_000_000_000_000,
}
_ALONE = frozenset({"thousand", "million", "billion", "trillion", "lakh", "crore"})  # scales that start a number
NUMBER_WORDS = frozenset({*SMALL, *TENS, *_ALONE, "hundred", "dozen", "half"})  # all that a number can start with


def read_spoken(tokens: Sequence[Token], at: int) -> tuple[Decimal, int]:
    """A number of words, or of digits with words after them: "three hundred and six", "4.1 billion", "half a dozen"."""
    total, current, least = Decimal(0), Decimal(0), None
    begun = at
    while at < len(tokens):
        word = tokens[at].text
        if at > begun and word == "and" and _may_follow(tokens, at + 1, current, total):
            at += 1
            word = tokens[at].text
        elif at > begun and word == "-" and _may_follow(tokens, at + 1, current, total):
            at += 1
            word = tokens[at].text
        if word in SMALL or word in TENS:
            small = SMALL.get(word) or TENS[word]
            if current in (18, 19, 20) and total == 0 and small >= 10:  # a year: nineteen eighty
                current = current * 100 + small
            elif at == begun or _may_follow(tokens, at, current, total):
                current += small
            else:
                break
        elif word == "hundred" and current < 100:
            current = max(current, Decimal(1)) * 100
        elif word == "dozen" and total == 0 and current < 100:
            return max(current, Decimal(1)) * 12, at + 1
        elif word in SCALES and (current or at == begun) and (least is None or SCALES[word] < least):
            least = SCALES[word]
            total += max(current, Decimal(1)) * least
            current = Decimal(0)
        elif word == "half" and at == begun:
            if word_at(tokens, at + 1) == "a" and word_at(tokens, at + 2) == "dozen":
                return Decimal(6), at + 3
            return Decimal("0.5"), at + 1
        else:
            break
        at += 1
    value = total + current
    if [word_at(tokens, at + step) for step in range(3)] == ["and", "a", "half"]:
        return value + Decimal("0.5"), at + 3
    return value, at


def _may_follow(tokens: Sequence[Token], at: int, current: Decimal, total: Decimal) -> bool:
    """Whether the next word belongs to the same number ("twenty", "five") or starts another ("two", "three")."""
    word = word_at(tokens, at)
    if word in SMALL:
        value = SMALL[word]
        if value >= 10:
            return current % 100 == 0 and current + total > 0
        return current + total > 0 and current % 10 == 0 and current % 100 != 10
    return word in TENS and current % 100 == 0 and current + total > 0


def read_scales(tokens: Sequence[Token], at: int, value: Decimal) -> tuple[Decimal, int]:
    while (word := word_at(tokens, at)) in SCALES or word in ("hundred", "dozen"):
        value *= SCALES.get(word) or {"hundred": 100, "dozen": 12}[word]
        at += 1
    return value, at

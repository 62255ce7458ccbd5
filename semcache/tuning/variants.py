"""Generated pairs: a question and a copy that asks for something else, or for the same in other clothes.

Labelled data has few twins, questions that differ in one number, name or word of denial and need another answer, and
few that differ in nothing but politeness. Both are easily made. A change is only made where what is changed is found,
so a text gives as many variants as it offers. The word lists are of this file alone, so that what guards know of words
is not tested with the same words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

Change = Callable[[str, random.Random], str | None]  # the copy; None: nothing in the text to change


class Variant(NamedTuple):
    text: str
    copy: str
    same: bool
    kind: str  # a key of CHANGES or HARMLESS


def make_variants(texts: Sequence[str], seed: int, each: int = 1) -> Iterator[Variant]:
    """At most `each` changed and `each` harmless variants of every text, of kinds drawn at random."""
    chance = random.Random(seed)
    for text in texts:
        for kinds, same in ((CHANGES, False), (HARMLESS, True)):
            found = 0
            for kind in chance.sample(sorted(kinds), len(kinds)):
                copy = kinds[kind](text, chance)
                if copy is not None and copy.strip() and copy != text:
                    yield Variant(text, copy, same, kind)
                    found += 1
                if found == each:
                    break


# Changes: another answer is right


def _number(text: str, chance: random.Random) -> str | None:
    found = [match for match in re.finditer(r"\d+", text) if len(match[0]) < 16]
    if not found:
        return None
    match = chance.choice(found)
    value = int(match[0])
    others = {value + 1, value + chance.randint(2, 9), value * 10, max(value - 1, 0)} - {value}
    return _put(text, match, str(chance.choice(sorted(others))))


def _one_of(*rows: str) -> Change:
    """A word of a row becomes another of the same row."""
    others: dict[str, list[str]] = {}
    for row in rows:
        words = [word.strip() for word in row.split(",")]
        for word in words:
            others.setdefault(word, []).extend(other for other in words if other != word)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(others, key=len, reverse=True))) + r")\b", re.I)

    def change(text: str, chance: random.Random) -> str | None:
        found = list(pattern.finditer(text))
        if not found:
            return None
        match = chance.choice(found)
        return _put(text, match, _cased(chance.choice(others[match[0].lower()]), match[0]))

    return change


_AUXILIARY = re.compile(
    r"\b(can|could|should|would|will|is|are|was|were|does|do|did|has|have)( (?:i|you|we|they|it))\b", re.I
)


def _deny(text: str, _chance: random.Random) -> str | None:
    match = _AUXILIARY.search(text)
    if re.search(r"\bnot\b|n't\b", text):
        return re.sub(r"\s*\bnot\b|n't\b", "", text, count=1)
    return None if match is None else f"{text[: match.end()]} not{text[match.end() :]}"


def _exchange(text: str, _chance: random.Random) -> str | None:
    """Who and whom, whence and whither: what stands around "to" or "before" changes places."""
    match = re.search(r"\bfrom ([\w$€£]+) to ([\w$€£]+)\b|\b(\w{3,}) (?:before|versus|vs|or after) (\w{3,})\b", text)
    if match is None:
        return None
    one, other = (1, 2) if match[1] else (3, 4)
    if match[one].lower() == match[other].lower():
        return None
    swapped = text[match.start() : match.start(one)] + match[other] + text[match.end(one) : match.start(other)]
    return text[: match.start()] + swapped + match[one] + text[match.end(other) :]


CHANGES: Mapping[str, Change] = {
    "number": _number,
    "denial": _deny,
    "exchange": _exchange,
    "number word": _one_of(
        "two, three, four, five, six, seven, eight, nine, ten, twelve", "first, second, third, fourth"
    ),
    "date": _one_of(
        "monday, tuesday, wednesday, thursday, friday, saturday, sunday",
        "january, february, march, april, june, july, august, september, october, november, december",
        "yesterday, today, tomorrow",
        "morning, afternoon, evening, night",
    ),
    "unit": _one_of(
        "mg, g, kg", "mm, cm, km, miles", "hours, days, weeks, months, years", "dollars, euros, pounds, yen, francs"
    ),
    "place": _one_of(
        "london, paris, berlin, madrid, lisbon, vienna, prague, oslo, dublin, seattle, boston, chicago, denver, dallas",
        "france, germany, spain, italy, canada, mexico, brazil, india, china, japan, australia, poland, sweden",
        "san francisco, los angeles, new york, san diego, las vegas, san jose",
    ),
    "person": _one_of(
        "james, mary, john, linda, robert, susan, michael, karen, david, laura, thomas, emily, daniel, anna",
        "my mother, my father, my sister, my brother, my wife, my husband, my boss, my friend",
    ),
    "polarity": _one_of(
        "enable, disable",
        "activate, deactivate",
        "increase, decrease",
        "before, after",
        "buy, sell",
        "open, close",
        "cheapest, most expensive",
        "highest, lowest",
        "lock, unlock",
        "deposit, withdraw",
        "send, receive",
        "subscribe, unsubscribe",
        "start, stop",
        "with, without",
        "minimum, maximum",
        "arrival, departure",
        "add, remove",
        "accept, decline",
    ),
    "thing": _one_of(
        "credit card, debit card, gift card",
        "phone number, email address, home address",
        "password, username, pin",
        "order, invoice, subscription, refund",
        "flight, hotel, train, bus",
        "mattress, pillow, blanket",
        "breakfast, lunch, dinner",
        "checking account, savings account",
        "car, bike, boat",
        "song, movie, book",
    ),
    "question": _one_of("when, where, why", "how much, how many, how long, how often", "who, when"),
}


# Harmless: the same answer is right


def _before(*openings: str) -> Change:
    def change(text: str, chance: random.Random) -> str | None:
        is_name = len(text) > 1 and (text[1].isupper() or text.startswith(("I ", "I'")))
        return chance.choice(openings) + (text if is_name else text[0].lower() + text[1:])

    return change


def _after(*endings: str) -> Change:
    def change(text: str, chance: random.Random) -> str | None:
        body = text.rstrip()
        mark = body[-1] if body[-1] in ".?!" else ""
        return body[: len(body) - len(mark)] + chance.choice(endings) + mark

    return change


_SHORT = {
    "I am": "I'm",
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "cannot": "can't",
    "is not": "isn't",
    "will not": "won't",
    "have not": "haven't",
    "what is": "what's",
    "how do I": "how can I",
    "would like": "want",
    "I would": "I'd",
    "I have": "I've",
    "it is": "it's",
}
_FORMS = [*_SHORT.items(), *((short, long) for long, short in _SHORT.items())]


def _contract(text: str, chance: random.Random) -> str | None:
    for form, other in chance.sample(_FORMS, len(_FORMS)):
        match = re.search(rf"\b{form}(?!\w)", text, re.I)
        if match is not None:
            return _put(text, match, _cased(other, match[0]))
    return None


def _clauses(text: str, _chance: random.Random) -> str | None:
    """ "If it is late, what do I do?" for "What do I do if it is late?" """
    match = re.fullmatch(r"((?:what|how|where|can|should|will)\b[^,.;?]{8,}) (if|when) ([^,.;?]{6,})\?", text, re.I)
    return None if match is None else f"{match[2].capitalize()} {match[3]}, {match[1][0].lower()}{match[1][1:]}?"


HARMLESS: Mapping[str, Change] = {
    "greeting": _before("Hi, ", "Hello, ", "Hey there, ", "Good morning, ", "Hi there! "),
    "asking": _before("please tell me, ", "quick question: ", "I was wondering, ", "Could you help me? "),
    "thanks": _after(", please", ", thanks", ", thank you", " please"),
    "contraction": _contract,
    "case": lambda text, chance: text.lower() if text != text.lower() else text.upper(),
    "marks": lambda text, chance: re.sub(r"[?!.,;]+(?=\s|$)", "", text) if text[-1] in "?!." else text + "?",
    "clauses": _clauses,
    "synonym": _one_of(
        "purchase, buy", "assist, help", "modify, change", "locate, find", "obtain, get", "repair, fix", "begin, start"
    ),
}


def _put(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _cased(word: str, like: str) -> str:
    return word[0].upper() + word[1:] if like[:1].isupper() else word

"""The guard `entities`: who and what a question is about must be the same: places, people, companies, products, things.

Most people write without capitals, so a name is found by what it is not: a word that the dictionary of ordinary English
lacks, or has with a capital only. A table adds other spellings ("NYC"), names that are ordinary words too ("apple") and
rows of things that are each other's neighbours and never each other's answer ("jacket", "tent"). Typos, plurals and
spellings in one word or two are no difference. In texts that are not English only the table and product numbers count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from semcache.cache.gazetteer import BEGINNINGS, LONGEST, SPELLINGS
from semcache.cache.guard_language import read_language
from semcache.cache.measures import ANYWHERE
from semcache.cache.remember import remember
from semcache.cache.vocabulary import (
    COMMON,
    DATES,
    NAMES,
    is_general,
    is_glued,
    is_plain_english,
    is_slip,
    stem,
)
from semcache.cache.wording import is_context


def entities_differ(asked: str, stored: str) -> bool:
    """Whether a name of one text is missing in the other.

    1. A sure name on one side only: another question, as a place or a product narrows the answer, unless it goes
       without saying.
    2. A word that may be a name, or a thing of some row: when the other text has another of the same kind, or another
       word in its place, and all the rest is equal.

    Names in two questions of general interest count less the more the wording differs.
    """
    if asked == stored:
        return False
    one, other = read_entities(asked), read_entities(stored)
    extra, missing = _beyond(one, other), _beyond(other, one)
    if not extra and not missing:
        return False
    length = sum(mark.size for mark in extra + missing)
    if extra and missing:
        both_sure = any(mark.is_sure for mark in extra) and any(mark.is_sure for mark in missing)
        if both_sure and not is_context(asked, stored, length, _REWORDED):
            return True
        is_sure = any(mark.is_sure for mark in extra + missing)
        if (is_sure or not _kinds(extra).isdisjoint(_kinds(missing))) and not is_context(asked, stored, length, 1):
            return True
    else:
        text, rest = (one, extra) if extra else (other, missing)
        left = {mark.place for mark in rest}
        held = {mark.place for mark in text.marks if mark.is_sure or mark.kinds & _PRODUCTS} - left
        named = [mark for mark in rest if mark.is_sure and not _goes_without_saying(mark, held)]
        if named and not is_context(asked, stored, length, 0):
            return True
    return _is_exchanged(one, other, {mark.place for mark in extra}, {mark.place for mark in missing})


_REWORDED = 3  # other words: two names in questions this different are rarely exchanged for each other


def _goes_without_saying(mark: _Mark, held: set[int]) -> bool:
    """Whether it stands before a name that both have ("Barack Obama"), or is a country after one ("Cairo, Egypt")."""
    return mark.place + 1 in held or ("PLACE" in mark.kinds and mark.place - 1 in held)


def _kinds(marks: Iterable[_Mark]) -> set[str]:
    return {kind for mark in marks for kind in mark.kinds}


def _is_exchanged(one: _Reading, other: _Reading, extra: set[int], missing: set[int]) -> bool:
    """Whether the texts are equal but for a word or two, a mark among them: "can i return my [sofa]", "[jacket]"."""
    shorter = min(len(one.words), len(other.words))
    begin = 0
    while begin < shorter and one.words[begin] == other.words[begin]:
        begin += 1
    end = 0
    while end < shorter - begin and one.words[-1 - end] == other.words[-1 - end]:
        end += 1
    places, others = range(begin, len(one.words) - end), range(begin, len(other.words) - end)
    if begin + end < 2 or not (1 <= len(places) <= 2 and 1 <= len(others) <= 2):
        return False
    if extra.isdisjoint(places) and missing.isdisjoint(others):
        return False
    words, instead = one.words[begin : places.stop], other.words[begin : others.stop]
    if not _ALSO_VERBS.isdisjoint(map(stem, words + instead)) or "".join(words) == "".join(instead):
        return False
    return _names_something(words) and _names_something(instead)


def _names_something(words: Iterable[str]) -> bool:
    return any(word not in COMMON and word not in _SMALL and any(map(str.isalpha, word)) for word in words)


# Words of the rows that mostly say what is done ("check my bill", "see my bill"), or that have too many synonyms.
_ALSO_VERBS = frozenset(
    map(
        stem,
        "check list order purchase watch go ship access book play see look deposit withdrawal account payment "
        "transaction "
        "cash money song music bill film head hand back target discover square publish cover run".split(),
    )
)


class _Mark(NamedTuple):
    """A word, or several, that may be a name."""

    text: str  # lower case, without what joins its parts
    ids: frozenset[str]  # what the table calls it, empty for a word that it lacks
    kinds: frozenset[str]
    is_sure: bool
    is_known: bool  # a spelling found in the table or the dictionary; only others can be typos
    place: int  # of its last word in the text
    size: int = 1  # words


class _Reading(NamedTuple):
    marks: tuple[_Mark, ...]
    ids: frozenset[str]
    words: tuple[str, ...]
    joined: frozenset[str]  # the text's parts, and up to three of them written together
    initials: str  # of the words, small ones left out, a letter each

    def has(self, mark: _Mark) -> bool:
        if mark.ids & self.ids or mark.text in self.joined or stem(mark.text) in self.joined:
            return True
        if 3 <= len(mark.text) <= 6 and mark.text in self.initials:
            return True
        return len(self.words) <= _SHORT and any(_is_typo(mark, word) for word in self.words)


def _beyond(text: _Reading, other: _Reading) -> list[_Mark]:
    """The marks of a text that the other lacks."""
    left = [mark for mark in text.marks if not other.has(mark)]
    if left and any(3 <= len(mark.text) <= 6 and mark.text in text.initials for mark in other.marks):
        # The other text has the whole name in one: "IIT" for the words that it abbreviates.
        return [mark for mark in left if not mark.is_known]
    return left


_READ = 20_000  # characters: longer texts never get so far, as no embedder reads them; it bounds what a caller can cost


_SHORT = 200  # words: typos are looked for in texts up to this, as each mark is compared with each word
_UNKNOWN = 20  # words that are looked up as typos, 0.5 ms each, before the rest is taken for none


@remember
def read_entities(text: str) -> _Reading:
    text = _fold(text[:_READ])
    tokens = [(found[0], found.start()) for found in _TOKEN.finditer(text)]
    words = [token.casefold() for token, _ in tokens]
    marks: list[_Mark] = []
    rest: list[int] = []
    place = 0
    while place < len(words):
        length = _longest(words, place)
        if length:
            spelling = " ".join(words[place : place + length])
            names = SPELLINGS.get(spelling) or SPELLINGS[_bare(spelling)]
            if not (length == 1 and spelling == "us" and not tokens[place][0].isupper()):
                sure = any(name.is_sure for name in names) or _squash(spelling) in NAMES
                ids, kinds = frozenset(name.id for name in names), frozenset(name.kind for name in names)
                marks.append(_Mark(_squash(spelling), ids, kinds, sure, True, place + length - 1, length))
        else:
            rest.append(place)
        place += max(length, 1)
    marks += _unlisted(text, tokens, rest)
    parts = [part for word in words for part in _PART.findall(word)]
    stems = [stem(part) for part in parts]
    joined = {*parts, *stems, *map(_squash, words), *(stem(_bare(word)) for word in words)}
    for size in (2, 3, 4):
        joined.update("".join(parts[at : at + size]) for at in range(len(parts) - size + 1))
    joined.update(map("".join, pairwise(stems)))  # "rolling over" has a "rollover"
    initials = "".join(word[0] for word in words if word not in _SMALL)
    ids = frozenset(one for mark in marks for one in mark.ids)
    return _Reading(tuple(marks), ids, tuple(words), frozenset(joined), initials)


def _unlisted(text: str, tokens: list[tuple[str, int]], places: Iterable[int]) -> list[_Mark]:
    """The marks among the words that the table lacks."""
    reading = read_language(text)
    is_english = reading.language in (None, "en") and not reading.is_foreign
    cased = _tells_by_case(text, tokens)
    marks, unknown = [], 0
    asker = _introduced([token.casefold() for token, _ in tokens])
    for place in places:
        token, start = tokens[place]
        word = _bare(token.casefold())
        if place in asker or (word in ANYWHERE and ANYWHERE[word].kind == "currency"):
            continue
        plain = _squash(word)
        capital = cased and token[0].isupper() and not _begins(text, start)
        if any(letter.isdigit() for letter in token):
            if not _AMOUNT.fullmatch(word) and any(letter.isalpha() for letter in token):
                marks.append(_Mark(plain, frozenset(), frozenset(), True, True, place))
            continue
        if not is_english or not plain.isascii():
            continue
        if plain in NAMES or stem(plain) in NAMES:
            marks.append(_Mark(plain, frozenset(), frozenset(), True, True, place))
        elif is_plain_english(word):
            if (
                capital
                and len(word.partition("'")[0]) > 1
                and not token.isupper()
                and word not in COMMON
                and word not in DATES
            ):
                marks.append(_Mark(plain, frozenset(), _CAPITAL, False, True, place))
        elif cased and token.isupper():
            marks.append(_Mark(plain, frozenset(), _CAPITAL, False, True, place))
        elif not capital and is_glued(plain):
            marks.append(_Mark(plain, frozenset(), _CAPITAL, False, False, place))
        elif len(plain) > 3 and unknown < _UNKNOWN and (capital or not is_slip(plain)):
            unknown += 1
            marks.append(_Mark(plain, frozenset(), _CAPITAL, True, False, place))
    if unknown > max(2, len(tokens) // 2):  # hardly English
        return [mark for mark in marks if mark.is_known]
    return marks


def _introduced(words: list[str]) -> range:
    """Where the asker gives his own name, which he does not ask about: "hi, my name is Liam", "hello, this is Liam"."""
    for at, word in enumerate(words[:8]):
        if words[at : at + 3] == ["my", "name", "is"]:
            return range(at + 3, at + 5)
        if words[0] in _GREETINGS and (word in ("its", "it's", "i'm") or words[at : at + 2] == ["this", "is"]):
            return range(at + 1, at + 4)
    return range(0)


_GREETINGS = frozenset({"hi", "hello", "hey", "good", "dear"})
_CAPITAL = frozenset({"capital"})
_PRODUCTS = frozenset({"brand", "system", "office program"})  # rows whose words may stand after a maker's name
_SMALL = frozenset("a an the of and in for to at on by".split())
# "AT&T", "node.js", "C++", "C#", ".NET", "WH-1000XM4" are one token each.
_TOKEN = re.compile(r"(?:(?<!\S)\.)?[^\W_]+(?:['.&-][^\W_]+)*(?:\+\+|#)?")
_PART = re.compile(r"\d+|[^\W\d_]+")
# "5mg", "10th", "1990s", "7pm": what is counted is for other guards.
_AMOUNT = re.compile(r"\d[\d.,:-]*[a-z]{0,3}(?:/[a-z]+)?")


def _fold(text: str) -> str:
    """Letters without their accents, and every apostrophe the same."""
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
    return text if text.isascii() else "".join(letter for letter in text if not unicodedata.combining(letter))


_APOSTROPHES = str.maketrans("‘’ʼ`´", "'''''")


def _bare(word: str) -> str:
    return word.removesuffix("'s").removesuffix("'")


def _squash(word: str) -> str:
    """The word without what joins its parts; "c++" and "c#" keep their signs."""
    return _JOINTS.sub("", word)


_JOINTS = re.compile(r"['.&\s-]")


def _longest(words: list[str], place: int) -> int:
    """How many words from here are in the table as one name; 0: none."""
    if words[place] not in BEGINNINGS and _bare(words[place]) not in BEGINNINGS:
        return 0
    for length in range(min(LONGEST, len(words) - place), 0, -1):
        spelling = " ".join(words[place : place + length])
        if spelling in SPELLINGS or _bare(spelling) in SPELLINGS:
            return length
    return 0


def _tells_by_case(text: str, tokens: list[tuple[str, int]]) -> bool:
    """Whether capitals mean something here: not in a text all of them, or a headline with one to each word."""
    long = [token for token, _ in tokens[1:] if len(token) > 3]
    return sum(token[0].isupper() for token in long) <= max(2, len(long) / 2)


def _begins(text: str, start: int) -> bool:
    """Whether a sentence, or a quotation, begins here: its capital tells nothing."""
    before = text[max(0, start - 3) : start].rstrip(" ")
    return not text[:start].strip() or before.endswith((".", "!", "?", ":", "\n", '"', "(", "-", "*", ";"))


def _is_typo(mark: _Mark, word: str) -> bool:
    """Whether the two are one word but for a slip. Two known words are two words ("Austria", "Australia")."""
    if len(word) < 4 or len(mark.text) < 4 or abs(len(word) - len(mark.text)) > 2:
        return False
    if mark.is_known and (is_general(word) or word in NAMES or word in SPELLINGS):
        return False
    return differs_by_a_slip(mark.text, word)


def differs_by_a_slip(one: str, other: str) -> bool:
    """One edit, or two side by side in a long word: what is left between what begins and what ends the same."""
    begin = 0
    while begin < min(len(one), len(other)) and one[begin] == other[begin]:
        begin += 1
    end = 0
    while end < min(len(one), len(other)) - begin and one[-1 - end] == other[-1 - end]:
        end += 1
    left, right = one[begin : len(one) - end], other[begin : len(other) - end]
    if len(left) <= 1 and len(right) <= 1:
        return True
    return (sorted(left) == sorted(right) and len(left) == 2) or (
        max(len(left), len(right)) <= 2 and min(len(one), len(other)) >= 8
    )
